//! Hosts, as tests handle them.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use quinn::AsyncUdpSocket;

use super::{HostId, Lan, Net, SocketId, inbox::Inbox};
use crate::SimSocket;

/// A machine in the network. Clones are the same machine.
#[derive(Clone)]
pub struct Host {
    net: Net,
    id: HostId,
}

impl Host {
    pub(super) fn new(net: Net, id: HostId) -> Self {
        Self { net, id }
    }

    pub(super) fn id(&self) -> HostId {
        self.id
    }

    /// A UDP socket on this port (0: any free one), until it is dropped. Fails if the port is taken.
    ///
    /// It is bound to no particular address, and so keeps working when the host moves. If the host
    /// has an IPv6 address now, the socket is one for both kinds, and shows IPv4 addresses mapped
    /// into IPv6 ones (RFC 4291 §2.5.5.2), as Linux does.
    pub fn bind(&self, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.net.state();
        let port = match port {
            0 => state
                .topology
                .free_port(self.id)
                .ok_or(io::ErrorKind::AddrInUse)?,
            port => port,
        };
        let id = SocketId(state.sockets);
        let host = &mut state.topology.hosts[self.id.0];
        if host.ports.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        host.ports.insert(port, id);
        let v6 = host.attached.iter().any(|(_, ip)| ip.is_ipv6());
        state.sockets += 1;
        state.inboxes.insert(id, Inbox::new(self.id, port));
        drop(state);
        let place = crate::socket::Place {
            socket: id,
            host: self.id,
            port,
            v6,
        };
        Ok(Arc::new(SimSocket::new(place, self.net.clone())))
    }

    /// Its addresses, in the networks that it is attached to.
    pub fn attached(&self) -> Vec<(Lan, IpAddr)> {
        self.net.state().topology.hosts[self.id.0].attached.clone()
    }

    /// Its addresses with this port.
    pub fn addrs(&self, port: u16) -> Vec<SocketAddr> {
        let with_port = |(_, ip)| SocketAddr::new(ip, port);
        self.attached().into_iter().map(with_port).collect()
    }

    /// Moves the host: it has these addresses in these networks, and no others. Sockets stay.
    pub fn move_to(&self, attached: &[(Lan, IpAddr)]) {
        self.net.state().topology.attach(self.id, attached);
    }

    /// Takes the sockets from whoever holds them, as when the process or the machine dies: their
    /// ports are free, and what is sent or was on the way over them is lost.
    pub fn crash(&self) {
        let mut state = self.net.state();
        let sockets = std::mem::take(&mut state.topology.hosts[self.id.0].ports);
        for socket in sockets.values() {
            state.inboxes.remove(socket);
        }
    }

    /// Neither sends nor gets anything until [`Host::resume`]. What arrives until then, it gets then,
    /// and what it sends until then, it sends then.
    pub fn pause(&self) {
        self.net.state().topology.hosts[self.id.0].paused = true;
    }

    /// Ends [`Host::pause`].
    pub fn resume(&self) {
        let mut state = self.net.state();
        let state = &mut *state;
        let host = &mut state.topology.hosts[self.id.0];
        host.paused = false;
        let sockets: Vec<_> = host.ports.iter().map(|(port, id)| (*port, *id)).collect();
        for (port, id) in sockets {
            let Some(inbox) = state.inboxes.get_mut(&id) else {
                continue;
            };
            inbox.wake();
            for letter in inbox.take_held() {
                state.dispatch(self.id, port, letter, &self.net.0.transit);
            }
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.id.0).finish()
    }
}
