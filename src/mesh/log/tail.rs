//! Following a log: first what is there, then what is appended, without gap or repetition.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use meshwork_identity::Timestamp;
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::LogError;
use super::read::{Batch, Cursor, Records, closed_index};
use super::record::Record;
use super::segment::log_name;
use super::shared::Shared;
use super::sync::lock;

/// Which records a [`Tail`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Follow {
    /// All, as soon as they are appended. When the power is lost, one that was read may be gone and
    /// its number be another record's.
    #[default]
    Appended,
    /// Those that are on disk: what was read stays. Waits for syncs and causes none.
    Durable,
}

/// A reader that follows a log. It holds no records back and none are kept for it: one that is slow
/// reads older files. Only retention can overtake it, and then it is told ([`LogError::Trimmed`]).
///
/// After an error the reader is where it was; [`Tail::seek`] takes it on.
#[derive(Debug)]
pub struct Tail {
    shared: Arc<Shared>,
    follow: Follow,
    /// The next record to read.
    seq: u64,
    /// None while `reading`, or when that was lost with its runtime.
    cursor: Option<Cursor>,
    /// A read that may wait for the disk, on a thread made for that.
    reading: Option<Reading>,
    /// Records that were read and not yet given out by [`Tail::next`].
    current: Option<Records>,
}

impl Tail {
    pub(super) fn new(shared: Arc<Shared>, from: u64, follow: Follow) -> Result<Self, LogError> {
        let cursor = Cursor::new(shared.clone(), from)?;
        Ok(Self {
            shared,
            follow,
            seq: from,
            cursor: Some(cursor),
            reading: None,
            current: None,
        })
    }

    /// The number of the next record that this gives.
    pub fn position(&self) -> u64 {
        self.seq
    }

    /// Goes on from another record, which exists or comes next.
    pub fn seek(&mut self, seq: u64) -> Result<(), LogError> {
        self.cursor = Some(Cursor::new(self.shared.clone(), seq)?);
        (self.seq, self.reading, self.current) = (seq, None, None);
        Ok(())
    }

    /// The next records, as many as are there (up to some 256 KiB); waits for one at least. None: the
    /// log was closed, and all was read.
    ///
    /// Reads older files on tokio's blocking threads, so that it must run within a runtime.
    ///
    /// # Cancel safety
    /// No record is lost when this is dropped: the next call gives it.
    pub async fn next_batch(&mut self) -> Result<Option<Batch>, LogError> {
        loop {
            if let Some(batch) = self.take_current() {
                return Ok(Some(batch));
            }
            if let Some(reading) = &mut self.reading {
                let done = reading.await;
                self.reading = None;
                let Ok((cursor, batch)) = done else {
                    return Err(LogError::Closed);
                };
                self.cursor = Some(cursor);
                if let Some(batch) = batch? {
                    return Ok(Some(self.passed(batch)));
                }
            }
            let Some(limit) = self.shared.news.wait(|| self.limit()).await else {
                return Ok(None);
            };
            let mut cursor = self.cursor()?;
            if cursor.is_cold() {
                self.reading = Some(spawn_blocking(move || {
                    let batch = cursor.read(limit);
                    (cursor, batch)
                }));
                continue;
            }
            let batch = cursor.read(limit);
            self.cursor = Some(cursor);
            if let Some(batch) = batch? {
                return Ok(Some(self.passed(batch)));
            }
        }
    }

