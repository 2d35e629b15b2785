//! Delivers a connection's outbox: one call at a time, which carries as much as fits.

use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::codec;
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::Key;
use meshwork_proto::mesh::{Gossip as GossipCall, GossipBatch};
use meshwork_proto::rpc::Status;
use quinn::ConnectionError;
use tokio::time::sleep;
use tracing::debug;

use super::outbox::Batch;
use crate::node::Node;
use crate::peer::Link;
use crate::rpc::CallError;

/// How long one delivery may take.
const DELIVERY: Duration = Duration::from_secs(10);
/// Pause after a delivery that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Node {
    /// Delivers a connection's outbox as it fills, until the connection ends.
    pub(crate) async fn post(&self, link: &Link) -> ConnectionError {
        loop {
            let batch = tokio::select! {
                biased;
                // What it has not delivered, the connection in its place will.
                () = link.retired.cancelled() => return link.conn.closed().await,
                batch = link.outbox.take() => batch,
            };
            if !self.credentials.is_member() {
                // Nobody would take it. Who gets a token introduces itself anew.
                continue;
            }
            let Err(error) = self.deliver(link, &batch).await else {
                continue;
            };
            debug!(peer = ?link.peer, ?error, "the peer does not take our news");
            let refused = matches!(&error, CallError::Failed(error)
                if !matches!(error.status, Status::Timeout | Status::Backpressure));
            if !refused {
                link.outbox.put_back(batch);
            }
            if matches!(error, CallError::Lost(_) | CallError::NotServed) {
                return link.conn.closed().await;
            }
            sleep(PAUSE).await;
        }
    }

    async fn deliver(&self, link: &Link, batch: &Batch) -> Result<(), CallError> {
        let facts = self.facts_for(link.peer, batch);
        if facts.is_empty() && batch.messages.is_empty() {
            return Ok(());
        }
        self.gossip
            .counters
            .batch(facts.len(), batch.messages.len());
        let call = GossipBatch {
            messages: batch.messages.clone(),
            facts,
        };
        link.ask::<GossipCall>(&call, DELIVERY).await
    }

    /// The facts of a batch, as far as the peer may have them: what it lacks in whole counts against
    /// its share of bytes, but for the rotation of the key, which nobody can do without. What is
    /// withheld, a later comparison of digests brings.
    fn facts_for(&self, peer: NodeId, batch: &Batch) -> Vec<Fact> {
        let facts: Vec<(Fact, bool)> = {
            let held = self.gossip.facts();
            let fact = |(key, whole): &(Key<NodeId>, bool)| {
                let fact = if *whole {
                    held.whole(key)?
                } else {
                    held.fact(key)?
                };
                Some((fact, *whole && *key != Key::Psk))
            };
            batch.keys.iter().filter_map(fact).collect()
        };
        let found = facts.len();
        let may = |(fact, counts): &(Fact, bool)| {
            !counts || self.gossip.may_answer(peer, codec::encode(fact).len())
        };
        let facts: Vec<Fact> = facts
            .into_iter()
            .filter(may)
            .map(|(fact, _)| fact)
            .collect();
        self.gossip.counters.withheld(found - facts.len());
        facts
    }
}
