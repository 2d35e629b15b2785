//! A segment: one file of consecutive records, named after the first, with its index beside it.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::error::LogError;
use super::files::{File, Files};
use super::index::{Entry, Index};
use super::record::{HEADER, Parsed, claimed_size, find_marks, parse};
use super::sync::lock;

/// Bytes before the first record.
pub(super) const START: u64 = HEAD as u64;
const HEAD: usize = 64;
/// Magic and version.
const MAGIC: &[u8; 8] = b"MWLOG\0\0\x01";
/// How much is read at once when walking through a segment.
const CHUNK: usize = 256 << 10;

/// The file with the records from `base` on.
pub(super) fn log_name(base: u64) -> String {
    format!("{base:020}.log")
}

/// The file with the index of the segment from `base` on.
pub(super) fn index_name(base: u64) -> String {
    format!("{base:020}.idx")
}

/// The number in a segment's (`log`) or index's (`idx`) file name.
pub(super) fn base_of(name: &str, kind: &str) -> Option<u64> {
    let (number, found) = name.split_once('.')?;
    let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
    (found == kind && digits).then(|| number.parse().ok())?
}

/// The first bytes of the segment that starts with record `base`.
pub(super) fn header(base: u64) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&base.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether a file starts as the segment from `base` on must.
pub(super) fn has_header(file: &dyn File, base: u64) -> io::Result<bool> {
    let mut bytes = [0; HEAD];
    Ok(file.read_at(&mut bytes, 0)? == bytes.len() && bytes == header(base))
}

/// A segment that is written to, or that is not yet indexed to its end. Readers share it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) base: u64,
    pub(super) file: Box<dyn File>,
    pub(super) index: Mutex<Index>,
    /// Where the visible records end.
    end: AtomicU64,
    /// Its last place, once there will be no more.
    closed: OnceLock<Entry>,
}

impl Segment {
    /// A new, empty one. An unfinished file of the same name is replaced.
    pub(super) fn create(files: &dyn Files, base: u64) -> Result<Self, LogError> {
        let name = log_name(base);
        let file = files.create(&name).or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            files.remove(&name)?;
            files.create(&name)
        });
        let file = file.map_err(|error| LogError::io("creating", &name, error))?;
        file.write_at(&header(base), 0)
            .map_err(|error| LogError::io("writing", &name, error))?;
        Ok(Self::found(base, file, START, Index::default()))
    }

    /// One whose records are known to end at `end`.
    pub(super) fn found(base: u64, file: Box<dyn File>, end: u64, index: Index) -> Self {
        Self {
            base,
            file,
            index: Mutex::new(index),
            end: AtomicU64::new(end),
            closed: OnceLock::new(),
        }
    }

    pub(super) fn name(&self) -> String {
        log_name(self.base)
    }

    /// Where the visible records end, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Makes the records up to `end` visible.
    pub(super) fn publish(&self, end: u64, entries: &[Entry]) {
        if !entries.is_empty() {
            let mut index = lock(&self.index);
            for entry in entries {
                index.push(*entry);
            }
        }
        self.end.store(end, Ordering::Release);
    }

    /// Says that the segment ends here: with the number of the next record and the time of the last.
    pub(super) fn close(&self, end: Entry) {
        let _ = self.closed.set(end);
    }

    /// Where it ends, once it is closed.
    pub(super) fn closed(&self) -> Option<Entry> {
        self.closed.get().copied()
    }
}

/// Goes through the records of a segment, with bounded memory.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    file: &'a dyn File,
    /// Where the next record starts, and its number.
    pub(super) offset: u64,
    pub(super) seq: u64,
    /// Nothing is read from here on.
    limit: u64,
    buffer: Vec<u8>,
    /// The part of the buffer that is not walked through.
    from: usize,
    /// The last payload in the buffer.
    last: Range<usize>,
}

