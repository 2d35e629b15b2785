//! The log: appending, following, opening again.
//!
//! Floors are one thread that writes 32 bytes to the end of a file and calls `fsync`, over and over, on
//! the same disk. A round of the durable rows goes back and forth between ours and the floor, many
//! times, as a disk's mood changes within a second. `MESHWORK_BENCH_DIR` chooses the disk.

use std::fs::File;
use std::hint::{black_box, spin_loop};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use meshwork_mesh::SystemClock;
use meshwork_mesh::log::{Durability, Log, LogConfig};
use tempfile::TempDir;

use crate::Scale;
use crate::figures::{Series, Times, series_in_turn};
use crate::report::{Bar, Of, Row, Unit};

/// Records of a round, one by one; five times as many in batches.
const RECORDS: usize = 2_000_000;
/// Records of a batch.
const BATCH: usize = 1_000;
const SMALL: [u8; 32] = [7; 32];
/// Times that a round goes from ours to the floor and back, and syncs of the floor each time.
const TURNS: usize = 10;
const SYNCS: usize = 30;
const WRITERS: usize = 64;
/// Appends of each of many writers, each time.
const EACH: usize = 20;
/// Live records of a round.
const LIVE: usize = 3_000;
/// Long enough for a reader to fall asleep again.
const APART: Duration = Duration::from_micros(60);
/// Records of a log that is opened again or read whole, as in net's benchmark.
const OLD: usize = 500_000;

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let mut rows = append(scale);
    rows.extend(durable(scale));
    rows.push(live(scale));
    rows.extend(old(scale));
    rows
}

fn append(scale: &Scale) -> Vec<Row> {
    let records = scale.of(RECORDS);
    let batch = vec![SMALL; BATCH];
    let [by_one, by_batch, write] = series_in_turn(
        scale.rounds,
        [
            &mut || {
                appended(records, |log| {
                    for _ in 0..records {
                        log.append(black_box(SMALL), Durability::Never).unwrap();
                    }
                })
            },
            &mut || {
                appended(records * 5, |log| {
                    for _ in 0..records * 5 / BATCH {
                        log.append_batch(black_box(&batch), Durability::Never)
                            .unwrap();
                    }
                })
            },
            &mut || bare_writes(records),
        ],
    );
    vec![
        Row::new(
            "log.append",
            "log append, 32 B, no fsync",
            Unit::PerSecond,
            by_one,
        )
        .peer("write(2)", &write)
        .bar(Bar::AtLeast(2e6, Of::One)),
        Row::new(
            "log.batch",
            "… in batches of 1,000",
            Unit::PerSecond,
            by_batch,
        )
        .bar(Bar::AtLeast(20e6, Of::One)),
    ]
}

fn durable(scale: &Scale) -> Vec<Row> {
    let (one, one_floor) = in_turns(scale, single);
    let (many, many_floor) = in_turns(scale, together);
    vec![
        Row::new(
            "log.durable",
            "log append, on disk, 1 writer",
            Unit::PerSecond,
            one,
        )
        .limit("fsync", &one_floor)
        .bar(Bar::AtLeast(0.9, Of::Limit)),
        Row::new("log.durable.64", "… 64 writers", Unit::PerSecond, many)
            .limit("fsync", &many_floor)
            .bar(Bar::AtLeast(30.0, Of::Limit)),
    ]
}

fn live(scale: &Scale) -> Row {
    let rounds: Vec<Times> = (0..scale.rounds)
        .map(|_| followed(scale.of(LIVE)))
        .collect();
    Row::new(
        "log.tail",
        "log tail, live, p50",
        Unit::Micros,
        Times::series(&rounds, 0.5),
    )
    .bar(Bar::AtMost(20.0, Of::One))
}

fn old(scale: &Scale) -> Vec<Row> {
    let dir = dir();
    let records = scale.of(OLD) / BATCH * BATCH;
    let log = open(dir.path());
    let batch = vec![[7; 64]; BATCH];
    for _ in 0..records / BATCH {
        log.append_batch(&batch, Durability::Never).unwrap();
    }
    // As a killed process leaves them.
    log.sync().unwrap();
    let killed = copied(dir.path());
    log.close().unwrap();
    let [back, reopened, after_kill] = series_in_turn(
        scale.rounds,
        [
            &mut || read_all(dir.path(), records as u64),
            &mut || reopened(dir.path(), records as u64),
            &mut || reopened(copied(killed.path()).path(), records as u64),
        ],
    );
    let bar = Bar::AtMost(5_000.0, Of::One);
    vec![
        Row::new(
            "log.backfill",
            "log tail, back-fill, 64 B",
            Unit::PerSecond,
            back,
        )
        .bar(Bar::AtLeast(5e6, Of::One)),
        Row::new(
            "log.reopen",
            "log reopen, 500 k records",
            Unit::Micros,
            reopened,
        )
        .bar(bar),
        Row::new(
            "log.reopen.killed",
            "… after kill -9",
            Unit::Micros,
            after_kill,
        )
        .bar(bar),
    ]
}

