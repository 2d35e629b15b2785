//! Opening what a process left behind: where the records end, and what of the last ones is torn.
//!
//! Closed segments (their index says so) are on disk whole and not looked at. The others, at most a
//! few, are checked from their last index entry on, before which all is on disk. Where a record does
//! not verify, and what lies behind does not prove that it was on disk once, a crash has torn the
//! tail: it is cut off there, and at the start of a batch that is not whole. With such a proof (a
//! mark, or an index entry) it is damage, and nothing is cut: opening fails and tells where.

use std::collections::BTreeMap;

use super::error::{Damage, LogError};
use super::files::{File, Files, Listed};
use super::index::{self, ClosedIndex, Entry, Index};
use super::segment::{self, START, Segment, Step, Walk, base_of, has_header, index_name, log_name};

/// What recovery did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Bytes of records that were read to find the end.
    pub scanned: u64,
    /// Bytes that were cut off, as a crash had torn them.
    pub cut: u64,
    /// Segments that were removed, as all in them came after what was torn.
    pub removed: u64,
}

/// A log as it was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Closed segments: size in bytes by first record.
    pub(super) closed: BTreeMap<u64, u64>,
    /// Segments whose index does not say that they are closed, in order; the last goes on.
    pub(super) open: Vec<Tail>,
    /// The number that comes next.
    pub(super) next: u64,
    /// The time of the last record, in Unix milliseconds.
    pub(super) last_time: u64,
    pub(super) report: Recovered,
}

/// The end of a segment that was not closed.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) segment: Segment,
    /// The length of its file, more than its records take when room was reserved.
    pub(super) allocated: u64,
    /// Where its records end: the next one's number, the last one's time.
    pub(super) end: Entry,
}

/// Reads what is there, and cuts what is torn. Nothing is written to a log that was closed.
pub(super) fn recover(files: &dyn Files, first_seq: u64) -> Result<Found, LogError> {
    let sizes = segments(files)?;
    let bases: Vec<u64> = sizes.keys().copied().collect();
    let mut found = Found {
        next: first_seq,
        ..Found::default()
    };
    let last_closed = bases.iter().rposition(|base| {
        let closed = ClosedIndex::open(files, *base);
        if let Some(index) = &closed {
            (found.next, found.last_time) = (index.end.seq, index.end.time);
        }
        closed.is_some()
    });
    let first_open = last_closed.map_or(0, |n| n + 1);
    found
        .closed
        .extend(bases[..first_open].iter().map(|base| (*base, sizes[base])));
    if last_closed.is_none()
        && let Some(base) = bases.first()
    {
        found.next = *base;
    }
    for (n, base) in bases.iter().enumerate().skip(first_open) {
        let whole = find_end(files, *base, sizes[base], &mut found)?;
        let later = &bases[n + 1..];
        // What an append that failed has left behind the last record does no harm where others follow.
        if !whole && later.first() != Some(&found.next) {
            refuse_proven(files, &found, later)?;
            cut(files, &mut found, later)?;
            break;
        }
    }
    Ok(found)
}

fn segments(files: &dyn Files) -> Result<BTreeMap<u64, u64>, LogError> {
    let listed = files
        .list()
        .map_err(|error| LogError::io("listing", "the log's directory", error))?;
    let with_base = |file: Listed| Some((base_of(&file.name, "log")?, file.len));
    Ok(listed.into_iter().filter_map(with_base).collect())
}

/// Finds where a segment's records end, and adds it. False: something else comes behind, or the
/// segment does not start where the one before ends.
fn find_end(files: &dyn Files, base: u64, len: u64, found: &mut Found) -> Result<bool, LogError> {
    let name = log_name(base);
    let reading = |error| LogError::io("reading", &name, error);
    let file = files.open(&name).map_err(reading)?;
    let (mut entries, _) = index::load(files, base);
    if base != found.next || !has_header(&*file, base).map_err(reading)? {
        // Nothing of it counts, so that its end is before its header.
        let segment = Segment::found(base, file, 0, Index::stored(entries));
        let end = Entry {
            seq: found.next,
            time: found.last_time,
            offset: 0,
        };
        found.open.push(Tail {
            segment,
            allocated: len,
            end,
        });
        return Ok(false);
    }
    let first = Entry {
        seq: base,
        time: found.last_time,
        offset: START,
    };
    let start = entries
        .last()
        .copied()
        .filter(|last| last.offset <= len)
        .unwrap_or(first);
    let mut end = start;
    let stored = entries.len();
    let whole = walk_to_end(&*file, len, &mut end, &mut entries).map_err(reading)?;
    found.report.scanned += end.offset.saturating_sub(start.offset);
    if entries.len() > stored || end.offset > start.offset {
        rewrite(&*file, start.offset, end.offset)
            .map_err(|error| LogError::io("writing", &name, error))?;
    }
    let mut index = Index::stored(entries.drain(..stored).collect());
    for entry in entries {
        index.push(entry);
    }
    (found.next, found.last_time) = (end.seq, end.time);
    let segment = Segment::found(base, file, end.offset, index);
    found.open.push(Tail {
        segment,
        allocated: len,
        end,
    });
    Ok(whole)
}

