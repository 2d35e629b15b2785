//! Peers to come back to: a few nodes with their addresses and relays, kept over restarts. With them
//! a node finds its mesh again without a ticket, also when all nodes restart at once, and two parts
//! of a mesh that have forgotten each other meet again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp, bounded_vec};
use meshwork_proto::{Announcement, codec};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::MeshError;
use crate::state::{StateStore, durably};

/// Where the peers are kept.
const STATE_KEY: &str = "peers";
/// Peers kept.
const MAX_PEERS: usize = 64;
/// Places for peers that are not there now, while others want in: they are the way back into another
/// part of the mesh.
const LOST_PEERS: usize = 24;
/// Addresses kept of each.
const MAX_ADDRESSES: usize = 8;
/// Relays kept of each.
const MAX_RELAYS: usize = 3;
/// Most bytes of all.
const MAX_STATE: usize = 64 << 10;
/// A peer that was not seen for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_hours(24 * 14);
/// A peer that is there all the time is noted as seen this often.
const NOTED: Duration = Duration::from_hours(1);

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CachedPeer {
    node: NodeId,
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_ADDRESSES>")]
    pub(super) addrs: Vec<SocketAddr>,
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_RELAYS>")]
    pub(super) relays: Vec<NodeId>,
    /// When it was last known to live.
    seen: Timestamp,
}

/// The peers, and whether the disk has them.
#[derive(Debug, Default)]
pub(super) struct PeerCache {
    peers: BTreeMap<NodeId, CachedPeer>,
    changed: bool,
}

impl PeerCache {
    /// What was kept. It is a help and no more: what cannot be read is left out.
    pub(super) fn load(local: NodeId, state: &dyn StateStore) -> Result<Self, MeshError> {
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let peers = stored.map_or_else(Vec::new, |bytes| read(&bytes));
        let known = peers.into_iter().take(MAX_PEERS);
        Ok(Self {
            peers: known
                .filter(|peer| peer.node != local)
                .map(|peer| (peer.node, peer))
                .collect(),
            changed: false,
        })
    }

    /// Who is kept, by node id.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&CachedPeer> {
        self.peers.get(node)
    }

    /// Notes that a node lives, and where. `remote` is where it was reached.
    pub(super) fn note(
        &mut self,
        node: NodeId,
        announced: Option<&Announcement>,
        remote: Option<SocketAddr>,
        now: Timestamp,
    ) {
        let announced_addrs = announced.into_iter().flat_map(|body| &body.addresses);
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in remote.iter().chain(announced_addrs) {
            if addrs.len() < MAX_ADDRESSES && !addrs.contains(addr) {
                addrs.push(*addr);
            }
        }
        let relays = announced.map_or_else(Vec::new, |body| {
            body.relays.iter().take(MAX_RELAYS).copied().collect()
        });
        if addrs.is_empty() && relays.is_empty() {
            return;
        }
        let noted = CachedPeer {
            node,
            addrs,
            relays,
            seen: now,
        };
        let same = self.peers.get(&node).is_some_and(|known| {
            known.addrs == noted.addrs
                && known.relays == noted.relays
                && now.duration_since(known.seen) < NOTED
        });
        if !same {
            self.peers.insert(node, noted);
            self.changed = true;
        }
    }

    /// Makes room: who was not seen for long leaves, then the longest lost beyond their places, then
    /// others of those that are `present`, the largest ids first.
    pub(super) fn trim(&mut self, now: Timestamp, present: impl Fn(&NodeId) -> bool) {
        let before = self.peers.len();
        self.peers
            .retain(|_, peer| now.duration_since(peer.seen) < FORGOTTEN);
        let mut lost: Vec<(Timestamp, NodeId)> = self
            .peers
            .values()
            .filter(|peer| !present(&peer.node))
            .map(|peer| (peer.seen, peer.node))
            .collect();
        lost.sort_unstable();
        while self.peers.len() > MAX_PEERS && lost.len() > LOST_PEERS {
            let (_, oldest) = lost.remove(0);
            self.peers.remove(&oldest);
        }
        while self.peers.len() > MAX_PEERS {
            let Some(last) = self.peers.keys().rfind(|node| present(node)).copied() else {
                break;
            };
            self.peers.remove(&last);
        }
        self.changed |= self.peers.len() != before;
    }

    /// A revoked node is nobody to come back to.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.changed |= self.peers.remove(node).is_some();
    }

    /// Whether there is room for more.
    pub(super) fn has_room(&self) -> bool {
        self.peers.len() < MAX_PEERS
    }

    /// Whether there is room for one that was just lost, until room is made.
    pub(super) fn has_room_for_lost(&self) -> bool {
        self.peers.len() < MAX_PEERS + LOST_PEERS
    }

    /// Writes the peers to the disk, if it lacks any.
    pub(super) fn save(&mut self, state: &dyn StateStore) {
        if !self.changed {
            return;
        }
        let peers: Vec<&CachedPeer> = self.peers.values().collect();
        match durably(|| state.put(STATE_KEY, &codec::encode(&peers))) {
            Ok(()) => self.changed = false,
            Err(error) => warn!(%error, "the peers to come back to are not stored"),
        }
    }
}

