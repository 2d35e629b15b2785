//! Which nodes satisfy a query.

use std::sync::Arc;

use meshwork_identity::NodeId;

use super::AnnouncementStore;
use super::bits::Bits;
use super::record::Held;
use crate::announcement::{Announcement, Role};
use crate::ports::Known;
use crate::query::{Query, View};

impl AnnouncementStore {
    /// The first `limit` nodes, by node id, that satisfy `query` and that `view` shows; and how
    /// many there are in all.
    pub fn find(&self, query: &Query, view: &View, limit: usize) -> (Vec<Known>, usize) {
        if let Some(slots) = self.index.few(query.tree()) {
            let mut hits: Vec<Known> = slots
                .into_iter()
                .filter_map(|slot| self.known(slot))
                .filter(|(node, body)| self.satisfies(node, body, query) && view.shows(body))
                .collect();
            hits.sort_unstable_by_key(|(node, _)| *node);
            let total = hits.len();
            hits.truncate(limit);
            return (hits, total);
        }
        let hits = self.index.find(query.tree(), view, |slot| {
            self.known(slot)
                .is_some_and(|(node, body)| self.satisfies(&node, &body, query))
        });
        let total = hits.count();
        (self.first(&hits, total, limit), total)
    }

    fn satisfies(&self, node: &NodeId, body: &Announcement, query: &Query) -> bool {
        let held = self.held(node).filter(|_| query.asks_free());
        let free = held.and_then(Held::availability);
        query.matches_with(node, body, free.as_ref())
    }

    /// Nodes believed dead that satisfy `query` and that `view` shows, by node id. What they have free
    /// is unknown.
    pub fn find_dead(&self, query: &Query, view: &View) -> Vec<Known> {
        self.holding()
            .filter(|(_, held)| held.dead)
            .map(|(node, held)| (*node, self.body(node, held)))
            .filter(|(node, body)| query.matches(node, body) && view.shows(body))
            .collect()
    }

    /// Every node with this role that is held and not believed dead, by node id, with its latest
    /// version. Decodes no announcement.
    pub fn with_role(&self, role: Role) -> Vec<(NodeId, u64)> {
        let slots = self.index.with_role(role).into_iter();
        let nodes = slots.filter_map(|slot| self.slots[slot as usize]);
        let mut versions: Vec<_> = nodes
            .filter_map(|node| Some((node, self.version(&node)?)))
            .collect();
        versions.sort_unstable();
        versions
    }

    /// The first `limit` of `hits` by node id: by walking all nodes in order where hits are dense,
    /// by sorting the hits where they are sparse.
    fn first(&self, hits: &Bits, total: usize, limit: usize) -> Vec<Known> {
        if limit == 0 || total == 0 {
            return Vec::new();
        }
        let walk = self.records.len().saturating_mul(limit.min(total)) / total;
        if walk <= total.saturating_mul(SORT_COST) {
            let dense = self.living().filter(|(_, held)| hits.contains(held.slot));
            return dense
                .take(limit)
                .map(|(node, held)| (*node, self.body(node, held)))
                .collect();
        }
        let mut ids: Vec<(NodeId, u32)> = hits
            .iter()
            .filter_map(|slot| Some((self.slots[slot as usize]?, slot)))
            .collect();
        if limit < ids.len() {
            ids.select_nth_unstable(limit);
            ids.truncate(limit);
        }
        ids.sort_unstable();
        ids.into_iter()
            .filter_map(|(_, slot)| self.known(slot))
            .collect()
    }

    /// What a node says, decoded; at hand from now on.
    pub(super) fn body(&self, node: &NodeId, held: &Held) -> Arc<Announcement> {
        if let Some((_, body)) = self.bodies.get(held.slot) {
            return body;
        }
        let body = held.body();
        self.bodies.put(held.slot, (*node, Arc::clone(&body)));
        body
    }

    /// The node in a slot, and what it says.
    fn known(&self, slot: u32) -> Option<Known> {
        self.bodies.get(slot).or_else(|| {
            let node = self.slots[slot as usize]?;
            Some((node, self.body(&node, self.held(&node)?)))
        })
    }
}

/// How much more sorting costs for each hit than walking for each node.
const SORT_COST: usize = 4;
