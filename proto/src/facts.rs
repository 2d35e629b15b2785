//! Everything that all nodes of a mesh shall know, as one node knows it: what nodes say of themselves,
//! whom they accuse of being dead, what is revoked, and how the mesh's key changes.
//!
//! Sans I/O: facts and the time come in, what became of each comes out. It is the production
//! [`Ledger`] of the membership machine: that decides what is told to whom, this what is believed.
//! Nothing is stored, sent on or counted into a hash before its signatures were checked.

mod decrees;
mod digest;
mod fact;
mod memory;
mod suspicions;

use std::sync::Arc;

use meshwork_identity::{Grant, NodeId, Revocation, Timestamp, VerifyContext};

use crate::announcement::SignedAnnouncement;
use crate::beat::Availability;
use crate::limits::{MAX_HOPS, MAX_SUSPICION};
use crate::membership::{Key, Ledger, Outcome};
use crate::ports::Known;
use crate::psk::{PskRotation, SignedPskRotation};
use crate::store::{AnnouncementStore, Received, Refusals, RefusedBy};
use crate::suspicion::SignedSuspicion;
use decrees::{Decreed, Decrees};
use digest::Digest;
pub use fact::Fact;
use fact::claimed_suspicion;
use suspicions::Suspicions;

/// What a fact changed, or why it did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node announced itself, anew or in other words.
    Node(Known),
    /// A node's announcement holds for longer; what it has free may be other than before.
    Renewed(NodeId),
    /// Others hold a later version of this node's own announcement: its state was lost.
    OwnAhead {
        /// The version that they hold.
        version: u64,
    },
    /// A node is accused of being dead.
    Accused {
        /// Who.
        accused: NodeId,
        /// By whom.
        accuser: NodeId,
    },
    /// Something is revoked.
    Revoked(Arc<Revocation>),
    /// The mesh's key changes: see [`Facts::psk`].
    Psk(u64),
    /// It was not believed, and was counted.
    Refused(RefusedBy),
}

/// The facts that one node holds.
#[derive(Debug)]
pub struct Facts {
    store: AnnouncementStore,
    suspicions: Suspicions,
    decrees: Decrees,
    digest: Digest,
    /// Nodes that had to leave for others since the last look for what has expired.
    displaced: Vec<NodeId>,
}

/// What became of a fact, with its key and version.
type Taken = (Key<NodeId>, u64, Outcome, Vec<Change>);

impl Facts {
    /// The facts of the node `local`, which knows none yet.
    pub fn new(local: NodeId) -> Self {
        Self::of(AnnouncementStore::new(local))
    }

    /// The same, for at most `max_nodes` nodes.
    pub fn with_capacity(local: NodeId, max_nodes: usize) -> Self {
        Self::of(AnnouncementStore::with_capacity(local, max_nodes))
    }

    fn of(store: AnnouncementStore) -> Self {
        Self {
            store,
            suspicions: Suspicions::default(),
            decrees: Decrees::default(),
            digest: Digest::new(),
            displaced: Vec::new(),
        }
    }

    /// Takes a fact that a peer tells. The key and version are the fact's. A suspicion about another
    /// version of the accused than is held here goes by the accused's key: a later one is to be asked
    /// for, an earlier one to be answered with what is held.
    ///
    /// A fact that does not even decode goes by the key of the node that claims to have signed it.
    pub fn accept(&mut self, fact: Fact, trust: &VerifyContext<'_>) -> Taken {
        let hops = fact.hops();
        let (key, version) = fact.claim().unwrap_or((Key::Node(fact.signer()), 0));
        let taken = match fact {
            Fact::Announcement(signed) => {
                let received = self.store.receive(signed, trust);
                return self.received(key, version, hops, received);
            }
            Fact::Renewed(signed, beat) => {
                let received = self.store.receive_renewed(signed, beat, trust);
                return self.received(key, version, hops, received);
            }
            Fact::Beat(signed) => {
                let received = self.store.receive_beat(signed, trust);
                return self.received(key, version, hops, received);
            }
            Fact::Suspicion(signed) => self.suspect(signed, trust),
            Fact::Revocation(statement) => self.revoke(statement, trust),
            Fact::Psk(signed) => self.rotate(signed, trust),
        };
        taken.unwrap_or_else(|refusal| {
            self.store.count(&refusal);
            refused(key, version, hops, refusal)
        })
    }

