//! Who is behind which address: looked up for every packet, changed when a path does.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::path::{MAX_SPREAD, Route};
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;

use super::callers::Callers;
use super::keys::{KeyId, ProbeKeys};
use super::label::{ConnId, canonical, label, mapped};
use super::remote::Remote;

/// Handshakes of peers, and dials that are over, that are remembered. One that is forgotten too early
/// fails only if we dial the same peer at the same time.
const MAX_ACCEPTED: usize = 2048;

/// Number of the socket that the node was started with.
pub(super) const FIRST: u8 = 0;
/// Callers at old sockets that are remembered. One that is forgotten in its handshake is answered from
/// another port.
const MAX_STRANGERS: usize = 256;
/// Packets that go over other ways, too, in one doubt: what QUIC sends before it waits for an answer,
/// and its repeats.
const MAX_SPREAD_PACKETS: u32 = 256;

/// The tables of a node's paths. All real addresses in here are in quinn's form.
pub(super) struct Table {
    /// Where to send what quinn sends to an address: virtual ones, and those of remotes.
    labels: HashMap<SocketAddr, Target>,
    /// Whose packets come from an address.
    sources: HashMap<SocketAddr, Source>,
    /// Dials under way or just over, by the connection ids that the answers go to.
    pub(super) dialled: HashMap<ConnId, Arc<Remote>>,
    /// Those that are over, and since when.
    dialled_until: VecDeque<(Duration, ConnId)>,
    /// Handshakes that peers have begun with us, by the connection ids that their packets go to, and
    /// where they are: quinn lets none of them move before it is done.
    pub(super) accepted: HashMap<ConnId, SocketAddr>,
    /// The same by age.
    accepted_since: VecDeque<(Duration, ConnId)>,
    /// Keys of probes that we accept.
    pub(super) keys: HashMap<KeyId, Arc<ProbeKeys>>,
    remotes: BTreeMap<u64, Arc<Remote>>,
    /// What of the above is each remote's, by its number.
    owned: BTreeMap<u64, Owned>,
    /// The numbers of the remotes of each node.
    nodes: BTreeMap<NodeId, BTreeSet<u64>>,
    /// Who is known through relays alone.
    pub(super) callers: Callers,
    /// Whom the packets of a node are from that come through relays.
    pub(super) relayed: BTreeMap<NodeId, Arc<Remote>>,
    /// Our sockets, the one in use last.
    pub(super) sockets: Vec<Socket>,
    /// Who has called at another socket than the one in use, which must be the one that answers.
    strangers: HashMap<SocketAddr, u8>,
    /// The same by age.
    strangers_since: VecDeque<SocketAddr>,
}

/// What belongs to a remote.
#[derive(Debug, Default)]
struct Owned {
    labels: BTreeSet<SocketAddr>,
    sources: BTreeSet<SocketAddr>,
}

/// One of our sockets.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) number: u8,
    pub(super) io: Arc<dyn AsyncUdpSocket>,
    /// Whether it is one of IPv4 alone, which wants addresses as they are.
    pub(super) v4: bool,
}

/// Where packets for a remote go.
pub(super) struct Target {
    pub(super) remote: Arc<Remote>,
    /// The way in use.
    pub(super) route: Option<Route>,
    /// While it is dialled.
    pub(super) dial: Option<Dialling>,
    /// While the way in use is in doubt.
    pub(super) spread: Option<Spread>,
}

/// Other ways that packets go over, too.
pub(super) struct Spread {
    pub(super) over: [Option<Route>; MAX_SPREAD],
    /// For so many more packets.
    left: AtomicU32,
}

impl Spread {
    /// Whether another packet goes over all of them.
    pub(super) fn takes_one(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.left.fetch_update(set, fetch, less).is_ok()
    }
}

/// A dial goes everywhere until an answer comes, and then where that came from.
pub(super) struct Dialling {
    pub(super) all: Arc<[Route]>,
    pub(super) answered: Option<Route>,
}

/// Whose packets come from an address.
pub(super) struct Source {
    pub(super) remote: Arc<Remote>,
    /// The address that quinn is to see, if it is not the true one.
    pub(super) label: Option<SocketAddr>,
    /// Whether it is the remote's way in use.
    pub(super) in_use: bool,
}

