//! Waiting, closing, draining, and every way to be refused.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::bus::{
    Bus, BusConfig, BusConfigError, ConsumerError, Counts, Cursor, CursorError, Filter,
    IngestError, MAX_CONSUMERS, News, Overflow, Start, Taken, Want,
};

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

fn small(overflow: Overflow) -> Bus {
    let config = BusConfig {
        shards: 1,
        max_events: 4,
        max_bytes: 100,
        overflow,
    };
    Bus::new(config).unwrap()
}

fn payloads(batch: &crate::bus::Batch) -> Vec<&str> {
    batch
        .iter()
        .map(|event| str::from_utf8(event.payload).unwrap())
        .collect()
}

#[tokio::test]
async fn a_wait_ends_with_an_event_and_with_the_close() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    let waiting = tokio::spawn({
        let consumer = consumer.clone();
        async move {
            consumer
                .next(&Want::up_to(10))
                .await
                .map(|batch| batch.len())
        }
    });
    tokio::task::yield_now().await;
    bus.ingest(b"a").unwrap();
    assert_eq!(waiting.await.unwrap(), Some(1));

    let waiting = tokio::spawn(async move { consumer.next(&Want::up_to(10)).await.is_none() });
    tokio::task::yield_now().await;
    // The last producer's end closes the bus.
    drop(bus);
    assert!(waiting.await.unwrap());
}

#[test]
fn a_waiting_task_sleeps_until_there_is_something() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    let mut wait = pin!(consumer.wait());
    let mut context = Context::from_waker(Waker::noop());
    assert!(wait.as_mut().poll(&mut context).is_pending());
    bus.ingest(b"a").unwrap();
    assert_eq!(wait.as_mut().poll(&mut context), Poll::Ready(News::Events));
}

#[test]
fn a_blocking_wait_is_over_in_the_end() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    assert_eq!(consumer.wait_blocking(Duration::from_millis(1)), None);
    bus.ingest(b"a").unwrap();
    assert_eq!(consumer.wait_blocking(PATIENCE), Some(News::Events));
    bus.close();
    assert_eq!(consumer.wait_blocking(PATIENCE), Some(News::Events));
    consumer.take(&Want::up_to(1));
    assert_eq!(consumer.wait_blocking(PATIENCE), Some(News::Closed));
}

#[tokio::test]
async fn send_waits_for_room_and_hears_of_the_close() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    for _ in 0..4 {
        bus.send(b"x").await.unwrap();
    }
    assert!(matches!(bus.ingest(b"y"), Err(IngestError::Full)));
    let sending = |bus: Bus| tokio::spawn(async move { bus.send(b"y").await });
    let sent = sending(bus.clone());
    tokio::task::yield_now().await;
    consumer.take(&Want::up_to(1));
    assert_eq!(
        sent.await.unwrap().unwrap(),
        Taken {
            kept: 1,
            dropped: 0
        }
    );

    let sent = sending(bus.clone());
    tokio::task::yield_now().await;
    bus.close();
    assert!(matches!(sent.await.unwrap(), Err(IngestError::Closed)));
    let total = bus.stats().total;
    assert_eq!((total.accepted, total.refused), (5, 1));
}

