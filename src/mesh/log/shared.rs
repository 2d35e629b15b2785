//! What the handles of a log, its readers and its keeper share.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use meshwork_proto::ports::WallClock;

use super::config::{Durability, LogConfig};
use super::error::LogError;
use super::files::Files;
use super::recovery::Recovered;
use super::segment::Segment;
use super::sync::{Bell, GroupCommit, block_on, lock};
use super::writer::Writer;

/// `sync_by` when no sync is due.
const NEVER: u64 = u64::MAX;

/// The state of an open log.
pub(super) struct Shared {
    pub(super) files: Arc<dyn Files>,
    pub(super) clock: Arc<dyn WallClock>,
    pub(super) config: LogConfig,
    pub(super) recovered: Recovered,
    /// Locked before `slots` where both are.
    pub(super) writer: Mutex<Writer>,
    /// The segments by first record; never empty.
    pub(super) slots: Mutex<BTreeMap<u64, Slot>>,
    /// One at a time closes, drops and re-indexes segments.
    pub(super) upkeep: Mutex<()>,
    /// Records before this can be read.
    published: AtomicU64,
    /// Records before this are on disk.
    durable: AtomicU64,
    /// Bytes of segments appended since the log was opened, and how many of them are on disk.
    pub(super) appended: AtomicU64,
    pub(super) settled: AtomicU64,
    pub(super) commit: GroupCommit,
    /// Rung when records become visible, durable, and at the end.
    pub(super) news: Bell,
    pub(super) on_disk: Bell,
    failed: OnceLock<LogError>,
    closed: AtomicBool,
    pub(super) keeper: OnceLock<Thread>,
    /// The keeper was woken and has not begun.
    pub(super) kicked: AtomicBool,
    /// When a sync is due at the latest, in nanoseconds since `started`.
    sync_by: AtomicU64,
    started: Instant,
    pub(super) counters: Counters,
}

/// Counts since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: AtomicU64,
    pub(super) trimmed_segments: AtomicU64,
    /// Index writes and removals that failed, and were or will be made up for.
    pub(super) setbacks: AtomicU64,
}

/// One segment.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its file's length; of a segment that is open, as of when it was added.
    pub(super) bytes: u64,
    /// None once it is closed and its index tells all.
    pub(super) open: Option<Arc<Segment>>,
    /// The time of its last record in Unix milliseconds, once it is closed and somebody asked.
    pub(super) last_time: Option<u64>,
}