fn dir() -> TempDir {
    let at = std::env::var_os("MESHWORK_BENCH_DIR");
    let at = at.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::Builder::new()
        .prefix("log-bench-")
        .tempdir_in(at)
        .unwrap()
}

fn open(dir: &Path) -> Log {
    Log::open(dir.join("log"), Arc::new(SystemClock), LogConfig::default()).unwrap()
}

/// Records a second that `work` appends to a new log.
fn appended(records: usize, work: impl FnOnce(&Log)) -> f64 {
    let dir = dir();
    let log = open(dir.path());
    let start = Instant::now();
    work(&log);
    let spent = start.elapsed();
    assert_eq!(log.next_seq(), records as u64);
    records as f64 / spent.as_secs_f64()
}

/// The system call that a plain file takes for each.
fn bare_writes(records: usize) -> f64 {
    let dir = dir();
    let file = File::create(dir.path().join("file")).unwrap();
    let start = Instant::now();
    for n in 0..records as u64 {
        file.write_all_at(black_box(&SMALL), n * 32).unwrap();
    }
    records as f64 / start.elapsed().as_secs_f64()
}

/// Durable appends a second, and the syncs a second that a plain file takes between them.
fn in_turns(scale: &Scale, work: impl Fn(&Log) -> usize) -> (Series, Series) {
    let turns = scale.of(TURNS).max(2);
    let round = || {
        let dir = dir();
        let log = open(dir.path());
        log.append(SMALL, Durability::Each).unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let (mut ours, mut floor, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        for turn in 0..turns {
            let start = Instant::now();
            count += work(&log);
            ours += start.elapsed();
            let start = Instant::now();
            for n in 0..SYNCS {
                let at = (turn * SYNCS + n) * SMALL.len();
                file.write_all_at(&SMALL, at as u64).unwrap();
                file.sync_all().unwrap();
            }
            floor += start.elapsed();
        }
        let syncs = (turns * SYNCS) as f64 / floor.as_secs_f64();
        (count as f64 / ours.as_secs_f64(), syncs)
    };
    // Warms up, and is not counted.
    round();
    let (ours, floor) = (0..scale.rounds).map(|_| round()).unzip();
    (Series::new(ours), Series::new(floor))
}

fn single(log: &Log) -> usize {
    for _ in 0..SYNCS {
        log.append(SMALL, Durability::Each).unwrap();
    }
    SYNCS
}

fn together(log: &Log) -> usize {
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    log.append(SMALL, Durability::Each).unwrap();
                }
            });
        }
    });
    WRITERS * EACH
}

/// From before an append until a reader on another thread has the record, asleep before each.
fn followed(count: usize) -> Times {
    let dir = dir();
    let log = open(dir.path());
    let mut tail = log.tail(0).unwrap();
    let zero = Instant::now();
    let (seen, begin) = (AtomicU64::new(0), Barrier::new(2));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begin.wait();
            let mut times = Vec::with_capacity(count);
            while times.len() < count {
                let batch = tail.next_batch_blocking(None).unwrap().unwrap();
                let now = zero.elapsed();
                for record in &batch {
                    let sent = u64::from_le_bytes(*record.payload.first_chunk().unwrap());
                    times.push(now.saturating_sub(Duration::from_nanos(sent)));
                }
                seen.store(batch.seqs().end, Ordering::Release);
            }
            times
        });
        begin.wait();
        for n in 0..count as u64 {
            let start = Instant::now();
            while start.elapsed() < APART {
                spin_loop();
            }
            let mut record = SMALL;
            let now = zero.elapsed().as_nanos() as u64;
            record[..8].copy_from_slice(&now.to_le_bytes());
            log.append(record, Durability::Never).unwrap();
            while seen.load(Ordering::Acquire) <= n {
                spin_loop();
            }
        }
        Times::new(reader.join().unwrap())
    })
}

/// Records a second that a tail gives from the first one on.
fn read_all(dir: &Path, records: u64) -> f64 {
    let log = open(dir);
    let mut tail = log.tail(0).unwrap();
    let start = Instant::now();
    let mut bytes = 0;
    while tail.position() < records {
        let batch = tail.next_batch_blocking(None).unwrap().unwrap();
        bytes += batch
            .iter()
            .map(|record| record.payload.len())
            .sum::<usize>();
    }
    assert_eq!(bytes as u64, records * 64);
    records as f64 / start.elapsed().as_secs_f64()
}

/// Microseconds to open a log.
fn reopened(dir: &Path, records: u64) -> f64 {
    let start = Instant::now();
    let log = open(dir);
    let spent = start.elapsed();
    assert_eq!(log.next_seq(), records);
    spent.as_secs_f64() * 1e6
}

/// The log's files as they are, elsewhere.
fn copied(from: &Path) -> TempDir {
    let to = dir();
    std::fs::create_dir(to.path().join("log")).unwrap();
    for entry in std::fs::read_dir(from.join("log")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join("log").join(entry.file_name())).unwrap();
    }
    to
}
