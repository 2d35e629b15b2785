//! Where a node listens, and under which addresses others find it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use meshwork_mesh::{Env, MeshError, StateStore};

/// Opens the socket. A machine without IPv6 gets the same port on IPv4.
pub(crate) fn listen(address: SocketAddr, state: Arc<dyn StateStore>) -> Result<Env, MeshError> {
    let opened = Env::production(address, state.clone());
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    match opened {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6() => {
            Env::production(v4, state)
        }
        opened => opened,
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// Addresses as a program on this machine dials them.
pub(super) fn reachable_here(listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let on_loopback = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![(Ipv4Addr::LOCALHOST, address.port()).into()],
        // Such a socket hears both families.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![
            (Ipv4Addr::LOCALHOST, address.port()).into(),
            (Ipv6Addr::LOCALHOST, address.port()).into(),
        ],
        _ => vec![*address],
    };
    listening.iter().flat_map(on_loopback).collect()
}

/// Addresses as other machines may dial them: those given, else of each family the one that
/// packets to the world leave from.
pub(super) fn reachable_there(
    advertise: &[SocketAddr],
    listening: &[SocketAddr],
) -> Vec<SocketAddr> {
    if !advertise.is_empty() {
        return advertise.to_vec();
    }
    let mut found = Vec::new();
    for address in listening {
        if !address.ip().is_unspecified() {
            found.push(*address);
            continue;
        }
        // Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket sends nothing, it
        // only asks the routing table.
        found.extend(leaving_from("0.0.0.0:0", "192.0.2.1:9", address.port()));
        if address.is_ipv6() {
            found.extend(leaving_from("[::]:0", "[2001:db8::1]:9", address.port()));
        }
        if found.is_empty() {
            found.push((Ipv4Addr::LOCALHOST, address.port()).into());
        }
    }
    found
}

fn leaving_from(from: &str, to: &str, port: u16) -> Option<SocketAddr> {
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_programs_dial_loopback_where_everything_is_listened_to() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            reachable_here(&[at("[::]:7")]),
            [at("127.0.0.1:7"), at("[::1]:7")]
        );
        assert_eq!(reachable_here(&[at("0.0.0.0:7")]), [at("127.0.0.1:7")]);
        assert_eq!(reachable_here(&[at("10.0.0.1:7")]), [at("10.0.0.1:7")]);
    }

    #[test]
    fn what_is_advertised_can_be_dialled() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            reachable_there(&[at("1.2.3.4:5")], &[at("[::]:7")]),
            [at("1.2.3.4:5")]
        );
        assert_eq!(
            reachable_there(&[], &[at("127.0.0.1:7")]),
            [at("127.0.0.1:7")]
        );
        let found = reachable_there(&[], &[at("[::]:7")]);
        assert!(
            !found.is_empty()
                && found
                    .iter()
                    .all(|a| !a.ip().is_unspecified() && a.port() == 7)
        );
    }
}
