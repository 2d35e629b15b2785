//! What a log promises when nothing crashes.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::Timestamp;

use super::fault::{Crash, Disk, Fail};
use super::{Clock, payload, read_all, small};
use crate::log::{
    DiskFiles, Durability, Follow, Log, LogConfig, LogError, MAX_RECORD, Record, Retention,
};

fn idle(disk: &Arc<Disk>, config: LogConfig) -> Log {
    Log::open_idle(disk.files(), Clock::at(1), config).unwrap()
}

fn fill(log: &Log, records: u64) {
    for seq in log.next_seq()..log.next_seq() + records {
        log.append(payload(seq), Durability::Never).unwrap();
    }
    log.keep();
}

#[test]
fn who_has_it_open_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(dir.path().join("a/b"), Clock::at(1), small());
    let log = open().unwrap();
    let Err(error) = open() else {
        panic!("opened twice")
    };
    assert!(
        matches!(error, LogError::InUse { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())) && text.contains("stop it"),
        "{text}"
    );
    drop(log);
    open().unwrap();
}

#[test]
fn records_come_back_after_closing_with_their_times() {
    let dir = tempfile::tempdir().unwrap();
    for files in [
        DiskFiles::open(dir.path().join("a")),
        DiskFiles::open(dir.path().join("b")).map(DiskFiles::unmapped),
    ] {
        let (files, clock) = (Arc::new(files.unwrap()), Clock::at(100));
        let log = Log::open_in(files.clone(), clock.clone(), small()).unwrap();
        for seq in 0..300 {
            // The clock goes back now and then; the log's times do not.
            clock.set(100 + seq * 10 - (seq % 3) * 25);
            log.append(payload(seq), Durability::Never).unwrap();
        }
        let before = read_all(&log, 0);
        assert!(before.is_sorted_by_key(|record| record.time));
        assert_eq!(
            before.last().unwrap().time,
            Timestamp::from_millis(100 + 297 * 10)
        );
        log.close().unwrap();
        assert!(matches!(
            log.append(b"x", Durability::Never),
            Err(LogError::Closed)
        ));
        let log = Log::open_in(files, clock, small()).unwrap();
        assert_eq!(read_all(&log, 0), before);
        assert_eq!(
            log.info().recovered.scanned,
            0,
            "a log that was closed is not searched"
        );
        assert_eq!(log.append(b"x", Durability::Each).unwrap(), 300);
    }
}

#[test]
fn retention_keeps_what_it_says_and_names_the_first_left() {
    let keeping = |retention| {
        let log = idle(
            &Disk::new(1),
            LogConfig {
                retention,
                ..small()
            },
        );
        fill(&log, 1000);
        let info = log.info();
        assert!(info.first > 0 && info.trimmed_segments > 0);
        assert_eq!(read_all(&log, info.first).len() as u64, 1000 - info.first);
        for from in [0, info.first - 1] {
            assert!(
                matches!(log.tail(from), Err(LogError::Trimmed { first }) if first == info.first)
            );
            assert!(
                matches!(log.read_range(from..from + 1), Err(LogError::Trimmed { first }) if first == info.first)
            );
        }
        info
    };
    let by_number = keeping(Retention {
        records: Some(300),
        ..Retention::default()
    });
    assert!(by_number.next - by_number.first >= 300 && by_number.next - by_number.first < 400);
    let by_size = keeping(Retention {
        bytes: Some(20_000),
        ..Retention::default()
    });
    assert!(
        by_size.bytes >= 20_000 && by_size.bytes <= 20_000 + 4096,
        "{}",
        by_size.bytes
    );
}

#[test]
fn what_is_old_goes_even_when_nothing_is_appended() {
    let (disk, clock) = (Disk::new(1), Clock::at(1_000));
    let retention = Retention {
        age: Some(Duration::from_secs(10)),
        ..Retention::default()
    };
    let log = Log::open_idle(
        disk.files(),
        clock.clone(),
        LogConfig {
            retention,
            ..small()
        },
    )
    .unwrap();
    fill(&log, 200);
    clock.set(8_000);
    fill(&log, 200);
    clock.set(11_000);
    log.keep();
    assert_eq!(log.first_seq(), 0, "10 s old is not older than 10 s");
    clock.set(11_001);
    log.keep();
    let first = log.first_seq();
    assert!((100..=200).contains(&first), "{first}");
    clock.set(18_001);
    log.keep();
    log.keep();
    assert_eq!(
        (log.first_seq(), log.next_seq(), log.info().segments),
        (400, 400, 1)
    );
    log.close().unwrap();
    let log = Log::open_idle(disk.files(), clock, small()).unwrap();
    assert_eq!(log.append(b"numbers go on", Durability::Each).unwrap(), 400);
}

