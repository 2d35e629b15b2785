//! Facts as the product keeps them: signed, verified, refused for the product's own reasons. What
//! liars send are real bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use meshwork_identity::{
    Identity, Limits, NodeId, Resource, Revocations, Scope, Scopes, Timestamp, Token, TokenRequest,
    VerifyContext,
};
use meshwork_proto::facts::{self, Facts};
use meshwork_proto::membership::{Key, Ledger};
use meshwork_proto::{
    Announcement, Beat, SignedAnnouncement, SignedBeat, SignedSuspicion, Suspicion, codec,
};

use super::book::Statement;
use super::ledger::{Fact, Make, Taken};

/// The identities of a mesh, by number.
#[derive(Debug)]
pub(super) struct Town {
    root: NodeId,
    revocations: Revocations,
    people: Vec<Person>,
    numbers: BTreeMap<NodeId, u32>,
    /// The first thing that each node ever said: for those who replay.
    firsts: RefCell<BTreeMap<u32, Rc<facts::Fact>>>,
}

#[derive(Debug)]
struct Person {
    identity: Identity,
    node: NodeId,
    token: Token,
}

/// What one node holds.
#[derive(Debug)]
pub(super) struct Exact {
    me: u32,
    town: Rc<Town>,
    facts: Facts,
    /// The announcement that beats renew.
    announced: Option<SignedAnnouncement>,
}

impl Town {
    pub(super) fn new(nodes: u32, seed: u64) -> Rc<Self> {
        let identity = |n: u32| {
            let mut bytes = [0x5a; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            bytes[8..12].copy_from_slice(&n.to_le_bytes());
            Identity::from_seed(&bytes)
        };
        let authority = identity(u32::MAX);
        let person = |n: u32| {
            let identity = identity(n);
            let node = identity.node_id();
            let request = TokenRequest {
                subject: node,
                scopes: Scopes::from([Scope::Announce]),
                resource: Resource::any(),
                not_before: None,
                ttl: LIFE,
                depth: 0,
                limits: Limits::none(),
            };
            let nonce = [n.to_le_bytes()[0]; 16];
            let token = Token::issue_root(&authority, request, BEFORE, nonce);
            Person {
                node,
                token: token.expect("a plain token is issued"),
                identity,
            }
        };
        let people: Vec<Person> = (0..nodes).map(person).collect();
        let numbers = (0..).zip(&people).map(|(n, person)| (person.node, n));
        Rc::new(Self {
            root: authority.node_id(),
            revocations: Revocations::new(),
            numbers: numbers.collect(),
            people,
            firsts: RefCell::default(),
        })
    }

    fn trust(&self, now: i64) -> VerifyContext<'_> {
        VerifyContext::new(&self.root, timestamp(now), &self.revocations)
    }

    fn name(&self, key: &Key<u32>) -> Option<Key<NodeId>> {
        let name = |n: &u32| self.people.get(*n as usize).map(|person| person.node);
        Some(match key {
            Key::Node(node) => Key::Node(name(node)?),
            Key::Suspicion { accused, accuser } => Key::Suspicion {
                accused: name(accused)?,
                accuser: name(accuser)?,
            },
            Key::Revocation(hash) => Key::Revocation(*hash),
            Key::Psk => Key::Psk,
        })
    }

    fn number(&self, key: &Key<NodeId>) -> Option<Key<u32>> {
        let number = |node: &NodeId| self.numbers.get(node).copied();
        Some(match key {
            Key::Node(node) => Key::Node(number(node)?),
            Key::Suspicion { accused, accuser } => Key::Suspicion {
                accused: number(accused)?,
                accuser: number(accuser)?,
            },
            Key::Revocation(hash) => Key::Revocation(*hash),
            Key::Psk => Key::Psk,
        })
    }
}

impl Exact {
    pub(super) fn new(me: u32, town: &Rc<Town>) -> Self {
        Self {
            me,
            town: Rc::clone(town),
            facts: Facts::new(town.people[me as usize].node),
            announced: None,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.me, &self.town);
    }

    pub(super) fn version_of(&self, node: u32) -> u32 {
        let version = self.version(&Key::Node(node)).unwrap_or(0);
        u32::try_from(version).unwrap_or(u32::MAX)
    }

    pub(super) fn nodes(&self) -> usize {
        self.facts.nodes()
    }

    pub(super) fn version(&self, key: &Key<u32>) -> Option<u64> {
        self.facts.version(&self.town.name(key)?)
    }

    pub(super) fn nth(&self, n: usize) -> Option<u32> {
        self.town.numbers.get(&self.facts.nth(n)?).copied()
    }

    pub(super) fn summary(&self) -> u64 {
        self.facts.summary()
    }

    pub(super) fn bucket(&self, index: u8) -> u64 {
        self.facts.bucket(index)
    }

    pub(super) fn keys(&self, bucket: u8) -> Vec<(Key<u32>, u64)> {
        let keys = self.facts.keys(bucket).into_iter();
        keys.filter_map(|(key, version)| Some((self.town.number(&key)?, version)))
            .collect()
    }

    pub(super) fn fact(&self, key: &Key<u32>, whole: bool) -> Option<Fact> {
        let name = self.town.name(key)?;
        let fact = if whole {
            self.facts.whole(&name)?
        } else {
            self.facts.fact(&name)?
        };
        let (_, version) = fact.claim()?;
        Some(Fact {
            key: *key,
            version,
            hops: fact.hops(),
            whole: !matches!(fact, facts::Fact::Beat(_)),
            make: Make::Genuine,
            signed: Some(Rc::new(fact)),
        })
    }

