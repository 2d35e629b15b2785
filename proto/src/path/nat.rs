//! What kind of address translation a node sits behind, and what two nodes can do about theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::canonical;

/// How the way from a node to the rest of the network treats its UDP packets.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum NatClass {
    /// Reachable at the address that it binds, or at one that is forwarded to it.
    Open,
    /// Behind a NAT that shows every peer the same address and port (endpoint-independent mapping,
    /// RFC 4787 §4.1): whoever knows that address can be punched through to.
    Cone,
    /// Behind a NAT that shows each peer another port.
    Symmetric,
    /// Not found out.
    #[default]
    Unknown,
}

impl NatClass {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Open, Self::Cone, Self::Symmetric, Self::Unknown];

    /// The name shown to people and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for NatClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NatClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let class = Self::ALL.into_iter().find(|class| class.name() == text);
        class.ok_or_else(|| {
            format!("`{text}` is no NAT class: use open, cone, symmetric or unknown")
        })
    }
}

/// Peers that must have been asked before their answers mean anything.
const MIN_OBSERVERS: usize = 2;

/// Judges the NAT before a socket from what peers observe of it: the class, and the address under which
/// the others see us, if it is one and the same. `observed` holds, for each peer, the host where it is
/// and whence it sees our packets come; `local` the addresses that the socket receives at, none of
/// them a wildcard.
///
/// IPv4 decides where it says something, as there are the NATs; else IPv6.
pub fn classify(
    observed: &[(IpAddr, SocketAddr)],
    local: &[SocketAddr],
) -> (NatClass, Option<SocketAddr>) {
    let local: BTreeSet<SocketAddr> = local.iter().copied().map(canonical).collect();
    let family = |v4: bool| {
        let all = observed.iter();
        let of_it: Vec<(IpAddr, SocketAddr)> = all
            .map(|(at, seen)| (at.to_canonical(), canonical(*seen)))
            .filter(|(_, seen)| seen.is_ipv4() == v4)
            .collect();
        classify_family(&local, &of_it)
    };
    match family(true) {
        (NatClass::Unknown, None) => family(false),
        found => found,
    }
}

fn classify_family(
    local: &BTreeSet<SocketAddr>,
    observed: &[(IpAddr, SocketAddr)],
) -> (NatClass, Option<SocketAddr>) {
    // Two ports of one host may share a mapping even where two hosts do not (RFC 4787 §4.1,
    // address-dependent mapping). So hosts count, not observers.
    let mut seen_by: BTreeMap<SocketAddr, BTreeSet<IpAddr>> = BTreeMap::new();
    for (at, seen) in observed {
        seen_by.entry(*seen).or_default().insert(*at);
    }
    // Who is behind the same NAT as we are sees our own address, which says nothing about the NAT.
    // Where that is a public one, it says that there is none.
    let (own, translated): (BTreeMap<_, _>, BTreeMap<_, _>) = seen_by
        .into_iter()
        .partition(|(seen, _)| local.contains(seen));
    let public = own.iter().filter(|(seen, _)| !is_private(seen.ip()));
    let outside: BTreeSet<&IpAddr> = public.flat_map(|(_, hosts)| hosts).collect();
    let hosts: BTreeSet<&IpAddr> = translated.values().flatten().collect();
    // Of several addresses that most hosts see counts: one that lies changes nothing.
    let most = translated.iter().max_by_key(|(_, by)| by.len());
    let Some((shown, by)) = most.filter(|_| outside.len() <= hosts.len()) else {
        let ours = own.keys().min_by_key(|seen| is_private(seen.ip())).copied();
        let known = observed.len() >= MIN_OBSERVERS;
        return (
            if known {
                NatClass::Open
            } else {
                NatClass::Unknown
            },
            ours,
        );
    };
    let majority = by.len() * 2 > hosts.len();
    match (translated.len(), majority) {
        (_, true) if by.len() >= MIN_OBSERVERS => (NatClass::Cone, Some(*shown)),
        (1, _) => (NatClass::Unknown, Some(*shown)),
        _ => (NatClass::Symmetric, None),
    }
}

/// Whether an address means something within a private network only (RFC 1918, 6598, 3927, 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            ip.is_private() || ip.is_link_local() || ip.is_loopback() || is_shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// How two nodes are to get at each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// One just sends to the other.
    Direct,
    /// Both send at the same time, so that each NAT takes the other's packets for answers.
    Punch,
    /// Only through a relay: the ports of both are unpredictable.
    Relay,
}

