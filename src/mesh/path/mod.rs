//! Paths to peers, below QUIC: whoever moves, is found behind a NAT or is reached through a relay stays
//! where it is for quinn.
//!
//! quinn dials a peer at an address that stands for its node id ([`virtual_addr`]) and sends to and
//! receives from there. [`PathSocket`](socket::PathSocket) translates: while a peer is dialled, to all
//! the addresses and relays it may be reached by at once; once it has answered, to the path that is
//! best. A peer that has dialled us stays at its true address until its path changes. Which path that
//! is, a machine of `meshwork_proto::path` decides for each peer (`prober` drives it) by probes that
//! only the two ends of a connection can make (`keys`).

mod bind;
mod callers;
mod dial;
mod keys;
mod label;
mod prober;
mod queue;
mod remote;
mod rotate;
mod socket;
mod stats;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::NodeId;
use meshwork_proto::path::{
    Event, MappingLifetime, PROBE_LEN, PathConfig, PeerPaths, Probe, Route as AnyRoute,
};
use quinn::AsyncUdpSocket;
use tokio::time::Instant;

pub(crate) use self::bind::Bound;
use self::label::destination_id;
pub(crate) use self::label::{is_virtual, virtual_addr};
use self::prober::Schedule;
use self::queue::Inbound;
pub(crate) use self::queue::RelayQueue;
use self::remote::Remote;
use self::socket::PathSocket;
use self::stats::Counters;
pub use self::stats::PathStats;
use self::table::{FIRST, Socket, Table, Target};
use crate::env::{BindSocket, FindAddresses};

/// Who was at an address, who was proven there since, and the address.
type Taken = (Arc<Remote>, Arc<Remote>, SocketAddr);

/// A way to a peer.
pub(crate) type Route = AnyRoute;

/// How long a remote without connection or dial is remembered: until the last packets of its
/// connection are through, or a dial begins for which a relay was named.
const LINGER: Duration = Duration::from_secs(30);
/// Relays that are remembered for a peer because they said so.
const MAX_NAMED: usize = 8;

/// The paths of a node.
pub(crate) struct Paths {
    local: NodeId,
    config: PathConfig,
    bind: BindSocket,
    addresses: FindAddresses,
    started: Instant,
    /// The number of the next remote.
    next_id: AtomicU64,
    table: RwLock<Table>,
    /// Which socket is looked at first.
    turn: AtomicUsize,
    inbound: Inbound,
    relay_queue: RelayQueue,
    schedule: Schedule,
    counters: Counters,
    lifetime: Mutex<MappingLifetime>,
    rotation: Mutex<rotate::Rotation>,
    /// A peer has seen our address change, and the others are not looked at for it so far.
    remapped: AtomicBool,
    last_remap: Mutex<Option<Duration>>,
    /// What is still to be seen to.
    taken: Mutex<Vec<Taken>>,
    /// The second in which [`LINGER`] was looked at last.
    last_expiry: AtomicU64,
}

impl Paths {
    /// Paths from `socket`, and from others that `bind` opens when that one is worn out. `addresses`
    /// tells where the machine is.
    pub(crate) fn new(
        local: NodeId,
        socket: Arc<dyn AsyncUdpSocket>,
        bind: BindSocket,
        addresses: FindAddresses,
        config: PathConfig,
    ) -> io::Result<Arc<Self>> {
        let socket = Socket::new(FIRST, socket)?;
        let rotation = rotate::Rotation::new(&socket, &addresses)?;
        Ok(Arc::new(Self {
            local,
            config,
            bind,
            addresses,
            started: Instant::now(),
            next_id: AtomicU64::new(1),
            table: RwLock::new(Table::new(socket)),
            turn: AtomicUsize::new(0),
            inbound: Inbound::default(),
            relay_queue: RelayQueue::default(),
            schedule: Schedule::default(),
            counters: Counters::default(),
            lifetime: Mutex::default(),
            rotation: Mutex::new(rotation),
            remapped: AtomicBool::new(false),
            last_remap: Mutex::default(),
            taken: Mutex::default(),
            last_expiry: AtomicU64::new(0),
        }))
    }

