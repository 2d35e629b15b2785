//! Sending a bus's events to other systems, each at least once and under an id that never changes.
//!
//! An [`Exporter`] reads a [`Consumer`] in the order of ingest, packs events into a [`Parcel`], writes
//! the parcel into its [outbox](ExportConfig::outbox), and gives it to a [`Sink`] until that one says
//! that the other side has it; only then the bus may forget the events. Every event has an id,
//! `{producer}:{number}`. The producer's name and the numbers live in the outbox, so that
//!
//! - a parcel that is sent again, because no answer came, has the same ids;
//! - so has one that was under way when the process was killed: the next run sends it first;
//! - no id is ever given to another event, in this run or a later one.
//!
//! What the other side does with the ids: `JetStream` drops what it has seen within its window; from a
//! Redis stream the reader drops them, with [`super::RedisStreamDedup`]. The bus itself lives in
//! memory: events that were in no parcel yet die with the process.
//!
#![cfg_attr(
    feature = "redis",
    doc = r#"
To a Redis stream, in a task of its own:
```no_run
# use meshwork_mesh::bus::{Bus, BusConfig, export::{ExportConfig, Exporter, RedisConfig, RedisSink}};
# use tokio_util::sync::CancellationToken;
# async fn export() -> Result<(), Box<dyn std::error::Error>> {
let bus = Bus::new(BusConfig::default())?;
let sink = RedisSink::new(RedisConfig {
    url: "redis://127.0.0.1:6379/".to_owned(),
    stream: "orders".to_owned(),
    max_len: Some(1_000_000),
})?;
let config = ExportConfig {
    outbox: Some("/var/lib/shop/orders.outbox".into()),
    ..ExportConfig::default()
};
let exporter = Exporter::new(bus.consumer("redis")?, sink, config)?;
let stop = CancellationToken::new();
let export = tokio::spawn(exporter.run(stop.clone()));
bus.ingest(b"an order")?;
bus.close();
export.await??;
# Ok(())
# }
```
"#
)]
#![cfg_attr(
    feature = "nats",
    doc = r#"
To a `JetStream` stream, only the sink differs:
```no_run
# use meshwork_mesh::bus::export::{NatsConfig, NatsSink};
let mut config = NatsConfig::new("nats://127.0.0.1:4222", "ORDERS", "orders.new");
config.sole_writer = false; // other programs write to that stream, too
let sink = NatsSink::new(config);
```
"#
)]

mod exporter;
#[cfg(feature = "nats")]
mod nats;
mod outbox;
mod parcel;
#[cfg(feature = "redis")]
mod redis;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

pub use exporter::{ExportConfig, ExportError, Exporter};
#[cfg(feature = "nats")]
pub use nats::{NatsConfig, NatsSink};
pub use outbox::OutboxError;
pub use parcel::Parcel;
#[cfg(feature = "redis")]
pub use redis::{RedisConfig, RedisSink, RedisUrlError};

use super::consumer::Consumer;

/// Another system that takes events.
pub trait Sink: Send {
    /// Sends all events of the parcel, in order. `Ok` says that the other side keeps all of them.
    ///
    /// After an error, and after this was dropped half way, the same parcel is sent again.
    fn send(&mut self, parcel: &Parcel) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Bytes of the largest event that the other side takes. Larger ones are dropped and counted.
    fn max_event(&self) -> usize {
        usize::MAX
    }
}

/// A parcel was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Trying again may help: the other side is unreachable, busy or full.
    #[error("the other side did not take the events")]
    Transient(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Trying again will not help: somebody must act.
    #[error("the other side refuses the events")]
    Fatal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What an exporter counted.
#[derive(Debug, Default)]
pub struct ExportStats {
    sent: AtomicU64,
    resumed: AtomicU64,
    failures: AtomicU64,
    too_large: AtomicU64,
}

impl ExportStats {
    /// Events that the other side confirmed, each counted once.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many of them an earlier run had left in the outbox.
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Attempts that failed and were repeated.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Events dropped because the other side takes none that large.
    pub fn too_large(&self) -> u64 {
        self.too_large.load(Ordering::Relaxed)
    }
}