/// What a log was opened with.
pub(super) struct Start {
    pub(super) files: Arc<dyn Files>,
    pub(super) clock: Arc<dyn WallClock>,
    pub(super) config: LogConfig,
    pub(super) recovered: Recovered,
    pub(super) writer: Writer,
    pub(super) slots: BTreeMap<u64, Slot>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.files.dir())
            .field("next", &self.published())
            .field("durable", &self.durable())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(start: Start) -> Self {
        let next = start.writer.next;
        Self {
            files: start.files,
            clock: start.clock,
            config: start.config,
            recovered: start.recovered,
            writer: Mutex::new(start.writer),
            slots: Mutex::new(start.slots),
            upkeep: Mutex::default(),
            published: AtomicU64::new(next),
            // What recovery found may be in the kernel's memory only.
            durable: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            commit: GroupCommit::default(),
            news: Bell::default(),
            on_disk: Bell::default(),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
            keeper: OnceLock::new(),
            kicked: AtomicBool::new(false),
            sync_by: AtomicU64::new(NEVER),
            started: Instant::now(),
            counters: Counters::default(),
        }
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The first record that is left; the next one when none is.
    pub(super) fn first(&self) -> u64 {
        *lock(&self.slots).first_key_value().expect("never empty").0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ring();
    }

    /// An error if nothing can be appended any more.
    pub(super) fn check_open(&self) -> Result<(), LogError> {
        if self.is_closed() {
            return Err(LogError::Closed);
        }
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Refuses all further appends. Those who wait learn why.
    pub(super) fn fail(&self, error: LogError) {
        tracing::error!(dir = %self.files.dir().display(), error = &error as &dyn std::error::Error, "log takes no more records");
        let _ = self.failed.set(error);
        self.ring();
    }

    pub(super) fn publish(&self, next: u64) {
        self.published.store(next, Ordering::Release);
    }

    fn ring(&self) {
        self.news.ring();
        self.on_disk.ring();
    }

    /// Keeps the promise for records that were appended.
    pub(super) fn settle(&self, seqs: &Range<u64>, durability: Durability) -> Result<(), LogError> {
        if self.must_wait(seqs, durability) {
            self.commit.arrive();
            return self.wait_durable(seqs.end);
        }
        Ok(())
    }

    /// The same without blocking the thread.
    ///
    /// # Cancel safety
    /// When dropped the records stay appended, and get to disk some time.
    pub(super) async fn settle_async(
        &self,
        seqs: &Range<u64>,
        durability: Durability,
    ) -> Result<(), LogError> {
        if self.must_wait(seqs, durability) {
            self.commit.arrive();
            self.sync_within(Duration::ZERO);
            return self.until_durable(seqs.end).await;
        }
        Ok(())
    }

    /// Waits until the records before `seq` are on disk, for which others see.
    pub(super) async fn until_durable(&self, seq: u64) -> Result<(), LogError> {
        self.on_disk
            .wait(|| {
                self.is_durable(seq)
                    .or_else(|| self.is_closed().then_some(Err(LogError::Closed)))
            })
            .await
    }

    fn must_wait(&self, seqs: &Range<u64>, durability: Durability) -> bool {
        match durability {
            Durability::Never => false,
            Durability::Every(n) => seqs.end.saturating_sub(self.durable()) >= n.get(),
            Durability::Each => true,
            Durability::Within(time) => {
                self.sync_within(time);
                false
            }
        }
    }

    /// Waits until the records before `seq` are on disk, and syncs if nobody else does.
    pub(super) fn wait_durable(&self, seq: u64) -> Result<(), LogError> {
        self.commit.wait(
            || self.is_durable(seq),
            || {
                if let Err(error) = self.sync_now() {
                    self.fail(error);
                }
            },
        )
    }

    /// Whether all before `seq` is on disk; an error if it will not get there.
    fn is_durable(&self, seq: u64) -> Option<Result<(), LogError>> {
        if self.durable() >= seq {
            return Some(Ok(()));
        }
        self.failed.get().map(|error| Err(error.clone()))
    }

    /// Has the keeper sync within this time.
    pub(super) fn sync_within(&self, time: Duration) {
        let due = self.since_start(Instant::now() + time);
        // When it is due sooner anyway, the keeper knows.
        if self.sync_by.fetch_min(due, Ordering::AcqRel) > due {
            self.kick();
        }
    }

    /// No sync is due any more.
    pub(super) fn forget_sync(&self) {
        self.sync_by.store(NEVER, Ordering::Release);
    }

    /// When a sync is due.
    pub(super) fn sync_due(&self) -> Option<Instant> {
        let due = self.sync_by.load(Ordering::Acquire);
        (due != NEVER).then(|| self.started + Duration::from_nanos(due))
    }

    fn since_start(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.started).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER - 1).min(NEVER - 1)
    }

    /// Wakes the keeper.
    pub(super) fn kick(&self) {
        if !self.kicked.load(Ordering::Acquire)
            && !self.kicked.swap(true, Ordering::AcqRel)
            && let Some(keeper) = self.keeper.get()
        {
            keeper.unpark();
        }
    }

    /// Brings all visible records to disk. Called by one thread at a time, through `commit`.
    fn sync_now(&self) -> Result<(), LogError> {
        self.check_failed()?;
        // What is appended from here on asks anew.
        self.forget_sync();
        let plan = lock(&self.writer).plan_sync();
        for segment in &plan.closed {
            segment
                .file
                .sync()
                .map_err(|error| LogError::broken("syncing", &segment.name(), error))?;
        }
        let active = &plan.active;
        active
            .file
            .sync()
            .map_err(|error| LogError::broken("syncing", &active.name(), error))?;
        if plan.dir {
            let broken = |error| LogError::broken("syncing", "the log's directory", error);
            self.files.sync().map_err(broken)?;
        }
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        lock(&self.writer).synced(&plan);
        self.durable.fetch_max(plan.next, Ordering::AcqRel);
        self.settled.store(plan.appended, Ordering::Release);
        self.checkpoint(active, plan.offset);
        self.on_disk.ring();
        self.news.ring();
        if !plan.closed.is_empty() {
            self.kick();
        }
        Ok(())
    }

    fn check_failed(&self) -> Result<(), LogError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Stores the index entries of what is on disk, so that recovery need not look there.
    fn checkpoint(&self, segment: &Segment, synced: u64) {
        let mut index = lock(&segment.index);
        if let Err(error) = index.store(&*self.files, segment.base, synced) {
            self.setback(&error);
        }
    }

    /// Notes what failed but is no loss.
    pub(super) fn setback(&self, error: &LogError) {
        self.counters.setbacks.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(
            error = error as &dyn std::error::Error,
            "log upkeep is put off"
        );
    }

    /// Waits, on this thread, for what `ready` gives.
    pub(super) fn block_for_news<T>(
        &self,
        ready: impl FnMut() -> Option<T>,
        deadline: Option<Instant>,
    ) -> Option<T> {
        block_on(self.news.wait(ready), deadline)
    }
}
