//! The simulation: events are taken in order, machines are fed, what they want is done.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use meshwork_proto::membership::{
    Action, Input, Key, Lane, Membership, MembershipConfig, Message, Moment,
};

use super::book::Book;
use super::exact::{Exact, Town};
use super::ledger::{Fact, Light};
use super::link::{Conns, End, Wire, micros};
use super::node::Node;
use super::number::{action_number, input_number};
use super::queue::Queue;
use super::rng::Rng;
use super::slab::Slab;
use super::spec::{LedgerKind, Lie, SwarmSpec};
use super::store::{Store, View};
use super::trace::Tracer;
use super::traffic::{Dialling, Flight};
use super::watch::Watches;

/// A swarm while it runs.
#[derive(Debug)]
pub(super) struct Sim<'t> {
    pub(super) spec: SwarmSpec,
    pub(super) queue: Queue<Event>,
    pub(super) nodes: Vec<Node>,
    pub(super) conns: Conns,
    pub(super) wire: Wire,
    pub(super) book: Book,
    pub(super) flights: Slab<Flight>,
    pub(super) dials: Slab<Dialling>,
    /// Chance on the wires.
    pub(super) luck: Rng,
    /// Chance in the script.
    pub(super) fate: Rng,
    /// By node: on which side of each partition it is.
    pub(super) sides: Vec<u64>,
    pub(super) partitions: u32,
    pub(super) muted: Vec<bool>,
    pub(super) deaf: Vec<bool>,
    pub(super) trace: Tracer<'t>,
    pub(super) watches: Watches,
    pub(super) end: u64,
    pub(super) quiet_from: u64,
    pub(super) events: u64,
    pub(super) broken: Vec<String>,
    pub(super) config: MembershipConfig,
    /// Neighbours that did not hold each other when the end was looked at first.
    pub(super) lopsided: Vec<(u32, u32)>,
    /// Renewals planned so far; a node minds only its last one.
    pub(super) plans: u64,
    pub(super) inputs: VecDeque<(u32, Input<u32>)>,
    actions: Vec<Action<u32>>,
}

/// What is due.
#[derive(Debug)]
pub(super) enum Event {
    /// A node's machine wants to be woken.
    Timer {
        node: u32,
        life: u32,
    },
    /// A datagram arrives at an end.
    Datagram {
        end: End,
        message: Message<u32>,
    },
    /// What waits in a lane is sent.
    Flush {
        end: End,
    },
    /// A call or its answer arrives, or is sent again.
    Landing {
        flight: u32,
    },
    Again {
        flight: u32,
    },
    /// The next flight of a handshake.
    Dial {
        dial: u32,
    },
    /// An end looks after its connection.
    Keep {
        end: End,
    },
    /// A keep-alive packet or its acknowledgement arrives.
    Beep {
        end: End,
        reply: bool,
    },
    /// The other end's close arrives.
    Closed {
        end: End,
    },
    /// A slow or stalled node comes to what it got.
    Late {
        node: u32,
        life: u32,
        work: Box<Work>,
    },
    Stall {
        node: u32,
    },
    /// A node's announcement is to be renewed.
    Renew {
        node: u32,
        planned: u64,
    },
    /// A driver keeps its peer cache, and calls on a lost peer.
    Rejoin {
        node: u32,
        life: u32,
    },
    /// A version of a node holds no longer.
    Expire {
        node: u32,
        version: u32,
    },
    /// A process begins.
    Begin {
        node: u32,
    },
    /// A process that said good-bye ends.
    End {
        node: u32,
        life: u32,
    },
    /// The n-th step of the script.
    Step {
        step: usize,
    },
    Lie {
        node: u32,
        lie: Lie,
    },
    /// It is looked at whether all agree again.
    Look,
    WarmedUp,
    /// The end is looked at for the first time.
    Review,
}

/// Something that a node handles.
#[derive(Debug)]
pub(super) enum Work {
    Timer,
    Input(Input<u32>),
    Datagram(End, Message<u32>),
    Call(End, Call),
}

/// What one `gossip` call carries.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) messages: Vec<Message<u32>>,
    pub(super) facts: Vec<Fact>,
}

