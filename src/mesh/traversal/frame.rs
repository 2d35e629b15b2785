//! How a packet travels through a relay: in one datagram of the relay's connection, or in two when
//! it is larger than that connection's datagrams. Both pieces name the other end, so that the relay
//! holds nothing between them; the receiver puts them together.
//!
//! `[node 32][piece 1: index << 4 | count][packet number 2][payload]`, after the datagram's type
//! byte. The node is the receiver on the way to the relay, and the sender on the way from it, filled
//! in by the relay.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use meshwork_identity::NodeId;
use tokio::time::Instant;

use crate::datagram::{RELAY_DELIVER, RELAY_SEND};

/// Bytes of a frame before its payload, the type byte included.
pub(crate) const OVERHEAD: usize = 1 + 32 + 1 + 2;
/// Largest packet that is relayed, in bytes: more than any path MTU that the transport tries.
pub(crate) const MAX_PACKET: usize = 2048;
/// Packets per relay connection of which one piece is there and the other is not. An older one
/// makes room: its other piece is lost, most likely.
const MAX_PARTIAL: usize = 16;
/// How long a piece waits for the other one. Both are sent together.
const PATIENCE: Duration = Duration::from_secs(1);

/// One piece of a packet, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// The receiver or the sender, not checked to be a key.
    pub(crate) node: &'a [u8; 32],
    index: u8,
    count: u8,
    number: u16,
    /// What is to be handed on.
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads what follows the type byte. `None` for what nobody who follows the format sends.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (node, rest) = bytes.split_first_chunk::<32>()?;
        let (&[piece, high, low], payload) = rest.split_first_chunk::<3>()?;
        let (index, count) = (piece >> 4, piece & 0x0f);
        let fits = matches!(count, 1 | 2) && index < count;
        let sized = !payload.is_empty() && payload.len() <= MAX_PACKET;
        (fits && sized).then_some(Self {
            node,
            index,
            count,
            number: u16::from_be_bytes([high, low]),
            payload,
        })
    }

    /// The frame as a relay hands it on from `source` in datagrams of `room` bytes: cut in two when
    /// the receiver's datagrams are smaller than the sender's. None when it does not fit.
    pub(crate) fn stamped(&self, source: &NodeId, room: usize) -> Option<Vec<Bytes>> {
        let room = room.checked_sub(OVERHEAD)?;
        if self.payload.len() <= room {
            return Some(vec![encode(RELAY_DELIVER, source.as_bytes(), self)]);
        }
        (self.count == 1)
            .then(|| pieces(RELAY_DELIVER, source, self.number, self.payload, room))
            .flatten()
    }
}

/// The datagrams that carry `packet` to `to` through a relay whose datagrams hold `room` bytes.
/// None when it does not fit into two.
pub(crate) fn split(to: &NodeId, number: u16, packet: &[u8], room: usize) -> Option<Vec<Bytes>> {
    if packet.is_empty() || packet.len() > MAX_PACKET {
        return None;
    }
    pieces(RELAY_SEND, to, number, packet, room.checked_sub(OVERHEAD)?)
}

/// One datagram, or two of one size: halves fit the receiver's datagrams even where those are
/// smaller than the sender's.
fn pieces(kind: u8, node: &NodeId, number: u16, packet: &[u8], room: usize) -> Option<Vec<Bytes>> {
    let count = if packet.len() <= room { 1u8 } else { 2 };
    let size = packet.len().div_ceil(count.into());
    let cut = (0..count).zip(packet.chunks(size)).map(|(index, payload)| {
        let frame = Frame {
            node: node.as_bytes(),
            index,
            count,
            number,
            payload,
        };
        encode(kind, node.as_bytes(), &frame)
    });
    (size <= room).then(|| cut.collect())
}

fn encode(kind: u8, node: &[u8; 32], frame: &Frame<'_>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(OVERHEAD + frame.payload.len());
    bytes.put_u8(kind);
    bytes.put_slice(node);
    bytes.put_u8(frame.index << 4 | frame.count);
    bytes.put_u16(frame.number);
    bytes.put_slice(frame.payload);
    bytes.freeze()
}

/// Puts packets that came through one relay together again.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// The oldest first.
    partial: VecDeque<Partial>,
}

#[derive(Debug)]
struct Partial {
    node: [u8; 32],
    number: u16,
    index: u8,
    payload: Bytes,
    since: Instant,
}

impl Reassembly {
    /// Takes a frame; the packet when it is complete.
    pub(crate) fn take(&mut self, frame: &Frame<'_>, now: Instant) -> Option<Bytes> {
        if frame.count == 1 {
            return Some(Bytes::copy_from_slice(frame.payload));
        }
        self.partial
            .retain(|partial| now.duration_since(partial.since) < PATIENCE);
        let other = self
            .partial
            .iter()
            .position(|partial| partial.number == frame.number && partial.node == *frame.node);
        if let Some(other) = other.and_then(|at| self.partial.remove(at))
            && other.index != frame.index
        {
            let (first, second) = match frame.index {
                0 => (frame.payload, &other.payload[..]),
                _ => (&other.payload[..], frame.payload),
            };
            return (first.len() + second.len() <= MAX_PACKET)
                .then(|| [first, second].concat().into());
        }
        if self.partial.len() == MAX_PARTIAL {
            self.partial.pop_front();
        }
        self.partial.push_back(Partial {
            node: *frame.node,
            number: frame.number,
            index: frame.index,
            payload: Bytes::copy_from_slice(frame.payload),
            since: now,
        });
        None
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    fn parsed(datagram: &Bytes) -> Frame<'_> {
        Frame::parse(&datagram[1..]).unwrap()
    }

