//! Our own sockets and addresses: which there are, and how one follows another.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::path::{Event, Route, canonical};
use quinn::AsyncUdpSocket;
use tracing::debug;

use super::Paths;
use super::stats::Counters;
use super::table::{FIRST, Socket};
use crate::env::FindAddresses;

/// Sockets that are open at a time: the first one, the one in use, and those that still receive.
const MAX_SOCKETS: usize = 4;
/// How long an answer of the system to where it is counts: machines move, and it is asked for each
/// dial and each answer to a probe.
const MOVES: Duration = Duration::from_secs(1);
/// Ports that are remembered: those of some minutes, with the shortest-lived mappings there are.
const MAX_PORTS: usize = 8;
/// Between two tries to open a socket when the system has none for us.
const RETRY: Duration = Duration::from_secs(10);
/// Sockets at such ports that are opened in vain until one is taken.
const MAX_STALE: usize = MAX_PORTS;

/// What is remembered of our sockets.
pub(super) struct Rotation {
    /// Where the first one was bound.
    first: SocketAddr,
    /// When each old one is closed.
    old: Vec<(u8, Duration)>,
    /// Addresses that the one in use receives at, and when they were asked for.
    local: (Vec<SocketAddr>, Duration),
    /// Ports that were used last: a NAT may still have a mapping of them, which is as old.
    ports: VecDeque<u16>,
    /// No other socket is opened by itself before this.
    not_before: Duration,
}

impl Rotation {
    pub(super) fn new(socket: &Socket, addresses: &FindAddresses) -> io::Result<Self> {
        let first = canonical(socket.io.local_addr()?);
        Ok(Self {
            first,
            old: Vec::new(),
            local: (addresses(first), Duration::ZERO),
            ports: VecDeque::from([first.port()]),
            not_before: Duration::ZERO,
        })
    }
}

impl Paths {
    fn rotation(&self) -> std::sync::MutexGuard<'_, Rotation> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of the socket in use.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.table().current().io.local_addr().map(canonical)
    }

    /// Addresses of this machine that the socket in use receives at: its own, or all of the machine
    /// where it is bound to none.
    pub(crate) fn local_candidates(&self) -> Vec<SocketAddr> {
        let now = self.now();
        let outdated = now.saturating_sub(self.rotation().local.1) >= MOVES;
        if outdated && let Ok(bound) = self.local_addr() {
            let found = (self.addresses)(bound);
            self.note_local(found, now);
        }
        self.rotation().local.0.clone()
    }

    /// Takes note of where the machine is. One that goes out to the world from elsewhere than before is
    /// behind other NATs; networks of containers come and go, and change nothing.
    fn note_local(&self, found: Vec<SocketAddr>, now: Duration) {
        let way_out = |addrs: &[SocketAddr]| addrs.first().map(SocketAddr::ip);
        let moved = {
            let mut rotation = self.rotation();
            let moved = way_out(&rotation.local.0) != way_out(&found);
            rotation.local = (found, now);
            moved
        };
        if moved {
            self.lifetime().moved(now);
        }
    }

    /// When another socket is to be opened, before the NAT's mapping of this one ends.
    pub(super) fn next_rotation(&self) -> Option<Duration> {
        let due = self.lifetime().rotate_at()?;
        Some(due.max(self.rotation().not_before))
    }

    /// There was no other socket: it is tried again in a while.
    pub(super) fn put_off_rotation(&self, now: Duration) {
        self.rotation().not_before = now + RETRY;
    }

    /// Whether the way to the peer still leads over an old socket of ours, which is soon closed.
    pub(crate) fn is_outdated(&self, peer: &NodeId) -> bool {
        let current = self.table().current().number;
        matches!(self.route(peer), Some(Route::Direct { socket, .. }) if socket != current)
    }

    /// Opens another socket and moves all peers there, each when it has answered; the old one still
    /// receives for a while. The new socket's address.
    pub(crate) fn rotate(&self) -> io::Result<SocketAddr> {
        let (io, addr) = self.fresh_socket()?;
        let local = (self.addresses)(addr);
        let now = self.now();
        let (socket, remotes) = {
            let mut table = self.table_mut();
            let before = table.current().number;
            // No other one is ever called as the first, which stays.
            let number = before.checked_add(1).unwrap_or(FIRST + 1);
            table.sockets.push(Socket::new(number, io)?);
            let until = now + self.config.overlap;
            self.rotation().old.push((before, until));
            let remotes = table.all();
            (number, remotes)
        };
        self.lifetime().rotated(now);
        self.note_local(local, now);
        self.inbound.wake();
        Counters::add(&self.counters.rotations);
        debug!(%addr, "another socket");
        for remote in remotes {
            let mut state = remote.state();
            state.observed = None;
            self.handle(&remote, &mut state, Event::Rotated { socket });
            self.refresh_dial(&remote, &state);
        }
        self.close_old_sockets(now);
        Ok(addr)
    }

    /// A socket at a port that was not used of late, unless the system has no other.
    fn fresh_socket(&self) -> io::Result<(Arc<dyn AsyncUdpSocket>, SocketAddr)> {
        let ip = self.rotation().first.ip();
        // They are kept so long, so that the next one gets another port.
        let mut stale = Vec::new();
        loop {
            let io = (self.bind)(SocketAddr::new(ip, 0))?;
            let addr = canonical(io.local_addr()?);
            let mut rotation = self.rotation();
            if stale.len() == MAX_STALE || !rotation.ports.contains(&addr.port()) {
                if rotation.ports.len() == MAX_PORTS {
                    rotation.ports.pop_front();
                }
                rotation.ports.push_back(addr.port());
                return Ok((io, addr));
            }
            stale.push(io);
        }
    }

    /// Closes sockets whose time is over. The first one stays open for those who are told of its port:
    /// the commands of this machine, and the world where the port is forwarded.
    pub(super) fn close_old_sockets(&self, now: Duration) {
        loop {
            let socket = {
                let mut table = self.table_mut();
                let mut rotation = self.rotation();
                let too_many = table.sockets.len() > MAX_SOCKETS;
                match rotation.old.first() {
                    Some((socket, at)) if *at <= now || too_many => {
                        let socket = *socket;
                        rotation.old.remove(0);
                        table
                            .sockets
                            .retain(|known| known.number != socket || socket == FIRST);
                        socket
                    }
                    _ => return,
                }
            };
            let remotes = self.table().all();
            for remote in remotes {
                self.tell(&remote, Event::Closed { socket });
            }
        }
    }
}
