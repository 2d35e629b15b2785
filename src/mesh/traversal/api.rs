//! What [`Mesh`] shows of all this.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::mesh::TraversalStats;
use meshwork_proto::path::{NatClass, Route};

use super::TraversalError;
use super::reflex::reachable;
use crate::error::MeshError;
use crate::mesh::Mesh;
use crate::node::Node;
use crate::peer::Link;
use crate::rpc::after;

/// How long it may take to reach a peer at all, before its path is made shorter.
const REACH: Duration = Duration::from_secs(15);

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// To an address of the peer.
    Direct,
    /// Through this relay.
    Relay(NodeId),
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Relay(relay) => write!(f, "relay via {}", relay.short()),
        }
    }
}

impl Mesh {
    /// What lies between this node and the rest of the network, as far as peers could tell.
    pub fn nat_class(&self) -> NatClass {
        self.node().traversal.nat_class()
    }

    /// Where others see this node; none before two of them agree.
    pub fn reflex_addr(&self) -> Option<SocketAddr> {
        self.node().traversal.reflex()
    }

    /// The relays over which others reach this node.
    pub fn home_relays(&self) -> Vec<NodeId> {
        self.node().traversal.relays()
    }

    /// Asks peers anew where they see this node, and classifies by their answers: at most 5 s.
    pub async fn reclassify_nat(&self) -> NatClass {
        self.node().sweep().await;
        self.nat_class()
    }

    /// Asks one peer where it sees this node: at most 3 s, once it is connected.
    pub async fn probe_reflex(&self, peer: NodeId) -> Result<SocketAddr, TraversalError> {
        let link = self.node().linked(peer).await?;
        self.node().probe_link(&link).await
    }

    /// Connects to `peer`, directly if its NAT and ours allow that at all, with `coordinator` as a
    /// relay over which the two agree, if one is given.
    ///
    /// The answer tells which path is in use. Where no direct path is possible, that is a relay, and
    /// no error. An error of kind `punch-failed` or `rendezvous-rejected` means that a direct path
    /// was tried for and not got; the connection lives on over its relay.
    pub async fn connect_direct(
        &self,
        peer: NodeId,
        coordinator: Option<NodeId>,
    ) -> Result<PathKind, TraversalError> {
        let node = self.node();
        if let Some(coordinator) = coordinator {
            node.coordinate(peer, coordinator).await?;
        }
        let link = node.linked(peer).await?;
        let Some(relay) = node.relay_of(&peer) else {
            return Ok(PathKind::Direct);
        };
        let Err(error) = node.upgrade(&link).await else {
            return Ok(PathKind::Direct);
        };
        node.fell_back();
        match error {
            TraversalError::PunchFailed(_) if !node.is_likely(&peer) => Ok(PathKind::Relay(relay)),
            error => Err(error),
        }
    }

    /// What this node did to reach peers behind NATs, and for others who did.
    pub fn traversal_stats(&self) -> TraversalStats {
        self.node().status().traversal
    }

    /// Holds `addr` to be where everybody reaches this node, by the operator's word: it counts as
    /// `open`, and announces the address at once. Fails where no other machine can reach anybody.
    pub fn set_reflex_override(&self, addr: SocketAddr) -> Result<(), MeshError> {
        let addr = reachable(addr)?;
        self.node()
            .traversal
            .update(|place| place.forced = Some(addr));
        Ok(())
    }

    /// Ends [`Mesh::set_reflex_override`]: what peers see counts again.
    pub fn clear_reflex_override(&self) {
        self.node().traversal.update(|place| place.forced = None);
    }
}

impl Node {
    /// The connection with `peer`, over whatever path.
    async fn linked(self: &Arc<Self>, peer: NodeId) -> Result<Arc<Link>, TraversalError> {
        let contact = self.contact(peer);
        self.reach(&contact, after(REACH))
            .await
            .map_err(|error| TraversalError::PeerNotReachable(peer, error))
    }

    /// Makes `coordinator` one of the relays over which `peer` is reached.
    async fn coordinate(
        self: &Arc<Self>,
        peer: NodeId,
        coordinator: NodeId,
    ) -> Result<(), TraversalError> {
        let lacking = |why: String| {
            let short = coordinator.short();
            TraversalError::RendezvousNoRelay(format!("coordinator {short}… {why}"))
        };
        if coordinator == peer || coordinator == self.credentials.node_id() {
            return Err(lacking("is one of the two itself".to_owned()));
        }
        let contact = self.contact(coordinator);
        self.reach(&contact, after(REACH))
            .await
            .map_err(|error: MeshError| lacking(format!("is not reached: {error}")))?;
        if !self.is_direct(&coordinator) {
            return Err(lacking("is reached over a relay itself".to_owned()));
        }
        self.open_relay(peer, coordinator);
        Ok(())
    }

    fn relay_of(&self, peer: &NodeId) -> Option<NodeId> {
        match self.paths.route(peer) {
            Some(Route::Relay(relay)) => Some(relay),
            _ => None,
        }
    }

    fn fell_back(&self) {
        self.traversal
            .relay_fallbacks
            .fetch_add(1, Ordering::Relaxed);
    }
}