#[tokio::test]
async fn a_drain_lets_readers_finish() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    bus.ingest_batch(&["a", "b", "c"]).unwrap();
    let draining = tokio::spawn({
        let bus = bus.clone();
        async move { bus.drain(PATIENCE).await }
    });
    tokio::task::yield_now().await;
    let first = consumer.poll(None, &Want::up_to(2)).unwrap();
    let rest = consumer
        .poll(Some(first.cursor()), &Want::up_to(2))
        .unwrap();
    assert_eq!(payloads(&rest), ["c"]);
    consumer.confirm(rest.cursor()).unwrap();
    assert_eq!(draining.await.unwrap().abandoned, 0);
    assert_eq!(bus.stats().total.delivered, 3);
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_up_and_counts_what_is_left() {
    let bus = small(Overflow::FailProducer);
    let reader = bus.consumer("reader").unwrap();
    let sleeper = bus.consumer("sleeper").unwrap();
    bus.ingest_batch(&["a", "b", "c"]).unwrap();
    reader.take(&Want::up_to(3));
    sleeper.poll(None, &Want::up_to(1)).unwrap();
    // "a" was handed to both; "b" and "c" never reach the sleeper.
    assert_eq!(bus.drain(Duration::from_secs(5)).await.abandoned, 2);
    let total = bus.stats().total;
    assert!(total.add_up());
    assert_eq!(
        (total.delivered, total.abandoned, total.buffered),
        (1, 2, 0)
    );
    assert_eq!(sleeper.counts().missed, 2);
    assert_eq!(sleeper.wait().await, News::Closed);

    let unread = small(Overflow::FailProducer);
    unread.ingest(b"x").unwrap();
    assert_eq!(
        unread.drain(PATIENCE).await.abandoned,
        1,
        "nobody to wait for"
    );
}

#[test]
fn an_old_cursor_gives_the_same_again_until_it_is_confirmed() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    bus.ingest_batch(&["a", "b", "c", "d"]).unwrap();
    let first = consumer.poll(None, &Want::up_to(2)).unwrap();
    let again = consumer.poll(None, &Want::up_to(2)).unwrap();
    assert_eq!(payloads(&first), payloads(&again));
    assert_eq!(consumer.counts().unconfirmed, 2);
    let second = consumer
        .poll(Some(first.cursor()), &Want::up_to(9))
        .unwrap();
    assert_eq!(payloads(&second), ["c", "d"]);
    assert_eq!(bus.stats().total.delivered, 2);
    let late = consumer.poll(None, &Want::up_to(9)).unwrap();
    assert_eq!(payloads(&late), ["c", "d"]);
    assert_eq!(consumer.counts().taken, 4);
}

#[test]
fn a_poll_is_bounded_in_bytes_but_always_gives_one() {
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    bus.ingest_batch(&["aaaa", "bbbb", "cc", "dddddddddd"])
        .unwrap();
    let want = Want::up_to(9).max_bytes(8);
    assert_eq!(payloads(&consumer.take(&want)), ["aaaa", "bbbb"]);
    assert_eq!(payloads(&consumer.take(&want)), ["cc"]);
    assert_eq!(payloads(&consumer.take(&want)), ["dddddddddd"]);
    assert!(consumer.take(&want).is_empty());
}

#[test]
fn a_consumer_resumes_where_another_one_stopped() {
    let bus = small(Overflow::FailProducer);
    let keeper = bus.consumer("keeper").unwrap();
    bus.ingest_batch(&["a", "b", "c"]).unwrap();
    let text = {
        let consumer = bus.consumer("one").unwrap();
        consumer
            .poll(None, &Want::up_to(1))
            .unwrap()
            .cursor()
            .to_string()
    };
    let start = Start::At(text.parse().unwrap());
    let resumed = bus.consumer_at("one", &start).unwrap();
    assert_eq!(payloads(&resumed.take(&Want::up_to(9))), ["b", "c"]);
    let now = bus.consumer_at("now", &Start::Now).unwrap();
    assert!(now.take(&Want::up_to(9)).is_empty());
    assert_eq!(keeper.take(&Want::up_to(9)).len(), 3);
}

