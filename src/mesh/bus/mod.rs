//! The local event bus: events from any thread of a process, to every consumer that asks.
//!
//! A [`Bus`] has shards, each a bounded ring behind a lock of its own. A thread always writes to the
//! same shard, so that its events keep their order and threads do not wait for each other. An event
//! stays until every [`Consumer`] has confirmed it; when there is no room, the bus does what its
//! [`Overflow`] says, and counts it: `accepted = delivered + dropped + buffered`, in every snapshot
//! ([`Bus::stats`]).
//!
//! ```
//! # use meshwork_mesh::bus::{Bus, BusConfig, Want};
//! let bus = Bus::new(BusConfig::default())?;
//! let consumer = bus.consumer("billing")?;
//! bus.ingest(b"raw bytes")?;
//! bus.ingest_json(&("typed", 7))?;
//! bus.ingest_batch(&["many", "at", "once"])?;
//! let batch = consumer.take(&Want::up_to(100));
//! assert_eq!(batch.len(), 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Consumers either *take* (what is handed out is confirmed at once; clones share the work), or
//! *poll* with a cursor (giving a cursor back confirms all before it; an answer that got lost is
//! asked for again with the old one). Both can wait without using the processor.
//!
//! There is no unsafe code. Outside of the locks are only a flag (whether anybody waits) and a counter
//! (the order over all shards). An uncontended lock costs 10 ns, which leaves room for 50 million
//! events a second one by one, and for hundreds of millions in batches. Threads that share a shard
//! share its lock: give a bus with several busy producers as many shards.
//!
//! [`export`] sends a bus's events to other systems.

mod batch;
mod bell;
mod config;
mod consumer;

mod cursor;
mod dedup;
mod error;
pub mod export;
mod filter;
mod hub;
mod ring;
mod seat;
mod shard;
mod stats;
mod sync;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Event, Order, Want};
pub use config::{
    BusConfig, MAX_BATCH, MAX_CONSUMERS, MAX_SHARD_BYTES, MAX_SHARD_EVENTS, MAX_SHARDS, Overflow,
};
pub use consumer::{Consumer, MAX_NAME, News, Start};
pub use cursor::Cursor;
pub use dedup::RedisStreamDedup;
pub use error::{BusConfigError, ConsumerError, CursorError, IngestError};
pub use filter::{Condition, Filter, FilterError, MAX_CONDITIONS, MAX_DEPTH};
pub use hub::{Bus, Drained, Taken};
pub use stats::{BusStats, ConsumerCounts, Counts};
