//! How long a NAT keeps a mapping, learnt from the changes that peers observe.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::NodeId;

/// Observers whose view is remembered.
const MAX_OBSERVERS: usize = 64;
/// A shorter life than this is no NAT's doing, but a change of the network.
const SHORTEST: Duration = Duration::from_secs(8);
/// Who has had an address for longer has moved, rather than lost a mapping.
const LONGEST: Duration = Duration::from_mins(30);

/// Estimates how long mappings of our socket last, and says when to open another one, so that no
/// mapping expires under traffic. What a single one of several observers says changes nothing.
#[derive(Debug, Default)]
pub struct MappingLifetime {
    /// Since when the mapping lasts: the socket was opened, or two observers have seen a change.
    begun: Duration,
    seen: BTreeMap<NodeId, Seen>,
    /// The shortest life seen.
    estimate: Option<Duration>,
}

/// Our address as one observer sees it.
#[derive(Debug)]
struct Seen {
    addr: SocketAddr,
    since: Duration,
    /// The shortest life of an address before it.
    shortest: Option<Duration>,
}

impl MappingLifetime {
    /// `observer` sees our socket at `addr`. Whether that is a change.
    pub fn observed(&mut self, now: Duration, observer: NodeId, addr: SocketAddr) -> bool {
        let Some(seen) = self.seen.get_mut(&observer) else {
            if self.seen.len() < MAX_OBSERVERS {
                let seen = Seen {
                    addr,
                    since: self.begun,
                    shortest: None,
                };
                self.seen.insert(observer, seen);
            }
            return false;
        };
        if seen.addr == addr {
            return false;
        }
        let life = now.saturating_sub(seen.since);
        (seen.addr, seen.since) = (addr, now);
        if (SHORTEST..=LONGEST).contains(&life) {
            seen.shortest = Some(seen.shortest.map_or(life, |known| known.min(life)));
        }
        self.confirm(observer, now);
        true
    }

    /// Believes what two observers have seen, or the only one there is.
    fn confirm(&mut self, observer: NodeId, now: Duration) {
        let lone = self.seen.len() == 1;
        let mut lives: Vec<Duration> = self
            .seen
            .values()
            .filter_map(|seen| seen.shortest)
            .collect();
        lives.sort_unstable();
        if let Some(life) = lives.get(usize::from(!lone)) {
            self.estimate = Some(self.estimate.map_or(*life, |known| known.min(*life)));
        }
        let others = self.seen.iter().filter(|(node, _)| **node != observer);
        let before = others
            .map(|(_, seen)| seen.since)
            .filter(|at| *at > self.begun);
        self.begun = before.min().or(lone.then_some(now)).unwrap_or(self.begun);
    }

    /// The shortest life of a mapping that was seen.
    pub fn estimate(&self) -> Option<Duration> {
        self.estimate
    }

    /// When another socket is to be opened: after three quarters of a mapping's life.
    pub fn rotate_at(&self) -> Option<Duration> {
        Some(self.begun + self.estimate? * 3 / 4)
    }

    /// Another socket is in use.
    pub fn rotated(&mut self, now: Duration) {
        self.begun = now;
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::Identity;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn observers() -> [NodeId; 3] {
        [1, 2, 3].map(|n| Identity::from_seed(&[n; 32]).node_id())
    }

    #[test]
    fn a_change_of_the_mapping_sets_the_time_of_the_next_socket() {
        let [observer, ..] = observers();
        let mut lifetime = MappingLifetime::default();
        assert!(!lifetime.observed(secs(1), observer, addr(1)));
        assert_eq!(lifetime.rotate_at(), None);
        assert!(lifetime.observed(secs(60), observer, addr(2)));
        assert_eq!(lifetime.estimate(), Some(secs(60)));
        assert_eq!(
            lifetime.rotate_at(),
            Some(secs(105)),
            "the new mapping is young"
        );
        lifetime.rotated(secs(105));
        assert_eq!(lifetime.rotate_at(), Some(secs(150)));
        assert!(!lifetime.observed(secs(106), observer, addr(3)));
    }

    #[test]
    fn of_several_observers_two_must_see_a_change() {
        let [first, second, third] = observers();
        let mut lifetime = MappingLifetime::default();
        for observer in [first, second, third] {
            lifetime.observed(secs(1), observer, addr(1));
        }
        assert!(lifetime.observed(secs(60), first, addr(2)));
        assert_eq!(lifetime.rotate_at(), None, "one alone may lie");
        assert!(lifetime.observed(secs(61), second, addr(2)));
        assert_eq!(lifetime.estimate(), Some(secs(61)));
        assert_eq!(lifetime.begun, secs(60));
        lifetime.observed(secs(62), third, addr(2));
        assert_eq!(lifetime.estimate(), Some(secs(61)));
        assert_eq!(lifetime.begun, secs(61));
    }

    #[test]
    fn a_liar_changes_nothing() {
        let [liar, second, third] = observers();
        let mut lifetime = MappingLifetime::default();
        lifetime.observed(secs(1), second, addr(1));
        lifetime.observed(secs(1), third, addr(1));
        for n in 1..100u16 {
            lifetime.observed(secs(u64::from(n) * 10), liar, addr(n));
        }
        assert_eq!((lifetime.estimate(), lifetime.begun), (None, secs(0)));
        // Nor does it put off what two others have seen.
        lifetime.observed(secs(1000), second, addr(2));
        lifetime.observed(secs(1001), third, addr(2));
        let at = lifetime.rotate_at();
        assert!(at.is_some());
        for n in 200..300u16 {
            lifetime.observed(secs(1000 + u64::from(n)), liar, addr(n));
        }
        assert!(lifetime.begun <= secs(1001));
    }

    #[test]
    fn moving_house_is_no_estimate() {
        let observer = Identity::from_seed(&[1; 32]).node_id();
        let mut lifetime = MappingLifetime::default();
        lifetime.observed(secs(1), observer, addr(1));
        assert!(lifetime.observed(secs(2), observer, addr(2)), "too short");
        assert!(lifetime.observed(secs(4000), observer, addr(3)), "too long");
        assert_eq!(lifetime.estimate(), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut lifetime = MappingLifetime::default();
        for n in 0..=255 {
            let observer = Identity::from_seed(&[n; 32]).node_id();
            lifetime.observed(secs(1), observer, addr(1));
        }
        assert_eq!(lifetime.seen.len(), MAX_OBSERVERS);
    }
}
