//! What happens to a swarm, and when: the steps of its scenario.

use meshwork_proto::membership::{Input, Liveness};

use super::link::micros;
use super::node::Node;
use super::sim::{Event, GRACE, Sim};
use super::spec::{ClockStep, PauseStep, Pick, Step};
use super::watch::{Heal, Spread};

impl Sim<'_> {
    pub(super) fn on_step(&mut self, at: usize) {
        let step = self.spec.step[at].clone();
        self.do_step(&step);
        if let Some(every) = step.every {
            let until = step.until.map_or(u64::MAX, micros);
            let next = self.queue.now() + micros(every).max(1);
            if next < until.min(self.quiet_from) {
                self.queue.push(next, Event::Step { step: at });
            }
        }
    }

    fn do_step(&mut self, step: &Step) {
        if let Some(pick) = step.publish {
            for node in self.pick(pick, |node| node.runs && node.honest) {
                self.publish(node);
            }
        }
        if let Some(pick) = step.crash {
            for node in self.pick(pick, |node| node.runs && node.honest) {
                self.crash(node);
            }
        }
        if let Some(pick) = step.restart {
            for node in self.pick(pick, |node| !node.runs && node.was_there) {
                self.reset(node);
                self.begin_within(node, A_SECOND);
            }
        }
        if let Some(pick) = step.reborn {
            for node in self.pick(pick, |node| !node.runs && node.was_there) {
                self.wipe(node);
                self.begin_within(node, A_SECOND);
            }
        }
        if let Some(PauseStep { nodes, length }) = &step.pause {
            let until = self.queue.now() + micros(*length);
            for node in self.pick(*nodes, |node| node.runs) {
                let node = &mut self.nodes[node as usize];
                node.stalled_until = node.stalled_until.max(until);
                node.excused_until = node.excused_until.max(until + GRACE);
            }
        }
        if let Some(pick) = step.leave {
            for node in self.pick(pick, |node| node.runs && node.honest) {
                self.leave(node);
            }
        }
        if let Some(pick) = step.join {
            for node in self.pick(pick, |node| !node.runs && !node.was_there) {
                self.begin_within(node, A_SECOND);
            }
        }
        self.do_cut(step);
        if step.heal {
            self.heal();
        }
        if let Some(within) = &step.restart_all {
            self.restart_all(micros(*within.start()), micros(*within.end()));
        }
        if let Some(ClockStep {
            nodes,
            forward,
            back,
        }) = &step.clock
        {
            let forward = forward.map_or(0, micros).cast_signed();
            let back = back.map_or(0, micros).cast_signed();
            for node in self.pick(*nodes, |_| true) {
                self.nodes[node as usize].skew += forward - back;
                self.recheck_clock(node);
            }
        }
        if let Some(age) = step.age {
            self.age(micros(age));
        }
        if let Some(loss) = step.loss {
            self.wire.loss = loss;
        }
    }

    fn do_cut(&mut self, step: &Step) {
        if let Some(pick) = step.partition {
            let bit = 1 << (self.partitions % 64);
            self.partitions += 1;
            for node in self.pick(pick, |_| true) {
                self.sides[node as usize] |= bit;
            }
        }
        if let Some(pick) = step.mute {
            for node in self.pick(pick, |_| true) {
                self.muted[node as usize] = true;
            }
        }
        if let Some(pick) = step.deafen {
            for node in self.pick(pick, |_| true) {
                self.deaf[node as usize] = true;
            }
        }
    }

    /// An announcement with new content, whose spreading is measured.
    fn publish(&mut self, n: u32) {
        let needed = most(self.honest());
        self.announce(n, 0, true);
        let spread = Spread {
            version: self.nodes[n as usize].version,
            since: self.queue.now(),
            count: 1,
            needed,
        };
        self.watches.spreads.insert(n, spread);
        self.feed_all();
    }

    fn crash(&mut self, n: u32) {
        let now = self.queue.now();
        self.stop(n);
        let needed = most(self.honest());
        self.watches.died(n, needed, now);
        // Who doubts it already, does so rightly now.
        for observer in 0..self.spec.nodes {
            let node = &self.nodes[observer as usize];
            if node.runs() && node.is_honest() {
                let (liveness, began) = (node.liveness(n), node.changed);
                self.watches
                    .judged(n, began, Liveness::Alive, liveness, now);
            }
        }
    }

    /// An orderly shutdown.
    fn leave(&mut self, n: u32) {
        let now = self.queue.now();
        self.input(n, Input::Leave);
        let life = self.nodes[n as usize].life;
        self.queue
            .push(now + GOOD_BYE, Event::End { node: n, life });
    }

    pub(super) fn on_end(&mut self, n: u32, life: u32) {
        if self.nodes[n as usize].life != life {
            return;
        }
        for (_, end) in self.nodes[n as usize].links.clone() {
            self.close(end);
        }
        self.stop(n);
    }

    fn begin_within(&mut self, node: u32, within: u64) {
        let at = self.queue.now() + self.fate.within(&(0..=within));
        self.queue.push(at, Event::Begin { node });
    }

    /// The disk holds nothing but the identity and the ticket.
    fn wipe(&mut self, n: u32) {
        let contacts = self.pick(Pick::Count(2), |node| node.runs);
        let node = &mut self.nodes[n as usize];
        node.ledger.reset();
        node.contacts = contacts;
        (node.version, node.base) = (0, 0);
    }

    fn heal(&mut self) {
        let now = self.queue.now();
        self.sides.fill(0);
        self.muted.fill(false);
        self.deaf.fill(false);
        self.partitions = 0;
        for node in &mut self.nodes {
            node.excused_until = node.excused_until.max(now + GRACE);
        }
        self.watch_heal(now);
    }

    fn restart_all(&mut self, from: u64, to: u64) {
        let now = self.queue.now();
        let mut last = 0;
        let all = self.pick(Pick::All, |node| node.runs);
        for node in all {
            self.stop(node);
            self.reset(node);
            let after = self.fate.within(&(from..=to));
            last = last.max(after);
            self.queue.push(now + after, Event::Begin { node });
        }
        self.watch_heal(now + last);
    }

    /// What the memory held is gone; the disk keeps the counter and the peer cache.
    fn reset(&mut self, n: u32) {
        self.keep_peers(n);
        self.nodes[n as usize].ledger.reset();
    }

    /// From `since` on it is looked at whether all agree.
    fn watch_heal(&mut self, since: u64) {
        let counts = |node: &Node| node.was_there && node.is_honest();
        let wanted = self.nodes.iter().map(|node| {
            if counts(node) && (node.runs() || node.version > 0) {
                node.version
            } else {
                0
            }
        });
        let wanted: Vec<u32> = wanted.collect();
        let all = 0..self.spec.nodes;
        let ignorant = all.filter(|n| wanted[*n as usize] > 0).collect();
        self.watches.heal = Some(Heal {
            since,
            wanted,
            ignorant,
        });
        self.queue.push(since + LOOK, Event::Look);
    }

    pub(super) fn on_look(&mut self) {
        let now = self.queue.now();
        let Some(mut heal) = self.watches.heal.take() else {
            return;
        };
        let nodes = &self.nodes;
        while let Some(observer) = heal.ignorant.last() {
            let observer = &nodes[*observer as usize];
            let mut wanted = (0..)
                .zip(&heal.wanted)
                .filter(|(n, version)| **version > 0 && nodes[*n as usize].runs());
            let ledger = &observer.ledger;
            if observer.runs() && !wanted.all(|(n, version)| ledger.version_of(n) >= *version) {
                break;
            }
            heal.ignorant.pop();
        }
        let agree = heal.ignorant.is_empty() && self.watches.wrongly_dead == 0;
        self.watches.heal = Some(heal);
        if agree {
            self.watches.healed(now);
        } else {
            self.queue.push(now + LOOK, Event::Look);
        }
    }

    /// Time passes on all clocks, and on nobody's timers.
    fn age(&mut self, by: u64) {
        let by = by.cast_signed();
        for node in &mut self.nodes {
            node.skew += by;
        }
        // Its own announcement is as old as all others: everybody renews at once.
        for n in self.pick(Pick::All, |node| node.runs) {
            self.announce(n, 0, false);
        }
        self.feed_all();
        for n in 0..self.spec.nodes {
            self.recheck_clock(n);
        }
    }

    /// A clock jumped: what has expired by it is dropped, a renewal that is due is done.
    fn recheck_clock(&mut self, n: u32) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        let clock = node.clock(now);
        let ledger = &node.ledger;
        let expired = |other: &u32| {
            let said = self.book.statement(*other, ledger.version_of(*other));
            said.is_some_and(|said| said.issued.saturating_add(said.ttl) <= clock)
        };
        let expired: Vec<u32> = ledger.known().into_iter().filter(expired).collect();
        for peer in expired {
            for gone in self.nodes[n as usize].ledger.expire(peer, clock) {
                self.forget(n, gone);
            }
        }
        self.feed_all();
        self.plan_renewal(n);
    }

    /// Some nodes among those that `eligible` lets through, in a random order.
    pub(super) fn pick(&mut self, pick: Pick, eligible: impl Fn(&Standing) -> bool) -> Vec<u32> {
        let able = |n: &u32| eligible(&Standing::of(*n, &self.nodes[*n as usize]));
        let mut able: Vec<u32> = (0..self.spec.nodes).filter(able).collect();
        let all = able.len();
        match pick {
            Pick::All => able,
            Pick::First(n) => able.into_iter().take(n as usize).collect(),
            Pick::FirstShare(share) => able.into_iter().take(part(all, share)).collect(),
            Pick::Rack(n) => {
                let start = if all == 0 { 0 } else { self.fate.pick(all) };
                able.rotate_left(start);
                able.truncate(n as usize);
                able
            }
            Pick::Count(n) => self.some(able, n as usize),
            Pick::Share(share) => {
                let count = part(all, share);
                self.some(able, count)
            }
        }
    }

    fn some(&mut self, mut of: Vec<u32>, count: usize) -> Vec<u32> {
        let count = count.min(of.len());
        for at in 0..count {
            let other = at + self.fate.pick(of.len() - at);
            of.swap(at, other);
        }
        of.truncate(count);
        of
    }
}

/// What picking asks of a node.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) number: u32,
    pub(super) runs: bool,
    pub(super) was_there: bool,
    pub(super) honest: bool,
}

impl Standing {
    fn of(number: u32, node: &Node) -> Self {
        Self {
            number,
            runs: node.runs(),
            was_there: node.was_there,
            honest: node.is_honest(),
        }
    }
}

/// 99.9 % of so many, rounded up.
fn most(of: usize) -> usize {
    (of * 999).div_ceil(1000)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn part(of: usize, share: f64) -> usize {
    (of as f64 * share).ceil() as usize
}

/// Processes that begin together do so within this.
const A_SECOND: u64 = 1_000_000;
/// A process that leaves ends this long after it has said so.
const GOOD_BYE: u64 = 300_000;
/// Time between two looks at whether all agree.
const LOOK: u64 = 100_000;
