//! What happens next: events in the order of their time, and of their making at equal times.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

/// A queue of events in virtual microseconds.
///
/// Events wait in slots of about a millisecond, unordered; only the slot that has come is sorted.
/// That is several times faster than one heap of a hundred thousand events.
#[derive(Debug)]
pub(super) struct Queue<T> {
    now: u64,
    made: u64,
    slot: u64,
    /// Events of the present slot, latest first.
    ready: Vec<Entry<T>>,
    /// Events of the present slot that were made after it had been sorted.
    fresh: BinaryHeap<Reverse<Entry<T>>>,
    later: BTreeMap<u64, Vec<Entry<T>>>,
    waiting: usize,
    spare: Vec<Vec<Entry<T>>>,
}

#[derive(Debug)]
struct Entry<T> {
    at: u64,
    made: u64,
    what: T,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            now: 0,
            made: 0,
            slot: 0,
            ready: Vec::new(),
            fresh: BinaryHeap::new(),
            later: BTreeMap::new(),
            waiting: 0,
            spare: Vec::new(),
        }
    }

    /// The time of the event that was taken last.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Events that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Lets something happen at `at`, or now if that has passed.
    pub(super) fn push(&mut self, at: u64, what: T) {
        let at = at.max(self.now);
        let entry = Entry {
            at,
            made: self.made,
            what,
        };
        self.made += 1;
        self.waiting += 1;
        let slot = at >> SLOT_BITS;
        if slot <= self.slot {
            self.fresh.push(Reverse(entry));
            return;
        }
        let spare = &mut self.spare;
        let waiting = self.later.entry(slot);
        waiting
            .or_insert_with(|| spare.pop().unwrap_or_default())
            .push(entry);
    }

    /// Takes the next event that is due by `end`.
    pub(super) fn pop(&mut self, end: u64) -> Option<T> {
        if self.ready.is_empty() && self.fresh.is_empty() {
            self.turn()?;
        }
        let ready = self.ready.last().map(|entry| (entry.at, entry.made));
        let fresh = self.fresh.peek().map(|entry| (entry.0.at, entry.0.made));
        let next = match (ready, fresh) {
            (Some(ready), Some(fresh)) => ready.min(fresh),
            (one, other) => one.or(other)?,
        };
        if next.0 > end {
            return None;
        }
        let entry = if Some(next) == ready {
            self.ready.pop()
        } else {
            self.fresh.pop().map(|entry| entry.0)
        }?;
        self.waiting -= 1;
        self.now = entry.at;
        Some(entry.what)
    }

    /// Turns to the next slot that holds something.
    fn turn(&mut self) -> Option<()> {
        let (slot, mut entries) = self.later.pop_first()?;
        entries.sort_unstable_by_key(|entry| Reverse((entry.at, entry.made)));
        let used = std::mem::replace(&mut self.ready, entries);
        if self.spare.len() < SPARE {
            self.spare.push(used);
        }
        self.slot = slot;
        Some(())
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.made == other.made
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.made).cmp(&(other.at, other.made))
    }
}

/// A slot is 1,024 microseconds.
const SLOT_BITS: u32 = 10;
/// Empty slots kept for reuse.
const SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::rng::Rng;

    #[test]
    fn events_come_in_the_order_of_time_and_of_their_making() {
        let mut rng = Rng::new(1, 1);
        let mut queue = Queue::new();
        for n in 0..2000u64 {
            queue.push(rng.within(&(0..=5000)), n);
        }
        let mut last = (0, 0);
        let mut left = 3000u64;
        let mut seen = 0;
        while let Some(n) = queue.pop(u64::MAX) {
            assert!((queue.now(), n) > last || seen == 0, "{last:?} {n}");
            last = (queue.now(), n);
            seen += 1;
            if left > 0 {
                left -= 1;
                let at = queue.now() + rng.within(&(0..=3000));
                queue.push(at, 10_000 + seen);
            }
        }
        assert_eq!((seen, queue.len()), (5000, 0));
    }

    #[test]
    fn what_is_due_later_stays() {
        let mut queue = Queue::new();
        queue.push(10, 'a');
        queue.push(2000, 'b');
        assert_eq!(queue.pop(1999), Some('a'));
        assert_eq!(queue.pop(1999), None);
        queue.push(1500, 'c');
        assert_eq!(queue.pop(1999), Some('c'));
        assert_eq!(queue.pop(1999), None);
        assert_eq!(queue.pop(2000), Some('b'));
    }
}
