//! From an order to a node: who is a candidate, and what is free there as of now.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_identity::{Grant, Limits, NodeId, NodeTags, Scope, TokenError};
use meshwork_proto::ByteSize;
use meshwork_proto::agent::{self, Heartbeat};
use meshwork_proto::announcement::Role;
use meshwork_proto::manager::{NodeState, STATUS_NOT_PLACED};
use meshwork_proto::ports::Known;
use meshwork_proto::query::{Query, ScopeFilter};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::Method;
use meshwork_proto::slots::{Capacity, Resources, cpus};
use meshwork_sched::{Candidate, NotPlaced, Placement, Request, place, release, reserve};

use crate::core::Core;
use crate::ledger::Draft;
use crate::record::{Ordered, Record, Refused};

/// Reason of a refused placement.
pub(crate) const NOT_PLACED: &str = "not_placed";
/// Reason where the limits of the caller's token stand in the way.
const LIMITS: &str = "limits";

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
    let fail = |limit: &str, max: String, asked: String| {
        let text = format!("your token allows at most {max} on a node, the order asks for {asked}");
        let fix = format!(
            "ask for at most {max}, or ask whoever issued the token for a higher {limit} limit"
        );
        Err(RpcError::denied(text).reason(LIMITS).fix(fix))
    };
    if let Some(max) = limits.gpus.filter(|max| gpus > *max) {
        return fail("gpu", format!("{max} gpu"), gpus.to_string());
    }
    if let Some(max) = limits.cpu_millis.filter(|max| want.cpu_millis > *max) {
        let max = format!("{} cpu", cpus(max));
        return fail("cpu", max, cpus(want.cpu_millis));
    }
    if let Some(max) = limits.mem_bytes.filter(|max| want.mem > *max) {
        let max = format!("{} of memory", ByteSize(max));
        return fail("memory", max, ByteSize(want.mem).to_string());
    }
    if limits.kernels == Some(0) {
        return Err(RpcError::denied("your token allows no kernels")
            .reason(LIMITS)
            .fix("ask whoever issued the token for a higher kernel limit"));
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

/// What in the caller's token keeps it from a node.
#[derive(Debug, thiserror::Error)]
enum Ban {
    /// Its scope, resource or time.
    #[error("{0}")]
    Token(TokenError),
    /// The node lacks a tag that the token asks for.
    #[error("your token allows only nodes tagged {0}")]
    Tags(NodeTags),
}

impl Ban {
    /// What a user is told whose token allows none of the `count` nodes to choose from. No room is
    /// lacking, so to ask for less would not help.
    fn everywhere(&self, count: usize) -> RpcError {
        let nodes = match count {
            1 => "the only node".to_owned(),
            _ => format!("all {count} nodes"),
        };
        let excluded = format!("which excludes {nodes} that could run this");
        let issuer = "ask whoever issued the token for one";
        match self {
            Self::Token(e @ TokenError::WrongResource { allowed, .. }) => {
                let path = agent::Create::INFO.path();
                let text = format!("your token covers `{allowed}`, not `{path}`, {excluded}");
                let fix = format!("{issuer} that covers `{path}` on a node as well, such as `*`");
                RpcError::denied(text).reason(e.kind()).fix(fix)
            }
            Self::Token(e) => RpcError::denied(e.to_string()).reason(e.kind()),
            Self::Tags(tags) => {
                let text = format!("your token allows only nodes tagged {tags}, {excluded}");
                let fix = format!("{issuer} with other node tags, or none");
                RpcError::denied(text).reason(LIMITS).fix(fix)
            }
        }
    }
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
        let agents = self.directory.with_role(Role::Agent).len();
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
        // Whoever finds no place is told of those that are not heard, too.
        matching.extend(
            self.directory
                .lost(&query, &ScopeFilter::Own)
                .into_iter()
                .filter(is_agent),
        );
        let bans: Vec<Option<Ban>> = matching
            .iter()
            .map(|known| self.ban(known, ordered, grant, refused))
            .collect();
        if let Some(Some(ban)) = bans.first()
            && bans.iter().all(Option::is_some)
        {
            return Err(ban.everywhere(bans.len()));
        }
        let candidates: Vec<Candidate> = matching
            .into_iter()
            .zip(bans)
            .map(|(known, ban)| {
                let records = records.get(&known.0).map_or(&[][..], Vec::as_slice);
                self.candidate(&known, records, ban, refused)
            })
            .collect();
        let request = Request {
            resources: ordered.resources(),
            filter,
            filtered,
        };
        place(&request, &candidates).map_err(|e| not_placed(&e))
    }

    /// Whether the caller's token keeps it from a node, unless the node has refused already.
    fn ban(
        &self,
        (node, announcement): &Known,
        ordered: &Ordered,
        grant: &Grant,
        refused: &[Refused],
    ) -> Option<Ban> {
        if refused.iter().any(|r| r.node == *node) {
            return None;
        }
        let path = agent::Create::INFO.path();
        if let Err(e) = grant.check(&ordered.owner, Scope::Call, &path, node, self.now()) {
            return Some(Ban::Token(e));
        }
        let tags = &grant.limits.node_tags;
        let carried = announcement.tags.iter().map(String::as_str);
        (!grant.limits.allow_node(carried)).then(|| Ban::Tags(tags.clone()))
    }

    fn candidate(
        &self,
        (node, announcement): &Known,
        records: &[Arc<Record>],
        ban: Option<Ban>,
        refused: &[Refused],
    ) -> Candidate {
        let standing = self.nodes.standing(*node);
        let barred = if let Some(refused) = refused.iter().find(|r| r.node == *node) {
            Some(format!("refused: {}", refused.words))
        } else if let Some(ban) = ban {
            Some(ban.to_string())
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
