//! What can go wrong on the bus, and whose fault it is.

use super::config::{MAX_BATCH, MAX_CONSUMERS, MAX_SHARD_BYTES, MAX_SHARD_EVENTS, MAX_SHARDS};

/// A bus was asked for that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusConfigError {
    /// Not a power of two, or out of range.
    #[error("a bus of {0} shards: give a power of two from 1 to {MAX_SHARDS}")]
    Shards(usize),
    /// Out of range.
    #[error("`max_events` is {0}: give a number from 1 to {MAX_SHARD_EVENTS}")]
    Events(usize),
    /// Out of range.
    #[error("`max_bytes` is {0}: give a number from 1 to {MAX_SHARD_BYTES}")]
    Bytes(usize),
}

/// An event, or a whole batch, was not taken. The producer still has it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The shard is full and the bus is set to fail the producer. Nothing of a batch was taken.
    #[error(
        "the bus is full: its consumers are behind; retry, wait with `send`, raise `max_events` \
         and `max_bytes`, or choose another overflow mode"
    )]
    Full,
    /// The bus was closed.
    #[error("the bus is closed and takes no more events")]
    Closed,
    /// One event is larger than a shard.
    #[error("an event of {len} bytes is larger than `max_bytes` ({max}) of a shard: raise it")]
    TooLarge {
        /// Bytes of the event.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A batch that would not fit even into an empty shard.
    #[error(
        "a batch of {events} events and {bytes} bytes never fits into a shard, or has more than \
         {MAX_BATCH} events: split it"
    )]
    BatchTooLarge {
        /// Events of the batch.
        events: usize,
        /// Bytes of the batch.
        bytes: usize,
    },
    /// A typed event has no JSON form.
    #[error("the event cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

/// A cursor cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// Not a text that a cursor printed.
    #[error(
        "this is no cursor of an event bus, or it is damaged: pass back exactly what a poll gave"
    )]
    Malformed,
    /// From another bus, or from before a restart: the bus is in memory.
    #[error(
        "this cursor is of another bus, or of this one before a restart: poll without a cursor"
    )]
    OtherBus,
    /// Points behind the newest event, which no cursor of this bus does.
    #[error(
        "this cursor points at events that do not exist yet: pass back exactly what a poll gave"
    )]
    Ahead,
}

/// A consumer could not be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The name is in use.
    #[error(
        "the bus has a consumer `{0}` already: clone that one to share its events, or choose another name"
    )]
    NameTaken(String),
    /// Empty or too long.
    #[error("a consumer's name has 1 to {max} bytes, this one has {len}")]
    Name {
        /// Bytes of the name.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The table is full.
    #[error("the bus has {MAX_CONSUMERS} consumers already: drop one")]
    TooMany,
    /// The place to start from is no place on this bus.
    #[error(transparent)]
    Cursor(#[from] CursorError),
}
