//! How much a key may still say.

use meshwork_identity::Timestamp;

/// A bucket that fills by one word every `REFILL` milliseconds up to `BURST` words, and starts full.
#[derive(Debug)]
pub(crate) struct Allowance<const REFILL: u64, const BURST: u64> {
    /// Milliseconds' worth of words.
    budget: u64,
    /// When `budget` was right.
    counted: Timestamp,
}

impl<const REFILL: u64, const BURST: u64> Allowance<REFILL, BURST> {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            budget: REFILL * BURST,
            counted: now,
        }
    }

    /// Whether there is one word left.
    pub(crate) fn has_some(&self, now: Timestamp) -> bool {
        self.at(now) >= REFILL
    }

    /// Takes one word.
    pub(crate) fn charge(&mut self, now: Timestamp) {
        self.budget = self.at(now).saturating_sub(REFILL);
        self.counted = now;
    }

    fn at(&self, now: Timestamp) -> u64 {
        // A step of the clock counts as time either way. If one back did not, keys would be mute
        // until it has caught up: a whole day after one of a day.
        let passed = now.as_millis().abs_diff(self.counted.as_millis());
        self.budget.saturating_add(passed).min(REFILL * BURST)
    }
}
