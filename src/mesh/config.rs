//! Settings of a node in the mesh.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{CLOCK_TOLERANCE, Identity, NodeId, Psk, Token};
use meshwork_proto::announcement::Role;

use crate::rpc::RpcLimits;

/// What a node is and how it behaves. Start from [`MeshConfig::new`].
#[derive(Clone)]
pub struct MeshConfig {
    /// Who we are.
    pub identity: Identity,
    /// The key that every token's chain begins with.
    pub authority: NodeId,
    /// The secret of the mesh.
    pub psk: Psk,
    /// The secret before the last rotation, accepted from others for a while.
    pub previous_psk: Option<Psk>,
    /// What we may do. More can follow with [`crate::Mesh::add_token`].
    pub tokens: Vec<Token>,
    /// The operator's name for the node.
    pub name: String,
    /// What the node does.
    pub roles: BTreeSet<Role>,
    /// Where others may dial us. Default: empty, which stands for the socket's own address where
    /// that is a particular one.
    pub advertise: Vec<SocketAddr>,
    /// Whether others may dial us at all. Default: true; the command line only dials.
    pub accept: bool,
    /// Bounds on what one peer may ask of us.
    pub limits: RpcLimits,
    /// Connections at a time, those of strangers to our tokens included. Default: 1,024. Each costs
    /// some 30 KiB. Members that come when they are taken are turned away as `busy`.
    pub max_peers: usize,
    /// Announcements held at a time. Default: 16,384, about 100 MB at their largest.
    pub max_announcements: usize,
    /// A connection that we dialled, did not pin, and use for no call ends after this. Default: 60 s.
    pub idle: Duration,
    /// A connection whose other end is silent for so long is given up. Default: 20 s. A third of it
    /// is the time between keep-alive packets, so that mappings of NATs live on.
    pub dead_after: Duration,
    /// How long an announcement of ours holds. Default: 60 s; it is renewed after a third of that.
    /// A node that dies leaves its peers' directories after this; whether an agent is alive, its
    /// manager learns from heartbeats much earlier.
    pub announcement_ttl: Duration,
    /// How far clocks of honest nodes may lie apart. Default: 30 s.
    pub clock_tolerance: Duration,
}

impl MeshConfig {
    /// A node of this mesh without tokens, name or role, and with the defaults.
    pub fn new(identity: Identity, authority: NodeId, psk: Psk) -> Self {
        Self {
            identity,
            authority,
            psk,
            previous_psk: None,
            tokens: Vec::new(),
            name: String::new(),
            roles: BTreeSet::new(),
            advertise: Vec::new(),
            accept: true,
            limits: RpcLimits::default(),
            max_peers: 1024,
            max_announcements: 16_384,
            idle: Duration::from_mins(1),
            dead_after: Duration::from_secs(20),
            announcement_ttl: Duration::from_mins(1),
            clock_tolerance: CLOCK_TOLERANCE,
        }
    }
}

impl fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshConfig")
            .field("identity", &self.identity)
            .field("authority", &self.authority)
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("accept", &self.accept)
            .finish_non_exhaustive()
    }
}
