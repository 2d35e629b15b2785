//! Tiny UDP talks, by which the lab itself is proven: who sees whom as what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::lab::Host;

/// Time for a packet within one machine: plenty.
const PACKET: Duration = Duration::from_millis(400);
/// Packets sent until one must have come through, were it let through.
const TRIES: u32 = 3;

/// Who is there: sends from `from` to `to`, and tells what address `to` sees, if it arrives.
pub(crate) fn seen_as(from: &UdpSocket, to: &UdpSocket, at: SocketAddr) -> Option<SocketAddr> {
    for _ in 0..TRIES {
        // A refused packet may be reported at the next send.
        let _ = from.send_to(b"hello", at);
        if let Some(seen) = heard(to) {
            return Some(seen);
        }
    }
    None
}

/// Who wrote to the socket, if anybody does in time; older packets are passed over.
pub(crate) fn heard(at: &UdpSocket) -> Option<SocketAddr> {
    at.set_read_timeout(Some(PACKET)).expect("not zero");
    let mut seen = None;
    let mut buffer = [0; 64];
    while let Ok((_, from)) = at.recv_from(&mut buffer) {
        seen = Some(SocketAddr::new(from.ip().to_canonical(), from.port()));
        at.set_read_timeout(Some(Duration::from_millis(1)))
            .expect("not zero");
    }
    seen
}

/// Writes to each other at the same time, as hole punching does, and tells whether both hear it.
pub(crate) fn punch(a: (&UdpSocket, SocketAddr), b: (&UdpSocket, SocketAddr)) -> bool {
    let (mut a_heard, mut b_heard) = (false, false);
    for _ in 0..TRIES {
        let _ = a.0.send_to(b"punch", b.1);
        let _ = b.0.send_to(b"punch", a.1);
        a_heard |= heard(a.0).is_some();
        b_heard |= heard(b.0).is_some();
    }
    a_heard && b_heard
}

/// A machine's address with a port.
pub(crate) fn at(host: &Host, port: u16) -> SocketAddr {
    let ip: IpAddr = match host.ip6 {
        Some(ip6) => ip6.into(),
        None => Ipv4Addr::into(host.ip),
    };
    SocketAddr::new(ip, port)
}
