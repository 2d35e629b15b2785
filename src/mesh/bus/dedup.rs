//! Telling on the reading side whether an event came before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Remembers the ids of the last events that it was asked about.
///
/// An exporter that had no answer sends again, so an entry may be in a Redis stream twice, with the
/// same `dedup_id`. Give each entry's id to [`Self::is_duplicate`], and skip the entry when it says
/// so. Make the capacity larger than the number of entries within the time that a retry can take:
/// 10,000 events a second and a minute of it are 600,000. One for each consumer; not shared.
#[derive(Debug)]
pub struct RedisStreamDedup {
    capacity: usize,
    /// When each id was last asked about, counted in questions.
    seen: HashMap<Arc<str>, u64>,
    /// The same, oldest first.
    order: BTreeMap<u64, Arc<str>>,
    questions: u64,
}

impl RedisStreamDedup {
    /// Ids that are remembered when nothing else is said.
    pub const DEFAULT_CAPACITY: usize = 4096;
    /// Most ids that can be remembered.
    pub const MAX_CAPACITY: usize = 1 << 24;

    /// Remembers up to `capacity` ids, at least 1 and at most [`Self::MAX_CAPACITY`]. A new id pushes
    /// out the one that was asked about longest ago.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.clamp(1, Self::MAX_CAPACITY),
            seen: HashMap::new(),
            order: BTreeMap::new(),
            questions: 0,
        }
    }

    /// Whether `id` is remembered. It is from now on.
    pub fn is_duplicate(&mut self, id: &str) -> bool {
        self.questions += 1;
        if let Some(asked) = self.seen.get_mut(id) {
            let id = self
                .order
                .remove(asked)
                .expect("each id seen has its place in the order");
            *asked = self.questions;
            self.order.insert(self.questions, id);
            return true;
        }
        if self.seen.len() == self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.seen.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        self.seen.insert(id.clone(), self.questions);
        self.order.insert(self.questions, id);
        false
    }

    /// Ids remembered.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Ids that can be remembered.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all, as after a rebalance.
    pub fn clear(&mut self) {
        self.seen.clear();
        self.order.clear();
    }
}

impl Default for RedisStreamDedup {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn capacity_has_bounds() {
        assert_eq!(RedisStreamDedup::default().capacity(), 4096);
        assert_eq!(RedisStreamDedup::new(0).capacity(), 1);
        assert_eq!(RedisStreamDedup::new(usize::MAX).capacity(), 1 << 24);
    }

    #[test]
    fn cleared_ids_are_new_again() {
        let mut dedup = RedisStreamDedup::new(10);
        assert!(!dedup.is_duplicate("a"));
        assert!(dedup.is_duplicate("a"));
        dedup.clear();
        assert!(dedup.is_empty());
        assert!(!dedup.is_duplicate("a"));
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_the_last_ids(
            capacity in 1usize..8,
            ids in prop::collection::vec(0u8..12, 0..200),
        ) {
            let mut dedup = RedisStreamDedup::new(capacity);
            let mut model: Vec<u8> = Vec::new();
            for id in ids {
                let known = model.contains(&id);
                model.retain(|held| *held != id);
                model.push(id);
                let surplus = model.len().saturating_sub(capacity);
                model.drain(..surplus);
                prop_assert_eq!(dedup.is_duplicate(&id.to_string()), known);
                prop_assert_eq!(dedup.len(), model.len());
            }
        }
    }
}
