//! Appending: the one place where a log grows.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::MAX_BATCH;
use super::error::LogError;
use super::index::{Entry, STEP};
use super::record::{MARK_BYTES, MAX_RECORD, Record, encode, encode_mark, framed};
use super::segment::{START, Segment};
use super::shared::{Shared, Slot};
use super::sync::lock;

/// Files grow by this much at a time: little at first, so that small logs stay small.
const GROWTH: Range<u64> = 64 << 10..1 << 20;
/// A mark is written where so many bytes have come to disk since the last one.
const MARK_STEP: u64 = 1 << 10;
/// The log syncs in the background when so many bytes are not on disk, whatever was asked for:
/// recovery has to look at no more.
pub(super) const BACKGROUND_SYNC: u64 = 4 << 20;
/// An append waits for the disk when so many full segments are not there yet.
const MOST_UNSYNCED: usize = 16;
/// The buffer for encoding is given back when a batch made it larger than this.
const KEPT_BUFFER: usize = 1 << 20;

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Writer {
    segment: Arc<Segment>,
    /// Where the records end, and how long the file is.
    offset: u64,
    allocated: u64,
    /// The next record's number, and the last one's time in Unix milliseconds.
    pub(super) next: u64,
    last_time: u64,
    /// The last mark says that records before this are on disk, and was written at this count of
    /// bytes appended.
    marked: u64,
    marked_at: u64,
    last_entry: Option<u64>,
    /// Bytes may have been cut off behind the end, and not be gone from the disk. They could come back
    /// between records that are written there.
    cut: bool,
    appended: u64,
    buffer: Vec<u8>,
    fresh: Vec<Entry>,
    /// Full segments that are not on disk, and those that are and wait for the keeper.
    unsynced: Vec<Arc<Segment>>,
    pub(super) finished: Vec<Arc<Segment>>,
    /// Files were created since the directory was synced.
    dir: bool,
}

/// What one sync has to bring to disk.
#[derive(Debug)]
pub(super) struct SyncPlan {
    pub(super) closed: Vec<Arc<Segment>>,
    pub(super) active: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) next: u64,
    pub(super) appended: u64,
    pub(super) dir: bool,
}

/// A record that is to be appended.
pub(super) trait Payload {
    fn bytes(&self) -> &[u8];
    /// When it was appended elsewhere, in Unix milliseconds.
    fn time(&self) -> Option<u64> {
        None
    }
}

/// Appended here and now.
pub(super) struct Fresh<'a, P>(pub(super) &'a P);

impl<P: AsRef<[u8]>> Payload for Fresh<'_, P> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl Payload for &Record {
    fn bytes(&self) -> &[u8] {
        &self.payload
    }
    fn time(&self) -> Option<u64> {
        Some(self.time.as_millis())
    }
}

impl Shared {
    /// Appends records, visible at once and all together. `at`: the number that must come next.
    pub(super) fn append<P: Payload>(
        &self,
        records: impl ExactSizeIterator<Item = P> + Clone,
        at: Option<u64>,
    ) -> Result<Range<u64>, LogError> {
        let size = size_of(records.clone())?;
        let mut writer = lock(&self.writer);
        if writer.unsynced.len() >= MOST_UNSYNCED {
            let next = writer.next;
            drop(writer);
            self.wait_durable(next)?;
            writer = lock(&self.writer);
        }
        self.check_open()?;
        let first = writer.next;
        if let Some(got) = at.filter(|at| *at != first) {
            return Err(LogError::OutOfOrder {
                expected: first,
                got,
            });
        }
        if records.len() == 0 {
            return Ok(first..first);
        }
        let seqs = writer.append(self, records, size)?;
        drop(writer);
        self.news.ring();
        Ok(seqs)
    }

    /// Closes the segment that is written to and starts another, if there is something in it.
    pub(super) fn roll(&self) -> Result<(), LogError> {
        let mut writer = lock(&self.writer);
        self.check_open()?;
        if writer.offset > START {
            writer.roll(self)
        } else {
            Ok(())
        }
    }

