//! What all nodes of the mesh shall know of each other: announcements and revocations, flooded over
//! the connections that there are.
//!
//! Each connection has an outbox that holds *which* facts the peer lacks, not the facts: it is
//! bounded by the number of facts, a slow peer gets the latest version of each only, and nothing is
//! copied. What a lost message fails to carry, the next renewal carries.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::{Grant, NodeId, Revocation, Revoked, Scope};
use meshwork_proto::announcement::{Announcement, SignedAnnouncement};
use meshwork_proto::limits::{MAX_ANNOUNCEMENTS_PER_CALL, MAX_HOPS};
use meshwork_proto::mesh::{Announce, AnnounceNodes, Revoke, RevokeTokens};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::store::{AnnouncementStore, Received};
use quinn::ConnectionError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::error::MeshError;
use crate::node::Node;
use crate::peer::Link;
use crate::rpc::{CallError, close_code};
use crate::state::{StateStore, durably};

/// Where the first version that was not reserved yet is kept.
const STATE_KEY: &str = "announcement-version";
/// Versions reserved with one write to the disk.
const RESERVED: u64 = 1000;
/// How long news is gathered before it is delivered, so that what comes together goes together. Over
/// as many hops as there may be, it adds up to less than a second.
const GATHERING: Duration = Duration::from_millis(50);
/// How long one delivery may take.
const DELIVERY: Duration = Duration::from_secs(10);
/// Pause after a delivery that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Announcements that are checked before other tasks get their turn: some milliseconds.
const CHECKED_AT_ONCE: usize = 16;

/// Announcements of all nodes, and our own.
pub(crate) struct Gossip {
    store: Mutex<AnnouncementStore>,
    own: Mutex<Own>,
}

/// Our own announcement.
struct Own {
    draft: Option<Announcement>,
    /// The next version to sign.
    next: u64,
    /// Versions below this may be used: no later run will use them.
    reserved: u64,
    /// When it is to be renewed.
    renewal: Option<Instant>,
}

impl Gossip {
    pub(crate) fn load(
        local: NodeId,
        capacity: usize,
        state: &dyn StateStore,
    ) -> Result<Self, MeshError> {
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let next = match stored {
            None => 1,
            Some(bytes) => u64::from_be_bytes(bytes.try_into().map_err(|_| {
                MeshError::state(STATE_KEY)(std::io::ErrorKind::InvalidData.into())
            })?),
        };
        Ok(Self {
            store: Mutex::new(AnnouncementStore::with_capacity(local, capacity)),
            own: Mutex::new(Own {
                draft: None,
                next,
                reserved: next,
                renewal: None,
            }),
        })
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, AnnouncementStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether our own announcement is to be renewed by now.
    pub(crate) fn is_due(&self) -> bool {
        self.own().renewal.is_some_and(|at| at <= Instant::now())
    }
}

impl Own {
    /// A version that no announcement of ours had before, in this run or an earlier one.
    fn version(&mut self, state: &dyn StateStore) -> Result<u64, MeshError> {
        if self.next >= self.reserved {
            let reserved = self.next + RESERVED;
            durably(|| state.put(STATE_KEY, &reserved.to_be_bytes()))
                .map_err(MeshError::state(STATE_KEY))?;
            self.reserved = reserved;
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

/// What a peer is to hear of.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pending: Mutex<Pending>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    announcements: BTreeSet<NodeId>,
    revocations: BTreeSet<Revoked>,
}

impl Outbox {
    fn put(
        &self,
        announcements: impl IntoIterator<Item = NodeId>,
        revocations: impl IntoIterator<Item = Revoked>,
    ) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.announcements.extend(announcements);
        pending.revocations.extend(revocations);
        self.filled.notify_one();
    }

    /// The peer knows what these nodes say, as it has just told us.
    fn strike(&self, announcements: &[NodeId]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for node in announcements {
            pending.announcements.remove(node);
        }
    }

    /// Waits for something to deliver, and takes as much as fits one call of each kind.
    async fn take(&self) -> (Vec<NodeId>, Vec<Revoked>) {
        while self.is_empty() {
            self.filled.notified().await;
            sleep(GATHERING).await;
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        (
            take_some(&mut pending.announcements),
            take_some(&mut pending.revocations),
        )
    }

    fn is_empty(&self) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.announcements.is_empty() && pending.revocations.is_empty()
    }
}

fn take_some<T: Ord>(set: &mut BTreeSet<T>) -> Vec<T> {
    std::iter::from_fn(|| set.pop_first())
        .take(MAX_ANNOUNCEMENTS_PER_CALL)
        .collect()
}

impl Node {
    /// Signs `draft` under the next version, stores it and tells the neighbours; from then on it is
    /// renewed in time.
    pub(crate) fn announce(&self, draft: Announcement) -> Result<(), MeshError> {
        let mut own = self.gossip.own();
        self.publish(&mut own, &draft)?;
        own.draft = Some(draft);
        Ok(())
    }

