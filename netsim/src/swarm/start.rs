//! How a simulation starts: who is there, who is slow, who lies.

use meshwork_proto::membership::{Key, renewal_ttl};

use super::book::Statement;
use super::link::micros;
use super::sim::{Event, Sim};
use super::spec::Start;
use super::store::Store;

impl Sim<'_> {
    pub(super) fn set_up(&mut self) {
        self.set_up_troubles();
        match self.spec.start {
            Start::Converged => self.start_converged(),
            Start::Cold => self.queue.push(0, Event::Begin { node: 0 }),
        }
        for step in 0..self.spec.step.len() {
            let at = micros(self.spec.step[step].at);
            self.queue.push(at, Event::Step { step });
        }
        self.queue.push(micros(self.spec.warm_up), Event::WarmedUp);
        if self.spec.quiet.is_some() {
            let review = self.end.saturating_sub(REVIEW);
            self.queue.push(review, Event::Review);
        }
    }

    fn set_up_troubles(&mut self) {
        if let Some(slow) = self.spec.slow.clone() {
            for node in self.pick(slow.nodes, |_| true) {
                let range = micros(*slow.delay.start())..=micros(*slow.delay.end());
                self.nodes[node as usize].delay = Some(range);
                if let Some(every) = slow.stall_every {
                    let at = self.fate.exponential(micros(every));
                    self.queue.push(at, Event::Stall { node });
                }
            }
        }
        if let Some(skew) = self.spec.skew.map(micros) {
            for node in &mut self.nodes {
                let skew = i64::try_from(skew).unwrap_or(0);
                let ahead = self.fate.within(&(0..=skew.unsigned_abs() * 2));
                node.skew = i64::try_from(ahead).unwrap_or(0) - skew;
            }
        }
        if let Some(adversary) = self.spec.adversary.clone() {
            let from = micros(adversary.from);
            for node in self.pick(adversary.nodes, |node| node.number != 0) {
                self.nodes[node as usize].lies.clone_from(&adversary.does);
                for lie in &adversary.does {
                    self.queue.push(from, Event::Lie { node, lie: *lie });
                }
            }
        }
    }

    /// Everybody is there and knows what everybody said, some time ago.
    fn start_converged(&mut self) {
        let count = self.spec.nodes;
        let ttl = i64::try_from(renewal_ttl(count as usize).as_micros()).unwrap_or(i64::MAX);
        for node in 0..count {
            let third = u64::try_from(ttl / 3).unwrap_or(0);
            let ago = self.fate.within(&(0..=third));
            let ago = i64::try_from(ago).unwrap_or(0);
            let statement = Statement {
                version: 1,
                base: 1,
                issued: self.nodes[node as usize].skew - ago,
                ttl,
            };
            self.nodes[node as usize].ledger.speak(&statement);
            (
                self.nodes[node as usize].version,
                self.nodes[node as usize].base,
            ) = (1, 1);
            self.say(node, statement);
            let begin = self.fate.within(&(0..=1_000_000));
            self.queue.push(begin, Event::Begin { node });
        }
        let facts: Vec<_> = (0..count)
            .map(|node| {
                self.nodes[node as usize]
                    .ledger
                    .fact(&Key::Node(node), &self.book, true)
            })
            .collect();
        for (n, node) in (0..count).zip(&mut self.nodes) {
            let clock = node.clock(0);
            for other in (0..count).filter(|other| *other != n) {
                match (&mut node.ledger, &facts[other as usize]) {
                    (Store::Light(light), _) => light.learn(other, 1),
                    (store, Some(fact)) => {
                        store.accept(fact, &self.book, clock);
                    }
                    (_, None) => {}
                }
            }
        }
    }
}

/// How long before the end it is looked at first.
const REVIEW: u64 = 15_000_000;
