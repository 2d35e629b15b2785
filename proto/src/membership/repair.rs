//! Finds and mends what floods missed: two nodes compare what they hold, in three steps.
//!
//! Summary (all equal?), Buckets (where?), Keys (what?); then each tells and asks for what the
//! other lacks. The answer to a summary that differs is a summary: facts under way make
//! neighbours differ for a moment, and either of them may see that the other is merely a little
//! behind.

use std::cmp::Ordering;
use std::time::Duration;

use super::{BUCKETS, Context, Key, MAX_KEYS, MAX_WANTED, Membership, Message, Moment, Peer};

/// A summary is answered within this.
const ANSWERED: Duration = Duration::from_secs(5);
/// Who shows a summary that this node had this recently is only a little behind.
const BEHIND: Duration = Duration::from_secs(3);
/// Own summaries remembered.
const REMEMBERED: usize = 32;
/// Work that a peer may cause at once (keys compared, listed or told), as a number and for each
/// known node; and how much of it comes back each second. A bucket's hash counts as much as a key.
const SHARE: usize = 16_384;
const SHARE_PER_NODE: usize = 8;
const REGAINED: usize = 2048;

/// The local node's last summaries.
#[derive(Debug)]
pub(super) struct Recent {
    current: u64,
    past: [(u64, Moment); REMEMBERED],
    next: usize,
}

impl Recent {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            current: 0,
            past: [(0, now); REMEMBERED],
            next: 0,
        }
    }

    /// The ledger has changed.
    pub(super) fn note(&mut self, now: Moment, summary: u64) {
        if summary != self.current {
            self.past[self.next] = (self.current, now);
            self.next = (self.next + 1) % REMEMBERED;
            self.current = summary;
        }
    }

    /// Whether this node had the summary a moment ago, and changed it after `told`: since then it tells
    /// the peer of every change.
    fn had(&self, now: Moment, summary: u64, told: Moment) -> bool {
        let held = |(past, until): &(u64, Moment)| {
            *past == summary && *until > told && now.since(*until) < BEHIND
        };
        self.past.iter().any(held)
    }
}

impl<P: Peer> Membership<P> {
    /// Compares with one neighbour after another, and makes sure that both hold the other to be
    /// one: the messages that end and begin the relation may have crossed. Two are asked for each
    /// that is compared with, so that all are asked within 40 s.
    pub(super) fn repair(&mut self, cx: &mut Context<'_, P>) {
        if cx.now < self.due.repair {
            return;
        }
        self.due.repair = cx.now + cx.chance.jitter(self.config.repair_period);
        self.affirm(cx);
        if let Some(peer) = self.affirm(cx) {
            self.start_repair(cx, peer);
        }
    }

    /// Begins to compare with a linked node, unless that has begun.
    pub(super) fn start_repair(&mut self, cx: &mut Context<'_, P>, peer: P) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        if link
            .summary_sent
            .is_some_and(|sent| cx.now.since(sent) < ANSWERED)
        {
            return;
        }
        self.stats.repairs += 1;
        self.send_summary(cx, peer);
    }