impl<'t> Sim<'t> {
    pub(super) fn new(
        spec: SwarmSpec,
        duration: Duration,
        seed: u64,
        sink: Option<&'t mut dyn Write>,
    ) -> Self {
        let count = spec.nodes;
        let end = micros(duration);
        let quiet = spec.quiet.map_or(0, micros);
        let town = (spec.ledger == LedgerKind::Exact).then(|| Town::new(count, seed));
        let store = |n: u32| match &town {
            Some(town) => Store::Exact(Box::new(Exact::new(n, town))),
            None => Store::Light(Light::new(n, count)),
        };
        let mut sim = Self {
            queue: Queue::new(),
            nodes: (0..count).map(|n| Node::new(n, store(n), seed)).collect(),
            conns: Conns::default(),
            wire: Wire::new(&spec.link, seed),
            book: Book::new(count),
            flights: Slab::new(),
            dials: Slab::new(),
            luck: Rng::new(seed, 1),
            fate: Rng::new(seed, 2),
            sides: vec![0; count as usize],
            partitions: 0,
            muted: vec![false; count as usize],
            deaf: vec![false; count as usize],
            trace: Tracer::new(seed, sink),
            watches: Watches::new(count as usize),
            end,
            quiet_from: end.saturating_sub(quiet),
            events: 0,
            broken: Vec::new(),
            config: MembershipConfig::default(),
            lopsided: Vec::new(),
            plans: 0,
            inputs: VecDeque::new(),
            actions: Vec::new(),
            spec,
        };
        sim.set_up();
        sim
    }

    /// Runs to the end.
    pub(super) fn run(&mut self) {
        while let Some(event) = self.queue.pop(self.end) {
            self.events += 1;
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Timer { node, life } => self.on_timer(node, life),
            Event::Datagram { end, message } => self.on_datagram(end, message),
            Event::Flush { end } => self.on_flush(end),
            Event::Landing { flight } => self.on_landing(flight),
            Event::Again { flight } => self.on_again(flight),
            Event::Dial { dial } => self.on_dial(dial),
            Event::Keep { end } => self.on_keep(end),
            Event::Beep { end, reply } => self.on_beep(end, reply),
            Event::Closed { end } => self.lose(end, "closed by the other end"),
            Event::Late { node, life, work } => self.on_late(node, life, work),
            Event::Stall { node } => self.on_stall(node),
            Event::Renew { node, planned } => self.on_renew(node, planned),
            Event::Rejoin { node, life } => self.on_rejoin(node, life),
            Event::Expire { node, version } => self.on_expire(node, version),
            Event::Begin { node } => self.begin(node),
            Event::End { node, life } => self.on_end(node, life),
            Event::Step { step } => self.on_step(step),
            Event::Lie { node, lie } => self.on_lie(node, lie),
            Event::Look => self.on_look(),
            Event::WarmedUp => self.on_warmed_up(),
            Event::Review => self.on_review(),
        }
    }

    // === machines ===

