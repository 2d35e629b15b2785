//! A socket that hides from quinn what no peer of ours sent.
//!
//! quinn answers any long packet of a version that it does not speak with the list of those it does,
//! which would tell a scanner that a node is here. Only members get that answer: Initial packets are
//! keyed alike in all versions of our protocol, so a member of another version is recognized. The
//! answer carries a tag under the same key, without which anybody who sees a first packet could end
//! the dial with a forged one.
//!
//! quinn drops other strays without telling; here they are counted.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, ConnectionId, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    config::MIN_MTU,
    initial::{InitialKeys, MIN_FIRST_ID_LEN},
    packet::SAMPLE_LEN,
    random::{ID_LEN, IdKey},
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
/// Length of the datagram of a first packet (RFC 9000 §14.1).
const MIN_FIRST_LEN: usize = MIN_MTU as usize;
/// Longest connection id that quinn knows.
const MAX_ID_LEN: usize = 20;

/// The screening socket.
pub(super) struct ScreenedSocket {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) version: u32,
    /// Knows the connection ids of this node.
    pub(super) id_key: IdKey,
    /// `None`: nobody is recognized, which leaves the answer to everyone in the version family.
    pub(super) initial: Option<Arc<InitialKeys>>,
    pub(super) counters: Arc<Counters>,
}

/// Whether quinn may see a packet; if not, the counter of its kind.
type Verdict<'c> = Result<(), &'c AtomicU64>;

impl ScreenedSocket {
    /// Makes quinn drop a stray by clearing the fixed bit; buffers cannot shrink here. A datagram
    /// with a short header, as almost all have, costs two comparisons.
    fn screen(&self, datagram: &mut [u8]) {
        let Some(&first) = datagram.first() else {
            return;
        };
        let verdict = if first & LONG_HEADER != 0 {
            self.judge_long(datagram)
        } else if first & FIXED_BIT == 0 || datagram.len() < SHORTEST {
            Err(&self.counters.foreign_datagrams)
        } else {
            Ok(())
        };
        if let Err(counter) = verdict {
            Counters::add(counter);
            datagram[0] &= !(LONG_HEADER | FIXED_BIT);
        }
    }

    fn judge_long(&self, datagram: &[u8]) -> Verdict<'_> {
        let foreign = Err(&self.counters.foreign_datagrams);
        let Some(packet) = LongPacket::parse(datagram) else {
            return foreign;
        };
        if packet.version == NEGOTIATION {
            self.judge_negotiation(datagram, &packet)
        } else if packet.first & FIXED_BIT == 0 || packet.version >> 16 != FAMILY {
            foreign
        } else if packet.version == self.version {
            self.judge_ours(datagram.len(), &packet)
        } else if self.is_members_first(datagram, &packet) {
            Counters::add(&self.counters.other_versions);
            Ok(())
        } else {
            foreign
        }
    }

    /// All packets but a first one go to a connection id that their receiver issued.
    fn judge_ours(&self, datagram_len: usize, packet: &LongPacket<'_>) -> Verdict<'_> {
        let initial = packet.first & TYPE_BITS == 0;
        if initial && datagram_len >= MIN_FIRST_LEN || self.id_key.issued(packet.destination) {
            Ok(())
        } else if initial {
            Err(&self.counters.unknown_initials)
        } else {
            Err(&self.counters.unknown_connection_ids)
        }
    }

    /// Only a member that got our first packet may tell us that it speaks another version.
    fn judge_negotiation(&self, datagram: &[u8], packet: &LongPacket<'_>) -> Verdict<'_> {
        if !self.id_key.issued(packet.destination) {
            return Err(&self.counters.unknown_connection_ids);
        }
        let Some(initial) = &self.initial else {
            return Ok(());
        };
        let forged = Err(&self.counters.forged_packets);
        let Some((list, tag)) = datagram.split_last_chunk::<16>() else {
            return forged;
        };
        // The source id is the first destination id, which the dialler chose at random.
        let expected = initial.own().negotiation_tag(packet.source, list);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, tag).or(forged)
    }

    /// Whether this is the first packet of a member, of another version.
    fn is_members_first(&self, datagram: &[u8], packet: &LongPacket<'_>) -> bool {
        let Some(initial) = &self.initial else {
            return true;
        };
        if datagram.len() < MIN_FIRST_LEN {
            return false;
        }
        let Some((pn_offset, length)) = packet.initial(datagram.len()) else {
            return false;
        };
        let mut copy = datagram[..length].to_vec();
        let Some((index, _)) = initial.find(packet.destination, pn_offset, &mut copy) else {
            return false;
        };
        // For the tag of the answer.
        initial.remember(ConnectionId::new(packet.destination), index);
        true
    }

    /// A version negotiation packet of ours with its tag, which its reader takes for more versions;
    /// `None` for all other packets.
    fn tagged(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let initial = self.initial.as_ref()?;
        if packet.first()? & LONG_HEADER == 0 {
            return None;
        }
        let long = LongPacket::parse(packet).filter(|long| long.version == NEGOTIATION)?;
        let salt = initial.of_attempt(&ConnectionId::new(long.source));
        Some([packet, &salt.negotiation_tag(long.source, packet)].concat())
    }
}

