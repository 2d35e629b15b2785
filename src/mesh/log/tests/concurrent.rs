//! Readers that follow a log while it is written, closed segment by segment and trimmed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Clock, payload};
use crate::log::{Durability, Follow, Log, LogConfig, LogError, Retention, Tail};

const RECORDS: u64 = 60_000;
/// Far more than any of this takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_mins(2);

fn open(retention: Retention) -> (tempfile::TempDir, Log) {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 32 << 10,
        retention,
        first_seq: 0,
    };
    let log = Log::open(dir.path(), Clock::at(9), config).unwrap();
    (dir, log)
}

/// Reads up to `end`, checking each record. Returns how many were read and how many had gone.
fn read_to(tail: &mut Tail, end: u64, mut each: impl FnMut(u64)) -> (u64, u64) {
    let (mut at, mut read, mut gone) = (tail.position(), 0, 0);
    let deadline = Some(Instant::now() + PATIENCE);
    while at < end {
        match tail.next_batch_blocking(deadline) {
            Ok(batch) => {
                for record in &batch.expect("there is more to come") {
                    assert_eq!(record.seq, at);
                    assert_eq!(record.payload, payload(at));
                    each(at);
                    at += 1;
                    read += 1;
                }
            }
            Err(LogError::Trimmed { first }) => {
                assert!(first > at, "nothing is said to be gone that is not");
                gone += first - at;
                at = first;
                // It may be gone as well by now; the next round tells.
                let _ = tail.seek(at);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(at, end);
    (read, gone)
}

fn write(log: &Log, records: u64) {
    let mut seq = 0;
    while seq < records {
        let size = if seq % 5 == 0 { 50 } else { 1 }.min(records - seq);
        let payloads: Vec<_> = (seq..seq + size).map(payload).collect();
        let seqs = log.append_batch(&payloads, Durability::Never).unwrap();
        assert_eq!(seqs, seq..seq + size);
        seq += size;
    }
}

#[test]
fn every_reader_gets_all_records_in_order_across_segments() {
    let (_dir, log) = open(Retention::default());
    thread::scope(|scope| {
        for _ in 0..3 {
            let mut tail = log.tail(0).unwrap();
            scope.spawn(move || assert_eq!(read_to(&mut tail, RECORDS, |_| {}), (RECORDS, 0)));
        }
        scope.spawn(|| write(&log, RECORDS));
    });
    assert!(log.info().segments > 20);
}

#[test]
fn a_reader_that_retention_overtakes_is_told_and_goes_on() {
    let (_dir, log) = open(Retention {
        bytes: Some(64 << 10),
        ..Retention::default()
    });
    let mut slow = log.tail(0).unwrap();
    let start = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !start.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            read_to(&mut slow, RECORDS, |_| {})
        });
        write(&log, RECORDS / 2);
        log.sync().unwrap();
        while log.first_seq() == 0 {
            thread::yield_now();
        }
        start.store(true, Ordering::SeqCst);
        for seq in RECORDS / 2..RECORDS {
            log.append(payload(seq), Durability::Never).unwrap();
        }
        let (read, gone) = reader.join().unwrap();
        assert!(gone > 0);
        assert_eq!(read + gone, RECORDS);
    });
}

#[test]
fn a_reader_of_what_is_durable_never_reads_further() {
    let (_dir, log) = open(Retention::default());
    let mut tail = log.follow(0, Follow::Durable).unwrap();
    thread::scope(|scope| {
        let log = &log;
        scope.spawn(move || read_to(&mut tail, 5_000, |seq| assert!(seq < log.durable_seq())));
        write(log, 5_000);
        // The reader causes no sync; this one lets it end.
        log.sync().unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_readers_get_all_records_and_the_end() {
    let (_dir, log) = open(Retention::default());
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let mut tail = log.tail(0).unwrap();
            tokio::spawn(async move {
                let mut at = 0;
                loop {
                    // Half of them give up again and again, in the midst of what they await.
                    let next = if n % 2 == 0 {
                        match timeout(Duration::from_micros(50), tail.next()).await {
                            Ok(next) => next,
                            Err(_) => continue,
                        }
                    } else {
                        timeout(PATIENCE, tail.next()).await.unwrap()
                    };
                    let Some(record) = next.unwrap() else {
                        return at;
                    };
                    assert_eq!((record.seq, &record.payload[..]), (at, &payload(at)[..]));
                    at += 1;
                }
            })
        })
        .collect();
    let writer = log.clone();
    tokio::task::spawn_blocking(move || write(&writer, 20_000))
        .await
        .unwrap();
    log.close().unwrap();
    for reader in readers {
        assert_eq!(timeout(PATIENCE, reader).await.unwrap().unwrap(), 20_000);
    }
}

#[test]
fn many_writers_share_syncs_and_each_gets_its_number() {
    let (_dir, log) = open(Retention::default());
    let sum = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let seq = log.append(b"shared", Durability::Each).unwrap();
                    assert!(log.durable_seq() > seq);
                    sum.fetch_add(seq, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(sum.load(Ordering::SeqCst), (0..320).sum::<u64>());
    assert!(log.info().syncs < 320, "{} syncs", log.info().syncs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_writers_wait_for_the_disk() {
    let (_dir, log) = open(Retention::default());
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let seq = log.append_async(b"shared", Durability::Each).await.unwrap();
                    assert!(log.durable_seq() > seq);
                }
            })
        })
        .collect();
    for task in tasks {
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    assert_eq!(log.next_seq(), 160);
    assert!(log.info().syncs < 160);
}

#[tokio::test]
async fn within_some_time_it_is_on_disk() {
    let (_dir, log) = open(Retention::default());
    let seq = log
        .append(b"soon", Durability::Within(Duration::from_millis(3)))
        .unwrap();
    timeout(PATIENCE, log.durable(seq + 1))
        .await
        .unwrap()
        .unwrap();
    assert!(log.durable_seq() > seq);
}
