//! A socket that hides foreign datagrams from quinn.
//!
//! quinn answers any long packet of a version that it does not speak with the list of those it does,
//! which would tell a scanner that a node is here. Only members get that answer: Initial packets are
//! keyed alike in all versions of our protocol, so a member of another version is recognized.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    initial::InitialKeys, initial::MIN_FIRST_ID_LEN, packet::SAMPLE_LEN, random::ID_LEN,
    stats::Counters,
};

/// The upper half of all version numbers of our protocol.
const FAMILY: u32 = 0x4d57;
/// Version number of a version negotiation packet.
const NEGOTIATION: u32 = 0;
/// Set in long headers.
const LONG_HEADER: u8 = 0x80;
/// Set in all packets of ours; quinn drops those without it.
const FIXED_BIT: u8 = 0x40;
/// Long packets with these bits clear are Initial ones.
const TYPE_BITS: u8 = 0x30;
/// First byte and our connection ids: nothing shorter is a packet.
const SHORTEST: usize = 1 + ID_LEN;

/// The screening socket.
pub(super) struct ScreenedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    version: u32,
    /// `None`: nobody is recognized, which leaves the answer to everyone in the version family.
    initial: Option<Arc<InitialKeys>>,
    counters: Arc<Counters>,
}

impl ScreenedSocket {
    pub(super) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        version: u32,
        initial: Option<Arc<InitialKeys>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            inner,
            version,
            initial,
            counters,
        }
    }

    /// Makes quinn drop a foreign datagram by clearing the fixed bit; buffers cannot shrink here.
    fn screen(&self, datagram: &mut [u8]) {
        let Some(&first) = datagram.first() else {
            return;
        };
        let foreign = if first & LONG_HEADER == 0 {
            first & FIXED_BIT == 0 || datagram.len() < SHORTEST
        } else {
            !self.speaks_ours(datagram)
        };
        if foreign {
            Counters::add(&self.counters.foreign_datagrams);
            datagram[0] &= !(LONG_HEADER | FIXED_BIT);
        }
    }

    /// Whether a long packet is of our version, or of another one by a member.
    fn speaks_ours(&self, datagram: &mut [u8]) -> bool {
        let Some(version) = datagram.get(1..5) else {
            return false;
        };
        let version = version.iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
        if version == NEGOTIATION {
            return true;
        }
        if datagram[0] & FIXED_BIT == 0 {
            return false;
        }
        if version == self.version {
            return true;
        }
        let member = version >> 16 == FAMILY && self.is_members_initial(datagram);
        if member {
            Counters::add(&self.counters.other_versions);
        }
        member
    }

    fn is_members_initial(&self, datagram: &[u8]) -> bool {
        let Some(initial) = &self.initial else {
            return true;
        };
        let Some((id, pn_offset, length)) = parse_initial(datagram) else {
            return false;
        };
        initial
            .find(id, pn_offset, &mut datagram[..length].to_vec())
            .is_some()
    }
}

/// First connection id, offset of the packet number, and length of an Initial packet (RFC 9000
/// §17.2.2). `None` if it is none or too short to be opened.
fn parse_initial(datagram: &[u8]) -> Option<(&[u8], usize, usize)> {
    let (&first, rest) = datagram.split_first()?;
    if first & TYPE_BITS != 0 {
        return None;
    }
    let (id, rest) = take_prefixed(rest.get(4..)?)?;
    let (_, rest) = take_prefixed(rest)?;
    let (token_len, rest) = take_varint(rest)?;
    let rest = rest.get(token_len..)?;
    let (length, rest) = take_varint(rest)?;
    let pn_offset = datagram.len() - rest.len();
    let long_enough = (4 + SAMPLE_LEN..=rest.len()).contains(&length);
    (long_enough && id.len() >= MIN_FIRST_ID_LEN).then_some((id, pn_offset, pn_offset + length))
}

/// A value with its length u8 before it, and what follows.
fn take_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(length.into())
}

/// A variable-length integer (RFC 9000 §16), and what follows.
fn take_varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = 1 << (bytes.first()? >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    let first = u64::from(number[0] & 0x3f);
    let value = number[1..]
        .iter()
        .fold(first, |n, byte| n << 8 | u64::from(*byte));
    Some((usize::try_from(value).ok()?, rest))
}

impl AsyncUdpSocket for ScreenedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buf, meta) in bufs.iter_mut().zip(&*meta).take(count) {
            for datagram in buf[..meta.len].chunks_mut(meta.stride.max(1)) {
                self.screen(datagram);
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for ScreenedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScreenedSocket")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_initial_packet_is_taken_apart() {
        let mut packet = vec![
            0xc0, 0x4d, 0x57, 0, 9, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 2, 0xaa, 0xbb,
        ];
        packet.extend_from_slice(&[0x40, 30]);
        let pn_offset = packet.len();
        packet.extend_from_slice(&[0; 40]);
        let id: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(
            parse_initial(&packet),
            Some((id, pn_offset, pn_offset + 30))
        );
        assert_eq!(parse_initial(&packet[..pn_offset + 29]), None);
        packet[0] |= 0x20;
        assert_eq!(parse_initial(&packet), None, "a Handshake packet");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_initial(&bytes);
        }
    }
}
