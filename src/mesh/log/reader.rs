//! Reading a log without opening it: from the files alone, without the lock, also while another
//! process writes. Nothing is changed.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meshwork_identity::Timestamp;

use super::error::{Damage, LogError};
use super::files::{File, Files};
use super::index;
use super::inspect::resume;
use super::record::{HEADER, Record};
use super::segment::{self, START, Step, Walk, base_of, has_header, log_name};

/// A reader gives records once it has this many bytes of them, or no more are there.
const ENOUGH: usize = 1 << 20;

/// Reads a log from its files, from some record on. What is appended later is found by asking again:
/// nobody wakes a reader that does not share the process with the writer.
///
/// It gives whole batches only, and of a damaged one what can be read. It may give records that the
/// writer could not bring to disk, or that are lost with the power: only the writer knows what is
/// acknowledged.
#[derive(Debug)]
pub struct Reader {
    files: Arc<dyn Files>,
    /// The next record to give.
    seq: u64,
    /// Earlier ones are left out.
    since: u64,
    place: Option<Place>,
}

/// What can be told of a log without reading all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The first record that is left; the next one's number when none is.
    pub first: u64,
    /// The number that the next record gets.
    pub next: u64,
    /// The files of records.
    pub segments: usize,
    /// Bytes of these files, with room that is reserved for records to come.
    pub bytes: u64,
}

/// Tells how long a log is. Reads the newest records only, those that no index speaks of. None: there
/// is no log in these files.
pub fn outline(files: &Arc<dyn Files>) -> Result<Option<Outline>, LogError> {
    let bases = bases(&**files)?;
    let (Some(first), Some(last)) = (bases.first().copied(), bases.last().copied()) else {
        return Ok(None);
    };
    let (entries, _) = index::load(&**files, last);
    let from = entries.last().map_or(last, |entry| entry.seq);
    let mut reader = Reader::from_seq(files.clone(), from.max(last));
    while !reader.next_batch()?.is_empty() {}
    let listed = list(&**files)?;
    let logs = listed
        .iter()
        .filter(|file| base_of(&file.name, "log").is_some());
    Ok(Some(Outline {
        first,
        next: reader.seq,
        segments: bases.len(),
        bytes: logs.map(|file| file.len).sum(),
    }))
}

impl Reader {
    /// From the first record on that is left.
    pub fn from_first(files: Arc<dyn Files>) -> Result<Self, LogError> {
        let first = bases(&*files)?.first().copied().unwrap_or(0);
        Ok(Self::from_seq(files, first))
    }

    /// From record `seq` on, which is there or comes next; [`Reader::next_batch`] tells if not.
    pub fn from_seq(files: Arc<dyn Files>, seq: u64) -> Self {
        Self {
            files,
            seq,
            since: 0,
            place: None,
        }
    }

    /// From the first record on whose time is not before `time`.
    pub fn from_time(files: Arc<dyn Files>, time: Timestamp) -> Result<Self, LogError> {
        let since = time.as_millis();
        let bases = bases(&*files)?;
        let mut from = bases.first().copied().unwrap_or(0);
        for base in bases.iter().rev() {
            if first_time(&*files, *base)?.is_some_and(|first| first < since) {
                let (entries, _) = index::load(&*files, *base);
                let n = entries.partition_point(|entry| entry.time < since);
                from = n.checked_sub(1).map_or(*base, |n| entries[n].seq);
                break;
            }
        }
        Ok(Self {
            since,
            ..Self::from_seq(files, from)
        })
    }

    /// The number of the next record that this gives, or passes over as too early.
    pub fn position(&self) -> u64 {
        self.seq
    }

    /// Goes on from another record; behind damage, say.
    pub fn seek(&mut self, seq: u64) {
        (self.seq, self.place) = (seq, None);
    }

