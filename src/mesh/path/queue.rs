//! What lies between the path layer and relays: packets that wait to go out through one, and packets
//! that came in through one and wait for quinn.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use meshwork_identity::NodeId;
use quinn::udp::RecvMeta;
use tokio::sync::Notify;

/// Packets that wait for a relay's connection: a round trip's worth at some 100 Mbit/s. More push
/// the oldest out, which QUIC takes for loss and slows down.
const MAX_OUTBOUND: usize = 1024;
/// Packets that came through relays and wait for quinn, which takes them at its next poll.
const MAX_INBOUND: usize = 1024;

/// A packet for a relay: the relay, for whom the packet is, and the packet.
pub(crate) type RelayFrame = (NodeId, NodeId, Bytes);

/// Packets on their way to relays.
#[derive(Debug, Default)]
pub(crate) struct RelayQueue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<RelayFrame>,
    closed: bool,
}

impl RelayQueue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet; whether another one had to go for it.
    pub(super) fn push(&self, frame: RelayFrame) -> bool {
        let mut waiting = self.waiting();
        let full = waiting.frames.len() >= MAX_OUTBOUND;
        if full {
            waiting.frames.pop_front();
        }
        waiting.frames.push_back(frame);
        drop(waiting);
        self.filled.notify_one();
        full
    }

    /// Nothing is taken any more.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.filled.notify_one();
    }

    /// The next packet; `None` once the node has shut down. One task waits for it.
    ///
    /// # Cancel safety
    /// No packet is lost when the future is dropped.
    pub(crate) async fn next(&self) -> Option<RelayFrame> {
        loop {
            {
                let mut waiting = self.waiting();
                if waiting.closed {
                    return None;
                }
                if let Some(frame) = waiting.frames.pop_front() {
                    return Some(frame);
                }
            }
            self.filled.notified().await;
        }
    }
}

/// Packets that came through relays.
#[derive(Default)]
pub(super) struct Inbound {
    packets: Mutex<VecDeque<(SocketAddr, Bytes)>>,
    reader: AtomicWaker,
}

impl Inbound {
    fn packets(&self) -> MutexGuard<'_, VecDeque<(SocketAddr, Bytes)>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet as from this label; whether another one had to go for it.
    pub(super) fn push(&self, from: SocketAddr, packet: Bytes) -> bool {
        let mut packets = self.packets();
        let full = packets.len() >= MAX_INBOUND;
        if full {
            packets.pop_front();
        }
        packets.push_back((from, packet));
        drop(packets);
        self.wake();
        full
    }

    /// Makes the reader look again: for packets, or at other sockets.
    pub(super) fn wake(&self) {
        self.reader.wake();
    }

    /// Fills buffers with what has come, one packet each, and wakes `reader` when more comes.
    pub(super) fn take(
        &self,
        reader: &Waker,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        self.reader.register(reader);
        let mut packets = self.packets();
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((from, packet)) = packets.pop_front() else {
                break;
            };
            let len = packet.len().min(buf.len());
            buf[..len].copy_from_slice(&packet[..len]);
            *meta = RecvMeta {
                addr: from,
                len,
                stride: len,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::Identity;

    fn frame(n: usize) -> RelayFrame {
        let node = Identity::from_seed(&[1; 32]).node_id();
        (node, node, n.to_be_bytes().to_vec().into())
    }

    #[tokio::test]
    async fn the_newest_frames_stay() {
        let queue = RelayQueue::default();
        for n in 0..MAX_OUTBOUND {
            assert!(!queue.push(frame(n)));
        }
        assert!(queue.push(frame(MAX_OUTBOUND)));
        for n in 1..=MAX_OUTBOUND {
            assert_eq!(queue.next().await, Some(frame(n)));
        }
        queue.push(frame(0));
        queue.close();
        assert_eq!(queue.next().await, None);
    }

    #[test]
    fn the_newest_packets_stay() {
        let queue = Inbound::default();
        let from = SocketAddr::from(([10, 0, 0, 1], 1));
        let dropped = (0..MAX_INBOUND + 5)
            .filter(|n| queue.push(from, n.to_be_bytes().to_vec().into()))
            .count();
        assert_eq!(dropped, 5);
        let mut memory = [[0; 100]; 4];
        let mut bufs = memory.each_mut().map(|buf| IoSliceMut::new(buf));
        let mut meta = [RecvMeta::default(); 4];
        assert_eq!(queue.take(Waker::noop(), &mut bufs, &mut meta), 4);
        assert!(meta.iter().all(|meta| meta.addr == from && meta.len == 8));
        assert_eq!(memory[0][..8], 5usize.to_be_bytes());
        assert_eq!(queue.packets().len(), MAX_INBOUND - 4);
    }
}
