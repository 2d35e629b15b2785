//! What a node knows of the others: their announcements, verified, in time, indexed.
//!
//! Sans I/O: announcements and the time come in, what to forward and what has ended comes out.
//! Outsiders decide what is offered, so everything here is bounded: the size of an announcement,
//! how often a key may speak, how far it travels, how many nodes are held.

mod bits;
mod check;
mod index;
mod record;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_identity::{Grant, NodeId, Timestamp, VerifyContext};

use crate::announcement::{Announcement, SignedAnnouncement};
use crate::limits::MAX_HOPS;
use crate::ports::Known;
use crate::query::{Query, View};
use bits::Bits;
pub use check::MAX_TTL;
use check::{Head, Said};
use index::Index;
use record::{Held, Record};
pub use refusal::{Refusals, RefusedBy};

/// Nodes held by default. At 4 KiB of announcement and as much of token each, a mesh full of
/// liars costs 128 MiB; honest nodes need a tenth.
pub const MAX_NODES: usize = 16_384;

/// Keys of which something is remembered, for each node that may be held. Versions outlive the
/// announcements, so that an old one cannot come back.
const RECORDS_PER_NODE: usize = 4;

/// What became of a received announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It is new and holds.
    Stored {
        /// The node and what it says.
        known: Known,
        /// To be sent on, with this many hops, to every neighbour but the one it came from; none
        /// when it has come far enough.
        forward: Option<u8>,
    },
    /// It is held already: nothing to do.
    Duplicate,
    /// It is this node's own, of a later version than this node knows of: its state was lost.
    /// Announce again with a larger version than this.
    OwnAhead {
        /// The version that others hold.
        version: u64,
    },
    /// It is not believed, and was counted.
    Refused(RefusedBy),
}

/// The announcements of a mesh, as one node knows them.
#[derive(Debug)]
pub struct AnnouncementStore {
    local: NodeId,
    max_nodes: usize,
    records: BTreeMap<NodeId, Record>,
    /// How many records hold an announcement.
    held: usize,
    /// When each record changes by itself: its announcement expires, or it may be forgotten.
    agenda: BTreeSet<(Timestamp, NodeId)>,
    slots: Vec<Option<Known>>,
    free: Vec<u32>,
    index: Index,
    refusals: Refusals,
}

impl AnnouncementStore {
    /// The empty store of the node `local`, for at most [`MAX_NODES`].
    pub fn new(local: NodeId) -> Self {
        Self::with_capacity(local, MAX_NODES)
    }

    /// The empty store of the node `local`, for at most `max_nodes`.
    pub fn with_capacity(local: NodeId, max_nodes: usize) -> Self {
        Self {
            local,
            max_nodes,
            records: BTreeMap::new(),
            held: 0,
            agenda: BTreeSet::new(),
            slots: Vec::new(),
            free: Vec::new(),
            index: Index::new(),
            refusals: Refusals::default(),
        }
    }

