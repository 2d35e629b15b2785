//! What the store remembers of one key: its latest announcement, and how far it may be trusted with
//! more.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{Grant, Timestamp};

use super::check::Head;
use crate::announcement::{Announcement, SignedAnnouncement};

/// How much longer than needed a version is remembered: in case our clock is set back, and because
/// an older announcement that we never saw may hold for longer than the latest, by
/// [`MAX_TTL`](super::MAX_TTL) at most.
const CLOCK_MARGIN: Duration = Duration::from_hours(1);

/// Milliseconds after which a key may send one more new version.
const REFILL: u64 = 1000;
/// New versions that a key may send at once, as milliseconds of [`REFILL`].
const BURST: u64 = 5 * REFILL;

/// What is remembered of a key that was once believed.
#[derive(Debug)]
pub(super) struct Record {
    /// Largest version seen.
    pub(super) version: u64,
    /// When the last of the announcements seen expires. Before this, forgetting the version would
    /// let an older one pass.
    ends: Timestamp,
    /// Milliseconds' worth of new versions that the key may still send: a bucket that fills.
    budget: u64,
    /// When `budget` was right.
    counted: Timestamp,
    /// Its latest announcement, while that holds.
    pub(super) held: Option<Held>,
}

/// An announcement that holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: u32,
    pub(super) expires: Timestamp,
    pub(super) body: Arc<Announcement>,
    pub(super) signed: Arc<SignedAnnouncement>,
    /// What its token was found to grant; none for our own.
    pub(super) grant: Option<Arc<Grant>>,
}

impl Record {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            version: 0,
            ends: now,
            budget: BURST,
            counted: now,
            held: None,
        }
    }

    /// Whether the key may send a new version now.
    pub(super) fn may_speak(&self, now: Timestamp) -> bool {
        self.budget_at(now) >= REFILL
    }

    /// Remembers a version, and charges the key for it.
    pub(super) fn saw(&mut self, head: &Head, now: Timestamp) {
        self.budget = self.budget_at(now).saturating_sub(REFILL);
        self.counted = self.counted.max(now);
        self.version = head.version;
        self.ends = self.ends.max(head.expires_at());
    }

    /// When the announcement expires or, without one, the record may be forgotten.
    pub(super) fn changes_at(&self) -> Timestamp {
        match &self.held {
            Some(held) => held.expires,
            None => self.ends.saturating_add(CLOCK_MARGIN),
        }
    }

    fn budget_at(&self, now: Timestamp) -> u64 {
        let passed = now.as_millis().saturating_sub(self.counted.as_millis());
        self.budget.saturating_add(passed).min(BURST)
    }
}
