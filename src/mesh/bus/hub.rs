//! The bus itself: the producers' side, closing, and the counts.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::bell::Bell;
use super::config::{BusConfig, MAX_BATCH, Overflow};
use super::consumer::{Consumer, Names, Start};
use super::error::{BusConfigError, ConsumerError, IngestError};
use super::shard::{Room, Shard};
use super::stats::{BusStats, ConsumerCounts, Counts};
use super::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};

/// Where a thread keeps the buffer for typed events; a larger one is given back after use.
const MAX_SCRATCH: usize = 64 << 10;

/// An event bus, to be cloned for each producer. When the last clone is dropped, the bus closes:
/// consumers read what is left and then hear that it is over.
#[derive(Clone)]
pub struct Bus {
    hub: Arc<Hub>,
    /// Closes the bus when the last producer is gone.
    _producers: Arc<Closer>,
}

/// What became of events that the bus took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Buffered for the consumers.
    pub kept: u64,
    /// Dropped at once, for want of room ([`Overflow::DropNewest`]).
    pub dropped: u64,
}

/// How draining went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Events that some consumer never saw. 0 when all went well.
    pub abandoned: u64,
}

impl Bus {
    /// A bus that nobody reads yet. Its cursors are good for this bus only.
    pub fn new(config: BusConfig) -> Result<Self, BusConfigError> {
        // An id is for telling buses apart; where the system has no chance to give, all are 0.
        Self::with_id(config, getrandom::u64().unwrap_or_default())
    }

    /// As [`Self::new`], with the id that its cursors carry.
    pub fn with_id(config: BusConfig, id: u64) -> Result<Self, BusConfigError> {
        config.check()?;
        let shard = || Shard::new(config.max_events, config.max_bytes, config.overflow);
        let hub = Arc::new(Hub {
            shards: (0..config.shards)
                .map(|_| Lane(Mutex::new(shard())))
                .collect(),
            id,
            config,
            stamps: Padded(AtomicU64::new(0)),
            news: Bell::default(),
            room: Bell::default(),
            names: Mutex::default(),
        });
        let producers = Arc::new(Closer(hub.clone()));
        Ok(Self {
            hub,
            _producers: producers,
        })
    }

    /// Its bounds.
    pub fn config(&self) -> &BusConfig {
        &self.hub.config
    }

    /// Takes one event, into the shard of this thread.
    #[inline]
    pub fn ingest(&self, payload: &[u8]) -> Result<Taken, IngestError> {
        self.hub.push(self.hub.home(), payload)
    }

    /// Takes one event, into the shard of `key`: events of one key keep their order, whichever
    /// thread they come from.
    pub fn ingest_keyed(&self, key: impl Hash, payload: &[u8]) -> Result<Taken, IngestError> {
        self.hub.push(self.hub.shard_of(key), payload)
    }

    /// Takes a typed event, as JSON: consumers in every language and [`super::Filter`] read it.
    pub fn ingest_json<T: Serialize + ?Sized>(&self, event: &T) -> Result<Taken, IngestError> {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        // Taken out, not borrowed: `event` may itself ingest while it is written.
        let mut buffer = SCRATCH.take();
        buffer.clear();
        serde_json::to_writer(&mut buffer, event).map_err(IngestError::Json)?;
        let taken = self.ingest(&buffer);
        if buffer.capacity() <= MAX_SCRATCH {
            SCRATCH.set(buffer);
        }
        taken
    }

    /// Takes up to [`MAX_BATCH`] events next to each other, into the shard of this thread.
    ///
    /// A bus that fails the producer takes all of them or none. One that drops the newest takes as
    /// many as there is room for, from the front.
    pub fn ingest_batch<T: AsRef<[u8]>>(&self, events: &[T]) -> Result<Taken, IngestError> {
        self.hub.push_batch(self.hub.home(), events)
    }

