//! The handle of an open log.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use meshwork_identity::Timestamp;
use meshwork_proto::ports::WallClock;

use super::config::{Durability, LogConfig};
use super::error::LogError;
use super::files::{DiskFiles, Files, LockError};
use super::keeper;
use super::record::Record;
use super::recovery::{Found, Recovered, Tail as End, recover};
use super::segment::{START, Segment};
use super::shared::{Shared, Slot, Start};
use super::sync::lock;
use super::tail::{Follow, Scan, Tail, seq_at};
use super::writer::{Fresh, Writer};

/// The keeper needs little more than the buffers that it makes on the heap.
const KEEPER_STACK: usize = 256 << 10;

/// An open log. Clones are handles of the same one; the last one that goes closes it.
///
/// Methods that say so block the thread for as long as the disk takes; the others take about as
/// long as copying what they are given. Now and then (once in 1 MiB, and at a new segment) an append
/// makes room in the file system, which takes longer.
#[derive(Debug, Clone)]
pub struct Log {
    owner: Arc<Owner>,
}

/// State of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogInfo {
    /// The first record that is left; the next one's number when none is.
    pub first: u64,
    /// The number that the next record gets.
    pub next: u64,
    /// Records before this are known to be on disk.
    pub durable: u64,
    /// Bytes of records on disk, with their headers. Room that is reserved does not count.
    pub bytes: u64,
    /// Files of records.
    pub segments: usize,
    /// What opening the log found and mended.
    pub recovered: Recovered,
    /// Syncs since the log was opened.
    pub syncs: u64,
    /// Segments dropped since then by retention and [`Log::trim_before`].
    pub trimmed_segments: u64,
    /// Times that something failed since then that is no loss, such as writing an index.
    pub setbacks: u64,
}

impl Log {
    /// Opens the log in `dir`, or makes one there. Blocks.
    ///
    /// What a crash has torn off the end is cut, and [`LogInfo::recovered`] tells so. An error when
    /// records are damaged that were on disk: [`inspect()`](super::inspect()) reads what is left.
    pub fn open(
        dir: impl Into<PathBuf>,
        clock: Arc<dyn WallClock>,
        config: LogConfig,
    ) -> Result<Self, LogError> {
        let dir = dir.into();
        let name = dir.display().to_string();
        let files = DiskFiles::open(dir).map_err(|error| LogError::io("opening", &name, error))?;
        Self::open_in(Arc::new(files), clock, config)
    }

    /// Opens the log in these files. Blocks.
    pub fn open_in(
        files: Arc<dyn Files>,
        clock: Arc<dyn WallClock>,
        config: LogConfig,
    ) -> Result<Self, LogError> {
        let log = Self::open_idle(files, clock, config)?;
        log.owner.start_keeper()?;
        Ok(log)
    }

    /// Opens a log whose keeper does nothing by itself.
    pub(super) fn open_idle(
        files: Arc<dyn Files>,
        clock: Arc<dyn WallClock>,
        config: LogConfig,
    ) -> Result<Self, LogError> {
        config.check()?;
        let hold = files.lock().map_err(|error| locked(&*files, error))?;
        let found = recover(&*files, config.first_seq)?;
        if found.report.cut > 0 || found.report.removed > 0 {
            let dir = files.dir().display();
            tracing::warn!(%dir, cut = found.report.cut, next = found.next, "log lost its torn end");
        }
        let shared = Arc::new(Shared::new(start(files, clock, config, found)?));
        let (keeper, hold) = (Mutex::default(), Mutex::new(Some(hold)));
        Ok(Self {
            owner: Arc::new(Owner {
                shared,
                keeper,
                hold,
            }),
        })
    }

    /// Does what the keeper does when it is woken.
    #[cfg(test)]
    pub(super) fn keep(&self) {
        self.shared().keep();
    }

    /// Appends a record and returns its number. Blocks for the disk if `durability` says so.
    ///
    /// On an error nothing is appended, except for [`LogError::Broken`] from a sync: then the record
    /// may or may not be there when the log is opened anew.
    pub fn append(
        &self,
        payload: impl AsRef<[u8]>,
        durability: Durability,
    ) -> Result<u64, LogError> {
        self.append_batch(&[payload], durability)
            .map(|seqs| seqs.start)
    }

