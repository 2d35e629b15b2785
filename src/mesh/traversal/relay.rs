//! The relay role: hands opaque packets from one member to another, both linked with this node.
//!
//! What is relayed is encrypted end to end, so a relay learns only who and how much. Nothing is kept:
//! a frame goes into the receiver's datagram buffer at once, or nowhere. Nothing is answered: a frame
//! that cannot be handed on is counted, so that nobody can make a relay send to whom it should not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use meshwork_identity::NodeId;
use meshwork_proto::mesh::RelayDrops;
use tokio::time::Instant;

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
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            always: false,
            rate: 8 << 20,
            burst: 2 << 20,
        }
    }
}

/// Peers whose rate is watched before those that have been quiet are forgotten. More than any node
/// has connections by default, and some 100 KB.
const MAX_METERED: usize = 2048;

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
    /// The receiver's link has no room: it is slower than what is sent to it.
    Congested,
    /// The frame breaks the format, or is for its own sender.
    Malformed,
}

/// What a relay has done, and what each peer may still have done.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    config: Option<RelayConfig>,
    meters: Mutex<BTreeMap<NodeId, Bucket>>,
    bytes: AtomicU64,
    drops: [AtomicU64; 6],
}

impl Relay {
    pub(crate) fn new(config: Option<RelayConfig>) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    pub(crate) fn config(&self) -> Option<RelayConfig> {
        self.config
    }

    /// Whether `peer` may have `len` bytes relayed now; they count if so.
    pub(crate) fn admits(&self, peer: &NodeId, len: usize, now: Instant) -> bool {
        let Some(config) = self.config else {
            return false;
        };
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if !meters.contains_key(peer) && meters.len() >= MAX_METERED {
            meters.retain(|_, bucket| !bucket.is_full(&config, now));
            if meters.len() >= MAX_METERED {
                return false;
            }
        }
        meters
            .entry(*peer)
            .or_insert_with(|| Bucket::full(&config, now))
            .take(len as u64, &config, now)
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
            congested: of(Drop::Congested),
            malformed: of(Drop::Malformed),
        }
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    /// In billionths of a byte, so that no rate loses anything to rounding.
    left: u128,
    since: Instant,
}

/// Billionths of a byte in a byte, and nanoseconds in a second.
const BILLION: u128 = 1_000_000_000;

impl Bucket {
    fn full(config: &RelayConfig, now: Instant) -> Self {
        Self {
            left: u128::from(config.burst) * BILLION,
            since: now,
        }
    }

    fn is_full(&self, config: &RelayConfig, now: Instant) -> bool {
        self.left_at(config, now) == u128::from(config.burst) * BILLION
    }

    fn left_at(&self, config: &RelayConfig, now: Instant) -> u128 {
        let passed = now.duration_since(self.since).as_nanos();
        let full = u128::from(config.burst) * BILLION;
        (self.left + passed * u128::from(config.rate)).min(full)
    }

    fn take(&mut self, len: u64, config: &RelayConfig, now: Instant) -> bool {
        let (left, wanted) = (self.left_at(config, now), u128::from(len) * BILLION);
        self.since = now;
        self.left = left.checked_sub(wanted).unwrap_or(left);
        wanted <= left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meshwork_identity::Identity;

    use super::*;

    fn peer(n: u16) -> NodeId {
        let mut seed = [1; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        Identity::from_seed(&seed).node_id()
    }

    fn relay(rate: u64, burst: u64) -> Relay {
        Relay::new(Some(RelayConfig {
            rate,
            burst,
            always: true,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_gets_its_rate_and_no_more() {
        let relay = relay(100_000, 5_000);
        let start = Instant::now();
        let mut relayed = 0;
        // Ten times its rate for ten seconds, in steps of a millisecond.
        for step in 0..10_000 {
            let now = start + Duration::from_millis(step);
            if relay.admits(&peer(1), 1_000, now) {
                relayed += 1_000;
            }
        }
        assert!(
            (999_000..=1_005_000).contains(&relayed),
            "{relayed} bytes in 10 s"
        );
        // Another peer has a rate of its own.
        assert!(relay.admits(&peer(2), 5_000, start));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_over_rates_is_bounded() {
        let relay = relay(1_000, 1_000);
        let start = Instant::now();
        for n in 0..MAX_METERED {
            assert!(relay.admits(&peer(u16::try_from(n).unwrap()), 1_000, start));
        }
        let newcomer = peer(60_000);
        assert!(!relay.admits(&newcomer, 1, start), "all are busy");
        let later = start + Duration::from_secs(1);
        assert!(
            relay.admits(&newcomer, 1, later),
            "the others are forgotten"
        );
        assert_eq!(relay.meters.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_does_not_serve_admits_nobody() {
        let relay = Relay::new(None);
        assert!(!relay.admits(&peer(1), 1, Instant::now()));
    }
}
