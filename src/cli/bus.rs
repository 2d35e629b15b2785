//! `meshwork bus`: how fast the event bus is on this machine.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum, value_parser};
use meshwork_mesh::bus::{
    Batch, Bus, BusConfig, BusConfigError, Consumer, ConsumerError, Counts, IngestError, News,
    Overflow, Taken, Want,
};
use serde::Serialize;

use super::Context;
use super::error::{CliError, Code};
use super::out::Row;

/// Events that a producer hands over at once in the second row.
const BATCH: usize = 1_000;
/// Events that the reader takes at once.
const READ: usize = 8_000;
/// Most events of a run: minutes, where a bus is slow.
const MAX_EVENTS: u64 = 10_000_000_000;
/// Largest event. Sixteen fit into a shard.
const MAX_SIZE: u64 = 1 << 20;
/// How often the reader looks whether it is over, should nobody wake it.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum BusCommand {
    /// Measure the event bus: producers on one side, a reader on the other, all events counted
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// How many events
    #[arg(long, value_name = "N", default_value_t = 10_000_000,
          value_parser = value_parser!(u64).range(1..=MAX_EVENTS))]
    events: u64,
    /// Bytes of an event
    #[arg(long, value_name = "BYTES", default_value_t = 64,
          value_parser = value_parser!(u64).range(..=MAX_SIZE))]
    size: u64,
    /// Shards, a power of two up to 64, with one producing thread each
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,
    /// What happens when the reader is behind
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// The producer tries again until there is room
    #[default]
    FailProducer,
    /// New events are dropped
    DropNewest,
    /// The oldest events are dropped
    DropOldest,
}

impl From<Mode> for Overflow {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::FailProducer => Self::FailProducer,
            Mode::DropNewest => Self::DropNewest,
            Mode::DropOldest => Self::DropOldest,
        }
    }
}

/// What one run counted.
#[derive(Debug, Serialize)]
struct Figures {
    /// Events that a producer hands over at once.
    batch: usize,
    size: u64,
    shards: usize,
    mode: Mode,
    seconds: f64,
    events_per_second: f64,
    bytes_per_second: f64,
    accepted: u64,
    delivered: u64,
    dropped: u64,
    /// Attempts for which there was no room, each repeated.
    retried: u64,
}

impl Row for Figures {
    fn head(_: bool) -> Vec<&'static str> {
        vec![
            "BATCH",
            "SECONDS",
            "EVENTS/S",
            "BYTES/S",
            "ACCEPTED",
            "DELIVERED",
            "DROPPED",
        ]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        vec![
            self.batch.to_string(),
            format!("{:.2}", self.seconds),
            rate(self.events_per_second),
            rate(self.bytes_per_second),
            self.accepted.to_string(),
            self.delivered.to_string(),
            self.dropped.to_string(),
        ]
    }

    fn id(&self) -> String {
        format!("{:.0}", self.events_per_second)
    }
}

pub(super) fn bus(cx: &Context, command: &BusCommand) -> Result<(), CliError> {
    let BusCommand::Bench(args) = command;
    let rows = [measure(args, 1)?, measure(args, args.batch())?];
    cx.out.list(&rows)
}

impl BenchArgs {
    fn config(&self) -> BusConfig {
        BusConfig {
            shards: self.shards,
            overflow: self.mode.into(),
            ..BusConfig::default()
        }
    }

    fn size(&self) -> usize {
        usize::try_from(self.size).expect("the command line bounds it")
    }

    /// Fewer where events are large: a quarter of a shard, so that producer and reader overlap.
    fn batch(&self) -> usize {
        (BusConfig::default().max_bytes / 4 / self.size().max(1)).clamp(1, BATCH)
    }
}

