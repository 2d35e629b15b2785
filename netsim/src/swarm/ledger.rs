//! Facts as numbers: who holds which version of what, for ten thousand nodes that know ten thousand.

use std::collections::BTreeMap;
use std::rc::Rc;

use meshwork_proto::facts;
use meshwork_proto::membership::{BUCKETS, Key, MAX_ACCUSERS, Outcome};

use super::book::Book;
use super::rng::mix;

/// A fact on its way.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    pub(super) key: Key<u32>,
    pub(super) version: u64,
    pub(super) hops: u8,
    /// An announcement with all its text, or only the beat upon it.
    pub(super) whole: bool,
    pub(super) make: Make,
    /// What travels where facts are really signed.
    pub(super) signed: Option<Rc<facts::Fact>>,
}

/// Under which key and version a fact goes, and what became of it.
pub(super) type Taken = (Key<u32>, u64, Outcome);

/// Whether a fact is what it claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Genuine,
    /// Not signed by whom it names.
    Forged,
    /// Larger than a fact may be.
    Oversized,
}

/// What one node holds.
#[derive(Debug)]
pub(super) struct Light {
    me: u32,
    /// By node: version, and in the low bits the links that it travelled; 0 for nothing.
    held: Vec<u32>,
    /// The nodes held, in the order in which they became known.
    known: Vec<u16>,
    others: BTreeMap<Key<u32>, Other>,
    buckets: [u64; BUCKETS as usize],
    summary: u64,
    /// Nodes that speak often, and what they may still say.
    noisy: BTreeMap<u32, Allowance>,
    /// Nodes that accuse others, likewise.
    accusers: BTreeMap<u32, Allowance>,
}

#[derive(Debug, Clone, Copy)]
struct Other {
    version: u64,
    hops: u8,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    at: i64,
    left: i64,
}

impl Light {
    pub(super) fn new(me: u32, nodes: u32) -> Self {
        Self {
            me,
            held: vec![0; nodes as usize],
            known: Vec::new(),
            others: BTreeMap::new(),
            buckets: [0; BUCKETS as usize],
            summary: 0,
            noisy: BTreeMap::new(),
            accusers: BTreeMap::new(),
        }
    }

    /// The version held of a node, 0 for none.
    pub(super) fn version_of(&self, node: u32) -> u32 {
        self.held[node as usize] >> HOP_BITS
    }

    pub(super) fn nodes(&self) -> usize {
        self.known.len()
    }

    /// What a driver sends when it is told to tell `key`.
    pub(super) fn fact(&self, key: &Key<u32>, book: &Book, whole: bool) -> Option<Fact> {
        let (version, hops) = match key {
            Key::Node(node) => {
                let held = self.held[*node as usize];
                if held == 0 {
                    return None;
                }
                (u64::from(held >> HOP_BITS), low_bits(held))
            }
            key => self.others.get(key).map(|held| (held.version, held.hops))?,
        };
        let is_beat = |node: u32| {
            let said = book.statement(node, narrow(version));
            said.is_some_and(|said| said.base != said.version)
        };
        Some(Fact {
            key: *key,
            version,
            hops: hops.saturating_add(1),
            whole: whole || !matches!(key, Key::Node(node) if is_beat(*node)),
            make: Make::Genuine,
            signed: None,
        })
    }

    /// The node itself says something.
    pub(super) fn speak(&mut self, version: u32) {
        self.set(self.me, version, 0);
    }

    /// The node holds another to be dead.
    pub(super) fn accuse(&mut self, accused: u32, version: u64) {
        let accuser = self.me;
        let room = self.suspicions(accused).len() < MAX_ACCUSERS;
        let key = Key::Suspicion { accused, accuser };
        let last = self.suspicions(accused).last().copied();
        if u64::from(self.version_of(accused)) != version
            || last.is_some_and(|last| !room && last < key)
        {
            return;
        }
        if let Some(last) = last.filter(|last| !room && *last != key) {
            self.drop_other(&last);
        }
        self.set_other(key, version, 0);
    }

    /// Knows what another said, from before the start.
    pub(super) fn learn(&mut self, node: u32, version: u32) {
        self.set(node, version, 1);
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        let nodes = u32::try_from(self.held.len()).unwrap_or(0);
        *self = Self::new(self.me, nodes);
    }

