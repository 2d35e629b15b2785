//! Reading records where they lie: always from the files (what was just appended, from the kernel's
//! cache), so that a reader may be as slow as it likes and nothing is kept for it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meshwork_identity::Timestamp;

use super::error::{Damage, LogError};
use super::files::File;
use super::index::{self, ClosedIndex, Entry, Index};
use super::record::{Parsed, Record, RecordRef, next_verified, parse};
use super::segment::{START, Segment, Step, Walk, log_name};
use super::shared::Shared;
use super::sync::lock;

/// How much is read at once.
const BLOCK: u64 = 256 << 10;

/// Consecutive records that were read at once. They share one buffer.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Whole records and marks that were verified.
    bytes: Bytes,
    first: u64,
    end: u64,
}

impl Batch {
    /// The numbers of the records in it; never none.
    pub fn seqs(&self) -> std::ops::Range<u64> {
        self.first..self.end
    }

    /// Goes through the records without copying.
    pub fn iter(&self) -> BatchIter<'_> {
        BatchIter {
            bytes: &self.bytes,
            seq: self.first,
            end: self.end,
        }
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = RecordRef<'a>;
    type IntoIter = BatchIter<'a>;

    fn into_iter(self) -> BatchIter<'a> {
        self.iter()
    }
}

impl IntoIterator for Batch {
    type Item = Record;
    type IntoIter = Records;

    fn into_iter(self) -> Records {
        Records {
            seq: self.first,
            end: self.end,
            bytes: self.bytes,
        }
    }
}

/// The records of a [`Batch`].
#[derive(Debug, Clone)]
pub struct BatchIter<'a> {
    bytes: &'a [u8],
    seq: u64,
    end: u64,
}

impl<'a> Iterator for BatchIter<'a> {
    type Item = RecordRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordRef<'a>> {
        if self.seq >= self.end {
            return None;
        }
        let (time, payload, rest) = next_verified(self.bytes)?;
        let seq = self.seq;
        (self.bytes, self.seq) = (rest, seq + 1);
        Some(RecordRef {
            seq,
            time: Timestamp::from_millis(time),
            payload,
        })
    }
}

/// The records of a [`Batch`], each with a share of its buffer.
#[derive(Debug, Clone)]
pub struct Records {
    bytes: Bytes,
    seq: u64,
    end: u64,
}

impl Records {
    /// What was not yet given out.
    pub(super) fn rest(self) -> Option<Batch> {
        (self.seq < self.end).then_some(Batch {
            bytes: self.bytes,
            first: self.seq,
            end: self.end,
        })
    }
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.seq >= self.end {
            return None;
        }
        let (time, payload, rest) = next_verified(&self.bytes)?;
        let payload = self.bytes.slice_ref(payload);
        let (left, seq) = (rest.len(), self.seq);
        self.bytes = self.bytes.split_off(self.bytes.len() - left);
        self.seq += 1;
        Some(Record {
            seq,
            time: Timestamp::from_millis(time),
            payload,
        })
    }
}

/// A place in a log, from which records are read on.
#[derive(Debug)]
pub(super) struct Cursor {
    shared: Arc<Shared>,
    /// The next record to read.
    pub(super) seq: u64,
    place: Option<Place>,
}

/// Where the next record lies.
#[derive(Debug)]
struct Place {
    source: Source,
    base: u64,
    offset: u64,
}

#[derive(Debug)]
enum Source {
    /// It may grow.
    Open(Arc<Segment>),
    Closed {
        file: Box<dyn File>,
        end: Entry,
    },
}

impl Source {
    fn file(&self) -> &dyn File {
        match self {
            Self::Open(segment) => &*segment.file,
            Self::Closed { file, .. } => &**file,
        }
    }

    /// Where the records end that can be read, and the first one of the next segment if there is one.
    fn end(&self) -> (u64, Option<u64>) {
        match self {
            Self::Open(segment) => {
                let closed = segment.closed().map(|end| end.seq);
                (segment.end(), closed)
            }
            Self::Closed { end, .. } => (end.offset, Some(end.seq)),
        }
    }
}

impl Cursor {
    /// Starts at a record that exists or comes next.
    pub(super) fn new(shared: Arc<Shared>, seq: u64) -> Result<Self, LogError> {
        let mut cursor = Self {
            shared,
            seq,
            place: None,
        };
        cursor.seek(seq)?;
        Ok(cursor)
    }