    /// Takes an announcement from a peer. Every check that costs little comes before those that
    /// cost a signature.
    ///
    /// `trust` tells the mesh's authority, the time, how far clocks may lie apart and what is
    /// revoked.
    pub fn receive(&mut self, signed: SignedAnnouncement, trust: &VerifyContext<'_>) -> Received {
        if signed.node() == self.local {
            return self.receive_own(&signed);
        }
        let record = self.records.get(&signed.node());
        let held = record.and_then(|record| record.held.as_ref());
        if held.is_some_and(|held| held.signed.envelope == signed.envelope) {
            return Received::Duplicate;
        }
        if !self.has_room(record) {
            return self.refuse(RefusedBy::StoreFull);
        }
        match check::received(&signed, record, trust) {
            Ok((head, said, grant)) => {
                let expires = head.expires_at().min(grant.deadline());
                let forward = (signed.hops < MAX_HOPS).then(|| signed.hops + 1);
                let known = self.insert(signed, head, said, Some(grant), expires, trust.now);
                Received::Stored { known, forward }
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Takes this node's own announcement; for it there is always room. `now` is only compared with
    /// its expiry.
    pub fn insert_own(
        &mut self,
        signed: SignedAnnouncement,
        now: Timestamp,
    ) -> Result<Known, RefusedBy> {
        if signed.node() != self.local {
            return Err(RefusedBy::BadSignature);
        }
        let (head, said) = check::own(&signed, self.records.get(&self.local), now)?;
        Ok(self.insert(signed, head, said, None, head.expires_at(), now))
    }

    /// Only a version that this node does not know of is worth a signature.
    fn receive_own(&mut self, signed: &SignedAnnouncement) -> Received {
        let record = self.records.get(&self.local);
        let known = record.map_or(0, |record| record.version);
        let claimed = check::claimed(signed).and_then(|head| {
            if head.version > known {
                check::open(signed, None)?;
            }
            Ok(head.version)
        });
        match claimed {
            Ok(version) if version > known => Received::OwnAhead { version },
            Ok(_) => Received::Duplicate,
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: RefusedBy) -> Received {
        self.refusals.count(&refusal);
        Received::Refused(refusal)
    }

    /// Whether there is room for an announcement of another node, given its record.
    fn has_room(&self, record: Option<&Record>) -> bool {
        let most_records = self.max_nodes.saturating_mul(RECORDS_PER_NODE);
        let is_held = record.is_some_and(|record| record.held.is_some());
        (is_held || self.held < self.max_nodes)
            && (record.is_some() || self.records.len() < most_records)
    }

    /// Stores what was checked.
    fn insert(
        &mut self,
        signed: SignedAnnouncement,
        head: Head,
        said: Said,
        grant: Option<Arc<Grant>>,
        expires: Timestamp,
        now: Timestamp,
    ) -> Known {
        let node = signed.node();
        let record = self.records.entry(node).or_insert_with(|| Record::new(now));
        self.agenda.remove(&(record.changes_at(), node));
        record.saw(&head, now);
        let (slot, body) = match (record.held.take(), said) {
            (Some(old), Said::Again) => {
                self.slots[old.slot as usize] = None;
                (old.slot, renewed(old.body, head))
            }
            (Some(old), Said::Anew(body)) => {
                self.index.remove(old.slot, &node, &old.body);
                self.index.insert(old.slot, &node, &body);
                (old.slot, body)
            }
            (None, Said::Anew(body)) => {
                self.held += 1;
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    u32::try_from(self.slots.len() - 1).expect("fewer nodes than u32 holds")
                });
                self.index.insert(slot, &node, &body);
                (slot, body)
            }
            (None, Said::Again) => unreachable!("only what is held is said again"),
        };
        let known = (node, Arc::clone(&body));
        self.slots[slot as usize] = Some(known.clone());
        record.held = Some(Held {
            slot,
            expires,
            body,
            signed: Arc::new(signed),
            grant,
        });
        self.agenda.insert((record.changes_at(), node));
        known
    }

    /// Drops what does not hold any more; its nodes, by the time of their expiry.
    pub fn expire(&mut self, now: Timestamp) -> Vec<NodeId> {
        let mut gone = Vec::new();
        while let Some((at, node)) = self.agenda.first().copied()
            && at <= now
        {
            if self.drop_node(&node) {
                gone.push(node);
            } else {
                self.agenda.remove(&(at, node));
                self.records.remove(&node);
            }
        }
        gone
    }

    /// When [`AnnouncementStore::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.agenda.first().map(|(at, _)| *at)
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
        self.held -= 1;
        self.index.remove(held.slot, node, &held.body);
        self.slots[held.slot as usize] = None;
        self.free.push(held.slot);
        true
    }

    /// Drops every node whose token `is_cut` finds withdrawn; these, by node id. For after a
    /// revocation.
    pub fn drop_where(&mut self, is_cut: impl Fn(&Grant) -> bool) -> Vec<NodeId> {
        let cut = |held: &Held| held.grant.as_deref().is_some_and(&is_cut);
        let gone = self.holding().filter(|(_, held)| cut(held));
        let gone: Vec<NodeId> = gone.map(|(node, _)| *node).collect();
        for node in &gone {
            self.drop_node(node);
        }
        gone
    }

    fn holding(&self) -> impl Iterator<Item = (&NodeId, &Held)> {
        self.records
            .iter()
            .filter_map(|(node, record)| Some((node, record.held.as_ref()?)))
    }

    fn held(&self, node: &NodeId) -> Option<&Held> {
        self.records.get(node)?.held.as_ref()
    }

    /// What a node says, if that holds.
    pub fn get(&self, node: &NodeId) -> Option<Arc<Announcement>> {
        self.held(node).map(|held| Arc::clone(&held.body))
    }

    /// A node's announcement as it travels.
    pub fn signed(&self, node: &NodeId) -> Option<Arc<SignedAnnouncement>> {
        self.held(node).map(|held| Arc::clone(&held.signed))
    }

    /// Every node held, by node id.
    pub fn iter(&self) -> impl Iterator<Item = Known> + '_ {
        self.holding()
            .map(|(node, held)| (*node, Arc::clone(&held.body)))
    }

