//! Which of the addresses that a peer names may be sent packets: those that can be the peer's, and few
//! enough that nobody is worth being named for the packets that it gets.

use std::net::{IpAddr, SocketAddr};

use crate::path::is_virtual;

/// Addresses of the internet that one offer has us probe, or one announcement has us dial. Whoever
/// names them may name anybody's: with the [budget](super::budget) of trains, one peer has us send some
/// 100 small packets a second, at most.
const MAX_PUBLIC: usize = 6;
/// The same for addresses of private networks.
const MAX_PRIVATE: usize = 4;

/// Those of a peer's addresses that a node at `own` may probe: no group, none of this machine, none in
/// private networks that we are not in, and of all others the first few.
pub(super) fn probeable(offered: &[SocketAddr], own: &[SocketAddr]) -> Vec<SocketAddr> {
    screened(offered, own, is_shared)
}

/// Those of the addresses that a node is said to have at which a node at `own` may dial it. As for
/// probes, but in all private networks: large ones are reached from machines with public addresses,
/// too, and there may be no other way.
pub(super) fn dialable(heard: &[SocketAddr], own: &[SocketAddr]) -> Vec<SocketAddr> {
    screened(heard, own, |ip, own| match Network::of(ip) {
        Network::Private | Network::Local(_) => true,
        _ => is_shared(ip, own),
    })
}

fn screened(
    named: &[SocketAddr],
    own: &[SocketAddr],
    leads_there: impl Fn(IpAddr, &[SocketAddr]) -> bool,
) -> Vec<SocketAddr> {
    let own: Vec<SocketAddr> = own.iter().map(canonical).collect();
    let (mut public, mut private) = (MAX_PUBLIC, MAX_PRIVATE);
    let mut chosen: Vec<SocketAddr> = Vec::new();
    for addr in named.iter().map(canonical) {
        let left = match Network::of(addr.ip()) {
            Network::Public => &mut public,
            _ => &mut private,
        };
        let new = !own.contains(&addr) && !chosen.contains(&addr);
        if new && is_unicast(&addr) && leads_there(addr.ip(), &own) && *left > 0 {
            *left -= 1;
            chosen.push(addr);
        }
    }
    chosen
}

/// Whether one machine may be at the address. What stands for a node within this process is none.
pub(super) fn is_unicast(addr: &SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let is_group = match ip {
        // 240.0.0.0/4 is reserved, and ends with the broadcast address.
        IpAddr::V4(ip) => ip.is_multicast() || ip.octets()[0] >= 240 || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_multicast(),
    };
    addr.port() != 0 && !ip.is_unspecified() && !is_group && !is_virtual(addr)
}

/// Whether an address is one of the internet's, and not of a network behind a NAT (RFC 1918, RFC 6598,
/// RFC 3927).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let is_carrier = first == 100 && (64..128).contains(&second);
            let is_special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
            !ip.is_private() && !ip.is_link_local() && !is_carrier && !is_special
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
    }
}

/// Whether we are in the network of `ip`, as far as it is not the internet.
fn is_shared(ip: IpAddr, own: &[SocketAddr]) -> bool {
    let network = Network::of(ip);
    network == Network::Public || own.iter().any(|addr| Network::of(addr.ip()) == network)
}

/// What an address leads to depends on the network that one is in.
#[derive(Debug, PartialEq, Eq)]
enum Network {
    Public,
    /// 127.0.0.0/8 or `::1`.
    Loopback,
    /// 169.254.0.0/16 or `fe80::/10`.
    Link,
    /// RFC 1918 and RFC 6598, all of them alike: such networks lie within each other, as a container's
    /// in a home's in a carrier's, and the outer ones are reached from the inner ones.
    Private,
    /// A unique local /48 (RFC 4193), or what else of IPv6 is not the internet's.
    Local([u16; 3]),
}

impl Network {
    fn of(ip: IpAddr) -> Self {
        match ip {
            _ if is_public(ip) => Self::Public,
            _ if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_link_local() => Self::Link,
            IpAddr::V4(_) => Self::Private,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::Link,
            IpAddr::V6(ip) => {
                let [one, two, three, ..] = ip.segments();
                Self::Local([one, two, three])
            }
        }
    }
}