    /// Takes what this node says itself, or is told to say by its user. It is in force and may be
    /// told to others when this returns its key and version.
    pub fn publish(
        &mut self,
        fact: Fact,
        trust: &VerifyContext<'_>,
    ) -> Result<(Key<NodeId>, u64), RefusedBy> {
        let local = self.store.local();
        match fact {
            Fact::Announcement(signed) => {
                self.store.insert_own(signed, trust.now)?;
            }
            Fact::Beat(signed) => self.store.insert_own_beat(signed, trust.now)?,
            other => {
                let (key, version, outcome, changes) = self.accept(other, trust);
                let refusal = changes.into_iter().find_map(|change| match change {
                    Change::Refused(refusal) => Some(refusal),
                    _ => None,
                });
                return match (outcome, refusal) {
                    (Outcome::New { .. } | Outcome::Duplicate, _) => Ok((key, version)),
                    (_, Some(refusal)) => Err(refusal),
                    (_, None) => Err(RefusedBy::Rollback {
                        version,
                        known: self.digest.version(&key).unwrap_or(0),
                    }),
                };
            }
        }
        self.follow_displaced();
        self.follow(&local);
        let key = Key::Node(local);
        Ok((key, self.digest.version(&key).unwrap_or(0)))
    }

    /// What is held under a key, as it is to be sent on, in its small form: of a node that renewed
    /// its announcement, the beat alone.
    pub fn fact(&self, key: &Key<NodeId>) -> Option<Fact> {
        match key {
            Key::Node(node) => match self.store.beat(node) {
                Some(beat) => Some(self.sent_on(node, Fact::Beat(beat.clone()))),
                None => self.whole(key),
            },
            _ => self.whole(key),
        }
    }

    /// What is held under a key, as it is to be sent on to who may lack all of it.
    pub fn whole(&self, key: &Key<NodeId>) -> Option<Fact> {
        Some(match key {
            Key::Node(node) => {
                let signed = SignedAnnouncement::clone(&*self.store.signed(node)?);
                let whole = match self.store.beat(node) {
                    Some(beat) => Fact::Renewed(signed, beat.clone()),
                    None => Fact::Announcement(signed),
                };
                self.sent_on(node, whole)
            }
            Key::Suspicion { accused, accuser } => {
                let signed = self.suspicions.get(accused, accuser)?;
                self.sent_on(accuser, Fact::Suspicion(signed.clone()))
            }
            Key::Revocation(hash) => {
                Fact::Revocation(Revocation::clone(self.decrees.revocation(hash)?))
            }
            Key::Psk => Fact::Psk(self.decrees.signed_psk()?.clone()),
        })
    }

    /// Our own word has come over no hop yet.
    fn sent_on(&self, signer: &NodeId, fact: Fact) -> Fact {
        if *signer == self.store.local() {
            fact
        } else {
            fact.forwarded()
        }
    }

    /// Hides a node that is believed dead from queries, or shows it again. It stays known, with its
    /// versions, until its announcement expires. Whether that changed anything.
    pub fn set_dead(&mut self, node: &NodeId, dead: bool) -> bool {
        *node != self.store.local() && self.store.set_dead(node, dead)
    }

    /// Whether a node is hidden as dead.
    pub fn is_dead(&self, node: &NodeId) -> bool {
        self.store.is_dead(node)
    }

    /// Drops what does not hold any more; the nodes among it, by the time of their expiry, and those
    /// that had to leave a full store for others.
    pub fn expire(&mut self, now: Timestamp) -> Vec<NodeId> {
        for key in self.decrees.expire(now) {
            self.digest.set(key, None);
        }
        let mut gone = self.store.expire(now);
        for node in &gone {
            self.follow(node);
        }
        // Who came back meanwhile is not gone.
        let displaced = std::mem::take(&mut self.displaced);
        let absent = |node: &NodeId| self.store.version(node).is_none();
        gone.extend(displaced.into_iter().filter(absent));
        gone
    }

    /// Nodes that had to leave the store for others are told and compared no more.
    fn follow_displaced(&mut self) {
        for node in self.store.take_displaced() {
            self.follow(&node);
            self.displaced.push(node);
        }
    }

