//! The wires: what becomes of a datagram between two sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use quinn::{AsyncUdpSocket, Runtime, udp::EcnCodepoint};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{SeededEntropy, SimRuntime, SimSocket};

/// Datagrams that may be on the way to one socket; more are lost, as in a full socket buffer.
const MAX_ON_THE_WAY: usize = 4096;
/// Largest UDP payload that the wires carry, in bytes: Ethernet's MTU less the headers.
const MAX_PAYLOAD: usize = 1472;

/// How the wires behave, for all pairs of sockets alike.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkModel {
    /// One-way delay of a datagram, uniform in this range. A wide range reorders.
    pub latency: Range<Duration>,
    /// Share of datagrams that are lost, from 0 to 1.
    pub loss: f64,
}

/// 10 to 20 ms one way, nothing lost.
impl Default for LinkModel {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10)..Duration::from_millis(20),
            loss: 0.0,
        }
    }
}

/// A datagram that was just sent, for hooks.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// How many were sent before it, in the whole network.
    pub index: u64,
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
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
pub struct Net(Arc<Mutex<State>>);

struct State {
    start: Instant,
    link: LinkModel,
    rng: StdRng,
    hook: Option<Hook>,
    inboxes: BTreeMap<SocketAddr, Inbox>,
    /// Pairs that do not reach each other, both orders.
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
    sent: u64,
    trace: Sha256,
}

/// What is on the way to one socket, by arrival time and order of sending.
#[derive(Default)]
struct Inbox {
    on_the_way: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    reader: Option<Waker>,
}

/// A datagram at its destination.
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) payload: Vec<u8>,
}

/// What a socket finds when it looks for mail.
pub(crate) enum Mail {
    /// Datagrams, in order of arrival.
    Here(Vec<Arrival>),
    /// Nothing before this time, as far as is known now.
    At(Instant),
    /// Nothing on the way.
    Nothing,
}

impl Net {
    pub(crate) fn new(seed: u64, link: LinkModel) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            link,
            rng: StdRng::seed_from_u64(seed),
            hook: None,
            inboxes: BTreeMap::new(),
            cut: BTreeSet::new(),
            sent: 0,
            trace: Sha256::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A UDP socket at this address, until it is dropped. Fails if the address is taken.
    pub fn socket(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.state();
        if state.inboxes.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.inboxes.insert(addr, Inbox::default());
        Ok(Arc::new(SimSocket::new(addr, self.clone())))
    }

    /// The runtime to give to quinn.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(SimRuntime)
    }

    /// A source of random bytes for one node, seeded from the network's seed.
    pub fn entropy(&self) -> Arc<SeededEntropy> {
        Arc::new(SeededEntropy::new(self.state().rng.next_u64()))
    }

    /// Replaces the behaviour of the wires from now on.
    pub fn set_link(&self, link: LinkModel) {
        self.state().link = link;
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

    /// Loses everything between `a` and `b` from now on.
    pub fn partition(&self, a: SocketAddr, b: SocketAddr) {
        self.state().cut.extend([(a, b), (b, a)]);
    }

    /// Ends [`Net::partition`].
    pub fn heal(&self, a: SocketAddr, b: SocketAddr) {
        let mut state = self.state();
        state.cut.remove(&(a, b));
        state.cut.remove(&(b, a));
    }

    /// Sends a datagram as if from `from`, which need not exist: an attacker's. Hooks do not see it.
    pub fn inject(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        self.state().carry(from, to, None, Delivery::of(payload));
    }

    /// How many datagrams were sent.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// SHA-256 over (virtual time, from, to, size) of all datagrams sent so far.
    pub fn trace_hash(&self) -> [u8; 32] {
        self.state().trace.clone().finalize().into()
    }

    pub(crate) fn send(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        payload: &[u8],
    ) {
        let mut state = self.state();
        state.record(from, to, payload.len());
        let index = state.sent;
        state.sent += 1;
        let deliveries = match state.hook.as_mut() {
            Some(hook) => hook(Datagram {
                index,
                from,
                to,
                payload,
            }),
            None => vec![Delivery::of(payload)],
        };
        for delivery in deliveries {
            state.carry(from, to, ecn, delivery);
        }
    }

    /// Takes up to `max` datagrams that have arrived at `addr`, else leaves the waker for a change.
    pub(crate) fn take_mail(&self, addr: SocketAddr, max: usize, waker: &Waker) -> Mail {
        let now = Instant::now();
        let mut state = self.state();
        let Some(inbox) = state.inboxes.get_mut(&addr) else {
            return Mail::Nothing;
        };
        let mut here = Vec::new();
        while here.len() < max
            && let Some(first) = inbox.on_the_way.first_entry()
            && first.key().0 <= now
        {
            here.push(first.remove());
        }
        if !here.is_empty() {
            return Mail::Here(here);
        }
        inbox.reader = Some(waker.clone());
        inbox
            .on_the_way
            .first_key_value()
            .map_or(Mail::Nothing, |((at, _), _)| Mail::At(*at))
    }

    pub(crate) fn close(&self, addr: SocketAddr) {
        self.state().inboxes.remove(&addr);
    }
}

impl State {
    /// Adds a datagram to the trace.
    fn record(&mut self, from: SocketAddr, to: SocketAddr, size: usize) {
        let at = self.start.elapsed().as_nanos();
        self.trace.update(at.to_be_bytes());
        self.trace.update(format!(" {from} {to} {size}\n"));
    }

    /// Puts a datagram on the wire, where it may be lost.
    fn carry(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        delivery: Delivery,
    ) {
        // Drawn for every datagram, so that a cut or a full inbox does not shift later draws.
        let lost = self.rng.random_bool(self.link.loss);
        let latency = if self.link.latency.is_empty() {
            self.link.latency.start
        } else {
            self.rng.random_range(self.link.latency.clone())
        };
        if lost || delivery.payload.len() > MAX_PAYLOAD || self.cut.contains(&(from, to)) {
            return;
        }
        let Some(inbox) = self.inboxes.get_mut(&to) else {
            return;
        };
        if inbox.on_the_way.len() == MAX_ON_THE_WAY {
            return;
        }
        let key = (Instant::now() + latency + delivery.delay, inbox.sequence);
        inbox.sequence += 1;
        inbox.on_the_way.insert(
            key,
            Arrival {
                from,
                ecn,
                payload: delivery.payload,
            },
        );
        // The reader sleeps until what was the first arrival; tell it about an earlier one.
        if inbox
            .on_the_way
            .first_key_value()
            .is_some_and(|(first, _)| *first == key)
            && let Some(reader) = inbox.reader.take()
        {
            reader.wake();
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}
