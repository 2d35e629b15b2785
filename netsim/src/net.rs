//! The network: what becomes of a datagram between two sockets.

mod host;
mod inbox;
mod outage;
mod topology;
mod wire;
mod wires;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use quinn::{AsyncUdpSocket, Runtime, udp::EcnCodepoint};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

pub use host::Host;
pub(crate) use inbox::{Arrival, Mail};
pub use outage::Outage;
pub use topology::{GatewayId, Lan};
pub(crate) use topology::{HostId, SocketId};
pub use wire::{Bandwidth, Latency, LinkModel, Loss, Wire};

use crate::{
    SeededEntropy, SimRuntime,
    nat::{Firewall, NatModel, Sessions, Table},
};
use inbox::Inbox;
use topology::{Gateway, Kind, Reached, Topology};
use wires::{Trip, Wires};

/// Datagrams that may be on the way to all gateways together; more are lost.
const MAX_IN_TRANSIT: usize = 65_536;

/// A datagram that was just sent, for hooks.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// How many were sent before it, in the whole network.
    pub index: u64,
    /// The sender, as it sees itself.
    pub from: SocketAddr,
    /// The receiver, as the sender sees it.
    pub to: SocketAddr,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// What a hook lets arrive.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Delay on top of the wire's latency.
    pub delay: Duration,
}

impl Delivery {
    /// Arrives without more delay.
    pub fn of(payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            delay: Duration::ZERO,
        }
    }
}

