//! What a poll asks for, and what it gives.

use serde::de::DeserializeOwned;

use super::config::MAX_BATCH;
use super::cursor::Cursor;
use super::filter::Filter;
use super::ring::Ring;

/// Default bound on the payload bytes of a batch.
const BATCH_BYTES: usize = 4 << 20;
/// Largest bound on the payload bytes of a batch, larger events apart.
const MAX_BATCH_BYTES: usize = 64 << 20;

/// The order of the events of a batch. Events of one shard always keep theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Shard by shard: the cheapest.
    #[default]
    Any,
    /// By the moment of ingest, over all shards, and from batch to batch: whichever call took the
    /// bus's lock first comes first. All shards are locked together for it.
    Time,
}

/// What a consumer wants of a poll.
#[derive(Debug, Clone, Default)]
pub struct Want {
    pub(super) limit: usize,
    pub(super) bytes: usize,
    pub(super) order: Order,
    pub(super) filter: Option<Filter>,
}

impl Want {
    /// At most `limit` events, 1..=[`MAX_BATCH`] (other numbers are brought into that range), and at
    /// most 4 MiB of payload.
    pub fn up_to(limit: usize) -> Self {
        Self {
            limit: limit.clamp(1, MAX_BATCH),
            bytes: BATCH_BYTES,
            ..Self::default()
        }
    }

    /// At most so many bytes of payload, up to 64 MiB; one event is always given, however large.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes.min(MAX_BATCH_BYTES);
        self
    }

    /// In this order.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Only those events. The others are passed over, and count as passed. A poll looks at about
    /// [`MAX_BATCH`] events at most, each of which is parsed, and may give nothing although there
    /// is more.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }
}

/// Events that a poll gave: a copy, so that keeping it holds nothing up.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    pub(super) cursor: Cursor,
    pub(super) missed: u64,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Where its payload ends in the batch's bytes.
    end: usize,
    /// Its sequence number in its shard.
    pub(super) sequence: u64,
    stamp: u64,
    pub(super) shard: u32,
    /// Whether its consumer is given it for the first time.
    pub(super) fresh: bool,
}

/// One event, as a consumer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// What the producer gave.
    pub payload: &'a [u8],
    /// The shard that held it.
    pub shard: u32,
    /// Its number in its shard, without gaps, from 0.
    pub sequence: u64,
    /// Its place in the order of ingest over all shards: larger is later.
    pub stamp: u64,
}

impl Event<'_> {
    /// The typed event that a producer gave to [`super::Bus::ingest_json`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.payload)
    }
}

impl Batch {
    /// Events in it.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Bytes of payload in it.
    pub fn payload(&self) -> usize {
        self.bytes.len()
    }

    /// The place behind its last event: where to go on.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Events between the place that was asked for and here that the bus could not give, because
    /// they had been dropped, or confirmed by this consumer before.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The event at `index`.
    pub fn get(&self, index: usize) -> Option<Event<'_>> {
        let mark = self.marks.get(index)?;
        let start = index.checked_sub(1).map_or(0, |last| self.marks[last].end);
        Some(Event {
            payload: &self.bytes[start..mark.end],
            shard: mark.shard,
            sequence: mark.sequence,
            stamp: mark.stamp,
        })
    }

    /// The events in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        let mut start = 0;
        self.marks.iter().map(move |mark| {
            let payload = &self.bytes[start..mark.end];
            start = mark.end;
            Event {
                payload,
                shard: mark.shard,
                sequence: mark.sequence,
                stamp: mark.stamp,
            }
        })
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
        self.missed = 0;
    }

    /// Adds the events `from..to` of a shard; those from `fresh` on are new to the consumer.
    pub(super) fn add(&mut self, ring: &Ring, shard: usize, from: u64, to: u64, fresh: u64) {
        let shard = u32::try_from(shard).expect("a bus has at most 64 shards");
        let start = self.bytes.len();
        ring.copy(from, to, &mut self.bytes);
        let mark = |(sequence, (end, stamp)): (u64, (u64, u64))| Mark {
            end: start + usize::try_from(end).expect("it is in memory"),
            sequence,
            stamp,
            shard,
            fresh: sequence >= fresh,
        };
        self.marks
            .extend((from..).zip(ring.entries(from, to)).map(mark));
    }

    /// Keeps of the events from `from` on those that `filter` likes; tells `gone` of the others.
    pub(super) fn sieve(&mut self, from: usize, filter: &Filter, mut gone: impl FnMut(&Mark)) {
        let mut start = from.checked_sub(1).map_or(0, |last| self.marks[last].end);
        let (mut kept, mut end) = (from, start);
        for index in from..self.marks.len() {
            let mut mark = self.marks[index];
            let range = start..mark.end;
            start = mark.end;
            if filter.matches(&self.bytes[range.clone()]) {
                let len = range.len();
                self.bytes.copy_within(range, end);
                end += len;
                mark.end = end;
                self.marks[kept] = mark;
                kept += 1;
            } else {
                gone(&mark);
            }
        }
        self.marks.truncate(kept);
        self.bytes.truncate(end);
    }
}
