//! The event bus: what one thread gives it, what one thread takes, and both at once.
//!
//! Ingest is timed alone: a shard is filled, then emptied untimed, over and over, so that the figures
//! are of a ring with room, warm, at its full size. One thread works there, so its processor time is
//! counted, and other programs do not blur it. The rows "through" time both ends by the clock, on
//! two threads, until the last event is read; a producer that finds the bus full tries again.

use std::hint::black_box;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use meshwork_mesh::bus::{Batch, Bus, BusConfig, Consumer, IngestError, Order, Want};
use serde::Serialize;

use crate::Scale;
use crate::figures::{Times, series_in_turn};
use crate::meter::thread_cpu;
use crate::report::{Bar, Of, Row, Unit};

/// As many events as a shard is filled with at a time.
const FILL: usize = 60_000;
/// Events of a round.
const EVENTS: usize = 3_000_000;
/// Wake-ups of a round.
const WAKES: usize = 3_000;
/// As net's benchmark: an event of 17 bytes.
const SMALL: &[u8] = br#"{"token":"tok_1"}"#;
/// Events of a batch.
const BATCH: usize = 1_000;

#[derive(Serialize)]
struct Typed {
    token: &'static str,
    index: u64,
}

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let mut rows = ingest(scale);
    rows.extend(take(scale));
    rows.extend(through(scale));
    rows.push(wake(scale));
    rows
}

fn ingest(scale: &Scale) -> Vec<Row> {
    let events = scale.of(EVENTS);
    let small = vec![SMALL; BATCH];
    let large = vec![[b'x'; 1024]; BATCH];
    let (one, four) = (pair(1), pair(4));
    let single = |(bus, consumer): &(Bus, Consumer)| {
        filled(consumer, events, FILL, || {
            for _ in 0..FILL {
                black_box(bus.ingest(black_box(SMALL)).unwrap());
            }
        })
    };
    let batches = |events: &[&[u8]]| {
        for _ in 0..FILL / BATCH {
            black_box(one.0.ingest_batch(black_box(events)).unwrap());
        }
    };
    let [by_one, ordered, by_batch, kilobytes, typed, queue] = series_in_turn(
        scale.rounds,
        [
            &mut || single(&one),
            &mut || single(&four),
            &mut || filled(&one.1, events * 4, FILL, || batches(&small)),
            &mut || {
                filled(&one.1, events / 3, FILL, || {
                    for _ in 0..FILL / BATCH {
                        black_box(one.0.ingest_batch(black_box(&large)).unwrap());
                    }
                })
            },
            &mut || {
                filled(&one.1, events / 3, FILL, || {
                    for index in 0..FILL as u64 {
                        let token = "hello";
                        one.0.ingest_json(&Typed { token, index }).unwrap();
                    }
                })
            },
            &mut || queue(events),
        ],
    );
    let fifty = Bar::AtLeast(50e6, Of::One);
    vec![
        Row::new(
            "bus.one",
            "bus ingest, 17 B, one by one",
            Unit::PerSecond,
            by_one,
        )
        .peer("std mpsc", &queue)
        .bar(fifty),
        Row::new(
            "bus.ordered",
            "… of 4 shards, in one order",
            Unit::PerSecond,
            ordered,
        )
        .peer("std mpsc", &queue),
        Row::new(
            "bus.batch",
            "… in batches of 1,000",
            Unit::PerSecond,
            by_batch,
        )
        .bar(fifty),
        Row::new(
            "bus.kilobyte",
            "… of 1 KiB, batches",
            Unit::PerSecond,
            kilobytes,
        ),
        Row::new("bus.json", "… typed, two fields", Unit::PerSecond, typed),
    ]
}

fn take(scale: &Scale) -> Vec<Row> {
    let events = scale.of(EVENTS) * 2;
    let (one, four) = (pair(1), pair(4));
    let [any, by_time] = series_in_turn(
        scale.rounds,
        [
            &mut || taken(&one, events, &Want::up_to(BATCH)),
            &mut || taken(&four, events, &Want::up_to(BATCH).order(Order::Time)),
        ],
    );
    vec![
        Row::new("bus.take", "bus poll of 1,000, 17 B", Unit::PerSecond, any),
        Row::new(
            "bus.take-time",
            "… of 4 shards, by time",
            Unit::PerSecond,
            by_time,
        ),
    ]
}

fn through(scale: &Scale) -> Vec<Row> {
    let events = scale.of(EVENTS);
    let small = vec![SMALL; BATCH];
    let [by_one, by_batch, queue] = series_in_turn(
        scale.rounds,
        [
            &mut || both(events, |bus| retry(|| bus.ingest(SMALL).map(|t| t.kept))),
            &mut || {
                both(events * 4, |bus| {
                    retry(|| bus.ingest_batch(&small).map(|t| t.kept))
                })
            },
            &mut || queue_both(events),
        ],
    );
    vec![
        Row::new(
            "bus.through",
            "bus, thread to thread, one by one",
            Unit::PerSecond,
            by_one,
        )
        .peer("std mpsc", &queue),
        Row::new(
            "bus.through-batch",
            "… in batches of 1,000",
            Unit::PerSecond,
            by_batch,
        )
        .peer("std mpsc", &queue),
    ]
}

