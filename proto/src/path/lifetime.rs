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
/// mapping expires under traffic.
#[derive(Debug, Default)]
pub struct MappingLifetime {
    /// When the socket was opened.
    opened: Duration,
    /// By observer: our address as it sees it, and since when.
    seen: BTreeMap<NodeId, (SocketAddr, Duration)>,
    /// The shortest life seen.
    estimate: Option<Duration>,
}

impl MappingLifetime {
    /// `observer` sees our socket at `addr`. Whether that is a change.
    pub fn observed(&mut self, now: Duration, observer: NodeId, addr: SocketAddr) -> bool {
        let Some((old, since)) = self.seen.get_mut(&observer) else {
            if self.seen.len() < MAX_OBSERVERS {
                self.seen.insert(observer, (addr, self.opened));
            }
            return false;
        };
        if *old == addr {
            return false;
        }
        let life = now.saturating_sub(*since);
        (*old, *since) = (addr, now);
        if (SHORTEST..=LONGEST).contains(&life) {
            self.estimate = Some(self.estimate.map_or(life, |known| known.min(life)));
        }
        true
    }

    /// The shortest life of a mapping that was seen.
    pub fn estimate(&self) -> Option<Duration> {
        self.estimate
    }

    /// When another socket is to be opened: after three quarters of a mapping's life.
    pub fn rotate_at(&self) -> Option<Duration> {
        Some(self.opened + self.estimate? * 3 / 4)
    }

    /// Another socket is in use.
    pub fn rotated(&mut self, now: Duration) {
        self.opened = now;
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

    #[test]
    fn a_change_of_the_mapping_sets_the_time_of_the_next_socket() {
        let observer = Identity::from_seed(&[1; 32]).node_id();
        let mut lifetime = MappingLifetime::default();
        assert!(!lifetime.observed(secs(1), observer, addr(1)));
        assert_eq!(lifetime.rotate_at(), None);
        assert!(lifetime.observed(secs(60), observer, addr(2)));
        assert_eq!(lifetime.estimate(), Some(secs(60)));
        assert_eq!(lifetime.rotate_at(), Some(secs(45)));
        lifetime.rotated(secs(60));
        assert_eq!(lifetime.rotate_at(), Some(secs(105)));
        assert!(!lifetime.observed(secs(61), observer, addr(3)));
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