    /// Announces again what was announced last.
    pub(crate) fn renew(&self) {
        let mut own = self.gossip.own();
        let Some(draft) = own.draft.take() else {
            return;
        };
        // Comes true in any case: a failed renewal is tried again as late as a successful one.
        own.renewal = Some(Instant::now() + self.config.announcement_ttl / 3);
        if let Err(error) = self.publish(&mut own, &draft) {
            tracing::warn!(%error, "cannot renew this node's announcement");
        }
        own.draft = Some(draft);
    }

    /// One after the other, so that versions enter the store in their order.
    fn publish(&self, own: &mut Own, draft: &Announcement) -> Result<(), MeshError> {
        let token = self
            .credentials
            .token_with(Scope::Announce)
            .map_err(MeshError::Token)?;
        let body = Announcement {
            version: own.version(&*self.state)?,
            issued_at: self.credentials.now(),
            ttl: self.config.announcement_ttl,
            ..draft.clone()
        };
        own.renewal = Some(Instant::now() + self.config.announcement_ttl / 3);
        let refused = |why: &dyn std::fmt::Display| MeshError::Announcement(why.to_string());
        let signed = SignedAnnouncement::sign(&self.credentials.identity, token, &body)
            .map_err(|error| refused(&error))?;
        let inserted = self
            .gossip
            .store()
            .insert_own(signed, self.credentials.now());
        inserted.map_err(|error| refused(&error))?;
        self.tell(&[self.credentials.node_id()], &[], None);
        Ok(())
    }

    /// Puts facts into the outboxes of all nodes that we are connected with, but `except`.
    fn tell(&self, announcements: &[NodeId], revocations: &[Revoked], except: Option<&NodeId>) {
        for link in self.peers.all() {
            if Some(&link.peer) != except && link.is_node() {
                link.outbox
                    .put(announcements.iter().copied(), revocations.iter().copied());
            }
        }
    }

    /// Lets a new neighbour hear of everything.
    pub(crate) fn introduce(&self, link: &Link) {
        if !link.is_to_be_introduced() {
            return;
        }
        let nodes: Vec<NodeId> = self.gossip.store().iter().map(|(node, _)| node).collect();
        link.outbox.put(nodes, self.credentials.revoked());
    }