    /// The socket for quinn. All of them are the same one.
    pub(crate) fn socket(self: &Arc<Self>) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(PathSocket(self.clone()))
    }

    /// The peer may be at these addresses: pings them a few times, and uses one that answers if it is
    /// better.
    #[cfg(test)]
    pub(crate) fn candidates(&self, peer: NodeId, addrs: &[SocketAddr]) {
        let remote = self.primary(&peer).unwrap_or_else(|| self.base(peer));
        let mut state = remote.state();
        state.add_candidates(addrs);
        if state.is_bound() {
            self.handle(&remote, &mut state, Event::Offered(addrs));
        }
        self.refresh_dial(&remote, &state);
    }

    /// Opens the NATs between us and the peer, which does the same now: pings these addresses for
    /// 5 s. A way that answers is used, which [`Paths::route`] shows.
    pub(crate) fn punch(&self, peer: NodeId, addrs: &[SocketAddr]) {
        if let Some(remote) = self.primary(&peer) {
            self.tell(&remote, Event::Punch(addrs));
        }
    }

    /// The relay is linked with us and with the peer.
    pub(crate) fn add_relay(&self, peer: NodeId, relay: NodeId) {
        let base = self.base(peer);
        let bound: Vec<Arc<Remote>> = self.table().of_node(peer).cloned().collect();
        for remote in bound {
            let mut state = remote.state();
            if remote.id == base.id || state.is_bound() {
                state.relays.insert(relay);
            }
            if state.is_bound() {
                self.handle(&remote, &mut state, Event::RelayUp(relay));
            }
            self.refresh_dial(&remote, &state);
        }
    }

    /// The relay is not linked with us any more.
    pub(crate) fn remove_relay(&self, relay: NodeId) {
        let remotes = self.table().all();
        for remote in remotes {
            let mut state = remote.state();
            state.relays.remove(&relay);
            self.handle(&remote, &mut state, Event::RelayDown(relay));
            self.refresh_dial(&remote, &state);
        }
    }

    /// Packets that are to go through relays.
    pub(crate) fn relay_queue(&self) -> &RelayQueue {
        &self.relay_queue
    }

    /// Takes a packet of `src` that came through the relay `via`.
    pub(crate) fn inject(&self, src: NodeId, via: NodeId, packet: &[u8]) {
        let route = Route::Relay(via);
        if Probe::looks_like_one(packet) {
            return match <&[u8; PROBE_LEN]>::try_from(packet) {
                Ok(probe) => self.take_probe(route, probe),
                Err(_) => Counters::add(&self.counters.unknown_probes),
            };
        }
        let Some(remote) = self.sender(src, via, packet) else {
            return Counters::add(&self.counters.unroutable);
        };
        let in_use = {
            let table = self.table();
            let target = table.target(&remote.label);
            target.is_some_and(|target| target.route == Some(route))
        };
        if remote.note_received(in_use) {
            self.activate(remote.id);
        }
        if self
            .inbound
            .push(remote.label, Bytes::copy_from_slice(packet))
        {
            Counters::add(&self.counters.inbound_queue_full);
        }
    }

    /// Whose packet a relay has brought: that of a dial, of a connection, or of a new caller.
    fn sender(&self, src: NodeId, via: NodeId, packet: &[u8]) -> Option<Arc<Remote>> {
        let route = Route::Relay(via);
        let (dialled, known) = {
            let table = self.table();
            let dialled = destination_id(packet).and_then(|id| table.dialled.get(&id).cloned());
            let known = table.relayed.get(&src).or_else(|| table.dialled(&src));
            (dialled.filter(|remote| remote.node == src), known.cloned())
        };
        if let Some(remote) = dialled {
            self.answered(&remote, route);
            return Some(remote);
        }
        let remote = match known {
            Some(remote) => remote,
            None if !self.table().callers.admits(&via) => return None,
            None => {
                let remote = self.base(src);
                self.table_mut().callers.add(remote.id, via);
                remote
            }
        };
        self.called(&remote, via).then_some(remote)
    }

    /// A relay says that a packet is from this remote. Whether it may be: of whom we know for certain,
    /// only what comes after a probe over this relay.
    fn called(&self, remote: &Arc<Remote>, via: NodeId) -> bool {
        let route = Route::Relay(via);
        let mut state = remote.state();
        if state.is_bound() {
            return state.moved;
        }
        state.expires = Some(self.now() + LINGER);
        state.called = Some(route);
        if state.dials == 0 {
            self.table_mut().use_route(remote, Some(route));
        } else if state.relays.len() < MAX_NAMED && state.relays.insert(via) {
            // Our own dial goes where it did, and there, too, until an answer proves one way.
            self.refresh_dial(remote, &state);
        }
        true
    }

    /// The way to a peer that is in use.
    pub(crate) fn route(&self, peer: &NodeId) -> Option<Route> {
        let remote = self.primary(peer)?;
        remote.state().machine.chosen()
    }

    /// How the peers see our socket.
    pub(crate) fn reflexive(&self) -> Vec<(NodeId, SocketAddr)> {
        let remotes = self.table().all();
        let observed = |remote: &Arc<Remote>| {
            let seen = remote.state().observed?;
            Some((remote.node, seen))
        };
        remotes.iter().filter_map(observed).collect()
    }

    /// What was counted since the node was started.
    pub(crate) fn stats(&self) -> PathStats {
        self.counters.snapshot()
    }

    /// The far end of the connections that count with a peer: the one we dialled, or the newest that
    /// has dialled us.
    fn primary(&self, peer: &NodeId) -> Option<Arc<Remote>> {
        let (base, all) = {
            let table = self.table();
            let all: Vec<Arc<Remote>> = table.of_node(*peer).cloned().collect();
            (table.dialled(peer).cloned(), all)
        };
        let bound = |remote: &Arc<Remote>| remote.state().is_bound();
        base.filter(bound)
            .or_else(|| all.into_iter().rev().find(bound))
    }

    /// The remote that a node is dialled as, and that it is when it calls through a relay.
    fn base(&self, peer: NodeId) -> Arc<Remote> {
        let label = virtual_addr(&peer);
        if let Some(target) = self.table().target(&label) {
            return target.remote.clone();
        }
        let remote = self.new_remote(peer, label);
        {
            let mut state = remote.state();
            state.moved = true;
            state.expires = Some(self.now() + LINGER);
        }
        let mut table = self.table_mut();
        // Another thread may have been faster.
        if let Some(target) = table.target(&label) {
            return target.remote.clone();
        }
        table.set_target(label, Target::new(&remote, None));
        table.add_remote(&remote);
        remote
    }

    fn new_remote(&self, node: NodeId, label: SocketAddr) -> Arc<Remote> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Remote::new(id, node, label, self.machine(&node)))
    }

    /// The machine of a peer of which nothing is known.
    fn machine(&self, peer: &NodeId) -> PeerPaths {
        let socket = self.table().current().number;
        PeerPaths::new(self.config.clone(), self.local < *peer, socket)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lifetime(&self) -> MutexGuard<'_, MappingLifetime> {
        self.lifetime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}