    fn send_summary(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.summary_sent = Some(cx.now);
        }
        let count = u32::try_from(cx.ledger.nodes() + 1).unwrap_or(u32::MAX);
        let hash = cx.ledger.summary();
        cx.send(peer, Message::Summary { hash, count });
    }

    pub(super) fn on_summary(&mut self, cx: &mut Context<'_, P>, from: P, hash: u64) {
        if !self.spend(cx.now, from, usize::from(BUCKETS), cx.ledger.nodes()) {
            return;
        }
        let sent = self
            .links
            .get_mut(&from)
            .and_then(|link| link.summary_sent.take());
        let neighbour = self.neighbours.iter().find(|held| held.peer == from);
        let behind = neighbour.is_some_and(|held| self.recent.had(cx.now, hash, held.since));
        if hash == cx.ledger.summary() || behind {
            return;
        }
        if sent.is_some_and(|sent| cx.now.since(sent) < ANSWERED) {
            self.stats.repairs_differed += 1;
            let hashes = (0..BUCKETS).map(|index| cx.ledger.bucket(index)).collect();
            cx.send(from, Message::Buckets { hashes });
        } else {
            self.send_summary(cx, from);
        }
    }

    pub(super) fn on_buckets(&mut self, cx: &mut Context<'_, P>, from: P, hashes: &[u64]) {
        if hashes.len() != usize::from(BUCKETS) {
            self.stats.throttled += 1;
            return;
        }
        if let Some(link) = self.links.get_mut(&from) {
            link.summary_sent = None;
        }
        // From anywhere on, so that a share that does not suffice for all is not always spent on
        // the same ones.
        let start = cx.chance.below(hashes.len());
        for step in 0..hashes.len() {
            let at = (start + step) % hashes.len();
            let bucket = u8::try_from(at).unwrap_or(0);
            if hashes[at] == cx.ledger.bucket(bucket) {
                continue;
            }
            let mut keys = cx.ledger.keys(bucket);
            if !self.spend(cx.now, from, keys.len() + 1, cx.ledger.nodes()) {
                return;
            }
            keys.sort_unstable();
            let whole = keys.len() <= MAX_KEYS;
            if !whole {
                let skipped = cx.chance.below(keys.len() - MAX_KEYS + 1);
                keys.drain(..skipped);
                keys.truncate(MAX_KEYS);
            }
            cx.send(
                from,
                Message::Keys {
                    bucket,
                    keys,
                    whole,
                },
            );
        }
    }

    pub(super) fn on_keys(
        &mut self,
        cx: &mut Context<'_, P>,
        from: P,
        bucket: u8,
        theirs: &[(Key<P>, u64)],
        whole: bool,
    ) {
        let sorted = theirs.is_sorted_by(|a, b| a.0 < b.0);
        let sound = bucket < BUCKETS && theirs.len() <= MAX_KEYS && sorted;
        if !sound || !self.spend(cx.now, from, theirs.len() + 1, cx.ledger.nodes()) {
            self.stats.throttled += 1;
            return;
        }
        let mut mine = cx.ledger.keys(bucket);
        mine.sort_unstable();
        if !whole {
            let (Some(first), Some(last)) = (theirs.first(), theirs.last()) else {
                return;
            };
            mine.retain(|(key, _)| *key >= first.0 && *key <= last.0);
        }
        let (tell, want) = differences(&mine, theirs);
        if !self.spend(cx.now, from, tell.len(), cx.ledger.nodes()) {
            return;
        }
        for key in tell {
            cx.tell(from, key);
        }
        let want: Vec<_> = want
            .into_iter()
            .filter(|(key, version)| !is_refuted(cx, key, *version))
            .map(|(key, _)| key)
            .collect();
        for keys in want.chunks(MAX_WANTED) {
            let keys = keys.to_vec();
            cx.send(from, Message::Want { keys });
        }
    }

    pub(super) fn on_want(&mut self, cx: &mut Context<'_, P>, from: P, keys: &[Key<P>]) {
        let read = keys.len() <= MAX_WANTED;
        if !read || !self.spend(cx.now, from, keys.len(), cx.ledger.nodes()) {
            self.stats.throttled += 1;
            return;
        }
        for key in keys {
            if cx.ledger.version(key).is_some() {
                cx.tell(from, *key);
            }
        }
    }

    /// Takes work from a linked peer's share; says whether there was enough left.
    pub(super) fn spend(&mut self, now: Moment, peer: P, work: usize, known: usize) -> bool {
        let Some(link) = self.links.get_mut(&peer) else {
            return false;
        };
        let milliseconds =
            usize::try_from(now.since(link.reckoned).as_millis()).unwrap_or(usize::MAX);
        let regained = milliseconds.saturating_mul(REGAINED) / 1000;
        if regained > 0 {
            link.spent = link.spent.saturating_sub(regained);
            link.reckoned = now;
        }
        let share = SHARE.max(known.saturating_mul(SHARE_PER_NODE));
        if link.spent.saturating_add(work) > share {
            self.stats.throttled += 1;
            return false;
        }
        link.spent += work;
        true
    }
}

/// What the other lacks, and what it has that this node lacks.
type Differences<P> = (Vec<Key<P>>, Vec<(Key<P>, u64)>);

/// Compares two sorted lists.
fn differences<P: Peer>(mine: &[(Key<P>, u64)], theirs: &[(Key<P>, u64)]) -> Differences<P> {
    let (mut tell, mut want) = (Vec::new(), Vec::new());
    let mut mine = mine.iter().copied().peekable();
    for (key, version) in theirs {
        while let Some((held, _)) = mine.next_if(|(held, _)| held < key) {
            tell.push(held);
        }
        let held = mine.next_if(|(held, _)| held == key);
        match held.map_or(Ordering::Less, |(_, held)| held.cmp(version)) {
            Ordering::Less => want.push((*key, *version)),
            Ordering::Equal => {}
            Ordering::Greater => tell.push(*key),
        }
    }
    tell.extend(mine.map(|(held, _)| held));
    (tell, want)
}

/// Whether a fact is an accusation that a held version refutes already.
fn is_refuted<P: Peer>(cx: &Context<'_, P>, key: &Key<P>, version: u64) -> bool {
    match key {
        Key::Suspicion { accused, .. } => cx.version(*accused).is_some_and(|held| held > version),
        _ => false,
    }
}
