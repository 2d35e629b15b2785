//! A UDP socket of the simulated network, as quinn wants it.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::{Arrival, HostId, Letter, Mail, Net, SocketId};

/// A socket that is always writable. It takes one datagram a buffer: quinn would otherwise reserve
/// 3 MB for each endpoint.
pub struct SimSocket {
    place: Place,
    net: Net,
    /// Wakes the reader at the next arrival.
    alarm: Mutex<Option<Pin<Box<Sleep>>>>,
}

/// Where a socket is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) socket: SocketId,
    pub(crate) host: HostId,
    pub(crate) port: u16,
    /// For IPv6 and, in mapped form, IPv4.
    pub(crate) v6: bool,
}

impl SimSocket {
    pub(crate) fn new(place: Place, net: Net) -> Self {
        Self {
            place,
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
        let to = canonical(transmit.destination);
        // A socket for IPv4 knows no other addresses; the system's error is of no use to quinn.
        if to.is_ipv6() && !self.place.v6 {
            return Ok(());
        }
        for datagram in transmit.contents.chunks(size) {
            let letter = Letter {
                to,
                source: transmit.src_ip.map(|ip| ip.to_canonical()),
                ecn: transmit.ecn,
                payload: datagram.to_vec(),
            };
            self.net.send(self.place.socket, letter);
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
            match self.net.take_mail(self.place.socket, max, cx.waker()) {
                Mail::Here(mail) => {
                    let slots = bufs.iter_mut().zip(meta.iter_mut());
                    for ((buf, meta), arrival) in slots.zip(&mail) {
                        *meta = fill(buf, arrival, self.place.v6);
                    }
                    return Poll::Ready(Ok(mail.len()));
                }
                Mail::At(at) if self.poll_alarm(at, cx).is_ready() => {}
                Mail::At(_) | Mail::Nothing => return Poll::Pending,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let Place { host, port, v6, .. } = self.place;
        Ok(self.net.local_addr(host, port, v6))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Copies a datagram into a buffer, cut to its length as the operating system does.
fn fill(buf: &mut [u8], arrival: &Arrival, v6: bool) -> RecvMeta {
    let len = arrival.payload.len().min(buf.len());
    buf[..len].copy_from_slice(&arrival.payload[..len]);
    RecvMeta {
        addr: if v6 {
            mapped(arrival.from)
        } else {
            arrival.from
        },
        len,
        stride: len,
        ecn: arrival.ecn,
        dst_ip: Some(arrival.to),
    }
}

/// An IPv4 address as a socket for both kinds shows it.
fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.net.close(self.place.socket);
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { host, port, v6, .. } = self.place;
        write!(f, "SimSocket({})", self.net.local_addr(host, port, v6))
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