    /// When [`Facts::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        let decrees = self.decrees.next_expiry();
        self.store.next_expiry().into_iter().chain(decrees).min()
    }

    /// Drops every node whose token `is_cut` finds withdrawn; these, by node id. For after a
    /// revocation.
    pub fn drop_where(&mut self, is_cut: impl Fn(&Grant) -> bool) -> Vec<NodeId> {
        let gone = self.store.drop_where(is_cut);
        for node in &gone {
            self.follow(node);
        }
        gone
    }

    /// Drops one node. Its version stays remembered. Whether it was known.
    pub fn drop_node(&mut self, node: &NodeId) -> bool {
        let gone = self.store.drop_node(node);
        self.follow(node);
        gone
    }

    /// Takes the revocations that this node stored itself, which were checked when they came.
    pub fn restore_revocations(&mut self, statements: impl IntoIterator<Item = Revocation>) {
        self.decrees.restore(statements);
        for (key, version) in self.decrees.revocations() {
            self.digest.set(key, Some(version));
        }
    }

    /// The announcements: what nodes say, and which of them a query finds.
    pub fn store(&self) -> &AnnouncementStore {
        &self.store
    }

    /// What a node has free, by its latest beat.
    pub fn availability(&self, node: &NodeId) -> Option<Arc<Availability>> {
        self.store.availability(node)
    }

    /// Who accuses a node of being dead, in order.
    pub fn accusers(&self, accused: &NodeId) -> Vec<NodeId> {
        self.suspicions.accusers(accused).collect()
    }

    /// Suspicions held, of all nodes together.
    pub fn suspicions(&self) -> usize {
        self.suspicions.len()
    }

    /// The latest change of the mesh's key, if there was one.
    pub fn psk(&self) -> Option<&PskRotation> {
        self.decrees.psk()
    }

    /// The same, as it travels: for the disk.
    pub fn signed_psk(&self) -> Option<&SignedPskRotation> {
        self.decrees.signed_psk()
    }

    /// What was refused so far, of all kinds.
    pub fn refusals(&self) -> &Refusals {
        self.store.refusals()
    }

    /// What became of an announcement or a beat.
    fn received(&mut self, key: Key<NodeId>, version: u64, hops: u8, received: Received) -> Taken {
        let new = |change| (key, version, Outcome::New { hops }, vec![change]);
        match received {
            Received::Stored { known, .. } => {
                self.follow_displaced();
                self.follow(&known.0);
                new(Change::Node(known))
            }
            Received::Renewed { node, .. } => {
                self.follow(&node);
                new(Change::Renewed(node))
            }
            // An announcement that was renewed since, or our own words of before: the sender has not
            // heard the latest.
            Received::Duplicate if self.digest.version(&key) > Some(version) => {
                (key, version, Outcome::Old, Vec::new())
            }
            Received::Duplicate => (key, version, Outcome::Duplicate, Vec::new()),
            Received::Incomplete => (key, version, Outcome::Incomplete, Vec::new()),
            Received::OwnAhead { version } => (
                key,
                version,
                Outcome::Duplicate,
                vec![Change::OwnAhead { version }],
            ),
            Received::Refused(refusal) => refused(key, version, hops, refusal),
        }
    }

    /// Takes a suspicion. Those that matter to nobody are refused before the signature is looked at.
    fn suspect(
        &mut self,
        signed: SignedSuspicion,
        trust: &VerifyContext<'_>,
    ) -> Result<Taken, RefusedBy> {
        let (accuser, hops, bytes) = (signed.accuser(), signed.hops, signed.envelope.body_len());
        if hops > MAX_HOPS {
            return Err(RefusedBy::Hops { hops });
        }
        if bytes > MAX_SUSPICION {
            return Err(RefusedBy::TooLarge {
                bytes,
                most: MAX_SUSPICION,
            });
        }
        let body = claimed_suspicion(&signed).ok_or(RefusedBy::Malformed("body"))?;
        let (accused, version) = (body.accused, body.version);
        if accused == accuser {
            return Err(RefusedBy::Malformed("accused"));
        }
        let key = Key::Suspicion { accused, accuser };
        if self.digest.version(&key) == Some(version) {
            return Ok((key, version, Outcome::Duplicate, Vec::new()));
        }
        if body.at > trust.now.saturating_add(trust.tolerance) {
            return Err(RefusedBy::FutureIssued { at: body.at });
        }
        if !self.store.is_believed(&accuser, trust) {
            return Err(RefusedBy::Stranger);
        }
        let known = self.store.version(&accused);
        let known = known.ok_or(RefusedBy::UnknownAccused)?;
        if version < known {
            // Who tells it has not heard the answer of the accused.
            let refuted = RefusedBy::Rollback { version, known };
            self.store.count(&refuted);
            return Ok(refused(Key::Node(accused), version, hops, refuted));
        }
        if version > known && accused == self.store.local() {
            return Err(RefusedBy::Malformed("version"));
        }
        if version > known {
            return Ok((Key::Node(accused), version, Outcome::Incomplete, Vec::new()));
        }
        if !self.suspicions.has_room(&accused, &accuser) {
            return Ok((key, version, Outcome::Old, Vec::new()));
        }
        if !self.suspicions.may_speak(&accuser, trust.now) {
            return Err(RefusedBy::RateLimited);
        }
        signed.open().map_err(|_| RefusedBy::BadSignature)?;
        if let Some(gone) = self.suspicions.insert(accused, signed, trust.now) {
            self.digest.set(gone, None);
        }
        self.digest.set(key, Some(version));
        let change = Change::Accused { accused, accuser };
        Ok((key, version, Outcome::New { hops }, vec![change]))
    }

    fn revoke(
        &mut self,
        statement: Revocation,
        trust: &VerifyContext<'_>,
    ) -> Result<Taken, RefusedBy> {
        let decreed = self.decrees.revoke(statement, trust)?;
        let (key, held) = (decreed.key, self.held_revocation(&decreed.key));
        debug_assert!(held.is_some(), "{key:?}");
        Ok(self.decreed(decreed, held.map(Change::Revoked)))
    }

    fn held_revocation(&self, key: &Key<NodeId>) -> Option<Arc<Revocation>> {
        match key {
            Key::Revocation(hash) => self.decrees.revocation(hash).cloned(),
            _ => None,
        }
    }

    fn rotate(
        &mut self,
        signed: SignedPskRotation,
        trust: &VerifyContext<'_>,
    ) -> Result<Taken, RefusedBy> {
        let decreed = self.decrees.rotate(signed, trust)?;
        let epoch = self.decrees.psk().map(|rotation| rotation.epoch);
        Ok(self.decreed(decreed, epoch.map(Change::Psk)))
    }

    fn decreed(&mut self, decreed: Decreed, change: Option<Change>) -> Taken {
        for key in decreed.gone {
            self.digest.set(key, None);
        }
        let is_new = matches!(decreed.outcome, Outcome::New { .. });
        if is_new {
            self.digest.set(decreed.key, Some(decreed.version));
        }
        let changes = change.filter(|_| is_new).into_iter().collect();
        (decreed.key, decreed.version, decreed.outcome, changes)
    }

    /// Brings hashes and suspicions up to what the store holds of a node: who spoke again is not
    /// suspect any more, and who is forgotten is nobody's concern.
    fn follow(&mut self, node: &NodeId) {
        let key = Key::Node(*node);
        let version = self.store.version(node);
        if self.digest.version(&key) == version {
            return;
        }
        self.digest.set(key, version);
        let gone = match version {
            Some(_) => self.suspicions.clear(node),
            None => self.suspicions.forget(node),
        };
        for key in gone {
            self.digest.set(key, None);
        }
    }
}

