//! What a bus and its consumers counted.
//!
//! A snapshot visits the shards one after the other, each under its lock. The sums hold inside of
//! each shard at that moment, so they hold in the whole snapshot, however busy the bus is; between
//! shards the snapshot is as old as the visit.

use std::ops::AddAssign;
use std::sync::Arc;

/// Counts of a shard, or of all of them. At every moment
/// `accepted = delivered + dropped() + buffered`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events that the bus took: the call returned `Ok`.
    pub accepted: u64,
    /// Events that every consumer was given, and confirmed or lost the right to see again.
    pub delivered: u64,
    /// Accepted events dropped at once, because the shard was full ([`super::Overflow::DropNewest`]).
    pub dropped_newest: u64,
    /// Events dropped for newer ones before every consumer was given them
    /// ([`super::Overflow::DropOldest`]).
    pub dropped_oldest: u64,
    /// Events still unread when the deadline of [`super::Bus::drain`] passed.
    pub abandoned: u64,
    /// Events held for some consumer, those not yet confirmed included.
    pub buffered: u64,
    /// Bytes of payload of these.
    pub buffered_bytes: u64,
    /// Events that the producer kept, with an error. Not among `accepted`.
    pub refused: u64,
    /// Bytes of memory that the rings take.
    pub memory: u64,
}

impl Counts {
    /// Accepted events that some consumer will not see, of whatever cause.
    pub fn dropped(&self) -> u64 {
        self.dropped_newest + self.dropped_oldest + self.abandoned
    }

    /// Whether the sums hold. Always true; for tests and doubters.
    pub fn add_up(&self) -> bool {
        self.accepted == self.delivered + self.dropped() + self.buffered
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.dropped_newest += other.dropped_newest;
        self.dropped_oldest += other.dropped_oldest;
        self.abandoned += other.abandoned;
        self.buffered += other.buffered;
        self.buffered_bytes += other.buffered_bytes;
        self.refused += other.refused;
        self.memory += other.memory;
    }
}

/// Counts of one consumer. At every moment `offered = taken + passed + missed + waiting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerCounts {
    /// Events that entered the bus's shards since it began (or since the cursor that it began at).
    pub offered: u64,
    /// Events that it was given; again-reads of unconfirmed events are not counted twice.
    pub taken: u64,
    /// Events that it did not want: its filter refused them, or its cursor skipped them.
    pub passed: u64,
    /// Events dropped or gone before it read them.
    pub missed: u64,
    /// Events that it can still read.
    pub waiting: u64,
    /// Events that it was given and has not confirmed, still held (part of `taken` and `passed`).
    pub unconfirmed: u64,
}

impl ConsumerCounts {
    /// Whether the sums hold. Always true; for tests and doubters.
    pub fn add_up(&self) -> bool {
        self.offered == self.taken + self.passed + self.missed + self.waiting
    }
}

impl AddAssign for ConsumerCounts {
    fn add_assign(&mut self, other: Self) {
        self.offered += other.offered;
        self.taken += other.taken;
        self.passed += other.passed;
        self.missed += other.missed;
        self.waiting += other.waiting;
        self.unconfirmed += other.unconfirmed;
    }
}

/// A snapshot of a bus.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusStats {
    /// Over all shards.
    pub total: Counts,
    /// Shard by shard.
    pub shards: Vec<Counts>,
    /// Each consumer, by name.
    pub consumers: Vec<(Arc<str>, ConsumerCounts)>,
}
