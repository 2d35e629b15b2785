//! Who is in the mesh, who is next to whom, and who is alive: a machine without I/O.
//!
//! Every node runs one. It is told what happened and when ([`Membership::handle`]) and answers
//! with what to do ([`Action`]); sockets, signatures and the facts themselves belong to its
//! driver. The simulator in `netsim` and the node in `src/mesh` drive the same code.
//!
//! * **View**: of all the nodes it knows, a node is linked with 5 to 8 *neighbours*. The relation
//!   is symmetric, and one neighbour is replaced at random every few minutes, so the mesh stays a
//!   random graph. Every node knows all others (by their announcements), so a sample of the
//!   ledger takes the place of the passive view of `HyParView` (Leitão et al., DSN 2007).
//! * **Probes**: each period it pings the next neighbour; when silence lasts, others try
//!   (SWIM, Das et al., DSN 2002); then it accuses. Neighbours of the accused check at once.
//! * **Suspicion**: nobody is declared dead on another's word. Each node gives a suspect time,
//!   less when several accuse it, more when the node itself is slow (Lifeguard, arXiv
//!   1707.00788); a version of the suspect above the accusation's refutes it everywhere.
//! * **Floods and repair**: new facts go to all neighbours but the sender. Every ten seconds two
//!   neighbours compare hashes of all they hold and exchange what differs.
//! * **Survey**: now and then a random node that is no neighbour is dialled, a dead one half of
//!   the time. It finds those whose neighbours all died and heals partitions.
//!
//! State is kept for links, neighbours and exceptional (suspect or dead) nodes, never for each
//! known node. Every list has a bound that no peer can move.

mod config;
mod flood;
mod health;
mod probe;
mod repair;
mod stats;
mod survey;
mod suspicion;
mod types;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use config::{MembershipConfig, renewal_ttl};
use flood::Own;
use probe::{Check, Errand};
use repair::Recent;
pub use stats::MembershipStats;
use suspicion::Suspects;
pub use types::{
    Action, BUCKETS, Chance, Input, Key, Lane, Ledger, Liveness, MAX_ACCUSERS, MAX_KEYS,
    MAX_WANTED, Message, Moment, Outcome, Peer, shuffle,
};
use view::{Dial, Link, Neighbour};

/// After [`Input::Leave`] nothing is due, but a timer must name some moment.
const NEVER: Duration = Duration::from_hours(1);

/// The membership machine of one node.
#[derive(Debug)]
pub struct Membership<P: Peer> {
    local: P,
    config: MembershipConfig,
    stats: MembershipStats,
    /// Orderly shutdown has begun: nothing is done any more.
    left: bool,

    /// Every link in use; the driver bounds them.
    links: BTreeMap<P, Link>,
    /// Links that were dialled for one occasion, in the order of their end.
    lingering: VecDeque<(Moment, P)>,
    /// At most `active_max`, in the order of probing.
    neighbours: Vec<Neighbour<P>>,
    /// The next of `neighbours` to probe.
    cursor: usize,
    /// Who was asked to be a neighbour, and until when an answer counts.
    asked: Vec<(P, Moment)>,
    dials: Vec<Dial<P>>,
    passive: Vec<P>,
    preferred: Vec<P>,
    /// Who is not tried again before a moment, in its order.
    avoided: VecDeque<(P, Moment)>,
    /// Who is to take the place of a random neighbour.
    replacing: Option<P>,
    /// When an urgent neighbour last cost another its place.
    evicted: Moment,

    checks: Vec<Check<P>>,
    errands: Vec<Errand<P>>,
    seq: u32,
    health: u32,
    /// Since when nobody has been heard.
    isolated: Option<Moment>,
    suspects: Suspects<P>,
    own: Own,
    recent: Recent,

    due: Due,
    timer: Moment,
}

/// When the periodic things are due.
#[derive(Debug)]
struct Due {
    probe: Moment,
    view: Moment,
    repair: Moment,
    survey: Moment,
    replace: Moment,
}

/// What the machine is lent while it handles one input.
struct Context<'a, P> {
    now: Moment,
    ledger: &'a dyn Ledger<P>,
    chance: &'a mut dyn Chance,
    out: &'a mut Vec<Action<P>>,
}