    /// The next records, about 1 MiB of them, or a batch that is larger. Empty: no more are there at
    /// present. Blocks for as long as reading takes. After an error the reader is where it was.
    pub fn next_batch(&mut self) -> Result<Vec<Record>, LogError> {
        let files = self.files.clone();
        let mut suspect: Option<(u64, u64)> = None;
        loop {
            let asked = self.seq;
            // Before the records are read: then all of a segment are there if a later one is.
            let bases = bases(&*files)?;
            let Some(place) = self.place(&bases)? else {
                return Ok(Vec::new());
            };
            let base = place.base;
            let records = place.read(suspect == Some((base, place.offset)))?;
            if let Some(last) = records.last() {
                let (from, since) = (self.seq, self.since);
                self.seq = from.max(last.seq + 1);
                let wanted =
                    |record: &Record| record.seq >= from && record.time.as_millis() >= since;
                let records: Vec<Record> = records.into_iter().filter(wanted).collect();
                if records.is_empty() {
                    continue;
                }
                return Ok(records);
            }
            if !bases.contains(&base) && bases.first().is_some_and(|first| *first > place.seq) {
                return Err(LogError::Trimmed { first: bases[0] });
            }
            let end = place.seq;
            let later = bases.iter().find(|later| **later > base).copied();
            if later.is_some_and(|later| later <= end) {
                self.seq = self.seq.max(end);
                self.place = None;
                continue;
            }
            let stable = match later {
                Some(_) => true,
                None => place.goes_on(&*files)?,
            };
            if !stable {
                return if asked > end {
                    Err(LogError::Ahead { asked, next: end })
                } else {
                    Ok(Vec::new())
                };
            }
            // The writer may just have been faster: what is not there the second time is damaged.
            if suspect == Some((base, place.offset)) {
                let damage = place.damage(&*files, later)?;
                if let Some(resume) = damage.resume.filter(|resume| *resume <= asked) {
                    if place.seq != resume {
                        self.place = None;
                    }
                    continue;
                }
                place.rewind(&damage);
                return Err(LogError::Damaged(damage));
            }
            suspect = Some((base, place.offset));
        }
    }

    /// Where to read on. None: nothing is there yet.
    fn place(&mut self, bases: &[u64]) -> Result<Option<&mut Place>, LogError> {
        if self.place.is_none() {
            let n = bases.partition_point(|base| *base <= self.seq);
            let Some(n) = n.checked_sub(1) else {
                return match bases.first() {
                    Some(first) => Err(LogError::Trimmed { first: *first }),
                    None => Ok(None),
                };
            };
            let place = Place::find(&*self.files, bases[n], self.seq)?;
            if place.is_none() && n + 1 < bases.len() {
                return Err(LogError::Damaged(Damage {
                    file: log_name(bases[n]),
                    offset: 0,
                    seq: bases[n],
                    resume: bases.get(n + 1).copied(),
                }));
            }
            self.place = place;
        }
        Ok(self.place.as_mut())
    }
}

/// A place in a segment.
#[derive(Debug)]
struct Place {
    file: Box<dyn File>,
    base: u64,
    /// Where the record `seq` starts, or will.
    offset: u64,
    seq: u64,
    /// What lies behind this offset was looked at.
    looked: Option<u64>,
}