/// What is worth trying for a pair of nodes. A relay always remains as the way back.
pub fn pair(local: NatClass, remote: NatClass) -> Strategy {
    use NatClass::{Cone, Open, Symmetric, Unknown};
    match (local, remote) {
        (Open, Open | Cone | Unknown) | (Cone | Unknown, Open) | (Unknown, Unknown) => {
            Strategy::Direct
        }
        (Cone, Cone | Symmetric | Unknown)
        | (Symmetric | Unknown, Cone)
        | (Open, Symmetric)
        | (Symmetric, Open) => Strategy::Punch,
        (Symmetric, Symmetric | Unknown) | (Unknown, Symmetric) => Strategy::Relay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "10.0.0.2:7000";

    fn classified(local: &str, observed: &[(&str, &str)]) -> (NatClass, Option<String>) {
        let observed = observed.iter();
        let observed: Vec<(IpAddr, SocketAddr)> = observed
            .map(|(at, seen)| (at.parse().unwrap(), seen.parse().unwrap()))
            .collect();
        let (class, reflex) = classify(&observed, &[local.parse().unwrap()]);
        (class, reflex.map(|addr| addr.to_string()))
    }

    fn class(observed: &[(&str, &str)]) -> NatClass {
        classified(LOCAL, observed).0
    }

    #[test]
    fn the_class_follows_from_what_is_observed() {
        let a = ("192.0.2.1", "198.51.100.1:5");
        let same = ("192.0.2.2", "198.51.100.1:5");
        let other_port = ("192.0.2.2", "198.51.100.1:6");
        let neighbour = ("10.0.0.3", LOCAL);
        assert_eq!(classified(LOCAL, &[]), (NatClass::Unknown, None));
        let reflex = Some("198.51.100.1:5".to_owned());
        assert_eq!(classified(LOCAL, &[a]), (NatClass::Unknown, reflex.clone()));
        assert_eq!(classified(LOCAL, &[a, same]), (NatClass::Cone, reflex));
        let symmetric = classified(LOCAL, &[a, other_port]);
        assert_eq!(symmetric, (NatClass::Symmetric, None));
        assert_eq!(class(&[a, same, neighbour]), NatClass::Cone);
        assert_eq!(class(&[a, neighbour]), NatClass::Unknown);
        let open = [
            ("192.0.2.1", LOCAL),
            ("192.0.2.2", "[::ffff:10.0.0.2]:7000"),
        ];
        assert_eq!(class(&open[..1]), NatClass::Unknown);
        let local = Some(LOCAL.to_owned());
        assert_eq!(classified(LOCAL, &open), (NatClass::Open, local));
    }

    /// The address that it names would be dialled by the whole mesh.
    #[test]
    fn one_liar_among_the_observers_changes_nothing() {
        let honest = [
            ("192.0.2.1", "198.51.100.1:5"),
            ("192.0.2.2", "198.51.100.1:5"),
        ];
        let reflex = Some("198.51.100.1:5".to_owned());
        for lie in ["203.0.113.9:80", "198.51.100.1:6"] {
            let liar = ("192.0.2.9", lie);
            let all = [honest[0], honest[1], liar];
            assert_eq!(classified(LOCAL, &all), (NatClass::Cone, reflex.clone()));
            let public = "192.0.2.77:7000";
            let open = [("192.0.2.1", public), ("192.0.2.2", public), liar];
            let ours = Some(public.to_owned());
            assert_eq!(classified(public, &open), (NatClass::Open, ours));
            // Neighbours behind the same NAT do not outvote who is outside.
            let near = [("10.0.0.3", LOCAL), ("10.0.0.4", LOCAL), liar];
            let one = (NatClass::Unknown, Some(lie.to_owned()));
            assert_eq!(classified(LOCAL, &near), one);
        }
    }

    #[test]
    fn a_nat_that_shows_each_host_another_port_has_no_majority() {
        let ports: Vec<String> = (5..10).map(|port| format!("198.51.100.1:{port}")).collect();
        let hosts = [
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "192.0.2.4",
            "192.0.2.5",
        ];
        let seen: Vec<_> = hosts
            .iter()
            .zip(&ports)
            .map(|(at, seen)| (*at, &**seen))
            .collect();
        assert_eq!(class(&seen), NatClass::Symmetric);
        assert_eq!(
            class(&[seen[0], seen[1], ("192.0.2.3", &ports[0])]),
            NatClass::Cone
        );
    }

    #[test]
    fn two_ports_of_one_host_are_one_observer_of_a_mapping() {
        let seen = ("192.0.2.1", "198.51.100.1:5");
        assert_eq!(class(&[seen, seen]), NatClass::Unknown);
    }

    #[test]
    fn ipv6_decides_only_where_ipv4_says_nothing() {
        let local = "[2001:db8::1]:7000";
        let six = [("2001:db8::2", local), ("2001:db8::3", local)];
        assert_eq!(classified(local, &six).0, NatClass::Open);
        let four = [
            ("192.0.2.1", "198.51.100.1:5"),
            ("192.0.2.2", "198.51.100.1:6"),
        ];
        let both = [six[0], six[1], four[0], four[1]];
        assert_eq!(classified(local, &both).0, NatClass::Symmetric);
    }

    #[test]
    fn the_matrix_of_pairs() {
        use Strategy::{Direct as D, Punch as P, Relay as R};
        let expected = [[D, D, P, D], [D, P, P, P], [P, P, R, R], [D, P, R, D]];
        for (row, local) in expected.iter().zip(NatClass::ALL) {
            for (want, remote) in row.iter().zip(NatClass::ALL) {
                assert_eq!(pair(local, remote), *want, "{local} and {remote}");
            }
        }
    }
}
