//! The socket that quinn sees: real ones below it, relays beside them, and peers at addresses that do
//! not change.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use meshwork_proto::path::{PROBE_LEN, Probe, Route};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::Paths;
use super::keys::KeyId;
use super::label::{canonical, destination_id, is_virtual, mapped, source_id};
use super::remote::Remote;
use super::stats::Counters;
use super::table::{Socket, Spread, Table, Target};

/// Packets of a dial without an answer after which it goes everywhere again.
const DIAL_PATIENCE: u32 = 8;
/// Set in the first byte of packets with a long header.
const LONG_HEADER: u8 = 0x80;

/// See the module.
pub(super) struct PathSocket(pub(super) Arc<Paths>);

/// What is to be done about a datagram once the tables are not in use any more.
enum After {
    /// A dial was answered.
    Answer(Arc<Remote>, Route),
    /// A probe of a peer.
    Probe(Route, [u8; PROBE_LEN]),
    /// A handshake has come in at a socket that is not the one in use.
    Stranger(SocketAddr, u8),
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let socket = self.0.table().current().clone();
        Box::pin(PathPoller {
            number: socket.number,
            inner: socket.io.create_io_poller(),
            paths: self.0.clone(),
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.receive(cx, bufs, meta)
    }

    /// In quinn's form: it refuses to dial IPv6 from a socket of IPv4, and virtual addresses are such.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.table().current().io.local_addr().map(mapped)
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.table().current().io.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.table().current().io.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.table().current().io.may_fragment()
    }
}

