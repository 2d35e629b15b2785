//! Membership machines joined in memory: virtual time, links with latency and loss, stalls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshwork_proto::membership::{
    Action, BUCKETS, Chance, Input, Key, Lane, Ledger, Liveness, MAX_ACCUSERS, Membership,
    MembershipConfig, Message, Moment, Outcome,
};

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Splitmix64.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(pub(crate) u64);

impl Chance for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A light ledger: versions without contents.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) local: u32,
    held: BTreeMap<Key<u32>, (u64, u8)>,
    nodes: Vec<u32>,
    hashes: [u64; BUCKETS as usize],
}

impl Facts {
    pub(crate) fn new(local: u32) -> Self {
        let mut facts = Self {
            local,
            held: BTreeMap::new(),
            nodes: Vec::new(),
            hashes: [0; BUCKETS as usize],
        };
        facts.put(Key::Node(local), 1, 0);
        facts
    }

    fn slot(key: &Key<u32>) -> (usize, u64) {
        let hash = match key {
            Key::Node(node) => mix(u64::from(*node)),
            Key::Suspicion { accused, accuser } => {
                mix(u64::from(*accused) << 32 | u64::from(*accuser) | 1 << 63)
            }
            Key::Revocation(hash) => mix(u64::from(hash[0]) | 1 << 62),
            Key::Psk => mix(1 << 61),
        };
        let slot = usize::try_from(hash % u64::from(BUCKETS)).unwrap();
        (slot, hash)
    }

    fn drop_key(&mut self, key: &Key<u32>) {
        if let Some((version, _)) = self.held.remove(key) {
            let (slot, hash) = Self::slot(key);
            self.hashes[slot] ^= mix(hash ^ version);
        }
    }

    pub(crate) fn put(&mut self, key: Key<u32>, version: u64, hops: u8) {
        if let Key::Node(node) = key {
            if node != self.local && !self.held.contains_key(&key) {
                self.nodes.push(node);
            }
            let refuted = self.accusations(node);
            for (accusation, of) in refuted {
                if of < version {
                    self.drop_key(&accusation);
                }
            }
        }
        self.drop_key(&key);
        let (slot, hash) = Self::slot(&key);
        self.hashes[slot] ^= mix(hash ^ version);
        self.held.insert(key, (version, hops));
    }

    fn accusations(&self, accused: u32) -> Vec<(Key<u32>, u64)> {
        let key = |accuser| Key::Suspicion { accused, accuser };
        let range = self.held.range(key(0)..=key(u32::MAX));
        range.map(|(key, held)| (*key, held.0)).collect()
    }

    pub(crate) fn accept(&mut self, key: Key<u32>, version: u64, hops: u8) -> Outcome {
        let held = self.version(&key);
        if held == Some(version) {
            return Outcome::Duplicate;
        }
        if held.is_some_and(|held| held > version) || key == Key::Node(self.local) {
            return Outcome::Old;
        }
        if let Key::Suspicion { accused, .. } = key {
            match self.version(&Key::Node(accused)) {
                Some(of) if of > version => return Outcome::Old,
                Some(of) if of == version => {}
                _ => return Outcome::Refused,
            }
            self.put(key, version, hops);
            for (surplus, _) in self.accusations(accused).into_iter().skip(MAX_ACCUSERS) {
                self.drop_key(&surplus);
                if surplus == key {
                    return Outcome::Refused;
                }
            }
            return Outcome::New { hops };
        }
        self.put(key, version, hops);
        Outcome::New { hops }
    }
}

impl Ledger<u32> for Facts {
    fn version(&self, key: &Key<u32>) -> Option<u64> {
        self.held.get(key).map(|(version, _)| *version)
    }
    fn nodes(&self) -> usize {
        self.nodes.len()
    }
    fn nth(&self, n: usize) -> Option<u32> {
        self.nodes.get(n).copied()
    }
    fn summary(&self) -> u64 {
        self.hashes.iter().fold(0, |all, hash| mix(all) ^ hash)
    }
    fn bucket(&self, index: u8) -> u64 {
        self.hashes[usize::from(index)]
    }
    fn keys(&self, bucket: u8) -> Vec<(Key<u32>, u64)> {
        let of = |key: &&Key<u32>| Self::slot(key).0 == usize::from(bucket);
        let keys = self.held.keys().filter(of);
        keys.map(|key| (*key, self.held[key].0)).collect()
    }
}