    pub(super) fn speak(&mut self, statement: &Statement) {
        let person = &self.town.people[self.me as usize];
        let (version, ttl) = (u64::from(statement.version), micros(statement.ttl));
        let issued_at = timestamp(statement.issued);
        let fact = if statement.version == statement.base || self.announced.is_none() {
            let body = Announcement {
                version,
                issued_at,
                ttl,
                name: format!("node-{}", self.me),
                ..Announcement::default()
            };
            let signed = SignedAnnouncement::sign(&person.identity, person.token.clone(), &body);
            let signed = signed.expect("a small body is signed");
            self.announced = Some(signed.clone());
            facts::Fact::Announcement(signed)
        } else {
            let beat = Beat {
                version,
                issued_at,
                ttl,
                base: u64::from(statement.base),
                availability: None,
            };
            let signed = SignedBeat::sign(&person.identity, &beat);
            facts::Fact::Beat(signed.expect("a small body is signed"))
        };
        let mut firsts = self.town.firsts.borrow_mut();
        firsts
            .entry(self.me)
            .or_insert_with(|| Rc::new(fact.clone()));
        drop(firsts);
        let trust = self.town.trust(statement.issued);
        let published = self.facts.publish(fact, &trust);
        assert!(published.is_ok(), "its own word is refused: {published:?}");
    }

    pub(super) fn accuse(&mut self, accused: u32, version: u64, now: i64) {
        let fact = facts::Fact::clone(&self.suspicion(accused, version, now));
        let trust = self.town.trust(now);
        // Refused when it was refuted in the same moment, or when others accuse already.
        let _ = self.facts.publish(fact, &trust);
    }

    pub(super) fn suspicion(&self, accused: u32, version: u64, now: i64) -> Rc<facts::Fact> {
        let body = Suspicion {
            accused: self.town.people[accused as usize].node,
            version,
            at: timestamp(now),
        };
        let signed = SignedSuspicion::sign(&self.town.people[self.me as usize].identity, &body);
        Rc::new(facts::Fact::Suspicion(
            signed.expect("a small body is signed"),
        ))
    }

    pub(super) fn accept(&mut self, fact: &Fact, now: i64) -> Taken {
        let town = Rc::clone(&self.town);
        let signed = fact.signed.as_deref().cloned();
        let signed = signed.expect("facts of an exact swarm are signed");
        let (key, version, outcome, _) = self.facts.accept(signed, &town.trust(now));
        (town.number(&key).unwrap_or(fact.key), version, outcome)
    }

    pub(super) fn expire(&mut self, now: i64) -> Vec<u32> {
        // Timestamps are milliseconds: what expires within this one has expired.
        let gone = self.facts.expire(timestamp(now + 1000));
        let numbers = gone.iter().map(|node| self.town.numbers.get(node).copied());
        numbers.flatten().filter(|n| *n != self.me).collect()
    }

    pub(super) fn lie(&self, victim: u32, make: Make, now: i64) -> Option<Fact> {
        let signed = match make {
            Make::Genuine => facts::Fact::clone(self.town.firsts.borrow().get(&victim)?),
            Make::Forged => self.forged(victim)?,
            Make::Oversized => self.oversized(now)?,
        };
        let (key, version) = signed.claim()?;
        Some(Fact {
            key: self.town.number(&key)?,
            version,
            hops: signed.hops(),
            whole: true,
            make,
            signed: Some(Rc::new(signed)),
        })
    }

    /// What `victim` said, with a larger version and the old signature.
    fn forged(&self, victim: u32) -> Option<facts::Fact> {
        let held = self.facts.whole(&self.town.name(&Key::Node(victim))?)?;
        let body = match &held {
            facts::Fact::Announcement(signed) => signed.envelope.unverified_body(),
            facts::Fact::Beat(beat) | facts::Fact::Renewed(_, beat) => {
                beat.envelope.unverified_body()
            }
            _ => return None,
        };
        let mut bytes = codec::encode(&held);
        let at = bytes
            .windows(body.len())
            .rposition(|window| window == body)?;
        // The version comes first; below 127 it is one byte.
        let version = bytes.get_mut(at)?;
        *version = version.checked_add(1).filter(|version| *version < 0x80)?;
        codec::decode(&bytes, bytes.len()).ok()
    }

    /// An announcement of its own that is too long.
    fn oversized(&self, now: i64) -> Option<facts::Fact> {
        let person = &self.town.people[self.me as usize];
        let body = Announcement {
            version: u64::from(self.version_of(self.me)) + 1000,
            issued_at: timestamp(now),
            ttl: Duration::from_mins(5),
            images: vec!["x".repeat(100); 50],
            ..Announcement::default()
        };
        let signed = SignedAnnouncement::sign(&person.identity, person.token.clone(), &body);
        signed.ok().map(facts::Fact::Announcement)
    }
}

/// When simulations begin, by a clock that is right.
const START: Timestamp = Timestamp::from_secs(1_800_000_000);
/// When tokens were issued.
const BEFORE: Timestamp = Timestamp::from_secs(1_800_000_000 - 7 * 86_400);
/// How long tokens hold: longer than any simulation.
const LIFE: Duration = Duration::from_hours(24 * 60);

fn timestamp(clock: i64) -> Timestamp {
    let start = i64::try_from(START.as_millis()).unwrap_or(0);
    let millis = start.saturating_add(clock.div_euclid(1000));
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
