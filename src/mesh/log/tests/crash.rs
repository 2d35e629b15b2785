//! A log on a disk that fails, against a list in memory: whatever happens, what was acknowledged is
//! there afterwards, in order, once, as its durability says.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::fault::{Crash, Disk, Fail};
use super::{Chance, Clock, payload, read_all};
use crate::log::{Durability, Log, LogConfig, LogError, Retention};

/// Scripts of a run, and lives of the process in each. Each life but a few ends in a crash at some
/// operation on the disk.
const SCRIPTS: u64 = 1500;
const LIVES: u64 = 8;
const STEPS: u64 = 40;

/// What must be there.
#[derive(Debug, Default)]
struct Model {
    /// Numbers from which a batch may be cut off: where batches begin.
    starts: Vec<u64>,
    /// Records before this were acknowledged.
    next: u64,
    /// Records before this must survive a power loss.
    durable: u64,
    /// An append that was told to have failed when the process died may be there: up to here.
    maybe: u64,
    /// Which attempt each record is of: one that failed must not show up in another's place.
    attempts: BTreeMap<u64, u64>,
}

impl Model {
    fn payload(&self, seq: u64) -> Vec<u8> {
        let mut bytes = payload(seq);
        bytes.extend(self.attempts[&seq].to_le_bytes());
        bytes
    }
}

struct Life {
    seed: u64,
    chance: Chance,
    disk: Arc<Disk>,
    clock: Arc<Clock>,
    config: LogConfig,
    model: Model,
    /// Records before this may be dropped by number.
    may_go: u64,
    told: bool,
}

