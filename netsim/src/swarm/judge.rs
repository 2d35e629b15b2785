//! Whether all is as it must be at the end, after a time without faults.

use meshwork_proto::membership::{Liveness, Membership};

use super::sim::Sim;
use crate::scenario::Outcome;

impl Sim<'_> {
    /// Looks at the end for the first time: what is lopsided now and still is at the end, is so
    /// for good.
    pub(super) fn on_review(&mut self) {
        self.lopsided = self.lopsided_pairs();
    }

    /// Every pair of honest nodes of which only one holds the other for its neighbour.
    fn lopsided_pairs(&self) -> Vec<(u32, u32)> {
        let mut pairs = Vec::new();
        for (n, node) in (0..).zip(&self.nodes) {
            let Some(machine) = node.machine.as_ref().filter(|_| node.is_honest()) else {
                continue;
            };
            for peer in machine.active() {
                let other = &self.nodes[peer as usize];
                let mutual = other.machine.as_ref();
                let mutual = mutual.is_some_and(|other| other.active().any(|back| back == n));
                if !mutual && other.is_honest() {
                    pairs.push((n, peer));
                }
            }
        }
        pairs
    }

    /// Holds the end against the invariants.
    pub(super) fn judge(&mut self, out: &mut Outcome) {
        self.judge_views();
        if self.spec.quiet.is_some() {
            self.judge_pairs();
            self.judge_agreement();
            self.judge_wholeness();
        }
        #[allow(clippy::cast_precision_loss)]
        out.measure("wrongly_dead_at_end", self.watches.wrongly_dead as f64);
    }

    fn judge_views(&mut self) {
        let mut broken = Vec::new();
        for (n, node) in (0u32..).zip(&self.nodes) {
            let Some(machine) = &node.machine else {
                continue;
            };
            let active: Vec<u32> = machine.active().collect();
            if active.len() > self.config.active_max {
                broken.push(format!("node {n} has {} neighbours", active.len()));
            }
            if active.contains(&n) {
                broken.push(format!("node {n} is its own neighbour"));
            }
        }
        for what in broken {
            self.break_off(&what);
        }
    }

    fn judge_pairs(&mut self) {
        let still = self.lopsided_pairs();
        let before = std::mem::take(&mut self.lopsided);
        for (n, peer) in still {
            if before.contains(&(n, peer)) {
                self.break_off(&format!(
                    "{n} holds {peer} for a neighbour, which does not know it"
                ));
            }
        }
    }

    /// All agree who lives, and know of everybody what it said before the last minute or so.
    fn judge_agreement(&mut self) {
        let now = self.queue.now();
        // Who is alone cannot know whether the others died or it was cut off.
        let alone = self.nodes.iter().filter(|node| node.runs()).count() == 1;
        let mut broken = Vec::new();
        for (n, node) in (0u32..).zip(&self.nodes) {
            if !node.runs() || !node.is_honest() {
                continue;
            }
            for (s, subject) in (0u32..).zip(&self.nodes) {
                let held = node.ledger.version_of(s);
                if s == n || !subject.was_there || !subject.is_honest() {
                    continue;
                }
                let liveness = node.liveness(s);
                let settled = now.saturating_sub(subject.changed) > SETTLED;
                if subject.runs() {
                    let said = self
                        .book
                        .statement(s, held)
                        .map_or(i64::MIN, |said| said.issued);
                    let newest = self.book.statement(s, subject.version);
                    let age = newest.map_or(0, |newest| subject.clock(now) - newest.issued);
                    if liveness == Liveness::Dead {
                        broken.push(format!("{n} holds {s} dead, which lives"));
                    } else if settled && held != subject.version && age > FRESH {
                        broken.push(format!(
                            "{n} holds version {held} of {s}, said at {said}, not {}",
                            subject.version
                        ));
                    }
                } else if settled && !alone && held > 0 && liveness != Liveness::Dead {
                    broken.push(format!("{n} holds {s} {liveness:?}, which is dead"));
                }
            }
        }
        for what in broken {
            self.break_off(&what);
        }
    }

    /// The honest nodes that run hang together by their neighbours.
    fn judge_wholeness(&mut self) {
        let runs = |n: usize| self.nodes[n].runs();
        let Some(first) = (0..self.nodes.len()).find(|n| runs(*n)) else {
            return;
        };
        let mut seen = vec![false; self.nodes.len()];
        let mut next = vec![first];
        seen[first] = true;
        while let Some(n) = next.pop() {
            let active = self.nodes[n].machine.iter().flat_map(Membership::active);
            for peer in active.map(|peer| peer as usize) {
                if runs(peer) && !std::mem::replace(&mut seen[peer], true) {
                    next.push(peer);
                }
            }
        }
        let cut_off = (0..self.nodes.len())
            .filter(|n| runs(*n) && !seen[*n])
            .count();
        if cut_off > 0 {
            self.break_off(&format!(
                "{cut_off} nodes do not hang together with node {first}"
            ));
        }
    }
}

/// A node that began or ended longer ago is known to have.
const SETTLED: u64 = 60_000_000;
/// What was said within this may still be on its way, in microseconds.
const FRESH: i64 = 15_000_000;
