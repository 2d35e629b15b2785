//! Nodes that somebody did not reach: how long they have to object, and who is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::probe::Why;
use super::{Action, Context, Key, Liveness, MAX_ACCUSERS, Membership, Moment, Peer};

/// Suspect and dead nodes held. Only nodes of the ledger are, which has its own bound.
const MAX_SUSPECTS: usize = 65_536;
/// A suspect that this node reaches, or cannot check at once, gets this much more time.
const RESPITE: Duration = Duration::from_secs(2);
/// How recently this node must have reached a suspect to give it a respite.
const FRESH: Duration = Duration::from_secs(4);
/// A suspect that talks to this node is reminded of the suspicion at most this often.
const REMIND: Duration = Duration::from_secs(1);
/// Own checks of one suspect double their distance up to 2^this times.
const MAX_CHECK_BACKOFF: u32 = 6;

/// One node that is not simply alive.
#[derive(Debug)]
struct Suspect<P> {
    /// The version accused. A larger one refutes.
    version: u64,
    /// At most [`MAX_ACCUSERS`].
    accusers: Vec<P>,
    since: Moment,
    /// Its place in the order of what is due; of no meaning for the dead.
    due: Moment,
    dead: bool,
    /// Own checks that were begun because only one other node accuses it.
    checks: u32,
    reminded: Moment,
}

/// All exceptional nodes, and when their time is over.
#[derive(Debug)]
pub(super) struct Suspects<P> {
    held: BTreeMap<P, Suspect<P>>,
    /// Of the suspects that are not dead.
    order: BTreeSet<(Moment, P)>,
    dead: usize,
}

impl<P: Peer> Suspects<P> {
    pub(super) fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            order: BTreeSet::new(),
            dead: 0,
        }
    }

    /// Whether a node is suspect or dead.
    pub(super) fn holds(&self, peer: &P) -> bool {
        !self.held.is_empty() && self.held.contains_key(peer)
    }

    pub(super) fn liveness(&self, peer: &P) -> Liveness {
        match self.held.get(peer) {
            None => Liveness::Alive,
            Some(suspect) if suspect.dead => Liveness::Dead,
            Some(_) => Liveness::Suspect,
        }
    }

    pub(super) fn dead(&self) -> usize {
        self.dead
    }

    pub(super) fn suspected(&self) -> impl Iterator<Item = P> + '_ {
        self.held
            .iter()
            .filter(|(_, held)| !held.dead)
            .map(|(peer, _)| *peer)
    }

    /// The `n`-th dead node.
    pub(super) fn nth_dead(&self, n: usize) -> Option<P> {
        let mut dead = self.held.iter().filter(|(_, held)| held.dead);
        dead.nth(n).map(|(peer, _)| *peer)
    }

    pub(super) fn first_due(&self) -> Option<Moment> {
        self.order.first().map(|(due, _)| *due)
    }

    /// Drops a node; says what it was.
    pub(super) fn remove(&mut self, peer: &P) -> Option<Liveness> {
        let suspect = self.held.remove(peer)?;
        if suspect.dead {
            self.dead -= 1;
            return Some(Liveness::Dead);
        }
        self.order.remove(&(suspect.due, *peer));
        Some(Liveness::Suspect)
    }

    /// Gives every suspect this much more time.
    pub(super) fn delay(&mut self, late: Duration) {
        self.order.clear();
        for (peer, suspect) in &mut self.held {
            if !suspect.dead {
                suspect.since = suspect.since + late;
                suspect.due = suspect.due + late;
                self.order.insert((suspect.due, *peer));
            }
        }
    }

    fn postpone(&mut self, peer: P, due: Moment) {
        if let Some(suspect) = self.held.get_mut(&peer) {
            self.order.remove(&(suspect.due, peer));
            suspect.due = due;
            self.order.insert((due, peer));
        }
    }
}

impl<P: Peer> Membership<P> {
    /// Nodes known and not dead, the local one not counted.
    pub(super) fn living(&self, cx: &Context<'_, P>) -> usize {
        cx.ledger.nodes().saturating_sub(self.suspects.dead)
    }

    /// This node did not reach `peer` and trusts itself: it says so to all, unless enough do.
    pub(super) fn accuse(&mut self, cx: &mut Context<'_, P>, peer: P) {
        let Some(version) = cx.version(peer) else {
            // Nobody has heard of it: nobody needs to hear that it is gone.
            return self.drop_neighbour(cx, peer);
        };
        let known = self.suspects.held.get(&peer);
        let enough = known.is_some_and(|suspect| {
            suspect.dead
                || suspect.accusers.contains(&self.local)
                || suspect.accusers.len() >= MAX_ACCUSERS
        });
        if !enough && self.suspect(cx, peer, self.local, version) {
            self.stats.accusations += 1;
            cx.out.push(Action::Accuse {
                accused: peer,
                version,
            });
        }
    }