#[test]
fn nothing_acknowledged_is_lost_in_any_crash() {
    // MESHWORK_LOG_SEED=232 runs one script alone and tells its steps; MESHWORK_LOG_SCRIPTS=100000 runs more.
    let only: Option<u64> = std::env::var("MESHWORK_LOG_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let scripts = std::env::var("MESHWORK_LOG_SCRIPTS").map_or(SCRIPTS, |n| n.parse().unwrap());
    for seed in only.map_or(0..scripts, |seed| seed..seed + 1) {
        let mut chance = Chance(seed);
        let bound = |chance: &mut Chance, n| (!chance.one_in(3)).then(|| 1 + chance.below(n));
        let config = LogConfig {
            segment_bytes: 4096 + 512 * chance.below(16),
            retention: match chance.below(3) {
                0 => Retention::default(),
                _ => Retention {
                    records: bound(&mut chance, 300),
                    bytes: bound(&mut chance, 30_000),
                    age: bound(&mut chance, 4000).map(Duration::from_millis),
                },
            },
            first_seq: chance.below(3) * 1000,
        };
        let first = config.first_seq;
        let mut life = Life {
            seed,
            chance,
            disk: Disk::new(seed),
            clock: Clock::at(1_000),
            config,
            model: Model {
                next: first,
                maybe: first,
                durable: first,
                starts: vec![],
                attempts: BTreeMap::new(),
            },
            may_go: 0,
            told: only.is_some(),
        };
        for _ in 0..LIVES {
            life.live();
        }
    }
}

impl Life {
    /// Opens, checks, works, and dies.
    fn live(&mut self) {
        if self.chance.one_in(4) {
            // Now and then already while it recovers.
            self.disk.die_after(self.chance.below(6));
        }
        let opened = Log::open_idle(self.disk.files(), self.clock.clone(), self.config.clone());
        let log = match opened {
            Ok(log) => log,
            Err(error) => {
                self.tell(|| format!("not opened: {error}"));
                assert!(self.disk.is_dead(), "seed {}: {error}", self.seed);
                let power = self.chance.one_in(2);
                self.disk
                    .crash(if power { Crash::Power } else { Crash::Kill });
                if power {
                    self.model.next = self.model.next.min(self.model.durable);
                }
                return;
            }
        };
        self.tell(|| format!("opened: {:?}", log.info()));
        self.check_recovered(&log);
        self.disk.die_after(self.chance.below(160));
        for _ in 0..STEPS {
            if self.disk.is_dead() {
                break;
            }
            self.step(&log);
        }
        self.end(log);
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{}", what());
        }
    }

    fn step(&mut self, log: &Log) {
        self.clock.set(1_000 + self.model.next * 10);
        match self.chance.below(12) {
            0 => {
                let synced = log.sync();
                self.tell(|| format!("sync: {synced:?}"));
            }
            1 => {
                log.keep();
                self.tell(|| format!("keep: {:?}", log.info()));
            }
            2 => self.fail_once(log),
            3 => {
                let upto = log.first_seq() + self.chance.below(200);
                self.may_go = self.may_go.max(upto.min(log.next_seq()));
                let _ = log.trim_before(upto.min(log.next_seq()));
            }
            4 => self.check_tail(log),
            5 => {
                // Batches up to more than a segment.
                let size = 1 + self.chance.below(120);
                self.append(log, size);
            }
            6..8 => {
                let size = 1 + self.chance.below(9);
                self.append(log, size);
            }
            _ => self.append(log, 1),
        }
        self.model.durable = self.model.durable.max(log.durable_seq());
        self.check_kept(log);
        assert!(log.durable_seq() <= log.next_seq());
    }

    fn append(&mut self, log: &Log, size: u64) {
        let durability = match self.chance.below(5) {
            0 => Durability::Each,
            1 => Durability::Every(NonZeroU64::new(1 + self.chance.below(20)).unwrap()),
            2 => Durability::Within(Duration::ZERO),
            _ => Durability::Never,
        };
        let first = self.model.next;
        let attempt = self.chance.next();
        self.model
            .attempts
            .extend((first..first + size).map(|seq| (seq, attempt)));
        let payloads: Vec<_> = (first..first + size)
            .map(|seq| self.model.payload(seq))
            .collect();
        let appended = log.append_batch(&payloads, durability);
        self.tell(|| {
            format!(
                "append {size} {durability:?}: {appended:?}, dead {}",
                self.disk.is_dead()
            )
        });
        match appended {
            Ok(seqs) => {
                assert_eq!(seqs, first..first + size, "seed {}", self.seed);
                self.acknowledge(first, size);
                let kept = match durability {
                    Durability::Each => 0,
                    Durability::Every(n) => n.get() - 1,
                    _ => u64::MAX,
                };
                self.model.durable = self.model.durable.max(seqs.end.saturating_sub(kept));
            }
            // It is there, but not known to be on disk.
            Err(LogError::Broken { .. }) if log.next_seq() == first + size => {
                self.acknowledge(first, size);
            }
            Err(error) => {
                let dead = self.disk.is_dead();
                assert!(
                    dead || matches!(error, LogError::Full { .. } | LogError::Broken { .. }),
                    "seed {}: {error}",
                    self.seed
                );
                assert_eq!(
                    log.next_seq(),
                    first,
                    "seed {}: a failed append is visible",
                    self.seed
                );
                if dead {
                    self.model.starts.push(first);
                    self.model.maybe = first + size;
                }
            }
        }
    }

    fn acknowledge(&mut self, first: u64, size: u64) {
        self.model.starts.push(first);
        self.model.next = first + size;
        self.model.maybe = first + size;
    }

    /// Something fails once. After a failed sync the log must refuse.
    fn fail_once(&mut self, log: &Log) {
        let fail = if self.chance.one_in(4) {
            Fail::Sync
        } else {
            Fail::Room
        };
        self.tell(|| format!("to fail: {fail:?}"));
        self.disk.fail_next(Some(fail));
        let size = 1 + self.chance.below(20);
        self.append(log, size);
        if fail == Fail::Sync {
            let synced = log.sync();
            if synced.is_err() && !self.disk.is_dead() {
                let refused = log.append(b"more", Durability::Never);
                assert!(
                    matches!(refused, Err(LogError::Broken { .. })),
                    "seed {}: {refused:?}",
                    self.seed
                );
            }
        }
        self.disk.fail_next(None);
    }

    fn end(&mut self, log: Log) {
        let crash = if self.chance.one_in(2) {
            Crash::Power
        } else {
            Crash::Kill
        };
        if !self.disk.is_dead() && self.chance.one_in(2) {
            let closed = log.close();
            if closed.is_ok() {
                self.model.durable = self.model.next;
            }
        } else {
            // Dead processes close nothing.
            self.disk.die_after(0);
        }
        drop(log);
        self.tell(|| format!("crash: {crash:?}"));
        self.disk.crash(crash);
        if crash == Crash::Power {
            self.model.next = self.model.durable;
        }
    }

    /// The log holds what it must, and nothing else.
    fn check_recovered(&mut self, log: &Log) {
        let seed = self.seed;
        let (first, next) = (log.first_seq(), log.next_seq());
        let Model {
            starts,
            maybe,
            next: least,
            ..
        } = &self.model;
        assert!(
            next >= *least,
            "seed {seed}: {least} records must be there, {next} are"
        );
        assert!(
            next <= *maybe,
            "seed {seed}: {maybe} records at most can be there, {next} are"
        );
        assert!(
            next == *maybe || starts.contains(&next),
            "seed {seed}: half a batch, up to {next}"
        );
        let records = read_all(log, first);
        assert_eq!(records.len() as u64, next - first, "seed {seed}");
        let mut time = 0;
        for (record, seq) in records.iter().zip(first..) {
            assert_eq!(
                (record.seq, &record.payload[..]),
                (seq, &self.model.payload(seq)[..]),
                "seed {seed}"
            );
            assert!(record.time.as_millis() >= time, "seed {seed}");
            time = record.time.as_millis();
        }
        self.check_kept(log);
        self.check_times(log, &records);
        self.model.starts.retain(|start| *start < next);
        (self.model.next, self.model.maybe) = (next, next);
        self.model.durable = self.model.durable.min(next);
    }

    /// Nothing goes that retention by number, or a reader's word, does not let go.
    fn check_kept(&mut self, log: &Log) {
        let Retention {
            records,
            bytes,
            age,
        } = self.config.retention;
        let surplus = records.map_or(0, |records| self.model.maybe.saturating_sub(records));
        self.may_go = self.may_go.max(surplus);
        if bytes.is_none() && age.is_none() {
            let first = log.first_seq();
            let may_go = self.may_go.max(self.config.first_seq);
            assert!(
                first <= may_go,
                "seed {}: {may_go} records may go, {first} went",
                self.seed
            );
        }
    }

    fn check_times(&mut self, log: &Log, records: &[crate::log::Record]) {
        let Some(last) = records.last() else { return };
        let millis = self.chance.below(last.time.as_millis() + 20);
        let time = meshwork_identity::Timestamp::from_millis(millis);
        let expected = records.iter().find(|record| record.time >= time);
        let expected = expected.map_or(log.next_seq(), |record| record.seq);
        assert_eq!(
            log.seq_at(time).unwrap(),
            expected,
            "seed {} at {millis}",
            self.seed
        );
    }

    /// A reader that starts anywhere gets all that follows.
    fn check_tail(&mut self, log: &Log) {
        let (first, next) = (log.first_seq(), log.next_seq());
        let mut at = first + self.chance.below(next - first + 1);
        let mut tail = log.tail(at).unwrap();
        while at < next {
            let batch = tail.next_batch_blocking(None).unwrap().unwrap();
            for record in &batch {
                assert_eq!(
                    (record.seq, record.payload),
                    (at, &self.model.payload(at)[..]),
                    "seed {}",
                    self.seed
                );
                at += 1;
            }
        }
        assert_eq!(tail.position(), next);
    }
}