    /// Goes to another record, which exists or comes next.
    pub(super) fn seek(&mut self, seq: u64) -> Result<(), LogError> {
        let (first, next) = (self.shared.first(), self.shared.published());
        if seq < first {
            return Err(LogError::Trimmed { first });
        }
        if seq > next {
            return Err(LogError::Ahead { asked: seq, next });
        }
        (self.seq, self.place) = (seq, None);
        Ok(())
    }

    /// Whether the next read may have to wait for the disk: what was appended lately is in memory.
    pub(super) fn is_cold(&self) -> bool {
        !matches!(
            &self.place,
            Some(Place {
                source: Source::Open(_),
                ..
            })
        )
    }

    /// Reads some records before `limit`, which is not past what is visible. None: there are none.
    pub(super) fn read(&mut self, limit: u64) -> Result<Option<Batch>, LogError> {
        while self.seq < limit {
            let place = match &mut self.place {
                Some(place) => place,
                none => none.insert(locate(&self.shared, self.seq)?),
            };
            let (end, next) = place.source.end();
            if place.offset >= end {
                if next != Some(self.seq) || !lock(&self.shared.slots).contains_key(&self.seq) {
                    let first = self.shared.first();
                    let dropped = self.seq < first;
                    return Err(if dropped {
                        LogError::Trimmed { first }
                    } else {
                        damaged(&self.shared, place, self.seq)
                    });
                }
                self.place = None;
                continue;
            }
            let batch = read_block(place, &mut self.seq, end, limit);
            let batch =
                batch.map_err(|error| LogError::io("reading", &log_name(place.base), error))?;
            match batch {
                Block::Records(batch) => return Ok(Some(batch)),
                Block::Marks => {}
                Block::Bad => return Err(damaged(&self.shared, place, self.seq)),
            }
        }
        Ok(None)
    }
}

enum Block {
    Records(Batch),
    /// Nothing but marks, which were passed.
    Marks,
    Bad,
}

/// Reads what fits into a block, and at least one record.
fn read_block(place: &mut Place, seq: &mut u64, end: u64, limit: u64) -> io::Result<Block> {
    let mut want = (end - place.offset).min(BLOCK);
    loop {
        let mut bytes = vec![0; usize::try_from(want).expect("at most a record and a block")];
        let n = place.source.file().read_at(&mut bytes, place.offset)?;
        bytes.truncate(n);
        let first = *seq;
        let (mut at, mut missing) = (0, None);
        while *seq < limit {
            match parse(&bytes[at..], *seq) {
                Parsed::Record { size, .. } => {
                    at += size;
                    *seq += 1;
                }
                Parsed::Mark { size, .. } => at += size,
                Parsed::Short { size } => {
                    missing = Some(size as u64);
                    break;
                }
                Parsed::End | Parsed::Bad => break,
            }
        }
        if at > 0 {
            place.offset += at as u64;
            bytes.truncate(at);
            let batch = Batch {
                bytes: bytes.into(),
                first,
                end: *seq,
            };
            return Ok(if *seq > first {
                Block::Records(batch)
            } else {
                Block::Marks
            });
        }
        match missing {
            Some(size) if size > want && size <= end - place.offset => want = size,
            _ => return Ok(Block::Bad),
        }
    }
}

/// Finds where the record lies, which is visible.
fn locate(shared: &Shared, seq: u64) -> Result<Place, LogError> {
    loop {
        let (base, open, bytes, next) = {
            let slots = lock(&shared.slots);
            let Some((base, slot)) = slots.range(..=seq).next_back() else {
                let first = *slots.first_key_value().expect("never empty").0;
                return Err(LogError::Trimmed { first });
            };
            let next = slots.range(base + 1..).next().map(|(base, _)| *base);
            (*base, slot.open.clone(), slot.bytes, next)
        };
        let start = Entry {
            seq: base,
            time: 0,
            offset: START,
        };
        let up_to = |entry: &Entry| entry.seq <= seq;
        if let Some(segment) = open {
            let entry = lock(&segment.index).last(up_to).unwrap_or(start);
            return walk_to(shared, Source::Open(segment), base, entry, seq);
        }
        let name = log_name(base);
        match shared.files.open(&name) {
            Ok(file) => {
                let index = closed_index(shared, base, &*file, bytes, next);
                let index = index.map_err(|error| LogError::io("indexing", &name, error))?;
                let (entry, end) = (index.last(up_to).unwrap_or(start), index.end());
                return walk_to(shared, Source::Closed { file, end }, base, entry, seq);
            }
            // Retention took it just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound && shared.first() > base => {}
            Err(error) => return Err(LogError::io("opening", &name, error)),
        }
    }
}