impl Place {
    /// The last place that the index knows before the record `seq`. None: the file has just been made,
    /// or dropped.
    fn find(files: &dyn Files, base: u64, seq: u64) -> Result<Option<Self>, LogError> {
        let name = log_name(base);
        let file = match files.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LogError::io("opening", &name, error)),
        };
        if !has_header(&*file, base).map_err(|error| LogError::io("reading", &name, error))? {
            return Ok(None);
        }
        let (entries, _) = index::load(files, base);
        let n = entries.partition_point(|entry| entry.seq <= seq);
        let (offset, seq) = n
            .checked_sub(1)
            .map_or((START, base), |n| (entries[n].offset, entries[n].seq));
        Ok(Some(Self {
            file,
            base,
            offset,
            seq,
            looked: None,
        }))
    }

    /// The next whole batches; where one is known to be `damaged`, its records before the damage.
    fn read(&mut self, damaged: bool) -> Result<Vec<Record>, LogError> {
        let reading = |error| LogError::io("reading", &log_name(self.base), error);
        let mut head = [0; HEADER];
        let n = self.file.read_at(&mut head, self.offset).map_err(reading)?;
        if n < HEADER || head == [0; HEADER] {
            return Ok(Vec::new());
        }
        let len = self.file.size().map_err(reading)?;
        let mut walk = Walk::new(&*self.file, self.offset, self.seq, len);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut whole = (0, self.offset, self.seq);
        while let Step::Record { time, more, .. } = walk.step().map_err(reading)? {
            let payload = Bytes::copy_from_slice(walk.payload());
            bytes += payload.len() + HEADER;
            records.push(Record {
                seq: walk.seq - 1,
                time: Timestamp::from_millis(time),
                payload,
            });
            if !more {
                whole = (records.len(), walk.offset, walk.seq);
                if bytes >= ENOUGH {
                    break;
                }
            }
        }
        if whole.0 == 0 && damaged {
            whole = (records.len(), walk.offset, walk.seq);
        }
        records.truncate(whole.0);
        (self.offset, self.seq) = (whole.1, whole.2);
        Ok(records)
    }

    /// Whether something tells that the record that was not found here was on disk once. Looked for
    /// once at each end that is met, and twice if so.
    fn goes_on(&mut self, files: &dyn Files) -> Result<bool, LogError> {
        if self.looked == Some(self.offset) {
            return Ok(false);
        }
        let (entries, _) = index::load(files, self.base);
        let rest = segment::rest(&*self.file, self.offset)
            .map_err(|error| LogError::io("reading", &log_name(self.base), error))?;
        let stable = entries.last().map(|entry| entry.seq).max(rest.stable);
        let goes_on = stable.is_some_and(|stable| stable > self.seq);
        if !goes_on {
            self.looked = Some(self.offset);
        }
        Ok(goes_on)
    }

    /// What is damaged here. Goes behind it, where the segment can be read again.
    fn damage(&mut self, files: &dyn Files, later: Option<u64>) -> Result<Damage, LogError> {
        let name = log_name(self.base);
        let reading = |error| LogError::io("reading", &name, error);
        let (offset, seq) = (self.offset, self.seq);
        let (entries, _) = index::load(files, self.base);
        let len = self.file.size().map_err(reading)?;
        let mut walk = Walk::new(&*self.file, offset, seq, len);
        walk.step().map_err(reading)?;
        let found = resume(&*self.file, &mut walk, &entries, len).map_err(reading)?;
        if found.is_some() {
            (self.offset, self.seq) = (walk.offset, walk.seq);
        }
        Ok(Damage {
            file: name,
            offset,
            seq,
            resume: found.or(later),
        })
    }

    /// Back to the damage, so that it is told again.
    fn rewind(&mut self, damage: &Damage) {
        (self.offset, self.seq) = (damage.offset, damage.seq);
    }
}

fn list(files: &dyn Files) -> Result<Vec<super::files::Listed>, LogError> {
    files
        .list()
        .map_err(|error| LogError::io("listing", &files.dir().display().to_string(), error))
}

/// The first records of the segments, in order.
fn bases(files: &dyn Files) -> Result<Vec<u64>, LogError> {
    let mut bases: Vec<u64> = list(files)?
        .iter()
        .filter_map(|file| base_of(&file.name, "log"))
        .collect();
    bases.sort_unstable();
    Ok(bases)
}

/// The time of a segment's first record. None where there is none, or it cannot be read.
fn first_time(files: &dyn Files, base: u64) -> Result<Option<u64>, LogError> {
    let Some(place) = Place::find(files, base, base)? else {
        return Ok(None);
    };
    let reading = |error| LogError::io("reading", &log_name(base), error);
    let len = place.file.size().map_err(reading)?;
    match Walk::new(&*place.file, START, base, len)
        .step()
        .map_err(reading)?
    {
        Step::Record { time, .. } => Ok(Some(time)),
        Step::End | Step::Bad => Ok(None),
    }
}
