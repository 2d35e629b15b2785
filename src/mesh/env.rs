//! What a node takes from outside: time, chance, a place to remember, a socket. Production takes
//! the system's; the simulator gives its own, and the node above runs unchanged.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshwork_identity::Timestamp;
use meshwork_proto::ports::{Entropy, WallClock};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};

use crate::addresses::system_addresses;
use crate::error::MeshError;
use crate::state::StateStore;
use crate::transport::{self, SystemEntropy};

/// The outside of a node.
#[derive(Clone)]
pub struct Env {
    /// Wall clock: for what is signed and for expiry. Timers run on tokio's clock.
    pub clock: Arc<dyn WallClock>,
    /// Randomness: for keys as well as for jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Where the node remembers.
    pub state: Arc<dyn StateStore>,
    /// Where quinn spawns its tasks and gets its timers.
    pub runtime: Arc<dyn Runtime>,
    /// The node's socket.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// Opens another one, for when a NAT is about to forget the first. Port 0 is any free one.
    pub bind: BindSocket,
    /// Where the machine is.
    pub addresses: FindAddresses,
}

/// Opens a UDP socket at an address.
pub type BindSocket = Arc<dyn Fn(SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send + Sync>;

/// The addresses at which a socket with this local address receives: itself, or where it is bound to
/// no particular one, those that the machine has now. They are offered to peers, and tell which
/// private networks the machine is in. Asked again and again, as machines move; those that others
/// reach best come first.
pub type FindAddresses = Arc<dyn Fn(SocketAddr) -> Vec<SocketAddr> + Send + Sync>;

impl Env {
    /// The system's clock, randomness and network, with a UDP socket at `addr` (port 0: any free
    /// one). Must be called within a tokio runtime.
    pub fn production(addr: SocketAddr, state: Arc<dyn StateStore>) -> Result<Self, MeshError> {
        let bind = |addr| transport::udp_socket(addr, transport::SOCKET_BUFFER);
        Ok(Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            state,
            runtime: Arc::new(TokioRuntime),
            socket: bind(addr)?,
            bind: Arc::new(move |addr| bind(addr).map_err(io::Error::other)),
            addresses: Arc::new(system_addresses),
        })
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env")
            .field("socket", &self.socket.local_addr().ok())
            .finish_non_exhaustive()
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is a broken one; everything it signs would be refused anyway.
        let millis = since.unwrap_or(Duration::ZERO).as_millis();
        Timestamp::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}
