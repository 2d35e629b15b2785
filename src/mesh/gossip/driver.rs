//! Runs the membership machine: tells it what happened, does what it wants.
//!
//! Whoever learns of something tells the machine at once, under one lock, and what the machine wants
//! is done before the next one has its turn: nothing of it waits for the network or the disk. So no
//! queue lies between a peer and the machine, and its orders keep their order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::NodeId;
use meshwork_proto::codec;
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::{Action, Input, Key, Lane, Liveness, Membership, Message, Moment};
use meshwork_proto::suspicion::{SignedSuspicion, Suspicion};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::chance::SplitMix;
use super::{Gossip, MemberEvent};
use crate::node::Node;
use crate::peer::{Keep, Link};
use crate::rpc::{after, close_code};

/// First byte of datagrams that carry a membership message.
pub(crate) const DATAGRAM: u8 = 1;
/// Largest membership message in a datagram; a ping has a fifth of it.
const MAX_DATAGRAM: usize = 256;
/// How long a dial for the membership machine may take.
const DIAL: Duration = Duration::from_secs(9);
/// Dials for the membership machine at a time. It asks for a few, and more after a partition.
const MAX_DIALS: usize = 64;

/// The machine and what it works on.
pub(super) struct Machine {
    pub(super) membership: Membership<NodeId>,
    chance: SplitMix,
    /// When its time began.
    started: Instant,
    /// The connections that it knows of.
    links: BTreeMap<NodeId, Arc<Link>>,
    /// Peers whose connections are kept open for it.
    kept: BTreeSet<NodeId>,
    /// Peers that are being dialled for it, or were and are still linked.
    dialled: BTreeSet<NodeId>,
    dialling: usize,
    /// When the timer task looks again.
    wakes: Moment,
    /// Empty between two inputs; kept for its memory.
    actions: Vec<Action<NodeId>>,
}

impl Machine {
    pub(super) fn new(membership: Membership<NodeId>, chance: SplitMix, started: Instant) -> Self {
        Self {
            membership,
            chance,
            started,
            links: BTreeMap::new(),
            kept: BTreeSet::new(),
            dialled: BTreeSet::new(),
            dialling: 0,
            wakes: Moment::ZERO,
            actions: Vec::new(),
        }
    }

    fn now(&self) -> Moment {
        Moment::from_start(self.started.elapsed())
    }
}

/// What is to be done after the machine is free for others again.
#[derive(Default)]
struct Afterwards {
    refute: Option<u64>,
    dials: Vec<NodeId>,
}

impl Gossip {
    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections with neighbours.
    pub(super) fn neighbours(&self) -> Vec<Arc<Link>> {
        let machine = self.machine();
        let active = machine.membership.active();
        active
            .filter_map(|peer| machine.links.get(&peer).cloned())
            .collect()
    }
}

impl Node {
    /// Tells the membership machine what happened, and does what it wants.
    pub(crate) fn membership(self: &Arc<Self>, input: Input<NodeId>) {
        self.membership_all(VecDeque::from([input]));
    }

    fn membership_all(self: &Arc<Self>, inputs: VecDeque<Input<NodeId>>) {
        let afterwards = {
            let mut machine = self.gossip.machine();
            let afterwards = self.handle_all(&mut machine, inputs);
            self.keep_neighbours(&mut machine);
            if machine.membership.next_timer() < machine.wakes {
                self.gossip.timer.notify_one();
            }
            afterwards
        };
        for peer in afterwards.dials {
            self.tasks.spawn(self.clone().dial_for_membership(peer));
        }
        if let Some(above) = afterwards.refute {
            self.refute(above);
        }
    }

    fn handle_all(&self, machine: &mut Machine, mut inputs: VecDeque<Input<NodeId>>) -> Afterwards {
        let mut afterwards = Afterwards::default();
        while let Some(input) = inputs.pop_front() {
            // Who asks, or compares, may lack what a fact builds upon.
            let whole = matches!(input, Input::Message { .. } | Input::LinkUp { .. });
            let now = machine.now();
            let mut actions = std::mem::take(&mut machine.actions);
            machine.membership.handle(
                now,
                input,
                &*self.gossip.facts(),
                &mut machine.chance,
                &mut actions,
            );
            for action in actions.drain(..) {
                self.perform(machine, action, whole, &mut inputs, &mut afterwards);
            }
            machine.actions = actions;
        }
        afterwards
    }

