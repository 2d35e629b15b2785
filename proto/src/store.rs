//! What a node knows of the others: their announcements, verified, in time, indexed.
//!
//! Sans I/O: announcements, beats and the time come in, what to forward and what has ended comes out.
//! Outsiders decide what is offered, so everything here is bounded: the size of an announcement,
//! how often a key may speak, how far it travels, how many nodes are held.

mod allowance;
mod bits;
mod bodies;
mod check;
mod find;
mod index;
mod keep;
mod live;
mod record;
mod refusal;
mod room;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_identity::{CLOCK_TOLERANCE, Grant, NodeId, Timestamp, VerifyContext};

use crate::announcement::{Announcement, SignedAnnouncement};
use crate::beat::{Availability, SignedBeat};
use crate::ports::Known;
pub(crate) use allowance::Allowance;
use bodies::Bodies;
pub use check::MAX_TTL;
use index::Index;
use keep::Word;
use record::{Held, Record};
pub use refusal::{Refusals, RefusedBy};
use shares::Shares;

/// Nodes held by default. At 4 KiB of announcement and as much of token each, a mesh full of
/// liars costs 128 MiB; honest nodes need a third.
pub const MAX_NODES: usize = 16_384;

/// Keys of which something is remembered, for each node that may be held. Versions outlive the
/// announcements, so that an old one cannot come back: for a day, as long as an announcement may hold.
/// When there are more, those of the largest branch of admissions are forgotten first.
const RECORDS_PER_NODE: usize = 4;

/// When the store is full, who may take the place of another: one newcomer each 50 ms, 1,024 at once.
/// Each is news to the whole mesh, and ids that go before others' can be made up without end.
type Turnover = Allowance<50, 1024>;

/// Nodes that may be held for each whose announcement is at hand decoded: as many as make a common
/// mesh, at 4 KiB each.
const NODES_PER_BODY: usize = 16;

