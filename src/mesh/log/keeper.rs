//! The thread behind a log: it syncs when a sync is due, closes full segments and drops old ones.
//! It sleeps while there is nothing to do.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::LogError;
use super::index::ClosedIndex;
use super::segment::{START, Segment, index_name, log_name};
use super::shared::{Shared, Slot};
use super::sync::lock;

/// Segments that grow old are looked for this often at least, as the wall clock may jump, and not
/// more often than the second.
const AGE_CHECK: Duration = Duration::from_mins(1);
const SOONEST_AGE_CHECK: Duration = Duration::from_millis(50);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the log is closed.
pub(super) fn run(shared: &Shared) {
    let mut next = Some(Instant::now());
    while !shared.is_closed() {
        wait_until(shared, next);
        if shared.is_closed() {
            return;
        }
        next = shared.keep();
    }
}

/// Sleeps until a kick, `next`, or a sync that is due.
fn wait_until(shared: &Shared, next: Option<Instant>) {
    while !shared.is_closed() && !shared.kicked.swap(false, Ordering::AcqRel) {
        let due = [next, shared.sync_due()].into_iter().flatten().min();
        match due.map(|due| due.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return,
            Some(left) => thread::park_timeout(left),
        }
    }
}

impl Shared {
    /// Does what is due. Returns when to look again, apart from syncs.
    pub(super) fn keep(&self) -> Option<Instant> {
        let behind = self.appended.load(Ordering::Acquire) - self.settled.load(Ordering::Acquire);
        let due = self.sync_due().is_some_and(|due| due <= Instant::now());
        if self.check_open().is_err() {
            // What is due will never be done; the keeper must not come back for it.
            self.forget_sync();
            return None;
        }
        if due || behind >= super::writer::BACKGROUND_SYNC || self.has_unsynced() {
            // Who waits is told of a failure, as is who appends.
            let _ = self.wait_durable(self.published());
        }
        let kept = self.close_finished().and_then(|()| self.retain());
        if let Err(error) = &kept {
            self.setback(error);
            return Some(Instant::now() + RETRY);
        }
        self.next_age_check()
    }

    fn has_unsynced(&self) -> bool {
        !lock(&self.writer).plan_sync().closed.is_empty()
    }