    /// Lets a node handle something, now or when it comes to it.
    pub(super) fn deliver(&mut self, n: u32, work: Work) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        if !node.runs() {
            return;
        }
        if node.stalled_until <= now && node.delay.is_none() {
            self.work(n, work);
            return;
        }
        let late = node
            .delay
            .as_ref()
            .map_or(0, |range| self.luck.within(range));
        let ready = (now + late).max(node.ready).max(node.stalled_until);
        node.ready = ready;
        let life = node.life;
        let work = Box::new(work);
        self.queue.push(
            ready,
            Event::Late {
                node: n,
                life,
                work,
            },
        );
    }

    fn on_late(&mut self, n: u32, life: u32, work: Box<Work>) {
        let node = &self.nodes[n as usize];
        if node.life != life {
            return;
        }
        if node.stalled_until > self.queue.now() {
            let at = node.stalled_until;
            self.queue.push(
                at,
                Event::Late {
                    node: n,
                    life,
                    work,
                },
            );
            return;
        }
        self.work(n, *work);
    }

    fn work(&mut self, n: u32, work: Work) {
        match work {
            Work::Timer => self.work_timer(n),
            Work::Input(input) => self.feed(n, input),
            Work::Datagram(end, message) => self.work_datagram(n, end, message),
            Work::Call(end, call) => self.work_call(n, end, call),
        }
    }

    fn on_timer(&mut self, n: u32, life: u32) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        if node.life != life || node.timer != now {
            return;
        }
        node.timer = u64::MAX;
        let due = node.machine.as_ref().map_or(u64::MAX, due);
        if due > now {
            self.set_timer(n);
        } else {
            self.deliver(n, Work::Timer);
        }
    }

    fn work_timer(&mut self, n: u32) {
        let now = self.queue.now();
        self.feed(n, Input::Timer);
        let stuck = |machine: &Membership<u32>| due(machine) <= now;
        if self.nodes[n as usize].machine.as_ref().is_some_and(stuck) {
            self.break_off(&format!("node {n}: its timer does not advance"));
        }
    }

    /// Wakes the machine when it wants.
    pub(super) fn set_timer(&mut self, n: u32) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        let Some(machine) = &node.machine else {
            return;
        };
        let at = due(machine).max(now + 1);
        if at < node.timer {
            node.timer = at;
            let life = node.life;
            self.queue.push(at, Event::Timer { node: n, life });
        }
    }

    fn work_datagram(&mut self, n: u32, end: End, message: Message<u32>) {
        let Some(from) = self.peer(end) else {
            return;
        };
        if let Message::PingRequest { seq, target } = message
            && self.nodes[n as usize].lies.contains(&Lie::Vouch)
        {
            let alive = true;
            self.send_datagram(end, Message::IndirectAck { seq, target, alive });
            return;
        }
        self.feed(n, Input::Message { from, message });
    }

    fn work_call(&mut self, n: u32, end: End, call: Call) {
        let Some(from) = self.peer(end) else {
            return;
        };
        for fact in &call.facts {
            let (key, version, outcome) = self.accept(n, fact);
            self.feed(
                n,
                Input::Heard {
                    from,
                    key,
                    version,
                    outcome,
                },
            );
        }
        for message in call.messages {
            if let Message::Want { keys } = &message
                && let Some(conn) = self.conns.at(end)
            {
                let wanted = keys.iter().take(MAX_WHOLE).copied();
                conn.lanes[end.side].whole.extend(wanted);
            }
            self.feed(n, Input::Message { from, message });
        }
        self.respond(end);
    }

    /// Gives one input to a machine, and does what follows.
    pub(super) fn feed(&mut self, n: u32, input: Input<u32>) {
        self.inputs.push_back((n, input));
        self.feed_all();
    }

    pub(super) fn feed_all(&mut self) {
        while let Some((n, input)) = self.inputs.pop_front() {
            let now = self.queue.now();
            let node = &mut self.nodes[n as usize];
            let Some(machine) = node.machine.as_mut() else {
                continue;
            };
            let view = View {
                store: &node.ledger,
                book: &self.book,
            };
            let kind = input_number(&input);
            self.trace.note(now, n, kind, || format!("<- {input:?}"));
            let mut actions = std::mem::take(&mut self.actions);
            machine.handle(moment(now), input, &view, &mut node.rng, &mut actions);
            if actions.len() > MAX_ACTIONS + 8 * self.nodes.len() {
                let count = actions.len();
                self.break_off(&format!("node {n}: {count} actions for one input"));
            }
            for action in actions.drain(..) {
                self.act(n, action);
            }
            self.actions = actions;
            self.set_timer(n);
        }
    }

    // === what machines want ===

    fn act(&mut self, n: u32, action: Action<u32>) {
        let now = self.queue.now();
        let kind = action_number(&action);
        self.trace.note(now, n, kind, || format!("-> {action:?}"));
        if self.nodes[n as usize].lies.contains(&Lie::Stall) && !stalling_liar_does(&action) {
            return;
        }
        match action {
            Action::Send { to, message } => {
                if let Some(end) = self.nodes[n as usize].link(to) {
                    match message.lane() {
                        Lane::Datagram => self.send_datagram(end, message),
                        Lane::Stream => self.queue_message(end, message),
                    }
                }
            }
            Action::Tell { to, key } => {
                if let Some(end) = self.nodes[n as usize].link(to)
                    && let Some(conn) = self.conns.at(end)
                {
                    conn.lanes[end.side].facts.insert(key);
                    self.arm(end);
                }
            }
            Action::Untell { to, key } => {
                if let Some(end) = self.nodes[n as usize].link(to)
                    && let Some(conn) = self.conns.at(end)
                {
                    conn.lanes[end.side].facts.remove(&key);
                    conn.lanes[end.side].whole.remove(&key);
                }
            }
            Action::Dial { peer } => self.dial(n, peer),
            Action::Release { peer } => {
                if let Some(end) = self.nodes[n as usize].link(peer)
                    && let Some(conn) = self.conns.at(end)
                {
                    conn.released[end.side] = true;
                }
            }
            Action::Accuse { accused, version } => {
                let key = Key::Suspicion {
                    accused,
                    accuser: n,
                };
                let now = self.queue.now();
                let node = &mut self.nodes[n as usize];
                let clock = node.clock(now);
                node.ledger.accuse(accused, version, clock);
                self.inputs.push_back((n, Input::Published { key }));
            }
            Action::Refute { above } => {
                let above = u32::try_from(above).unwrap_or(u32::MAX >> 6);
                self.announce(n, above, false);
            }
            Action::Status { peer, status } => self.on_status(n, peer, status),
        }
    }

    fn on_stall(&mut self, n: u32) {
        let now = self.queue.now();
        let Some(slow) = self.spec.slow.clone() else {
            return;
        };
        let range = micros(*slow.stall.start())..=micros(*slow.stall.end());
        let length = self.fate.within(&range);
        let node = &mut self.nodes[n as usize];
        node.stalled_until = node.stalled_until.max(now + length);
        self.trace
            .note(now, n, 4, || format!("stalls for {length} us"));
        let every = slow.stall_every.map_or(u64::MAX, micros);
        let next = now + length + self.fate.exponential(every);
        if next < self.quiet_from {
            self.queue.push(next, Event::Stall { node: n });
        }
    }

    fn on_warmed_up(&mut self) {
        for node in &mut self.nodes {
            node.bytes_before = node.bytes;
        }
    }

    // === small things ===

    pub(super) fn is_divided(&self) -> bool {
        self.partitions > 0
            || self.muted.iter().any(|muted| *muted)
            || self.deaf.iter().any(|deaf| *deaf)
    }

    /// Honest nodes that run.
    pub(super) fn honest(&self) -> usize {
        let nodes = self.nodes.iter();
        nodes.filter(|node| node.runs() && node.is_honest()).count()
    }

    /// Who is at the other end.
    pub(super) fn peer(&mut self, end: End) -> Option<u32> {
        self.conns.at(end).map(|conn| conn.ends[1 - end.side])
    }

    pub(super) fn input(&mut self, n: u32, input: Input<u32>) {
        self.deliver(n, Work::Input(input));
    }

    pub(super) fn input_now(&mut self, n: u32, input: Input<u32>) {
        self.inputs.push_back((n, input));
    }

    pub(super) fn break_off(&mut self, what: &str) {
        if self.broken.len() < MAX_BROKEN {
            let at = Duration::from_micros(self.queue.now());
            self.broken
                .push(format!("at {:.3} s: {what}", at.as_secs_f64()));
        }
    }
}

/// What a liar that stalls still does: stay somebody's neighbour.
fn stalling_liar_does(action: &Action<u32>) -> bool {
    match action {
        Action::Send { message, .. } => matches!(
            message,
            Message::Ping { .. } | Message::Ack { .. } | Message::Neighbor { .. } | Message::Accept
        ),
        Action::Tell { .. } => false,
        _ => true,
    }
}

fn due(machine: &Membership<u32>) -> u64 {
    let nanos = machine.next_timer().elapsed().as_nanos();
    u64::try_from(nanos.div_ceil(1000)).unwrap_or(u64::MAX)
}

pub(super) fn moment(now: u64) -> Moment {
    Moment::from_start(Duration::from_micros(now))
}

/// Actions for one input beyond those that the size of the mesh explains.
const MAX_ACTIONS: usize = 4096;
/// Broken invariants that are told.
const MAX_BROKEN: usize = 20;
/// Keys that a peer may want whole at a time.
const MAX_WHOLE: usize = 4096;
/// How long a process that has just begun, or was cut off, may be held dead without that being
/// false: the news must spread.
pub(super) const GRACE: u64 = 30_000_000;