    /// An accusation was heard. The flood that brought it goes on to the accused if that is a
    /// neighbour, which has time to object before this node looks for itself.
    pub(super) fn on_suspicion(
        &mut self,
        cx: &mut Context<'_, P>,
        accused: P,
        accuser: P,
        version: u64,
    ) {
        if accused == self.local {
            return self.on_own_suspicion(cx, version);
        }
        let Some(held) = cx.version(accused) else {
            return;
        };
        if version < held {
            return;
        }
        self.suspect(cx, accused, accuser, version);
    }

    /// Whether others accuse a neighbour and this node, which did not reach it either, still
    /// waits to join them. A node that merely stalled objects by then, which spares the mesh all
    /// accusations but the first, and the node the shorter time.
    pub(super) fn may_yet_object(&self, cx: &Context<'_, P>, peer: P) -> bool {
        let suspect = self.suspects.held.get(&peer);
        suspect.is_some_and(|suspect| !suspect.dead && cx.now < self.confirm_at(cx, suspect))
            && self.is_neighbour(peer)
    }

    /// When the neighbours of a suspect look for themselves: early enough for their accusations
    /// to shorten its time.
    fn confirm_at(&self, cx: &Context<'_, P>, suspect: &Suspect<P>) -> Moment {
        let nodes = cx.ledger.nodes() + 1;
        suspect.since + self.config.suspicion(MAX_ACCUSERS, MAX_ACCUSERS, nodes) * 2 / 5
    }

    /// Notes an accusation; says whether it is a new one.
    fn suspect(&mut self, cx: &mut Context<'_, P>, peer: P, accuser: P, version: u64) -> bool {
        if self
            .suspects
            .held
            .get(&peer)
            .is_some_and(|held| held.version < version)
        {
            // It had refuted the older accusation.
            self.clear(cx, peer);
        }
        if !self.suspects.holds(&peer) {
            if self.suspects.held.len() >= MAX_SUSPECTS {
                return false;
            }
            self.stats.suspicions += 1;
            cx.out.push(Action::Status {
                peer,
                status: Liveness::Suspect,
            });
            let suspect = Suspect {
                version,
                accusers: Vec::new(),
                since: cx.now,
                due: cx.now,
                dead: false,
                checks: 0,
                reminded: Moment::ZERO,
            };
            self.suspects.held.insert(peer, suspect);
            if self.is_neighbour(peer) {
                self.due.view = cx.now;
            }
        }
        let Some(suspect) = self.suspects.held.get_mut(&peer) else {
            return false;
        };
        if suspect.version > version || suspect.accusers.contains(&accuser) {
            return false;
        }
        if suspect.accusers.len() >= MAX_ACCUSERS {
            // The same as the ledger keeps, so that the suspect can be told of them.
            let largest = suspect.accusers.iter_mut().max();
            if let Some(largest) = largest.filter(|largest| accuser < **largest) {
                *largest = accuser;
            }
            return false;
        }
        suspect.accusers.push(accuser);
        if !suspect.dead {
            let due = self.next_look(cx, peer);
            self.suspects.postpone(peer, due);
        }
        true
    }

    /// When to look at a suspect: to check it, when it is a neighbour, or to end its time. What is
    /// added to that because this node feels slow is waited for in steps: it may get well.
    fn next_look(&self, cx: &Context<'_, P>, peer: P) -> Moment {
        let Some(suspect) = self.suspects.held.get(&peer) else {
            return cx.now;
        };
        let confirm = self.confirm_at(cx, suspect);
        let soonest = suspect.since + self.unhurried(cx, suspect.accusers.len());
        if confirm > cx.now && self.is_neighbour(peer) {
            soonest.min(confirm)
        } else if soonest > cx.now {
            soonest
        } else {
            let end = suspect.since + self.time_to_object(cx, suspect.accusers.len());
            end.min(cx.now + RESPITE / 2)
        }
    }

    /// How long a suspect has to object when this node is well.
    fn unhurried(&self, cx: &Context<'_, P>, accusers: usize) -> Duration {
        // Everybody living but the suspect may accuse it, this node too.
        let possible = self.living(cx);
        self.config
            .suspicion(accusers, possible, cx.ledger.nodes() + 1)
    }

    /// How long it has: a slow node reads objections late. That counts less than for probes, so
    /// that a mesh on bad links still agrees in time.
    fn time_to_object(&self, cx: &Context<'_, P>, accusers: usize) -> Duration {
        self.unhurried(cx, accusers) * (8 + self.health) / 8
    }

    /// A version of `peer` is held: what was accused before it is refuted.
    pub(super) fn on_version(&mut self, cx: &mut Context<'_, P>, peer: P, version: u64) {
        let refutes = |suspect: &Suspect<P>| suspect.version < version;
        if !self.suspects.held.is_empty() && self.suspects.held.get(&peer).is_some_and(refutes) {
            self.clear(cx, peer);
        }
    }

