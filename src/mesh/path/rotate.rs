//! Our own sockets and addresses: which there are, and how one follows another.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::path::{Event, Route, canonical};
use tracing::debug;

use super::Paths;
use super::remote::Remote;
use super::stats::Counters;
use super::table::Socket;

/// Sockets that are open at a time: the one in use, and those that still receive.
const MAX_SOCKETS: usize = 3;
/// Addresses of the documentation (RFC 5737, RFC 3849), for asking the system which of ours it would
/// use for the world. Nothing is sent to them.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// What is remembered of our sockets.
pub(super) struct Rotation {
    /// Where the first one was bound.
    first: SocketAddr,
    /// When each old one is closed.
    old: Vec<(u8, Duration)>,
    /// Addresses that the one in use receives at.
    local: Vec<SocketAddr>,
}

impl Rotation {
    pub(super) fn new(socket: &Socket) -> io::Result<Self> {
        let first = canonical(socket.io.local_addr()?);
        Ok(Self {
            first,
            old: Vec::new(),
            local: local_addresses(first),
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

    /// Addresses of this machine that the socket in use receives at: its own, or those of the
    /// interfaces to the world where it is bound to all.
    pub(crate) fn local_candidates(&self) -> Vec<SocketAddr> {
        self.rotation().local.clone()
    }

    /// Whether the way to the peer still leads over an old socket of ours, which is soon closed.
    pub(crate) fn is_outdated(&self, peer: &NodeId) -> bool {
        let current = self.table().current().number;
        matches!(self.route(peer), Some(Route::Direct { socket, .. }) if socket != current)
    }

    /// Opens another socket and moves all peers there, each when it has answered; the old one still
    /// receives for a while. The new socket's address.
    pub(crate) fn rotate(&self) -> io::Result<SocketAddr> {
        let first = self.rotation().first;
        let io = (self.bind)(SocketAddr::new(first.ip(), 0))?;
        let addr = canonical(io.local_addr()?);
        let now = self.now();
        let (socket, remotes) = {
            let mut table = self.table_mut();
            let before = table.current().number;
            let number = before.wrapping_add(1);
            table.sockets.push(Socket::new(number, io)?);
            let mut rotation = self.rotation();
            rotation.old.push((before, now + self.config.overlap));
            rotation.local = local_addresses(addr);
            let remotes: Vec<Arc<Remote>> = table.remotes.values().cloned().collect();
            (number, remotes)
        };
        self.lifetime().rotated(now);
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

    /// Closes sockets whose time is over.
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
                        table.sockets.retain(|known| known.number != socket);
                        socket
                    }
                    _ => return,
                }
            };
            let remotes: Vec<Arc<Remote>> = self.table().remotes.values().cloned().collect();
            for remote in remotes {
                self.tell(&remote, Event::Closed { socket });
            }
        }
    }
}

/// Addresses at which a socket bound to `addr` receives from other machines.
fn local_addresses(addr: SocketAddr) -> Vec<SocketAddr> {
    if !addr.ip().is_unspecified() {
        return vec![addr];
    }
    // Only a wildcard of IPv6 receives both.
    let far = FAR
        .into_iter()
        .filter(|far| addr.is_ipv6() || far.is_ipv4());
    far.filter_map(towards)
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
        .map(|ip| SocketAddr::new(ip, addr.port()))
        .collect()
}

/// Our address on the way to `far`.
fn towards(far: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match far {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
