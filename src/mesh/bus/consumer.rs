//! The consumers' side: taking, polling with a cursor, waiting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Batch, Want};
use super::bell;
use super::config::MAX_CONSUMERS;
use super::cursor::Cursor;
use super::error::{ConsumerError, CursorError};
use super::hub::{Hub, Lane};
use super::seat::{Origin, Seat};
use super::stats::ConsumerCounts;

/// Longest name of a consumer, in bytes.
pub const MAX_NAME: usize = 64;

/// Where a new consumer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event that the bus holds.
    Oldest,
    /// With the next event that comes.
    Now,
    /// Where an earlier one stopped. What is gone by now counts as missed.
    At(Cursor),
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// There are events that this consumer has not been given.
    Events,
    /// The bus is closed and this consumer has been given everything.
    Closed,
}

/// One reader of a bus. Every consumer is given every event; clones of one consumer share its
/// events. Until a consumer confirms an event the bus holds it, so drop consumers that do not read:
/// with the last clone, its claims end.
#[derive(Clone)]
pub struct Consumer {
    seat: Arc<Seat>,
}

impl Consumer {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.seat.name
    }

    /// Gives the next events and confirms them at once. With clones, each event goes to one of them.
    pub fn take(&self, want: &Want) -> Batch {
        let mut batch = Batch::default();
        self.take_into(want, &mut batch);
        batch
    }

    /// As [`Self::take`], into the memory of an old batch.
    pub fn take_into(&self, want: &Want, batch: &mut Batch) {
        self.seat.fill(Origin::Read, true, want, batch);
    }

    /// Confirms all before `cursor`, and gives the events from there on; without a cursor, the events
    /// from the last confirmed one on. They stay until a later cursor confirms them, so the same
    /// cursor gives the same events again, unless [`super::Overflow::DropOldest`] had to drop them.
    /// Clones that poll are given the same events: to share them, take.
    pub fn poll(&self, cursor: Option<&Cursor>, want: &Want) -> Result<Batch, CursorError> {
        let mut batch = Batch::default();
        match cursor {
            None => self.seat.fill(Origin::Done, false, want, &mut batch),
            Some(cursor) => {
                self.confirm(cursor)?;
                self.seat
                    .fill(Origin::At(&cursor.next), false, want, &mut batch);
            }
        }
        Ok(batch)
    }

    /// Says that nothing before `cursor` is needed any more.
    pub fn confirm(&self, cursor: &Cursor) -> Result<(), CursorError> {
        self.seat.hub.check(cursor)?;
        let mut freed = false;
        for (lane, to) in self.seat.hub.shards.iter().zip(&cursor.next) {
            freed |= lane.lock().confirm(self.seat.place, *to);
        }
        if freed {
            self.seat.hub.room.ring();
        }
        Ok(())
    }

    /// Waits until there is something to [`Self::take`], or never will be.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped.
    pub async fn wait(&self) -> News {
        self.seat.hub.news.wait(|| self.seat.news()).await
    }

    /// As [`Self::wait`], for threads: sleeps, and gives `None` when `patience` is over.
    pub fn wait_blocking(&self, patience: Duration) -> Option<News> {
        bell::block_on(patience, self.wait())
    }

    /// The next events, as soon as there are any; `None` when the bus is closed and empty.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped: events are taken only when it ends.
    pub async fn next(&self, want: &Want) -> Option<Batch> {
        loop {
            let news = self.wait().await;
            let batch = self.take(want);
            if !batch.is_empty() {
                return Some(batch);
            }
            if news == News::Closed {
                return None;
            }
        }
    }

    /// Its counts, as they are now.
    pub fn counts(&self) -> ConsumerCounts {
        let mut sum = ConsumerCounts::default();
        for lane in &self.seat.hub.shards {
            sum += lane.lock().reader_counts(self.seat.place);
        }
        sum
    }

    pub(super) fn join(hub: &Arc<Hub>, name: &str, start: &Start) -> Result<Self, ConsumerError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(ConsumerError::Name {
                len: name.len(),
                max: MAX_NAME,
            });
        }
        if let Start::At(cursor) = start {
            hub.check(cursor)?;
        }
        let mut names = hub.names();
        let (place, name) = names.add(name)?;
        for (index, lane) in hub.shards.iter().enumerate() {
            let mut shard = lane.lock();
            let from = match start {
                Start::Oldest => shard.ring().first(),
                Start::Now => shard.ring().next(),
                Start::At(cursor) => cursor.next[index],
            };
            shard.join(place, from);
        }
        drop(names);
        Ok(Self {
            seat: Arc::new(Seat::new(hub.clone(), place, name)),
        })
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.seat.name)
            .finish_non_exhaustive()
    }
}

/// The consumers of a bus, by place. A place is given to a reader of the same index in every shard.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Option<Arc<str>>>);

impl Names {
    /// Places and names, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<str>)> + Clone {
        let places = self.0.iter().enumerate();
        places.filter_map(|(place, name)| Some((place, name.as_ref()?)))
    }

    pub(super) fn remove(&mut self, place: usize) {
        self.0[place] = None;
    }

    fn add(&mut self, name: &str) -> Result<(usize, Arc<str>), ConsumerError> {
        if self.iter().any(|(_, taken)| &**taken == name) {
            return Err(ConsumerError::NameTaken(name.to_owned()));
        }
        let free = self.0.iter().position(Option::is_none);
        let place = free.unwrap_or(self.0.len());
        if place == MAX_CONSUMERS {
            return Err(ConsumerError::TooMany);
        }
        self.0.resize(self.0.len().max(place + 1), None);
        let name: Arc<str> = name.into();
        self.0[place] = Some(name.clone());
        Ok((place, name))
    }
}

impl Hub {
    fn check(&self, cursor: &Cursor) -> Result<(), CursorError> {
        if cursor.bus != self.id || cursor.next.len() != self.shards.len() {
            return Err(CursorError::OtherBus);
        }
        let ahead = |(lane, next): (&Lane, &u64)| *next > lane.lock().ring().next();
        if self.shards.iter().zip(&cursor.next).any(ahead) {
            return Err(CursorError::Ahead);
        }
        Ok(())
    }
}