    /// Takes what a peer told; under which key and version, and what became of it. `now` is the
    /// time by this node's clock.
    pub(super) fn accept(&mut self, fact: &Fact, book: &Book, now: i64) -> Taken {
        if fact.make == Make::Oversized || fact.hops > MAX_HOPS {
            return (fact.key, fact.version, Outcome::Refused);
        }
        let outcome = match fact.key {
            Key::Node(node) => self.accept_node(node, fact, book, now),
            Key::Suspicion { accused, accuser } => {
                return self.accept_suspicion(accused, accuser, fact, now);
            }
            Key::Revocation(_) | Key::Psk => self.accept_other(fact),
        };
        (fact.key, fact.version, outcome)
    }

    fn accept_node(&mut self, node: u32, fact: &Fact, book: &Book, now: i64) -> Outcome {
        let held = self.version_of(node);
        let version = narrow(fact.version);
        if version <= held {
            return if version == held {
                Outcome::Duplicate
            } else {
                Outcome::Old
            };
        }
        let Some(said) = book.statement(node, version) else {
            return Outcome::Refused;
        };
        let late = said.issued.saturating_add(said.ttl) <= now;
        let early = said.issued > now + CLOCK_TOLERANCE;
        if fact.make == Make::Forged || late || early {
            return Outcome::Refused;
        }
        if node == self.me {
            return Outcome::Old;
        }
        if !fact.whole {
            let base = book.statement(node, held).map(|said| said.base);
            if held == 0 || base.is_some_and(|base| base != said.base) {
                return Outcome::Incomplete;
            }
        }
        if book.is_noisy(node, now) && !may_speak(&mut self.noisy, node, now, SPEAKING) {
            return Outcome::Refused;
        }
        self.set(node, version, fact.hops);
        Outcome::New { hops: fact.hops }
    }

    /// As the product's ledger: what is said of another version than is held goes by the accused.
    fn accept_suspicion(&mut self, accused: u32, accuser: u32, fact: &Fact, now: i64) -> Taken {
        let held = u64::from(self.version_of(accused));
        let stranger = accuser != self.me && self.version_of(accuser) == 0;
        let by_itself = |outcome| (fact.key, fact.version, outcome);
        if self
            .others
            .get(&fact.key)
            .is_some_and(|other| other.version == fact.version)
        {
            return by_itself(Outcome::Duplicate);
        }
        if held == 0 || stranger || accused == accuser {
            return by_itself(Outcome::Refused);
        }
        if fact.version < held {
            return (Key::Node(accused), fact.version, Outcome::Old);
        }
        if fact.version > held && accused == self.me {
            return by_itself(Outcome::Refused);
        }
        if fact.version > held {
            return (Key::Node(accused), fact.version, Outcome::Incomplete);
        }
        let last = self.suspicions(accused).get(MAX_ACCUSERS - 1).copied();
        if last.is_some_and(|last| last < fact.key) {
            return by_itself(Outcome::Old);
        }
        if !may_speak(&mut self.accusers, accuser, now, ACCUSING) || fact.make == Make::Forged {
            return by_itself(Outcome::Refused);
        }
        if let Some(last) = last {
            self.drop_other(&last);
        }
        self.set_other(fact.key, fact.version, fact.hops);
        by_itself(Outcome::New { hops: fact.hops })
    }

    fn accept_other(&mut self, fact: &Fact) -> Outcome {
        let held = self.others.get(&fact.key).map_or(0, |held| held.version);
        if fact.version <= held {
            return if fact.version == held {
                Outcome::Duplicate
            } else {
                Outcome::Old
            };
        }
        if fact.make == Make::Forged {
            return Outcome::Refused;
        }
        self.set_other(fact.key, fact.version, fact.hops);
        Outcome::New { hops: fact.hops }
    }

    /// Drops all that is known of a node. Whether anything was.
    pub(super) fn forget(&mut self, node: u32) -> bool {
        let held = self.version_of(node);
        if held == 0 || node == self.me {
            return false;
        }
        self.toggle(&Key::Node(node), u64::from(held));
        self.held[node as usize] = 0;
        self.known.retain(|known| u32::from(*known) != node);
        self.drop_suspicions(node, u64::MAX);
        true
    }

    fn suspicions(&self, accused: u32) -> Vec<Key<u32>> {
        let (from, to) = accusers_of(accused);
        self.others.range(from..=to).map(|(key, _)| *key).collect()
    }

    fn set(&mut self, node: u32, version: u32, hops: u8) {
        let old = self.version_of(node);
        let key = Key::Node(node);
        if old > 0 {
            self.toggle(&key, u64::from(old));
        } else if node != self.me {
            self.known.push(u16::try_from(node).unwrap_or(u16::MAX));
        }
        self.toggle(&key, u64::from(version));
        self.held[node as usize] = version << HOP_BITS | u32::from(hops).min(HOP_MASK);
        if !self.others.is_empty() {
            self.drop_suspicions(node, u64::from(version));
        }
    }

