//! QUIC between nodes, secured by Noise: who connects is proven by node id, and strangers find
//! nobody at home.
//!
//! quinn does all of QUIC except its cryptography. The handshake machine of
//! `meshwork_identity::noise` travels in its CRYPTO frames (`session`), its secrets protect the
//! packets (`packet`), and the PSK keys even the first packet (`initial`), so that a datagram of an
//! outsider is dropped before it costs memory or an answer (`screen`).
//!
//! Time comes from tokio and sockets, runtime and random bytes from the caller, so that
//! `meshwork-netsim` runs this code unchanged and repeatably.

mod config;
mod endpoint;
mod error;
mod initial;
mod null;
mod packet;
mod provider;
mod random;
mod screen;
mod session;
mod stats;

pub use config::{MAX_MTU, MIN_MTU, Provider, SOCKET_BUFFER, TransportConfig};
pub use endpoint::{Endpoint, Incoming, udp_socket};
pub use error::{AcceptError, BindError, ConnectError, closed_as_unauthorized};
pub use meshwork_identity::noise::{Authorize, Entropy, PskSet};
pub use random::SystemEntropy;
pub use stats::TransportStats;

use meshwork_identity::NodeId;

/// Our QUIC version number: `MW` and the version of the protocol. It is not QUIC v1 and speaks to
/// nobody else.
pub const VERSION: u32 = 0x4d57_0001;

/// The node at the other end, proven in the handshake.
///
/// # Panics
/// If the connection is not of an [`Endpoint`] of this module.
pub fn peer_id(connection: &quinn::Connection) -> NodeId {
    *connection
        .peer_identity()
        .and_then(|identity| identity.downcast().ok())
        .expect("a connection exists only after its peer was proven")
}