    /// The time of the last record, if there is one in the segment that is written to.
    pub(super) fn active_time(&self) -> Option<u64> {
        let writer = lock(&self.writer);
        (writer.offset > START).then_some(writer.last_time)
    }

    /// The last thing that is done with a log: gives back the room that was reserved, and stores
    /// where it ends.
    pub(super) fn finish(&self) -> Result<(), LogError> {
        let writer = lock(&self.writer);
        let segment = &writer.segment;
        if writer.allocated > writer.offset {
            let cut = segment.file.set_len(writer.offset);
            cut.map_err(|error| LogError::io("cutting", &segment.name(), error))?;
        }
        let mut index = lock(&segment.index);
        if index.end().is_some_and(|end| end < writer.offset) {
            index.push(Entry {
                seq: writer.next,
                time: writer.last_time,
                offset: writer.offset,
            });
        }
        index.store(&*self.files, segment.base, writer.offset)
    }
}

impl Writer {
    /// Goes on at the end of `segment`, whose file is `allocated` bytes long.
    pub(super) fn new(segment: Arc<Segment>, allocated: u64, next: u64, last_time: u64) -> Self {
        let last_entry = lock(&segment.index).end();
        Self {
            // By recovery, perhaps in another process that ended before it had synced.
            cut: allocated > START,
            offset: segment.end(),
            last_entry,
            segment,
            allocated,
            next,
            last_time,
            marked: 0,
            marked_at: 0,
            appended: 0,
            buffer: Vec::new(),
            fresh: Vec::new(),
            unsynced: Vec::new(),
            finished: Vec::new(),
            dir: true,
        }
    }

    /// Counts a full segment that is not known to be on disk.
    pub(super) fn add_unsynced(&mut self, segment: Arc<Segment>) {
        self.unsynced.push(segment);
    }

    pub(super) fn plan_sync(&self) -> SyncPlan {
        SyncPlan {
            closed: self.unsynced.clone(),
            active: self.segment.clone(),
            offset: self.offset,
            next: self.next,
            appended: self.appended,
            dir: self.dir,
        }
    }

    pub(super) fn synced(&mut self, plan: &SyncPlan) {
        self.finished
            .extend(self.unsynced.drain(..plan.closed.len()));
        if Arc::ptr_eq(&self.segment, &plan.active) {
            self.dir = false;
        }
    }

    fn append<P: Payload>(
        &mut self,
        shared: &Shared,
        records: impl ExactSizeIterator<Item = P>,
        size: usize,
    ) -> Result<Range<u64>, LogError> {
        let durable = shared.durable();
        let mark = durable > self.marked && self.appended - self.marked_at >= MARK_STEP;
        let size = (size + if mark { MARK_BYTES } else { 0 }) as u64;
        if self.offset > START && self.offset + size > shared.config.segment_bytes {
            self.roll(shared)?;
        }
        if self.cut {
            self.settle_cut(shared)?;
        }
        self.reserve(self.offset + size, shared.config.segment_bytes)?;
        let now = shared.clock.now().as_millis().max(self.last_time);
        let (next, time) = self.encode(records, now, mark.then_some(durable));
        if let Err(error) = self.segment.file.write_at(&self.buffer, self.offset) {
            return Err(self.undo(shared, error));
        }
        if mark {
            (self.marked, self.marked_at) = (durable, self.appended);
        }
        let first = self.next;
        (self.offset, self.appended) = (self.offset + size, self.appended + size);
        (self.next, self.last_time) = (next, time);
        self.last_entry = self
            .fresh
            .last()
            .map(|entry| entry.offset)
            .or(self.last_entry);
        self.segment.publish(self.offset, &self.fresh);
        shared.publish(next);
        shared.appended.store(self.appended, Ordering::Release);
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
        if self.appended - shared.settled.load(Ordering::Relaxed) >= BACKGROUND_SYNC {
            shared.kick();
        }
        Ok(first..next)
    }