/// From ingest to the return of the reader's wait, reader asleep before each.
fn wake(scale: &Scale) -> Row {
    let rounds: Vec<Times> = (0..scale.rounds).map(|_| wakes(scale.of(WAKES))).collect();
    let median = Times::series(&rounds, 0.5);
    Row::new(
        "bus.wake",
        "bus, sleeping reader woken, p50",
        Unit::Micros,
        median,
    )
}

fn pair(shards: usize) -> (Bus, Consumer) {
    let config = BusConfig {
        shards,
        max_bytes: 64 << 20,
        ..BusConfig::default()
    };
    let bus = Bus::new(config).unwrap();
    let consumer = bus.consumer("bench").unwrap();
    (bus, consumer)
}

/// Events a second of `fill`, which puts `each` events into the bus.
fn filled(consumer: &Consumer, events: usize, each: usize, mut fill: impl FnMut()) -> f64 {
    let (mut spent, mut count) = (0.0, 0);
    let mut batch = Batch::default();
    while count < events {
        let start = thread_cpu();
        fill();
        spent += thread_cpu() - start;
        count += each;
        while consumer.counts().waiting > 0 {
            consumer.take_into(&Want::up_to(FILL), &mut batch);
        }
    }
    count as f64 / spent * 1e6
}

/// Events a second of `take`, from a bus filled untimed, four events in a row to a shard.
fn taken((bus, consumer): &(Bus, Consumer), events: usize, want: &Want) -> f64 {
    let (mut spent, mut count) = (0.0, 0);
    let mut batch = Batch::default();
    while count < events {
        for key in 0..FILL {
            bus.ingest_keyed(key / 4, SMALL).unwrap();
        }
        let start = thread_cpu();
        let before = count;
        while count < before + FILL {
            consumer.take_into(want, &mut batch);
            count += black_box(&batch).len();
        }
        spent += thread_cpu() - start;
    }
    count as f64 / spent * 1e6
}

/// Events a second through a bus, from one thread to another, all of them counted.
fn both(events: usize, mut put: impl FnMut(&Bus) -> u64) -> f64 {
    let (bus, consumer) = pair(1);
    let start = Instant::now();
    let reader = thread::spawn(move || {
        let (mut batch, mut count) = (Batch::default(), 0);
        while count < events {
            consumer.take_into(&Want::up_to(8 * BATCH), &mut batch);
            if batch.is_empty() {
                consumer.wait_blocking(Duration::from_secs(10)).unwrap();
            }
            count += black_box(&batch).len();
        }
        count
    });
    let mut given = 0;
    while given < events as u64 {
        given += put(&bus);
    }
    let got = reader.join().unwrap();
    let spent = start.elapsed();
    let total = bus.stats().total;
    assert_eq!((total.accepted, total.delivered), (given, got as u64));
    got as f64 / spent.as_secs_f64()
}

/// Until there is room.
fn retry(mut put: impl FnMut() -> Result<u64, IngestError>) -> u64 {
    loop {
        match put() {
            Ok(kept) => return kept,
            Err(IngestError::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn wakes(count: usize) -> Times {
    let (bus, consumer) = pair(1);
    let (ask, asked) = sync_channel::<()>(1);
    let (answer, answered) = sync_channel::<Instant>(1);
    let reader = thread::spawn(move || {
        while asked.recv().is_ok() {
            consumer.wait_blocking(Duration::from_secs(10)).unwrap();
            let woken = Instant::now();
            consumer.take(&Want::up_to(1));
            answer.send(woken).unwrap();
        }
    });
    let times = (0..count).map(|_| {
        ask.send(()).unwrap();
        // Long enough for the reader to fall asleep.
        thread::sleep(Duration::from_micros(200));
        let start = Instant::now();
        bus.ingest(SMALL).unwrap();
        answered.recv().unwrap() - start
    });
    let times = Times::new(times.collect());
    drop(ask);
    reader.join().unwrap();
    times
}

/// The queue of the standard library, which owns each event: filled and emptied as the bus is.
fn queue(events: usize) -> f64 {
    let (sender, receiver) = sync_channel::<Vec<u8>>(1 << 16);
    let (mut spent, mut count) = (0.0, 0);
    while count < events {
        let start = thread_cpu();
        for _ in 0..FILL {
            sender.try_send(black_box(SMALL).to_vec()).unwrap();
        }
        spent += thread_cpu() - start;
        count += FILL;
        black_box(receiver.try_iter().count());
    }
    count as f64 / spent * 1e6
}

fn queue_both(events: usize) -> f64 {
    let (sender, receiver) = sync_channel::<Vec<u8>>(1 << 16);
    let start = Instant::now();
    let reader = thread::spawn(move || receiver.iter().count());
    for _ in 0..events {
        sender.send(black_box(SMALL).to_vec()).unwrap();
    }
    drop(sender);
    assert_eq!(reader.join().unwrap(), events);
    events as f64 / start.elapsed().as_secs_f64()
}
