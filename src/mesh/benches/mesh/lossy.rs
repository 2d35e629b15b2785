//! A link that loses datagrams: each one that arrives, with the same probability.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// A socket that does not hear everything.
#[derive(Debug)]
pub(crate) struct Lossy {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Of 1,000 datagrams, so many are lost.
    per_mille: u64,
    chance: AtomicU64,
}

impl Lossy {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, per_mille: u64) -> Arc<Self> {
        let chance = AtomicU64::new(per_mille);
        Arc::new(Self {
            inner,
            per_mille,
            chance,
        })
    }

    fn is_lost(&self) -> bool {
        // SplitMix64.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let next = self.chance.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        let next = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let next = (next ^ (next >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (next ^ (next >> 31)) % 1000 < self.per_mille
    }

    /// Takes the lost datagrams out of a buffer that holds several of them.
    fn lose(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let (stride, len) = (meta.stride.max(1), meta.len);
        let mut kept = 0;
        for start in (0..len).step_by(stride) {
            let end = (start + stride).min(len);
            // The last one may be shorter, and then must stay the last.
            if !self.is_lost() {
                buffer.copy_within(start..end, kept);
                kept += end - start;
            }
        }
        meta.len = kept;
    }
}

impl AsyncUdpSocket for Lossy {
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
        let count = std::task::ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(count) {
            self.lose(buffer, meta);
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