    /// Delivers a connection's outbox as it fills, until the connection ends.
    pub(crate) async fn post(&self, link: &Link) -> ConnectionError {
        loop {
            let (announcements, revocations) = tokio::select! {
                biased;
                // What it has not delivered, the connection in its place will.
                () = link.retired.cancelled() => return link.conn.closed().await,
                taken = link.outbox.take() => taken,
            };
            if !self.credentials.is_member() {
                // Nobody would take it. Who gets a token introduces itself anew.
                continue;
            }
            if let Err(error) = self.deliver(link, &announcements, &revocations).await {
                if matches!(error, CallError::Lost(_) | CallError::NotServed) {
                    return link.conn.closed().await;
                }
                debug!(peer = ?link.peer, ?error, "the peer does not take our news");
                let refused = matches!(&error, CallError::Failed(error)
                    if !matches!(error.status, Status::Timeout | Status::Backpressure));
                if !refused {
                    // Announcements come again by themselves, revocations do not.
                    link.outbox.put([], revocations);
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn deliver(
        &self,
        link: &Link,
        announcements: &[NodeId],
        revocations: &[Revoked],
    ) -> Result<(), CallError> {
        let items = self.credentials.statements(revocations);
        if !items.is_empty() {
            match link.ask::<RevokeTokens>(&Revoke { items }, DELIVERY).await {
                // What the peer refuses, it will refuse again; the announcements are its all the same.
                Err(CallError::Failed(error)) if error.status == Status::Denied => {
                    debug!(peer = ?link.peer, %error, "the peer refuses a revocation");
                }
                told => told?,
            }
        }
        let items: Vec<SignedAnnouncement> = {
            let store = self.gossip.store();
            let held = announcements.iter().filter_map(|node| store.signed(node));
            held.filter_map(|signed| self.forwarded(&signed)).collect()
        };
        if !items.is_empty() {
            link.ask::<AnnounceNodes>(&Announce { items }, DELIVERY)
                .await?;
        }
        Ok(())
    }

    /// The announcement as we pass it on, unless it has come far enough.
    fn forwarded(&self, signed: &SignedAnnouncement) -> Option<SignedAnnouncement> {
        let step = u8::from(signed.node() != self.credentials.node_id());
        let hops = signed.hops + step;
        (hops <= MAX_HOPS).then(|| SignedAnnouncement {
            hops,
            ..signed.clone()
        })
    }

    /// Takes announcements that a peer passes on.
    pub(crate) async fn hear(
        &self,
        from: NodeId,
        items: Vec<SignedAnnouncement>,
    ) -> Result<(), RpcError> {
        if items.len() > MAX_ANNOUNCEMENTS_PER_CALL {
            return Err(RpcError::invalid(format!(
                "{} announcements in one call; at most {MAX_ANNOUNCEMENTS_PER_CALL} are allowed",
                items.len()
            )));
        }
        let (mut known, mut new, mut renew) = (Vec::new(), Vec::new(), false);
        for (index, item) in items.into_iter().enumerate() {
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let node = item.node();
            let received = self
                .credentials
                .with_context(|trust| self.gossip.store().receive(item, trust));
            // Of our own, the peer may hold an old one.
            let equal = matches!(received, Received::Stored { .. } | Received::Duplicate);
            if equal && node != self.credentials.node_id() {
                known.push(node);
            }
            match received {
                Received::Stored {
                    forward: Some(_), ..
                } => new.push(node),
                Received::Stored { forward: None, .. } | Received::Duplicate => {}
                Received::OwnAhead { version } => {
                    let mut own = self.gossip.own();
                    own.next = own.next.max(version.saturating_add(1));
                    renew = true;
                }
                Received::Refused(why) => debug!(?from, %why, "announcement refused"),
            }
        }
        if let Some(link) = self.peers.get(&from) {
            link.outbox.strike(&known);
        }
        if renew {
            self.renew();
        }
        if !new.is_empty() {
            self.tell(&new, &[], Some(&from));
        }
        Ok(())
    }

    /// Heeds revocations from now on, durably, and passes them on. A disk that fails is an error, and
    /// is tried again; they are in force all the same. The first that is refused is an error too,
    /// with the others in force.
    pub(crate) async fn heed(
        &self,
        from: Option<NodeId>,
        items: Vec<Revocation>,
    ) -> Result<(), MeshError> {
        let (new, refused) = self.credentials.revoke(items).await;
        for why in &refused {
            debug!(?from, %why, "revocation refused");
        }
        if !new.is_empty() {
            self.credentials.with_context(|context| {
                let cut = |grant: &Grant| grant.revoked_by(context.revocations).is_some();
                self.gossip.store().drop_where(cut);
            });
            self.lapse();
            self.tell(&[], &new, from.as_ref());
        }
        self.credentials.save().await?;
        match refused.into_iter().next() {
            Some(why) => Err(MeshError::Revocation(Arc::new(why))),
            None => Ok(()),
        }
    }

    /// Takes away what has expired or was revoked: from every peer's standing, which ends the calls
    /// that it allowed, and the connection of who is revoked.
    pub(crate) fn lapse(&self) {
        for link in self.peers.living() {
            if self.credentials.is_revoked(&link.peer) {
                link.close(close_code::REVOKED, "revoked");
                continue;
            }
            let standing = link.standing.borrow().clone();
            if let Some(left) = self.credentials.without_lapsed(&standing) {
                link.stands(left);
            }
        }
    }
}
