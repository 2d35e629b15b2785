//! The manager's RPC service: the face that the command line and other clients see.

use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp, Warrant};
use serde::{Deserialize, Serialize};

use crate::agent::{ExecItem, LogChunk};
use crate::announcement::Announcement;
use crate::ids::SessionId;
use crate::query::ScopeFilter;
use crate::session::{SessionUpdate, SessionView};
use crate::slots::Capacity;

/// Status code of a refused placement: no node fits now. `reason` is `not_placed`.
pub const STATUS_NOT_PLACED: u16 = 0x8001;

/// Starts a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSession {
    /// The owner's token and signed [`crate::session::SessionOrder`].
    pub warrant: Warrant,
    /// Decide where it would run, and start nothing.
    pub dry_run: bool,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedSession {
    /// The session, placed.
    pub view: SessionView,
    /// Why this node, for people: `lab-2 GPU 1 (A100 80GB, 79.1GB free)`.
    pub plan: String,
}

/// Names a session: its id, a unique prefix of its id, or the caller's name for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// Id, prefix or name.
    pub session: String,
}

/// Lists sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSessions {
    /// Also those that ended.
    pub ended: bool,
    /// Of every owner (needs scope `admin`), not only the caller.
    pub everyone: bool,
}

/// Stops a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSession {
    /// Id, prefix or name.
    pub session: String,
    /// Time between the stop signal and the kill; none: the session's own.
    pub grace: Option<Duration>,
}

/// Asks for a session's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLogs {
    /// Id, prefix or name.
    pub session: String,
    /// Only the last so many lines of what is there; none: all.
    pub tail: Option<u64>,
    /// Whether to go on until the session ends.
    pub follow: bool,
    /// Skip what was written before this.
    pub since: Option<Timestamp>,
}

/// Runs a command in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionExec {
    /// Full id.
    pub session: SessionId,
    /// The owner's token and signed [`crate::agent::ExecOrder`].
    pub warrant: Warrant,
}

/// Lists nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListNodes {
    /// Query in text form; none: all.
    pub query: Option<String>,
}

/// Lists the nodes that one scope shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindNodes {
    /// Query in text form; none: all.
    pub query: Option<String>,
    /// What the asker wants to see. Its own subnet and region are the manager's; those that it names
    /// are as named. [`ScopeFilter::Everything`] needs scope `admin`.
    pub scope: ScopeFilter,
}

/// How a node stands with the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// An agent whose heartbeats arrive.
    Ready,
    /// An agent whose heartbeats stopped less than [`SUSPECT_AFTER`] ago or are yet to come.
    Suspect,
    /// An agent not heard for longer.
    Lost,
    /// A node that is no agent.
    Online,
}

/// Silence after which an agent is suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(8);
/// Silence after which an agent is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(15);

/// What a manager knows about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Which.
    pub node: NodeId,
    /// How it stands.
    pub state: NodeState,
    /// `direct`, or `relay via X`, or `self`, or empty when there is no connection.
    pub path: String,
    /// Round-trip time of the path.
    pub rtt: Option<Duration>,
    /// What it says about itself.
    pub announcement: Announcement,
    /// What it has and what is free, if it is an agent and was heard.
    pub capacity: Option<Capacity>,
    /// Kernels on it that are not terminated.
    pub kernels: u32,
    /// Time since the manager last heard it.
    pub seen: Duration,
}

crate::service! {
    "manager";
    /// Places and starts a session; answers once the node has accepted it.
    unary Create("session.create", Call, true): CreateSession => CreatedSession;
    /// One session.
    unary Get("session.get", Call, true): SessionRef => SessionView;
    /// Sessions, newest first.
    unary List("session.list", Call, true): ListSessions => Vec<SessionView>;
    /// Stops a session; answers once the intent is on disk.
    unary Stop("session.stop", Call, true): StopSession => SessionView;
    /// Forgets a session that ended, and its logs.
    unary Remove("session.remove", Call, true): SessionRef => ();
    /// A session's state, and every change until it ends.
    stream Watch("session.watch", Call, true): SessionRef => SessionUpdate;
    /// A session's output.
    stream Logs("session.logs", Call, true): SessionLogs => LogChunk;
    /// Runs a command in a session.
    stream Exec("session.exec", Call, false): SessionExec => ExecItem;
    /// Nodes, by name.
    unary Nodes("node.list", Call, true): ListNodes => Vec<NodeView>;
    /// Nodes that a scope shows, by name.
    unary ScopedNodes("node.find", Call, true): FindNodes => Vec<NodeView>;
}
