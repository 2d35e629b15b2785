//! Nodes without a connection that relays say call us: few per relay, so that one that makes callers
//! up does not keep those of the others out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use tokio::time::Instant;

/// Callers that one relay may name within [`MEMORY`]. The path layer remembers four times as many.
const PER_RELAY: usize = 64;
/// How long a caller counts, unless it connects.
const MEMORY: Duration = Duration::from_secs(30);
/// Relays that are watched. Of more, none may name callers until others have been quiet.
const MAX_RELAYS: usize = 256;

/// Who called of late, by relay.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<BTreeMap<NodeId, BTreeMap<NodeId, Instant>>>);

impl Callers {
    /// Whether `relay` may name `caller`, which is noted.
    pub(super) fn admit(&self, relay: &NodeId, caller: &NodeId, now: Instant) -> bool {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |_: &NodeId, at: &mut Instant| now.duration_since(*at) < MEMORY;
        if !relays.contains_key(relay) && relays.len() >= MAX_RELAYS {
            relays.retain(|_, callers| {
                callers.retain(is_recent);
                !callers.is_empty()
            });
            if relays.len() >= MAX_RELAYS {
                return false;
            }
        }
        let callers = relays.entry(*relay).or_default();
        if callers.contains_key(caller) {
            return true;
        }
        if callers.len() >= PER_RELAY {
            callers.retain(is_recent);
        }
        let room = callers.len() < PER_RELAY;
        if room {
            callers.insert(*caller, now);
        }
        room
    }

    /// The caller is connected: it does not count any more.
    pub(super) fn settled(&self, caller: &NodeId) {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        relays.retain(|_, callers| {
            callers.remove(caller);
            !callers.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn node(n: usize) -> NodeId {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        Identity::from_seed(&seed).node_id()
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_makes_callers_up_keeps_none_out_of_the_others() {
        let (callers, now) = (Callers::default(), Instant::now());
        let (liar, honest) = (node(1), node(2));
        let admitted = (100..500).filter(|n| callers.admit(&liar, &node(*n), now));
        assert_eq!(admitted.count(), PER_RELAY);
        assert!(callers.admit(&liar, &node(100), now), "it called already");
        assert!(callers.admit(&honest, &node(499), now));
        callers.settled(&node(100));
        assert!(callers.admit(&liar, &node(498), now), "there is room again");
        assert!(!callers.admit(&liar, &node(497), now));
        assert!(callers.admit(&liar, &node(497), now + MEMORY));
    }

    #[tokio::test(start_paused = true)]
    async fn relays_are_bounded_until_some_are_quiet() {
        let (callers, now) = (Callers::default(), Instant::now());
        for n in 0..MAX_RELAYS {
            assert!(callers.admit(&node(n), &node(1000), now));
        }
        assert!(!callers.admit(&node(MAX_RELAYS), &node(1000), now));
        assert!(callers.admit(&node(MAX_RELAYS), &node(1000), now + MEMORY));
        assert_eq!(callers.0.lock().unwrap().len(), 1);
    }
}