    fn perform(
        &self,
        machine: &mut Machine,
        action: Action<NodeId>,
        whole: bool,
        inputs: &mut VecDeque<Input<NodeId>>,
        afterwards: &mut Afterwards,
    ) {
        match action {
            Action::Send { to, message } => {
                if let Some(link) = machine.links.get(&to) {
                    self.send_message(link, message);
                }
            }
            Action::Tell { to, key } => {
                let link = machine.links.get(&to);
                if link.is_some_and(|link| !link.outbox.tell(key, whole)) {
                    self.gossip.counters.dropped();
                }
            }
            Action::Untell { to, key } => {
                if let Some(link) = machine.links.get(&to) {
                    link.outbox.untell(&key);
                }
            }
            Action::Dial { peer } if machine.links.contains_key(&peer) => {
                inputs.push_back(Input::LinkUp { peer });
            }
            Action::Dial { peer } if machine.dialling >= MAX_DIALS => {
                inputs.push_back(Input::DialFailed { peer });
            }
            Action::Dial { peer } => {
                machine.dialling += 1;
                machine.dialled.insert(peer);
                afterwards.dials.push(peer);
            }
            Action::Release { peer } => self.release(machine, &peer),
            Action::Accuse { accused, version } => {
                inputs.extend(
                    self.accuse(accused, version)
                        .map(|key| Input::Published { key }),
                );
            }
            Action::Refute { above } => {
                afterwards.refute = Some(afterwards.refute.map_or(above, |a| a.max(above)));
            }
            Action::Status { peer, status } => self.note_status(peer, status),
        }
    }

    fn send_message(&self, link: &Link, message: Message<NodeId>) {
        if message.lane() == Lane::Datagram {
            let mut bytes = vec![DATAGRAM];
            bytes.extend(codec::encode(&message));
            if link.conn.send_datagram(Bytes::from(bytes)).is_ok() {
                self.gossip.counters.datagram();
                return;
            }
        }
        if !link.outbox.send(message) {
            self.gossip.counters.dropped();
        }
    }

    /// Signs that `accused` is held to be dead.
    fn accuse(&self, accused: NodeId, version: u64) -> Option<Key<NodeId>> {
        let body = Suspicion {
            accused,
            version,
            at: self.credentials.now(),
        };
        let signed = SignedSuspicion::sign(&self.credentials.identity, &body).ok()?;
        match self.take_own(Fact::Suspicion(signed)) {
            Ok(key) => Some(key),
            Err(error) => {
                debug!(peer = ?accused, %error, "the suspicion stays with us");
                None
            }
        }
    }

    fn note_status(&self, peer: NodeId, status: Liveness) {
        debug!(?peer, ?status, "liveness");
        if status == Liveness::Dead {
            self.note_lost(peer);
        }
        self.gossip
            .facts()
            .set_dead(&peer, status == Liveness::Dead);
        // Nobody needs to listen.
        let _ = self.gossip.members.send(MemberEvent { node: peer, status });
    }

    /// Who is dead may be in another part of a divided mesh: keeps in mind where it was.
    fn note_lost(&self, peer: NodeId) {
        let body = self.gossip.facts().store().get(&peer);
        let mut cache = self.gossip.cache();
        if cache.has_room_for_lost() {
            cache.note(peer, body.as_deref(), None, self.credentials.now());
        }
    }

    /// Closes a connection that was dialled for the machine alone and that it needs no more.
    fn release(&self, machine: &mut Machine, peer: &NodeId) {
        self.peers.release(peer, Keep::Neighbour);
        machine.kept.remove(peer);
        if !machine.dialled.remove(peer) {
            return;
        }
        let Some(link) = machine.links.get(peer) else {
            return;
        };
        let wanted = self.peers.pinned(peer).is_some() || self.peers.is_kept(peer);
        let unused = link.dialled && !link.last_use.is_used();
        if !wanted && unused && link.calls.close_if_idle() {
            self.peers.forget(link);
            link.close(close_code::IDLE, "not used");
        }
    }

    /// Keeps the connections with neighbours open, and lets those with others go.
    fn keep_neighbours(&self, machine: &mut Machine) {
        let unchanged = machine.membership.active().count() == machine.kept.len()
            && machine
                .membership
                .active()
                .all(|peer| machine.kept.contains(&peer));
        if unchanged {
            return;
        }
        let active: BTreeSet<NodeId> = machine.membership.active().collect();
        for peer in machine.kept.difference(&active) {
            self.peers.release(peer, Keep::Neighbour);
        }
        for peer in active.difference(&machine.kept) {
            self.peers.keep(peer, Keep::Neighbour);
        }
        machine.kept = active;
    }