    #[tokio::test]
    async fn a_packet_arrives_whole_in_any_order_of_its_pieces() {
        for (len, pieces) in [(1, 1), (1126, 1), (1127, 2), (1452, 2), (MAX_PACKET, 2)] {
            let packet: Vec<u8> = (0..=250u8).cycle().take(len).collect();
            let frames = split(&node(1), 7, &packet, 1162).unwrap();
            assert_eq!(frames.len(), pieces, "{len}");
            assert!(frames.iter().all(|frame| frame.len() <= 1162));
            for reversed in [false, true] {
                let mut reassembly = Reassembly::default();
                let mut frames = frames.clone();
                if reversed {
                    frames.reverse();
                }
                let arrived: Vec<Bytes> = frames
                    .iter()
                    .filter_map(|frame| reassembly.take(&parsed(frame), Instant::now()))
                    .collect();
                assert_eq!(arrived, std::slice::from_ref(&packet));
                assert!(reassembly.partial.is_empty());
            }
        }
        assert_eq!(split(&node(1), 7, &[0; MAX_PACKET + 1], 4000), None);
        assert_eq!(split(&node(1), 7, &[0; 1200], OVERHEAD + 500), None);
        assert_eq!(split(&node(1), 7, &[], 1162), None);
    }

    #[tokio::test]
    async fn the_relay_stamps_the_sender_over_whatever_was_written() {
        let sent = split(&node(2), 9, b"packet", 1162).unwrap();
        let stamped = parsed(&sent[0]).stamped(&node(1), 1162).unwrap();
        assert_eq!((stamped.len(), stamped[0][0]), (1, RELAY_DELIVER));
        let frame = parsed(&stamped[0]);
        assert_eq!(frame.node, node(1).as_bytes());
        assert_eq!(frame.payload, b"packet");
    }

    #[tokio::test]
    async fn a_relay_cuts_what_the_receivers_datagrams_cannot_hold() {
        for len in [1126, 1127, 1300, 1377, 1452] {
            let packet: Vec<u8> = (0..=250u8).cycle().take(len).collect();
            let mut reassembly = Reassembly::default();
            let arrived: Vec<Bytes> = split(&node(2), 3, &packet, 1413)
                .unwrap()
                .iter()
                .flat_map(|frame| parsed(frame).stamped(&node(1), 1162).unwrap())
                .filter_map(|frame| reassembly.take(&parsed(&frame), Instant::now()))
                .collect();
            assert_eq!(arrived, [packet]);
        }
        let large = split(&node(2), 3, &[1; MAX_PACKET], 1413).unwrap();
        assert_eq!(parsed(&large[0]).stamped(&node(1), 800), None);
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_are_bounded_in_number_and_in_time() {
        let mut reassembly = Reassembly::default();
        let halves = |number| split(&node(1), number, &[1; 1452], 1162).unwrap();
        for number in 0..1000 {
            assert_eq!(
                reassembly.take(&parsed(&halves(number)[0]), Instant::now()),
                None
            );
        }
        assert_eq!(reassembly.partial.len(), MAX_PARTIAL);
        // Of the last, the other piece is still welcome; of the first, it is not.
        let last = halves(999);
        assert!(reassembly.take(&parsed(&last[1]), Instant::now()).is_some());
        let first = halves(0);
        assert!(
            reassembly
                .take(&parsed(&first[1]), Instant::now())
                .is_none()
        );
        let stale = halves(998);
        tokio::time::advance(PATIENCE).await;
        assert!(
            reassembly
                .take(&parsed(&stale[1]), Instant::now())
                .is_none()
        );
        assert_eq!(reassembly.partial.len(), 1, "the stale ones are gone");
    }

    #[tokio::test]
    async fn pieces_of_two_senders_are_not_mixed() {
        let mut reassembly = Reassembly::default();
        let (one, other) = (
            split(&node(1), 5, &[1; 1452], 1162).unwrap(),
            split(&node(2), 5, &[2; 1452], 1162).unwrap(),
        );
        let now = Instant::now();
        assert_eq!(reassembly.take(&parsed(&one[0]), now), None);
        assert_eq!(reassembly.take(&parsed(&other[1]), now), None);
        let whole = reassembly.take(&parsed(&one[1]), now).unwrap();
        assert!(whole.iter().all(|byte| *byte == 1) && whole.len() == 1452);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(frame) = Frame::parse(&bytes) {
                prop_assert!(frame.index < frame.count && frame.count <= 2);
                let again = encode(RELAY_SEND, frame.node, &frame);
                prop_assert_eq!(&again[1..], &bytes[..]);
            }
        }
    }
}
