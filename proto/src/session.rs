//! Sessions: what a user signs, and what the manager makes of it.

use std::fmt;
use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::agent::PullProgress;
use crate::ids::SessionId;
use crate::kernel::{Exit, KernelSpec, is_name};
use crate::limits::MAX_QUERY;
use crate::rpc::RpcError;

/// What a user asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// The user's name for it, unique among the owner's living sessions; none: its id is its name.
    pub name: Option<String>,
    /// Its kernel.
    pub kernel: KernelSpec,
    /// Query that the node must satisfy; none: any agent.
    pub place: Option<String>,
    /// Whether its record and logs go when it ends.
    pub remove: bool,
}

impl SessionSpec {
    /// Refuses what cannot be, with the name of the field at fault.
    pub fn check(&self) -> Result<(), RpcError> {
        if let Some(name) = &self.name
            && !is_name(name)
        {
            return Err(RpcError::invalid(format!(
                "name: `{}` must be 1 to 64 of a-z, 0-9, `.`, `_`, `-`, starting with a letter or digit",
                name.escape_debug()
            ))
            .reason("spec"));
        }
        if self.place.as_ref().is_some_and(|q| q.len() > MAX_QUERY) {
            return Err(
                RpcError::invalid(format!("where: at most {MAX_QUERY} bytes")).reason("spec"),
            );
        }
        self.kernel.check()
    }
}

/// A user's signed order. The manager passes it on unchanged; the agent verifies it and takes the
/// specification from it, so that a manager cannot run what no user ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOrder {
    /// Chosen at random by the user's client: the same order sent twice is one session.
    pub session: SessionId,
    /// What is ordered.
    pub spec: SessionSpec,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// How long it may be started, from `issued_at`.
    pub valid_for: Duration,
}

/// Where a session is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Placed on a node; the command is on its way.
    Scheduled,
    /// The node makes it ready.
    Preparing,
    /// Its image is being fetched.
    Pulling,
    /// Its container is being made.
    Creating,
    /// It runs.
    Running,
    /// It is being stopped.
    Terminating,
    /// It ended.
    Terminated(Exit),
}

impl SessionState {
    /// Lower-case name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Preparing => "preparing",
            Self::Pulling => "pulling",
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Terminating => "terminating",
            Self::Terminated(_) => "terminated",
        }
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Terminated(exit) => Some(exit),
            _ => None,
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a manager knows about one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// The user's name for it.
    pub name: Option<String>,
    /// Who ordered it.
    pub owner: NodeId,
    /// Its image.
    pub image: String,
    /// Its command.
    pub command: Vec<String>,
    /// Where it is in its life.
    pub state: SessionState,
    /// The node that runs it.
    pub node: NodeId,
    /// That node's name.
    pub node_name: String,
    /// Devices that it was given, for example `GPU 1 (A100 80GB)`.
    pub gpus: Vec<String>,
    /// Whether the manager hears the node now; the state is the last known when not.
    pub node_reachable: bool,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// What `watch` tells about a session.
#[expect(
    clippy::large_enum_variant,
    reason = "made, sent and dropped; never kept in numbers"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionUpdate {
    /// It is this now. The first item is the present state; after one with an exit nothing
    /// follows.
    View(SessionView),
    /// Its image is being fetched.
    Pull(PullProgress),
}