#[test]
fn trimming_drops_whole_segments_below_a_number() {
    let log = idle(&Disk::new(1), small());
    fill(&log, 500);
    log.trim_before(250).unwrap();
    assert!(
        log.first_seq() <= 250 && log.first_seq() > 150,
        "{}",
        log.first_seq()
    );
    log.trim_before(u64::MAX).unwrap();
    assert!(
        log.first_seq() < 500,
        "the segment that is written to stays"
    );
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let disk = Disk::new(3);
    let log = idle(&disk, small());
    fill(&log, 30);
    for _ in 0..200 {
        let next = log.next_seq();
        disk.fail_next(Some(Fail::Room));
        let batch: Vec<_> = (next..next + 40).map(payload).collect();
        let failed = log.append_batch(&batch, Durability::Never);
        disk.fail_next(None);
        match failed {
            // It was the background's file that found no room, or only a smaller step was had.
            Ok(seqs) => assert_eq!(seqs, next..next + 40),
            Err(LogError::Full { .. }) => assert_eq!(log.next_seq(), next),
            Err(error) => panic!("{error}"),
        }
        log.append(payload(log.next_seq()), Durability::Each)
            .unwrap();
    }
    let records = read_all(&log, 0);
    assert!(
        records
            .iter()
            .zip(0..)
            .all(|(record, seq)| record.payload == payload(seq))
    );
    disk.die_after(0);
    drop(log);
    disk.crash(Crash::Power);
    assert_eq!(read_all(&idle(&disk, small()), 0), records);
}

#[test]
fn on_a_full_disk_old_segments_can_go() {
    let disk = Disk::new(3);
    let log = idle(&disk, small());
    for seq in 0..500 {
        log.append(payload(seq), Durability::Never).unwrap();
    }
    disk.set_full(true);
    log.keep();
    log.trim_before(400).unwrap();
    let first = log.first_seq();
    assert!((300..=400).contains(&first), "{first}");
    assert_eq!(read_all(&log, first).len() as u64, 500 - first);
    disk.set_full(false);
    log.append(payload(500), Durability::Each).unwrap();
    disk.die_after(0);
    drop(log);
    disk.crash(Crash::Power);
    let log = idle(&disk, small());
    assert_eq!(read_all(&log, first).len() as u64, 501 - first);
}

#[test]
fn after_a_failed_sync_nothing_is_taken_until_it_is_opened_anew() {
    let disk = Disk::new(3);
    let log = idle(&disk, small());
    log.append(b"safe", Durability::Each).unwrap();
    disk.fail_next(Some(Fail::Sync));
    assert!(matches!(
        log.append(b"lost?", Durability::Each),
        Err(LogError::Broken { .. })
    ));
    // The disk says that all is well again; it is not to be believed.
    assert!(matches!(
        log.append(b"no", Durability::Never),
        Err(LogError::Broken { .. })
    ));
    assert!(matches!(log.sync(), Err(LogError::Broken { .. })));
    assert_eq!(
        (log.durable_seq(), read_all(&log, 0).len()),
        (1, 2),
        "reading goes on"
    );
    assert!(log.close().is_err());
    disk.crash(Crash::Power);
    let log = idle(&disk, small());
    assert_eq!(read_all(&log, 0)[0].payload, Bytes::from("safe"));
    log.append(b"again", Durability::Each).unwrap();
}

#[test]
fn each_durability_syncs_as_often_as_it_says() {
    let disk = Disk::new(1);
    let log = idle(&disk, LogConfig::default());
    let count = |durability, records: u64| {
        log.sync().unwrap();
        let before = disk.syncs();
        for _ in 0..records {
            log.append(b"x", durability).unwrap();
        }
        disk.syncs() - before
    };
    assert_eq!(count(Durability::Never, 1000), 0);
    assert_eq!(count(Durability::Each, 10), 10);
    assert_eq!(
        count(Durability::Every(NonZeroU64::new(10).unwrap()), 100),
        10
    );
    assert_eq!(count(Durability::Within(Duration::from_mins(1)), 100), 0);
}