    /// Appends records, all or none, whatever happens, and returns their numbers. Blocks for the disk
    /// if `durability` says so.
    pub fn append_batch<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
        durability: Durability,
    ) -> Result<Range<u64>, LogError> {
        let seqs = self.shared().append(payloads.iter().map(Fresh), None)?;
        self.settle(seqs, durability)
    }

    /// [`Log::append`], waiting for the disk without blocking the thread.
    ///
    /// # Cancel safety
    /// When this is dropped after its first poll, the record stays appended.
    pub async fn append_async(
        &self,
        payload: impl AsRef<[u8]>,
        durability: Durability,
    ) -> Result<u64, LogError> {
        self.append_batch_async(&[payload], durability)
            .await
            .map(|seqs| seqs.start)
    }

    /// [`Log::append_batch`], waiting for the disk without blocking the thread.
    ///
    /// # Cancel safety
    /// When this is dropped after its first poll, the records stay appended.
    pub async fn append_batch_async<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
        durability: Durability,
    ) -> Result<Range<u64>, LogError> {
        let seqs = self.shared().append(payloads.iter().map(Fresh), None)?;
        if !seqs.is_empty() {
            self.shared().settle_async(&seqs, durability).await?;
        }
        Ok(seqs)
    }

    /// Appends copies of another log's records, with their numbers and times. They must come next
    /// here. Blocks for the disk if `durability` says so.
    pub fn append_copies(
        &self,
        records: &[Record],
        durability: Durability,
    ) -> Result<Range<u64>, LogError> {
        let first = records.first().map(|record| record.seq);
        let in_order = |pair: &&[Record]| pair[1].seq != pair[0].seq + 1;
        if let Some(pair) = records.windows(2).find(in_order) {
            return Err(LogError::OutOfOrder {
                expected: pair[0].seq + 1,
                got: pair[1].seq,
            });
        }
        let seqs = self.shared().append(records.iter(), first)?;
        self.settle(seqs, durability)
    }

    /// Brings all records to disk, and returns the number of the next one. Blocks.
    pub fn sync(&self) -> Result<u64, LogError> {
        let next = self.next_seq();
        self.shared().wait_durable(next)?;
        Ok(next)
    }

    /// [`Log::sync`] without blocking the thread.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped.
    pub async fn sync_async(&self) -> Result<u64, LogError> {
        let next = self.next_seq();
        self.shared()
            .settle_async(&(next..next), Durability::Each)
            .await?;
        Ok(next)
    }

    /// The records of `range` that are there when this is called. Reading blocks.
    pub fn read_range(&self, range: Range<u64>) -> Result<Scan, LogError> {
        Scan::new(self.shared(), range)
    }

    /// Follows the log from record `from` on, which exists or comes next.
    pub fn tail(&self, from: u64) -> Result<Tail, LogError> {
        Tail::new(self.shared().clone(), from, Follow::Appended)
    }

    /// Follows the log, with a choice of what is given.
    pub fn follow(&self, from: u64, follow: Follow) -> Result<Tail, LogError> {
        Tail::new(self.shared().clone(), from, follow)
    }

    /// The first record whose time is not before `time`; the next one's number when there is none.
    /// Blocks.
    pub fn seq_at(&self, time: Timestamp) -> Result<u64, LogError> {
        seq_at(self.shared(), time)
    }

    /// The first record that is left; the next one's number when none is.
    pub fn first_seq(&self) -> u64 {
        self.shared().first()
    }

    /// The number that the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.shared().published()
    }

    /// Records before this are known to be on disk.
    pub fn durable_seq(&self) -> u64 {
        self.shared().durable()
    }

    /// Waits until all records before `seq` are on disk, without asking for a sync.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped.
    pub async fn durable(&self, seq: u64) -> Result<(), LogError> {
        self.shared().until_durable(seq).await
    }

    /// Drops full segments all of whose records come before `seq`. Blocks.
    pub fn trim_before(&self, seq: u64) -> Result<(), LogError> {
        self.shared().trim(seq)
    }

    /// Drops at once what retention does not keep; the log does so by itself when a segment is full,
    /// and for age at times. Blocks.
    pub fn enforce_retention(&self) -> Result<(), LogError> {
        self.shared().retain()
    }

    /// How the log stands.
    pub fn info(&self) -> LogInfo {
        let shared = self.shared();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (segments, bytes) = {
            let slots = lock(&shared.slots);
            (slots.len(), slots.values().map(Slot::size).sum())
        };
        LogInfo {
            first: self.first_seq(),
            next: self.next_seq(),
            durable: self.durable_seq(),
            bytes,
            segments,
            recovered: shared.recovered,
            syncs: count(&shared.counters.syncs),
            trimmed_segments: count(&shared.counters.trimmed_segments),
            setbacks: count(&shared.counters.setbacks),
        }
    }

    /// Brings all to disk and closes the log, for all handles. Those that follow it get what is there
    /// and then its end. Blocks. What fails is reported, and the log is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        self.owner.close()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    fn settle(&self, seqs: Range<u64>, durability: Durability) -> Result<Range<u64>, LogError> {
        if !seqs.is_empty() {
            self.shared().settle(&seqs, durability)?;
        }
        Ok(seqs)
    }
}