impl<P: Peer> Context<'_, P> {
    fn send(&mut self, to: P, message: Message<P>) {
        self.out.push(Action::Send { to, message });
    }

    fn tell(&mut self, to: P, key: Key<P>) {
        self.out.push(Action::Tell { to, key });
    }

    fn version(&self, node: P) -> Option<u64> {
        self.ledger.version(&Key::Node(node))
    }
}

impl<P: Peer> Membership<P> {
    /// The machine of the node `local`, which has no link. `passive` are nodes that it met in an
    /// earlier life; the first `passive_max` of them are dialled before the ledger knows anybody.
    /// Figures outside their bounds are moved to them.
    pub fn new(
        local: P,
        config: MembershipConfig,
        mut passive: Vec<P>,
        now: Moment,
        chance: &mut dyn Chance,
    ) -> Self {
        let config = config.bounded();
        passive.retain(|peer| *peer != local);
        passive.truncate(config.passive_max);
        let due = Due {
            probe: now + chance.jitter(config.probe_period),
            view: now + view::EAGER,
            repair: now + chance.jitter(config.repair_period),
            survey: now + chance.jitter(config.survey_min),
            replace: now + chance.jitter(config.replace_period),
        };
        let mut machine = Self {
            local,
            config,
            stats: MembershipStats::default(),
            left: false,
            links: BTreeMap::new(),
            lingering: VecDeque::new(),
            neighbours: Vec::new(),
            cursor: 0,
            asked: Vec::new(),
            dials: Vec::new(),
            passive,
            preferred: Vec::new(),
            avoided: VecDeque::new(),
            replacing: None,
            evicted: Moment::ZERO,
            checks: Vec::new(),
            errands: Vec::new(),
            seq: 0,
            health: 0,
            isolated: None,
            suspects: Suspects::new(),
            own: Own::new(now),
            recent: Recent::new(now),
            due,
            timer: now,
        };
        machine.set_timer(now);
        machine
    }

    /// Takes what happened and adds what is to be done to `out`. `now` never lies before that of
    /// an earlier call.
    pub fn handle(
        &mut self,
        now: Moment,
        input: Input<P>,
        ledger: &dyn Ledger<P>,
        chance: &mut dyn Chance,
        out: &mut Vec<Action<P>>,
    ) {
        if self.left {
            self.timer = now + NEVER;
            return;
        }
        let mut cx = Context {
            now,
            ledger,
            chance,
            out,
        };
        self.notice_stall(&mut cx);
        match input {
            Input::Message { from, message } => {
                self.hear_from(now, from);
                if let Message::Ping {
                    seq,
                    version_of_you,
                } = message
                {
                    // Nothing becomes due by a ping: the timer stands.
                    return self.on_ping(&mut cx, from, seq, version_of_you);
                }
                self.on_message(&mut cx, from, message);
            }
            Input::Heard {
                from,
                key,
                version,
                outcome,
            } => {
                self.hear_from(now, from);
                self.on_heard(&mut cx, from, key, version, outcome);
            }
            Input::LinkUp { peer } => self.on_link_up(&mut cx, peer),
            Input::LinkDown { peer } => self.on_link_down(&mut cx, peer),
            Input::DialFailed { peer } => self.on_dial_failed(&mut cx, peer),
            Input::Published { key } => self.on_published(&mut cx, key),
            Input::Forgotten { peer } => self.on_forgotten(&mut cx, peer),
            Input::Leave => self.on_leave(&mut cx),
            Input::Timer => self.on_timer(&mut cx),
        }
        self.set_timer(now);
    }

    /// When [`Input::Timer`] is due. It changes only in [`Membership::handle`], and lies behind
    /// the moment of the last timer input.
    pub fn next_timer(&self) -> Moment {
        self.timer
    }

    /// What this node holds of another.
    pub fn liveness(&self, peer: &P) -> Liveness {
        self.suspects.liveness(peer)
    }

