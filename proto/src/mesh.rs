//! The RPC service that every node offers its peers: presenting tokens, joining, announcing,
//! finding ways to each other, asking what the node knows.

use std::collections::BTreeSet;
use std::time::Duration;

use meshwork_identity::{
    Contact, Limits, NodeId, Revocation, Scopes, Timestamp, Token, bounded_vec,
};
use serde::{Deserialize, Serialize};

use crate::announcement::{Role, SignedAnnouncement};
use crate::facts::Fact;
use crate::limits::{MAX_ANNOUNCEMENTS_PER_CALL, MAX_TOKENS_PER_PEER};
use crate::membership::Message;
use crate::path::NatClass;
use crate::psk::SignedPskRotation;
use crate::query::ScopeFilter;
use crate::rpc::MethodView;

/// Addresses in one [`PathOffer`]: a machine has seldom more, and each one costs its receiver some
/// packets.
pub const MAX_CANDIDATES: usize = 16;
/// Addresses that a node presents of itself.
pub const MAX_ADDRESSES: usize = 64;
/// Control messages in one `mesh/gossip` call.
pub const MAX_GOSSIP_MESSAGES: usize = 64;
/// Facts in one `mesh/gossip` call.
pub const MAX_GOSSIP_FACTS: usize = 256;
/// Connections in one [`NeighbourView`].
pub const MAX_NEIGHBOURS: usize = 4096;

/// First thing that each side of a connection sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// The caller's tokens, at most [`MAX_TOKENS_PER_PEER`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_TOKENS_PER_PEER>")]
    pub tokens: Vec<Token>,
    /// Meshwork's version, for people.
    pub version: String,
    /// Where the caller may be dialled, as far as it knows, at most [`MAX_ADDRESSES`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_ADDRESSES>")]
    pub addresses: Vec<std::net::SocketAddr>,
    /// Whether the caller is a node, which others may reach and which takes part in gossip, and no
    /// client, which only asks.
    pub accepts: bool,
}

/// What became of the presented tokens, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presented {
    /// Per token: nothing, or why it was refused (`expired`, `revoked`, …) with a sentence.
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_TOKENS_PER_PEER>")]
    pub refused: Vec<Option<(String, String)>>,
    /// The callee's own tokens, so that one exchange serves both sides.
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_TOKENS_PER_PEER>")]
    pub tokens: Vec<Token>,
}

/// Redeems a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The ticket's number.
    pub id: [u8; 16],
    /// The ticket's secret.
    pub secret: [u8; 16],
    /// What to call the joiner; the node answers with what it was given.
    pub name: String,
}

/// What a ticket was worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Issued to the joiner's id.
    pub token: Token,
    /// `agent`, `manager`, … or `user`.
    pub role: String,
    /// Managers and other nodes to call.
    pub contacts: Vec<Contact>,
    /// Revocations known so far.
    pub revocations: Vec<Revocation>,
}

/// Makes a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// `agent`, `manager`, `relay`, `storage` or `user`.
    pub role: String,
    /// How long the ticket may be redeemed.
    pub ttl: Duration,
    /// How often.
    pub uses: u32,
    /// How long the token holds that the joiner gets.
    pub token_ttl: Duration,
    /// Scopes of that token; none: what the role needs.
    pub scopes: Option<Scopes>,
    /// Limits of that token.
    pub limits: Limits,
    /// Addresses to print in the ticket instead of those that the node knows of itself.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// A ticket, ready to be handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// The line.
    pub ticket: String,
    /// When it expires.
    pub expires: Timestamp,
    /// Three words that both sides can compare.
    pub fingerprint: String,
}

/// Carries news: what a neighbour lacks, and what the membership machine says to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipBatch {
    /// At most [`MAX_GOSSIP_MESSAGES`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_GOSSIP_MESSAGES>")]
    pub messages: Vec<Message<NodeId>>,
    /// At most [`MAX_GOSSIP_FACTS`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_GOSSIP_FACTS>")]
    pub facts: Vec<Fact>,
}