/// What became of a received announcement or beat.
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
    /// What is held of this node holds for longer.
    Renewed {
        /// The node.
        node: NodeId,
        /// As in `Stored`.
        forward: Option<u8>,
    },
    /// It is held already: nothing to do.
    Duplicate,
    /// A beat upon an announcement that is not held: nothing is known of it. Ask for the whole.
    Incomplete,
    /// It is this node's own, of a later version than this node knows of, or another statement of the
    /// same: its state was lost. Announce again with a larger version than this.
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
    /// How many of these are of nodes believed dead.
    dead: usize,
    /// When each record changes by itself: its announcement expires, or it may be forgotten.
    agenda: BTreeSet<(Timestamp, NodeId)>,
    slots: Vec<Option<NodeId>>,
    bodies: Bodies,
    free: Vec<u32>,
    /// Every other node held, to draw from.
    places: Vec<NodeId>,
    index: Index,
    /// How the nodes held share the room.
    shares: Shares,
    /// How those share it of which only the version is remembered.
    ghosts: Shares,
    turnover: Turnover,
    /// Nodes that had to leave for others, until somebody asks.
    displaced: Vec<NodeId>,
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
            dead: 0,
            agenda: BTreeSet::new(),
            slots: Vec::new(),
            bodies: Bodies::new(max_nodes / NODES_PER_BODY),
            free: Vec::new(),
            places: Vec::new(),
            index: Index::new(),
            shares: Shares::default(),
            ghosts: Shares::default(),
            turnover: Turnover::new(Timestamp::from_millis(0)),
            displaced: Vec::new(),
            refusals: Refusals::default(),
        }
    }

    /// The node whose store it is.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Takes an announcement from a peer. Every check that costs little comes before those that
    /// cost a signature.
    ///
    /// `trust` tells the mesh's authority, the time, how far clocks may lie apart and what is
    /// revoked.
    pub fn receive(&mut self, signed: SignedAnnouncement, trust: &VerifyContext<'_>) -> Received {
        let held = self.held(&signed.node());
        if held.is_some_and(|held| held.signed.envelope == signed.envelope) {
            return Received::Duplicate;
        }
        if signed.node() == self.local {
            return self.receive_own(
                || check::claimed(&signed),
                || check::open(&signed, None).map(drop),
            );
        }
        if !self.admits(&signed, trust.now) {
            return self.refuse(RefusedBy::StoreFull);
        }
        let record = self.records.get(&signed.node());
        match check::received(&signed, record, trust) {
            Ok((head, said, deadline)) => {
                let word = Word::announced(signed, head, said, deadline);
                self.stored(word, trust.now)
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Takes a beat from a peer: the announcement that it renews holds for longer.
    pub fn receive_beat(&mut self, signed: SignedBeat, trust: &VerifyContext<'_>) -> Received {
        let record = self.records.get(&signed.node());
        if record.is_some_and(|record| record.is_at(&signed)) {
            return Received::Duplicate;
        }
        if signed.node() == self.local {
            let head = || check::claimed_beat(&signed).map(|(head, _)| head);
            return self.receive_own(head, || check::verified(&signed));
        }
        let is_held = record.is_some_and(|record| record.held.is_some());
        if !is_held && self.is_full() {
            return self.refuse(RefusedBy::StoreFull);
        }
        match check::beat(&signed, record, trust) {
            Ok(Some(head)) => self.beaten(signed, head, trust.now),
            Ok(None) => Received::Incomplete,
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Takes an announcement with the latest beat upon it, which is what counts: as the answer to who
    /// lacks the announcement.
    pub fn receive_renewed(
        &mut self,
        signed: SignedAnnouncement,
        beat: SignedBeat,
        trust: &VerifyContext<'_>,
    ) -> Received {
        let held = self.held(&signed.node());
        let is_held = held.is_some_and(|held| held.signed.envelope == signed.envelope);
        if is_held || signed.node() == self.local {
            return self.receive_beat(beat, trust);
        }
        if !self.admits(&signed, trust.now) {
            return self.refuse(RefusedBy::StoreFull);
        }
        let record = self.records.get(&signed.node());
        match check::renewed(&signed, &beat, record, trust) {
            Ok((head, base, said, deadline)) => {
                let word = Word::renewed(signed, (base, beat), head, said, deadline);
                self.stored(word, trust.now)
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
        Ok(self.insert(Word::announced(signed, head, said, Timestamp::MAX), now))
    }

    /// Takes this node's own beat upon its latest announcement.
    pub fn insert_own_beat(&mut self, signed: SignedBeat, now: Timestamp) -> Result<(), RefusedBy> {
        if signed.node() != self.local {
            return Err(RefusedBy::BadSignature);
        }
        let head = check::own_beat(&signed, self.records.get(&self.local), now)?;
        self.renew(signed, head, now);
        Ok(())
    }

    /// What is held was recognized before. Only what this node does not know of is worth a signature:
    /// a later version, or other words under the current one.
    fn receive_own(
        &mut self,
        claimed: impl FnOnce() -> Result<check::Head, RefusedBy>,
        verified: impl FnOnce() -> Result<(), RefusedBy>,
    ) -> Received {
        let record = self.records.get(&self.local);
        let known = record.map_or(0, |record| record.version);
        let is_held = record.is_some_and(|record| record.held.is_some());
        let is_ahead = |version| version > known || version == known && is_held;
        let version = claimed().and_then(|head| {
            if is_ahead(head.version) {
                verified()?;
            }
            Ok(head.version)
        });
        match version {
            Ok(version) if is_ahead(version) => Received::OwnAhead { version },
            Ok(_) => Received::Duplicate,
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: RefusedBy) -> Received {
        self.refusals.count(&refusal);
        Received::Refused(refusal)
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
                self.forget(&node);
            }
        }
        gone
    }

    /// The nodes that had to leave for others since the last time; by the time of that.
    pub fn take_displaced(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.displaced)
    }

    /// When [`AnnouncementStore::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// Drops every node whose token `is_cut` finds withdrawn; these, by node id. For after a
    /// revocation.
    pub fn drop_where(&mut self, is_cut: impl Fn(&Grant) -> bool) -> Vec<NodeId> {
        let grant = |held: &Held| held.signed.token.grant_as_verified(CLOCK_TOLERANCE);
        let others = self.holding().filter(|(node, _)| **node != self.local);
        let gone = others.filter(|(_, held)| is_cut(&grant(held)));
        let gone: Vec<NodeId> = gone.map(|(node, _)| *node).collect();
        for node in &gone {
            self.drop_node(node);
        }
        gone
    }

    fn holding(&self) -> impl Iterator<Item = (&NodeId, &Held)> {
        self.records
            .iter()
            .filter_map(|(node, record)| Some((node, record.held.as_deref()?)))
    }

    fn living(&self) -> impl Iterator<Item = (&NodeId, &Held)> {
        self.holding().filter(|(_, held)| !held.dead)
    }

    fn held(&self, node: &NodeId) -> Option<&Held> {
        self.records.get(node)?.held.as_deref()
    }

    /// What a node says, if that holds; of a node believed dead, too.
    pub fn get(&self, node: &NodeId) -> Option<Arc<Announcement>> {
        let held = self.held(node)?;
        Some(self.body(node, held))
    }

    /// The version of the latest announcement or beat of a node, while it holds.
    pub fn version(&self, node: &NodeId) -> Option<u64> {
        self.held(node)?;
        self.records.get(node).map(|record| record.version)
    }

    /// A node's announcement as it travels.
    pub fn signed(&self, node: &NodeId) -> Option<Arc<SignedAnnouncement>> {
        self.held(node).map(|held| Arc::clone(&held.signed))
    }

    /// The latest beat upon a node's announcement, as it travels.
    pub fn beat(&self, node: &NodeId) -> Option<&SignedBeat> {
        self.held(node)?.beat.as_deref()
    }

    /// What a node has free, by its latest beat.
    pub fn availability(&self, node: &NodeId) -> Option<Arc<Availability>> {
        self.held(node)?.availability().map(Arc::new)
    }

    /// Whether a node's announcement holds and its token is neither past its time nor revoked.
    pub fn is_believed(&self, node: &NodeId, trust: &VerifyContext<'_>) -> bool {
        let is_granted = |held| check::still_granted(held, node, trust).is_ok();
        self.held(node)
            .is_some_and(|held| *node == self.local || is_granted(held))
    }

    /// Every node held and not believed dead, by node id.
    pub fn iter(&self) -> impl Iterator<Item = Known> + '_ {
        self.living().map(|(node, held)| {
            let at_hand = self.bodies.get(held.slot);
            at_hand.unwrap_or_else(|| (*node, held.body()))
        })
    }

    /// Every announcement as it travels, by node id: what a new neighbour is sent.
    pub fn iter_signed(&self) -> impl Iterator<Item = Arc<SignedAnnouncement>> + '_ {
        self.holding().map(|(_, held)| Arc::clone(&held.signed))
    }

    /// Nodes held and not believed dead.
    pub fn len(&self) -> usize {
        self.held - self.dead
    }

    /// Whether there is no such node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Other nodes held, those believed dead too.
    pub fn others(&self) -> usize {
        self.places.len()
    }

    /// The `n`-th other node held, in an order that stays the same as long as none comes or goes.
    pub fn nth_other(&self, n: usize) -> Option<NodeId> {
        self.places.get(n).copied()
    }

    /// Counts a fact of another kind that was refused.
    pub(crate) fn count(&mut self, refusal: &RefusedBy) {
        self.refusals.count(refusal);
    }

    /// What was refused so far.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }
}