/// Decides what arrives for a datagram: nothing, the same, something else, or several.
type Hook = Box<dyn FnMut(Datagram<'_>) -> Vec<Delivery> + Send>;

/// A simulated network. Clones are the same network.
#[derive(Clone)]
pub struct Net(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The earliest arrival at a gateway has changed.
    transit: Notify,
}

struct State {
    start: Instant,
    seed: u64,
    rng: StdRng,
    hook: Option<Hook>,
    topology: Topology,
    wires: Wires,
    inboxes: BTreeMap<SocketId, Inbox>,
    sockets: u64,
    /// Pairs of addresses that do not reach each other, both orders.
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Nothing arrives over the internet by IPv6.
    no_v6: bool,
    /// From which host to which host nothing arrives, and when.
    outages: BTreeMap<(HostId, HostId), Outage>,
    /// What is on the way to the outsides of gateways, by arrival and order of sending.
    transit: BTreeMap<(Instant, u64), Transit>,
    sequence: u64,
    sent: u64,
    trace: Sha256,
    /// The trace in words, if anybody wants it.
    journal: Option<Vec<String>>,
}

/// On the way to the outside of a gateway.
struct Transit {
    gateway: GatewayId,
    to: SocketAddr,
    arrival: Arrival,
}

impl Net {
    /// Must be called within a tokio runtime, which carries datagrams through gateways.
    pub(crate) fn new(seed: u64, wire: Wire) -> Self {
        let state = State {
            start: Instant::now(),
            seed,
            rng: StdRng::seed_from_u64(seed),
            hook: None,
            topology: Topology::new(),
            wires: Wires::new(wire),
            inboxes: BTreeMap::new(),
            sockets: 0,
            cut: BTreeSet::new(),
            no_v6: false,
            outages: BTreeMap::new(),
            transit: BTreeMap::new(),
            sequence: 0,
            sent: 0,
            trace: Sha256::new(),
            journal: None,
        };
        let net = Self(Arc::new(Shared {
            state: Mutex::new(state),
            transit: Notify::new(),
        }));
        tokio::spawn(net.clone().carry());
        net
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A UDP socket at this address of the internet, until it is dropped. Fails if the address is
    /// taken. The host is made if there is none with the IP address.
    pub fn socket(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.host_on_internet(addr.ip()).bind(addr.port())
    }

    /// The host with this address on the internet; a new one if there is none.
    pub fn host_on_internet(&self, ip: IpAddr) -> Host {
        let mut state = self.state();
        let topology = &mut state.topology;
        let id = topology
            .host_at(Lan::INTERNET, ip)
            .unwrap_or_else(|| topology.add_host(&[(Lan::INTERNET, ip)]));
        Host::new(self.clone(), id)
    }

    /// A host that is attached to these networks under these addresses. Its first address of a kind
    /// is its first choice.
    pub fn host(&self, attached: &[(Lan, IpAddr)]) -> Host {
        let id = self.state().topology.add_host(attached);
        Host::new(self.clone(), id)
    }

    /// A network without a way out.
    pub fn lan(&self) -> Lan {
        self.state().topology.add_lan()
    }

    /// Gives `inside` a way out, for addresses of the kind of `external`: a translator whose address
    /// in `outside` that is.
    pub fn nat(&self, inside: Lan, outside: Lan, external: IpAddr, model: NatModel) -> GatewayId {
        let mut state = self.state();
        // Not drawn from the network's chance: a NAT more must not change the losses of others.
        let seed = nat_seed(state.seed, state.topology.gateways.len());
        state.topology.add_gateway(Gateway {
            inside,
            outside,
            v6: external.is_ipv6(),
            kind: Kind::Nat(Box::new(Table::new(model, external, seed))),
        })
    }

    /// A new network with a translator to the internet.
    pub fn behind(&self, external: IpAddr, model: NatModel) -> Lan {
        let inside = self.lan();
        self.nat(inside, Lan::INTERNET, external, model);
        inside
    }

    /// Gives `inside` a way out for IPv6 or IPv4: a firewall, behind which hosts have addresses of
    /// `outside`.
    pub fn firewall(&self, inside: Lan, outside: Lan, v6: bool, rules: Firewall) -> GatewayId {
        self.state().topology.add_gateway(Gateway {
            inside,
            outside,
            v6,
            kind: Kind::Firewall(Sessions::new(rules)),
        })
    }

    /// Lets a gateway forget all that it knows, as one does that restarts.
    pub fn restart_gateway(&self, gateway: GatewayId) {
        match &mut self.state().topology.gateways[gateway.0].kind {
            Kind::Nat(table) => table.clear(),
            Kind::Firewall(sessions) => sessions.clear(),
        }
    }

    /// Mappings or sessions that a gateway holds.
    pub fn gateway_load(&self, gateway: GatewayId) -> usize {
        match &self.state().topology.gateways[gateway.0].kind {
            Kind::Nat(table) => table.len(Instant::now()),
            Kind::Firewall(sessions) => sessions.len(Instant::now()),
        }
    }

    /// The runtime to give to quinn.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(SimRuntime)
    }

    /// A source of random bytes for one node, seeded from the network's seed.
    pub fn entropy(&self) -> Arc<SeededEntropy> {
        Arc::new(SeededEntropy::new(self.state().rng.next_u64()))
    }

    /// Replaces the wire between all hosts that have none of their own, from now on.
    pub fn set_link(&self, wire: impl Into<Wire>) {
        self.state().wires.between_all = wire.into();
    }

    /// Replaces the wire from one host to another, from now on. One direction.
    pub fn set_wire(&self, from: &Host, to: &Host, wire: impl Into<Wire>) {
        let pair = (from.id(), to.id());
        self.state().wires.between.insert(pair, wire.into());
    }

    /// Puts a wire between a host and everything that it sends to, beyond the wire to the receiver.
    pub fn set_uplink(&self, host: &Host, wire: impl Into<Wire>) {
        self.state().wires.up.insert(host.id(), wire.into());
    }

    /// Puts a wire between a host and everything that is sent to it.
    pub fn set_downlink(&self, host: &Host, wire: impl Into<Wire>) {
        self.state().wires.down.insert(host.id(), wire.into());
    }

    /// Asks `hook` about each datagram from now on, before the loss and latency of the wires. The
    /// hook must not call into the network.
    pub fn set_hook(&self, hook: impl FnMut(Datagram<'_>) -> Vec<Delivery> + Send + 'static) {
        self.state().hook = Some(Box::new(hook));
    }

    /// Asks nobody any more.
    pub fn clear_hook(&self) {
        self.state().hook = None;
    }

    /// Sends a datagram on the internet as if from `from`, which need not exist: an attacker's. Hooks
    /// do not see it, nor does the trace.
    pub fn inject(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let mut state = self.state();
        let sender = state.topology.host_at(Lan::INTERNET, from.ip());
        let way = Way {
            sender,
            lan: Lan::INTERNET,
            from,
            to,
            ecn: None,
        };
        state.put_on_the_wire(way, &Delivery::of(payload), &self.0.transit);
    }

    /// How many datagrams were sent.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// SHA-256 over (virtual time, from, to, size, content) of all datagrams sent so far, and over
    /// all that was [`noted`](Net::note).
    pub fn trace_hash(&self) -> [u8; 32] {
        self.state().trace.clone().finalize().into()
    }

    /// Writes down from now on what is sent, and what is [`noted`](Net::note), a line each.
    pub fn keep_journal(&self) {
        self.state().journal.get_or_insert_default();
    }

    /// What was written down since it was taken last.
    pub fn take_journal(&self) -> Vec<String> {
        let mut state = self.state();
        state
            .journal
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Adds a line to the trace, and to the journal if one is kept.
    pub fn note(&self, what: &str) {
        let mut state = self.state();
        let at = state.start.elapsed();
        state.trace.update(at.as_nanos().to_be_bytes());
        state.trace.update(what);
        if let Some(journal) = &mut state.journal {
            journal.push(format!("{:.6} {what}", at.as_secs_f64()));
        }
    }

    pub(crate) fn local_addr(&self, host: HostId, port: u16, v6: bool) -> SocketAddr {
        self.state().topology.local_addr(host, port, v6)
    }

    /// Sends from a socket, if it is still there.
    pub(crate) fn send(&self, socket: SocketId, letter: Letter) {
        let mut state = self.state();
        let Some(inbox) = state.inboxes.get(&socket) else {
            return;
        };
        let (host, port) = (inbox.host, inbox.port);
        if state.topology.hosts[host.0].paused {
            if let Some(inbox) = state.inboxes.get_mut(&socket) {
                inbox.hold(letter);
            }
            return;
        }
        state.dispatch(host, port, letter, &self.0.transit);
    }

    /// Takes up to `max` datagrams that have arrived at a socket, else leaves the waker for a change.
    pub(crate) fn take_mail(&self, socket: SocketId, max: usize, waker: &Waker) -> Mail {
        let mut state = self.state();
        let state = &mut *state;
        let Some(inbox) = state.inboxes.get_mut(&socket) else {
            return Mail::Nothing;
        };
        let paused = state.topology.hosts[inbox.host.0].paused;
        inbox.take(max, waker, paused)
    }

    pub(crate) fn close(&self, socket: SocketId) {
        let mut state = self.state();
        if let Some(inbox) = state.inboxes.remove(&socket) {
            state.topology.hosts[inbox.host.0].ports.remove(&inbox.port);
        }
    }

    /// Takes what arrives at gateways onwards, for ever.
    async fn carry(self) {
        loop {
            let next = self.state().pass_gateways();
            let changed = self.0.transit.notified();
            match next {
                Some(at) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }
}

/// A datagram as its sender hands it in.
pub(crate) struct Letter {
    pub(crate) to: SocketAddr,
    /// Which of its addresses the sender wants to send from.
    pub(crate) source: Option<IpAddr>,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) payload: Vec<u8>,
}

/// Where a datagram comes from and goes to.
#[derive(Clone, Copy)]
struct Way {
    sender: Option<HostId>,
    lan: Lan,
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
}

impl State {
    /// Sends a datagram of a host: into the trace, past the hook, onto the wire.
    fn dispatch(&mut self, host: HostId, port: u16, letter: Letter, transit: &Notify) {
        let Letter {
            to,
            source,
            ecn,
            payload,
        } = letter;
        let owned = self.topology.source(host, to.ip(), source);
        let stale = source.is_some() && owned.map(|at| at.1) != source;
        // The system refuses both: nothing leaves the host.
        let Some((lan, ip)) = owned.filter(|_| !stale) else {
            return;
        };
        let from = SocketAddr::new(ip, port);
        self.record(from, to, &payload);
        let index = self.sent;
        self.sent += 1;
        let deliveries = match self.hook.as_mut() {
            Some(hook) => hook(Datagram {
                index,
                from,
                to,
                payload: &payload,
            }),
            None => vec![Delivery {
                payload,
                delay: Duration::ZERO,
            }],
        };
        let way = Way {
            sender: Some(host),
            lan,
            from,
            to,
            ecn,
        };
        for delivery in &deliveries {
            self.put_on_the_wire(way, delivery, transit);
        }
    }

    /// Adds a datagram to the trace.
    fn record(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let at = self.start.elapsed();
        let what = format!(" {from} {to} {}\n", payload.len());
        self.trace.update(at.as_nanos().to_be_bytes());
        self.trace.update(&what);
        // Chance that comes from the machine shows here first, in keys and connection ids.
        self.trace.update(payload);
        if let Some(journal) = &mut self.journal {
            journal.push(format!("{:.6}{}", at.as_secs_f64(), what.trim_end()));
        }
    }

    fn put_on_the_wire(&mut self, way: Way, delivery: &Delivery, transit: &Notify) {
        let now = Instant::now();
        let Way {
            sender, from, to, ..
        } = way;
        let reached = self.topology.outwards(now, way.lan, from, to);
        let (receiver, local) = match &reached {
            Some((Reached::Host { host, local }, _)) => (Some(*host), *local),
            Some((Reached::Gateway { gateway, .. }, _)) => {
                (self.topology.meant(*gateway, to), false)
            }
            None => (None, false),
        };
        // Drawn for every datagram, so that a cut or a full inbox does not shift later draws.
        let size = delivery.payload.len();
        let trip = self.wires.pass(
            &mut self.rng,
            now,
            Trip {
                sender,
                receiver,
                local,
                size,
                v6: to.is_ipv6(),
            },
        );
        let (Some(delays), Some((reached, seen_from))) = (trip, reached) else {
            return;
        };
        let dark = self.no_v6 && to.is_ipv6() && !local;
        if dark || self.cut.contains(&(from, to)) || self.is_out(sender, receiver, now) {
            return;
        }
        for delay in delays {
            let at = now + delay + delivery.delay;
            let arrival = Arrival {
                from: seen_from,
                to: to.ip(),
                ecn: way.ecn,
                payload: delivery.payload.clone(),
            };
            match reached {
                Reached::Host { host, .. } => self.deliver(host, to, at, arrival),
                Reached::Gateway { gateway, hairpin } => {
                    if hairpin && !self.topology.hairpins(gateway)
                        || self.transit.len() == MAX_IN_TRANSIT
                    {
                        return;
                    }
                    let item = Transit {
                        gateway,
                        to,
                        arrival,
                    };
                    self.transit.insert((at, self.sequence), item);
                    self.sequence += 1;
                    transit.notify_one();
                }
            }
        }
    }

    fn is_out(&self, from: Option<HostId>, to: Option<HostId>, now: Instant) -> bool {
        from.zip(to)
            .and_then(|pair| self.outages.get(&pair))
            .is_some_and(|outage| outage.is_on(now - self.start))
    }

    /// Takes inwards what has arrived at gateways; when the next will.
    fn pass_gateways(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(first) = self.transit.first_entry() {
            let at = first.key().0;
            if at > now {
                return Some(at);
            }
            let Transit {
                gateway,
                to,
                mut arrival,
            } = first.remove();
            let found = self.topology.inwards(now, gateway, arrival.from, to);
            if let Some((host, inside)) = found {
                arrival.to = inside.ip();
                self.deliver(host, inside, at, arrival);
            }
        }
        None
    }

    /// Puts a datagram into the inbox of the socket that it is for, if there is one.
    fn deliver(&mut self, host: HostId, to: SocketAddr, at: Instant, arrival: Arrival) {
        let socket = self.topology.hosts[host.0].ports.get(&to.port());
        if let Some(inbox) = socket.and_then(|socket| self.inboxes.get_mut(socket)) {
            inbox.put(at, arrival);
        }
    }
}

/// Chance of one translator, from the network's seed.
fn nat_seed(seed: u64, index: usize) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"nat");
    hash.update(seed.to_be_bytes());
    hash.update((index as u64).to_be_bytes());
    let hash = hash.finalize();
    u64::from_be_bytes(std::array::from_fn(|at| hash[at]))
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}
