//! The addresses of every lab. Namespaces are worlds of their own, so all labs use the same ones.
//!
//! The public ones look like anybody's: addresses reserved for documentation or private use would be
//! treated as such by what is tested (a gateway refuses to map ports on them).

use std::net::{Ipv4Addr, Ipv6Addr};

/// Prefix length of the public segment, and of each LAN.
pub(crate) const V4_PREFIX: u8 = 24;
/// The same for IPv6.
pub(crate) const V6_PREFIX: u8 = 64;

/// The `n`-th machine of the public segment; 1 is its backbone, the way to everybody else.
pub(crate) fn public(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(45, 0, 0, n)
}

/// The same for IPv6.
pub(crate) fn public6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2a00, 0x45, 0, 0, 0, 0, 0, u16::from(n))
}

/// The `n`-th machine of a LAN; 1 is its router. Every LAN has the same addresses, as most homes
/// have: an address of one is somebody else's, or one's own, in another.
pub(crate) fn lan(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 1, n)
}

/// The same for IPv6, where each LAN has a prefix of its own.
pub(crate) fn lan6(lan: u8, n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2a00, 0x45, 0, u16::from(lan), 0, 0, 0, u16::from(n))
}