    /// Takes one event, and waits for room where [`Self::ingest`] fails with [`IngestError::Full`].
    ///
    /// # Cancel safety
    /// When dropped, the event was not taken.
    pub async fn send(&self, payload: &[u8]) -> Result<Taken, IngestError> {
        let home = self.hub.home();
        let attempt = || match self.hub.try_push(home, payload) {
            Err(IngestError::Full) => None,
            other => Some(other),
        };
        self.hub.room.wait(attempt).await
    }

    /// A consumer that begins with the oldest event held.
    pub fn consumer(&self, name: &str) -> Result<Consumer, ConsumerError> {
        Consumer::join(&self.hub, name, &Start::Oldest)
    }

    /// A consumer that begins at a place of your choice.
    pub fn consumer_at(&self, name: &str, start: &Start) -> Result<Consumer, ConsumerError> {
        Consumer::join(&self.hub, name, start)
    }

    /// Takes no more events. What is held can still be read.
    pub fn close(&self) {
        self.hub.close();
    }

    /// Closes, and waits until every consumer has confirmed everything, or `patience` is over, or
    /// there is no consumer; what is left then is given up and counted.
    ///
    /// # Cancel safety
    /// When dropped, the bus is closed and still holds what was not read.
    pub async fn drain(&self, patience: Duration) -> Drained {
        self.close();
        let empty = self.hub.room.wait(|| self.hub.is_empty().then_some(()));
        // Over time or not: what is left is counted below.
        let _ = tokio::time::timeout(patience, empty).await;
        let abandoned = self.hub.shards.iter().map(|lane| lane.lock().abandon());
        let drained = Drained {
            abandoned: abandoned.sum(),
        };
        self.hub.room.ring();
        drained
    }

    /// The counts, as they are now.
    pub fn stats(&self) -> BusStats {
        self.hub.stats()
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("id", &self.hub.id)
            .field("config", &self.hub.config)
            .finish_non_exhaustive()
    }
}

/// What producers and consumers share. Locks are taken in this order: names, then shards by index.
pub(super) struct Hub {
    pub(super) id: u64,
    config: BusConfig,
    pub(super) shards: Box<[Lane]>,
    /// The next place in the order of all shards. Drawn under a shard's lock; unused with one shard.
    stamps: Padded<AtomicU64>,
    /// Rung when there is something to read, or nothing will ever come.
    pub(super) news: Bell,
    /// Rung when events were released.
    pub(super) room: Bell,
    /// The consumers.
    pub(super) names: Mutex<Names>,
}

/// One shard with its lock, on cache lines of its own.
#[repr(align(128))]
pub(super) struct Lane(Mutex<Shard>);

#[repr(align(128))]
struct Padded<T>(T);