    /// The neighbours, in no particular order.
    pub fn active(&self) -> impl Iterator<Item = P> + '_ {
        self.neighbours.iter().map(|neighbour| neighbour.peer)
    }

    /// The nodes that this node holds to be suspect, in order.
    pub fn suspects(&self) -> impl Iterator<Item = P> + '_ {
        self.suspects.suspected()
    }

    /// How many nodes this node holds to be dead.
    pub fn dead(&self) -> usize {
        self.suspects.dead()
    }

    /// Lifeguard's local health: 0 is well; the larger, the longer this node waits before it
    /// blames others.
    pub fn health(&self) -> u32 {
        self.health
    }

    /// The counters.
    pub fn stats(&self) -> &MembershipStats {
        &self.stats
    }

    /// Names nodes to dial rather than others in every second search for a neighbour, such as
    /// those reachable without a relay. At most `passive_max` are kept.
    pub fn set_preference(&mut self, mut preferred: Vec<P>) {
        preferred.retain(|peer| *peer != self.local);
        preferred.truncate(self.config.passive_max);
        self.preferred = preferred;
    }

    fn on_message(&mut self, cx: &mut Context<'_, P>, from: P, message: Message<P>) {
        if !self.links.contains_key(&from) {
            return;
        }
        match message {
            Message::Ping {
                seq,
                version_of_you,
            } => self.on_ping(cx, from, seq, version_of_you),
            Message::Ack { seq } => self.on_ack(cx, from, seq),
            Message::PingRequest { seq, target } => self.on_ping_request(cx, from, seq, target),
            Message::IndirectAck { seq, target, alive } => {
                self.on_indirect_ack(cx.now, from, (seq, target), alive);
            }
            Message::Neighbor { urgent } => self.on_neighbor(cx, from, urgent),
            Message::Accept => self.on_accept(cx, from),
            Message::Decline => self.on_decline(cx, from),
            Message::Leave => self.on_leaving(cx, from),
            Message::Summary { hash, .. } => self.on_summary(cx, from, hash),
            Message::Buckets { hashes } => self.on_buckets(cx, from, &hashes),
            Message::Keys {
                bucket,
                keys,
                whole,
            } => self.on_keys(cx, from, bucket, &keys, whole),
            Message::Want { keys } => self.on_want(cx, from, &keys),
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, P>) {
        self.expire_dials(cx);
        self.run_checks(cx);
        self.run_errands(cx);
        self.run_suspicions(cx);
        self.run_refutation(cx);
        self.probe(cx);
        self.repair(cx);
        self.survey(cx);
        self.replace(cx);
        self.look_for_neighbours(cx);
        self.release_lingering(cx);
    }

    /// Drops all state of a node that is no longer known, but for its place among those met
    /// before: halves of a mesh that were apart until they forgot each other meet by that.
    fn on_forgotten(&mut self, cx: &mut Context<'_, P>, peer: P) {
        self.suspects.remove(&peer);
        self.checks.retain(|check| check.target != peer);
        self.errands.retain(|errand| errand.target != peer);
        self.preferred.retain(|held| *held != peer);
        self.drop_neighbour(cx, peer);
    }

    /// Sets the timer to what is due first. What could not be done at once in a bounded step is
    /// due soon, never in the past.
    fn set_timer(&mut self, now: Moment) {
        if self.left {
            self.timer = now + NEVER;
            return;
        }
        let due = &self.due;
        let first = [
            Some(due.probe),
            Some(due.view),
            Some(due.repair),
            Some(due.survey),
            Some(due.replace),
            self.suspects.first_due(),
            self.own.due(),
            self.lingering.front().map(|(at, _)| *at),
        ];
        let first = first
            .into_iter()
            .flatten()
            .chain(self.dials.iter().map(|dial| dial.until))
            .chain(self.checks.iter().map(Check::due))
            .chain(self.errands.iter().map(Errand::due))
            .min();
        let mut first = first.unwrap_or(now);
        if self.health > 0 {
            // Who waits long between two probes must notice its next stall all the same.
            first = first.min(now + health::PULSE);
        }
        self.timer = first.max(now + STEP);
    }
}

/// The least time between two timers.
const STEP: Duration = Duration::from_millis(1);