fn read(bytes: &[u8]) -> Vec<CachedPeer> {
    codec::decode(bytes, MAX_STATE).unwrap_or_else(|error| {
        warn!(%error, "the stored peers are not readable; the mesh must be found by a ticket");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;
    use crate::state::MemoryState;

    fn id(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 7000))
    }

    fn secs(n: u64) -> Timestamp {
        Timestamp::from_secs(n)
    }

    #[tokio::test]
    async fn peers_come_back_after_a_restart() {
        let state = MemoryState::default();
        let mut cache = PeerCache::load(id(0), &state).unwrap();
        let body = Announcement {
            addresses: vec![addr(1), addr(2)],
            relays: vec![id(9)],
            ..Announcement::default()
        };
        cache.note(id(1), Some(&body), Some(addr(2)), secs(5));
        cache.note(id(2), None, None, secs(5));
        cache.save(&state);
        let again = PeerCache::load(id(0), &state).unwrap();
        let peer = again.get(&id(1)).unwrap();
        assert_eq!(peer.addrs, [addr(2), addr(1)]);
        assert_eq!(peer.relays, [id(9)]);
        assert!(again.get(&id(2)).is_none(), "there is no way to it");
        assert_eq!(again.peers, cache.peers);
    }

    #[tokio::test]
    async fn an_unchanged_cache_is_not_written_again() {
        let state = MemoryState::default();
        let mut cache = PeerCache::default();
        cache.note(id(1), None, Some(addr(1)), secs(5));
        cache.save(&state);
        cache.note(id(1), None, Some(addr(1)), secs(60));
        assert!(!cache.changed);
        cache.note(id(1), None, Some(addr(1)), secs(5 + 3600));
        assert!(cache.changed);
    }

    #[test]
    fn the_lost_keep_some_places_and_the_forgotten_none() {
        let mut cache = PeerCache::default();
        for n in 0..200 {
            cache.note(id(n), None, Some(addr(n)), secs(1000 + u64::from(n)));
        }
        let there = (100..200).map(id).collect::<Vec<_>>();
        cache.trim(secs(2000), |node| there.contains(node));
        assert_eq!(cache.peers.len(), MAX_PEERS);
        let lost: Vec<NodeId> = cache.nodes().filter(|node| !there.contains(node)).collect();
        assert_eq!(lost.len(), LOST_PEERS);
        assert!(lost.contains(&id(99)), "the last one seen is kept");
        cache.trim(secs(1100).saturating_add(FORGOTTEN), |_| true);
        assert!(cache.nodes().all(|node| there.contains(&node)));
    }

    #[test]
    fn what_is_damaged_is_left_out() {
        let state = MemoryState::default();
        state.put(STATE_KEY, b"\xff\xff\xff").unwrap();
        assert!(PeerCache::load(id(0), &state).unwrap().peers.is_empty());
    }
}
