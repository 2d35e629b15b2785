//! From an order to a node: who is a candidate, and what is free there as of now.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_identity::{Grant, Limits, NodeId, Scope};
use meshwork_proto::ByteSize;
use meshwork_proto::agent::{self, Heartbeat};
use meshwork_proto::announcement::Role;
use meshwork_proto::manager::{NodeState, STATUS_NOT_PLACED};
use meshwork_proto::ports::Known;
use meshwork_proto::query::Query;
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::Method;
use meshwork_proto::slots::{Capacity, Resources, cpus};
use meshwork_sched::{Candidate, NotPlaced, Placement, Request, place, release, reserve};

use crate::core::Core;
use crate::ledger::Draft;
use crate::record::{Ordered, Record, Refused};

/// Reason of a refused placement.
pub(crate) const NOT_PLACED: &str = "not_placed";

/// Reads the query of an order or a request.
pub(crate) fn parse_query(text: Option<&str>) -> Result<Query, RpcError> {
    match text {
        None => Ok(Query::all()),
        Some(text) => {
            Query::parse(text).map_err(|e| RpcError::invalid(e.to_string()).reason("query"))
        }
    }
}

/// Refuses what the token would allow on no node.
pub(crate) fn within_limits(limits: &Limits, want: &Resources) -> Result<(), RpcError> {
    let gpus = want.gpu.as_ref().map_or(0, |g| g.count);
    let fail = |what: String| {
        let error = RpcError::denied(format!("your token allows at most {what}")).reason("limits");
        Err(error.fix("ask for less, or ask whoever issued the token for more"))
    };
    if let Some(max) = limits.gpus.filter(|max| gpus > *max) {
        return fail(format!("{max} GPUs on a node, the order asks for {gpus}"));
    }
    if let Some(max) = limits.cpu_millis.filter(|max| want.cpu_millis > *max) {
        let (max, asked) = (cpus(max), cpus(want.cpu_millis));
        return fail(format!("{max} cpu on a node, the order asks for {asked}"));
    }
    if let Some(max) = limits.mem_bytes.filter(|max| want.mem > *max) {
        let (max, asked) = (ByteSize(max), ByteSize(want.mem));
        return fail(format!(
            "{max} of memory on a node, the order asks for {asked}"
        ));
    }
    if limits.kernels == Some(0) {
        return fail("0 kernels".into());
    }
    Ok(())
}

/// What a user whose order fits nowhere is told.
pub(crate) fn not_placed(error: &NotPlaced) -> RpcError {
    RpcError::new(Status::App(STATUS_NOT_PLACED), error.to_string())
        .reason(NOT_PLACED)
        .fix(
            "ask for less, widen the query, or stop something: meshwork node ls shows what is free",
        )
}

impl Core {
    /// Chooses a node for an order among all that `grant` lets it use, those in `refused` left out.
    pub(crate) fn place(
        &self,
        draft: &Draft,
        ordered: &Ordered,
        grant: &Grant,
        refused: &[Refused],
    ) -> Result<Placement, RpcError> {
        let filter = ordered.order.spec.place.as_deref();
        let query = parse_query(filter)?;
        let is_agent = |(_, announcement): &Known| announcement.roles.contains(&Role::Agent);
        let agents = self
            .directory
            .nodes()
            .iter()
            .filter(|known| is_agent(known))
            .count();
        let mut matching = self.directory.find(&query);
        matching.retain(is_agent);
        let mut records: BTreeMap<NodeId, Vec<Arc<Record>>> = BTreeMap::new();
        for record in draft
            .all()
            .into_iter()
            .filter(|r| r.id() != ordered.order.session)
        {
            records.entry(record.facts.node).or_default().push(record);
        }
        let filtered = agents.saturating_sub(matching.len());
        let candidates: Vec<Candidate> = matching
            .into_iter()
            .map(|known| {
                let records = records.get(&known.0).map_or(&[][..], Vec::as_slice);
                self.candidate(&known, records, ordered, grant, refused)
            })
            .collect();
        let request = Request {
            resources: ordered.resources(),
            filter,
            filtered,
        };
        place(&request, &candidates).map_err(|e| not_placed(&e))
    }

    fn candidate(
        &self,
        (node, announcement): &Known,
        records: &[Arc<Record>],
        ordered: &Ordered,
        grant: &Grant,
        refused: &[Refused],
    ) -> Candidate {
        let standing = self.nodes.standing(*node);
        let path = agent::Create::INFO.path();
        let barred = if let Some(refused) = refused.iter().find(|r| r.node == *node) {
            Some(format!("refused: {}", refused.words))
        } else if let Err(e) = grant.check(&ordered.owner, Scope::Call, &path, node, self.now()) {
            Some(e.to_string())
        } else if !grant
            .limits
            .allow_node(announcement.tags.iter().map(String::as_str))
        {
            Some(format!(
                "your token allows only nodes tagged {}",
                grant.limits.node_tags
            ))
        } else {
            match (standing.state, &standing.heard) {
                (NodeState::Ready, _) => None,
                (_, Some((silence, _))) => Some(format!("not heard for {} s", silence.as_secs())),
                (_, None) => Some("not heard yet".into()),
            }
        };
        let heard = standing.heard.map(|(_, heartbeat)| heartbeat);
        Candidate {
            node: *node,
            name: announcement.name.clone(),
            load_millis: heard.as_ref().map_or(0, |h| h.load_millis),
            capacity: heard.map_or_else(Capacity::default, |h| free_now(h, records)),
            barred,
        }
    }
}

/// What the node reported, corrected by what was decided since: sessions that it does not report
/// yet hold their share, and those that it still reports but that have ended hold none. Derived
/// each time, so it cannot drift.
fn free_now(heartbeat: Heartbeat, records: &[Arc<Record>]) -> Capacity {
    let mut capacity = heartbeat.capacity;
    for record in records {
        let (kernel, generation) = (record.kernel(), record.facts.generation);
        let reported = heartbeat
            .kernels
            .iter()
            .any(|(k, g, _)| (*k, *g) == (kernel, generation));
        match (reported, record.ended()) {
            (false, false) => reserve(&mut capacity, kernel, record.ordered.resources()),
            (true, true) => release(&mut capacity, kernel, record.ordered.resources()),
            _ => {}
        }
    }
    capacity
}
