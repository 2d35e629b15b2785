//! The relay role: hands opaque packets from one member to another, both linked with this node.
//!
//! What is relayed is encrypted end to end, so a relay learns only who and how much. Nothing is kept:
//! a frame goes into the receiver's datagram buffer at once, or nowhere. Nothing is answered: a frame
//! that cannot be handed on is counted, so that nobody can make a relay send to whom it should not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use meshwork_identity::NodeId;
use meshwork_proto::mesh::RelayDrops;
use tokio::time::Instant;

use super::meter::Meters;

/// How a node serves as a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayConfig {
    /// Whether the node says from its start that it relays. Default: false, then it does so once it
    /// finds that others can reach it without help.
    pub always: bool,
    /// Bytes a second that one peer may have relayed, over all its connections. Default: 8 MiB/s.
    /// Frames above it are lost, which the ends' congestion control takes for a full wire.
    pub rate: u64,
    /// Bytes that one peer may have relayed at once after a pause. Default: 2 MiB.
    pub burst: u64,
    /// Bytes a second that all peers together may have relayed; when they want more, each gets an
    /// equal share. Default: 32 MiB/s: some 270 Mbit/s that come in and as much that go out, which
    /// leaves most of a rented machine's gigabit, or of a core that encrypts it, to its own work.
    pub total_rate: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            always: false,
            rate: 8 << 20,
            burst: 2 << 20,
            total_rate: 32 << 20,
        }
    }
}

/// Why a frame was not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// This node does not relay.
    NotServing,
    /// The sender or the receiver is no member of the mesh.
    NotMember,
    /// The receiver is not linked with this node.
    UnknownPeer,
    /// The sender is above its rate.
    OverRate,
    /// All senders together are above the rate of the relay, and this one above its share of it.
    OverTotal,
    /// The receiver's link has no room: it is slower than what is sent to it.
    Congested,
    /// The frame breaks the format, or is for its own sender.
    Malformed,
}

/// What a relay has done, and what each peer may still have done.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    config: Option<RelayConfig>,
    meters: Option<Mutex<Meters>>,
    bytes: AtomicU64,
    drops: [AtomicU64; 7],
}

impl Relay {
    pub(crate) fn new(config: Option<RelayConfig>) -> Self {
        Self {
            config,
            meters: config.as_ref().map(Meters::new).map(Mutex::new),
            ..Self::default()
        }
    }

    pub(crate) fn config(&self) -> Option<RelayConfig> {
        self.config
    }

    /// Takes `len` bytes from what `peer` may have relayed now; if there are too few, why.
    pub(crate) fn admit(&self, peer: &NodeId, len: usize, now: Instant) -> Result<(), Drop> {
        let meters = self.meters.as_ref().ok_or(Drop::NotServing)?;
        let mut meters = meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.take(peer, len as u64, now)
    }

    pub(crate) fn relayed(&self, len: usize) {
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, why: Drop) {
        self.drops[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes handed on.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Frames not handed on, by cause.
    pub(crate) fn drops(&self) -> RelayDrops {
        let of = |why: Drop| self.drops[why as usize].load(Ordering::Relaxed);
        RelayDrops {
            not_serving: of(Drop::NotServing),
            not_member: of(Drop::NotMember),
            unknown_peer: of(Drop::UnknownPeer),
            over_rate: of(Drop::OverRate),
            over_total: of(Drop::OverTotal),
            congested: of(Drop::Congested),
            malformed: of(Drop::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    #[tokio::test]
    async fn who_does_not_serve_admits_nobody() {
        let peer = Identity::from_seed(&[1; 32]).node_id();
        let now = Instant::now();
        let admitted = Relay::new(None).admit(&peer, 1, now);
        assert_eq!(admitted, Err(Drop::NotServing));
        let relay = Relay::new(Some(RelayConfig::default()));
        assert_eq!(relay.admit(&peer, 1, now), Ok(()));
    }

    #[test]
    fn every_cause_is_counted_as_itself() {
        let relay = Relay::default();
        for why in [
            Drop::NotServing,
            Drop::NotMember,
            Drop::UnknownPeer,
            Drop::OverRate,
            Drop::OverTotal,
            Drop::Congested,
            Drop::Malformed,
        ] {
            (0..=why as usize).for_each(|_| relay.dropped(why));
        }
        let expected = RelayDrops {
            not_serving: 1,
            not_member: 2,
            unknown_peer: 3,
            over_rate: 4,
            over_total: 5,
            congested: 6,
            malformed: 7,
        };
        assert_eq!(relay.drops(), expected);
        assert_eq!(relay.drops().total(), 28);
    }
}
