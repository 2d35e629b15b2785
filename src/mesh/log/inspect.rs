//! Looking at a log without opening it: while another process has it open, or when it is damaged.

use std::io;

use meshwork_identity::Timestamp;

use super::error::{Damage, LogError};
use super::files::{File, Files};
use super::index::{self, Entry};
use super::record::RecordRef;
use super::segment::{self, START, Step, Walk, base_of, has_header, log_name};

/// What a log's files hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// Each segment, oldest first.
    pub segments: Vec<SegmentInspection>,
    /// What cannot be read. The end of the last segment is none: whether it was torn off by a crash,
    /// or is just being written, opening the log decides.
    pub damage: Vec<Damage>,
}

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInspection {
    /// Its file.
    pub file: String,
    /// Its first record.
    pub first: u64,
    /// Records that can be read.
    pub records: u64,
    /// Bytes up to the end of the last one.
    pub bytes: u64,
    /// Whether its index says that it is full, so that nothing is appended any more.
    pub closed: bool,
}

/// Reads all records of a log that can be read, in order, and gives them to `each`. Changes nothing,
/// and needs no lock: a process that has the log open goes on.
pub fn inspect(
    files: &dyn Files,
    mut each: impl FnMut(RecordRef<'_>),
) -> Result<Inspection, LogError> {
    let listed = files
        .list()
        .map_err(|error| LogError::io("listing", "the log's directory", error))?;
    let mut bases: Vec<u64> = listed
        .iter()
        .filter_map(|file| base_of(&file.name, "log"))
        .collect();
    bases.sort_unstable();
    let mut inspection = Inspection::default();
    for (n, base) in bases.iter().enumerate() {
        let next = bases.get(n + 1).copied();
        let name = log_name(*base);
        let file = match files.open(&name) {
            Ok(file) => file,
            // Dropped by retention meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LogError::io("opening", &name, error)),
        };
        let segment = inspect_segment(
            files,
            &*file,
            *base,
            next,
            &mut inspection.damage,
            &mut each,
        );
        let segment = segment.map_err(|error| LogError::io("reading", &name, error))?;
        inspection.segments.push(segment);
    }
    Ok(inspection)
}

fn inspect_segment(
    files: &dyn Files,
    file: &dyn File,
    base: u64,
    next: Option<u64>,
    damage: &mut Vec<Damage>,
    each: &mut dyn FnMut(RecordRef<'_>),
) -> io::Result<SegmentInspection> {
    let (entries, closed) = index::load(files, base);
    let name = log_name(base);
    let mut records = 0;
    let mut end = START;
    if !has_header(file, base)? {
        damage.push(Damage {
            file: name.clone(),
            offset: 0,
            seq: base,
            resume: Some(base),
        });
    }
    let len = file.size()?;
    let mut walk = Walk::new(file, START, base, len);
    loop {
        let step = walk.step()?;
        if let Step::Record { time, .. } = step {
            records += 1;
            end = walk.offset;
            let time = Timestamp::from_millis(time);
            each(RecordRef {
                seq: walk.seq - 1,
                time,
                payload: walk.payload(),
            });
            continue;
        }
        // The end of the last segment is none of our business, and that of others must fit.
        let (offset, seq) = (walk.offset, walk.seq);
        let synced = entries.last().map_or(base, |entry| entry.seq);
        if next.unwrap_or(synced.max(segment::rest(file, offset)?.stable.unwrap_or(0))) <= seq {
            break;
        }
        // A process that appends may just have been faster.
        let mut again = Walk::new(file, offset, seq, file.size()?);
        if matches!(again.step()?, Step::Record { .. }) {
            walk = Walk::new(file, offset, seq, file.size()?);
            continue;
        }
        let found = resume(file, &mut walk, &entries, len)?;
        let resume = found.or(next);
        damage.push(Damage {
            file: name.clone(),
            offset,
            seq,
            resume,
        });
        if found.is_none() {
            break;
        }
    }
    Ok(SegmentInspection {
        file: name,
        first: base,
        records,
        bytes: end,
        closed,
    })
}

/// Takes the walk behind the damage that it met: to the record after it, or to the next index entry.
pub(super) fn resume<'a>(
    file: &'a dyn File,
    walk: &mut Walk<'a>,
    entries: &[Entry],
    len: u64,
) -> io::Result<Option<u64>> {
    if walk.skip_bad()? {
        return Ok(Some(walk.seq));
    }
    let behind =
        |entry: &&Entry| entry.offset > walk.offset && entry.seq > walk.seq && entry.offset < len;
    let Some(entry) = entries.iter().find(behind).copied() else {
        return Ok(None);
    };
    *walk = Walk::new(file, entry.offset, entry.seq, len);
    Ok(Some(entry.seq))
}