fn canonical(addr: &SocketAddr) -> SocketAddr {
    meshwork_proto::path::canonical(*addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn assert_probed(offered: &[&str], own: &[&str], probed: &[&str]) {
        let chosen = probeable(&addrs(offered), &addrs(own));
        assert_eq!(chosen, addrs(probed), "of {offered:?} at {own:?}");
    }

    #[track_caller]
    fn assert_dialled(heard: &[&str], own: &[&str], dialled: &[&str]) {
        let chosen = dialable(&addrs(heard), &addrs(own));
        assert_eq!(chosen, addrs(dialled), "of {heard:?} at {own:?}");
    }

    #[test]
    fn no_probe_goes_to_groups_and_nobodies() {
        for nobody in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "255.255.255.255:1",
            "240.0.0.1:1",
            "224.0.0.251:5353",
            "203.0.113.1:0",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:224.0.0.1]:1",
            "[::ffff:255.255.255.255]:1",
            "[fd4d:5701::1]:1",
        ] {
            for own in [
                &["203.0.113.9:1"][..],
                &["192.168.1.9:1", "[fd00::1]:1"],
                &["[fd4d:5701::2]:1"],
            ] {
                assert_probed(&[nobody], own, &[]);
                assert_dialled(&[nobody], own, &[]);
            }
        }
    }

    #[test]
    fn no_probe_goes_to_this_machine_unless_the_whole_mesh_is_in_it() {
        let own = ["192.168.1.9:7", "[2001:db8::9]:7"];
        for itself in [
            "127.0.0.1:22",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert_probed(&[itself], &own, &[]);
            assert_dialled(&[itself], &own, &[]);
        }
        let own_address = ["192.168.1.9:7", "[::ffff:192.168.1.9]:7"];
        assert_probed(&own_address, &own, &[]);
        assert_dialled(&own_address, &own, &[]);
        let near = "127.0.0.1:9";
        assert_probed(&[near], &["127.0.0.1:7"], &[near]);
        assert_dialled(&[near], &["127.0.0.1:7"], &[near]);
    }

    #[test]
    fn private_networks_are_probed_from_within_only() {
        for (offered, own) in [
            ("10.1.2.3:1", "10.200.0.1:1"),
            ("192.168.1.1:1", "172.31.0.1:1"),
            ("100.64.0.1:1", "192.168.200.1:1"),
            ("169.254.0.1:1", "169.254.9.1:1"),
            ("[fd00:1:2:3::1]:1", "[fd00:1:2:9::1]:1"),
        ] {
            assert_probed(&[offered], &[own], &[offered]);
            assert_probed(&[offered], &["203.0.113.9:1", "[2001:db8::9]:1"], &[]);
            assert_probed(&[offered], &["[fd00:1:3:9::1]:1"], &[]);
        }
        assert_probed(&["169.254.0.1:1"], &["10.0.0.1:1"], &[]);
    }

    #[test]
    fn private_networks_are_dialled_from_everywhere_as_a_campus_routes_them() {
        for heard in ["10.1.2.3:1", "[fd00:1::1]:1", "203.0.113.1:1"] {
            assert_dialled(&[heard], &["141.20.1.1:1"], &[heard]);
        }
        assert_dialled(&["169.254.0.1:1", "[fe80::1]:1"], &["141.20.1.1:1"], &[]);
    }

    #[test]
    fn an_offer_has_us_probe_few_addresses_of_each_kind() {
        let strangers = (0..100u8).map(|n| SocketAddr::from(([203, 0, 113, n], 53)));
        let neighbours = (0..100u8).map(|n| SocketAddr::from(([10, 0, 0, n], 53)));
        let offered: Vec<SocketAddr> = strangers.chain(neighbours).collect();
        let chosen = probeable(&offered, &addrs(&["10.9.9.9:7"]));
        let (public, private) = chosen.split_at(MAX_PUBLIC);
        assert_eq!(public, &offered[..MAX_PUBLIC]);
        assert_eq!(private, &offered[100..100 + MAX_PRIVATE]);
        assert_eq!(dialable(&offered, &addrs(&["10.9.9.9:7"])), chosen);
        assert_probed(&["203.0.113.1:1"; 20], &[], &["203.0.113.1:1"]);
    }

    #[test]
    fn addresses_behind_another_nat_are_told_apart() {
        for (ip, public) in [
            ("203.0.113.5", true),
            ("8.8.8.8", true),
            ("100.63.255.255", true),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.1.1", false),
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("fd00::1", false),
        ] {
            assert_eq!(is_public(ip.parse().unwrap()), public, "{ip}");
        }
    }
}
