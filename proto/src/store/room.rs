//! Who gets a place in a store that is full, and who has to leave for it.

use meshwork_identity::{NodeId, Timestamp};

use super::shares::{Shares, path_of};
use super::{AnnouncementStore, RECORDS_PER_NODE};
use crate::announcement::SignedAnnouncement;

impl AnnouncementStore {
    pub(super) fn is_full(&self) -> bool {
        self.held >= self.max_nodes
    }

    /// Most keys of which anything is remembered.
    pub(crate) fn max_records(&self) -> usize {
        self.max_nodes.saturating_mul(RECORDS_PER_NODE)
    }

    /// Whether there is a place for the node of an announcement, which need not be verified yet: it
    /// has one, one is free, or another has to leave for it.
    pub(super) fn admits(&mut self, signed: &SignedAnnouncement, now: Timestamp) -> bool {
        if !self.is_full() || self.held(&signed.node()).is_some() {
            return true;
        }
        let path = path_of(&signed.token);
        self.turnover.has_some(now) && self.without_own(|shares| shares.keeps(&path))
    }

    /// Before a node is stored, which will hang at `path`: lets another go if it is one too many, and
    /// forgets the version of one if there is another to be remembered.
    pub(super) fn make_room(&mut self, node: &NodeId, path: &[NodeId], now: Timestamp) {
        let record = self.records.get(node);
        if record.is_some_and(|record| record.held.is_some()) {
            return;
        }
        if let Some(record) = record {
            let own = [*node];
            self.ghosts.remove(record.hung.as_deref().unwrap_or(&own));
        } else if self.records.len() >= self.max_records()
            && let Some(ghost) = self.ghosts.last()
        {
            self.forget(&ghost);
        }
        if self.is_full()
            && let Some(last) = self.leaves_for(node, path)
        {
            self.turnover.charge(now);
            self.drop_node(&last);
            self.displaced.push(last);
        }
    }

    /// Who leaves for a newcomer, which counts already: its own branch may be the largest with it.
    fn leaves_for(&mut self, node: &NodeId, path: &[NodeId]) -> Option<NodeId> {
        if *node == self.local {
            return self.without_own(Shares::last);
        }
        self.shares.add(path);
        let last = self.without_own(Shares::last);
        self.shares.remove(path);
        // It was admitted. Where that was only because this node itself has to stay, another leaves.
        last.filter(|last| last != node)
            .or_else(|| self.without_own(Shares::last))
    }

    /// Forgets a key of which only the version is remembered.
    pub(super) fn forget(&mut self, node: &NodeId) {
        if let Some(record) = self.records.remove(node) {
            self.agenda.remove(&(record.changes_at(), *node));
            self.ghosts
                .remove(record.hung.as_deref().unwrap_or(&[*node]));
        }
    }

    /// Asks how the room is shared by those who may have to leave: this node itself never has to.
    fn without_own<T>(&mut self, ask: impl FnOnce(&Shares) -> T) -> T {
        let own = self
            .held(&self.local)
            .map(|held| path_of(&held.signed.token));
        match own.filter(|_| self.shares.last() == Some(self.local)) {
            Some(own) => {
                self.shares.remove(&own);
                let answer = ask(&self.shares);
                self.shares.add(&own);
                answer
            }
            None => ask(&self.shares),
        }
    }
}