impl Paths {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if is_long(transmit.contents) && !is_virtual(&transmit.destination) {
            // A handshake stays where it was begun, whoever was known there before.
            self.note_handshake(transmit);
            let table = self.table();
            let socket = table.called_at(&transmit.destination);
            return table.send(socket, transmit.destination, transmit);
        }
        let table = self.table();
        let Some(target) = table.target(&transmit.destination) else {
            if is_virtual(&transmit.destination) {
                Counters::add(&self.counters.unroutable);
                return Ok(());
            }
            let socket = table.called_at(&transmit.destination);
            return table.send(socket, transmit.destination, transmit);
        };
        if target.remote.note_sent() {
            self.activate(target.remote.id);
        }
        let Some(all) = target.everywhere(transmit.contents) else {
            let route = target.way(transmit.contents);
            let sent = self.send_over(&table, &target.remote, route, transmit);
            if sent.is_ok()
                && let Some(spread) = &target.spread
            {
                self.send_too(&table, &target.remote, spread, transmit);
            }
            return sent;
        };
        let (all, remote) = (all.clone(), target.remote.clone());
        let unknown = source_id(transmit.contents).filter(|id| !table.dialled.contains_key(id));
        drop(table);
        if let Some(id) = unknown {
            self.await_answers(&remote, id);
        }
        let table = self.table();
        let mut results = all
            .iter()
            .map(|route| self.send_over(&table, &remote, Some(*route), transmit));
        // When the first finds no room, quinn tries again; what the others lack is a loss.
        let first = results.next().unwrap_or(Ok(()));
        if first.is_ok() {
            results.for_each(drop);
        }
        first
    }

    /// Sends a packet over other ways, too. What they have no room for is a loss.
    fn send_too(&self, table: &Table, remote: &Remote, spread: &Spread, transmit: &Transmit<'_>) {
        if !spread.takes_one() {
            return;
        }
        Counters::add(&self.counters.spread);
        for route in spread.over.iter().flatten() {
            let _ = self.send_over(table, remote, Some(*route), transmit);
        }
    }

    /// Remembers a handshake that we answer.
    fn note_handshake(&self, transmit: &Transmit<'_>) {
        if let Some(id) = source_id(transmit.contents)
            && !self.table().accepted.contains_key(&id)
        {
            let now = self.now();
            self.table_mut().accept(id, transmit.destination, now);
        }
    }

    /// Sends over one way. Errors other than a full socket are losses.
    fn send_over(
        &self,
        table: &Table,
        remote: &Remote,
        route: Option<Route>,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        match route {
            Some(Route::Direct { socket, addr }) => table.send(socket, addr, transmit),
            Some(Route::Relay(relay)) => {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len());
                for packet in transmit.contents.chunks(size.max(1)) {
                    let packet = Bytes::copy_from_slice(packet);
                    if self.relay_queue.push((relay, remote.node, packet)) {
                        Counters::add(&self.counters.relay_queue_full);
                    }
                }
                Ok(())
            }
            None => {
                Counters::add(&self.counters.unroutable);
                Ok(())
            }
        }
    }

    /// Sends a datagram of our own over a way, at once or never.
    pub(super) fn send_probe(&self, remote: &Remote, route: Route, datagram: &[u8]) {
        let transmit = Transmit {
            destination: remote.label,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: None,
        };
        let _ = self.send_over(&self.table(), remote, Some(route), &transmit);
    }

    fn receive(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let relayed = self.inbound.take(cx.waker(), bufs, meta);
        if relayed > 0 {
            return Poll::Ready(Ok(relayed));
        }
        let mut after = Vec::new();
        let received = self.receive_from_sockets(cx, bufs, meta, &mut after);
        for what in after {
            match what {
                After::Answer(remote, route) => self.answered(&remote, route),
                After::Probe(route, datagram) => self.take_probe(route, &datagram),
                After::Stranger(from, socket) => self.table_mut().note_stranger(from, socket),
            }
        }
        received
    }

    fn receive_from_sockets(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        after: &mut Vec<After>,
    ) -> Poll<io::Result<usize>> {
        let table = self.table();
        let sockets = &table.sockets;
        // Each is the first one in turn, so that none starves.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for index in 0..sockets.len() {
            let socket = &sockets[(turn + index) % sockets.len()];
            match socket.io.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    for (buf, meta) in bufs.iter_mut().zip(meta).take(count) {
                        self.translate(&table, socket.number, buf, meta, after);
                    }
                    return Poll::Ready(Ok(count));
                }
                Poll::Ready(Err(error)) if socket.number == table.current().number => {
                    return Poll::Ready(Err(error));
                }
                // One that fails though it is not in use is closed soon anyway.
                Poll::Pending | Poll::Ready(Err(_)) => {}
            }
        }
        Poll::Pending
    }

    /// Takes probes out of a batch of datagrams from one address, and puts the address there by which
    /// quinn knows the sender.
    fn translate(
        &self,
        table: &Table,
        socket: u8,
        buf: &mut [u8],
        meta: &mut RecvMeta,
        after: &mut Vec<After>,
    ) {
        let from = mapped(meta.addr);
        let addr = canonical(from);
        let route = Route::Direct { socket, addr };
        if buf[..meta.len]
            .first()
            .is_some_and(|first| first & 0xc0 == 0)
            || meta.len > meta.stride
        {
            self.take_probes_out(table, route, buf, meta, after);
        }
        meta.addr = from;
        if meta.len == 0 {
            // Nothing is left for quinn, and probes are no traffic.
            return;
        }
        if !table.dialled.is_empty()
            && let Some(remote) =
                destination_id(&buf[..meta.len]).and_then(|id| table.dialled.get(&id))
        {
            let source = table.source(&from);
            if remote.note_received(source.is_none_or(|source| source.in_use)) {
                self.activate(remote.id);
            }
            remote.unanswered.store(0, Ordering::Relaxed);
            if table.awaits_answer(remote) {
                after.push(After::Answer(remote.clone(), route));
            }
            (meta.addr, meta.dst_ip) = (remote.label, None);
            return;
        }
        if is_long(&buf[..meta.len]) && table.is_stranger(&from, socket) {
            after.push(After::Stranger(from, socket));
        }
        let Some(source) = table.source(&from) else {
            return;
        };
        if source.remote.note_received(source.in_use) {
            self.activate(source.remote.id);
        }
        if let Some(label) = source.label
            && !table.is_handshake_from(from, &buf[..meta.len])
        {
            (meta.addr, meta.dst_ip) = (label, None);
        }
    }

    /// Probes are not for quinn: what follows them in the buffer moves up. One under a key that we do
    /// not have is mostly a peer's whose connection has just ended; it does not count as a stranger's.
    fn take_probes_out(
        &self,
        table: &Table,
        route: Route,
        buf: &mut [u8],
        meta: &mut RecvMeta,
        after: &mut Vec<After>,
    ) {
        let stride = meta.stride.max(1);
        let (mut read, mut write) = (0, 0);
        while read < meta.len {
            let end = (read + stride).min(meta.len);
            if let Some((key, probe)) = as_probe(&buf[read..end]) {
                if table.keys.contains_key(&key) {
                    after.push(After::Probe(route, probe));
                } else {
                    Counters::add(&self.counters.unknown_probes);
                }
            } else {
                if read != write {
                    buf.copy_within(read..end, write);
                }
                write += end - read;
            }
            read = end;
        }
        meta.len = write;
    }
}