/// The part of a long header that is the same in all versions (RFC 8999 §5.1).
struct LongPacket<'p> {
    first: u8,
    version: u32,
    destination: &'p [u8],
    source: &'p [u8],
    rest: &'p [u8],
}

impl<'p> LongPacket<'p> {
    fn parse(datagram: &'p [u8]) -> Option<Self> {
        let (&first, rest) = datagram.split_first()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (destination, rest) = take_prefixed(rest)?;
        let (source, rest) = take_prefixed(rest)?;
        Some(Self {
            first,
            version: u32::from_be_bytes(*version),
            destination,
            source,
            rest,
        })
    }

    /// Offset of the packet number, and length of the packet, if it is an Initial one (RFC 9000
    /// §17.2.2) that can be opened. `datagram_len` is the length of what it was parsed from.
    fn initial(&self, datagram_len: usize) -> Option<(usize, usize)> {
        if self.first & TYPE_BITS != 0 {
            return None;
        }
        let (token_len, rest) = take_varint(self.rest)?;
        let rest = rest.get(token_len..)?;
        let (length, rest) = take_varint(rest)?;
        let pn_offset = datagram_len - rest.len();
        let openable = (4 + SAMPLE_LEN..=rest.len()).contains(&length)
            && (MIN_FIRST_ID_LEN..=MAX_ID_LEN).contains(&self.destination.len());
        openable.then_some((pn_offset, pn_offset + length))
    }
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
        match self.tagged(transmit.contents) {
            None => self.inner.try_send(transmit),
            Some(contents) => self.inner.try_send(&Transmit {
                contents: &contents,
                ..*transmit
            }),
        }
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
    use std::task::Waker;

    use super::*;
    use proptest::prelude::*;
    use quinn::udp::EcnCodepoint;

    /// A socket with mail: in each buffer datagrams of this stride, the last one maybe shorter.
    #[derive(Debug)]
    struct Mail(Vec<(usize, Vec<u8>)>);

    impl AsyncUdpSocket for Mail {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("these tests do not send")
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            unreachable!("these tests do not send")
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            bufs: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            for (n, (stride, bytes)) in self.0.iter().enumerate() {
                bufs[n][..bytes.len()].copy_from_slice(bytes);
                meta[n].len = bytes.len();
                meta[n].stride = *stride;
                meta[n].ecn = Some(EcnCodepoint::Ce);
            }
            Poll::Ready(Ok(self.0.len()))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn each_datagram_of_a_batch_is_judged_alone() {
        let (good, foreign) = ([0x41; 40], [0xc1; 40]);
        let mail = Mail(vec![
            (40, [&good[..], &foreign, &good, &foreign[..7]].concat()),
            (40, good.to_vec()),
            (0, Vec::new()),
            (40, foreign.to_vec()),
        ]);
        let counters = Arc::<Counters>::default();
        let screened = ScreenedSocket {
            inner: Arc::new(mail),
            version: 0x4d57_0001,
            id_key: IdKey::new(&[1; 32]),
            initial: None,
            counters: counters.clone(),
        };
        // What follows the mail in a buffer is not ours to touch.
        let mut memory = [[0xff; 200]; 4];
        let mut bufs = memory.each_mut().map(|buf| IoSliceMut::new(buf));
        let mut meta = [RecvMeta::default(); 4];
        let polled = screened.poll_recv(
            &mut Context::from_waker(Waker::noop()),
            &mut bufs,
            &mut meta,
        );
        assert!(matches!(polled, Poll::Ready(Ok(4))));
        assert!(meta.iter().all(|meta| meta.ecn == Some(EcnCodepoint::Ce)));
        assert_eq!(meta.map(|meta| meta.len), [127, 40, 0, 40]);
        let mut dropped = foreign;
        dropped[0] = 0x01;
        let first = [&good[..], &dropped, &good, &dropped[..7], &[0xff; 73]].concat();
        assert_eq!(memory[0][..], first);
        assert_eq!(memory[1][..40], good);
        assert_eq!(memory[2], [0xff; 200]);
        assert_eq!(memory[3][..40], dropped);
        assert_eq!(counters.snapshot().foreign_datagrams, 3);
    }

    #[test]
    fn an_initial_packet_is_taken_apart() {
        let mut packet = vec![
            0xc0, 0x4d, 0x57, 0, 9, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 2, 0xaa, 0xbb,
        ];
        packet.extend_from_slice(&[0x40, 30]);
        let pn_offset = packet.len();
        packet.extend_from_slice(&[0; 40]);
        let parse = |packet: &[u8]| LongPacket::parse(packet).unwrap().initial(packet.len());
        assert_eq!(parse(&packet), Some((pn_offset, pn_offset + 30)));
        assert_eq!(parse(&packet[..pn_offset + 29]), None);
        packet[0] |= 0x20;
        assert_eq!(parse(&packet), None, "a Handshake packet");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = LongPacket::parse(&bytes).map(|packet| packet.initial(bytes.len()));
        }
    }
}