/// Who sends what is older than what is held has only not heard; all else is not believed.
///
/// Of two statements of one version each node keeps the first that it hears. Told of the other, it
/// answers the signer alone, whose memory may be lost: two others would tell each other theirs for as
/// long as both hold.
fn refused(key: Key<NodeId>, version: u64, hops: u8, refusal: RefusedBy) -> Taken {
    let by_signer = hops == 0 && matches!(key, Key::Node(_));
    let outcome = match refusal {
        RefusedBy::Rollback { version, known } if version < known || by_signer => Outcome::Old,
        RefusedBy::Rollback { .. } => Outcome::Duplicate,
        _ => Outcome::Refused,
    };
    (key, version, outcome, vec![Change::Refused(refusal)])
}

impl Ledger<NodeId> for Facts {
    fn version(&self, key: &Key<NodeId>) -> Option<u64> {
        self.digest.version(key)
    }

    fn nodes(&self) -> usize {
        self.store.others()
    }

    fn nth(&self, n: usize) -> Option<NodeId> {
        self.store.nth_other(n)
    }

    fn summary(&self) -> u64 {
        self.digest.summary()
    }

    fn bucket(&self, index: u8) -> u64 {
        self.digest.bucket(index)
    }

    fn keys(&self, bucket: u8) -> Vec<(Key<NodeId>, u64)> {
        self.digest.keys(bucket)
    }
}