/// Closes the log when it goes.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    hold: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl Owner {
    fn start_keeper(&self) -> Result<(), LogError> {
        let shared = self.shared.clone();
        let thread = thread::Builder::new()
            .name("log-keeper".to_owned())
            .stack_size(KEEPER_STACK);
        let keeper = thread.spawn(move || keeper::run(&shared));
        let keeper = keeper.map_err(|error| LogError::io("starting", "the log's thread", error))?;
        let _ = self.shared.keeper.set(keeper.thread().clone());
        *lock(&self.keeper) = Some(keeper);
        // What recovery found may not be on disk; those who follow what is durable wait for it.
        self.shared.sync_within(Duration::ZERO);
        Ok(())
    }

    fn close(&self) -> Result<(), LogError> {
        let mut hold = lock(&self.hold);
        if hold.is_none() {
            return Ok(());
        }
        self.shared.close();
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.thread().unpark();
            let _ = keeper.join();
        }
        let next = self.shared.published();
        let synced = self.shared.wait_durable(next);
        let done = synced
            .and_then(|()| self.shared.close_finished())
            .and_then(|()| self.shared.finish());
        *hold = None;
        done
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::debug!(error = &error as &dyn std::error::Error, "closing a log");
        }
    }
}

/// Makes ready what was found; a new segment where there is none to go on with.
fn start(
    files: Arc<dyn Files>,
    clock: Arc<dyn WallClock>,
    config: LogConfig,
    found: Found,
) -> Result<Start, LogError> {
    let Found {
        closed,
        mut open,
        next,
        last_time,
        report,
    } = found;
    let closed = closed.into_iter().map(|(base, bytes)| {
        (
            base,
            Slot {
                bytes,
                open: None,
                last_time: None,
            },
        )
    });
    let mut slots: BTreeMap<u64, Slot> = closed.collect();
    let (active, allocated) = match open.pop() {
        Some(End {
            segment, allocated, ..
        }) => (segment, allocated),
        None => (create(&*files, next)?, START),
    };
    let active = Arc::new(active);
    let mut writer = Writer::new(active.clone(), allocated, next, last_time);
    for End { segment, end, .. } in open {
        segment.close(end);
        let segment = Arc::new(segment);
        slots.insert(segment.base, open_slot(&segment));
        writer.add_unsynced(segment);
    }
    slots.insert(active.base, open_slot(&active));
    Ok(Start {
        files,
        clock,
        config,
        recovered: report,
        writer,
        slots,
    })
}

/// A first segment. Its name alone tells where the log starts, and must not be lost when later ones
/// are there.
fn create(files: &dyn Files, base: u64) -> Result<Segment, LogError> {
    let segment = Segment::create(files, base)?;
    files
        .sync()
        .map_err(|error| LogError::io("syncing", "the log's directory", error))?;
    Ok(segment)
}

fn open_slot(segment: &Arc<Segment>) -> Slot {
    Slot {
        bytes: segment.end(),
        open: Some(segment.clone()),
        last_time: None,
    }
}

fn locked(files: &dyn Files, error: LockError) -> LogError {
    match error {
        LockError::Held { pid } => LogError::InUse {
            dir: files.dir().to_owned(),
            pid,
        },
        LockError::Io(error) => LogError::io("locking", &files.dir().display().to_string(), error),
    }
}
