//! A UDP socket of the simulated network, as quinn wants it.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::{Arrival, Mail, Net};

/// A socket that is always writable. It takes one datagram a buffer: quinn would otherwise reserve
/// 3 MB for each endpoint.
pub struct SimSocket {
    addr: SocketAddr,
    net: Net,
    /// Wakes the reader at the next arrival.
    alarm: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl SimSocket {
    pub(crate) fn new(addr: SocketAddr, net: Net) -> Self {
        Self {
            addr,
            net,
            alarm: Mutex::default(),
        }
    }

    /// Sleeps until `at`; whether that is over.
    fn poll_alarm(&self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
        alarm.as_mut().reset(at);
        alarm.as_mut().poll(cx)
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit
            .segment_size
            .unwrap_or(transmit.contents.len())
            .max(1);
        for datagram in transmit.contents.chunks(size) {
            self.net
                .send(self.addr, transmit.destination, transmit.ecn, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let max = bufs.len().min(meta.len());
        loop {
            match self.net.take_mail(self.addr, max, cx.waker()) {
                Mail::Here(mail) => {
                    let slots = bufs.iter_mut().zip(meta.iter_mut());
                    for ((buf, meta), arrival) in slots.zip(&mail) {
                        *meta = fill(buf, arrival);
                    }
                    return Poll::Ready(Ok(mail.len()));
                }
                Mail::At(at) if self.poll_alarm(at, cx).is_ready() => {}
                Mail::At(_) | Mail::Nothing => return Poll::Pending,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Copies a datagram into a buffer, cut to its length as the operating system does.
fn fill(buf: &mut [u8], arrival: &Arrival) -> RecvMeta {
    let len = arrival.payload.len().min(buf.len());
    buf[..len].copy_from_slice(&arrival.payload[..len]);
    RecvMeta {
        addr: arrival.from,
        len,
        stride: len,
        ecn: arrival.ecn,
        ..RecvMeta::default()
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.net.close(self.addr);
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", self.addr)
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
