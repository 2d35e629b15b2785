//! Putting into the store what was believed, and taking out of it what is no more.

use std::collections::btree_map::Entry;
use std::mem;
use std::sync::Arc;

use meshwork_identity::{NodeId, Timestamp};

use super::check::{Head, Said};
use super::record::{Held, Record, availability};
use super::shares::path_of;
use super::{AnnouncementStore, Received};
use crate::announcement::{Announcement, SignedAnnouncement};
use crate::beat::{Availability, SignedBeat};
use crate::limits::MAX_HOPS;
use crate::ports::Known;
use crate::query::Subject;

/// What a node says, checked.
pub(super) struct Word {
    signed: SignedAnnouncement,
    head: Head,
    said: Said,
    base: u64,
    beat: Option<Box<SignedBeat>>,
    deadline: Timestamp,
}

impl Word {
    pub(super) fn announced(
        signed: SignedAnnouncement,
        head: Head,
        said: Said,
        deadline: Timestamp,
    ) -> Self {
        Self {
            signed,
            base: head.version,
            head,
            said,
            beat: None,
            deadline,
        }
    }

    /// `head` is that of the beat.
    pub(super) fn renewed(
        signed: SignedAnnouncement,
        (base, beat): (u64, SignedBeat),
        head: Head,
        said: Said,
        deadline: Timestamp,
    ) -> Self {
        Self {
            signed,
            head,
            said,
            base,
            beat: Some(Box::new(beat)),
            deadline,
        }
    }

    /// What it says to be free.
    fn availability(&self) -> Option<Availability> {
        availability(self.beat.as_deref()?)
    }

    /// How far it has come: what it takes to send all of it on.
    fn hops(&self) -> u8 {
        let beat = self.beat.as_ref().map_or(0, |beat| beat.hops);
        self.signed.hops.max(beat)
    }

    fn into_held(self, slot: u32, place: Option<u32>, dead: bool) -> Held {
        Held {
            slot,
            expires: self.head.expires_at().min(self.deadline),
            head: self.head,
            signed: Arc::new(self.signed),
            base: self.base,
            beat: self.beat,
            deadline: self.deadline,
            place,
            dead,
        }
    }
}

impl AnnouncementStore {
    pub(super) fn stored(&mut self, word: Word, now: Timestamp) -> Received {
        let forward = next_hop(word.hops());
        let known = self.insert(word, now);
        Received::Stored { known, forward }
    }

    pub(super) fn beaten(&mut self, signed: SignedBeat, head: Head, now: Timestamp) -> Received {
        let (node, forward) = (signed.node(), next_hop(signed.hops));
        self.renew(signed, head, now);
        Received::Renewed { node, forward }
    }

    /// Stores what was checked.
    pub(super) fn insert(&mut self, word: Word, now: Timestamp) -> Known {
        let (node, head) = (word.signed.node(), word.head);
        self.make_room(&node, &path_of(&word.signed.token), now);
        let known = self.records.get_mut(&node);
        let old = known.and_then(|record| {
            self.agenda.remove(&(record.changes_at(), node));
            record.held.take()
        });
        let (held, body) = match old {
            Some(old) => self.replace(&node, &old, word),
            None => self.settle(&node, word),
        };
        let known = (node, body);
        if held.dead {
            self.bodies.remove(held.slot);
        } else {
            self.bodies.offer(held.slot, known.clone());
        }
        let record = self.records.entry(node);
        let record = record.or_insert_with(|| Record::new(now));
        record.saw(&head, now);
        record.held = Some(Box::new(held));
        self.agenda.insert((record.changes_at(), node));
        known
    }

    /// In the place of what the node said before.
    fn replace(&mut self, node: &NodeId, old: &Held, mut word: Word) -> (Held, Arc<Announcement>) {
        let head = word.head;
        let body = match mem::replace(&mut word.said, Said::Again) {
            Said::Again => {
                self.bodies.edit(old.slot, |body| head.put_on(body));
                let at_hand = self.bodies.get(old.slot).map(|(_, body)| body);
                let body = at_hand.unwrap_or_else(|| old.body_under(&head));
                if !old.dead {
                    let (was, is) = (old.availability(), word.availability());
                    let was = subject(node, &body, was.as_ref());
                    let is = subject(node, &body, is.as_ref());
                    self.index.set_free(old.slot, was, is);
                }
                body
            }
            Said::Anew(body) => {
                if !old.dead {
                    let before = self.body(node, old);
                    let (was, is) = (old.availability(), word.availability());
                    self.index
                        .remove(old.slot, subject(node, &before, was.as_ref()));
                    self.index
                        .insert(old.slot, subject(node, &body, is.as_ref()));
                }
                self.bodies.remove(old.slot);
                headed(body, head)
            }
        };
        if old.signed.token != word.signed.token {
            self.shares.remove(&path_of(&old.signed.token));
            self.shares.add(&path_of(&word.signed.token));
        }
        (word.into_held(old.slot, old.place, old.dead), body)
    }

