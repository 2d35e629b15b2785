//! A node's facts: as numbers, or as the product keeps them.

use meshwork_proto::membership::{Key, Ledger};

use super::book::{Book, Statement};
use super::exact::Exact;
use super::ledger::{Fact, Light, Make, Taken};

/// What one node holds. Nearly all are light; a box would cost each look-up.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(super) enum Store {
    Light(Light),
    Exact(Box<Exact>),
}

/// A store with the truth beside it, as the membership machine sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) store: &'a Store,
    pub(super) book: &'a Book,
}

impl Store {
    /// The version held of a node, 0 for none.
    pub(super) fn version_of(&self, node: u32) -> u32 {
        match self {
            Self::Light(light) => light.version_of(node),
            Self::Exact(exact) => exact.version_of(node),
        }
    }

    /// How many other nodes are known.
    pub(super) fn nodes(&self) -> usize {
        match self {
            Self::Light(light) => light.nodes(),
            Self::Exact(exact) => exact.nodes(),
        }
    }

    /// The other nodes that are known.
    pub(super) fn known(&self) -> Vec<u32> {
        let nth = |n| match self {
            Self::Light(light) => light.nth(n),
            Self::Exact(exact) => exact.nth(n),
        };
        (0..self.nodes()).filter_map(nth).collect()
    }

    /// What a driver sends when it is told to tell `key`.
    pub(super) fn fact(&self, key: &Key<u32>, book: &Book, whole: bool) -> Option<Fact> {
        match self {
            Self::Light(light) => light.fact(key, book, whole),
            Self::Exact(exact) => exact.fact(key, whole),
        }
    }

    /// The node itself says something.
    pub(super) fn speak(&mut self, statement: &Statement) {
        match self {
            Self::Light(light) => light.speak(statement.version),
            Self::Exact(exact) => exact.speak(statement),
        }
    }

    /// The node holds another to be dead. `now` is its own time.
    pub(super) fn accuse(&mut self, accused: u32, version: u64, now: i64) {
        match self {
            Self::Light(light) => light.accuse(accused, version),
            Self::Exact(exact) => exact.accuse(accused, version, now),
        }
    }

    /// Takes what a peer told. `now` is the node's own time.
    pub(super) fn accept(&mut self, fact: &Fact, book: &Book, now: i64) -> Taken {
        match self {
            Self::Light(light) => light.accept(fact, book, now),
            Self::Exact(exact) => exact.accept(fact, now),
        }
    }

    /// `node`'s announcement has expired: drops it, and in the product's ledger all that have;
    /// these.
    pub(super) fn expire(&mut self, node: u32, now: i64) -> Vec<u32> {
        match self {
            Self::Light(light) => light.forget(node).then_some(node).into_iter().collect(),
            Self::Exact(exact) => exact.expire(now),
        }
    }

    /// An empty one of the same node.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Light(light) => light.reset(),
            Self::Exact(exact) => exact.reset(),
        }
    }

    /// A lie of the node about `victim`, as far as it has what it takes.
    pub(super) fn lie(&self, victim: u32, version: u64, make: Make, now: i64) -> Option<Fact> {
        match self {
            Self::Light(_) => Some(Fact {
                key: Key::Node(victim),
                version,
                hops: 1,
                whole: true,
                make,
                signed: None,
            }),
            Self::Exact(exact) => exact.lie(victim, make, now),
        }
    }

    /// A suspicion that the node says without believing it.
    pub(super) fn accusation(&self, me: u32, accused: u32, version: u64, now: i64) -> Fact {
        let signed = match self {
            Self::Light(_) => None,
            Self::Exact(exact) => Some(exact.suspicion(accused, version, now)),
        };
        Fact {
            key: Key::Suspicion {
                accused,
                accuser: me,
            },
            version,
            hops: 1,
            whole: true,
            make: Make::Genuine,
            signed,
        }
    }
}

impl Ledger<u32> for View<'_> {
    fn version(&self, key: &Key<u32>) -> Option<u64> {
        match self.store {
            Store::Light(light) => light.version(key),
            Store::Exact(exact) => exact.version(key),
        }
    }

    fn nodes(&self) -> usize {
        self.store.nodes()
    }

    fn nth(&self, n: usize) -> Option<u32> {
        match self.store {
            Store::Light(light) => light.nth(n),
            Store::Exact(exact) => exact.nth(n),
        }
    }

    fn summary(&self) -> u64 {
        match self.store {
            Store::Light(light) => light.summary(),
            Store::Exact(exact) => exact.summary(),
        }
    }

    fn bucket(&self, index: u8) -> u64 {
        match self.store {
            Store::Light(light) => light.bucket(index),
            Store::Exact(exact) => exact.bucket(index),
        }
    }

    fn keys(&self, bucket: u8) -> Vec<(Key<u32>, u64)> {
        match self.store {
            Store::Light(light) => light.keys(bucket, self.book),
            Store::Exact(exact) => exact.keys(bucket),
        }
    }
}