    /// Every announcement as it travels, by node id: what a new neighbour is sent.
    pub fn iter_signed(&self) -> impl Iterator<Item = Arc<SignedAnnouncement>> + '_ {
        self.holding().map(|(_, held)| Arc::clone(&held.signed))
    }

    /// Nodes held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// What was refused so far.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The first `limit` nodes, by node id, that satisfy `query` and that `view` shows; and how
    /// many there are in all.
    pub fn find(&self, query: &Query, view: &View, limit: usize) -> (Vec<Known>, usize) {
        if let Some(slots) = self.index.few(query.tree()) {
            let mut hits: Vec<Known> = slots
                .into_iter()
                .filter_map(|slot| self.slots[slot as usize].clone())
                .filter(|(node, body)| query.matches(node, body) && view.shows(body))
                .collect();
            hits.sort_unstable_by_key(|(node, _)| *node);
            let total = hits.len();
            hits.truncate(limit);
            return (hits, total);
        }
        let hits = self.index.find(query.tree(), view, |slot| {
            self.slots[slot as usize]
                .as_ref()
                .is_some_and(|(node, body)| query.matches(node, body))
        });
        let total = hits.count();
        (self.first(&hits, total, limit), total)
    }

    /// The first `limit` of `hits` by node id: by walking all nodes in order where hits are dense,
    /// by sorting the hits where they are sparse.
    fn first(&self, hits: &Bits, total: usize, limit: usize) -> Vec<Known> {
        if limit == 0 || total == 0 {
            return Vec::new();
        }
        let walk = self.records.len().saturating_mul(limit.min(total)) / total;
        if walk <= total.saturating_mul(SORT_COST) {
            let dense = self.holding().filter(|(_, held)| hits.contains(held.slot));
            return dense
                .take(limit)
                .map(|(n, held)| (*n, Arc::clone(&held.body)))
                .collect();
        }
        let mut ids: Vec<(NodeId, u32)> = hits
            .iter()
            .filter_map(|slot| {
                self.slots[slot as usize]
                    .as_ref()
                    .map(|(node, _)| (*node, slot))
            })
            .collect();
        if limit < ids.len() {
            ids.select_nth_unstable(limit);
            ids.truncate(limit);
        }
        ids.sort_unstable();
        ids.into_iter()
            .filter_map(|(_, slot)| self.slots[slot as usize].clone())
            .collect()
    }
}

/// The same under a new head; in place, where nobody else looks at it.
fn renewed(mut body: Arc<Announcement>, head: Head) -> Arc<Announcement> {
    let same = Arc::make_mut(&mut body);
    (same.version, same.issued_at, same.ttl) = (head.version, head.issued_at, head.ttl);
    body
}

/// How much more sorting costs for each hit than walking for each node.
const SORT_COST: usize = 4;