/// Carries revocations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// Signed by the authority or by a holder of scope `admin`; at most
    /// [`MAX_ANNOUNCEMENTS_PER_CALL`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_ANNOUNCEMENTS_PER_CALL>")]
    pub items: Vec<Revocation>,
}

/// Asks a node's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Find {
    /// Query in text form.
    pub query: String,
    /// Most hits to return.
    pub limit: u32,
    /// Tenants and region of the asker, for `scope:*` tags.
    pub tenants: BTreeSet<String>,
    /// See `tenants`.
    pub region: Option<String>,
}

/// The same, of what one scope shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindScoped {
    /// What to find, and who asks.
    pub find: Find,
    /// What the asker wants to see. [`ScopeFilter::Everything`] needs scope `admin`.
    pub scope: ScopeFilter,
}

/// What the index knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The first `limit` hits by node id.
    pub nodes: Vec<SignedAnnouncement>,
    /// Hits in all.
    pub total: u64,
}

/// Answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The node's clock.
    pub now: Timestamp,
    /// Meshwork's version.
    pub version: String,
}

/// One connection, as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Who.
    pub node: NodeId,
    /// `direct`, or `relay via` and the relay's short id.
    pub path: String,
    /// Where.
    pub address: std::net::SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Packets lost and sent.
    pub lost: u64,
    /// See `lost`.
    pub sent: u64,
    /// UDP payload bytes sent on the connection.
    pub bytes_sent: u64,
    /// UDP payload bytes received on it.
    pub bytes_received: u64,
    /// Age of the connection.
    pub age: Duration,
    /// Whether the peer is in the node's active view, over which news spreads.
    pub neighbour: bool,
}

/// What a node did to reach peers behind NATs, and for others who did. Counts since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraversalStats {
    /// Offers of addresses that a peer took up, after which both sides sent probes.
    pub punches_attempted: u64,
    /// Those after which the connection moved to the direct path.
    pub punches_succeeded: u64,
    /// Connections that work, and stay on a relay: punching failed, or could not have succeeded.
    pub relay_fallbacks: u64,
    /// Moves to a new socket before a NAT forgot the old one.
    pub rotations: u64,
    /// Bytes that this node handed on as a relay.
    pub relayed_bytes: u64,
    /// Frames that it did not hand on: the sum of `relay_drops`.
    pub relay_dropped: u64,
    /// The same by cause.
    pub relay_drops: RelayDrops,
}

/// Frames that a relay did not hand on, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayDrops {
    /// The node does not relay.
    pub not_serving: u64,
    /// The sender or the receiver is no member.
    pub not_member: u64,
    /// The receiver is not linked with the relay.
    pub unknown_peer: u64,
    /// The sender exceeds its rate.
    pub over_rate: u64,
    /// All senders together exceed the relay's rate.
    pub over_total: u64,
    /// The receiver's link has no room.
    pub congested: u64,
    /// The frame breaks the format.
    pub malformed: u64,
}

impl RelayDrops {
    /// All causes together.
    pub fn total(&self) -> u64 {
        self.not_serving
            + self.not_member
            + self.unknown_peer
            + self.over_rate
            + self.over_total
            + self.congested
            + self.malformed
    }
}

/// What a node's membership machine counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipCounters {
    /// Direct probes sent.
    pub probes: u64,
    /// Those that nobody answered, indirect ones included.
    pub failed: u64,
    /// Suspicions that this node raised.
    pub raised: u64,
    /// Suspicions against this node or others that a later version refuted.
    pub refuted: u64,
    /// Nodes declared dead.
    pub deaths: u64,
    /// Facts passed on.
    pub floods: u64,
    /// Facts that came again.
    pub duplicates: u64,
    /// Facts that a comparison with a neighbour brought.
    pub repairs: u64,
}

