//! How long a NAT keeps a mapping, learnt from the changes that peers observe.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::NodeId;

/// Views that are remembered. That of whom we have not heard for the longest makes room.
const MAX_VIEWS: usize = 256;
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
    /// By observer, and by its address that we send to: each family of addresses has a NAT of its own
    /// or none, and some NATs show each address another port.
    seen: BTreeMap<(NodeId, SocketAddr), Seen>,
    /// The shortest life seen.
    estimate: Option<Duration>,
}

/// Our address as one observer sees it over one way.
#[derive(Debug)]
struct Seen {
    addr: SocketAddr,
    since: Duration,
    /// When we heard of it last.
    heard: Duration,
    /// The shortest life of an address before it.
    shortest: Option<Duration>,
}

impl MappingLifetime {
    /// `observer` sees what our socket sends to its address `to` come from `addr`. Whether that is a
    /// change.
    pub fn observed(
        &mut self,
        now: Duration,
        observer: NodeId,
        to: SocketAddr,
        addr: SocketAddr,
    ) -> bool {
        let Some(seen) = self.seen.get_mut(&(observer, to)) else {
            self.make_room();
            let seen = Seen {
                addr,
                since: self.begun,
                heard: now,
                shortest: None,
            };
            self.seen.insert((observer, to), seen);
            return false;
        };
        seen.heard = now;
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

    /// Leaves room for another view.
    fn make_room(&mut self) {
        if self.seen.len() < MAX_VIEWS {
            return;
        }
        let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.heard);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.seen.remove(&key);
        }
    }

    /// Believes what two observers have seen, or the only one there is.
    fn confirm(&mut self, observer: NodeId, now: Duration) {
        let lone = self.seen.keys().all(|(node, _)| *node == observer);
        let mut of_each: BTreeMap<&NodeId, Duration> = BTreeMap::new();
        for ((node, _), seen) in &self.seen {
            if let Some(life) = seen.shortest {
                let shortest = of_each.entry(node).or_insert(life);
                *shortest = life.min(*shortest);
            }
        }
        let mut lives: Vec<Duration> = of_each.into_values().collect();
        lives.sort_unstable();
        if let Some(life) = lives.get(usize::from(!lone)) {
            self.estimate = Some(self.estimate.map_or(*life, |known| known.min(*life)));
        }
        let others = self.seen.iter().filter(|((node, _), _)| *node != observer);
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

    /// The machine is in another network: what was learnt of the NATs of the last one is void.
    pub fn moved(&mut self, now: Duration) {
        *self = Self {
            begun: now,
            ..Self::default()
        };
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

    /// Where all observers are, if nothing else is said.
    fn place() -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], 7000))
    }

    fn observers() -> [NodeId; 3] {
        [1, 2, 3].map(|n| Identity::from_seed(&[n; 32]).node_id())
    }

    #[test]
    fn a_change_of_the_mapping_sets_the_time_of_the_next_socket() {
        let [observer, ..] = observers();
        let mut lifetime = MappingLifetime::default();
        assert!(!lifetime.observed(secs(1), observer, place(), addr(1)));
        assert_eq!(lifetime.rotate_at(), None);
        assert!(lifetime.observed(secs(60), observer, place(), addr(2)));
        assert_eq!(lifetime.estimate(), Some(secs(60)));
        assert_eq!(
            lifetime.rotate_at(),
            Some(secs(105)),
            "the new mapping is young"
        );
        lifetime.rotated(secs(105));
        assert_eq!(lifetime.rotate_at(), Some(secs(150)));
        assert!(!lifetime.observed(secs(106), observer, place(), addr(3)));
    }

    #[test]
    fn of_several_observers_two_must_see_a_change() {
        let [first, second, third] = observers();
        let mut lifetime = MappingLifetime::default();
        for observer in [first, second, third] {
            lifetime.observed(secs(1), observer, place(), addr(1));
        }
        assert!(lifetime.observed(secs(60), first, place(), addr(2)));
        assert_eq!(lifetime.rotate_at(), None, "one alone may lie");
        assert!(lifetime.observed(secs(61), second, place(), addr(2)));
        assert_eq!(lifetime.estimate(), Some(secs(61)));
        assert_eq!(lifetime.begun, secs(60));
        lifetime.observed(secs(62), third, place(), addr(2));
        assert_eq!(lifetime.estimate(), Some(secs(61)));
        assert_eq!(lifetime.begun, secs(61));
    }

    #[test]
    fn a_liar_changes_nothing() {
        let [liar, second, third] = observers();
        let mut lifetime = MappingLifetime::default();
        lifetime.observed(secs(1), second, place(), addr(1));
        lifetime.observed(secs(1), third, place(), addr(1));
        for n in 1..100u16 {
            lifetime.observed(secs(u64::from(n) * 10), liar, place(), addr(n));
        }
        assert_eq!((lifetime.estimate(), lifetime.begun), (None, secs(0)));
        // Nor does it put off what two others have seen.
        lifetime.observed(secs(1000), second, place(), addr(2));
        lifetime.observed(secs(1001), third, place(), addr(2));
        let at = lifetime.rotate_at();
        assert!(at.is_some());
        for n in 200..300u16 {
            lifetime.observed(secs(1000 + u64::from(n)), liar, place(), addr(n));
        }
        assert!(lifetime.begun <= secs(1001));
    }

    #[test]
    fn moving_house_is_no_estimate() {
        let observer = Identity::from_seed(&[1; 32]).node_id();
        let mut lifetime = MappingLifetime::default();
        lifetime.observed(secs(1), observer, place(), addr(1));
        assert!(
            lifetime.observed(secs(2), observer, place(), addr(2)),
            "too short"
        );
        assert!(
            lifetime.observed(secs(4000), observer, place(), addr(3)),
            "too long"
        );
        assert_eq!(lifetime.estimate(), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut lifetime = MappingLifetime::default();
        for n in 0..=255 {
            let observer = Identity::from_seed(&[n; 32]).node_id();
            for to in 0..4 {
                lifetime.observed(secs(1), observer, addr(to), addr(1));
            }
        }
        assert_eq!(lifetime.seen.len(), MAX_VIEWS);
        let newcomer = Identity::from_seed(&[255; 32]).node_id();
        for to in 0..10 {
            assert!(!lifetime.observed(secs(2), newcomer, addr(to), addr(1)));
        }
        assert_eq!(lifetime.seen.len(), MAX_VIEWS);
        assert!(lifetime.observed(secs(3), newcomer, addr(9), addr(2)));
    }

    /// A dual-stack peer sees an address of each family, and so it goes on for ever.
    #[test]
    fn two_ways_to_a_peer_are_no_change() {
        let mut lifetime = MappingLifetime::default();
        let six = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 7000));
        for at in (10..200).step_by(10) {
            for observer in observers() {
                assert!(!lifetime.observed(secs(at), observer, place(), addr(1)));
                assert!(!lifetime.observed(secs(at), observer, six, six));
            }
        }
        assert_eq!((lifetime.estimate(), lifetime.begun), (None, secs(0)));
        // Two ways to one observer are one witness.
        let [first, ..] = observers();
        lifetime.observed(secs(260), first, place(), addr(2));
        lifetime.observed(secs(260), first, six, place());
        assert_eq!(lifetime.estimate(), None);
    }

    #[test]
    fn another_network_has_another_nat() {
        let [observer, ..] = observers();
        let mut lifetime = MappingLifetime::default();
        lifetime.observed(secs(1), observer, place(), addr(1));
        lifetime.observed(secs(20), observer, place(), addr(2));
        assert!(lifetime.rotate_at().is_some());
        lifetime.moved(secs(21));
        assert_eq!(lifetime.rotate_at(), None);
        assert!(!lifetime.observed(secs(22), observer, place(), addr(3)));
    }
}
