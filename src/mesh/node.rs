//! The inside of a running node: its parts, and the upkeep that time demands.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_proto::mesh::MeshStatus;
use meshwork_proto::ports::Entropy;
use meshwork_proto::rpc::{RpcError, Status};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admission::Admission;
use crate::config::MeshConfig;
use crate::credentials::Credentials;
use crate::gossip::Gossip;
use crate::peer::Peers;
use crate::rpc::{Desk, close_code};
use crate::state::StateStore;
use crate::transport::Endpoint;

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
    pub(crate) desk: Arc<Desk>,
    pub(crate) endpoint: Endpoint,
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
        let bound = self.endpoint.local_addr().ok();
        bound
            .filter(|addr| !addr.ip().is_unspecified())
            .into_iter()
            .collect()
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

    fn do_round(&self) {
        self.lapse();
        self.gossip.store().expire(self.credentials.now());
        self.close_idle();
        if self.gossip.is_due() {
            self.renew();
        }
    }

    async fn clear(&self) {
        self.credentials.judge_own();
        self.credentials.purge().await;
        self.admission.purge(self.credentials.now());
        if let Err(error) = self.credentials.save().await {
            warn!(%error, "revocations are in force, and not stored yet");
        }
    }

    /// Closes connections that we dialled, did not pin, and no longer use. The other side leaves
    /// that to us, as it cannot know what we keep one for; unless we hold no token that holds: then
    /// we only take up its room.
    fn close_idle(&self) {
        for link in self.peers.living() {
            let kept = if link.dialled {
                self.peers.pinned(&link.peer).is_some()
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
        let store = self.gossip.store();
        MeshStatus {
            node: self.credentials.node_id(),
            authority: self.credentials.authority,
            version: VERSION.to_owned(),
            roles: self.config.roles.clone(),
            listening: self.endpoint.local_addr().into_iter().collect(),
            uptime: self.started.elapsed(),
            peers: self.peers.all().iter().map(|link| link.view()).collect(),
            known: store.len() as u64,
            strangers: stats.unknown_initials + stats.foreign_datagrams,
            failed_handshakes: stats.handshakes_failed,
            refused_announcements: store.refusals().total(),
        }
    }
}
