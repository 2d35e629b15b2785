//! One shard: a ring, who has read how far, and the counts.
//!
//! Every method leaves `accepted = delivered + dropped + buffered` true, for the shard and for each
//! of its readers, and all of them run under the shard's lock: whoever looks, at any moment, sees
//! sums that add up. That is the whole trick behind the exact statistics.

use super::config::Overflow;
use super::ring::Ring;
use super::stats::{ConsumerCounts, Counts};

/// How far one consumer has read in one shard.
#[derive(Debug, Default, Clone)]
struct Reader {
    /// What it confirmed: all before this may be forgotten for its sake.
    done: u64,
    /// What it was handed: all before this counts as read.
    read: u64,
    /// `offered` and `waiting` are filled in when asked for.
    counts: ConsumerCounts,
    /// Where it began.
    start: u64,
}

/// How much of a batch is to be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// All of it fits, or will be made to fit.
    All,
    /// What fits; the rest is dropped.
    Some,
    /// Nothing: the producer keeps it.
    None,
}

/// The state behind a shard's lock.
#[derive(Debug)]
pub(super) struct Shard {
    ring: Ring,
    max_events: u64,
    max_bytes: u64,
    overflow: Overflow,
    closed: bool,
    /// Indexed by the consumer's place in the bus.
    readers: Vec<Option<Reader>>,
    /// All readers were handed what lies before this; never above `next`, and 0 without readers.
    all_read: u64,
    counts: Counts,
}

impl Shard {
    pub(super) fn new(max_events: usize, max_bytes: usize, overflow: Overflow) -> Self {
        Self {
            ring: Ring::new(),
            max_events: max_events as u64,
            max_bytes: max_bytes as u64,
            overflow,
            closed: false,
            readers: Vec::new(),
            all_read: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether an event of `len` bytes can be pushed with nothing else to think of.
    #[inline]
    pub(super) fn is_open_for(&self, len: u64) -> bool {
        !self.closed && self.fits(len)
    }

    /// Whether a batch that would fit into an empty shard can be pushed now.
    pub(super) fn room(&self, events: u64, bytes: u64) -> Room {
        let fits = self.ring.len() + events <= self.max_events
            && self.ring.payload() + bytes <= self.max_bytes;
        match self.overflow {
            _ if fits => Room::All,
            Overflow::DropOldest => Room::All,
            Overflow::DropNewest => Room::Some,
            Overflow::FailProducer => Room::None,
        }
    }

    /// How many events of these sizes fit, from the front.
    pub(super) fn fitting(&self, sizes: impl Iterator<Item = u64>) -> usize {
        let (mut events, mut bytes) = (self.ring.len(), self.ring.payload());
        let fits = |size: &u64| {
            events += 1;
            bytes += size;
            events <= self.max_events && bytes <= self.max_bytes
        };
        sizes.take_while(fits).count()
    }

    /// Takes an event in. Without room for it, the oldest make room.
    #[inline]
    pub(super) fn push(&mut self, payload: &[u8], stamp: u64) {
        let len = payload.len() as u64;
        if !self.fits(len) {
            self.evict_for(len);
        }
        self.ring.push(payload, stamp);
        self.counts.accepted += 1;
    }

    /// Counts events that were accepted only to be dropped.
    pub(super) fn drop_newest(&mut self, events: u64) {
        self.counts.accepted += events;
        self.counts.dropped_newest += events;
    }

    /// Counts events that were not accepted.
    pub(super) fn refuse(&mut self, events: u64) {
        self.counts.refused += events;
    }

    /// The oldest events go until one of `len` bytes fits. What all consumers were handed is
    /// delivered, even unconfirmed; the rest is dropped.
    #[cold]
    fn evict_for(&mut self, len: u64) {
        let first = self.ring.first();
        let over = (self.ring.payload() + len).saturating_sub(self.max_bytes);
        let fewest = u64::from(self.ring.len() >= self.max_events);
        let too_few = |&(end, _): &(u64, u64)| end < over;
        let smaller = self
            .ring
            .entries(first, self.ring.next())
            .take_while(too_few)
            .count() as u64;
        // Those that are not enough and one more; none for the bytes where there are some to spare.
        let to = first + fewest.max(if over > 0 { smaller + 1 } else { 0 });
        let (delivered, dropped) = self.forget(to);
        self.counts.delivered += delivered;
        self.counts.dropped_oldest += dropped;
    }

    /// Gives up what is still here, at the end. Returns how many events no consumer will ever see.
    pub(super) fn abandon(&mut self) -> u64 {
        let (delivered, dropped) = self.forget(self.ring.next());
        self.counts.delivered += delivered;
        self.counts.abandoned += dropped;
        dropped
    }

    /// Releases events before `to`; returns how many of them all consumers had read, and the rest.
    fn forget(&mut self, to: u64) -> (u64, u64) {
        let first = self.ring.first();
        let read = self.all_read.clamp(first, to) - first;
        self.ring.release(to);
        (read, to - first - read)
    }

    /// Adds a reader at `place`, which begins at `from`. What is gone by then counts as missed.
    pub(super) fn join(&mut self, place: usize, from: u64) {
        if self.readers.len() <= place {
            self.readers.resize(place + 1, None);
        }
        self.readers[place] = Some(Reader {
            done: from,
            read: from,
            start: from,
            counts: ConsumerCounts::default(),
        });
        self.settle();
    }

    /// Takes a reader away. What only it had not confirmed is delivered now.
    pub(super) fn leave(&mut self, place: usize) {
        self.readers[place] = None;
        self.settle();
    }

    /// What the reader is to be given next.
    pub(super) fn read(&self, place: usize) -> u64 {
        self.read_mark(place).max(self.ring.first())
    }

    /// The reader was handed all before this, which may be gone.
    pub(super) fn read_mark(&self, place: usize) -> u64 {
        self.reader(place).read
    }

    /// The reader confirmed all before this, which may be gone.
    pub(super) fn done_mark(&self, place: usize) -> u64 {
        self.reader(place).done
    }

    /// Notes that the reader was handed all before `to`, of which it is spared what lies before `from`.
    pub(super) fn hand_out(&mut self, place: usize, from: u64, to: u64) {
        let first = self.ring.first();
        let reader = self.reader_mut(place);
        let read = reader.read;
        if to <= read {
            return;
        }
        // Gone before it was read; skipped by a cursor that points further; handed out.
        let gone = first.clamp(read, to);
        let begin = from.clamp(gone, to);
        reader.counts.missed += gone - read;
        reader.counts.passed += begin - gone;
        reader.counts.taken += to - begin;
        reader.read = to;
        self.note_read();
    }

    /// The reader did not want this many of those that it was handed.
    pub(super) fn pass(&mut self, place: usize, events: u64) {
        let counts = &mut self.reader_mut(place).counts;
        counts.taken -= events;
        counts.passed += events;
    }

    /// Notes that the reader needs nothing before `to` any more. Returns whether room was made.
    pub(super) fn confirm(&mut self, place: usize, to: u64) -> bool {
        // Whoever confirms what it was not handed skips it.
        self.hand_out(place, to, to);
        let reader = self.reader_mut(place);
        if to <= reader.done {
            return false;
        }
        reader.done = to;
        self.release_done()
    }

    /// The counts of this shard as they are now.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            buffered: self.ring.len(),
            buffered_bytes: self.ring.payload(),
            memory: self.ring.memory() as u64,
            ..self.counts
        }
    }

