//! The inside of a running node: its parts, and the upkeep that time demands.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_identity::{Contact, NodeId, Scope};
use meshwork_proto::membership::Input;
use meshwork_proto::mesh::{MeshStatus, PeerView};
use meshwork_proto::path::Route;
use meshwork_proto::ports::Entropy;
use meshwork_proto::rpc::{RpcError, Status};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admission::Admission;
use crate::config::MeshConfig;
use crate::credentials::Credentials;
use crate::gossip::Gossip;
use crate::path::Paths;
use crate::peer::{Link, Peers};
use crate::psk::Psks;
use crate::rpc::{Desk, Outlook, close_code};
use crate::state::StateStore;
use crate::transport::Endpoint;
use crate::traversal::Traversal;

/// Meshwork's version, told to peers for people to read.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Time between two rounds of upkeep. What has expired ends within it, and so within a second.
const UPKEEP: Duration = Duration::from_millis(900);
/// Rounds of upkeep between two clearings of what only takes up room: a minute.
const CLEARING: u64 = 67;

/// A running node. Its tasks hold it until [`crate::Mesh::shutdown`]; handlers hold it weakly.
pub(crate) struct Node {
    pub(crate) config: MeshConfig,
    pub(crate) state: Arc<dyn StateStore>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) psks: Psks,
    pub(crate) desk: Arc<Desk>,
    /// What it has seen of others as a caller.
    pub(crate) outlook: Arc<Outlook>,
    pub(crate) endpoint: Endpoint,
    /// Where peers are, below the endpoint.
    pub(crate) paths: Arc<Paths>,
    pub(crate) traversal: Traversal,
    pub(crate) peers: Peers,
    pub(crate) gossip: Gossip,
    pub(crate) admission: Admission,
    /// Owns every task of the node.
    pub(crate) tasks: TaskTracker,
    pub(crate) started: Instant,
}

/// The node of a handler, if it is still there.
pub(crate) fn alive(node: &Weak<Node>) -> Result<Arc<Node>, RpcError> {
    node.upgrade().ok_or_else(|| {
        RpcError::new(Status::Cancelled, "the node has shut down").reason("shutting_down")
    })
}

impl Node {
    /// Where others may dial us.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        if !self.config.accept {
            return Vec::new();
        }
        if !self.config.advertise.is_empty() {
            return self.config.advertise.clone();
        }
        let bound = self.paths.local_addr().ok();
        bound
            .filter(|addr| !addr.ip().is_unspecified())
            .into_iter()
            .collect()
    }

    /// Where `node` may be, by all that is known: by what it was pinned with, by its announcement, by
    /// what was kept of it. Of the latter two, which are hearsay, only where one may be.
    pub(crate) fn contact(&self, node: NodeId) -> Contact {
        let pinned = self.peers.pinned(&node).map(|contact| contact.addrs);
        let announced = self.gossip.facts().store().get(&node);
        let announced = announced.map(|body| body.addresses.clone());
        let kept = self.gossip.kept_addresses(&node);
        let heard: Vec<SocketAddr> = [announced, kept].into_iter().flatten().flatten().collect();
        let heard = self.dialable(&heard);
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in pinned.into_iter().flatten().chain(heard) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        Contact { node, addrs }
    }

    /// Whether this node speaks for itself in the mesh: others may reach it, and it may announce. A
    /// client only asks.
    pub(crate) fn speaks(&self) -> bool {
        let own = self.credentials.own_standing();
        let may = own
            .grants
            .iter()
            .any(|grant| grant.scopes.allows(Scope::Announce));
        self.config.accept && may
    }

    /// Where a peer was reached that we dialled.
    pub(crate) fn dialled_at(&self, link: &Link) -> Option<SocketAddr> {
        match self.paths.route(&link.peer) {
            Some(Route::Direct { addr, .. }) if link.dialled => Some(addr),
            _ => None,
        }
    }

    /// Does what is due, until the node shuts down.
    pub(crate) async fn upkeep(self: Arc<Self>) {
        let draining = self.desk.draining.clone();
        let rounds = async {
            let mut ticks = interval(UPKEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for round in 0u64.. {
                ticks.tick().await;
                self.do_round();
                if round.is_multiple_of(CLEARING) {
                    self.clear().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = rounds => {}
        }
    }

    fn do_round(self: &Arc<Self>) {
        let now = self.credentials.now();
        self.lapse();
        let expired = self.gossip.facts().expire(now);
        for peer in expired {
            if peer == self.credentials.node_id() {
                self.gossip.has_expired();
            } else {
                self.membership(Input::Forgotten { peer });
            }
        }
        if self.psks.advance(now) {
            self.endpoint.set_psks(self.psks.set());
        }
        self.close_idle();
        self.keep_announced();
    }

    async fn clear(&self) {
        self.credentials.judge_own();
        self.credentials.purge().await;
        self.admission.purge(self.credentials.now());
        if let Err(error) = self.credentials.save().await {
            warn!(%error, "revocations are in force, and not stored yet");
        }
        if let Err(error) = self.follow_rotation() {
            warn!(%error, "the new pre-shared key is not stored, and not used yet");
        }
    }

    /// Closes connections that we dialled, did not pin, and no longer use. The other side leaves
    /// that to us, as it cannot know what we keep one for; unless we hold no token that holds: then
    /// we only take up its room.
    fn close_idle(&self) {
        for link in self.peers.living() {
            let kept = if link.dialled {
                self.peers.pinned(&link.peer).is_some() || self.peers.is_kept(&link.peer)
            } else {
                !link.standing.borrow().grants.is_empty()
            };
            if !kept && link.last_use.idle() > self.config.idle && link.calls.close_if_idle() {
                self.peers.forget(&link);
                link.close(close_code::IDLE, "not used");
            }
        }
    }

    pub(crate) fn status(&self) -> MeshStatus {
        let stats = self.endpoint.stats();
        let account = self.gossip.account();
        let peers = self.peer_views(&account.neighbours);
        let (known, refused) = {
            let facts = self.gossip.facts();
            (facts.store().len() as u64, facts.refusals().total())
        };
        MeshStatus {
            node: self.credentials.node_id(),
            authority: self.credentials.authority,
            version: VERSION.to_owned(),
            roles: self.config.roles.clone(),
            listening: self.paths.local_addr().into_iter().collect(),
            uptime: self.started.elapsed(),
            peers,
            known,
            strangers: stats.unknown_initials + stats.foreign_datagrams,
            failed_handshakes: stats.handshakes_failed,
            refused_announcements: refused,
            nat: self.traversal.nat_class(),
            reflex: self.traversal.reflex(),
            mapped: self.traversal.mapped(),
            mapping: self.traversal.mapping(),
            relays: self.traversal.relays(),
            traversal: self.traversal.stats(self.paths.stats().rotations),
            health: account.health,
            suspects: account.suspects,
            dead: account.dead,
            membership: account.counters,
        }
    }

    /// The connections in use, by node id.
    pub(crate) fn peer_views(&self, neighbours: &[NodeId]) -> Vec<PeerView> {
        let links = self.peers.all();
        let views = links.iter().map(|link| PeerView {
            neighbour: neighbours.contains(&link.peer),
            ..link.view()
        });
        views.collect()
    }
}
