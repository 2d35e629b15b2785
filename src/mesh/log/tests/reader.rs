//! Reading from the files alone, beside a writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use meshwork_identity::Timestamp;

use super::{Clock, payload, small};
use crate::log::{
    DiskFiles, Durability, Files, Log, LogConfig, LogError, Reader, Record, Retention, inspect,
    outline,
};

struct Place {
    dir: tempfile::TempDir,
    clock: Arc<Clock>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Clock::at(1_000),
        }
    }

    fn open(&self, config: LogConfig) -> Log {
        Log::open(self.dir.path(), self.clock.clone(), config).unwrap()
    }

    fn files(&self) -> Arc<dyn Files> {
        Arc::new(DiskFiles::for_reading(self.dir.path()).unwrap())
    }
}

/// All that a reader gives at present.
fn drain(reader: &mut Reader) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let records = reader.next_batch().unwrap();
        if records.is_empty() {
            return all;
        }
        all.extend(records);
    }
}

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

#[test]
fn a_reader_sees_what_is_appended_over_many_segments() {
    let place = Place::new();
    let log = place.open(small());
    let mut reader = Reader::from_first(place.files()).unwrap();
    assert!(drain(&mut reader).is_empty());
    for round in 0..20 {
        for seq in round * 50..(round + 1) * 50 {
            log.append(payload(seq), Durability::Never).unwrap();
        }
        let got = drain(&mut reader);
        assert_eq!(
            seqs(&got),
            (round * 50..(round + 1) * 50).collect::<Vec<_>>()
        );
        assert!(
            got.iter()
                .all(|record| record.payload == payload(record.seq))
        );
    }
    assert!(log.info().segments > 10);
    let found = outline(&place.files()).unwrap().unwrap();
    assert_eq!((found.first, found.next), (0, 1_000));
    log.close().unwrap();
    let mut late = Reader::from_seq(place.files(), 777);
    assert_eq!(seqs(&drain(&mut late)), (777..1_000).collect::<Vec<_>>());
}

#[test]
fn a_reader_beside_a_busy_writer_finds_no_damage_and_all_records() {
    const RECORDS: u64 = 30_000;
    let place = Place::new();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        ..LogConfig::default()
    };
    let log = place.open(config);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seq = 0;
            while seq < RECORDS {
                let payloads: Vec<_> = (seq..seq + 1 + seq % 7).map(payload).collect();
                let durability = if seq % 500 < 3 {
                    Durability::Each
                } else {
                    Durability::Never
                };
                seq = log.append_batch(&payloads, durability).unwrap().end;
            }
            over.store(true, Ordering::SeqCst);
        });
        let inspected = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(inspect(&*place.files(), |_| ()).unwrap().damage, []);
            }
        });
        let (mut reader, mut next) = (Reader::from_seq(place.files(), 0), 0);
        loop {
            // In this order: what came before the end is still read.
            let last = over.load(Ordering::SeqCst);
            for record in drain(&mut reader) {
                assert_eq!(
                    (record.seq, &record.payload[..]),
                    (next, &payload(next)[..])
                );
                next += 1;
            }
            if last {
                break;
            }
        }
        inspected.join().unwrap();
        assert_eq!(next, log.next_seq());
    });
}

#[test]
fn a_reader_starts_at_a_time() {
    let place = Place::new();
    let log = place.open(small());
    for seq in 0..500 {
        place.clock.set(1_000 + seq / 3 * 10);
        log.append(payload(seq), Durability::Never).unwrap();
    }
    for time in [0, 1_000, 1_001, 1_777, 2_655, 2_660, 2_661] {
        let time = Timestamp::from_millis(time);
        let mut reader = Reader::from_time(place.files(), time).unwrap();
        let first = log.seq_at(time).unwrap();
        assert_eq!(seqs(&drain(&mut reader)), (first..500).collect::<Vec<_>>());
    }
}

#[test]
fn damage_is_told_and_can_be_passed() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let log = place.open(LogConfig::default());
    for seq in 0..100 {
        log.append([7; 32], Durability::Each).unwrap();
        assert_eq!(log.durable_seq(), seq + 1);
    }
    log.close().unwrap();
    let name = place.dir.path().join(format!("{:020}.log", 0));
    let file = std::fs::File::options().write(true).open(name).unwrap();
    let damage = inspect(&*place.files(), |_| ()).unwrap();
    assert_eq!(damage.damage, []);
    // Within the payload of record 2 or so.
    file.write_all_at(b"?", 64 + 2 * 48 + 20).unwrap();
    let mut reader = Reader::from_seq(place.files(), 0);
    let got = reader.next_batch().unwrap();
    let at = u64::try_from(got.len()).unwrap();
    let Err(LogError::Damaged(damage)) = reader.next_batch() else {
        panic!("the damage is not seen");
    };
    assert_eq!((damage.seq, reader.position()), (at, at));
    assert!(at < 5, "{at}");
}

#[test]
fn what_is_dropped_and_what_is_not_there_yet_is_told() {
    let place = Place::new();
    let log = place.open(LogConfig {
        retention: Retention {
            records: Some(50),
            ..Retention::default()
        },
        ..small()
    });
    for seq in 0..1_000 {
        log.append(payload(seq), Durability::Never).unwrap();
    }
    log.sync().unwrap();
    log.enforce_retention().unwrap();
    let first = log.first_seq();
    log.close().unwrap();
    assert!(first > 800);
    let trimmed = Reader::from_seq(place.files(), 5).next_batch().unwrap_err();
    assert!(matches!(trimmed, LogError::Trimmed { first: told } if told == first));
    let ahead = Reader::from_seq(place.files(), 1_001).next_batch();
    assert!(matches!(
        ahead,
        Err(LogError::Ahead {
            asked: 1_001,
            next: 1_000
        })
    ));
    assert!(
        Reader::from_seq(place.files(), 1_000)
            .next_batch()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn the_holder_of_the_lock_is_told() {
    let place = Place::new();
    let log = place.open(LogConfig::default());
    let disk = DiskFiles::for_reading(place.dir.path()).unwrap();
    assert_eq!(disk.holder().unwrap(), Some(std::process::id()));
    log.close().unwrap();
    assert_eq!(disk.holder().unwrap(), None);
}