    /// The counts of one reader as they are now.
    pub(super) fn reader_counts(&self, place: usize) -> ConsumerCounts {
        let reader = self.reader(place);
        let read = self.read(place);
        ConsumerCounts {
            offered: self.ring.next() - reader.start.min(self.ring.next()),
            missed: reader.counts.missed + (read - reader.read),
            waiting: self.ring.next() - read,
            unconfirmed: read - reader.done.clamp(self.ring.first(), read),
            ..reader.counts
        }
    }

    #[inline]
    fn fits(&self, len: u64) -> bool {
        self.ring.len() < self.max_events && self.ring.payload() + len <= self.max_bytes
    }

    /// Whether a reader lives here.
    pub(super) fn has_readers(&self) -> bool {
        self.readers.iter().any(Option::is_some)
    }

    fn reader(&self, place: usize) -> &Reader {
        self.readers[place]
            .as_ref()
            .expect("a consumer keeps its readers")
    }

    fn reader_mut(&mut self, place: usize) -> &mut Reader {
        self.readers[place]
            .as_mut()
            .expect("a consumer keeps its readers")
    }

    fn settle(&mut self) {
        self.note_read();
        self.release_done();
    }

    fn note_read(&mut self) {
        let read = self.readers.iter().flatten().map(|reader| reader.read);
        self.all_read = read.min().unwrap_or(0);
    }

    fn release_done(&mut self) -> bool {
        let done = self.readers.iter().flatten().map(|reader| reader.done);
        let done = done.min().unwrap_or(0).min(self.ring.next());
        let first = self.ring.first();
        if done <= first {
            return false;
        }
        self.ring.release(done);
        self.counts.delivered += done - first;
        true
    }
}
