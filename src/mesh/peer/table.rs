//! The table of connections by node id, and the rule by which two nodes that dial each other at
//! once keep the same one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshwork_identity::{Contact, NodeId};

use super::{DialResult, Link};
use crate::rpc::{RpcLimits, Share};
use crate::watch;

/// Connections that one identity may have with us: those of a node on their way in and out, and those
/// of a user's clients at work at the same time.
const MAX_LINKS_PER_PEER: usize = 64;

/// The connections of a node.
pub(crate) struct Peers {
    local: NodeId,
    table: Mutex<Table>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    /// The one in use for each peer. Both sides have greeted on it.
    links: BTreeMap<NodeId, Arc<Link>>,
    /// All living connections of each peer: those above, and others on their way up or out.
    living: BTreeMap<NodeId, Living>,
    /// Dials under way.
    dials: BTreeMap<NodeId, watch::Receiver<Option<DialResult>>>,
    /// Peers to stay connected with.
    pinned: BTreeMap<NodeId, Contact>,
    /// Peers whose connections do not end for want of calls, and for which reasons: bits of [`Keep`].
    kept: BTreeMap<NodeId, u8>,
}

/// Why a connection is kept though no call uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The peer is in the active view.
    Neighbour = 1,
    /// It is a home relay of ours, over which others reach us.
    HomeRelay = 2,
    /// Peers are reached over it.
    Relay = 4,
}

/// The living connections of one peer.
struct Living {
    links: Vec<Arc<Link>>,
    /// What they hold of us together.
    share: Arc<Share>,
}

/// What became of a connection that was offered to the table.
#[derive(Debug)]
pub(crate) enum Offer {
    /// It is in use now.
    Installed,
    /// It is in use now, in place of one that may finish its calls.
    Replaced(Arc<Link>),
    /// It is in use now, in place of one that its dialler has given up.
    Superseded(Arc<Link>),
    /// This one is in use and is to be preferred, if it is alive.
    Contested(Arc<Link>),
    /// It has ended meanwhile.
    Ended,
}

impl Peers {
    pub(crate) fn new(local: NodeId) -> Self {
        Self {
            local,
            table: Mutex::default(),
            changes: watch::Sender::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a new connection: its peer's share of this node. None when the peer dialled it
    /// and has too many.
    pub(crate) fn enter(&self, link: &Arc<Link>, limits: &RpcLimits) -> Option<Arc<Share>> {
        let mut table = self.table();
        let living = table.living.entry(link.peer).or_insert_with(|| Living {
            links: Vec::new(),
            share: Arc::new(Share::new(limits)),
        });
        if !link.dialled && living.links.len() >= MAX_LINKS_PER_PEER {
            return None;
        }
        living.links.push(link.clone());
        Some(living.share.clone())
    }

    /// Every living connection, by node id and age.
    pub(crate) fn living(&self) -> Vec<Arc<Link>> {
        let table = self.table();
        let living = table.living.values().flat_map(|peer| &peer.links);
        living.cloned().collect()
    }

    /// Offers a connection on which both sides have greeted.
    ///
    /// Of two connections that the peers dialled to each other at once, both keep the one that the
    /// lower node id dialled. Of two that the same side dialled, the newer: its dialler has given
    /// the older one up. Clients that share an identity each keep their own.
    pub(crate) fn offer(&self, link: &Arc<Link>) -> Offer {
        let offer = {
            let mut table = self.table();
            let living = table.living.get(&link.peer);
            if !living.is_some_and(|peer| peer.links.iter().any(|known| Arc::ptr_eq(known, link))) {
                return Offer::Ended;
            }
            match table.links.get(&link.peer).cloned() {
                Some(old) if Arc::ptr_eq(&old, link) => return Offer::Installed,
                Some(old) if old.dialled != link.dialled && self.prefers(&old) => {
                    return Offer::Contested(old);
                }
                old => {
                    table.links.insert(link.peer, link.clone());
                    match old {
                        None => Offer::Installed,
                        Some(old) if old.is_client() && link.is_client() => Offer::Installed,
                        Some(old) if old.dialled == link.dialled => Offer::Superseded(old),
                        Some(old) => Offer::Replaced(old),
                    }
                }
            }
        };
        self.changes.send_replace(());
        offer
    }

    fn prefers(&self, link: &Link) -> bool {
        link.dialled == (self.local < link.peer)
    }

    /// Takes a connection that has ended out of the table.
    pub(crate) fn remove(&self, link: &Arc<Link>) {
        let mut table = self.table();
        if let Some(living) = table.living.get_mut(&link.peer) {
            living.links.retain(|known| !Arc::ptr_eq(known, link));
            if living.links.is_empty() {
                table.living.remove(&link.peer);
            }
        }
        drop(table);
        self.forget(link);
    }

    /// Uses a connection no more, though it has not ended yet.
    pub(crate) fn forget(&self, link: &Arc<Link>) {
        let mut table = self.table();
        if table
            .links
            .get(&link.peer)
            .is_some_and(|known| Arc::ptr_eq(known, link))
        {
            table.links.remove(&link.peer);
        }
        drop(table);
        self.changes.send_replace(());
    }

    /// The connection in use with `peer`.
    pub(crate) fn get(&self, peer: &NodeId) -> Option<Arc<Link>> {
        self.table().links.get(peer).cloned()
    }

    /// The same by the raw bytes of the peer's id.
    pub(crate) fn by_key(&self, peer: &[u8; 32]) -> Option<Arc<Link>> {
        self.table().links.get(peer).cloned()
    }

    /// Every connection in use, by node id.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.table().links.values().cloned().collect()
    }

    /// Tells of every change of the connections in use.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Waits for a connection with `peer`.
    pub(crate) async fn connected(&self, peer: &NodeId) -> Arc<Link> {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(link) = self.get(peer) {
                return link;
            }
            // The sender is `self`.
            let _ = changes.changed().await;
        }
    }

