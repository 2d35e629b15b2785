//! Records that were on disk and cannot be read any more: said, never passed over.

use std::sync::Arc;

use super::fault::{Crash, Disk};
use super::{Clock, payload, read_all};
use crate::log::{Damage, Durability, Log, LogConfig, LogError, inspect};

const RECORDS: u64 = 400;

fn open(disk: &Arc<Disk>) -> Result<Log, LogError> {
    let config = LogConfig {
        segment_bytes: 9000,
        ..LogConfig::default()
    };
    Log::open_idle(disk.files(), Clock::at(1), config)
}

/// A log of several segments whose process was killed.
fn written(durability: Durability) -> Arc<Disk> {
    let disk = Disk::new(1);
    let log = open(&disk).unwrap();
    for seq in 0..RECORDS {
        log.append(payload(seq), durability).unwrap();
        log.keep();
    }
    disk.die_after(0);
    drop(log);
    disk.crash(Crash::Kill);
    disk
}

/// The names of its segments, in order.
fn segments(disk: &Disk) -> Vec<String> {
    disk.names()
        .into_iter()
        .filter(|name| name.contains(".log"))
        .collect()
}

/// Reads on after each damage. What was met, and how many records were read.
fn read_around(log: &Log) -> (Vec<Damage>, u64) {
    let (mut met, mut read) = (Vec::new(), 0);
    let mut tail = log.tail(0).unwrap();
    while tail.position() < log.next_seq() {
        match tail.next_batch_blocking(None) {
            Ok(batch) => {
                for record in &batch.unwrap() {
                    assert_eq!(record.payload, payload(record.seq));
                    read += 1;
                }
            }
            Err(LogError::Damaged(damage)) => {
                assert_eq!(damage.seq, tail.position());
                let resume = damage.resume.expect("there is more behind");
                met.push(damage);
                tail.seek(resume).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
    (met, read)
}

#[test]
fn a_flipped_bit_in_a_closed_segment_costs_its_record_only() {
    let disk = written(Durability::Each);
    let name = segments(&disk)[1].clone();
    disk.corrupt(&name, |bytes| bytes[1000] ^= 4);
    let log = open(&disk).unwrap();
    let (met, read) = read_around(&log);
    assert_eq!((met.len(), read), (1, RECORDS - 1), "{met:?}");
    assert_eq!((&met[0].file, met[0].resume), (&name, Some(met[0].seq + 1)));
    let report = inspect(&*disk.files(), |record| {
        assert_eq!(record.payload, payload(record.seq));
    })
    .unwrap();
    assert_eq!(report.damage, met);
    assert_eq!(
        report
            .segments
            .iter()
            .map(|segment| segment.records)
            .sum::<u64>(),
        RECORDS - 1
    );
}

#[test]
fn a_flipped_bit_before_the_tail_is_no_torn_tail() {
    let disk = written(Durability::Each);
    let name = segments(&disk).last().unwrap().clone();
    disk.corrupt(&name, |bytes| bytes[200] ^= 1);
    let Err(LogError::Damaged(damage)) = open(&disk) else {
        panic!("opened")
    };
    assert_eq!((&damage.file, damage.resume), (&name, Some(damage.seq + 1)));
    let text = damage.to_string();
    assert!(
        text.contains(&name) && text.contains("byte") && text.contains("again from record"),
        "{text}"
    );
    // Nothing was cut, and all but one can be read without opening.
    let mut read = 0;
    let report = inspect(&*disk.files(), |_| read += 1).unwrap();
    assert_eq!((read, report.damage), (RECORDS - 1, vec![damage]));
}

#[test]
fn garbage_behind_the_end_is_a_torn_tail() {
    let disk = written(Durability::Never);
    let name = segments(&disk).last().unwrap().clone();
    disk.corrupt(&name, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 8 * 8 + 8;
        bytes.truncate(end);
        bytes.extend([0xEE; 700]);
    });
    let log = open(&disk).unwrap();
    assert_eq!(log.info().recovered.cut, 700);
    assert_eq!(read_all(&log, 0).len() as u64, RECORDS);
}

#[test]
fn a_lost_or_damaged_index_is_made_anew() {
    for lose in [true, false] {
        let disk = written(Durability::Each);
        for name in disk.names().iter().filter(|name| name.contains(".idx")) {
            if lose {
                disk.remove(name);
            } else {
                disk.corrupt(name, |bytes| {
                    for byte in bytes {
                        *byte ^= 0x11;
                    }
                });
            }
        }
        let log = open(&disk).unwrap();
        assert_eq!(read_all(&log, 0).len() as u64, RECORDS);
        for seq in [0, 1, RECORDS / 2, RECORDS - 1] {
            assert_eq!(read_all(&log, seq)[0].payload, payload(seq));
        }
        log.close().unwrap();
        assert_eq!(open(&disk).unwrap().info().recovered.scanned, 0);
    }
}

#[test]
fn a_missing_segment_is_told_and_the_rest_can_be_read() {
    let disk = written(Durability::Each);
    let names = segments(&disk);
    disk.remove(&names[1]);
    let log = open(&disk).unwrap();
    let (met, read) = read_around(&log);
    let base = |name: &str| name[..20].parse::<u64>().unwrap();
    assert_eq!(met.len(), 1);
    assert_eq!(
        (met[0].seq, met[0].resume),
        (base(&names[1]), Some(base(&names[2])))
    );
    assert_eq!(read, RECORDS - (base(&names[2]) - base(&names[1])));
}

#[test]
fn a_segment_cut_short_by_others_is_damage() {
    let disk = written(Durability::Each);
    let name = segments(&disk).last().unwrap().clone();
    disk.corrupt(&name, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[end / 2..=end / 2 + 200].fill(0);
    });
    assert!(matches!(open(&disk), Err(LogError::Damaged(_))));
}

#[test]
fn no_flipped_bit_gives_wrong_records() {
    let good = written(Durability::Each);
    let names = segments(&good);
    for (n, name) in names.iter().enumerate() {
        for at in (0..9000).step_by(61) {
            let disk = good.copy();
            disk.corrupt(name, |bytes| {
                let len = bytes.len();
                bytes[at.min(len - 1)] ^= 1 << (at % 8);
            });
            match open(&disk) {
                Ok(log) => {
                    let (met, read) = read_around(&log);
                    // In the last segment the last records may have been cut: no mark follows them.
                    let lost = RECORDS - log.next_seq();
                    assert!(
                        lost == 0 || n + 1 == names.len() && lost < 40,
                        "{name} {at}: {lost} lost"
                    );
                    let gone: u64 = met
                        .iter()
                        .map(|damage| damage.resume.unwrap() - damage.seq)
                        .sum();
                    assert_eq!(read + gone + lost, RECORDS, "{name} {at}");
                }
                Err(LogError::Damaged(damage)) => assert_eq!(&damage.file, name),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
