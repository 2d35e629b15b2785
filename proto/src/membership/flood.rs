//! Spreads facts, and objects to one's own death.

use std::time::Duration;

use super::probe::How;
use super::{Action, Context, Key, Membership, Message, Moment, Outcome, Peer};

/// The local node objects at most this often, and again when nothing was published in twice that.
const OBJECT: Duration = Duration::from_secs(1);
/// Accusations raise the local health at most this often.
const BLAMED: Duration = Duration::from_mins(1);
/// Accusations of versions further above the own one are not believed: who answered to them
/// would soon run out of versions.
const CREDIBLE: u64 = 1 << 20;
/// A neighbour that holds an older version than one published this long ago has missed it.
const SPREAD: Duration = Duration::from_secs(3);

/// What others hold of the local node.
#[derive(Debug)]
pub(super) struct Own {
    /// When it last published what it says of itself.
    published: Moment,
    /// The version that an objection must exceed, and when it is to be made.
    objection: Option<(u64, Moment)>,
    objected: Option<Moment>,
    /// When an accusation last raised its health.
    blamed: Option<Moment>,
    /// The next objection follows a stall.
    stalled: bool,
}

impl Own {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            published: now,
            objection: None,
            objected: None,
            blamed: None,
            stalled: false,
        }
    }

    pub(super) fn due(&self) -> Option<Moment> {
        self.objection.map(|(_, at)| at)
    }
}

impl<P: Peer> Membership<P> {
    /// Tells all neighbours but one.
    fn flood(&mut self, cx: &mut Context<'_, P>, key: Key<P>, except: Option<P>) {
        for neighbour in &self.neighbours {
            if Some(neighbour.peer) != except {
                self.stats.floods += 1;
                cx.tell(neighbour.peer, key);
            }
        }
    }

    pub(super) fn on_published(&mut self, cx: &mut Context<'_, P>, key: Key<P>) {
        self.recent.note(cx.now, cx.ledger.summary());
        self.flood(cx, key, None);
        match key {
            Key::Node(node) if node == self.local => {
                self.own.published = cx.now;
                if std::mem::take(&mut self.own.stalled) {
                    // Messages do not wait as facts do, and take them along. Besides, who has
                    // given this node up meanwhile says so.
                    self.affirm_all(cx);
                }
            }
            // A linked node that is no neighbour hears of the accusation too.
            Key::Suspicion { accused, .. }
                if self.links.contains_key(&accused) && !self.is_neighbour(accused) =>
            {
                cx.tell(accused, key);
            }
            _ => {}
        }
    }

    pub(super) fn on_heard(
        &mut self,
        cx: &mut Context<'_, P>,
        from: P,
        key: Key<P>,
        version: u64,
        outcome: Outcome,
    ) {
        match outcome {
            Outcome::New { hops } => {
                self.recent.note(cx.now, cx.ledger.summary());
                if hops < self.config.max_hops {
                    self.flood(cx, key, Some(from));
                }
            }
            Outcome::Duplicate => {
                self.stats.duplicates += 1;
                cx.out.push(Action::Untell { to: from, key });
            }
            Outcome::Old => {
                if self.spend(cx.now, from, 1, cx.ledger.nodes()) {
                    cx.tell(from, key);
                }
            }
            Outcome::Incomplete => {
                cx.send(from, Message::Want { keys: vec![key] });
            }
            Outcome::Refused => {
                self.stats.refused += 1;
                return;
            }
        }
        let held = matches!(outcome, Outcome::New { .. } | Outcome::Duplicate);
        match key {
            // Old, when a ledger takes for a rollback what the local node said before it lost
            // its counter.
            Key::Node(node) if node == self.local && outcome != Outcome::Incomplete => {
                self.on_own_version(cx, version);
            }
            Key::Node(node) if held => {
                if matches!(outcome, Outcome::New { .. }) {
                    self.reached(cx.now, node, How::Word);
                }
                self.on_version(cx, node, version);
            }
            Key::Suspicion { accused, accuser } if held => {
                self.on_suspicion(cx, accused, accuser, version);
            }
            _ => {}
        }
    }

    /// A neighbour's ping tells which version of the local node it holds.
    pub(super) fn compare_versions(&mut self, cx: &mut Context<'_, P>, from: P, theirs: u64) {
        let own = Key::Node(self.local);
        let mine = cx.ledger.version(&own).unwrap_or(0);
        if theirs == mine || cx.now.since(self.own.published) < SPREAD {
            return;
        }
        if !self.spend(cx.now, from, 1, cx.ledger.nodes()) {
            return;
        }
        if theirs < mine {
            cx.tell(from, own);
        } else {
            cx.send(from, Message::Want { keys: vec![own] });
        }
    }

    /// The local node's own words came back, of a version that it does not know: its counter
    /// was lost.
    fn on_own_version(&mut self, cx: &mut Context<'_, P>, version: u64) {
        let own = cx.version(self.local).unwrap_or(0);
        if version > own {
            self.object(cx, version);
        }
    }

    /// Somebody holds the local node to be dead.
    pub(super) fn on_own_suspicion(&mut self, cx: &mut Context<'_, P>, version: u64) {
        let own = cx.version(self.local).unwrap_or(0);
        if version < own || version - own > CREDIBLE {
            return;
        }
        let known = self
            .own
            .objection
            .is_some_and(|(above, _)| above >= version);
        if !known {
            self.stats.own_refutations += 1;
            // It was too slow for somebody (Lifeguard, section IV-A). A liar says so often.
            let blamed = self.own.blamed;
            if blamed.is_none_or(|at| cx.now.since(at) >= BLAMED) {
                self.own.blamed = Some(cx.now);
                self.worsen(1);
            }
        }
        self.object(cx, version);
    }

    /// After a stall somebody has probably accused the local node. It does not wait to hear of it:
    /// the accusation may lie behind a call that the stall held up, and the next stall begin before
    /// it comes.
    pub(super) fn object_unasked(&mut self, cx: &mut Context<'_, P>) {
        if let Some(own) = cx.version(self.local) {
            self.stats.own_refutations += 1;
            self.own.stalled = true;
            self.object(cx, own);
        }
    }

    fn object(&mut self, cx: &mut Context<'_, P>, version: u64) {
        let soonest = self.own.objected.map_or(cx.now, |last| last + OBJECT);
        let (above, at) = self.own.objection.unwrap_or((version, soonest));
        self.own.objection = Some((above.max(version), at.min(soonest).max(cx.now)));
        self.run_refutation(cx);
    }

    /// Objects when it is time, until a version above was published.
    pub(super) fn run_refutation(&mut self, cx: &mut Context<'_, P>) {
        let Some((above, at)) = self.own.objection else {
            return;
        };
        if cx.version(self.local).is_some_and(|own| own > above) {
            self.own.objection = None;
            return;
        }
        if cx.now >= at {
            self.own.objected = Some(cx.now);
            self.own.objection = Some((above, cx.now + OBJECT * 2));
            cx.out.push(Action::Refute { above });
        }
    }
}
