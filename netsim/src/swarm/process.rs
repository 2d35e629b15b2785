//! Processes: how they begin, end, and find back.

use meshwork_proto::membership::{Liveness, Membership};

use super::sim::{Event, GRACE, Sim, moment};
use super::spec::Pick;

impl Sim<'_> {
    /// A process begins, with what its node knows.
    pub(super) fn begin(&mut self, n: u32) {
        let now = self.queue.now();
        if self.nodes[n as usize].runs() {
            return;
        }
        self.choose_contacts(n);
        let node = &mut self.nodes[n as usize];
        node.life += 1;
        node.was_there = true;
        node.changed = now;
        node.timer = u64::MAX;
        node.stalled_until = 0;
        node.ready = 0;
        node.excused_until = now + GRACE;
        let passive = node.contacts.clone();
        let machine = Membership::new(n, self.config.clone(), passive, moment(now), &mut node.rng);
        node.machine = Some(machine);
        let marks = self.watches.dead_marks[n as usize];
        self.watches.wrongly_dead += u64::from(marks);
        self.watches.deaths.remove(&n);
        self.trace.note(now, n, 1, || "begins".to_owned());
        if self.nodes[n as usize].version == 0 || self.nodes[n as usize].ledger.version_of(n) == 0 {
            self.announce(n, 0, true);
        } else {
            self.plan_renewal(n);
        }
        let life = self.nodes[n as usize].life;
        self.queue.push(now, Event::Rejoin { node: n, life });
        self.set_timer(n);
        self.feed_all();
    }

    /// Whom a beginning process can call: those in its cache, or in a ticket.
    fn choose_contacts(&mut self, n: u32) {
        self.keep_peers(n);
        if self.nodes[n as usize].contacts.is_empty() {
            let there = self.pick(Pick::Count(TICKET), |node| node.runs && node.number != n);
            self.nodes[n as usize].contacts = there;
        }
    }

    /// Keeps the peer cache as the product does: those linked, then known ones that come after
    /// this node by number; of those that are not known any more, some.
    pub(super) fn keep_peers(&mut self, n: u32) {
        let node = &mut self.nodes[n as usize];
        let linked = node.links.iter().map(|(peer, _)| *peer);
        for peer in linked {
            if !node.contacts.contains(&peer) {
                node.contacts.push(peer);
            }
        }
        if node.contacts.len() < CACHE {
            let count = self.spec.nodes;
            let others = (n + 1..count).chain(0..n);
            let known = others.filter(|other| node.ledger.version_of(*other) > 0);
            for other in known {
                if node.contacts.len() >= CACHE {
                    break;
                }
                if !node.contacts.contains(&other) {
                    node.contacts.push(other);
                }
            }
        }
        let ledger = &node.ledger;
        let mut lost = node
            .contacts
            .iter()
            .filter(|peer| ledger.version_of(**peer) == 0)
            .count();
        while node.contacts.len() > CACHE {
            let is_lost = |peer: &u32| ledger.version_of(*peer) == 0;
            let oldest = node.contacts.iter().position(is_lost);
            let present = node.contacts.iter().rposition(|peer| !is_lost(peer));
            let leaves = oldest.filter(|_| lost > LOST).or(present).unwrap_or(0);
            lost -= usize::from(is_lost(&node.contacts[leaves]));
            node.contacts.remove(leaves);
        }
    }

    pub(super) fn on_rejoin(&mut self, n: u32, life: u32) {
        let now = self.queue.now();
        let node = &self.nodes[n as usize];
        if node.life != life || !node.runs() {
            return;
        }
        // By the driver's own clock, the first time at once.
        let jitter = self.luck.within(&(3 * CALLING / 4..=5 * CALLING / 4));
        self.queue
            .push(now + jitter, Event::Rejoin { node: n, life });
        self.keep_peers(n);
        let node = &self.nodes[n as usize];
        let lost = |peer: &&u32| node.ledger.version_of(**peer) == 0 && node.link(**peer).is_none();
        let lost: Vec<u32> = node.contacts.iter().filter(lost).copied().collect();
        if !lost.is_empty() {
            let peer = lost[self.luck.pick(lost.len())];
            self.dial(n, peer);
            self.feed_all();
        }
    }

    /// A process ends, without a word.
    pub(super) fn stop(&mut self, n: u32) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        if node.machine.take().is_none() {
            return;
        }
        node.life += 1;
        let began = std::mem::replace(&mut node.changed, now);
        node.dialling.clear();
        let honest = node.is_honest();
        if honest {
            let node = &*node;
            let knows = |origin| node.ledger.version_of(origin);
            self.watches
                .lost(began, now, knows, |subject| node.liveness(subject));
        }
        let node = &mut self.nodes[n as usize];
        let view = std::mem::take(&mut node.view);
        for (_, end) in std::mem::take(&mut node.links) {
            self.conns.drop_end(end);
        }
        for (subject, liveness) in view {
            if honest {
                self.mark(subject, liveness, Liveness::Alive);
            }
        }
        self.watches.wrongly_dead -= u64::from(self.watches.dead_marks[n as usize]);
        self.trace.note(now, n, 2, || "ends".to_owned());
    }
}

/// Peers in a node's cache, and those of them that may be lost while others want in.
const CACHE: usize = 64;
const LOST: usize = 24;
/// Time between two calls on a lost peer.
const CALLING: u64 = 30_000_000;
/// Nodes named in a ticket.
const TICKET: u32 = 2;