/// The datagram and the id of its key, if it is a probe.
fn as_probe(datagram: &[u8]) -> Option<(KeyId, [u8; PROBE_LEN])> {
    if !Probe::looks_like_one(datagram) {
        return None;
    }
    let (probe, _) = Probe::decode(datagram)?;
    Some((probe.key, datagram.try_into().ok()?))
}

impl Table {
    /// Whether the remote is dialled, and has not answered so far.
    fn awaits_answer(&self, remote: &Remote) -> bool {
        let dial = self.target(&remote.label);
        let dial = dial.and_then(|target| target.dial.as_ref());
        dial.is_some_and(|dial| dial.answered.is_none())
    }

    /// Whether a packet that answers no dial of ours belongs to a handshake that a peer at `from` has
    /// begun: it has a long header, or follows one that had.
    fn is_handshake_from(&self, from: SocketAddr, packet: &[u8]) -> bool {
        is_long(packet)
            || !self.accepted.is_empty()
                && destination_id(packet).and_then(|id| self.accepted.get(&id)) == Some(&from)
    }
}

/// Whether a packet, or the first of a batch, has a long header: that of a handshake.
fn is_long(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & LONG_HEADER != 0)
}

impl Target {
    /// All ways, if a packet is to go over all of them.
    fn everywhere(&self, packet: &[u8]) -> Option<&Arc<[Route]>> {
        let dial = self.dial.as_ref()?;
        let known = if is_long(packet) {
            let silent = self.remote.unanswered.fetch_add(1, Ordering::Relaxed) >= DIAL_PATIENCE;
            dial.answered.is_some() && !silent
        } else {
            self.route.is_some() || dial.answered.is_some()
        };
        (!known).then_some(&dial.all)
    }

    /// The one way for a packet.
    fn way(&self, packet: &[u8]) -> Option<Route> {
        let answered = self.dial.as_ref().and_then(|dial| dial.answered);
        if is_long(packet) {
            answered.or(self.route)
        } else {
            self.route.or(answered)
        }
    }
}

impl Socket {
    /// Sends to `addr`. From which of our addresses, quinn knows only for its own idea of the peer's.
    pub(super) fn send(&self, addr: SocketAddr, transmit: &Transmit<'_>) -> io::Result<()> {
        let same = mapped(addr) == transmit.destination;
        let Some(destination) = self.address(addr) else {
            return Ok(());
        };
        let sent = self.io.try_send(&Transmit {
            destination,
            src_ip: transmit.src_ip.filter(|_| same),
            ..*transmit
        });
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
            sent => sent,
        }
    }
}

/// Waits for room in the socket that is in use.
struct PathPoller {
    number: u8,
    inner: Pin<Box<dyn UdpPoller>>,
    paths: Arc<Paths>,
}

impl UdpPoller for PathPoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let socket = this.paths.table().current().clone();
        if socket.number != this.number {
            this.number = socket.number;
            this.inner = socket.io.create_io_poller();
        }
        this.inner.as_mut().poll_writable(cx)
    }
}

impl fmt::Debug for PathPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PathPoller").field(&self.number).finish()
    }
}

impl fmt::Debug for PathSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PathSocket").field(&self.0).finish()
    }
}
