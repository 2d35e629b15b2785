//! Who is behind which address: looked up for every packet, changed when a path does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::path::Route;
use quinn::AsyncUdpSocket;

use super::keys::{KeyId, ProbeKeys};
use super::label::{ConnId, canonical, label, mapped};
use super::remote::Remote;

/// Handshakes of peers, and dials that are over, that are remembered. One that is forgotten too early fails only if we dial the
/// same peer at the same time.
const MAX_ACCEPTED: usize = 2048;

/// The tables of a node's paths. All real addresses in here are in quinn's form.
pub(super) struct Table {
    /// Where to send what quinn sends to an address: virtual ones, and those of remotes.
    pub(super) labels: HashMap<SocketAddr, Target>,
    /// Whose packets come from an address.
    pub(super) sources: HashMap<SocketAddr, Source>,
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
    pub(super) remotes: BTreeMap<u64, Arc<Remote>>,
    /// Whom the packets of a node are from that come through relays.
    pub(super) relayed: BTreeMap<NodeId, Arc<Remote>>,
    /// Our sockets, the one in use last.
    pub(super) sockets: Vec<Socket>,
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
            relayed: BTreeMap::new(),
            sockets: vec![socket],
        }
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

    /// The remote that a node is dialled as.
    pub(super) fn dialled(&self, node: &NodeId) -> Option<&Arc<Remote>> {
        let target = self.labels.get(&super::virtual_addr(node))?;
        Some(&target.remote)
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
    pub(super) fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes
            .values()
            .filter(move |remote| remote.node == node)
    }

    /// A virtual address of the node that is not in use.
    pub(super) fn free_label(&self, node: &NodeId) -> SocketAddr {
        let used = |label: &SocketAddr| self.remotes.values().any(|remote| remote.label == *label);
        let mut labels = (2..=u16::MAX).map(|number| label(node, number));
        let free = labels.find(|label| !used(label));
        free.unwrap_or_else(|| label(node, u16::MAX))
    }

    /// Sends what goes to `from`, and all that goes to the remote's own label, over `route`.
    pub(super) fn use_route(&mut self, remote: &Arc<Remote>, route: Option<Route>) {
        for target in self.labels.values_mut() {
            if target.remote.id == remote.id {
                target.route = route;
            }
        }
        let addr = route.and_then(|route| route.addr()).map(mapped);
        for (from, source) in &mut self.sources {
            if source.remote.id == remote.id {
                source.in_use = Some(*from) == addr;
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
        let before = self.sources.insert(mapped(addr), source);
        before
            .map(|source| source.remote)
            .filter(|before| before.id != remote.id)
    }

    /// Whose packets come from an address.
    pub(super) fn owner(&self, addr: SocketAddr) -> Option<u64> {
        let source = self.sources.get(&mapped(addr))?;
        Some(source.remote.id)
    }

    /// Quinn sees the remote at its virtual address from now on.
    pub(super) fn set_moved(&mut self, remote: &Arc<Remote>, route: Option<Route>) {
        self.labels.entry(remote.label).or_insert_with(|| Target {
            remote: remote.clone(),
            route,
            dial: None,
        });
        for source in self.sources.values_mut() {
            if source.remote.id == remote.id {
                source.label = Some(remote.label);
            }
        }
    }

    /// `from` is found to be the same far end as `into`.
    pub(super) fn merge(&mut self, from: &Arc<Remote>, into: &Arc<Remote>, route: Option<Route>) {
        for target in self.labels.values_mut() {
            if target.remote.id == from.id {
                target.remote = into.clone();
                target.route = route;
            }
        }
        for source in self.sources.values_mut() {
            if source.remote.id == from.id {
                source.remote = into.clone();
                source.label = Some(into.label);
            }
        }
        for relayed in self.relayed.values_mut() {
            if relayed.id == from.id {
                *relayed = into.clone();
            }
        }
        self.remotes.remove(&from.id);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.labels.retain(|_, target| target.remote.id != id);
        self.sources.retain(|_, source| source.remote.id != id);
        self.dialled.retain(|_, remote| remote.id != id);
        self.relayed.retain(|_, remote| remote.id != id);
        self.remotes.remove(&id);
    }

    /// Ends what is known of an address, if it is the remote's and none of its ways uses it.
    pub(super) fn forget_source(&mut self, addr: SocketAddr, id: u64) {
        let addr = mapped(addr);
        if self
            .sources
            .get(&addr)
            .is_some_and(|source| source.remote.id == id)
        {
            self.sources.remove(&addr);
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