    fn clear(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.suspects.remove(&peer).is_some() {
            self.stats.refuted += 1;
            let status = Liveness::Alive;
            cx.out.push(Action::Status { peer, status });
        }
    }

    /// Ends the time of suspects that did not object.
    pub(super) fn run_suspicions(&mut self, cx: &mut Context<'_, P>) {
        while let Some((due, peer)) = self.suspects.order.first().copied() {
            if due > cx.now {
                return;
            }
            match self.time_over(cx, peer) {
                Verdict::Wait(until) => self
                    .suspects
                    .postpone(peer, until.max(cx.now + RESPITE / 8)),
                Verdict::Refuted => self.clear(cx, peer),
                Verdict::Dead => self.declare_dead(cx, peer),
            }
        }
    }

    fn time_over(&mut self, cx: &mut Context<'_, P>, peer: P) -> Verdict {
        let Some(suspect) = self.suspects.held.get(&peer) else {
            return Verdict::Refuted;
        };
        if cx.version(peer).is_some_and(|held| held > suspect.version) {
            return Verdict::Refuted;
        }
        let joined = suspect.accusers.contains(&self.local);
        let on_a_word = suspect.accusers.len() < 2 && !joined;
        // What this node thinks of itself, and how many nodes there are, may have changed.
        let due = suspect.since + self.time_to_object(cx, suspect.accusers.len());
        if due > cx.now {
            if !joined && self.is_neighbour(peer) && cx.now >= self.confirm_at(cx, suspect) {
                self.check(cx, peer, Why::Probe);
            }
            return Verdict::Wait(self.next_look(cx, peer));
        }
        if self.is_doubting(cx.now) {
            return Verdict::Wait(cx.now + RESPITE);
        }
        let fresh =
            |held: &super::Neighbour<P>| held.peer == peer && cx.now.since(held.reached) < FRESH;
        if self.neighbours.iter().any(fresh) {
            self.tell_accusations(cx, peer);
            return Verdict::Wait(cx.now + RESPITE);
        }
        if !on_a_word {
            return Verdict::Dead;
        }
        // One other node's word. This node tries itself, and accuses when it fails.
        let backoff = self.config.probe_timeout * 2u32.pow(suspect.checks.min(MAX_CHECK_BACKOFF));
        if self.check(cx, peer, Why::Probe) {
            if let Some(suspect) = self.suspects.held.get_mut(&peer) {
                suspect.checks += 1;
            }
            return Verdict::Wait(cx.now + self.stretch(backoff) + RESPITE);
        }
        Verdict::Wait(cx.now + cx.chance.jitter(RESPITE))
    }

    fn declare_dead(&mut self, cx: &mut Context<'_, P>, peer: P) {
        let Some(suspect) = self.suspects.held.get_mut(&peer) else {
            return;
        };
        self.suspects.order.remove(&(suspect.due, peer));
        suspect.dead = true;
        self.suspects.dead += 1;
        self.stats.deaths += 1;
        let status = Liveness::Dead;
        cx.out.push(Action::Status { peer, status });
        self.drop_neighbour(cx, peer);
        let soon = cx.now + cx.chance.jitter(self.survey_interval(cx));
        self.due.survey = self.due.survey.min(soon);
    }

    /// A suspect that talks to this node is told what it is accused of.
    pub(super) fn remind(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if !self.suspects.holds(&peer) {
            return;
        }
        let Some(suspect) = self.suspects.held.get_mut(&peer) else {
            return;
        };
        if cx.now.since(suspect.reminded) >= REMIND {
            suspect.reminded = cx.now;
            self.tell_accusations(cx, peer);
        }
    }

    /// Lifeguard's "buddy system" (section IV-C): the accused hears of it first of all, so that
    /// it can object. When no ledger holds an accusation any more, this node makes one.
    pub(super) fn tell_accusations(&mut self, cx: &mut Context<'_, P>, accused: P) {
        let Some(suspect) = self.suspects.held.get_mut(&accused) else {
            return;
        };
        let version = suspect.version;
        let mut told = false;
        for accuser in &suspect.accusers {
            let key = Key::Suspicion {
                accused,
                accuser: *accuser,
            };
            if cx.ledger.version(&key) == Some(version) {
                cx.tell(accused, key);
                told = true;
            }
        }
        if !told {
            if !suspect.accusers.contains(&self.local) {
                suspect.accusers.truncate(MAX_ACCUSERS - 1);
                suspect.accusers.push(self.local);
            }
            cx.out.push(Action::Accuse { accused, version });
        }
    }
}

/// What becomes of a suspect whose time may be over.
enum Verdict {
    Wait(Moment),
    Refuted,
    Dead,
}