    /// Gives segments that are full and on disk their final length and index.
    pub(super) fn close_finished(&self) -> Result<(), LogError> {
        let _one = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(segment) = lock(&self.writer).finished.first().cloned() else {
                return Ok(());
            };
            self.close_segment(&segment)?;
            lock(&self.writer).finished.remove(0);
        }
    }

    fn close_segment(&self, segment: &Segment) -> Result<(), LogError> {
        let end = segment.closed().expect("full segments are closed");
        let cut = segment
            .file
            .set_len(end.offset)
            .and_then(|()| segment.file.sync());
        cut.map_err(|error| LogError::io("cutting", &segment.name(), error))?;
        // Without its index it is read and recovered all the same. On a full disk there may be no room for
        // one, and what makes room is that old segments go.
        let indexed = lock(&segment.index).close(&*self.files, segment.base, end);
        if let Err(error) = indexed {
            self.setback(&error);
        }
        if let Some(slot) = lock(&self.slots).get_mut(&segment.base) {
            *slot = Slot {
                bytes: end.offset,
                open: None,
                last_time: Some(end.time),
            };
        }
        Ok(())
    }

    /// Drops the segments that retention does not keep.
    pub(super) fn retain(&self) -> Result<(), LogError> {
        let retention = self.config.retention;
        if let Some(age) = retention.age {
            self.roll_aged(age)?;
        }
        self.drop_while(|slots, last_time| {
            let (_, end) = oldest(slots)?;
            let newer = self.published().saturating_sub(end);
            let bytes: u64 = slots.values().skip(1).map(Slot::size).sum();
            let many = retention.records.is_some_and(|most| newer >= most);
            let large = retention.bytes.is_some_and(|most| bytes >= most);
            let old = retention
                .age
                .is_some_and(|age| self.is_older(last_time, age));
            Some(many || large || old)
        })
    }

    /// Drops the segments all of whose records come before `seq`.
    pub(super) fn trim(&self, seq: u64) -> Result<(), LogError> {
        self.drop_while(|slots, _| oldest(slots).map(|(_, end)| end <= seq))
    }

    /// Drops the oldest segment as long as it is closed and `old` says so of all segments and the time
    /// of the oldest one's last record.
    fn drop_while(
        &self,
        old: impl Fn(&BTreeMap<u64, Slot>, Option<u64>) -> Option<bool>,
    ) -> Result<(), LogError> {
        let _one = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let last_time = self.oldest_time();
            let (base, slot) = {
                let mut slots = lock(&self.slots);
                let closed = slots.len() > 1
                    && slots
                        .values()
                        .next()
                        .is_some_and(|slot| slot.open.is_none());
                if !closed || !old(&slots, last_time).unwrap_or(false) {
                    return Ok(());
                }
                slots.pop_first().expect("more than one")
            };
            if let Err(error) = self.remove(base) {
                lock(&self.slots).insert(base, slot);
                return Err(LogError::io("removing", &log_name(base), error));
            }
            self.counters
                .trimmed_segments
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a segment, durably before the next one goes: recovery takes a hole for damage.
    fn remove(&self, base: u64) -> io::Result<()> {
        let absent = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        // The name of the next one tells the next number, and must be there before this one goes.
        if lock(&self.writer).plan_sync().dir {
            self.files.sync()?;
        }
        self.files.remove(&log_name(base)).or_else(absent)?;
        self.files.remove(&index_name(base)).or_else(absent)?;
        self.files.sync()
    }

    /// The time of the oldest segment's last record, if it is closed.
    fn oldest_time(&self) -> Option<u64> {
        let base = {
            let slots = lock(&self.slots);
            let (base, slot) = slots.first_key_value()?;
            if slot.open.is_some()
                || slot.last_time.is_some()
                || self.config.retention.age.is_none()
            {
                return slot.last_time;
            }
            *base
        };
        let time = ClosedIndex::open(&*self.files, base)?.end.time;
        lock(&self.slots).get_mut(&base)?.last_time = Some(time);
        Some(time)
    }

    /// Closes the segment that is written to, when all in it is old: only closed ones are dropped.
    fn roll_aged(&self, age: Duration) -> Result<(), LogError> {
        let aged = self
            .active_time()
            .is_some_and(|time| self.is_older(Some(time), age));
        if aged {
            self.roll()?;
            self.wait_durable(self.published())?;
            self.close_finished()?;
        }
        Ok(())
    }

    fn is_older(&self, time: Option<u64>, age: Duration) -> bool {
        let now = self.clock.now().as_millis();
        time.is_some_and(|time| u128::from(now.saturating_sub(time)) > age.as_millis())
    }

    fn next_age_check(&self) -> Option<Instant> {
        let age = self.config.retention.age?;
        let now = self.clock.now().as_millis();
        let time = self.oldest_time().or_else(|| self.active_time());
        let gone = time.map_or(0, |time| now.saturating_sub(time));
        let left = age.saturating_sub(Duration::from_millis(gone));
        Some(Instant::now() + left.clamp(SOONEST_AGE_CHECK, AGE_CHECK))
    }
}

impl Slot {
    /// Bytes of the segment.
    pub(super) fn size(&self) -> u64 {
        self.open
            .as_ref()
            .map_or(self.bytes, |segment: &Arc<Segment>| {
                segment.end().max(START)
            })
    }
}

/// The first record of the oldest segment, and of the one after it.
fn oldest(slots: &BTreeMap<u64, Slot>) -> Option<(u64, u64)> {
    let mut bases = slots.keys();
    Some((*bases.next()?, *bases.next()?))
}