    /// Waits until there is no connection with `peer`.
    pub(crate) async fn disconnected(&self, peer: &NodeId) {
        let mut changes = self.changes.subscribe();
        while self.get(peer).is_some() {
            let _ = changes.changed().await;
        }
    }

    /// The dial to `peer` that is under way.
    pub(crate) fn dialling(&self, peer: &NodeId) -> Option<watch::Receiver<Option<DialResult>>> {
        self.table().dials.get(peer).cloned()
    }

    /// The dial to `peer` that is under way, or `start`'s.
    pub(crate) fn dial(
        &self,
        peer: NodeId,
        start: impl FnOnce() -> watch::Receiver<Option<DialResult>>,
    ) -> watch::Receiver<Option<DialResult>> {
        self.table().dials.entry(peer).or_insert_with(start).clone()
    }

    /// The dial to `peer` is over.
    pub(crate) fn dialled(&self, peer: &NodeId) {
        self.table().dials.remove(peer);
    }

    /// Stays connected with the contact from now on; whether that is new. The last addresses given
    /// count.
    pub(crate) fn pin(&self, contact: Contact) -> bool {
        self.table().pinned.insert(contact.node, contact).is_none()
    }

    pub(crate) fn pinned(&self, peer: &NodeId) -> Option<Contact> {
        self.table().pinned.get(peer).cloned()
    }

    /// Whether some node was pinned at an address of this very machine: others of its mesh may be here,
    /// too.
    pub(crate) fn is_any_pinned_here(&self) -> bool {
        let table = self.table();
        let mut addrs = table.pinned.values().flat_map(|contact| &contact.addrs);
        addrs.any(|addr| addr.ip().to_canonical().is_loopback())
    }

    /// Keeps connections with `peer` from ending for want of calls, for this reason, too.
    pub(crate) fn keep(&self, peer: &NodeId, why: Keep) {
        *self.table().kept.entry(*peer).or_default() |= why as u8;
    }

    /// Takes a reason of [`Peers::keep`] back.
    pub(crate) fn release(&self, peer: &NodeId, why: Keep) {
        let mut table = self.table();
        if let Some(reasons) = table.kept.get_mut(peer) {
            *reasons &= !(why as u8);
            if *reasons == 0 {
                table.kept.remove(peer);
            }
        }
    }

    /// Whether there is a reason to keep connections with `peer`.
    pub(crate) fn is_kept(&self, peer: &NodeId) -> bool {
        self.table().kept.contains_key(peer)
    }
}
