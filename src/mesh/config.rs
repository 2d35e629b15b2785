//! Settings of a node in the mesh.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{CLOCK_TOLERANCE, Identity, NodeId, Psk, Token};
use meshwork_proto::announcement::Role;
use meshwork_proto::membership::MembershipConfig;
use meshwork_proto::path::PathConfig;
use meshwork_proto::subnet::SubnetPolicy;

use crate::rpc::RpcLimits;
use crate::traversal::RelayConfig;

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
    /// How long an announcement of ours holds; it is renewed after a third of that. Default: none,
    /// for 5 minutes to a day by the size of the mesh (`meshwork_proto::membership::renewal_ttl`), so
    /// that renewals cost the same in a mesh of any size. A node that dies leaves its peers'
    /// directories much earlier, when the membership machine declares it dead.
    pub announcement_ttl: Option<Duration>,
    /// How neighbours are chosen and watched. Default: [`MembershipConfig::default`]. All nodes of a
    /// mesh should have the same.
    pub membership: MembershipConfig,
    /// Derives the node's subnet from its tags, when its announcement names none. Default: none.
    pub subnet_policy: Option<SubnetPolicy>,
    /// The tenants that this node belongs to: what it finds includes what is narrowed to them.
    /// Default: none. No access control: tokens say who may do what.
    pub tenants: BTreeSet<String>,
    /// Whether and how this node forwards packets for peers that cannot reach each other. Default: it
    /// does as soon as it finds that others can reach it, within [`RelayConfig::default`]'s bounds.
    /// None: never.
    pub relay: Option<RelayConfig>,
    /// Whether the router is asked for an open port (PCP, NAT-PMP, `UPnP`). Default: false, so that a
    /// library opens nothing by itself; the binary asks.
    pub port_mapping: bool,
    /// Where others reach this node, by the operator's word, for example a forwarded port. Default:
    /// none; what peers see counts. A node does not start with an address where no other machine can
    /// reach anybody.
    pub reflex_override: Option<SocketAddr>,
    /// How paths to peers are watched and chosen. Default: [`PathConfig::default`].
    pub path: PathConfig,
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
            announcement_ttl: None,
            membership: MembershipConfig::default(),
            subnet_policy: None,
            tenants: BTreeSet::new(),
            relay: Some(RelayConfig::default()),
            port_mapping: false,
            reflex_override: None,
            path: PathConfig::default(),
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
