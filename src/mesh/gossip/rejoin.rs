//! Finding back: keeps the peer cache, and calls on peers that the mesh seems to have lost.
//!
//! Within a mesh the membership machine finds whom to dial in the ledger. What is not in the ledger
//! any more is in the cache: the other part of a mesh that was divided for days, or the mesh itself
//! for a node that was away.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp};
use meshwork_proto::facts::Facts;
use meshwork_proto::membership::Message;
use meshwork_proto::membership::{Chance, Input, Ledger};
use meshwork_proto::mesh::{Gossip as GossipCall, GossipBatch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::chance::SplitMix;
use crate::error::MeshError;
use crate::node::Node;
use crate::state::{StateStore, durably};

/// Where the versions of all nodes are kept.
const VERSIONS: &str = "versions";
/// Time between two looks at what is to be kept of the peers.
const KEEPING: Duration = Duration::from_mins(1);
/// Time between two calls on a lost peer.
const CALLING: Duration = Duration::from_secs(30);
/// Looks at the peers between two writings of all versions.
const VERSIONS_EVERY: u32 = 5;
/// Nodes that are looked at in one go to fill the peer cache: twice as many as it holds.
const MAX_LOOKED_AT: usize = 128;
/// How long neighbours get to hear that this node leaves.
const FAREWELL: Duration = Duration::from_millis(500);

/// Reads which versions of all nodes were seen before, so that none below is believed again.
pub(super) fn restore_versions(
    facts: &mut Facts,
    state: &dyn StateStore,
    now: Timestamp,
) -> Result<(), MeshError> {
    let stored = state.get(VERSIONS).map_err(MeshError::state(VERSIONS))?;
    if let Some(bytes) = stored {
        facts.restore(&bytes, now).map_err(|error| {
            MeshError::state(VERSIONS)(std::io::Error::other(error.to_string()))
        })?;
    }
    Ok(())
}

impl Node {
    /// Keeps the peer cache, and calls on lost peers, until the node shuts down.
    pub(crate) async fn keep_rejoining(self: Arc<Self>) {
        let draining = self.desk.draining.clone();
        let mut chance = SplitMix::seeded(&*self.entropy);
        let rounds = async {
            let start = Instant::now();
            let mut calls = interval(chance.jitter(CALLING));
            calls.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut kept = (start, 0u32);
            loop {
                calls.tick().await;
                if kept.0.elapsed() >= KEEPING {
                    kept = (Instant::now(), kept.1 + 1);
                    self.keep_peers(kept.1.is_multiple_of(VERSIONS_EVERY));
                }
                self.call_on_lost(&mut chance).await;
            }
        };
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = rounds => {}
        }
    }

    /// Notes the peers that there are, and writes them down.
    pub(crate) fn keep_peers(&self, with_versions: bool) {
        self.note_peers();
        self.gossip.cache().save(&*self.state);
        if with_versions {
            let versions = self.gossip.facts().save();
            if let Err(error) = durably(|| self.state.put(VERSIONS, &versions)) {
                warn!(%error, "the versions of other nodes are not stored");
            }
        }
    }

    fn note_peers(&self) {
        let now = self.credentials.now();
        let mut cache = self.gossip.cache();
        let facts = self.gossip.facts();
        for link in self.peers.all() {
            if link.is_node() && !link.is_client() {
                let body = facts.store().get(&link.peer);
                cache.note(link.peer, body.as_deref(), self.dialled_at(&link), now);
            }
        }
        let kept: Vec<NodeId> = cache.nodes().collect();
        for node in kept {
            if let Some(body) = facts.store().get(&node) {
                cache.note(node, Some(&body), None, now);
            }
        }
        if cache.has_room() {
            // Each node begins elsewhere, so that not all call on the same.
            let (store, local) = (facts.store(), self.credentials.node_id());
            let others = store.others();
            let first = local.as_bytes()[..4].iter();
            let first = first.fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            for step in 0..others.min(MAX_LOOKED_AT) {
                if !cache.has_room() {
                    break;
                }
                let node = store.nth_other((first + step) % others);
                if let Some((node, body)) = node.and_then(|node| Some((node, store.get(&node)?)))
                    && !facts.is_dead(&node)
                {
                    cache.note(node, Some(&body), None, now);
                }
            }
        }
        cache.trim(now, |node| {
            facts.store().get(node).is_some() || self.peers.get(node).is_some()
        });
    }

    /// Calls on one peer of the cache that the ledger does not know.
    async fn call_on_lost(self: &Arc<Self>, chance: &mut SplitMix) {
        if !self.speaks() {
            return;
        }
        let lost: Vec<NodeId> = {
            let cache = self.gossip.cache();
            let facts = self.gossip.facts();
            let known = |node: &NodeId| {
                facts
                    .version(&meshwork_proto::membership::Key::Node(*node))
                    .is_some()
            };
            cache.nodes().filter(|node| !known(node)).collect()
        };
        let lost: Vec<NodeId> = lost
            .into_iter()
            .filter(|node| self.peers.get(node).is_none())
            .collect();
        if let Some(peer) = lost.get(chance.below(lost.len())) {
            self.reach_member(*peer).await;
        }
    }

    /// Says farewell to the neighbours, and writes down what the next run needs.
    pub(crate) async fn leave(self: &Arc<Self>) {
        let neighbours = self.gossip.neighbours();
        self.membership(Input::Leave);
        let farewells = neighbours.into_iter().map(|link| async move {
            let batch = GossipBatch {
                messages: vec![Message::Leave],
                facts: Vec::new(),
            };
            link.ask::<GossipCall>(&batch, FAREWELL).await
        });
        let all = futures_util::future::join_all(farewells);
        // Who does not hear it, finds out by itself.
        let _ = timeout(FAREWELL, all).await;
        self.keep_peers(true);
    }
}
