//! How many bytes of facts a peer may make this node send: a question of some bytes is answered with
//! kilobytes for each key that it names.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_identity::NodeId;
use tokio::time::Instant;

/// Bytes that a peer may be sent at once: all of a mesh of ten thousand nodes, for a newcomer.
const AT_ONCE: u64 = 16 * 1024 * 1024;
/// Bytes that it may be sent in a second after that: what is missed of a mesh, every beat of ten
/// thousand nodes several times over.
const PER_SECOND: u64 = 128 * 1024;
/// Peers whose share is known one by one. The others, if there are more at a time, have one together.
const MAX_PEERS: usize = 4096;

/// What each peer was sent a short while ago. It outlives the connection, so that a new one does not
/// come with a new share.
#[derive(Debug, Default)]
pub(super) struct Answers {
    spent: BTreeMap<NodeId, Spent>,
    /// Of those who found no place.
    crowd: Option<Spent>,
}

#[derive(Debug, Clone, Copy)]
struct Spent {
    bytes: u64,
    counted: Instant,
}

impl Answers {
    /// Takes `bytes` of the share of a peer; whether there was enough left.
    pub(super) fn spend(&mut self, peer: NodeId, bytes: usize, now: Instant) -> bool {
        if self.spent.len() >= MAX_PEERS && !self.spent.contains_key(&peer) {
            self.spent.retain(|_, spent| spent.at(now) > 0);
        }
        let none = Spent {
            bytes: 0,
            counted: now,
        };
        let has_place = self.spent.len() < MAX_PEERS || self.spent.contains_key(&peer);
        let spent = if has_place {
            self.spent.entry(peer).or_insert(none)
        } else {
            self.crowd.get_or_insert(none)
        };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let sum = spent.at(now).saturating_add(bytes);
        if sum > AT_ONCE {
            return false;
        }
        *spent = Spent {
            bytes: sum,
            counted: now,
        };
        true
    }
}

impl Spent {
    /// What still counts of it.
    fn at(&self, now: Instant) -> u64 {
        let passed: Duration = now.saturating_duration_since(self.counted);
        let regained = passed.as_millis().saturating_mul(PER_SECOND.into()) / 1000;
        let regained = u64::try_from(regained).unwrap_or(u64::MAX);
        self.bytes.saturating_sub(regained)
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    const MIB: usize = 1024 * 1024;
    const SECOND: Duration = Duration::from_secs(1);

    fn peer(n: u16) -> NodeId {
        let mut seed = [1; 32];
        seed[..2].copy_from_slice(&n.to_le_bytes());
        Identity::from_seed(&seed).node_id()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_asks_for_everything_gets_it_once() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        assert!((0..16).all(|_| answers.spend(peer(1), MIB, now)));
        assert!(!answers.spend(peer(1), 1, now));
        assert!(answers.spend(peer(2), MIB, now), "each has its own share");
        // Asking in vain costs nothing further, and time gives back no more than it should.
        assert!(!answers.spend(peer(1), 128 * 1024 + 1, now + SECOND));
        assert!(answers.spend(peer(1), 128 * 1024, now + SECOND));
        assert!(!answers.spend(peer(1), 1024, now + SECOND));
        let in_a_minute = now + 61 * SECOND;
        let sent: usize = (0..100_000)
            .take_while(|_| answers.spend(peer(1), 1024, in_a_minute))
            .count();
        assert_eq!(sent, 60 * 128);
    }

    #[tokio::test(start_paused = true)]
    async fn many_peers_share_what_is_left() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let most = u16::try_from(MAX_PEERS).unwrap();
        for n in 0..most {
            assert!(answers.spend(peer(n), MIB, now));
        }
        assert!(answers.spend(peer(most), 15 * MIB, now));
        assert!(!answers.spend(peer(most + 1), 2 * MIB, now));
        assert!(
            answers.spend(peer(0), 2 * MIB, now),
            "who has a place keeps it"
        );
        // Those that asked for little are forgotten when their share is whole again.
        let later = now + 10 * SECOND;
        assert!(answers.spend(peer(most + 1), 2 * MIB, later));
        assert!(answers.spent.len() <= 2, "{}", answers.spent.len());
    }
}