pub(crate) struct Node {
    pub(crate) machine: Membership<u32>,
    pub(crate) facts: Facts,
    pub(crate) links: BTreeSet<u32>,
    outbox: BTreeMap<u32, BTreeSet<Key<u32>>>,
    /// It handles nothing before this.
    busy: Moment,
    timer: Moment,
    pub(crate) statuses: Vec<(Moment, u32, Liveness)>,
    /// It says nothing of itself any more, as one whose signing part hangs.
    pub(crate) mute: bool,
}

#[derive(Clone)]
enum Event {
    Input(Input<u32>),
    Facts(u32, Vec<(Key<u32>, u64, u8)>),
    Flush(u32),
    Dialled(u32),
}

/// The mesh. Nodes that are gone are not in `nodes`.
pub(crate) struct World {
    pub(crate) now: Moment,
    pub(crate) nodes: BTreeMap<u32, Node>,
    queue: BTreeMap<(Moment, u64), (u32, Event)>,
    order: u64,
    pub(crate) chance: Seeded,
    pub(crate) config: MembershipConfig,
    pub(crate) latency: (u64, u64),
    /// Of a hundred datagrams.
    pub(crate) loss: usize,
    /// Which side of a partition a node is on.
    pub(crate) side: BTreeMap<u32, u8>,
    arrivals: BTreeMap<(u32, u32), Moment>,
    pub(crate) events: u64,
    pub(crate) sent: BTreeMap<&'static str, u64>,
}

impl World {
    /// `count` nodes that know each other's announcements and nobody's address in a cache.
    pub(crate) fn acquainted(count: u32, seed: u64) -> Self {
        let mut world = Self::empty(seed);
        for id in 0..count {
            world.start(id, Vec::new());
        }
        for id in 0..count {
            let facts = &mut world.node(id).facts;
            for other in (0..count).filter(|other| *other != id) {
                facts.accept(Key::Node(other), 1, 1);
            }
        }
        world
    }

    pub(crate) fn empty(seed: u64) -> Self {
        Self {
            now: Moment::ZERO,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            chance: Seeded(seed),
            config: MembershipConfig::default(),
            latency: (5, 50),
            loss: 0,
            side: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            events: 0,
            sent: BTreeMap::new(),
        }
    }

    pub(crate) fn start(&mut self, id: u32, passive: Vec<u32>) {
        let (config, now) = (self.config.clone(), self.now);
        let machine = Membership::new(id, config, passive, now, &mut self.chance);
        let node = Node {
            timer: machine.next_timer(),
            machine,
            facts: Facts::new(id),
            links: BTreeSet::new(),
            outbox: BTreeMap::new(),
            busy: now,
            statuses: Vec::new(),
            mute: false,
        };
        self.push(node.timer, id, Event::Input(Input::Timer));
        self.nodes.insert(id, node);
    }