#[test]
fn recovery_reads_little_of_what_was_synced() {
    let disk = Disk::new(1);
    let log = idle(&disk, LogConfig::default());
    for _ in 0..200 {
        log.append_batch(&vec![[7; 100]; 50], Durability::Each)
            .unwrap();
    }
    disk.die_after(0);
    drop(log);
    disk.crash(Crash::Kill);
    let log = idle(&disk, LogConfig::default());
    assert_eq!(log.next_seq(), 10_000);
    assert!(
        log.info().recovered.scanned < 32 << 10,
        "{:?}",
        log.info().recovered
    );
}

#[test]
fn a_segment_grows_for_a_record_that_is_larger() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), Clock::at(1), small()).unwrap();
    let large = vec![0xC3; 3 << 20];
    log.append(b"before", Durability::Never).unwrap();
    log.append(&large, Durability::Each).unwrap();
    log.append_batch(&[b"a".as_slice(), &large, b"c"], Durability::Never)
        .unwrap();
    let records = read_all(&log, 0);
    let sizes: Vec<usize> = records.iter().map(|record| record.payload.len()).collect();
    assert_eq!(sizes, [6, large.len(), 1, large.len(), 1]);
    assert_eq!(records[3].payload, large);
    let refused = log.append(vec![0; MAX_RECORD + 1], Durability::Never);
    assert!(matches!(refused, Err(LogError::TooLarge { .. })));
    assert_eq!(
        log.append_batch::<&[u8]>(&[], Durability::Each).unwrap(),
        5..5
    );
}

#[test]
fn a_time_finds_its_record_in_any_segment() {
    let (disk, clock) = (Disk::new(1), Clock::at(0));
    let log = Log::open_idle(disk.files(), clock.clone(), small()).unwrap();
    for seq in 0..500 {
        clock.set(1000 + seq / 3 * 10);
        log.append(payload(seq), Durability::Never).unwrap();
    }
    log.keep();
    let at = |millis| log.seq_at(Timestamp::from_millis(millis)).unwrap();
    assert_eq!((at(0), at(1000), at(1001), at(1010)), (0, 0, 3, 3));
    for seq in (0..500).step_by(3) {
        assert_eq!(at(1000 + seq / 3 * 10), seq);
    }
    assert_eq!(at(u64::MAX), 500);
}

#[test]
fn copies_keep_number_and_time_and_must_fit() {
    let leader = idle(
        &Disk::new(1),
        LogConfig {
            first_seq: 70,
            ..small()
        },
    );
    fill(&leader, 300);
    let records = read_all(&leader, 70);
    let follower = idle(
        &Disk::new(2),
        LogConfig {
            first_seq: 70,
            ..small()
        },
    );
    assert_eq!(
        follower
            .append_copies(&records[..100], Durability::Each)
            .unwrap(),
        70..170
    );
    let again = follower.append_copies(&records[..100], Durability::Each);
    assert!(matches!(
        again,
        Err(LogError::OutOfOrder {
            expected: 170,
            got: 70
        })
    ));
    let hole: Vec<Record> = [&records[100], &records[102]].map(Clone::clone).to_vec();
    assert!(matches!(
        follower.append_copies(&hole, Durability::Each),
        Err(LogError::OutOfOrder {
            expected: 171,
            got: 172
        })
    ));
    follower
        .append_copies(&records[100..], Durability::Never)
        .unwrap();
    assert_eq!(read_all(&follower, 70), records);
}

#[test]
fn a_reader_that_knows_more_than_the_log_is_told() {
    let log = idle(&Disk::new(1), small());
    fill(&log, 10);
    log.tail(10).unwrap();
    assert!(matches!(
        log.tail(11),
        Err(LogError::Ahead {
            asked: 11,
            next: 10
        })
    ));
    assert_eq!(log.read_range(10..20).unwrap().count(), 0);
}

#[test]
fn the_end_comes_after_all_records() {
    let log = idle(&Disk::new(1), small());
    let (mut all, mut durable) = (
        log.tail(0).unwrap(),
        log.follow(0, Follow::Durable).unwrap(),
    );
    fill(&log, 5);
    log.close().unwrap();
    for tail in [&mut all, &mut durable] {
        assert_eq!(
            tail.next_batch_blocking(None).unwrap().unwrap().seqs(),
            0..5
        );
        assert!(tail.next_batch_blocking(None).unwrap().is_none());
        assert!(tail.is_finished());
    }
}

#[test]
fn configuration_that_cannot_work_is_refused() {
    for segment_bytes in [0, 4095, (1 << 30) + 1] {
        let config = LogConfig {
            segment_bytes,
            ..LogConfig::default()
        };
        let opened = Log::open_idle(Disk::new(1).files(), Clock::at(1), config);
        assert!(matches!(opened, Err(LogError::Config(_))));
    }
}