struct Closer(Arc<Hub>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Lane {
    /// Nothing of ours panics under the lock, so a poisoned one is as good as any.
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Shard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    #[inline]
    fn push(&self, home: usize, payload: &[u8]) -> Result<Taken, IngestError> {
        let taken = self.try_push(home, payload);
        if taken.is_err() {
            self.shards[home].lock().refuse(1);
        }
        taken
    }

    #[inline]
    fn try_push(&self, home: usize, payload: &[u8]) -> Result<Taken, IngestError> {
        let mut shard = self.shards[home].lock();
        if !shard.is_open_for(payload.len() as u64)
            && let Some(outcome) = self.without_room(&mut shard, payload.len())
        {
            return outcome;
        }
        let stamp = self.stamps(&shard, 1);
        shard.push(payload, stamp);
        drop(shard);
        self.news.ring();
        Ok(Taken {
            kept: 1,
            dropped: 0,
        })
    }

    /// What happens to an event that does not simply fit; `None`: room is made for it.
    #[cold]
    fn without_room(&self, shard: &mut Shard, len: usize) -> Option<Result<Taken, IngestError>> {
        let max = self.config.max_bytes;
        if shard.is_closed() {
            return Some(Err(IngestError::Closed));
        }
        if len > max {
            return Some(Err(IngestError::TooLarge { len, max }));
        }
        match self.config.overflow {
            Overflow::DropOldest => None,
            Overflow::FailProducer => Some(Err(IngestError::Full)),
            Overflow::DropNewest => {
                shard.drop_newest(1);
                Some(Ok(Taken {
                    kept: 0,
                    dropped: 1,
                }))
            }
        }
    }

    fn push_batch<T: AsRef<[u8]>>(&self, home: usize, events: &[T]) -> Result<Taken, IngestError> {
        let mut shard = self.shards[home].lock();
        let fit = self
            .fitting(&shard, events)
            .inspect_err(|_| shard.refuse(events.len() as u64))?;
        let (kept, dropped) = events.split_at(fit);
        let stamp = self.stamps(&shard, kept.len() as u64);
        for (stamp, event) in (stamp..).zip(kept) {
            shard.push(event.as_ref(), stamp);
        }
        shard.drop_newest(dropped.len() as u64);
        drop(shard);
        self.news.ring();
        Ok(Taken {
            kept: kept.len() as u64,
            dropped: dropped.len() as u64,
        })
    }

    /// How many events of a batch are to be pushed.
    fn fitting<T: AsRef<[u8]>>(&self, shard: &Shard, events: &[T]) -> Result<usize, IngestError> {
        let sizes = || events.iter().map(|event| event.as_ref().len());
        if shard.is_closed() {
            return Err(IngestError::Closed);
        }
        let max = self.config.max_bytes;
        let (mut bytes, mut largest) = (0, 0);
        for len in sizes() {
            bytes += len;
            largest = largest.max(len);
        }
        if largest > max {
            return Err(IngestError::TooLarge { len: largest, max });
        }
        if events.len() > MAX_BATCH || events.len() > self.config.max_events || bytes > max {
            return Err(IngestError::BatchTooLarge {
                events: events.len(),
                bytes,
            });
        }
        match shard.room(events.len() as u64, bytes as u64) {
            Room::All => Ok(events.len()),
            Room::None => Err(IngestError::Full),
            Room::Some => Ok(shard.fitting(sizes().map(|len| len as u64))),
        }
    }

    /// Draws so many places in the order of all shards. One shard's own order is that order.
    #[inline]
    fn stamps(&self, shard: &Shard, events: u64) -> u64 {
        if self.shards.len() == 1 {
            shard.ring().next()
        } else {
            self.stamps.0.fetch_add(events, Ordering::Relaxed)
        }
    }

    /// The shard of this thread: threads are dealt out in turn.
    #[inline]
    fn home(&self) -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static HOME: Cell<Option<usize>> = const { Cell::new(None) };
        }
        if self.shards.len() == 1 {
            return 0;
        }
        let home = HOME.get().unwrap_or_else(|| {
            let home = THREADS.fetch_add(1, Ordering::Relaxed);
            HOME.set(Some(home));
            home
        });
        home & (self.shards.len() - 1)
    }

    fn shard_of(&self, key: impl Hash) -> usize {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let low = hasher.finish() & (self.shards.len() as u64 - 1);
        usize::try_from(low).expect("less than the number of shards")
    }

    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        for lane in &self.shards {
            lane.lock().close();
        }
        self.news.ring();
        self.room.ring();
    }

    /// Whether no consumer waits for anything.
    fn is_empty(&self) -> bool {
        self.shards.iter().all(|lane| {
            let shard = lane.lock();
            shard.ring().len() == 0 || !shard.has_readers()
        })
    }

    fn stats(&self) -> BusStats {
        let names = self.names();
        let mut stats = BusStats {
            consumers: names
                .iter()
                .map(|(_, name)| (name.clone(), ConsumerCounts::default()))
                .collect(),
            ..BusStats::default()
        };
        for lane in &self.shards {
            let shard = lane.lock();
            let counts: Counts = shard.counts();
            stats.total += counts;
            stats.shards.push(counts);
            for ((place, _), (_, sum)) in names.iter().zip(&mut stats.consumers) {
                *sum += shard.reader_counts(place);
            }
        }
        stats
    }
}