#[test]
fn what_was_dropped_is_told() {
    let bus = small(Overflow::DropOldest);
    let consumer = bus.consumer("one").unwrap();
    let cursor = consumer
        .poll(None, &Want::up_to(1))
        .unwrap()
        .cursor()
        .clone();
    for event in ["a", "b", "c", "d", "e", "f"] {
        bus.ingest(event.as_bytes()).unwrap();
    }
    let batch = consumer.poll(Some(&cursor), &Want::up_to(9)).unwrap();
    assert_eq!(batch.missed(), 2);
    assert_eq!(payloads(&batch), ["c", "d", "e", "f"]);
    assert_eq!(consumer.counts().missed, 2);
    // Given out but unconfirmed, and then dropped: delivered, as all consumers had it.
    bus.ingest(b"g").unwrap();
    let total = bus.stats().total;
    assert_eq!((total.dropped_oldest, total.delivered), (2, 1));
    assert_eq!(
        consumer
            .poll(Some(&cursor), &Want::up_to(9))
            .unwrap()
            .missed(),
        3
    );
}

#[test]
fn a_batch_is_taken_whole_or_as_the_mode_says() {
    let fail = small(Overflow::FailProducer);
    fail.ingest_batch(&["a", "b"]).unwrap();
    assert!(matches!(
        fail.ingest_batch(&["c", "d", "e"]),
        Err(IngestError::Full)
    ));
    assert_eq!(fail.stats().total, counts(2, 0, 2, 3, &fail));
    let newest = small(Overflow::DropNewest);
    newest.ingest_batch(&["a", "b", "c"]).unwrap();
    let taken = newest.ingest_batch(&["d", "e", "f"]).unwrap();
    assert_eq!(
        taken,
        Taken {
            kept: 1,
            dropped: 2
        }
    );
    assert_eq!(newest.stats().total, counts(6, 2, 4, 0, &newest));
}

fn counts(accepted: u64, newest: u64, buffered: u64, refused: u64, bus: &Bus) -> Counts {
    Counts {
        accepted,
        dropped_newest: newest,
        buffered,
        buffered_bytes: buffered,
        refused,
        memory: bus.stats().total.memory,
        ..Counts::default()
    }
}

#[test]
fn what_never_fits_is_refused_in_every_mode() {
    for overflow in [
        Overflow::DropNewest,
        Overflow::DropOldest,
        Overflow::FailProducer,
    ] {
        let bus = small(overflow);
        let huge = [0; 101];
        assert!(matches!(
            bus.ingest(&huge),
            Err(IngestError::TooLarge { len: 101, max: 100 })
        ));
        assert!(matches!(
            bus.ingest_batch(&[huge]),
            Err(IngestError::TooLarge { .. })
        ));
        assert!(matches!(
            bus.ingest_batch(&["x"; 5]),
            Err(IngestError::BatchTooLarge {
                events: 5,
                bytes: 5
            })
        ));
        bus.close();
        assert!(matches!(bus.ingest(b"x"), Err(IngestError::Closed)));
        assert!(matches!(bus.ingest_batch(&["x"]), Err(IngestError::Closed)));
        assert_eq!(bus.stats().total.refused, 9);
    }
}

#[test]
fn cursors_of_elsewhere_are_refused() {
    let (bus, other) = (small(Overflow::FailProducer), small(Overflow::FailProducer));
    let consumer = bus.consumer("one").unwrap();
    let foreign = other.consumer("one").unwrap().take(&Want::up_to(1));
    let refused = consumer.poll(Some(foreign.cursor()), &Want::up_to(1));
    assert_eq!(refused.unwrap_err(), CursorError::OtherBus);
    let twin = Bus::with_id(bus.config().clone(), 5).unwrap();
    let ahead = Cursor {
        bus: 5,
        next: vec![1],
    };
    let error = twin.consumer_at("x", &Start::At(ahead)).unwrap_err();
    assert_eq!(error, ConsumerError::Cursor(CursorError::Ahead));
}

