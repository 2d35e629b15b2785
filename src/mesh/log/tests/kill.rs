//! A real process that is really killed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Chance, Clock};
use crate::log::{Durability, Log, LogConfig, Retention};

/// How often the process is killed.
const KILLS: u64 = 25;
/// Tells the child where to work.
const DIR: &str = "MESHWORK_TEST_LOG_DIR";
const WRITERS: u64 = 4;
/// A child that nobody kills ends after so many appends of each writer.
const MOST: u64 = 2_000_000;

fn open(dir: &Path) -> Log {
    let config = LogConfig {
        segment_bytes: 256 << 10,
        retention: Retention::default(),
        first_seq: 0,
    };
    Log::open(dir.join("log"), Clock::at(5), config).unwrap()
}

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut chance = Chance(7);
    for life in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(
                [
                    "--exact",
                    "--ignored",
                    concat!(module_path!(), "::child_to_be_killed"),
                ]
                .map(own_path),
            )
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It must have begun; how far it gets is left to chance.
        let began = dir.path().join("began");
        while fs::read_to_string(&began)
            .ok()
            .and_then(|text| text.parse().ok())
            != Some(child.id())
        {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the child ended by itself"
            );
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(chance.below(30_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        check(dir.path(), life);
    }
    assert!(fs::metadata(dir.path().join("acks")).unwrap().len() > 0);
}

/// The name of a test without the crate's.
fn own_path(name: &str) -> &str {
    name.split_once("::").map_or(
        name,
        |(first, rest)| if first.starts_with('-') { name } else { rest },
    )
}

/// All that was acknowledged is there, once, at its place; each writer's records are in order.
fn check(dir: &Path, life: u64) {
    let log = open(dir);
    let mut at: BTreeMap<(u64, u64, u64), u64> = BTreeMap::new();
    let mut last: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for (record, seq) in log.read_range(0..u64::MAX).unwrap().zip(0..) {
        let record = record.unwrap();
        assert_eq!(record.seq, seq);
        let [process, writer, n] = words(&record.payload);
        let before = last.insert((process, writer), n);
        assert_eq!(
            before.map_or(0, |before| before + 1),
            n,
            "life {life}: writer {writer} at {}",
            record.seq
        );
        at.insert((process, writer, n), record.seq);
    }
    // One that was killed early has acknowledged nothing.
    let acks = fs::read(dir.join("acks")).unwrap_or_default();
    let (acks, torn) = acks.as_chunks::<32>();
    assert!(torn.is_empty());
    for ack in acks {
        let [process, writer, n, seq] = words(ack);
        assert_eq!(
            at.get(&(process, writer, n)),
            Some(&seq),
            "life {life}: writer {writer}, {n}"
        );
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut chunks = bytes.as_chunks::<8>().0.iter();
    std::array::from_fn(|_| u64::from_le_bytes(*chunks.next().unwrap()))
}

#[test]
#[ignore = "runs in a process of its own, to be killed"]
fn child_to_be_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let log = open(dir);
    let process = std::process::id();
    fs::write(dir.join("began.new"), process.to_string()).unwrap();
    fs::rename(dir.join("began.new"), dir.join("began")).unwrap();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let log = &log;
            scope.spawn(move || write(log, dir, u64::from(process), writer));
        }
    });
}

fn write(log: &Log, dir: &Path, process: u64, writer: u64) {
    let acks = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("acks"));
    let mut acks = acks.unwrap();
    let mut chance = Chance(process * 100 + writer);
    let mut n = 0;
    while n < MOST {
        let size = if chance.one_in(50) { 40 } else { 1 };
        let payloads: Vec<Vec<u8>> = (n..n + size)
            .map(|n| payload([process, writer, n], &mut chance))
            .collect();
        let durability = match chance.below(100) {
            0 => Durability::Each,
            1..10 => Durability::Every(NonZeroU64::new(500).unwrap()),
            10..20 => Durability::Within(Duration::from_millis(5)),
            _ => Durability::Never,
        };
        let seqs = log.append_batch(&payloads, durability).unwrap();
        // The first and the last of a batch tell for all.
        for (n, seq) in [(n, seqs.start), (n + size - 1, seqs.end - 1)] {
            let ack: Vec<u8> = [process, writer, n, seq]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            acks.write_all(&ack).unwrap();
        }
        n += size;
    }
}

fn payload(words: [u64; 3], chance: &mut Chance) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(24 + usize::try_from(chance.below(200)).unwrap(), 0x77);
    bytes
}
