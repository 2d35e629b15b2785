//! Announcements at hand in decoded form. Decoded, an announcement takes four times the room of its
//! bytes, so that a store of many nodes keeps only some of them so, and decodes the others when
//! somebody asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::announcement::Announcement;
use crate::ports::Known;

/// Decoded announcements by slot. Slot `n` has one place, which it shares with others as far from it
/// as there are places: in a small mesh, every node has its own.
#[derive(Debug)]
pub(super) struct Bodies {
    most: usize,
    places: Mutex<Vec<Option<(u32, Known)>>>,
}

impl Bodies {
    /// None yet, and at most `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            places: Mutex::new(Vec::new()),
        }
    }

    /// The node in a slot and what it says, if that is at hand.
    pub(super) fn get(&self, slot: u32) -> Option<Known> {
        let (owner, known) = self.places().get(self.place(slot))?.clone()?;
        (owner == slot).then_some(known)
    }

    /// Has it at hand, in the place of another if need be.
    pub(super) fn put(&self, slot: u32, known: Known) {
        let place = self.place(slot);
        let mut places = self.places();
        if places.len() <= place {
            places.resize(place + 1, None);
        }
        places[place] = Some((slot, known));
    }

    /// Has it at hand if nobody has to leave for it.
    pub(super) fn offer(&self, slot: u32, known: Known) {
        let held = self.places().get(self.place(slot)).cloned().flatten();
        if held.is_none_or(|(owner, _)| owner == slot) {
            self.put(slot, known);
        }
    }

    /// Changes what is at hand of a slot: in place, where nobody else looks at it.
    pub(super) fn edit(&mut self, slot: u32, edit: impl FnOnce(&mut Announcement)) {
        let place = self.place(slot);
        let places = self
            .places
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(Some((owner, (_, body)))) = places.get_mut(place)
            && *owner == slot
        {
            edit(Arc::make_mut(body));
        }
    }

    /// Lets go of a slot.
    pub(super) fn remove(&mut self, slot: u32) {
        let place = self.place(slot);
        let places = self
            .places
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = places.get_mut(place)
            && held.as_ref().is_some_and(|(owner, _)| *owner == slot)
        {
            *held = None;
        }
    }

    fn place(&self, slot: u32) -> usize {
        slot as usize % self.most
    }

    fn places(&self) -> MutexGuard<'_, Vec<Option<(u32, Known)>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    #[test]
    fn slots_share_places() {
        let known = |version| -> Known {
            let body = Announcement {
                version,
                ..Announcement::default()
            };
            (Identity::from_seed(&[1; 32]).node_id(), Arc::new(body))
        };
        let version = |bodies: &Bodies, slot| bodies.get(slot).map(|(_, body)| body.version);
        let mut bodies = Bodies::new(4);
        for slot in 0..4 {
            bodies.offer(slot, known(u64::from(slot)));
        }
        bodies.offer(6, known(6));
        assert_eq!([2, 6].map(|slot| version(&bodies, slot)), [Some(2), None]);
        bodies.put(6, known(6));
        assert_eq!([2, 6].map(|slot| version(&bodies, slot)), [None, Some(6)]);
        // Who is not at hand is neither changed nor dropped.
        let before = bodies.get(6).unwrap();
        bodies.edit(2, |body| body.version = 99);
        bodies.remove(2);
        assert_eq!(version(&bodies, 6), Some(6));
        bodies.edit(6, |body| body.version = 7);
        assert_eq!((version(&bodies, 6), before.1.version), (Some(7), 6));
        bodies.remove(6);
        assert_eq!(version(&bodies, 6), None);
    }
}