/// One run. Fails where the bus gave the reader anything but what it says.
fn measure(args: &BenchArgs, batch: usize) -> Result<Figures, CliError> {
    let bus = Bus::new(args.config())?;
    let consumer = bus.consumer("bench")?;
    let start = Instant::now();
    let (read, retried) = thread::scope(|scope| {
        let reader = scope.spawn(|| drain(&consumer));
        // All are started before the first is waited for.
        let producers: Vec<_> = shares(args.events, args.shards)
            .map(|events| {
                let bus = &bus;
                scope.spawn(move || produce(bus, events, args.size(), batch))
            })
            .collect();
        let retried: Result<Vec<u64>, IngestError> = producers
            .into_iter()
            .map(|producer| producer.join().expect("a producer does not panic"))
            .collect();
        // Also after an error: the reader waits for it.
        bus.close();
        let read = reader.join().expect("the reader does not panic");
        retried.map(|retried| (read, retried.iter().sum()))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let total = bus.stats().total;
    balance(&total, args.events, read)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate is shown with three digits"
    )]
    let per_second = |count: u64| count as f64 / seconds;
    Ok(Figures {
        batch,
        size: args.size,
        shards: args.shards,
        mode: args.mode,
        seconds,
        events_per_second: per_second(total.accepted),
        bytes_per_second: per_second(total.accepted.saturating_mul(args.size)),
        accepted: total.accepted,
        delivered: total.delivered,
        dropped: total.dropped(),
        retried,
    })
}

/// `events` in as many parts.
fn shares(events: u64, parts: usize) -> impl Iterator<Item = u64> {
    let parts = parts as u64;
    (0..parts).map(move |part| events / parts + u64::from(part < events % parts))
}

/// Puts in `events`; tells how often there was no room.
fn produce(bus: &Bus, events: u64, size: usize, batch: usize) -> Result<u64, IngestError> {
    let payload = vec![b'x'; size];
    let together = vec![payload.as_slice(); batch];
    let (mut left, mut retried) = (events, 0);
    while left > 0 {
        let now = usize::try_from(left).map_or(batch, |left| left.min(batch));
        let taken = if batch == 1 {
            bus.ingest(black_box(&payload))
        } else {
            bus.ingest_batch(black_box(&together[..now]))
        };
        match taken {
            Ok(Taken { kept, dropped }) => left -= kept + dropped,
            Err(IngestError::Full) => {
                retried += 1;
                thread::yield_now();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(retried)
}

/// Reads until the bus is closed and empty; tells how many events came.
fn drain(consumer: &Consumer) -> u64 {
    let want = Want::up_to(READ);
    let (mut batch, mut read) = (Batch::default(), 0);
    loop {
        consumer.take_into(&want, &mut batch);
        read += black_box(&batch).len() as u64;
        if batch.is_empty() && consumer.wait_blocking(LOOK) == Some(News::Closed) {
            return read;
        }
    }
}

/// Nothing may be lost without being counted, and nothing come twice.
fn balance(total: &Counts, given: u64, read: u64) -> Result<(), CliError> {
    if total.add_up() && total.buffered == 0 && total.accepted == given && total.delivered == read {
        return Ok(());
    }
    let text = format!("the bus lost count: {given} events given, {read} read, {total:?}");
    Err(CliError::new(Code::INTERNAL, text).fix("report this as a bug"))
}

/// `52.3M`.
fn rate(per_second: f64) -> String {
    const UNITS: [(&str, f64); 3] = [("G", 1e9), ("M", 1e6), ("k", 1e3)];
    UNITS
        .iter()
        .find(|(_, factor)| per_second >= *factor)
        .map_or_else(
            || format!("{per_second:.0}"),
            |(unit, factor)| format!("{:.1}{unit}", per_second / factor),
        )
}

impl From<BusConfigError> for CliError {
    fn from(error: BusConfigError) -> Self {
        Self::new(Code::VALUE, error)
    }
}

impl From<ConsumerError> for CliError {
    fn from(error: ConsumerError) -> Self {
        Self::new(Code::INTERNAL, error)
    }
}

impl From<IngestError> for CliError {
    fn from(error: IngestError) -> Self {
        Self::new(Code::INTERNAL, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_and_even() {
        assert_eq!(shares(10, 4).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(shares(1, 2).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_bus_that_lost_count_is_told() {
        let total = Counts {
            accepted: 10,
            delivered: 9,
            dropped_newest: 1,
            ..Counts::default()
        };
        assert!(balance(&total, 10, 9).is_ok());
        assert!(balance(&total, 10, 10).is_err(), "one came twice");
        assert!(balance(&total, 11, 9).is_err(), "one was not taken");
        let short = Counts {
            delivered: 8,
            ..total
        };
        assert!(balance(&short, 10, 8).is_err(), "one was lost");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(rate(52_345_678.0), "52.3M");
        assert_eq!(rate(999.0), "999");
    }
}
