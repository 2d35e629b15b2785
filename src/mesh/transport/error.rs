//! Why a connection did not come about, with what to do about it.

use std::{io, net::SocketAddr, time::Duration};

use meshwork_identity::{NodeId, noise::HandshakeError};
use quinn::ConnectionError;

/// The endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A configuration value is outside its bounds.
    #[error("transport setting {setting} is {value}, allowed is {allowed}")]
    Setting {
        /// The field of `TransportConfig`.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The operating system refused the socket.
    #[error("cannot open UDP socket {addr}")]
    Socket {
        /// The address that was asked for.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket given is not usable.
    #[error("cannot use the given UDP socket")]
    Endpoint(#[source] io::Error),
}

/// A dial failed. Each sentence says what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answered. Nodes never answer strangers, so a wrong PSK looks like this.
    #[error(
        "{addr} did not answer within {after:?}: no node listens there, a firewall drops UDP, or \
         that node has another pre-shared key: compare both nodes' mesh with `meshwork doctor`, \
         and if the mesh has changed its key while this node was away, ask for a new ticket"
    )]
    Timeout {
        /// The address that was dialled.
        addr: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
    /// Another node answered at this address.
    #[error(
        "dialled node {expected} but node {found} answered: the address is out of date, or \
         somebody redirects it"
    )]
    UnexpectedPeer {
        /// The node that was dialled.
        expected: NodeId,
        /// The node that answered and proved its key.
        found: NodeId,
    },
    /// The node speaks another version of the protocol.
    #[error("the node speaks another version of Meshwork's protocol: upgrade the older of the two")]
    VersionMismatch,
    /// The node reads our packets but not our first message: its Initial packets are not keyed, and
    /// its PSK or mesh is another one.
    #[error(
        "the node does not know our pre-shared key: it belongs to another mesh, or its key was \
             rotated; join again with a new ticket"
    )]
    WrongPsk,
    /// The node claims an id that is not its own.
    #[error("the node at {addr} claims an identity that is not its own: do not trust this address")]
    BadBinding {
        /// The address that was dialled.
        addr: SocketAddr,
    },
    /// The node does not let us in.
    #[error("the node refuses us: our identity is revoked or not admitted; ask for a new ticket")]
    NotAuthorized,
    /// The node speaks none of our application protocols, or has none of our packet ciphers.
    #[error("the node shares no protocol or cipher with us: upgrade the older of the two")]
    NothingInCommon,
    /// The node has too many connection attempts pending.
    #[error("the node is busy with too many connection attempts: try again later")]
    Busy,
    /// The handshake failed in another way.
    #[error("handshake with {addr} failed")]
    Handshake {
        /// The address that was dialled.
        addr: SocketAddr,
        /// Our own view of it.
        source: HandshakeError,
    },
    /// The connection broke during the handshake.
    #[error("connection to {addr} broke during the handshake")]
    Connection {
        /// The address that was dialled.
        addr: SocketAddr,
        /// What QUIC says.
        source: ConnectionError,
    },
    /// The dial could not start: an impossible address, or the endpoint is closed.
    #[error("cannot dial {addr}")]
    Local {
        /// The address that was dialled.
        addr: SocketAddr,
        /// What QUIC says.
        source: quinn::ConnectError,
    },
}

/// A peer's attempt to connect failed. Outsiders cause this: log at `debug`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The handshake did not complete in time.
    #[error("the handshake of {addr} did not complete within {after:?}")]
    Timeout {
        /// Whence the attempt came.
        addr: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
    /// The handshake failed.
    #[error("the handshake of {addr} failed")]
    Connection {
        /// Whence the attempt came.
        addr: SocketAddr,
        /// What QUIC says.
        source: ConnectionError,
    },
}

/// `CRYPTO_ERROR` of RFC 9001 §4.8: 0x100 and an alert.
const CRYPTO_ERROR: u64 = 0x100;
/// QUIC's `CONNECTION_REFUSED`.
const CONNECTION_REFUSED: u64 = 0x02;

impl ConnectError {
    /// The same failure as that of a dial to `address`, which was one of several tried at once.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        let mut error = self.clone();
        match &mut error {
            Self::Timeout { addr, .. }
            | Self::BadBinding { addr }
            | Self::Handshake { addr, .. }
            | Self::Connection { addr, .. }
            | Self::Local { addr, .. } => *addr = address,
            _ => {}
        }
        error
    }

    /// Joins our own view of the handshake, if it failed on our side, with what QUIC says.
    pub(super) fn new(
        addr: SocketAddr,
        after: Duration,
        own: Option<HandshakeError>,
        quic: ConnectionError,
    ) -> Self {
        match own {
            Some(HandshakeError::UnexpectedPeer { expected, found }) => {
                return Self::UnexpectedPeer { expected, found };
            }
            Some(HandshakeError::BadBinding) => return Self::BadBinding { addr },
            Some(HandshakeError::NoCommonProtocol | HandshakeError::NoCommonAead) => {
                return Self::NothingInCommon;
            }
            Some(source) => return Self::Handshake { addr, source },
            None => {}
        }
        match quic {
            ConnectionError::TimedOut => Self::Timeout { addr, after },
            ConnectionError::VersionMismatch => Self::VersionMismatch,
            ConnectionError::ConnectionClosed(ref close) => match u64::from(close.error_code) {
                code if code == CRYPTO_ERROR + 115 => Self::WrongPsk,
                code if code == CRYPTO_ERROR + 49 => Self::NotAuthorized,
                code if code == CRYPTO_ERROR + 120 || code == CRYPTO_ERROR + 40 => {
                    Self::NothingInCommon
                }
                CONNECTION_REFUSED => Self::Busy,
                _ => Self::Connection { addr, source: quic },
            },
            source => Self::Connection { addr, source },
        }
    }
}

/// Whether a connection was closed by the peer because its authorization callback refused us. The
/// dialler is connected before the listener decides, so this may be the first thing it hears.
pub fn closed_as_unauthorized(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close)
        if u64::from(close.error_code) == CRYPTO_ERROR + 49)
}
