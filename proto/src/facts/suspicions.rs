//! Who accuses whom of being dead.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_identity::{NodeId, Timestamp};

use crate::membership::{Key, MAX_ACCUSERS};
use crate::store::Allowance;
use crate::suspicion::SignedSuspicion;

/// What an accuser may say: two suspicions a second, forty at once, as when half the mesh is out of
/// its reach.
type Voice = Allowance<500, 40>;

/// The suspicions that are held: of each node those of at most [`MAX_ACCUSERS`], all about its
/// current version.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    /// By accused, then by accuser.
    held: BTreeMap<NodeId, BTreeMap<NodeId, SignedSuspicion>>,
    /// Whom an accuser accuses.
    accused_by: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Of accusers that were believed once and are still known.
    voices: BTreeMap<NodeId, Voice>,
}

impl Suspicions {
    pub(super) fn get(&self, accused: &NodeId, accuser: &NodeId) -> Option<&SignedSuspicion> {
        self.held.get(accused)?.get(accuser)
    }

    /// Who accuses a node, in order.
    pub(super) fn accusers(&self, accused: &NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let theirs = self.held.get(accused);
        theirs.into_iter().flat_map(|theirs| theirs.keys().copied())
    }

    /// Whether another accuser of this node would be kept: those with the smallest ids are, so that
    /// all nodes keep the same ones.
    pub(super) fn has_room(&self, accused: &NodeId, accuser: &NodeId) -> bool {
        self.held.get(accused).is_none_or(|theirs| {
            let last = theirs.last_key_value();
            theirs.len() < MAX_ACCUSERS || last.is_some_and(|(last, _)| accuser < last)
        })
    }

    pub(super) fn may_speak(&self, accuser: &NodeId, now: Timestamp) -> bool {
        let voice = self.voices.get(accuser);
        voice.is_none_or(|voice| voice.has_some(now))
    }

    /// Keeps a suspicion that was checked; the key of the one that has to leave for it, if any.
    pub(super) fn insert(
        &mut self,
        accused: NodeId,
        signed: SignedSuspicion,
        now: Timestamp,
    ) -> Option<Key<NodeId>> {
        let accuser = signed.accuser();
        let voice = self.voices.entry(accuser);
        voice.or_insert_with(|| Voice::new(now)).charge(now);
        self.accused_by.entry(accuser).or_default().insert(accused);
        let theirs = self.held.entry(accused).or_default();
        theirs.insert(accuser, signed);
        let last = *theirs.keys().nth(MAX_ACCUSERS)?;
        Some(self.remove(accused, last))
    }

    /// Drops what is said about a node; the keys. For when it has answered.
    pub(super) fn clear(&mut self, accused: &NodeId) -> Vec<Key<NodeId>> {
        let accusers: Vec<NodeId> = self.accusers(accused).collect();
        let remove = |accuser| self.remove(*accused, accuser);
        accusers.into_iter().map(remove).collect()
    }

    /// Drops what is said about a node and by it; the keys. For when it is known no more.
    pub(super) fn forget(&mut self, node: &NodeId) -> Vec<Key<NodeId>> {
        self.voices.remove(node);
        let mut gone = self.clear(node);
        let accused = self.accused_by.remove(node).unwrap_or_default();
        gone.extend(
            accused
                .into_iter()
                .map(|accused| self.remove(accused, *node)),
        );
        gone
    }

    /// Suspicions held.
    pub(super) fn len(&self) -> usize {
        self.held.values().map(BTreeMap::len).sum()
    }

    fn remove(&mut self, accused: NodeId, accuser: NodeId) -> Key<NodeId> {
        if let Some(theirs) = self.held.get_mut(&accused) {
            theirs.remove(&accuser);
            if theirs.is_empty() {
                self.held.remove(&accused);
            }
        }
        if let Some(accused_by) = self.accused_by.get_mut(&accuser) {
            accused_by.remove(&accused);
            if accused_by.is_empty() {
                self.accused_by.remove(&accuser);
            }
        }
        Key::Suspicion { accused, accuser }
    }
}
