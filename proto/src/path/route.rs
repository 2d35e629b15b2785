//! Ways to a peer.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use meshwork_identity::NodeId;

/// One way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Straight to one of its addresses.
    Direct {
        /// Which of our sockets sends: its number modulo 256. They change when a NAT's mapping is
        /// renewed.
        socket: u8,
        /// The peer's address, in [`canonical`] form.
        addr: SocketAddr,
    },
    /// Through another node, which both ends are linked with.
    Relay(NodeId),
}

impl Route {
    /// Whether it leads straight to the peer.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct { .. })
    }

    /// The peer's address, if it leads straight to it.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct { addr, .. } => Some(*addr),
            Self::Relay(_) => None,
        }
    }
}

/// As it is shown to people: `direct`, or `relay via` and a short node id.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct { .. } => f.write_str("direct"),
            Self::Relay(relay) => write!(f, "relay via {}", relay.short()),
        }
    }
}

/// The one form of an address that is compared: IPv4 within IPv6 as IPv4, and no flow label.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = addr else {
        return addr;
    };
    match v6.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), v6.port()),
        // The scope tells link-local addresses of two interfaces apart.
        IpAddr::V6(ip) => SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into(),
    }
}

/// How paths are watched and chosen. The defaults fit production; a peer can at most make us send the
/// probes that they bound.
#[derive(Debug, Clone, PartialEq)]
pub struct PathConfig {
    /// Silence under traffic after which the path in use is probed; longer where a round trip is.
    /// Default: 150 ms.
    pub ping_after: Duration,
    /// Silence under traffic after which all paths are probed at the earliest, so that another one
    /// is known to work when the one in use is found broken. Default: 300 ms.
    pub search_after: Duration,
    /// Time between two probes of a path behind a NAT while much goes over it, so that a changed
    /// mapping is learnt of at once. Default: 500 ms.
    pub busy_ping: Duration,
    /// Time between two probes of a path behind a NAT otherwise. Default: 15 s.
    pub keep_alive: Duration,
    /// How long an old socket still receives after a rotation. Default: 30 s.
    pub overlap: Duration,
}

impl Default for PathConfig {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_millis(150),
            search_after: Duration::from_millis(300),
            busy_ping: Duration::from_millis(500),
            keep_alive: Duration::from_secs(15),
            overlap: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        let canonical = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(canonical("[::ffff:10.0.0.1]:7"), "10.0.0.1:7");
        assert_eq!(canonical("10.0.0.1:7"), "10.0.0.1:7");
        assert_eq!(canonical("[fe80::1%3]:7"), "[fe80::1%3]:7");
        assert_eq!(canonical("[2001:db8::1]:7"), "[2001:db8::1]:7");
    }
}