    /// Fills the buffer, and `fresh` with the index entries for it. Returns the number after the last
    /// record, and the last one's time.
    fn encode<P: Payload>(
        &mut self,
        records: impl ExactSizeIterator<Item = P>,
        now: u64,
        mark: Option<u64>,
    ) -> (u64, u64) {
        self.buffer.clear();
        self.fresh.clear();
        let (mut seq, mut time, mut last) = (self.next, self.last_time, self.last_entry);
        if let Some(stable) = mark {
            encode_mark(&mut self.buffer, seq, now, stable);
        }
        let mut left = records.len();
        for record in records {
            left -= 1;
            time = record.time().unwrap_or(now).max(time).max(1);
            let offset = self.offset + self.buffer.len() as u64;
            if last.is_none_or(|last| offset >= last + STEP) {
                self.fresh.push(Entry { seq, time, offset });
                last = Some(offset);
            }
            encode(&mut self.buffer, seq, time, record.bytes(), left > 0);
            seq += 1;
        }
        (seq, time)
    }

    /// Has room on disk up to `end`, and some more of what the segment may take.
    fn reserve(&mut self, end: u64, most: u64) -> Result<(), LogError> {
        if end <= self.allocated {
            return Ok(());
        }
        let step = self.allocated.clamp(GROWTH.start, GROWTH.end);
        let file = &self.segment.file;
        let want = end.max(most.min(self.allocated + step));
        // On a disk that is nearly full there may be room for this record yet.
        let got = file
            .allocate(want)
            .map(|()| want)
            .or_else(|_| file.allocate(end).map(|()| end));
        self.allocated =
            got.map_err(|error| LogError::io("enlarging", &self.segment.name(), error))?;
        Ok(())
    }

    /// After a failed write: what part of it lies there must not be taken for records once others are
    /// written before it.
    fn undo(&mut self, shared: &Shared, error: std::io::Error) -> LogError {
        let name = self.segment.name();
        match self.segment.file.set_len(self.offset) {
            Ok(()) => (self.allocated, self.cut) = (self.offset, true),
            Err(error) => shared.fail(LogError::broken("cutting", &name, error)),
        }
        LogError::io("writing", &name, error)
    }

    fn settle_cut(&mut self, shared: &Shared) -> Result<(), LogError> {
        if let Err(error) = self.segment.file.sync() {
            shared.fail(LogError::broken("syncing", &self.segment.name(), error));
            return shared.check_open();
        }
        self.cut = false;
        Ok(())
    }

    fn roll(&mut self, shared: &Shared) -> Result<(), LogError> {
        let segment = Arc::new(Segment::create(&*shared.files, self.next)?);
        lock(&shared.slots).insert(
            self.next,
            Slot {
                bytes: START,
                open: Some(segment.clone()),
                last_time: None,
            },
        );
        let full = std::mem::replace(&mut self.segment, segment);
        full.close(Entry {
            seq: self.next,
            time: self.last_time,
            offset: self.offset,
        });
        // Those who wait for the disk wait for records; when all are there, nobody would sync again.
        let durable = shared.durable() >= self.next;
        if durable {
            &mut self.finished
        } else {
            &mut self.unsynced
        }
        .push(full);
        (self.offset, self.allocated, self.last_entry) = (START, START, None);
        self.cut = false;
        self.dir = true;
        shared.kick();
        Ok(())
    }
}

/// Bytes that records take in a segment.
fn size_of<P: Payload>(records: impl Iterator<Item = P>) -> Result<usize, LogError> {
    let mut size = 0;
    for record in records {
        let bytes = record.bytes().len();
        if bytes > MAX_RECORD {
            return Err(LogError::TooLarge {
                bytes,
                limit: MAX_RECORD,
            });
        }
        size += framed(bytes);
        if size > MAX_BATCH {
            return Err(LogError::TooLarge {
                bytes: size,
                limit: MAX_BATCH,
            });
        }
    }
    Ok(size)
}
