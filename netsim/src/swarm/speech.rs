//! What nodes say, take, renew and forget.

use meshwork_proto::membership::{Input, Key, Liveness, Outcome, renewal_ttl};

use super::book::Statement;
use super::ledger::Fact;
use super::sim::{Event, Sim};

impl Sim<'_> {
    /// A node says something of itself: an announcement, or a beat upon its last one.
    pub(super) fn announce(&mut self, n: u32, above: u32, anew: bool) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        node.version = node.version.max(above) + 1;
        if anew || node.base == 0 {
            node.base = node.version;
        }
        let ttl = renewal_ttl(node.ledger.nodes());
        let statement = Statement {
            version: node.version,
            base: node.base,
            issued: node.clock(now),
            ttl: i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX),
        };
        let key = Key::Node(n);
        node.ledger.speak(&statement);
        self.say(n, statement);
        self.plan_renewal(n);
        self.inputs.push_back((n, Input::Published { key }));
    }

    pub(super) fn say(&mut self, n: u32, statement: Statement) {
        self.book.say(n, statement);
        let true_issue = statement.issued.saturating_sub(self.nodes[n as usize].skew);
        let ends = true_issue.saturating_add(statement.ttl);
        let version = statement.version;
        let at = u64::try_from(ends).unwrap_or(0);
        self.queue.push(at, Event::Expire { node: n, version });
    }

    /// Renews the announcement after a third of its life.
    pub(super) fn plan_renewal(&mut self, n: u32) {
        let now = self.queue.now();
        let node = &self.nodes[n as usize];
        let Some(said) = self.book.statement(n, node.version) else {
            return;
        };
        let age = node.clock(now).saturating_sub(said.issued);
        let left = u64::try_from((said.ttl / 3).saturating_sub(age)).unwrap_or(0);
        self.plans += 1;
        let planned = self.plans;
        self.nodes[n as usize].renewal = planned;
        self.queue
            .push(now + left.max(1), Event::Renew { node: n, planned });
    }

    pub(super) fn on_renew(&mut self, n: u32, planned: u64) {
        let now = self.queue.now();
        let node = &self.nodes[n as usize];
        if node.renewal != planned || !node.runs() {
            return;
        }
        let said = self.book.statement(n, node.version);
        let due =
            said.is_none_or(|said| node.clock(now).saturating_sub(said.issued) >= said.ttl / 3);
        if due {
            self.announce(n, 0, false);
            self.feed_all();
        } else {
            self.plan_renewal(n);
        }
    }

    /// Those that still hold this version drop it, each by its own clock.
    pub(super) fn on_expire(&mut self, subject: u32, version: u32) {
        let now = self.queue.now();
        let Some(said) = self.book.statement(subject, version).copied() else {
            return;
        };
        let ends = said.issued.saturating_add(said.ttl);
        let mut next = u64::MAX;
        for n in 0..self.spec.nodes {
            let node = &mut self.nodes[n as usize];
            if n == subject || node.ledger.version_of(subject) != version {
                continue;
            }
            let left = ends.saturating_sub(node.clock(now));
            if left > 0 {
                next = next.min(now + left.unsigned_abs());
            } else {
                let clock = node.clock(now);
                let gone = node.ledger.expire(subject, clock);
                if self.nodes[n as usize].runs() {
                    for subject in gone {
                        self.forget(n, subject);
                    }
                }
            }
        }
        if next < u64::MAX {
            let node = subject;
            self.queue.push(next, Event::Expire { node, version });
        }
        self.feed_all();
    }

    /// A node's ledger dropped another; what the node held of it is void.
    pub(super) fn forget(&mut self, n: u32, subject: u32) {
        let now = self.queue.now();
        self.trace.note(now, n, 3, || format!("forgets {subject}"));
        let node = &mut self.nodes[n as usize];
        let before = node.view.remove(&subject).unwrap_or(Liveness::Alive);
        let (honest, began) = (node.is_honest(), node.changed);
        if honest {
            self.mark(subject, before, Liveness::Alive);
            self.watches
                .judged(subject, began, before, Liveness::Alive, now);
        }
        self.inputs
            .push_back((n, Input::Forgotten { peer: subject }));
    }

    /// A node's ledger takes a fact, or does not.
    pub(super) fn accept(&mut self, n: u32, fact: &Fact) -> (Key<u32>, u64, Outcome) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        let clock = node.clock(now);
        let Key::Node(origin) = fact.key else {
            return node.ledger.accept(fact, &self.book, clock);
        };
        let before = node.ledger.version_of(origin);
        let taken = node.ledger.accept(fact, &self.book, clock);
        let after = node.ledger.version_of(origin);
        if after == before {
            return taken;
        }
        let honest = node.is_honest();
        if after < before || after > self.book.latest(origin) {
            self.break_off(&format!(
                "node {n} holds version {after} of {origin} after {before}"
            ));
        }
        if honest {
            let began = self.nodes[n as usize].changed;
            self.watches.learnt(origin, began, before, after, now);
        }
        taken
    }

    pub(super) fn on_status(&mut self, n: u32, subject: u32, after: Liveness) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        let before = node.liveness(subject);
        if after == Liveness::Alive {
            node.view.remove(&subject);
        } else {
            node.view.insert(subject, after);
        }
        if !node.is_honest() || before == after {
            return;
        }
        let observer_excused = node.excused_until > now;
        self.mark(subject, before, after);
        let began = self.nodes[n as usize].changed;
        self.watches.judged(subject, began, before, after, now);
        let other = &self.nodes[subject as usize];
        let reachable = other.runs() && other.excused_until <= now && !observer_excused;
        if reachable && !self.is_divided() {
            match after {
                Liveness::Dead => {
                    self.watches.false_deaths += 1;
                    self.trace
                        .note(now, n, 5, || format!("FALSELY declares {subject} dead"));
                }
                Liveness::Suspect => self.watches.false_suspicions += 1,
                Liveness::Alive => {}
            }
        }
    }

    /// Keeps count of who is held dead.
    pub(super) fn mark(&mut self, subject: u32, before: Liveness, after: Liveness) {
        let dead = |liveness| i64::from(liveness == Liveness::Dead);
        let change = dead(after) - dead(before);
        if change == 0 {
            return;
        }
        let marks = &mut self.watches.dead_marks[subject as usize];
        *marks = marks.saturating_add_signed(i32::try_from(change).unwrap_or(0));
        if self.nodes[subject as usize].runs() {
            self.watches.wrongly_dead = self.watches.wrongly_dead.saturating_add_signed(change);
        }
    }
}
