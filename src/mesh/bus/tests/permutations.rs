//! Every order of steps that a scheduler may choose, tried at random and in depth. Run with
//! `cargo test -p meshwork-mesh --lib --features shuttle bus::tests::permutations`.

use std::sync::Arc;

use shuttle::{future, thread};

use crate::bus::{Bus, BusConfig, Consumer, IngestError, News, Order, Overflow, Want};

/// Schedules that are tried of each test.
const SCHEDULES: usize = 3_000;

fn every_order(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let random = test.clone();
    shuttle::check_random(move || random(), SCHEDULES);
    shuttle::check_pct(move || test(), SCHEDULES, 3);
}

fn bus(shards: usize, max_events: usize, overflow: Overflow) -> Bus {
    let config = BusConfig {
        shards,
        max_events,
        overflow,
        ..BusConfig::default()
    };
    Bus::with_id(config, 1).unwrap()
}

/// All payloads until the bus is closed and empty. A lost wake-up is a deadlock, which is a failure.
fn read_all(consumer: &Consumer, order: Order) -> Vec<u8> {
    let mut got = Vec::new();
    while future::block_on(consumer.wait()) == News::Events {
        let batch = consumer.take(&Want::up_to(2).order(order));
        got.extend(batch.iter().map(|event| event.payload[0]));
    }
    got
}

#[test]
fn a_waiter_hears_of_every_event_and_of_the_close() {
    every_order(|| {
        let bus = bus(2, 8, Overflow::FailProducer);
        let consumer = bus.consumer("one").unwrap();
        let producers: Vec<_> = (0..2u8)
            .map(|producer| {
                let bus = bus.clone();
                thread::spawn(move || {
                    bus.ingest_keyed(producer, &[producer]).unwrap();
                    bus.ingest_batch(&[[10 + producer]]).unwrap();
                })
            })
            .collect();
        // The last producer's end closes it.
        drop(bus);
        let mut got = read_all(&consumer, Order::Time);
        for producer in producers {
            producer.join().unwrap();
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 10, 11]);
    });
}

#[test]
fn sharing_consumers_get_each_event_once_and_none_sleeps_on() {
    every_order(|| {
        let bus = bus(1, 8, Overflow::FailProducer);
        let consumer = bus.consumer("one").unwrap();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let consumer = consumer.clone();
                thread::spawn(move || read_all(&consumer, Order::Any))
            })
            .collect();
        for event in 0..4 {
            bus.ingest(&[event]).unwrap();
            let total = bus.stats().total;
            assert!(total.add_up(), "{total:?}");
        }
        bus.close();
        let mut got = Vec::new();
        for reader in readers {
            got.extend(reader.join().unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
        assert_eq!(bus.stats().total.delivered, 4);
    });
}

#[test]
fn a_sender_hears_of_room_and_of_the_close() {
    every_order(|| {
        let bus = bus(1, 1, Overflow::FailProducer);
        let consumer = bus.consumer("one").unwrap();
        let senders: Vec<_> = (0..2u8)
            .map(|sender| {
                let bus = bus.clone();
                thread::spawn(move || match future::block_on(bus.send(&[sender])) {
                    Ok(_) => 1,
                    Err(IngestError::Closed) => 0,
                    Err(error) => panic!("{error}"),
                })
            })
            .collect();
        let closer = thread::spawn(move || {
            let got = consumer.take(&Want::up_to(1)).len();
            (got, consumer)
        });
        let (got, consumer) = closer.join().unwrap();
        bus.close();
        let sent: u64 = senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .sum();
        let rest = read_all(&consumer, Order::Any).len();
        assert_eq!((got + rest) as u64, sent);
        assert_eq!(bus.stats().total.accepted, sent);
    });
}

#[test]
fn order_by_time_holds_from_poll_to_poll() {
    every_order(|| {
        let bus = bus(2, 8, Overflow::FailProducer);
        let consumer = bus.consumer("one").unwrap();
        let producers: Vec<_> = (0..2u8)
            .map(|producer| {
                let bus = bus.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        bus.ingest_keyed(producer, &[producer]).unwrap();
                    }
                })
            })
            .collect();
        let mut stamps = Vec::new();
        let want = Want::up_to(8).order(Order::Time);
        for _ in 0..3 {
            stamps.extend(consumer.take(&want).iter().map(|event| event.stamp));
        }
        for producer in producers {
            producer.join().unwrap();
        }
        stamps.extend(consumer.take(&want).iter().map(|event| event.stamp));
        assert_eq!(stamps, [0, 1, 2, 3]);
    });
}

#[test]
fn evictions_and_leaving_consumers_keep_the_sums() {
    every_order(|| {
        let bus = bus(1, 2, Overflow::DropOldest);
        let consumer = bus.consumer("one").unwrap();
        let leaver = bus.consumer("two").unwrap();
        let leaving = thread::spawn(move || {
            let got = leaver.poll(None, &Want::up_to(1)).unwrap();
            leaver.confirm(got.cursor()).unwrap();
        });
        let producer = thread::spawn({
            let bus = bus.clone();
            move || {
                for event in 0..4 {
                    bus.ingest(&[event]).unwrap();
                }
            }
        });
        let first = consumer.take(&Want::up_to(1));
        let stats = bus.stats();
        assert!(stats.total.add_up(), "{stats:?}");
        assert!(
            stats.consumers.iter().all(|(_, counts)| counts.add_up()),
            "{stats:?}"
        );
        producer.join().unwrap();
        leaving.join().unwrap();
        let rest = consumer.take(&Want::up_to(8));
        let counts = consumer.counts();
        assert_eq!(counts.taken + counts.missed, 4);
        assert_eq!(counts.taken, (first.len() + rest.len()) as u64);
        assert!(bus.stats().total.add_up());
    });
}