    /// In a place of its own.
    fn settle(&mut self, node: &NodeId, mut word: Word) -> (Held, Arc<Announcement>) {
        let Said::Anew(body) = mem::replace(&mut word.said, Said::Again) else {
            unreachable!("only what is held is said again")
        };
        let body = headed(body, word.head);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            number(self.slots.len() - 1)
        });
        self.held += 1;
        self.shares.add(&path_of(&word.signed.token));
        self.slots[slot as usize] = Some(*node);
        let free = word.availability();
        self.index.insert(slot, subject(node, &body, free.as_ref()));
        let place = (*node != self.local).then(|| {
            self.places.push(*node);
            number(self.places.len() - 1)
        });
        (word.into_held(slot, place, false), body)
    }

    /// Puts a checked beat upon the announcement that is held.
    pub(super) fn renew(&mut self, signed: SignedBeat, head: Head, now: Timestamp) {
        let node = signed.node();
        let record = self.records.get_mut(&node).expect("its base is held");
        self.agenda.remove(&(record.changes_at(), node));
        record.saw(&head, now);
        let held = record.held.as_deref_mut().expect("its base is held");
        let was = held.availability();
        held.expires = head.expires_at().min(held.deadline);
        held.head = head;
        held.beat = Some(Box::new(signed));
        let is = held.availability();
        self.bodies.edit(held.slot, |body| head.put_on(body));
        if was != is && !held.dead {
            let at_hand = self.bodies.get(held.slot).map(|(_, body)| body);
            let body = at_hand.unwrap_or_else(|| held.body());
            let subject = |free| subject(&node, &body, free);
            let (was, is) = (subject(was.as_ref()), subject(is.as_ref()));
            self.index.set_free(held.slot, was, is);
        }
        self.agenda.insert((record.changes_at(), node));
    }

    /// Hides a node from [`AnnouncementStore::find`], [`AnnouncementStore::iter`] and
    /// [`AnnouncementStore::len`], or shows it again; it stays known until its announcement expires.
    /// Whether that changed anything.
    pub fn set_dead(&mut self, node: &NodeId, dead: bool) -> bool {
        let held = self.held(node).filter(|held| held.dead != dead);
        let Some(held) = held else {
            return false;
        };
        let (slot, body, free) = (held.slot, self.body(node, held), held.availability());
        let subject = subject(node, &body, free.as_ref());
        if dead {
            self.dead += 1;
            self.index.remove(slot, subject);
            self.bodies.remove(slot);
        } else {
            self.dead -= 1;
            self.index.insert(slot, subject);
        }
        let record = self.records.get_mut(node);
        let held = record.and_then(|record| record.held.as_deref_mut());
        held.expect("found above").dead = dead;
        true
    }

    /// Whether a node is believed dead.
    pub fn is_dead(&self, node: &NodeId) -> bool {
        self.held(node).is_some_and(|held| held.dead)
    }

    /// Drops a node that was revoked or is known to be gone. Its version stays remembered. Whether
    /// it was held.
    pub fn drop_node(&mut self, node: &NodeId) -> bool {
        let Some(record) = self.records.get_mut(node) else {
            return false;
        };
        let old_change = record.changes_at();
        let Some(held) = record.held.take() else {
            return false;
        };
        self.agenda.remove(&(old_change, *node));
        self.agenda.insert((record.changes_at(), *node));
        let path = path_of(&held.signed.token);
        self.shares.remove(&path);
        self.ghosts.add(&path);
        record.hung = Some(path);
        self.held -= 1;
        if held.dead {
            self.dead -= 1;
        } else {
            let (body, free) = (self.body(node, &held), held.availability());
            self.index
                .remove(held.slot, subject(node, &body, free.as_ref()));
        }
        self.bodies.remove(held.slot);
        self.slots[held.slot as usize] = None;
        self.free.push(held.slot);
        if let Some(place) = held.place {
            self.leave_place(place);
        }
        true
    }

    /// The last node moves to the place that became free.
    fn leave_place(&mut self, place: u32) {
        self.places.swap_remove(place as usize);
        if let Some(moved) = self.places.get(place as usize) {
            let record = self.records.get_mut(moved);
            let held = record.and_then(|record| record.held.as_deref_mut());
            held.expect("who has a place is held").place = Some(place);
        }
    }

    /// The versions that are remembered, of other nodes, and until when.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = (NodeId, u64, Timestamp)> + '_ {
        let others = self.records.iter().filter(|(node, _)| **node != self.local);
        others.map(|(node, record)| (*node, record.version, record.ends))
    }

    /// Remembers a version from an earlier run, if it still matters and there is room.
    pub(crate) fn recall(&mut self, node: NodeId, version: u64, ends: Timestamp, now: Timestamp) {
        if node == self.local {
            return;
        }
        let fresh = Record::recalled(version, ends, now);
        if !self.records.contains_key(&node)
            && (self.records.len() >= self.max_records() || fresh.changes_at() <= now)
        {
            return;
        }
        let known = self.records.entry(node);
        if let Entry::Vacant(_) = known {
            self.ghosts.add(&[node]);
        }
        let record = known.or_insert(fresh);
        self.agenda.remove(&(record.changes_at(), node));
        record.recall(version, ends);
        self.agenda.insert((record.changes_at(), node));
    }
}

/// A node as the index sees it.
fn subject<'a>(
    node: &'a NodeId,
    said: &'a Announcement,
    free: Option<&'a Availability>,
) -> Subject<'a> {
    Subject { node, said, free }
}

/// With one more hop, unless it has come far enough.
fn next_hop(hops: u8) -> Option<u8> {
    (hops < MAX_HOPS).then(|| hops + 1)
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("fewer nodes than u32 holds")
}

/// The same under the head that counts.
fn headed(mut body: Arc<Announcement>, head: Head) -> Arc<Announcement> {
    if (body.version, body.issued_at, body.ttl) != (head.version, head.issued_at, head.ttl) {
        head.put_on(Arc::make_mut(&mut body));
    }
    body
}