    fn set_other(&mut self, key: Key<u32>, version: u64, hops: u8) {
        let other = Other { version, hops };
        if let Some(old) = self.others.insert(key, other) {
            self.toggle(&key, old.version);
        }
        self.toggle(&key, version);
    }

    fn drop_other(&mut self, key: &Key<u32>) {
        if let Some(old) = self.others.remove(key) {
            self.toggle(key, old.version);
        }
    }

    /// A later version of the accused refutes.
    fn drop_suspicions(&mut self, accused: u32, below: u64) {
        for key in self.suspicions(accused) {
            if self
                .others
                .get(&key)
                .is_some_and(|held| held.version < below)
            {
                self.drop_other(&key);
            }
        }
    }

    fn toggle(&mut self, key: &Key<u32>, version: u64) {
        let hash = hash(key, version);
        self.summary ^= hash;
        self.buckets[bucket(key) as usize] ^= hash;
    }

    /// All of a bucket.
    pub(super) fn keys(&self, bucket: u8, book: &Book) -> Vec<(Key<u32>, u64)> {
        let members = book.members(bucket);
        let nodes = members.filter_map(|node| {
            let version = self.version_of(*node);
            (version > 0).then_some((Key::Node(*node), u64::from(version)))
        });
        let others = self.others.iter();
        let others = others.filter(|(key, _)| self::bucket(key) == bucket);
        nodes
            .chain(others.map(|(key, held)| (*key, held.version)))
            .collect()
    }

    pub(super) fn version(&self, key: &Key<u32>) -> Option<u64> {
        match key {
            Key::Node(node) => {
                let held = *self.held.get(*node as usize)?;
                (held > 0).then_some(u64::from(held >> HOP_BITS))
            }
            key => self.others.get(key).map(|held| held.version),
        }
    }

    pub(super) fn nth(&self, n: usize) -> Option<u32> {
        self.known.get(n).map(|node| u32::from(*node))
    }

    pub(super) fn summary(&self) -> u64 {
        self.summary
    }

    pub(super) fn bucket(&self, index: u8) -> u64 {
        self.buckets.get(index as usize).copied().unwrap_or(0)
    }
}

/// Whether a node may say one more thing: it earns one in each `refill`, up to `most`.
fn may_speak(
    allowances: &mut BTreeMap<u32, Allowance>,
    node: u32,
    now: i64,
    (refill, most): (i64, i64),
) -> bool {
    let full = Allowance {
        at: now,
        left: refill * most,
    };
    if allowances.len() >= MAX_ALLOWANCES {
        allowances.retain(|_, allowance| allowance.left + now - allowance.at < refill * most);
    }
    let allowance = allowances.entry(node).or_insert(full);
    let since = (now - allowance.at).max(0);
    allowance.left = (allowance.left + since).min(refill * most);
    allowance.at = now.max(allowance.at);
    let may = allowance.left >= refill;
    if may {
        allowance.left -= refill;
    }
    may
}

/// All keys of suspicions against one node lie between these.
fn accusers_of(accused: u32) -> (Key<u32>, Key<u32>) {
    let accuser = |accuser| Key::Suspicion { accused, accuser };
    (accuser(0), accuser(u32::MAX))
}

fn number(key: &Key<u32>) -> u64 {
    match key {
        Key::Node(node) => u64::from(*node),
        Key::Suspicion { accused, accuser } => {
            mix(1 << 40 | u64::from(*accused)) ^ u64::from(*accuser)
        }
        Key::Revocation(hash) => {
            let first = hash.first_chunk().copied().unwrap_or_default();
            mix(2 << 40) ^ u64::from_le_bytes(first)
        }
        Key::Psk => 3 << 40,
    }
}

pub(super) fn bucket(key: &Key<u32>) -> u8 {
    u8::try_from(mix(number(key)) % u64::from(BUCKETS)).unwrap_or(0)
}

fn hash(key: &Key<u32>, version: u64) -> u64 {
    mix(mix(number(key)) ^ version.wrapping_mul(0xd6e8_feb8_6659_fd93))
}

/// Versions of a swarm stay below 2^27.
fn narrow(version: u64) -> u32 {
    u32::try_from(version).unwrap_or(u32::MAX >> HOP_BITS)
}

fn low_bits(held: u32) -> u8 {
    u8::try_from(held & HOP_MASK).unwrap_or(u8::MAX)
}