/// Goes from an index entry to the record itself.
fn walk_to(
    shared: &Shared,
    source: Source,
    base: u64,
    entry: Entry,
    seq: u64,
) -> Result<Place, LogError> {
    let (end, _) = source.end();
    let mut walk = Walk::new(source.file(), entry.offset, entry.seq, end);
    let mut bad = false;
    let reading = |error| LogError::io("reading", &log_name(base), error);
    while walk.seq < seq && !bad {
        bad = match walk.step().map_err(reading)? {
            Step::Record { .. } => false,
            Step::End => true,
            Step::Bad => !walk.skip_bad().map_err(reading)?,
        };
    }
    let (offset, at) = (walk.offset, walk.seq);
    let place = Place {
        source,
        base,
        offset,
    };
    if bad {
        Err(damaged(shared, &place, at))
    } else {
        Ok(place)
    }
}

/// Tells what can be read around the record `seq`, which cannot.
fn damaged(shared: &Shared, place: &Place, seq: u64) -> LogError {
    let (end, _) = place.source.end();
    let next = lock(&shared.slots)
        .range(seq + 1..)
        .next()
        .map(|(base, _)| *base);
    let mut walk = Walk::new(place.source.file(), place.offset, seq, end);
    // A disk that cannot be read here tells nothing about what is behind.
    let one = walk.step().and_then(|_| walk.skip_bad()).unwrap_or(false);
    let behind =
        |entry: &Entry| entry.offset > place.offset && entry.seq > seq && entry.offset < end;
    let entry = match &place.source {
        Source::Open(segment) => lock(&segment.index).first(behind),
        Source::Closed { .. } => {
            ClosedIndex::open(&*shared.files, place.base).and_then(|index| index.first(behind))
        }
    };
    let resume = if one {
        Some(seq + 1)
    } else {
        entry.map(|entry| entry.seq).or(next)
    };
    LogError::Damaged(Damage {
        file: log_name(place.base),
        offset: place.offset,
        seq,
        resume,
    })
}

/// The index of a closed segment: its file, or what the records tell.
pub(super) enum AnyIndex {
    File(ClosedIndex),
    Made(Box<Index>, Entry),
}

impl AnyIndex {
    pub(super) fn last(&self, before: impl Fn(&Entry) -> bool) -> Option<Entry> {
        match self {
            Self::File(index) => index.last(before),
            Self::Made(index, _) => index.last(before),
        }
    }

    fn end(&self) -> Entry {
        match self {
            Self::File(index) => index.end,
            Self::Made(_, end) => *end,
        }
    }
}

/// Opens a closed segment's index, and makes it anew where it is missing or damaged at its end.
/// `next`: the first record of the next segment.
pub(super) fn closed_index(
    shared: &Shared,
    base: u64,
    file: &dyn File,
    bytes: u64,
    next: Option<u64>,
) -> io::Result<AnyIndex> {
    if let Some(index) = ClosedIndex::open(&*shared.files, base) {
        return Ok(AnyIndex::File(index));
    }
    let _one = lock(&shared.upkeep);
    let mut made = Index::default();
    let mut last = Entry {
        seq: base,
        time: 0,
        offset: START,
    };
    let mut walk = Walk::new(file, START, base, bytes);
    while let Step::Record { time, offset, .. } = walk.step()? {
        if made.end().is_none_or(|end| offset >= end + index::STEP) {
            made.push(Entry {
                seq: walk.seq - 1,
                time,
                offset,
            });
        }
        last = Entry {
            seq: walk.seq,
            time,
            offset: walk.offset,
        };
    }
    if next == Some(last.seq) {
        if let Err(error) = made.close(&*shared.files, base, last) {
            shared.setback(&error);
        }
        return Ok(AnyIndex::Made(Box::new(made), last));
    }
    // Damaged: what is behind the damage belongs to it all the same.
    let end = Entry {
        seq: next.unwrap_or(last.seq),
        time: last.time,
        offset: bytes,
    };
    Ok(AnyIndex::Made(Box::new(made), end))
}