    /// The same on this thread, which waits until `deadline` at most. None: it passed, or the log was
    /// closed and all was read ([`Tail::is_finished`] tells which).
    pub fn next_batch_blocking(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Batch>, LogError> {
        if let Some(batch) = self.take_current() {
            return Ok(Some(batch));
        }
        loop {
            let Some(Some(limit)) = self.shared.block_for_news(|| self.limit(), deadline) else {
                return Ok(None);
            };
            let mut cursor = self.cursor()?;
            let batch = cursor.read(limit);
            self.cursor = Some(cursor);
            if let Some(batch) = batch? {
                return Ok(Some(self.passed(batch)));
            }
        }
    }

    /// The next record; waits for it. None: the log was closed, and all was read.
    ///
    /// # Cancel safety
    /// No record is lost when this is dropped: the next call gives it.
    pub async fn next(&mut self) -> Result<Option<Record>, LogError> {
        loop {
            if let Some(record) = self.current.as_mut().and_then(Iterator::next) {
                self.seq = record.seq + 1;
                return Ok(Some(record));
            }
            self.current = None;
            let before = self.seq;
            let Some(batch) = self.next_batch().await? else {
                return Ok(None);
            };
            self.seq = before;
            self.current = Some(batch.into_iter());
        }
    }

    /// Whether the log was closed and all was read.
    pub fn is_finished(&self) -> bool {
        self.shared.is_closed() && self.seq >= self.end()
    }

    /// What [`Tail::next`] has read ahead.
    fn take_current(&mut self) -> Option<Batch> {
        let batch = self.current.take()?.rest()?;
        Some(self.passed(batch))
    }

    fn passed(&mut self, batch: Batch) -> Batch {
        self.seq = batch.seqs().end;
        batch
    }

    /// The cursor, made anew where the one that was is lost.
    fn cursor(&mut self) -> Result<Cursor, LogError> {
        match self.cursor.take().filter(|cursor| cursor.seq == self.seq) {
            Some(cursor) => Ok(cursor),
            None => Cursor::new(self.shared.clone(), self.seq),
        }
    }

    fn end(&self) -> u64 {
        match self.follow {
            Follow::Appended => self.shared.published(),
            Follow::Durable => self.shared.durable(),
        }
    }

    /// Up to where records can be read, if there are any; `Some(None)` when none will come.
    #[expect(clippy::option_option, reason = "the outer one is for the bell")]
    fn limit(&self) -> Option<Option<u64>> {
        // In this order: what was appended before the end is still read.
        let closed = self.shared.is_closed();
        let end = self.end();
        if self.seq < end {
            return Some(Some(end));
        }
        closed.then_some(None)
    }
}

/// A read on another thread, which gives the cursor back.
type Reading = JoinHandle<(Cursor, Result<Option<Batch>, LogError>)>;

/// The records of a range, read while they are asked for.
#[derive(Debug)]
pub struct Scan {
    cursor: Cursor,
    end: u64,
    current: Option<Records>,
    failed: bool,
}

impl Scan {
    pub(super) fn new(shared: &Arc<Shared>, range: Range<u64>) -> Result<Self, LogError> {
        let end = range.end.min(shared.published());
        let cursor = Cursor::new(shared.clone(), range.start)?;
        Ok(Self {
            cursor,
            end,
            current: None,
            failed: false,
        })
    }

    /// The next records, many at once. Not to be mixed with the iterator.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, LogError> {
        self.cursor.read(self.end)
    }
}

impl Iterator for Scan {
    type Item = Result<Record, LogError>;

    /// The next record. Nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            if let Some(record) = self.current.as_mut().and_then(Iterator::next) {
                return Some(Ok(record));
            }
            match self.cursor.read(self.end) {
                Ok(batch) => self.current = Some(batch?.into_iter()),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// The first record whose time is not before `time`; the next one's number when there is none.
pub(super) fn seq_at(shared: &Arc<Shared>, time: Timestamp) -> Result<u64, LogError> {
    let millis = time.as_millis();
    loop {
        let bases: Vec<u64> = lock(&shared.slots).keys().copied().collect();
        // The last segment that starts before then; what starts later is later.
        let mut failed = None;
        let n = bases.partition_point(|base| match starts_before(shared, *base, millis) {
            Ok(before) => before,
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        match failed {
            // Retention has dropped one of them meanwhile.
            Some(LogError::Trimmed { first }) if bases[0] < first => continue,
            Some(error) => return Err(error),
            None => {}
        }
        let Some(base) = n.checked_sub(1).map(|n| bases[n]) else {
            return Ok(bases[0]);
        };
        return find_in(shared, base, millis);
    }
}

fn starts_before(shared: &Arc<Shared>, base: u64, millis: u64) -> Result<bool, LogError> {
    let mut scan = Scan::new(shared, base..base + 1)?;
    Ok(scan
        .next_batch()?
        .and_then(|batch| batch.iter().next().map(|record| record.time.as_millis()))
        .is_some_and(|time| time < millis))
}

/// Looks in the segment from `base` on, whose first record is before `millis`.
fn find_in(shared: &Arc<Shared>, base: u64, millis: u64) -> Result<u64, LogError> {
    let earlier = |entry: &super::index::Entry| entry.time < millis;
    let (open, bytes, next) = {
        let slots = lock(&shared.slots);
        let Some(slot) = slots.get(&base) else {
            let first = *slots.first_key_value().expect("never empty").0;
            return Err(LogError::Trimmed { first });
        };
        let next = slots.range(base + 1..).next().map(|(base, _)| *base);
        (slot.open.clone(), slot.bytes, next)
    };
    let name = log_name(base);
    let reading = |error| LogError::io("reading", &name, error);
    let (seq, end) = if let Some(segment) = &open {
        (lock(&segment.index).last(earlier), shared.published())
    } else {
        let file = shared.files.open(&name).map_err(reading)?;
        let index = closed_index(shared, base, &*file, bytes, next).map_err(reading)?;
        (
            index.last(earlier),
            next.unwrap_or_else(|| shared.published()),
        )
    };
    let from = seq.map_or(base, |entry| entry.seq);
    let mut scan = Scan::new(shared, from..end)?;
    while let Some(batch) = scan.next_batch()? {
        if let Some(found) = batch
            .iter()
            .find(|record| record.time.as_millis() >= millis)
        {
            return Ok(found.seq);
        }
    }
    Ok(end)
}
