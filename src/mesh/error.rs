//! Why something with the mesh did not work, in words that say what to do about it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{NodeId, RevocationError, TicketError, TokenError};
use meshwork_proto::path::canonical;
use meshwork_proto::rpc::{RpcError, Status};

use crate::transport::{BindError, ConnectError};

/// An operation of [`crate::Mesh`] failed. Cloneable, because several callers may wait for one dial.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// The node's socket or its settings are not usable.
    #[error("the node cannot use its network socket")]
    Bind(#[source] std::sync::Arc<BindError>),
    /// The node's state cannot be read or written.
    #[error("the node's state `{key}` is not usable")]
    State {
        /// Which part of it.
        key: &'static str,
        /// The system's reason.
        source: std::sync::Arc<io::Error>,
    },
    /// No address of the node is known, and it is not connected.
    #[error("no address of node {}… is known", node.short())]
    NoAddress {
        /// Whom we wanted to reach.
        node: NodeId,
    },
    /// Every address failed.
    #[error("node {}… cannot be reached: {tried}", node.short())]
    Unreachable {
        /// Whom we wanted to reach.
        node: NodeId,
        /// Each address and why it failed.
        tried: Tried,
    },
    /// The time given was over before an address answered.
    #[error(
        "node {}… did not answer within {after:?}; nodes stay silent to whoever has another \
         pre-shared key, so compare the mesh of both; if the mesh has changed its key while this \
         node was away, ask for a new ticket",
        node.short()
    )]
    Timeout {
        /// Whom we wanted to reach.
        node: NodeId,
        /// How long we waited.
        after: Duration,
    },
    /// The node was reached, and closed the connection on us.
    #[error("node {}… turned us away: {why}", node.short())]
    Refused {
        /// Who did.
        node: NodeId,
        /// Why.
        why: TurnedAway,
    },
    /// The node was reached, and did not answer the greeting.
    #[error("node {}… does not greet back: {why}", node.short())]
    Greeting {
        /// Who.
        node: NodeId,
        /// What it did instead.
        why: RpcError,
    },
    /// The node that was to be dialled is this one.
    #[error("this node cannot dial itself")]
    Own,
    /// A token of our own is not usable for what was asked.
    #[error("none of this node's tokens allows this")]
    Token(#[source] TokenError),
    /// The ticket cannot be used.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The issuer of the ticket refused it, or none of its contacts answered.
    #[error("joining failed: {0}")]
    Join(String),
    /// The call that was needed for it failed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// What is to be announced breaks a bound.
    #[error("the announcement is refused: {0}")]
    Announcement(String),
    /// The revocation is not heeded.
    #[error("the revocation is refused")]
    Revocation(#[source] std::sync::Arc<RevocationError>),
    /// The new pre-shared key is not heeded.
    #[error("the rotation of the pre-shared key is refused: {0}")]
    Rotation(String),
    /// A setting that no node can run with.
    #[error("{setting} = \"{value}\": {why}")]
    Setting {
        /// Its name in the configuration.
        setting: &'static str,
        /// What it is set to.
        value: String,
        /// Why that cannot be, and what to set instead.
        why: &'static str,
    },
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// Why a reached node closed the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    /// It has as many connections as it may.
    #[error("it has too many connections; try again later")]
    Busy,
    /// Our identity is revoked there.
    #[error("our identity is revoked")]
    Revoked,
    /// It shuts down.
    #[error("it is shutting down")]
    ShuttingDown,
}

/// The addresses that were tried and why each failed, and the relays that were tried as well.
#[derive(Debug, Clone)]
pub struct Tried(pub Vec<(SocketAddr, ConnectError)>, pub Vec<NodeId>);

impl Tried {
    /// In the order of `addrs`.
    pub(crate) fn new(
        addrs: &[SocketAddr],
        mut failed: Vec<(SocketAddr, ConnectError)>,
        relays: Vec<NodeId>,
    ) -> Self {
        let place = |of: &SocketAddr| addrs.iter().position(|addr| canonical(*addr) == *of);
        failed.sort_by_key(|(addr, _)| place(addr));
        Self(failed, relays)
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (addr, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let error = error.to_string();
            if error.contains(&addr.to_string()) {
                write!(f, "{separator}{error}")?;
            } else {
                write!(f, "{separator}{addr}: {error}")?;
            }
        }
        for (index, relay) in self.1.iter().enumerate() {
            let before = match (index, self.0.is_empty()) {
                (0, true) => "no answer through relay",
                (0, false) => "; nor did it answer through relay",
                _ => ",",
            };
            write!(f, "{before} {}…", relay.short())?;
        }
        Ok(())
    }
}

impl From<BindError> for MeshError {
    fn from(error: BindError) -> Self {
        Self::Bind(std::sync::Arc::new(error))
    }
}

impl MeshError {
    pub(crate) fn state(key: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::State {
            key,
            source: std::sync::Arc::new(source),
        }
    }
}

/// What the failure to reach a node means to a call.
impl From<MeshError> for RpcError {
    fn from(error: MeshError) -> Self {
        let message = error.to_string();
        let with = |status, reason| RpcError::new(status, message.clone()).reason(reason);
        match error {
            MeshError::Rpc(error) => error,
            MeshError::NoAddress { .. } => with(Status::NoRoute, "no_address"),
            MeshError::Unreachable { .. } => with(Status::NoRoute, "unreachable"),
            MeshError::Timeout { .. } => with(Status::NoRoute, "no_answer"),
            MeshError::Greeting { .. } => with(Status::Unavailable, "greeting"),
            MeshError::Refused {
                why: TurnedAway::Revoked,
                ..
            } => with(Status::Denied, "revoked"),
            MeshError::Refused { .. } => with(Status::Unavailable, "refused"),
            MeshError::ShuttingDown => with(Status::Cancelled, "shutting_down"),
            MeshError::Token(error) => with(Status::Denied, error.kind()),
            MeshError::Announcement(_)
            | MeshError::Own
            | MeshError::Setting { .. }
            | MeshError::Ticket(_) => with(Status::Invalid, ""),
            MeshError::Revocation(_) => with(Status::Denied, "revocation"),
            MeshError::Rotation(_) => with(Status::Denied, "rotation"),
            MeshError::Join(_) => with(Status::Denied, "join"),
            MeshError::Bind(_) | MeshError::State { .. } => with(Status::Internal, "state"),
        }
    }
}