/// A node's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// Which.
    pub node: NodeId,
    /// The mesh's authority.
    pub authority: NodeId,
    /// Meshwork's version.
    pub version: String,
    /// What it does.
    pub roles: BTreeSet<Role>,
    /// Where it listens.
    pub listening: Vec<std::net::SocketAddr>,
    /// Time since it started.
    pub uptime: Duration,
    /// Its connections.
    pub peers: Vec<PeerView>,
    /// Nodes whose announcements it holds.
    pub known: u64,
    /// First packets that no key of ours opened: bystanders and peers with another PSK.
    pub strangers: u64,
    /// Handshakes that failed after that.
    pub failed_handshakes: u64,
    /// Announcements refused (bad signature, replay, rollback, no token, too large).
    pub refused_announcements: u64,
    /// What lies between it and the rest of the network.
    pub nat: NatClass,
    /// Where peers see it, if they agree.
    pub reflex: Option<std::net::SocketAddr>,
    /// Where its router forwards to it, because it asked for that.
    pub mapped: Option<std::net::SocketAddr>,
    /// `off`, the protocol that opened the port (`pcp`, `nat-pmp`, `upnp`), or why none did.
    pub mapping: String,
    /// Its home relays.
    pub relays: Vec<NodeId>,
    /// How it reaches peers behind NATs, and helps others to.
    pub traversal: TraversalStats,
    /// Its doubt about itself: 0 when it is well, more when its probes fail without good reason.
    pub health: u32,
    /// Nodes that it suspects to be dead.
    pub suspects: Vec<NodeId>,
    /// Nodes that it knows and holds to be dead.
    pub dead: u64,
    /// What its membership machine counted.
    pub membership: MembershipCounters,
}

/// Where the callee sees the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reflexed {
    /// The source of the caller's packets.
    pub address: std::net::SocketAddr,
}

/// Where a node may be reached: both sides send probes to all that the other one offers, from the
/// moment they know, so that the NATs between them let the answers in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathOffer {
    /// Addresses of the sender, its own and those that peers see, at most [`MAX_CANDIDATES`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_CANDIDATES>")]
    pub candidates: Vec<std::net::SocketAddr>,
    /// What lies between the sender and the network.
    pub nat: NatClass,
    /// The same in the offer and in its answer.
    pub id: u64,
}

/// Whom a node sees: one row of the mesh's map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourView {
    /// Who looks.
    pub node: NodeId,
    /// Its connections, at most [`MAX_NEIGHBOURS`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_NEIGHBOURS>")]
    pub neighbours: Vec<PeerView>,
    /// Nodes whose announcements it holds.
    pub known: u64,
    /// Nodes that it suspects to be dead, at most [`MAX_NEIGHBOURS`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_NEIGHBOURS>")]
    pub suspects: Vec<NodeId>,
}

crate::service! {
    "mesh";
    /// Is it there?
    unary Ping("ping", Open, true): () => Pong;
    /// Presents tokens; the callee answers with its own.
    unary PresentTokens("present", Open, true): Present => Presented;
    /// Redeems a ticket.
    unary JoinMesh("join", Open, true): Join => Joined;
    /// Passes news on, between nodes.
    unary Gossip("gossip", Member, true): GossipBatch => ();
    /// Changes the mesh's pre-shared key.
    unary RotatePsk("rotate-psk", Admin, true): SignedPskRotation => ();
    /// Passes revocations on.
    unary RevokeTokens("revoke", Member, true): Revoke => ();
    /// Where does the callee see the caller?
    unary Reflex("reflex", Open, true): () => Reflexed;
    /// Offers addresses to be probed from now on, and gets the callee's.
    unary OfferPaths("paths", Member, true): PathOffer => PathOffer;
    /// Whom does the node see?
    unary Survey("map", Member, true): () => NeighbourView;
    /// Asks the index.
    unary FindNodes("find", Member, true): Find => Found;
    /// Asks the index for what a scope shows.
    unary FindScopedNodes("find.scoped", Member, true): FindScoped => Found;
    /// Which methods does the node serve?
    unary ListMethods("methods", Member, true): () => Vec<MethodView>;
    /// The node's state.
    unary Inspect("status", Call, true): () => MeshStatus;
    /// Makes a ticket that this node redeems.
    unary MakeTicket("invite", Admin, false): Invite => Invited;
}