const HOP_BITS: u32 = 5;
const HOP_MASK: u32 = (1 << HOP_BITS) - 1;
/// Links that a fact travels at most.
const MAX_HOPS: u8 = meshwork_proto::limits::MAX_HOPS;
/// Nodes whose allowance is kept before those with a full one are dropped.
const MAX_ALLOWANCES: usize = 64;
/// What a node may say of itself: one fact a second, five at once.
const SPEAKING: (i64, i64) = (SECOND, 5);
/// What an accuser may say: two suspicions a second, forty at once.
const ACCUSING: (i64, i64) = (SECOND / 2, 40);
const SECOND: i64 = 1_000_000;
/// How far a statement may come from the future: the product's default.
const CLOCK_TOLERANCE: i64 = 30 * SECOND;

#[cfg(test)]
mod tests {
    use super::super::book::Statement;
    use super::*;

    fn said(version: u32, base: u32) -> Statement {
        Statement {
            version,
            base,
            issued: 0,
            ttl: 1000 * SECOND,
        }
    }

    fn taken(light: &mut Light, book: &Book, fact: &Fact, now: i64) -> Outcome {
        light.accept(fact, book, now).2
    }

    fn node(node: u32, version: u64) -> Fact {
        Fact {
            key: Key::Node(node),
            version,
            hops: 1,
            whole: true,
            make: Make::Genuine,
            signed: None,
        }
    }

    fn suspicion(accused: u32, accuser: u32, version: u64) -> Fact {
        Fact {
            key: Key::Suspicion { accused, accuser },
            ..node(0, version)
        }
    }

    #[test]
    fn only_what_was_said_and_is_news_is_stored() {
        let mut book = Book::new(8);
        for version in 1..4 {
            book.say(3, said(version, 1));
        }
        let mut light = Light::new(0, 8);
        let beat = Fact {
            whole: false,
            ..node(3, 2)
        };
        assert_eq!(taken(&mut light, &book, &beat, 0), Outcome::Incomplete);
        assert_eq!(taken(&mut light, &book, &node(3, 9), 0), Outcome::Refused);
        let forged = Fact {
            make: Make::Forged,
            ..node(3, 2)
        };
        assert_eq!(taken(&mut light, &book, &forged, 0), Outcome::Refused);
        assert_eq!(
            taken(&mut light, &book, &node(3, 1), 0),
            Outcome::New { hops: 1 }
        );
        assert_eq!(taken(&mut light, &book, &beat, 0), Outcome::New { hops: 1 });
        assert_eq!(taken(&mut light, &book, &node(3, 1), 0), Outcome::Old);
        assert_eq!(
            taken(&mut light, &book, &node(3, 3), 2000 * SECOND),
            Outcome::Refused
        );
        assert_eq!((light.version_of(3), light.nodes()), (2, 1));
    }

    #[test]
    fn equal_contents_have_equal_hashes_whatever_the_order() {
        let mut book = Book::new(8);
        for n in 1..6 {
            book.say(n, said(1, 1));
            book.say(n, said(2, 1));
        }
        let mut facts: Vec<Fact> = (1..6).map(|n| node(n, 2)).collect();
        facts.extend([1, 4, 5, 3].map(|accuser| suspicion(2, accuser, 2)));
        let fill = |facts: &mut dyn Iterator<Item = &Fact>| {
            let mut light = Light::new(0, 8);
            for fact in facts {
                taken(&mut light, &book, fact, 0);
            }
            let keys = (0..BUCKETS).flat_map(|bucket| light.keys(bucket, &book));
            let keys: Vec<_> = keys.collect();
            (light.summary, light.buckets, keys)
        };
        let one = fill(&mut facts.iter());
        let mut nodes_first = facts.clone();
        nodes_first[5..].reverse();
        let other = fill(&mut nodes_first.iter());
        assert_eq!(one, other);
        assert_eq!(one.2.len(), 5 + MAX_ACCUSERS);
    }

    #[test]
    fn a_later_version_erases_suspicions() {
        let mut book = Book::new(8);
        for n in [2, 3] {
            book.say(n, said(1, 1));
            book.say(n, said(2, 1));
        }
        let mut light = Light::new(0, 8);
        taken(&mut light, &book, &node(2, 1), 0);
        taken(&mut light, &book, &node(3, 1), 0);
        let before = light.summary;
        assert_eq!(
            taken(&mut light, &book, &suspicion(2, 3, 1), 0),
            Outcome::New { hops: 1 }
        );
        assert_ne!(light.summary, before);
        taken(&mut light, &book, &node(2, 2), 0);
        assert!(light.suspicions(2).is_empty());
        assert_eq!(
            taken(&mut light, &book, &suspicion(2, 3, 1), 0),
            Outcome::Old
        );
        light.forget(2);
        taken(&mut light, &book, &node(2, 1), 0);
        assert_eq!(light.summary, before);
    }
}
