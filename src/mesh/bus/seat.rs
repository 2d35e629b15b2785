//! How a consumer reads: from which place, in which order, through which filter.

use std::sync::Arc;

use super::batch::{Batch, Order, Want};
use super::config::MAX_BATCH;
use super::consumer::News;
use super::filter::Filter;
use super::hub::{Hub, Lane};
use super::shard::Shard;
use super::sync::{AtomicUsize, MutexGuard, Ordering};

/// A consumer's place, shared by its clones.
pub(super) struct Seat {
    pub(super) hub: Arc<Hub>,
    /// Index of its reader in every shard.
    pub(super) place: usize,
    pub(super) name: Arc<str>,
    /// The shard that the next poll looks at first, so that a busy one starves nobody.
    turn: AtomicUsize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut names = self.hub.names();
        for lane in &self.hub.shards {
            lane.lock().leave(self.place);
        }
        names.remove(self.place);
        drop(names);
        self.hub.room.ring();
    }
}

/// Where a poll reads from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// Behind what was handed out last.
    Read,
    /// Behind what was confirmed last.
    Done,
    /// There.
    At(&'a [u64]),
}

impl Seat {
    /// For a reader that has joined every shard.
    pub(super) fn new(hub: Arc<Hub>, place: usize, name: Arc<str>) -> Self {
        Self {
            hub,
            place,
            name,
            turn: AtomicUsize::new(0),
        }
    }

    /// Whether there is something to be handed out, or never will be.
    pub(super) fn news(&self) -> Option<News> {
        let mut closed = true;
        for lane in &self.hub.shards {
            let shard = lane.lock();
            if shard.read(self.place) < shard.ring().next() {
                return Some(News::Events);
            }
            closed &= shard.is_closed();
        }
        closed.then_some(News::Closed)
    }

    /// Fills a batch, through the filter if there is one.
    pub(super) fn fill(&self, from: Origin<'_>, confirm: bool, want: &Want, batch: &mut Batch) {
        batch.clear();
        batch.cursor.bus = self.hub.id;
        batch.cursor.next.clear();
        let Some(filter) = &want.filter else {
            return self.gather(from, confirm, want, batch);
        };
        let (mut looked_at, mut next) = (0, Vec::new());
        loop {
            let before = batch.len();
            let from = if looked_at == 0 {
                from
            } else {
                Origin::At(&next)
            };
            let from = if confirm { Origin::Read } else { from };
            self.gather(from, confirm, want, batch);
            let found = batch.len() - before;
            looked_at += found;
            self.sieve(before, filter, batch);
            if found == 0 || batch.len() >= want.limit || looked_at >= MAX_BATCH {
                return;
            }
            next.clone_from(&batch.cursor.next);
        }
    }

    /// Throws out what the filter refuses, and notes it.
    fn sieve(&self, from: usize, filter: &Filter, batch: &mut Batch) {
        let mut passed = vec![0; self.hub.shards.len()];
        batch.sieve(from, filter, |mark| {
            passed[mark.shard as usize] += u64::from(mark.fresh);
        });
        for (lane, events) in self.hub.shards.iter().zip(passed) {
            if events > 0 {
                lane.lock().pass(self.place, events);
            }
        }
    }

    /// Adds events to the batch until it is full, and sets its cursor behind them.
    fn gather(&self, from: Origin<'_>, confirm: bool, want: &Want, batch: &mut Batch) {
        batch.cursor.next.resize(self.hub.shards.len(), 0);
        let freed = match want.order {
            Order::Time if self.hub.shards.len() > 1 => self.by_time(from, confirm, want, batch),
            _ => self.by_shard(from, confirm, want, batch),
        };
        if freed {
            self.hub.room.ring();
        }
    }

    /// One shard after the other, each under its lock. Returns whether room was made.
    fn by_shard(&self, from: Origin<'_>, confirm: bool, want: &Want, batch: &mut Batch) -> bool {
        let shards = self.hub.shards.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut freed = false;
        for step in 0..shards {
            let index = turn.wrapping_add(step) & (shards - 1);
            let mut shard = self.hub.shards[index].lock();
            let start = self.begin(&shard, index, from, batch);
            let end = reach(&shard, start, u64::MAX, want, batch);
            batch.add(shard.ring(), index, start, end, shard.read(self.place));
            freed |= self.note(&mut shard, index, start, end, confirm, batch);
        }
        freed
    }

    /// All shards under their locks, so that no event can come between. Returns whether room was made.
    fn by_time(&self, from: Origin<'_>, confirm: bool, want: &Want, batch: &mut Batch) -> bool {
        let lanes = self.hub.shards.iter();
        let mut shards: Vec<MutexGuard<'_, Shard>> = lanes.map(Lane::lock).collect();
        let begin =
            |(index, shard): (usize, &MutexGuard<'_, Shard>)| self.begin(shard, index, from, batch);
        let starts: Vec<u64> = shards.iter().enumerate().map(begin).collect();
        let mut ends = starts.clone();
        // Whole runs: of the shard with the oldest event, all that are older than the other shards'.
        while let Some((index, until)) = oldest(&shards, &ends) {
            let shard = &shards[index];
            let end = reach(shard, ends[index], until, want, batch);
            if end == ends[index] {
                break;
            }
            batch.add(
                shard.ring(),
                index,
                ends[index],
                end,
                shard.read(self.place),
            );
            ends[index] = end;
        }
        let mut freed = false;
        for (index, shard) in shards.iter_mut().enumerate() {
            freed |= self.note(shard, index, starts[index], ends[index], confirm, batch);
        }
        freed
    }

    /// Where to begin in a shard; what is gone before that is missed.
    fn begin(&self, shard: &Shard, index: usize, from: Origin<'_>, batch: &mut Batch) -> u64 {
        let first = shard.ring().first();
        let wanted = match from {
            Origin::Read => shard.read_mark(self.place),
            Origin::Done => shard.done_mark(self.place),
            Origin::At(cursor) => cursor[index],
        };
        batch.missed += first.saturating_sub(wanted);
        wanted.max(first)
    }

    /// Notes that `start..end` of a shard was handed out. Returns whether room was made.
    fn note(
        &self,
        shard: &mut Shard,
        index: usize,
        start: u64,
        end: u64,
        confirm: bool,
        batch: &mut Batch,
    ) -> bool {
        batch.cursor.next[index] = end;
        shard.hand_out(self.place, start, end);
        confirm && shard.confirm(self.place, end)
    }
}

/// How far the batch takes events of a shard that are older than the stamp `until`.
fn reach(shard: &Shard, start: u64, until: u64, want: &Want, batch: &Batch) -> u64 {
    let events = want.limit.saturating_sub(batch.len());
    let bytes = want.bytes.saturating_sub(batch.payload()) as u64;
    shard
        .ring()
        .reach(start, events as u64, bytes, until, batch.is_empty())
}

/// The shard with the oldest event, and the stamp of the oldest event of the others.
fn oldest(shards: &[MutexGuard<'_, Shard>], ends: &[u64]) -> Option<(usize, u64)> {
    let mut oldest = None;
    let mut second = u64::MAX;
    for (index, (shard, next)) in shards.iter().zip(ends).enumerate() {
        if *next == shard.ring().next() {
            continue;
        }
        let stamp = shard.ring().stamp(*next);
        match oldest {
            Some((_, least)) if least < stamp => second = second.min(stamp),
            _ => {
                second = oldest.map_or(second, |(_, least)| least);
                oldest = Some((index, stamp));
            }
        }
    }
    oldest.map(|(index, _)| (index, second))
}