    /// A message came as a datagram. What does not decode is dropped: datagrams are hints.
    pub(crate) fn gossip_datagram(self: &Arc<Self>, link: &Arc<Link>, bytes: &[u8]) {
        match codec::decode(bytes, MAX_DATAGRAM) {
            _ if !link.is_node() => self.gossip.counters.refused(),
            Ok(message) => self.take_messages(link.peer, vec![message]),
            Err(error) => {
                debug!(peer = ?link.peer, %error, "a membership datagram is not readable");
                self.gossip.counters.refused();
            }
        }
    }

    /// Gives a peer's messages to the machine, as many as it may send.
    pub(super) fn take_messages(self: &Arc<Self>, from: NodeId, messages: Vec<Message<NodeId>>) {
        let count = messages.len();
        let allowed = self
            .gossip
            .intake(from, |intake, now| intake.messages(count, now));
        if allowed < count {
            self.gossip.counters.refused();
        }
        let inputs = messages.into_iter().take(allowed);
        let inputs: VecDeque<_> = inputs
            .map(|message| Input::Message { from, message })
            .collect();
        if !inputs.is_empty() {
            self.membership_all(inputs);
        }
    }

    /// A connection has been settled: what is to be known of it is told. A client that is a member
    /// hears of a rotation, and of nothing else.
    pub(crate) fn introduce(self: &Arc<Self>, link: &Link) {
        let now = self.credentials.now();
        let is_client = link.is_client() || !link.is_node();
        if is_client && self.speaks() && link.standing.borrow().is_member(now) {
            link.outbox.tell(Key::Psk, true);
        }
        self.sync_links();
    }

    /// Compares the connections in use with what the machine knows of them.
    pub(crate) fn sync_links(self: &Arc<Self>) {
        let mut inputs = VecDeque::new();
        {
            let mut machine = self.gossip.machine();
            let speaks = self.speaks();
            let links: BTreeMap<NodeId, Arc<Link>> = self
                .peers
                .all()
                .into_iter()
                .filter(|link| speaks && link.is_node() && !link.is_client())
                .map(|link| (link.peer, link))
                .collect();
            for peer in machine
                .links
                .keys()
                .filter(|peer| !links.contains_key(*peer))
            {
                inputs.push_back(Input::LinkDown { peer: *peer });
                self.gossip.forget_intake(peer);
            }
            for (peer, link) in &links {
                let old = machine.links.get(peer);
                if old.is_some_and(|old| Arc::ptr_eq(old, link)) {
                    continue;
                }
                if let Some(old) = old {
                    link.outbox.absorb(&old.outbox);
                }
                inputs.push_back(Input::LinkUp { peer: *peer });
            }
            let gone =
                |peer: &NodeId| !links.contains_key(peer) && machine.links.contains_key(peer);
            let dialled = machine.dialled.iter().filter(|peer| !gone(peer)).copied();
            machine.dialled = dialled.collect();
            machine.links = links;
        }
        if !inputs.is_empty() {
            self.membership_all(inputs);
        }
    }

    async fn dial_for_membership(self: Arc<Self>, peer: NodeId) {
        let reached = self.reach_member(peer).await;
        self.sync_links();
        let linked = {
            let mut machine = self.gossip.machine();
            machine.dialling = machine.dialling.saturating_sub(1);
            let linked = machine.links.contains_key(&peer);
            if !linked {
                machine.dialled.remove(&peer);
            }
            linked
        };
        if !linked {
            debug!(?peer, reached, "no connection for membership");
            self.membership(Input::DialFailed { peer });
        }
    }

    /// Dials a node wherever it may be; whether it answered.
    pub(super) async fn reach_member(self: &Arc<Self>, peer: NodeId) -> bool {
        if self.credentials.is_revoked(&peer) {
            return false;
        }
        let contact = self.contact(peer);
        let relayed = self.open_relays(peer);
        if contact.addrs.is_empty() && !relayed {
            return false;
        }
        let draining = self.desk.draining.clone();
        tokio::select! {
            biased;
            () = draining.cancelled() => false,
            reached = self.reach(&contact, after(DIAL)) => reached.is_ok(),
        }
    }

    /// Runs the machine's timer, and watches connections come and go, until the node shuts down.
    pub(crate) async fn run_membership(self: Arc<Self>) {
        let draining = self.desk.draining.clone();
        let mut changes = self.peers.watch();
        loop {
            let wakes = {
                let mut machine = self.gossip.machine();
                machine.wakes = machine.membership.next_timer();
                machine.started + machine.wakes.elapsed()
            };
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                // The sender is part of the node.
                _ = changes.changed() => self.sync_links(),
                () = self.gossip.timer.notified() => {}
                () = sleep_until(wakes) => self.membership(Input::Timer),
            }
        }
    }
}
