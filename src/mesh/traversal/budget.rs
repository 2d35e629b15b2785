//! How often peers may have this node send probes: few times each, and few at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Trains of probes that one peer may cause within [`WINDOW`]; and as many that we start with it.
const PER_PEER: usize = 4;
/// See [`PER_PEER`].
const WINDOW: Duration = Duration::from_secs(10);
/// Trains under way at once that we began, and as many that peers did: those do not keep us from
/// ours. Each sends at most 10 small packets every 100 ms.
const AT_ONCE: usize = 8;
/// Peers whose trains are remembered; above it, those outside the window are forgotten, and when
/// there are none, nobody else gets one.
const MAX_PEERS: usize = 1024;

/// Who begins a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// This node.
    Ours,
    /// The peer.
    Theirs,
}

/// What is left.
#[derive(Debug)]
pub(super) struct Budgets {
    recent: Mutex<BTreeMap<NodeId, Vec<Instant>>>,
    ours: Arc<Semaphore>,
    theirs: Arc<Semaphore>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            ours: Arc::new(Semaphore::new(AT_ONCE)),
            theirs: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Budgets {
    /// The right to a train of probes with `peer`, which holds while the permit lives. None when there
    /// were too many lately, or are too many now.
    pub(super) fn train(
        &self,
        peer: &NodeId,
        whose: Whose,
        now: Instant,
    ) -> Option<OwnedSemaphorePermit> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.duration_since(*at) < WINDOW;
        if !recent.contains_key(peer) && recent.len() >= MAX_PEERS {
            recent.retain(|_, trains| trains.iter().any(is_recent));
            if recent.len() >= MAX_PEERS {
                return None;
            }
        }
        let trains = recent.entry(*peer).or_default();
        trains.retain(is_recent);
        if trains.len() >= PER_PEER {
            return None;
        }
        let at_once = match whose {
            Whose::Ours => &self.ours,
            Whose::Theirs => &self.theirs,
        };
        let permit = at_once.clone().try_acquire_owned().ok()?;
        trains.push(now);
        Some(permit)
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::Whose::{Ours, Theirs};
    use super::*;

    fn peer(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_gets_four_in_ten_seconds() {
        let (budgets, start) = (Budgets::default(), Instant::now());
        for _ in 0..PER_PEER {
            assert!(budgets.train(&peer(1), Theirs, start).is_some());
        }
        assert!(budgets.train(&peer(1), Theirs, start).is_none());
        assert!(budgets.train(&peer(2), Theirs, start).is_some());
        assert!(budgets.train(&peer(1), Theirs, start + WINDOW).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn eight_run_at_once() {
        let (budgets, now) = (Budgets::default(), Instant::now());
        let mut running: Vec<_> = (0u8..)
            .map_while(|n| budgets.train(&peer(n), Theirs, now))
            .collect();
        assert_eq!(running.len(), AT_ONCE);
        let own = budgets.train(&peer(101), Ours, now);
        assert!(own.is_some(), "peers leave us ours");
        running.pop();
        assert!(budgets.train(&peer(100), Theirs, now).is_some());
    }
}