    pub(crate) fn node(&mut self, id: u32) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node runs")
    }

    fn push(&mut self, at: Moment, to: u32, event: Event) {
        self.order += 1;
        self.queue.insert((at, self.order), (to, event));
    }

    /// The node is gone without a word; `noticed` ends its links at the others.
    pub(crate) fn kill(&mut self, id: u32, noticed: bool) {
        let gone = self.nodes.remove(&id).expect("the node runs");
        for peer in gone.links {
            if noticed {
                self.input(peer, Input::LinkDown { peer: id });
            }
        }
    }

    pub(crate) fn stall(&mut self, id: u32, time: Duration) {
        let until = self.now + time;
        self.node(id).busy = until;
    }

    pub(crate) fn link(&mut self, a: u32, b: u32) {
        self.node(a).links.insert(b);
        self.node(b).links.insert(a);
        self.input(a, Input::LinkUp { peer: b });
        self.input(b, Input::LinkUp { peer: a });
    }

    fn apart(&self, a: u32, b: u32) -> bool {
        self.side.get(&a) != self.side.get(&b)
    }

    /// Links between the sides end, as by their idle time-out.
    pub(crate) fn cut_sides(&mut self) {
        let all: Vec<(u32, u32)> = self
            .nodes
            .iter()
            .flat_map(|(id, node)| node.links.iter().map(|peer| (*id, *peer)))
            .filter(|(id, peer)| self.apart(*id, *peer))
            .collect();
        for (id, peer) in all {
            self.input(id, Input::LinkDown { peer });
        }
    }

    pub(crate) fn publish(&mut self, id: u32, above: u64) {
        let facts = &mut self.node(id).facts;
        let key = Key::Node(id);
        let version = facts.version(&key).unwrap_or(0).max(above) + 1;
        facts.put(key, version, 0);
        self.input(id, Input::Published { key });
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(((at, _), (to, event))) = self.queue.pop_first() {
            if at > end {
                self.push(at, to, event);
                break;
            }
            self.now = at.max(self.now);
            let Some(node) = self.nodes.get(&to) else {
                continue;
            };
            if node.busy > self.now {
                let until = node.busy;
                self.push(until, to, event);
                continue;
            }
            self.events += 1;
            match event {
                Event::Input(Input::Timer) => {
                    if node.machine.next_timer() <= self.now {
                        self.input(to, Input::Timer);
                    } else if node.timer <= self.now {
                        let at = node.machine.next_timer();
                        self.node(to).timer = at;
                        self.push(at, to, Event::Input(Input::Timer));
                    }
                }
                Event::Input(input) => self.input(to, input),
                Event::Facts(from, facts) => self.hear(to, from, facts),
                Event::Flush(peer) => self.flush(to, peer),
                Event::Dialled(peer) if self.nodes.get(&peer).is_some_and(|of| of.busy > at) => {
                    let until = self.nodes[&peer].busy;
                    self.push(until, to, Event::Dialled(peer));
                }
                Event::Dialled(peer) if self.nodes.contains_key(&peer) && !self.apart(to, peer) => {
                    self.link(to, peer);
                }
                Event::Dialled(peer) => self.input(to, Input::DialFailed { peer }),
            }
        }
        self.now = end;
    }

    pub(crate) fn input(&mut self, id: u32, input: Input<u32>) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        match &input {
            Input::LinkUp { peer } => drop(node.links.insert(*peer)),
            Input::LinkDown { peer } => drop((node.links.remove(peer), node.outbox.remove(peer))),
            _ => {}
        }
        let mut out = Vec::new();
        let (now, facts) = (self.now, &node.facts);
        node.machine
            .handle(now, input, facts, &mut self.chance, &mut out);
        let timer = node.machine.next_timer();
        assert!(timer > now || node.timer <= now, "the timer gets on");
        if timer < node.timer || node.timer <= now {
            node.timer = timer;
            self.push(timer, id, Event::Input(Input::Timer));
        }
        for action in out {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: u32, action: Action<u32>) {
        let wait = self.wait();
        match action {
            Action::Send { to, message } => {
                *self.sent.entry(name(&message)).or_default() += 1;
                let lane = message.lane();
                self.transmit(
                    id,
                    to,
                    lane,
                    Event::Input(Input::Message { from: id, message }),
                );
            }
            Action::Tell { to, key } => {
                let node = self.node(id);
                if node.links.contains(&to) {
                    let outbox = node.outbox.entry(to).or_default();
                    outbox.insert(key);
                    if outbox.len() == 1 {
                        let at = self.now + ms(50);
                        self.push(at, id, Event::Flush(to));
                    }
                }
            }
            Action::Untell { to, key } => {
                if let Some(outbox) = self.node(id).outbox.get_mut(&to) {
                    outbox.remove(&key);
                }
            }
            Action::Dial { peer } => {
                let reached = self.nodes.contains_key(&peer) && !self.apart(id, peer);
                let at = self.now + if reached { wait * 4 } else { ms(5000) };
                self.push(at, id, Event::Dialled(peer));
            }
            Action::Release { peer } => {
                let other = self.nodes.get(&peer);
                if !other.is_some_and(|other| other.machine.active().any(|held| held == id)) {
                    self.input(id, Input::LinkDown { peer });
                    self.input(peer, Input::LinkDown { peer: id });
                }
            }
            Action::Accuse { accused, version } => {
                let key = Key::Suspicion {
                    accused,
                    accuser: id,
                };
                if matches!(
                    self.node(id).facts.accept(key, version, 0),
                    Outcome::New { .. }
                ) {
                    self.input(id, Input::Published { key });
                }
            }
            Action::Refute { above } => {
                if !self.node(id).mute {
                    self.publish(id, above);
                }
            }
            Action::Status { peer, status } => {
                let now = self.now;
                self.node(id).statuses.push((now, peer, status));
            }
        }
    }

    /// How long a packet travels.
    fn wait(&mut self) -> Duration {
        let (least, most) = self.latency;
        let spread = usize::try_from(most - least).unwrap();
        ms(least + self.chance.below(spread + 1) as u64)
    }

    fn transmit(&mut self, from: u32, to: u32, lane: Lane, event: Event) {
        let linked =
            |a: &u32, b: &u32| self.nodes.get(a).is_some_and(|node| node.links.contains(b));
        if !linked(&from, &to) || !linked(&to, &from) || self.apart(from, to) {
            return;
        }
        let mut wait = self.wait();
        let mut lost = 0;
        while lost < 6 && self.loss > 0 && self.chance.below(100) < self.loss {
            lost += 1;
        }
        if lane == Lane::Datagram {
            if lost == 0 {
                self.push(self.now + wait, to, event);
            }
            return;
        }
        wait += ms(3 * self.latency.1) * ((1 << lost) - 1);
        let at = self.arrivals.entry((from, to)).or_default();
        *at = (*at).max(self.now + wait);
        let at = *at;
        self.push(at, to, event);
    }

    fn flush(&mut self, id: u32, to: u32) {
        let node = self.node(id);
        let keys = node.outbox.remove(&to).unwrap_or_default();
        let told: Vec<_> = keys
            .into_iter()
            .filter_map(|key| {
                node.facts
                    .held
                    .get(&key)
                    .map(|held| (key, held.0, held.1 + 1))
            })
            .collect();
        if !told.is_empty() {
            *self.sent.entry("facts").or_default() += told.len() as u64;
            *self.sent.entry("batches").or_default() += 1;
            self.transmit(id, to, Lane::Stream, Event::Facts(id, told));
        }
    }

    fn hear(&mut self, id: u32, from: u32, facts: Vec<(Key<u32>, u64, u8)>) {
        for (key, version, hops) in facts {
            let outcome = self.node(id).facts.accept(key, version, hops);
            self.input(
                id,
                Input::Heard {
                    from,
                    key,
                    version,
                    outcome,
                },
            );
        }
    }

    /// Both ends of every link agree on whether they are neighbours, and nobody has too many.
    pub(crate) fn views_hold(&self) -> Result<(), String> {
        for (id, node) in &self.nodes {
            let active: Vec<u32> = node.machine.active().collect();
            if active.len() > self.config.active_max || active.contains(id) {
                return Err(format!("{id} has {active:?}"));
            }
            for peer in active {
                let other = self.nodes.get(&peer);
                if !other.is_none_or(|other| other.machine.active().any(|held| held == *id)) {
                    return Err(format!("{id} holds {peer}, which does not hold it"));
                }
            }
        }
        Ok(())
    }

    /// When `of` last became `status` at each running node; none for those that hold another.
    pub(crate) fn since(&self, of: u32, status: Liveness) -> VecDeque<Option<Moment>> {
        let others = self.nodes.iter().filter(|(id, _)| **id != of);
        others
            .map(|(_, node)| {
                let last = node.statuses.iter().rfind(|said| said.1 == of)?;
                (last.2 == status).then_some(last.0)
            })
            .collect()
    }

    pub(crate) fn ever(&self, status: Liveness) -> Vec<(Moment, u32, u32)> {
        let mut all = Vec::new();
        for (id, node) in &self.nodes {
            let said = node.statuses.iter().filter(|said| said.2 == status);
            all.extend(said.map(|said| (said.0, *id, said.1)));
        }
        all
    }
}

fn name(message: &Message<u32>) -> &'static str {
    match message {
        Message::Ping { .. } => "ping",
        Message::Ack { .. } => "ack",
        Message::PingRequest { .. } => "ping-request",
        Message::IndirectAck { .. } => "indirect-ack",
        Message::Neighbor { .. } => "neighbor",
        Message::Accept => "accept",
        Message::Decline => "decline",
        Message::Leave => "leave",
        Message::Summary { .. } => "summary",
        Message::Buckets { .. } => "buckets",
        Message::Keys { .. } => "keys",
        Message::Want { .. } => "want",
    }
}
