//! The sparse index of a segment, by number and by time: one entry for about every 16 KiB of
//! records, in a file next to the segment.
//!
//! An entry tells that the record `seq` starts at `offset`, that no record before it is later than
//! `time`, and none from it on is earlier. **Entries are written only once everything before them
//! is on disk.** So the last entry is also where recovery starts to check: what is before it cannot
//! be a torn tail. A closed segment's index ends with an entry that says so, whose `seq` is the first
//! of the next segment.
//!
//! The index is a cache: where it is missing or damaged, it is made anew from the records. So nothing
//! that goes wrong with it fails an append.

use super::error::LogError;
use super::files::{File, Files};
use super::segment::index_name;

/// Bytes of records between entries.
pub(super) const STEP: u64 = 16 << 10;
/// Bytes of an entry on disk.
const ENTRY: usize = 32;
/// In an entry's flags: the segment is closed and ends here.
const CLOSED: u32 = 1;

/// A place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) seq: u64,
    /// Unix milliseconds.
    pub(super) time: u64,
    pub(super) offset: u64,
}

/// The index of a segment that is written to, or was lately.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Vec<Entry>,
    /// How many of them are in the file.
    stored: usize,
    file: Option<Box<dyn File>>,
}

impl Index {
    /// With entries that are in the file.
    pub(super) fn stored(entries: Vec<Entry>) -> Self {
        Self {
            stored: entries.len(),
            entries,
            file: None,
        }
    }

    /// Where the last entry is.
    pub(super) fn end(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.offset)
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// The last entry for which `before` holds. It must hold for a first part of them.
    pub(super) fn last(&self, before: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let n = self.entries.partition_point(before);
        n.checked_sub(1).map(|n| self.entries[n])
    }

    /// The first entry for which `after` holds.
    pub(super) fn first(&self, after: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.entries.iter().copied().find(after)
    }

    /// Puts the entries up to `synced` into the file, of the segment that starts with `base`.
    pub(super) fn store(
        &mut self,
        files: &dyn Files,
        base: u64,
        synced: u64,
    ) -> Result<(), LogError> {
        let ready = self.entries.partition_point(|entry| entry.offset <= synced);
        self.write(files, base, ready, None)
    }

    /// Puts all entries into the file, with one that says that the segment ends there.
    pub(super) fn close(
        &mut self,
        files: &dyn Files,
        base: u64,
        end: Entry,
    ) -> Result<(), LogError> {
        self.write(files, base, self.entries.len(), Some(end))?;
        let file = self.file.as_ref().expect("written just before");
        file.sync()
            .map_err(|error| LogError::io("syncing", &index_name(base), error))
    }

    fn write(
        &mut self,
        files: &dyn Files,
        base: u64,
        upto: usize,
        end: Option<Entry>,
    ) -> Result<(), LogError> {
        let new = self.entries.get(self.stored..upto).unwrap_or_default();
        let mut bytes: Vec<u8> = new
            .iter()
            .flat_map(|entry| encode(entry, base, 0))
            .collect();
        bytes.extend(end.iter().flat_map(|entry| encode(entry, base, CLOSED)));
        if bytes.is_empty() {
            return Ok(());
        }
        let name = index_name(base);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open_or_create(files, &name, self.stored > 0)?),
        };
        let offset = (self.stored * ENTRY) as u64;
        // What is behind may be left from before a crash.
        file.set_len(offset)
            .and_then(|()| file.write_at(&bytes, offset))
            .map_err(|error| LogError::io("writing", &name, error))?;
        self.stored = self.stored.max(upto);
        Ok(())
    }
}

fn open_or_create(files: &dyn Files, name: &str, exists: bool) -> Result<Box<dyn File>, LogError> {
    let opened = if exists {
        files.open(name)
    } else {
        files.create(name).or_else(|_| files.open(name))
    };
    opened.map_err(|error| LogError::io("opening", name, error))
}

/// The index of a closed segment, read from its file entry by entry.
#[derive(Debug)]
pub(super) struct ClosedIndex {
    file: Box<dyn File>,
    base: u64,
    /// Entries without the last, which says where the segment ends.
    entries: u64,
    pub(super) end: Entry,
}

impl ClosedIndex {
    /// None: there is none that is whole at its end.
    pub(super) fn open(files: &dyn Files, base: u64) -> Option<Self> {
        let file = files.open(&index_name(base)).ok()?;
        let entries = (file.size().ok()? / ENTRY as u64).checked_sub(1)?;
        let (end, closed) = read(&*file, base, entries)?;
        closed.then_some(Self {
            file,
            base,
            entries,
            end,
        })
    }

    /// The last entry for which `before` holds. None as well when the index is damaged there.
    pub(super) fn last(&self, before: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&read(&*self.file, self.base, middle)?.0) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(read(&*self.file, self.base, low.checked_sub(1)?)?.0)
    }

    /// The first entry for which `after` holds.
    pub(super) fn first(&self, after: impl Fn(&Entry) -> bool) -> Option<Entry> {
        (0..self.entries)
            .filter_map(|n| Some(read(&*self.file, self.base, n)?.0))
            .find(after)
    }
}

/// The entries of an index file up to the first that is damaged. True: the last one says that the
/// segment ends there.
pub(super) fn load(files: &dyn Files, base: u64) -> (Vec<Entry>, bool) {
    let Ok(file) = files.open(&index_name(base)) else {
        return (Vec::new(), false);
    };
    let len = file.size().ok().and_then(|len| usize::try_from(len).ok());
    let mut bytes = vec![0; len.unwrap_or(0)];
    let n = file.read_at(&mut bytes, 0).unwrap_or(0);
    let mut entries: Vec<Entry> = Vec::new();
    for chunk in bytes[..n].as_chunks::<ENTRY>().0 {
        let Some((entry, closed)) = decode(chunk, base) else {
            break;
        };
        let in_order = |last: &Entry| last.offset < entry.offset || closed;
        if !entries.last().is_none_or(in_order) {
            break;
        }
        entries.push(entry);
        if closed {
            return (entries, true);
        }
    }
    (entries, false)
}

fn read(file: &dyn File, base: u64, n: u64) -> Option<(Entry, bool)> {
    let mut bytes = [0; ENTRY];
    let read = file.read_at(&mut bytes, n * ENTRY as u64).ok()?;
    (read == ENTRY).then(|| decode(&bytes, base))?
}

fn encode(entry: &Entry, base: u64, flags: u32) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&entry.seq.to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.time.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.offset.to_le_bytes());
    bytes[24..28].copy_from_slice(&flags.to_le_bytes());
    let crc = checksum(&bytes, base);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; ENTRY], base: u64) -> Option<(Entry, bool)> {
    let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("32 bytes"));
    #[expect(clippy::cast_possible_truncation, reason = "two words of 32 bits")]
    let (flags, crc) = (word(24) as u32, (word(24) >> 32) as u32);
    let entry = Entry {
        seq: word(0),
        time: word(8),
        offset: word(16),
    };
    (crc == checksum(bytes, base)).then_some((entry, flags & CLOSED != 0))
}

fn checksum(bytes: &[u8; ENTRY], base: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&base.to_le_bytes()), &bytes[..28])
}