/// Moves `end` over all that verifies, up to the last whole batch, and adds index entries on the
/// way. True: only zeros follow.
fn walk_to_end(
    file: &dyn File,
    len: u64,
    end: &mut Entry,
    entries: &mut Vec<Entry>,
) -> std::io::Result<bool> {
    let mut walk = Walk::new(file, end.offset, end.seq, len);
    let mut fresh: Vec<Entry> = Vec::new();
    while let Step::Record { time, offset, more } = walk.step()? {
        let last = fresh.last().or(entries.last());
        if last.is_none_or(|last| offset >= last.offset + index::STEP) {
            fresh.push(Entry {
                seq: walk.seq - 1,
                time,
                offset,
            });
        }
        if !more {
            *end = Entry {
                seq: walk.seq,
                time,
                offset: walk.offset,
            };
        }
    }
    entries.extend(fresh.iter().filter(|entry| entry.offset < end.offset));
    Ok(!segment::rest(file, end.offset)?.any)
}

/// Writes once more what is there. After a sync that failed, the kernel holds bytes for written that
/// are not on disk, and no later sync would bring them there.
fn rewrite(file: &dyn File, start: u64, end: u64) -> std::io::Result<()> {
    const CHUNK: u64 = 256 << 10;
    // The header comes with the first record.
    let mut at = if start == START { 0 } else { start };
    while at < end {
        let size = usize::try_from((end - at).min(CHUNK)).expect("at most a chunk");
        let mut bytes = vec![0; size];
        let n = file.read_at(&mut bytes, at)?;
        file.write_at(&bytes[..n], at)?;
        at += size as u64;
    }
    Ok(())
}

/// An error if the record that comes next was on disk once.
fn refuse_proven(files: &dyn Files, found: &Found, later: &[u64]) -> Result<(), LogError> {
    let torn = found.open.last().expect("a segment is torn");
    let (seq, offset) = (found.next, torn.segment.end());
    let base = torn.segment.base;
    let mut stable = proof(files, base, offset)?;
    for base in later {
        stable = stable.max(proof(files, *base, 0)?);
    }
    if stable.is_none_or(|stable| stable <= seq) {
        return Ok(());
    }
    let reading = |error| LogError::io("reading", &log_name(base), error);
    let mut walk = Walk::new(&*torn.segment.file, offset, seq, torn.allocated);
    let next = walk.step().and_then(|_| walk.skip_bad()).map_err(reading)?;
    let resume = if next {
        Some(seq + 1)
    } else {
        later.first().copied()
    };
    Err(LogError::Damaged(Damage {
        file: torn.segment.name(),
        offset,
        seq,
        resume,
    }))
}

/// The largest number of which a segment proves, from `offset` on, that all before was on disk.
fn proof(files: &dyn Files, base: u64, offset: u64) -> Result<Option<u64>, LogError> {
    let name = log_name(base);
    let reading = |error| LogError::io("reading", &name, error);
    let file = files.open(&name).map_err(reading)?;
    let (entries, _) = index::load(files, base);
    let indexed = entries.last().map(|entry| entry.seq);
    Ok(indexed.max(segment::rest(&*file, offset).map_err(reading)?.stable))
}

/// Cuts off all behind the last record that is whole, durably: what is cut must not come back once
/// other records have its place.
fn cut(files: &dyn Files, found: &mut Found, later: &[u64]) -> Result<(), LogError> {
    for base in later.iter().rev() {
        remove(files, *base, &mut found.report)?;
    }
    let torn = found.open.last_mut().expect("a segment is torn");
    let (name, end) = (torn.segment.name(), torn.segment.end());
    found.report.cut += torn.allocated.saturating_sub(end);
    if end < START && torn.segment.base == found.next {
        // Its name tells the next number, which must not be lost with it.
        let remade = remake(torn).map_err(|error| LogError::io("writing", &name, error));
        remade?;
    } else if end < START {
        let base = torn.segment.base;
        found.open.pop();
        remove(files, base, &mut found.report)?;
    } else {
        let done = torn
            .segment
            .file
            .set_len(end)
            .and_then(|()| torn.segment.file.sync());
        done.map_err(|error| LogError::io("cutting", &name, error))?;
        torn.allocated = end;
    }
    if let Some(last) = found.open.last() {
        found.last_time = last.end.time;
    }
    files
        .sync()
        .map_err(|error| LogError::io("syncing", "the log's directory", error))
}

/// Makes an empty segment of one whose header was torn.
fn remake(torn: &mut Tail) -> std::io::Result<()> {
    let Segment { base, file, .. } = &torn.segment;
    file.set_len(0)?;
    file.write_at(&segment::header(*base), 0)?;
    file.sync()?;
    torn.segment.publish(START, &[]);
    torn.allocated = START;
    torn.end.offset = START;
    Ok(())
}

fn remove(files: &dyn Files, base: u64, report: &mut Recovered) -> Result<(), LogError> {
    let name = log_name(base);
    // The index is a cache, and may not be there.
    let _ = files.remove(&index_name(base));
    files
        .remove(&name)
        .map_err(|error| LogError::io("removing", &name, error))?;
    report.removed += 1;
    Ok(())
}
