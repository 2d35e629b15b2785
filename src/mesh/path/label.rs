//! The addresses that quinn knows peers by, and the forms of real ones.
//!
//! quinn takes a peer for gone when its address changes under a connection that we dialled. So it
//! dials an address that belongs to the node and not to a place, and what lies below translates.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use aws_lc_rs::digest;
use meshwork_identity::NodeId;
pub(super) use meshwork_proto::path::canonical;

/// First bytes of all virtual addresses: a unique local prefix (RFC 4193) of our own, which no packet
/// on the wire ever bears.
const PREFIX: [u8; 3] = [0xfd, 0x4d, 0x57];
/// Port of the address by which a node is dialled.
const DIALLED: u16 = 1;

/// The address by which quinn dials `node`, wherever it is.
pub(crate) fn virtual_addr(node: &NodeId) -> SocketAddr {
    label(node, DIALLED)
}

/// The virtual address of this number. Numbers above 1 belong to connections that the node dialled
/// and whose path has changed.
pub(super) fn label(node: &NodeId, number: u16) -> SocketAddr {
    let digest = digest::digest(&digest::SHA256, node.as_bytes());
    let mut ip = [0; 16];
    ip[..PREFIX.len()].copy_from_slice(&PREFIX);
    ip[PREFIX.len()..].copy_from_slice(&digest.as_ref()[..16 - PREFIX.len()]);
    SocketAddr::new(Ipv6Addr::from(ip).into(), number)
}

/// Whether an address is a virtual one.
pub(crate) fn is_virtual(addr: &SocketAddr) -> bool {
    matches!(addr, SocketAddr::V6(v6) if v6.ip().octets().starts_with(&PREFIX))
}

/// The form in which quinn sees addresses: IPv4 within IPv6.
pub(super) fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
    }
}

/// Length of the connection ids that this node issues.
const ID_LEN: usize = 8;
/// Set in the first byte of packets with a long header.
const LONG_HEADER: u8 = 0x80;
/// Offset of the length of the destination connection id in a long header (RFC 8999 §5.1).
const DESTINATION: usize = 5;

/// A connection id of ours.
pub(super) type ConnId = [u8; ID_LEN];

/// To which of our connection ids a packet goes, if its length is right.
pub(super) fn destination_id(packet: &[u8]) -> Option<ConnId> {
    let first = *packet.first()?;
    let id = if first & LONG_HEADER == 0 {
        packet.get(1..=ID_LEN)
    } else if usize::from(*packet.get(DESTINATION)?) == ID_LEN {
        packet.get(DESTINATION + 1..=DESTINATION + ID_LEN)
    } else {
        None
    };
    id?.try_into().ok()
}

/// The connection id that a packet of ours with a long header asks its receiver to use.
pub(super) fn source_id(packet: &[u8]) -> Option<ConnId> {
    if packet.first()? & LONG_HEADER == 0 {
        return None;
    }
    let source = DESTINATION + 1 + usize::from(*packet.get(DESTINATION)?);
    if usize::from(*packet.get(source)?) != ID_LEN {
        return None;
    }
    packet.get(source + 1..=source + ID_LEN)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::Identity;
    use proptest::prelude::*;

    #[test]
    fn virtual_addresses_are_told_from_real_ones() {
        let nodes = [1, 2].map(|n| Identity::from_seed(&[n; 32]).node_id());
        assert_ne!(virtual_addr(&nodes[0]).ip(), virtual_addr(&nodes[1]).ip());
        assert!(is_virtual(&virtual_addr(&nodes[0])));
        assert_eq!(label(&nodes[0], 2).port(), 2);
        for real in ["10.0.0.1:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!is_virtual(&real.parse().unwrap()), "{real}");
        }
    }

    #[test]
    fn addresses_are_mapped_and_back() {
        for addr in ["10.0.0.1:7", "[2001:db8::1]:7", "[fe80::1%3]:7"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert!(mapped(addr).is_ipv6());
            assert_eq!(mapped(mapped(addr)), mapped(addr));
            assert_eq!(canonical(mapped(addr)), addr);
        }
    }

    #[test]
    fn connection_ids_are_found() {
        let mut long = vec![0xc0, 0x4d, 0x57, 0, 1, 8];
        long.extend_from_slice(b"theirsid");
        long.push(8);
        long.extend_from_slice(b"oursours");
        assert_eq!(destination_id(&long), Some(*b"theirsid"));
        assert_eq!(source_id(&long), Some(*b"oursours"));
        let short = b"\x41theirsidrest";
        assert_eq!(destination_id(short), Some(*b"theirsid"));
        assert_eq!(source_id(short), None);
    }

    proptest! {
        #[test]
        fn no_packet_panics(packet in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = (destination_id(&packet), source_id(&packet));
        }
    }
}
