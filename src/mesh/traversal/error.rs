//! Why a way to a peer could not be made shorter. Never a reason to give the peer up.

use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::rpc::{RpcError, Status};

use crate::error::MeshError;

/// An operation of NAT traversal failed. Traffic that went over a relay goes on over it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TraversalError {
    /// No peer said in time where it sees us.
    #[error("traversal: reflex-timeout: no answer within {0:?} to where we are seen")]
    ReflexTimeout(Duration),
    /// There is no way to the peer at all, not even over a relay.
    #[error("traversal: peer-not-reachable: node {}… is not reached", .0.short())]
    PeerNotReachable(NodeId, #[source] MeshError),
    /// A call that it needs failed.
    #[error("traversal: transport: {0}")]
    Transport(RpcError),
    /// The coordinator is not there, or no relay is known over which the two could agree.
    #[error("traversal: rendezvous-no-relay: {0}")]
    RendezvousNoRelay(String),
    /// The peer does not want to try now.
    #[error("traversal: rendezvous-rejected: {0}")]
    RendezvousRejected(String),
    /// Both sides tried, and no packet came through.
    #[error("traversal: punch-failed: {0}")]
    PunchFailed(String),
    /// No router opens a port for us.
    #[error("traversal: port-map-unavailable: {0}")]
    PortMapUnavailable(String),
    /// One of the two cannot do this.
    #[error("traversal: unsupported: {0}")]
    Unsupported(String),
}

impl TraversalError {
    /// The stable name of the kind, as in the text.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ReflexTimeout(_) => "reflex-timeout",
            Self::PeerNotReachable(..) => "peer-not-reachable",
            Self::Transport(_) => "transport",
            Self::RendezvousNoRelay(_) => "rendezvous-no-relay",
            Self::RendezvousRejected(_) => "rendezvous-rejected",
            Self::PunchFailed(_) => "punch-failed",
            Self::PortMapUnavailable(_) => "port-map-unavailable",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// What a peer's answer to an offer of addresses means.
    pub(super) fn of_offer(error: RpcError) -> Self {
        match error.status {
            Status::ResourceExhausted | Status::Backpressure | Status::Denied => {
                Self::RendezvousRejected(error.to_string())
            }
            Status::NotFound => Self::Unsupported(error.to_string()),
            _ => Self::Transport(error),
        }
    }

    /// What a peer's answer to where it sees us means.
    pub(super) fn of_reflex(error: RpcError, patience: Duration) -> Self {
        match error.status {
            Status::Timeout => Self::ReflexTimeout(patience),
            Status::NotFound => Self::Unsupported(error.to_string()),
            _ => Self::Transport(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    #[test]
    fn every_text_begins_with_its_kind() {
        let node = Identity::from_seed(&[1; 32]).node_id();
        let text = || "why".to_owned();
        let all = [
            TraversalError::ReflexTimeout(Duration::from_secs(3)),
            TraversalError::PeerNotReachable(node, MeshError::Own),
            TraversalError::Transport(RpcError::internal("x")),
            TraversalError::RendezvousNoRelay(text()),
            TraversalError::RendezvousRejected(text()),
            TraversalError::PunchFailed(text()),
            TraversalError::PortMapUnavailable(text()),
            TraversalError::Unsupported(text()),
        ];
        for error in all {
            let begin = format!("traversal: {}: ", error.kind());
            assert!(error.to_string().starts_with(&begin), "{error}");
        }
    }
}
