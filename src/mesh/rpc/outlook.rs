//! What a node has seen of others as a caller: how fast they answered of late, how many calls are under
//! way, whether they fail. One record for each node and service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::rpc::breaker::{Breaker, BreakerPolicy};
use meshwork_proto::rpc::choice::Candidate;
use meshwork_proto::rpc::{REASON_BREAKER, RpcError, Status};
use tokio::time::Instant;

/// Records kept at a time. With more, the one that was used longest ago goes.
const MAX_RECORDS: usize = 4096;
/// Services whose nodes are remembered at a time.
const MAX_SERVICES: usize = 256;
/// How long the nodes of a service are remembered before the directory is asked again.
const FRESH: Duration = Duration::from_millis(250);
/// Weight of what was known in a new mean, against one of the new time: the last dozen calls count.
const OLD_WEIGHT: u32 = 7;

/// What a node knows of others as a caller.
#[derive(Debug)]
pub(crate) struct Outlook {
    start: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    records: BTreeMap<NodeId, BTreeMap<Box<str>, Record>>,
    count: usize,
    services: BTreeMap<Box<str>, Offers>,
}

/// One node's way with one service.
#[derive(Debug, Default)]
struct Record {
    breaker: Breaker,
    latency: Option<Duration>,
    under_way: u32,
    used: Duration,
}

/// Who offers a service.
#[derive(Debug)]
struct Offers {
    asked: Instant,
    nodes: Arc<[NodeId]>,
    /// Calls of the service so far.
    turn: u64,
}

/// A call under way, as far as its record goes.
#[derive(Debug)]
pub(super) struct UnderWay {
    outlook: Arc<Outlook>,
    node: NodeId,
    service: Box<str>,
    began: Instant,
    policy: Option<BreakerPolicy>,
    ended: bool,
}

impl Outlook {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            seen: Mutex::default(),
        })
    }

    /// The nodes that offer a service, and how many calls of it there were before; asked from `ask`
    /// now and then.
    pub(super) fn offers(
        &self,
        service: &str,
        ask: impl FnOnce() -> Vec<NodeId>,
    ) -> (Arc<[NodeId]>, u64) {
        if let Some(offers) = self.seen().services.get_mut(service)
            && offers.asked.elapsed() < FRESH
        {
            offers.turn = offers.turn.wrapping_add(1);
            return (offers.nodes.clone(), offers.turn);
        }
        let nodes: Arc<[NodeId]> = ask().into();
        let mut seen = self.seen();
        if seen.services.len() >= MAX_SERVICES && !seen.services.contains_key(service) {
            let services = seen.services.iter();
            let oldest = services.min_by_key(|(_, offers)| offers.asked);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                seen.services.remove(&oldest);
            }
        }
        let offers = seen.services.entry(service.into()).or_insert(Offers {
            asked: Instant::now(),
            nodes: nodes.clone(),
            turn: 0,
        });
        offers.asked = Instant::now();
        offers.nodes = nodes.clone();
        offers.turn = offers.turn.wrapping_add(1);
        (nodes, offers.turn)
    }

    /// What is known of those nodes whose breaker lets a call pass; of all of them when there is none.
    pub(super) fn candidates(&self, service: &str, nodes: &[NodeId]) -> Vec<Candidate> {
        let now = self.start.elapsed();
        let seen = self.seen();
        let known = |node: &NodeId| seen.records.get(node)?.get(service);
        let candidate = |node: &NodeId| Candidate {
            node: *node,
            latency: known(node).and_then(|record| record.latency),
            load: known(node).map_or(0, |record| record.under_way),
        };
        let is_open = |node: &NodeId| known(node).is_some_and(|record| record.breaker.is_open(now));
        let closed: Vec<Candidate> = nodes
            .iter()
            .filter(|n| !is_open(n))
            .map(candidate)
            .collect();
        if closed.is_empty() {
            return nodes.iter().map(candidate).collect();
        }
        closed
    }

    /// Begins a call, unless the breaker is open.
    pub(super) fn begin(
        self: &Arc<Self>,
        node: NodeId,
        service: &str,
        policy: Option<BreakerPolicy>,
    ) -> Result<UnderWay, RpcError> {
        let now = self.start.elapsed();
        let mut seen = self.seen();
        let record = seen.record(node, service);
        if policy.is_some() {
            let admitted = record.breaker.admit(now);
            admitted.map_err(|wait| open(&node, service, wait))?;
        }
        record.under_way += 1;
        record.used = now;
        Ok(UnderWay {
            outlook: self.clone(),
            node,
            service: service.into(),
            began: Instant::now(),
            policy,
            ended: false,
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn record(&mut self, node: NodeId, service: &str) -> &mut Record {
        let known = self.records.get(&node);
        if !known.is_some_and(|services| services.contains_key(service)) {
            if self.count >= MAX_RECORDS {
                self.forget_oldest();
            }
            self.count += 1;
        }
        let services = self.records.entry(node).or_default();
        services.entry(service.into()).or_default()
    }

    fn forget_oldest(&mut self) {
        let records = self.records.iter().flat_map(|(node, services)| {
            let of_node = services.iter();
            of_node.map(|(service, record)| (record.under_way > 0, record.used, *node, service))
        });
        let oldest = records
            .min()
            .map(|(_, _, node, service)| (node, service.clone()));
        let Some((node, service)) = oldest else {
            return;
        };
        if let Some(services) = self.records.get_mut(&node) {
            services.remove(&service);
            if services.is_empty() {
                self.records.remove(&node);
            }
            self.count -= 1;
        }
    }
}

impl UnderWay {
    /// The call ended so.
    pub(super) fn ended<T>(mut self, result: &Result<T, RpcError>) {
        self.ended = true;
        let (took, now) = (self.began.elapsed(), self.outlook.start.elapsed());
        let mut seen = self.outlook.seen();
        let record = seen.record(self.node, &self.service);
        match (result, self.policy) {
            (Err(error), Some(policy)) if blames_node(error) => record.breaker.failed(now, &policy),
            (Err(error), None) if blames_node(error) => {}
            _ => record.breaker.succeeded(),
        }
        if result.is_ok() {
            let mean = |old: Duration| (old * OLD_WEIGHT + took) / (OLD_WEIGHT + 1);
            record.latency = Some(record.latency.map_or(took, mean));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.outlook.start.elapsed();
        let mut seen = self.outlook.seen();
        let record = seen.record(self.node, &self.service);
        record.under_way = record.under_way.saturating_sub(1);
        if !self.ended && self.policy.is_some() {
            record.breaker.abandoned(now);
        }
    }
}

/// Whether a failure says that the node does not work, rather than that it does not like the call.
fn blames_node(error: &RpcError) -> bool {
    matches!(
        error.status,
        Status::NoRoute | Status::Timeout | Status::Unavailable | Status::Internal
    )
}

fn open(node: &NodeId, service: &str, wait: Duration) -> RpcError {
    let message = format!(
        "calls of `{service}` at node {}… have failed, and none is made for another {wait:?}",
        node.short()
    );
    RpcError::unavailable(message)
        .reason(REASON_BREAKER)
        .fix("look at the node: meshwork peer ls; or let another one serve this")
}