impl Table {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            labels: HashMap::new(),
            sources: HashMap::new(),
            dialled: HashMap::new(),
            dialled_until: VecDeque::new(),
            accepted: HashMap::new(),
            accepted_since: VecDeque::new(),
            keys: HashMap::new(),
            remotes: BTreeMap::new(),
            owned: BTreeMap::new(),
            nodes: BTreeMap::new(),
            callers: Callers::default(),
            relayed: BTreeMap::new(),
            sockets: vec![socket],
            strangers: HashMap::new(),
            strangers_since: VecDeque::new(),
        }
    }

    /// Whether it is news that somebody begins a handshake at this socket.
    pub(super) fn is_stranger(&self, from: &SocketAddr, socket: u8) -> bool {
        let noted = self.strangers.get(from).copied();
        noted.unwrap_or(self.current().number) != socket
    }

    /// Somebody begins a handshake at this socket.
    pub(super) fn note_stranger(&mut self, from: SocketAddr, socket: u8) {
        if self.strangers.insert(from, socket).is_none() {
            self.strangers_since.push_back(from);
        }
        if self.strangers_since.len() > MAX_STRANGERS
            && let Some(oldest) = self.strangers_since.pop_front()
        {
            self.strangers.remove(&oldest);
        }
    }

    /// The number of the socket that answers whoever has called from this address.
    pub(super) fn called_at(&self, from: &SocketAddr) -> u8 {
        let noted = self.strangers.get(from).map(|number| self.socket(*number));
        noted.unwrap_or(self.current()).number
    }

    /// The socket that new packets go out of.
    pub(super) fn current(&self) -> &Socket {
        self.sockets.last().expect("the one in use is never closed")
    }

    /// The socket of this number, or the one in use.
    pub(super) fn socket(&self, number: u8) -> &Socket {
        let mut sockets = self.sockets.iter();
        let found = sockets.find(|socket| socket.number == number);
        found.unwrap_or_else(|| self.current())
    }

    /// Sends from the socket of this number to `addr`. quinn waits for room in the socket in use only:
    /// what another one has no room for is a loss, or quinn would try again without end.
    pub(super) fn send(
        &self,
        number: u8,
        addr: SocketAddr,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        let socket = self.socket(number);
        match socket.send(addr, transmit) {
            Err(_) if socket.number != self.current().number => Ok(()),
            sent => sent,
        }
    }

    /// The remote that a node is dialled as.
    pub(super) fn dialled(&self, node: &NodeId) -> Option<&Arc<Remote>> {
        let target = self.target(&super::virtual_addr(node))?;
        Some(&target.remote)
    }

    /// Where to send what quinn sends to an address.
    pub(super) fn target(&self, addr: &SocketAddr) -> Option<&Target> {
        self.labels.get(addr)
    }

    pub(super) fn target_mut(&mut self, addr: &SocketAddr) -> Option<&mut Target> {
        self.labels.get_mut(addr)
    }

    /// What quinn sends to `addr` goes to this target from now on.
    pub(super) fn set_target(&mut self, addr: SocketAddr, target: Target) {
        let id = target.remote.id;
        if let Some(before) = self.labels.insert(addr, target)
            && let Some(owned) = self.owned.get_mut(&before.remote.id)
        {
            owned.labels.remove(&addr);
        }
        self.owned.entry(id).or_default().labels.insert(addr);
    }

    /// Whose packets come from an address.
    pub(super) fn source(&self, addr: &SocketAddr) -> Option<&Source> {
        self.sources.get(addr)
    }

    pub(super) fn remote(&self, id: u64) -> Option<&Arc<Remote>> {
        self.remotes.get(&id)
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Remote>> {
        self.remotes.values().cloned().collect()
    }

    pub(super) fn add_remote(&mut self, remote: &Arc<Remote>) {
        self.remotes.insert(remote.id, remote.clone());
        self.nodes.entry(remote.node).or_default().insert(remote.id);
    }

    /// A dial with these connection ids is over.
    pub(super) fn end_dial(&mut self, ids: Vec<ConnId>, now: Duration) {
        self.dialled_until
            .extend(ids.into_iter().map(|id| (now, id)));
        while self.dialled_until.len() > MAX_ACCEPTED {
            self.forget_dialled();
        }
    }

    /// Forgets the dial that was over first.
    fn forget_dialled(&mut self) {
        if let Some((_, id)) = self.dialled_until.pop_front() {
            self.dialled.remove(&id);
        }
    }

    /// A peer at `from` has begun a handshake, and sends to this connection id.
    pub(super) fn accept(&mut self, id: ConnId, from: SocketAddr, now: Duration) {
        if self.accepted.insert(id, from).is_none() {
            self.accepted_since.push_back((now, id));
        }
        if self.accepted_since.len() > MAX_ACCEPTED {
            self.forget_handshakes(Duration::ZERO);
        }
    }

    /// Forgets handshakes that a peer began, and dials that were over, before `until`; and the oldest
    /// of too many.
    pub(super) fn forget_handshakes(&mut self, until: Duration) {
        while self
            .dialled_until
            .front()
            .is_some_and(|(at, _)| *at < until)
        {
            self.forget_dialled();
        }
        while let Some((since, id)) = self.accepted_since.front()
            && (*since < until || self.accepted_since.len() > MAX_ACCEPTED)
        {
            self.accepted.remove(id);
            self.accepted_since.pop_front();
        }
    }

    /// All remotes of a node, the oldest first.
    pub(super) fn of_node(&self, node: NodeId) -> impl DoubleEndedIterator<Item = &Arc<Remote>> {
        let ids = self.nodes.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.remotes.get(id))
    }

    /// A virtual address of the node that is not in use.
    pub(super) fn free_label(&self, node: &NodeId) -> SocketAddr {
        let used = |label: &SocketAddr| self.of_node(*node).any(|remote| remote.label == *label);
        let mut labels = (2..=u16::MAX).map(|number| label(node, number));
        let free = labels.find(|label| !used(label));
        free.unwrap_or_else(|| label(node, u16::MAX))
    }

    /// Sends what goes to the remote over `route`.
    pub(super) fn use_route(&mut self, remote: &Remote, route: Option<Route>) {
        self.each_target(remote.id, |target| target.route = route);
        let addr = route.and_then(|route| route.addr()).map(mapped);
        self.each_source(remote.id, |from, source| {
            source.in_use = Some(from) == addr;
        });
    }

    /// Packets for the remote go over these ways, too, until the doubt ends that this is for.
    pub(super) fn spread(&mut self, remote: &Remote, over: [Option<Route>; MAX_SPREAD]) {
        let wanted = over.iter().any(Option::is_some);
        self.each_target(remote.id, |target| {
            let before = target.spread.take();
            let left = before.map_or(MAX_SPREAD_PACKETS, |spread| spread.left.into_inner());
            let left = AtomicU32::new(left);
            target.spread = wanted.then_some(Spread { over, left });
        });
    }

    fn each_target(&mut self, id: u64, mut change: impl FnMut(&mut Target)) {
        let owned = self.owned.get(&id);
        for label in owned.into_iter().flat_map(|owned| &owned.labels) {
            if let Some(target) = self.labels.get_mut(label) {
                change(target);
            }
        }
    }

    fn each_source(&mut self, id: u64, mut change: impl FnMut(SocketAddr, &mut Source)) {
        let owned = self.owned.get(&id);
        for from in owned.into_iter().flat_map(|owned| &owned.sources) {
            if let Some(source) = self.sources.get_mut(from) {
                change(*from, source);
            }
        }
    }

    /// Packets from `addr` are the remote's from now on. Who had the address before is returned, if
    /// it was another one.
    pub(super) fn set_source(
        &mut self,
        addr: SocketAddr,
        remote: &Arc<Remote>,
        moved: bool,
    ) -> Option<Arc<Remote>> {
        let source = Source {
            remote: remote.clone(),
            label: moved.then_some(remote.label),
            in_use: false,
        };
        let addr = mapped(addr);
        let before = self.sources.insert(addr, source);
        let before = before
            .map(|source| source.remote)
            .filter(|before| before.id != remote.id);
        if let Some(before) = &before
            && let Some(owned) = self.owned.get_mut(&before.id)
        {
            owned.sources.remove(&addr);
        }
        self.owned
            .entry(remote.id)
            .or_default()
            .sources
            .insert(addr);
        before
    }

    /// Whose packets come from an address.
    pub(super) fn owner(&self, addr: SocketAddr) -> Option<u64> {
        let source = self.sources.get(&mapped(addr))?;
        Some(source.remote.id)
    }

    /// Quinn sees the remote at its virtual address from now on.
    pub(super) fn set_moved(&mut self, remote: &Arc<Remote>, route: Option<Route>) {
        if !self.labels.contains_key(&remote.label) {
            self.set_target(remote.label, Target::new(remote, route));
        }
        self.each_source(remote.id, |_, source| source.label = Some(remote.label));
    }

    /// `from` is found to be the same far end as `into`.
    pub(super) fn merge(&mut self, from: &Arc<Remote>, into: &Arc<Remote>, route: Option<Route>) {
        self.each_target(from.id, |target| {
            target.remote = into.clone();
            target.route = route;
            target.spread = None;
        });
        self.each_source(from.id, |_, source| {
            source.remote = into.clone();
            source.label = Some(into.label);
        });
        let theirs = self.owned.remove(&from.id).unwrap_or_default();
        let owned = self.owned.entry(into.id).or_default();
        owned.labels.extend(theirs.labels);
        owned.sources.extend(theirs.sources);
        if let Some(relayed) = self.relayed.get_mut(&from.node)
            && relayed.id == from.id
        {
            *relayed = into.clone();
        }
        self.forget_remote(from.id);
    }

    /// Ends all that is known of a remote.
    pub(super) fn remove(&mut self, id: u64) {
        self.forget_sources(id);
        let owned = self.owned.remove(&id).unwrap_or_default();
        for label in owned.labels {
            self.labels.remove(&label);
        }
        self.dialled.retain(|_, remote| remote.id != id);
        if let Some(remote) = self.forget_remote(id)
            && self
                .relayed
                .get(&remote.node)
                .is_some_and(|relayed| relayed.id == id)
        {
            self.relayed.remove(&remote.node);
        }
    }

    fn forget_remote(&mut self, id: u64) -> Option<Arc<Remote>> {
        self.callers.remove(id);
        let remote = self.remotes.remove(&id)?;
        if let Some(ids) = self.nodes.get_mut(&remote.node) {
            ids.remove(&id);
            if ids.is_empty() {
                self.nodes.remove(&remote.node);
            }
        }
        Some(remote)
    }

    /// Whoever comes from where the remote was is somebody new.
    pub(super) fn forget_sources(&mut self, id: u64) {
        let Some(owned) = self.owned.get_mut(&id) else {
            return;
        };
        for from in std::mem::take(&mut owned.sources) {
            self.sources.remove(&from);
        }
    }

    /// Ends what is known of an address, if it is the remote's and none of its ways uses it.
    pub(super) fn forget_source(&mut self, addr: SocketAddr, id: u64) {
        let addr = mapped(addr);
        if let Some(owned) = self.owned.get_mut(&id)
            && owned.sources.remove(&addr)
        {
            self.sources.remove(&addr);
        }
    }

    /// How much is remembered: all of it is 0 when nothing is.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 9] {
        [
            self.labels.len(),
            self.sources.len(),
            self.dialled.len(),
            self.accepted.len(),
            self.keys.len(),
            self.remotes.len(),
            self.relayed.len(),
            self.owned.len(),
            self.nodes.len(),
        ]
    }
}

impl Target {
    /// One that is not dialled.
    pub(super) fn new(remote: &Arc<Remote>, route: Option<Route>) -> Self {
        Self {
            remote: remote.clone(),
            route,
            dial: None,
            spread: None,
        }
    }
}

impl Socket {
    pub(super) fn new(number: u8, io: Arc<dyn AsyncUdpSocket>) -> std::io::Result<Self> {
        let v4 = io.local_addr()?.is_ipv4();
        Ok(Self { number, io, v4 })
    }

    /// The address in the form that the system wants on this socket. IPv6 on a socket of IPv4 does
    /// not go anywhere.
    pub(super) fn address(&self, addr: SocketAddr) -> Option<SocketAddr> {
        if !self.v4 {
            return Some(mapped(addr));
        }
        Some(canonical(addr)).filter(SocketAddr::is_ipv4)
    }
}
