//! What agents and managers need from the node around them, as small traits: the binary fills them
//! with the mesh, tests with the simulator or a plain table.

use std::sync::Arc;

use meshwork_identity::{Grant, NodeId, Timestamp, Warrant};

use crate::announcement::{Announcement, Role};
use crate::mesh::PeerView;
use crate::query::{Query, ScopeFilter};
use crate::rpc::RpcError;

/// The wall clock. Used for what is signed and shown; never for timers.
pub trait WallClock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

pub use meshwork_identity::noise::Entropy;

/// A node and what it says about itself.
pub type Known = (NodeId, Arc<Announcement>);

/// What this node knows of others. Cheap to ask; never blocks on the network.
pub trait Directory: Send + Sync + 'static {
    /// This node.
    fn local(&self) -> NodeId;
    /// Every node whose announcement holds now, this one included, by node id.
    fn nodes(&self) -> Vec<Known>;
    /// Those of them that satisfy `query` and that this node is meant to find, by node id.
    fn find(&self, query: &Query) -> Vec<Known> {
        self.find_scoped(query, &ScopeFilter::Own)
    }
    /// The same, of what another scope shows to this node.
    fn find_scoped(&self, query: &Query, scope: &ScopeFilter) -> Vec<Known>;
    /// Nodes that satisfy `query`, that `scope` shows to this node and that are believed dead, by node
    /// id: for who shows what is missing. Their announcements hold still.
    fn lost(&self, _query: &Query, _scope: &ScopeFilter) -> Vec<Known> {
        Vec::new()
    }
    /// The nodes with this role among [`Directory::nodes`], by node id, each with the version of what
    /// it says. For who asks often: a directory that need not read what all the nodes say for it
    /// answers faster.
    fn with_role(&self, role: Role) -> Vec<(NodeId, u64)> {
        let nodes = self.nodes().into_iter();
        nodes
            .filter(|(_, said)| said.roles.contains(&role))
            .map(|(node, said)| (node, said.version))
            .collect()
    }
    /// Whether an announcement of `node` holds now, even if it is believed dead. For who asks about
    /// one: a directory that need not read what all the nodes say for it answers faster.
    fn knows(&self, node: &NodeId) -> bool {
        self.nodes().iter().any(|(known, _)| known == node)
    }
    /// The living connection to `node`, if there is one.
    fn peer(&self, node: &NodeId) -> Option<PeerView>;
}

/// Decides whether a user's signed order holds now: chain to this mesh's authority, times,
/// revocations, signature, signer is the token's subject.
pub trait Trust: Send + Sync + 'static {
    /// What the warrant's token allows its signer; the caller still checks scope and resource with
    /// [`Grant::check`].
    fn verify(&self, warrant: &Warrant) -> Result<Grant, RpcError>;
}
