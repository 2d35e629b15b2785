//! Who calls through relays: as many as there is room for, and no relay takes all of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use meshwork_identity::NodeId;

/// Remotes without a connection that relays may make us remember. More push none out: they are not
/// answered.
pub(super) const MAX_CALLERS: usize = 256;

/// A relay may take one in so many of the places that the others leave: so that there are some left
/// when a dozen relays make callers up.
const SHARE: usize = 4;

/// Remotes that are known only because a relay has named them, and that have no connection so far.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// By the number of the remote: the relay.
    of: BTreeMap<u64, NodeId>,
    by_relay: BTreeMap<NodeId, usize>,
}

impl Callers {
    /// Whether the relay may name another one: it has less than its share of what is left.
    pub(super) fn admits(&self, relay: &NodeId) -> bool {
        let taken = self.by_relay.get(relay).copied().unwrap_or(0);
        taken * SHARE < MAX_CALLERS.saturating_sub(self.of.len())
    }

    /// The remote of this number is named by `relay`.
    pub(super) fn add(&mut self, id: u64, relay: NodeId) {
        if let Entry::Vacant(place) = self.of.entry(id) {
            place.insert(relay);
            *self.by_relay.entry(relay).or_default() += 1;
        }
    }

    /// The remote has a connection, or is forgotten.
    pub(super) fn remove(&mut self, id: u64) {
        let Some(relay) = self.of.remove(&id) else {
            return;
        };
        if let Some(count) = self.by_relay.get_mut(&relay) {
            *count -= 1;
            if *count == 0 {
                self.by_relay.remove(&relay);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::Identity;

    fn relay(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    #[test]
    fn there_is_room_for_another_relay_however_many_lie() {
        let mut callers = Callers::default();
        let mut id = 0;
        for liar in 1..=12 {
            for _ in 0..1000 {
                if callers.admits(&relay(liar)) {
                    callers.add(id, relay(liar));
                    id += 1;
                }
            }
            assert!(callers.admits(&relay(100)), "after {liar} liars");
        }
        assert!(callers.of.len() < MAX_CALLERS);
        assert_eq!(callers.by_relay[&relay(1)], 52);
    }

    #[test]
    fn who_has_a_connection_or_is_gone_takes_no_room() {
        let mut callers = Callers::default();
        for id in 0..10 {
            callers.add(id, relay(1));
            callers.add(id, relay(2));
        }
        for id in 0..20 {
            callers.remove(id);
        }
        assert!(callers.of.is_empty() && callers.by_relay.is_empty());
    }
}
