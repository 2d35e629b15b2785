//! Many producers and consumers at once: the sums always add up, nothing comes twice, nothing that
//! was kept is lost, and order holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::bus::{
    Bus, BusConfig, Consumer, Counts, Event, IngestError, News, Order, Overflow, Want,
};

const PRODUCERS: u32 = 3;
const EVENTS: u32 = 20_000;
/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

fn bus(shards: usize, overflow: Overflow) -> Bus {
    let config = BusConfig {
        shards,
        max_events: 500,
        max_bytes: 6_000,
        overflow,
    };
    Bus::new(config).unwrap()
}

/// One producer's events: its number and a counter, by turns one by one and in batches. Returns how
/// many were kept.
fn produce(bus: &Bus, producer: u32) -> u64 {
    let mut kept = 0;
    let mut index = 0;
    while index < EVENTS {
        let len = if index % 3 == 0 { 1 } else { 7 };
        let batch: Vec<[u8; 8]> = (index..EVENTS.min(index + len))
            .map(|index| ((u64::from(producer) << 32) | u64::from(index)).to_le_bytes())
            .collect();
        let taken = match &batch[..] {
            [one] => bus.ingest(one),
            many => bus.ingest_batch(many),
        };
        match taken {
            Ok(taken) => kept += taken.kept,
            Err(IngestError::Full) => {
                thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        index += u32::try_from(batch.len()).unwrap();
    }
    kept
}

fn parse(event: &Event<'_>) -> (u32, u32) {
    let number = u64::from_le_bytes(event.payload.try_into().unwrap());
    (
        u32::try_from(number >> 32).unwrap(),
        u32::try_from(number & 0xffff_ffff).unwrap(),
    )
}

/// All events until the bus is closed and empty, by taking.
fn take_all(consumer: &Consumer, order: Order) -> Vec<(u32, u32, u64)> {
    let mut got = Vec::new();
    loop {
        let batch = consumer.take(&Want::up_to(100).order(order));
        for event in batch.iter() {
            let (producer, index) = parse(&event);
            got.push((producer, index, event.stamp));
        }
        if batch.is_empty() && consumer.wait_blocking(PATIENCE).unwrap() == News::Closed {
            return got;
        }
    }
}

/// The same, by polling with cursors, of which every third answer "gets lost".
fn poll_all(consumer: &Consumer, lossless: bool) -> Vec<(u32, u32)> {
    let mut got = Vec::new();
    let mut cursor = None;
    let mut polls = 0;
    loop {
        let batch = consumer.poll(cursor.as_ref(), &Want::up_to(64)).unwrap();
        polls += 1;
        if lossless && polls % 3 == 0 && !batch.is_empty() {
            continue;
        }
        assert!(!lossless || batch.missed() == 0);
        got.extend(batch.iter().map(|event| parse(&event)));
        cursor = Some(batch.cursor().clone());
        if batch.is_empty() {
            consumer.confirm(batch.cursor()).unwrap();
            if consumer.wait_blocking(PATIENCE).unwrap() == News::Closed {
                return got;
            }
        }
    }
}

/// Each producer's events come in order and once.
fn assert_in_order(events: impl IntoIterator<Item = (u32, u32)>) {
    let mut last = BTreeMap::new();
    for (producer, index) in events {
        let before = last.insert(producer, index);
        assert!(
            before.is_none_or(|before| before < index),
            "{producer}: {before:?} {index}"
        );
    }
}

fn run(shards: usize, overflow: Overflow) {
    let bus = bus(shards, overflow);
    let taker = bus.consumer("taker").unwrap();
    let poller = bus.consumer("poller").unwrap();
    let done = AtomicBool::new(false);
    let lossless = overflow == Overflow::FailProducer;
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) || looks == 0 {
                let stats = bus.stats();
                assert!(stats.total.add_up(), "{:?}", stats.total);
                assert!(stats.shards.iter().all(Counts::add_up));
                assert!(stats.consumers.iter().all(|(_, counts)| counts.add_up()));
                assert!(
                    stats
                        .shards
                        .iter()
                        .all(|c| c.buffered <= 500 && c.buffered_bytes <= 6_000)
                );
                looks += 1;
            }
        });
        let takers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| take_all(&taker, Order::Any)))
            .collect();
        let polled = scope.spawn(|| poll_all(&poller, lossless));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let bus = &bus;
                scope.spawn(move || produce(bus, producer))
            })
            .collect();
        let kept: u64 = producers
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        bus.close();
        let taken: Vec<Vec<_>> = takers.into_iter().map(|t| t.join().unwrap()).collect();
        let polled = polled.join().unwrap();
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();

        let mut all: Vec<(u32, u32)> = taken.iter().flatten().map(|e| (e.0, e.1)).collect();
        for taken in taken {
            assert_in_order(taken.into_iter().map(|e| (e.0, e.1)));
        }
        all.sort_unstable();
        assert!(all.is_sorted_by(|a, b| a < b), "no event is taken twice");
        let stats = bus.stats();
        let counts = taker.counts();
        assert_eq!(counts.taken, all.len() as u64);
        assert_eq!(counts.taken + counts.missed, kept);
        assert_eq!(poller.counts().taken + poller.counts().missed, kept);
        assert_eq!(stats.total.buffered, 0);
        assert_eq!(
            stats.total.accepted,
            stats.total.delivered + stats.total.dropped()
        );
        assert_in_order(polled.iter().copied());
        if lossless {
            assert_eq!(kept, u64::from(PRODUCERS * EVENTS));
            assert_eq!(all.len() as u64, kept);
            assert_eq!(polled.len() as u64, kept);
            assert_eq!(stats.total.delivered, kept);
        }
    });
}

#[test]
fn every_accepted_event_reaches_every_consumer_once() {
    for shards in [1, 4] {
        run(shards, Overflow::FailProducer);
    }
}

#[test]
fn drops_of_the_oldest_are_counted_exactly() {
    for shards in [1, 4] {
        run(shards, Overflow::DropOldest);
    }
}

#[test]
fn drops_of_the_newest_are_counted_exactly() {
    for shards in [1, 4] {
        run(shards, Overflow::DropNewest);
    }
}

#[test]
fn by_time_means_one_order_over_all_shards_and_polls() {
    let bus = bus(4, Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    let got = thread::scope(|scope| {
        let reader = scope.spawn(|| take_all(&consumer, Order::Time));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let bus = &bus;
                scope.spawn(move || produce(bus, producer))
            })
            .collect();
        for producer in producers {
            assert!(producer.join().unwrap() > 0);
        }
        bus.close();
        reader.join().unwrap()
    });
    assert_eq!(got.len(), (PRODUCERS * EVENTS) as usize);
    assert!(
        got.iter()
            .map(|event| event.2)
            .eq(0..u64::from(PRODUCERS * EVENTS))
    );
    assert_in_order(got.into_iter().map(|event| (event.0, event.1)));
}
