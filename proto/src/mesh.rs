//! The RPC service that every node offers its peers: presenting tokens, joining, announcing,
//! asking what the node knows.

use std::collections::BTreeSet;
use std::time::Duration;

use meshwork_identity::{
    Contact, Limits, NodeId, Revocation, Scopes, Timestamp, Token, bounded_vec,
};
use serde::{Deserialize, Serialize};

use crate::announcement::{Role, SignedAnnouncement};
use crate::limits::{MAX_ANNOUNCEMENTS_PER_CALL, MAX_TOKENS_PER_PEER};

/// First thing that each side of a connection sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// The caller's tokens, at most [`MAX_TOKENS_PER_PEER`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_TOKENS_PER_PEER>")]
    pub tokens: Vec<Token>,
    /// Meshwork's version, for people.
    pub version: String,
    /// Where the caller may be dialled, if anywhere.
    pub addresses: Vec<std::net::SocketAddr>,
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

/// Carries announcements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// At most [`MAX_ANNOUNCEMENTS_PER_CALL`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_ANNOUNCEMENTS_PER_CALL>")]
    pub items: Vec<SignedAnnouncement>,
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
    /// `direct`.
    pub path: String,
    /// Where.
    pub address: std::net::SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Packets lost and sent.
    pub lost: u64,
    /// See `lost`.
    pub sent: u64,
    /// Age of the connection.
    pub age: Duration,
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
}

crate::service! {
    "mesh";
    /// Is it there?
    unary Ping("ping", Open, true): () => Pong;
    /// Presents tokens; the callee answers with its own.
    unary PresentTokens("present", Open, true): Present => Presented;
    /// Redeems a ticket.
    unary JoinMesh("join", Open, true): Join => Joined;
    /// Passes announcements on.
    unary AnnounceNodes("announce", Member, true): Announce => ();
    /// Passes revocations on.
    unary RevokeTokens("revoke", Member, true): Revoke => ();
    /// Asks the index.
    unary FindNodes("find", Member, true): Find => Found;
    /// The node's state.
    unary Inspect("status", Call, true): () => MeshStatus;
    /// Makes a ticket that this node redeems.
    unary MakeTicket("invite", Admin, false): Invite => Invited;
}
