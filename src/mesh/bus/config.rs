//! What a bus may hold, and what it does when that is not enough.

use serde::{Deserialize, Serialize};

use super::error::BusConfigError;

/// Most shards of one bus. A time-ordered poll visits all of them.
pub const MAX_SHARDS: usize = 64;
/// Most consumers of one bus. Each holds back what it has not read.
pub const MAX_CONSUMERS: usize = 64;
/// Most events that a shard may be set to hold.
pub const MAX_SHARD_EVENTS: usize = 1 << 24;
/// Most bytes of payload that a shard may be set to hold.
pub const MAX_SHARD_BYTES: usize = 1 << 30;
/// Most events that one call takes in or hands out: the bound on how long a shard stays locked.
pub const MAX_BATCH: usize = 1 << 16;

/// What happens to an event for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The new event is dropped and counted; the producer goes on.
    DropNewest,
    /// The oldest events make room and are counted as dropped, unless all consumers have read them.
    DropOldest,
    /// The producer gets an error and keeps the event.
    #[default]
    FailProducer,
}

/// The bounds of a bus. A shard's memory grows with use up to about
/// `max_bytes + 16 × max_events` bytes, both rounded up to a power of two, and does not shrink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Rings, a power of two in 1..=[`MAX_SHARDS`]. Each thread writes to one ring, so that threads
    /// do not wait for each other and the events of a thread keep their order. Default 1.
    pub shards: usize,
    /// Events that one shard holds, 1..=[`MAX_SHARD_EVENTS`]. Default 65,536.
    pub max_events: usize,
    /// Bytes of payload that one shard holds, 1..=[`MAX_SHARD_BYTES`], which is also the largest
    /// event. Default 16 MiB.
    pub max_bytes: usize,
    /// What happens when either bound is reached. Default [`Overflow::FailProducer`].
    pub overflow: Overflow,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            shards: 1,
            max_events: 1 << 16,
            max_bytes: 16 << 20,
            overflow: Overflow::default(),
        }
    }
}

impl BusConfig {
    pub(super) fn check(&self) -> Result<(), BusConfigError> {
        if !self.shards.is_power_of_two() || self.shards > MAX_SHARDS {
            return Err(BusConfigError::Shards(self.shards));
        }
        if !(1..=MAX_SHARD_EVENTS).contains(&self.max_events) {
            return Err(BusConfigError::Events(self.max_events));
        }
        if !(1..=MAX_SHARD_BYTES).contains(&self.max_bytes) {
            return Err(BusConfigError::Bytes(self.max_bytes));
        }
        Ok(())
    }
}