/// What a walk met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A record, at this offset.
    Record { time: u64, offset: u64, more: bool },
    /// Nothing more.
    End,
    /// Something that does not verify.
    Bad,
}

impl<'a> Walk<'a> {
    /// From the record `seq`, which starts at `offset`, up to the byte `limit`.
    pub(super) fn new(file: &'a dyn File, offset: u64, seq: u64, limit: u64) -> Self {
        Self {
            file,
            offset,
            seq,
            limit,
            buffer: Vec::new(),
            from: 0,
            last: 0..0,
        }
    }

    /// Goes one record on.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        loop {
            let bytes = &self.buffer[self.from..];
            match parse(bytes, self.seq) {
                Parsed::Record {
                    time,
                    more,
                    size,
                    payload,
                } => {
                    let offset = self.offset;
                    let start = self.from + HEADER;
                    self.last = start..start + payload.len();
                    self.pass(size);
                    self.seq += 1;
                    return Ok(Step::Record { time, offset, more });
                }
                Parsed::Mark { size, .. } => self.pass(size),
                Parsed::Bad => return Ok(Step::Bad),
                Parsed::End if bytes.len() >= HEADER => return Ok(Step::End),
                Parsed::End => {
                    if !self.fill(CHUNK)? {
                        return Ok(Step::End);
                    }
                }
                Parsed::Short { size } => {
                    if !self.fill(size)? {
                        return Ok(Step::Bad);
                    }
                }
            }
        }
    }

    /// The payload of the record that was met last.
    pub(super) fn payload(&self) -> &[u8] {
        &self.buffer[self.last.clone()]
    }

    /// After [`Step::Bad`]: goes over the record that does not verify, if its length is right, so that
    /// the next one does. False: that is not so.
    pub(super) fn skip_bad(&mut self) -> io::Result<bool> {
        let Some(size) = claimed_size(&self.buffer[self.from..]) else {
            return Ok(false);
        };
        let mut after = Walk::new(
            self.file,
            self.offset + size as u64,
            self.seq + 1,
            self.limit,
        );
        let whole = matches!(after.step()?, Step::Record { .. });
        if whole {
            *self = Walk::new(
                self.file,
                self.offset + size as u64,
                self.seq + 1,
                self.limit,
            );
        }
        Ok(whole)
    }

    fn pass(&mut self, size: usize) {
        self.from += size;
        self.offset += size as u64;
    }

    /// Reads on, so that `size` bytes (and more) are there. False: there are not as many, nor more
    /// than there were.
    fn fill(&mut self, size: usize) -> io::Result<bool> {
        let had = self.buffer.len() - self.from;
        let left = usize::try_from(self.limit.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let want = size.max(CHUNK).min(left);
        if want <= had || size.min(HEADER) > left {
            return Ok(false);
        }
        self.buffer.drain(..self.from);
        self.from = 0;
        self.buffer.resize(want, 0);
        let n = self
            .file
            .read_at(&mut self.buffer[had..], self.offset + had as u64)?;
        self.buffer.truncate(had + n);
        Ok(n > 0)
    }
}

/// What lies behind the last record that verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rest {
    /// There is something else than zeros.
    pub(super) any: bool,
    /// The marks there tell that all before this record was on disk.
    pub(super) stable: Option<u64>,
}

/// Looks at what lies from `offset` to the end of the file.
pub(super) fn rest(file: &dyn File, mut offset: u64) -> io::Result<Rest> {
    /// A mark may lie across two chunks.
    const OVERLAP: usize = super::record::MARK_BYTES - 8;
    let mut found = Rest::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = file.read_at(&mut buffer, offset)?;
        let bytes = &buffer[..n];
        if bytes.iter().any(|byte| *byte != 0) {
            found.any = true;
            found.stable = found.stable.max(find_marks(bytes));
        }
        if n < CHUNK {
            return Ok(found);
        }
        offset += (CHUNK - OVERLAP) as u64;
    }
}