#[test]
fn consumers_are_bounded_and_named_once() {
    let bus = small(Overflow::FailProducer);
    let mut consumers: Vec<_> = (0..MAX_CONSUMERS)
        .map(|number| bus.consumer(&number.to_string()).unwrap())
        .collect();
    assert_eq!(bus.consumer("more").unwrap_err(), ConsumerError::TooMany);
    assert_eq!(
        bus.consumer("7").unwrap_err(),
        ConsumerError::NameTaken("7".to_owned())
    );
    assert!(matches!(
        bus.consumer(""),
        Err(ConsumerError::Name { len: 0, .. })
    ));
    bus.ingest(b"x").unwrap();
    for consumer in &consumers[1..] {
        consumer.take(&Want::up_to(1));
    }
    assert_eq!(bus.stats().total.buffered, 1);
    // Who never read leaves: nobody waits for the event any more.
    consumers.remove(0);
    assert_eq!(bus.stats().total.delivered, 1);
    bus.consumer("more").unwrap();
}

#[test]
fn a_filter_passes_over_what_is_not_wanted() {
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("one").unwrap();
    for number in 0..1_000 {
        bus.ingest_json(&serde_json::json!({"n": number, "kind": number % 10}))
            .unwrap();
    }
    let filter: Filter = serde_json::from_str(r#"{"path":"kind","value":3}"#).unwrap();
    let want = Want::up_to(40).filter(filter);
    let first = consumer.poll(None, &want).unwrap();
    let numbers = |batch: &crate::bus::Batch| -> Vec<u64> {
        let number = |event: crate::bus::Event<'_>| event.json::<serde_json::Value>().unwrap();
        batch
            .iter()
            .map(|event| number(event)["n"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(
        numbers(&first),
        (0..40).map(|n| n * 10 + 3).collect::<Vec<u64>>()
    );
    let again = consumer.poll(None, &want).unwrap();
    assert_eq!(numbers(&first), numbers(&again));
    let rest = consumer
        .poll(Some(first.cursor()), &Want::up_to(999))
        .unwrap();
    let from = consumer.poll(Some(first.cursor()), &want).unwrap();
    assert_eq!(
        numbers(&from)[0],
        403,
        "the cursor lies behind the last one wanted or later"
    );
    assert!(!rest.is_empty());
    let counts = consumer.counts();
    assert!(counts.add_up());
    assert_eq!(counts.taken + counts.passed, 1_000);
}

#[test]
fn an_event_may_ingest_while_it_is_written() {
    struct Nested<'a>(&'a Bus);
    impl Serialize for Nested<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0
                .ingest_json("inner")
                .map_err(serde::ser::Error::custom)?;
            serializer.serialize_str("outer")
        }
    }
    let bus = small(Overflow::FailProducer);
    let consumer = bus.consumer("one").unwrap();
    bus.ingest_json(&Nested(&bus)).unwrap();
    assert_eq!(
        payloads(&consumer.take(&Want::up_to(9))),
        ["\"inner\"", "\"outer\""]
    );
}

#[test]
fn memory_follows_use_up_to_the_bound() {
    let bus = Bus::new(BusConfig::default()).unwrap();
    assert_eq!(bus.stats().total.memory, 0);
    bus.ingest(b"x").unwrap();
    assert!(bus.stats().total.memory < 32 << 10);
    while bus.ingest(&[0; 300]).is_ok() {}
    let total = bus.stats().total;
    assert!(total.memory <= (16 << 20) + 16 * (1 << 16));
    assert_eq!(
        total.buffered, 55_925,
        "16 MiB of 300 bytes, after one byte"
    );
}

#[test]
fn impossible_bounds_are_refused() {
    let with = |change: fn(&mut BusConfig)| {
        let mut config = BusConfig::default();
        change(&mut config);
        Bus::new(config).unwrap_err()
    };
    assert_eq!(with(|c| c.shards = 3), BusConfigError::Shards(3));
    assert_eq!(with(|c| c.shards = 128), BusConfigError::Shards(128));
    assert_eq!(with(|c| c.max_events = 0), BusConfigError::Events(0));
    assert_eq!(with(|c| c.max_bytes = 0), BusConfigError::Bytes(0));
    assert!(serde_json::from_str::<BusConfig>(r#"{"shard":1}"#).is_err());
}
