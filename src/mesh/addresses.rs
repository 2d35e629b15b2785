//! The addresses of this machine, as its system tells them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses of the documentation (RFC 5737, RFC 3849), for asking the system which of ours it would
/// use for the world. Nothing is sent to them.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
/// Where Linux tells its IPv4 routes, and its IPv6 addresses.
const ROUTES: &str = "/proc/net/route";
const ADDRESSES6: &str = "/proc/net/if_inet6";
/// Addresses of one machine that are told. One with containers has many that lead nowhere.
const MAX_ADDRESSES: usize = 8;

/// Addresses at which a socket bound to `bound` receives: those that lead to the world first, then
/// those in networks that the machine is connected with, at most 8. On a machine without any network,
/// loopback. Asks the system, which takes some 100 µs.
pub(crate) fn system_addresses(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let routes = fs::read_to_string(ROUTES).unwrap_or_default();
    let addresses6 = fs::read_to_string(ADDRESSES6).unwrap_or_default();
    let neighbours = connected_networks(&routes).map(IpAddr::V4);
    let towards = FAR.into_iter().chain(neighbours).filter_map(towards);
    let all: Vec<IpAddr> = towards
        .chain(global_addresses(&addresses6).map(IpAddr::V6))
        .collect();
    choose(&all, bound)
}

/// The first addresses of `all` that a socket bound to the wildcard `bound` receives at, from others.
fn choose(all: &[IpAddr], bound: SocketAddr) -> Vec<SocketAddr> {
    // Only a wildcard of IPv6 receives both.
    let heard = |ip: &IpAddr| bound.is_ipv6() || ip.is_ipv4();
    let mut chosen: Vec<SocketAddr> = Vec::new();
    for ip in all.iter().filter(|ip| heard(ip)) {
        let addr = SocketAddr::new(*ip, bound.port());
        let usable = !ip.is_loopback() && !ip.is_unspecified() && !chosen.contains(&addr);
        if usable && chosen.len() < MAX_ADDRESSES {
            chosen.push(addr);
        }
    }
    if chosen.is_empty() {
        chosen.push((Ipv4Addr::LOCALHOST, bound.port()).into());
    }
    chosen
}

/// Our address on the way to `far`.
fn towards(far: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match far {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// An address in each of the networks that the machine is connected with, from the text of
/// `/proc/net/route`: a header, then lines of interface, destination, gateway, flags, …, mask,
/// addresses as hexadecimal numbers in the machine's byte order.
fn connected_networks(routes: &str) -> impl Iterator<Item = Ipv4Addr> {
    const UP: u32 = 1;
    const BY_GATEWAY: u32 = 2;
    routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (destination, flags) = (Ipv4Addr::from(hex(1)?.to_ne_bytes()), hex(3)?);
        let connected = flags & (UP | BY_GATEWAY) == UP;
        let useless = destination.is_unspecified() || destination.is_link_local();
        // The network's own address is nobody's.
        (connected && !useless).then(|| Ipv4Addr::from(u32::from(destination) | 1))
    })
}

/// The addresses of global scope, unique local ones included, from the text of `/proc/net/if_inet6`:
/// lines of address, interface, prefix length, scope, flags, name, numbers in hexadecimal.
fn global_addresses(addresses: &str) -> impl Iterator<Item = Ipv6Addr> {
    /// Not usable: still being claimed, or claimed by another machine (`linux/if_addr.h`).
    const TENTATIVE: u32 = 0x40;
    const DUPLICATE: u32 = 0x08;
    addresses.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        let usable = number(3)? == 0 && number(4)? & (TENTATIVE | DUPLICATE) == 0;
        usable.then(|| Ipv6Addr::from(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_particular_address_is_the_only_one() {
        for bound in ["127.0.0.1:7", "[2001:db8::1]:7"] {
            assert_eq!(system_addresses(at(bound)), [at(bound)]);
        }
        let all = system_addresses(at("0.0.0.0:7"));
        assert!(!all.is_empty() && all.len() <= MAX_ADDRESSES, "{all:?}");
        let heard = |addr: &SocketAddr| addr.is_ipv4() && addr.port() == 7;
        assert!(all.iter().all(heard), "{all:?}");
    }

    #[test]
    fn a_wildcard_receives_at_all_addresses_of_its_families() {
        let all = [
            ip("10.0.0.1"),
            ip("2001:db8::1"),
            ip("127.0.0.1"),
            ip("10.0.0.1"),
        ];
        let both = choose(&all, at("[::]:7"));
        assert_eq!(both, [at("10.0.0.1:7"), at("[2001:db8::1]:7")]);
        assert_eq!(choose(&all, at("0.0.0.0:7")), [at("10.0.0.1:7")]);
        // A mesh within one machine.
        assert_eq!(choose(&[], at("[::]:7")), [at("127.0.0.1:7")]);
        let many: Vec<IpAddr> = (0..50).map(|n| IpAddr::from([10, 0, n, 1])).collect();
        assert_eq!(choose(&many, at("0.0.0.0:7")).len(), MAX_ADDRESSES);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn networks_without_a_way_to_the_world_count() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
            ib0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\n\
            ib0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\n\
            eth1\t0002A8C0\t00000000\t0000\t0\t0\t0\t00FFFFFF\nx\n";
        let networks: Vec<IpAddr> = connected_networks(routes).map(IpAddr::V4).collect();
        assert_eq!(networks, [ip("192.168.1.1"), ip("10.0.0.1")]);
    }

    #[test]
    fn addresses_of_ipv6_that_others_reach_count() {
        let addresses = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            20010db8000000000000000000000009 02 40 00 80     eth0\n\
            20010db800000000000000000000000a 02 40 00 c8     eth0\n\
            fd000000000000000000000000000001 02 40 00 80     eth0\n\
            fe800000000000000000000000000001 02 40 20 80     eth0\nx y\n";
        let found: Vec<IpAddr> = global_addresses(addresses).map(IpAddr::V6).collect();
        assert_eq!(found, [ip("2001:db8::9"), ip("fd00::1")]);
    }
}
