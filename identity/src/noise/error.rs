//! Why a handshake failed, and which alert says so on the wire.

use crate::NodeId;

/// Why a handshake failed. The detail is for our own log and caller; the peer, which may be a
/// stranger, learns [`HandshakeError::alert`] only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first message opens under none of our pre-shared keys. Another mesh id or another
    /// protocol version looks the same, because both are part of the transcript.
    #[error("the first message opens under no pre-shared key of this mesh")]
    UnknownPsk,
    /// The peer proved to be another node than the one that was dialled.
    #[error("dialled node {expected} but node {found} answered")]
    UnexpectedPeer {
        /// The node that was dialled.
        expected: NodeId,
        /// The node that answered and proved its key.
        found: NodeId,
    },
    /// The peer claimed a node id that does not belong to the key it used in the handshake.
    #[error("the peer's node id does not belong to its handshake key")]
    BadBinding,
    /// Our authorization callback refused the peer.
    #[error("node {0} is not authorized to connect")]
    NotAuthorized(NodeId),
    /// The peer offers no application protocol that we speak.
    #[error("the peer speaks none of our protocols")]
    NoCommonProtocol,
    /// The peer offers no packet cipher that we have.
    #[error("the peer offers none of our packet ciphers")]
    NoCommonAead,
    /// The peer sent no transport parameters.
    #[error("the peer sent no transport parameters")]
    MissingParameters,
    /// A message is not what the protocol allows at this point.
    #[error("malformed handshake: {0}")]
    Malformed(&'static str),
    /// A later message does not fit the transcript: somebody altered a message.
    #[error("a handshake message was altered on the way")]
    Altered,
}

impl HandshakeError {
    /// The TLS alert (RFC 8446 §6) nearest in meaning. QUIC sends it as `CRYPTO_ERROR`, 0x100 + alert.
    pub fn alert(&self) -> u8 {
        match self {
            Self::NoCommonAead => 40,
            Self::UnexpectedPeer { .. } | Self::BadBinding => 42,
            Self::NotAuthorized(_) => 49,
            Self::Malformed(_) => 50,
            Self::Altered => 51,
            Self::MissingParameters => 109,
            Self::UnknownPsk => 115,
            Self::NoCommonProtocol => 120,
        }
    }
}
