//! One UDP socket, all connections over it.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use meshwork_identity::{
    NodeId,
    noise::{Entropy, PskSet},
};
use quinn::{
    AsyncUdpSocket, Connecting, Connection, ConnectionId, NoneTokenStore, Runtime, TokioRuntime,
    VarInt, udp::UdpSocketState,
};
use tokio::time::timeout;
use tracing::debug;

use super::{
    config::TransportConfig,
    error::{AcceptError, BindError, ConnectError},
    provider::{CryptoProvider, Outcome},
    random,
    screen::ScreenedSocket,
    stats::{Counters, TransportStats},
};

/// Length of the connection id that we invent for a listener's first packets.
const FIRST_ID_LEN: usize = 16;

/// A node's end of the mesh: dials, accepts, and owns the socket. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    shared: Arc<Shared>,
}

struct Shared {
    version: u32,
    transport: Arc<quinn::TransportConfig>,
    provider: Arc<dyn CryptoProvider>,
    entropy: Arc<dyn Entropy>,
    counters: Arc<Counters>,
    handshake_timeout: Duration,
    max_incoming: usize,
    retry_threshold: usize,
    /// Accepted attempts whose handshake is not complete.
    pending: Arc<AtomicUsize>,
}

impl Endpoint {
    /// Uses `socket`, on `runtime`: those of a simulation, or any that quinn can drive.
    pub fn bind(
        config: &TransportConfig,
        runtime: Arc<dyn Runtime>,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<Self, BindError> {
        let parts = config.build()?;
        let socket = ScreenedSocket {
            inner: socket,
            version: config.version,
            id_key: parts.id_key,
            initial: parts.screen,
            counters: parts.counters.clone(),
        };
        let quic = quinn::Endpoint::new_with_abstract_socket(
            parts.endpoint,
            Some(parts.server),
            Arc::new(socket),
            runtime,
        )
        .map_err(BindError::Endpoint)?;
        let shared = Shared {
            version: config.version,
            transport: parts.transport,
            provider: parts.provider,
            entropy: config.entropy.clone(),
            counters: parts.counters,
            handshake_timeout: config.handshake_timeout,
            max_incoming: config.max_incoming,
            retry_threshold: config.retry_threshold,
            pending: Arc::default(),
        };
        Ok(Self {
            quic,
            shared: Arc::new(shared),
        })
    }

    /// Opens a UDP socket at `addr` (port 0: any free one). Must be called within a tokio runtime.
    pub fn bind_udp(config: &TransportConfig, addr: SocketAddr) -> Result<Self, BindError> {
        let socket = udp_socket(addr, config.socket_buffer)?;
        Self::bind(config, Arc::new(TokioRuntime), socket)
    }

    /// Dials `addr`, where node `expected` must answer; `None` accepts any member, for first contacts
    /// by address alone.
    ///
    /// Success means that the node has proven its identity to us. Whether it lets us in shows with
    /// the first answer: a refused dialler is closed at once (see
    /// [`closed_as_unauthorized`](super::closed_as_unauthorized)).
    ///
    /// # Cancel safety
    /// Dropping the future abandons the dial.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        expected: Option<NodeId>,
    ) -> Result<Connection, ConnectError> {
        let outcome = Arc::<Outcome>::default();
        let name = expected.map_or_else(|| format!("bootstrap {addr}"), |node| node.to_string());
        let connecting = self
            .quic
            .connect_with(self.dial_config(expected, outcome.clone()), addr, &name)
            .map_err(|source| ConnectError::Local { addr, source })?;
        let after = self.shared.handshake_timeout;
        let counters = &self.shared.counters;
        match timeout(after, connecting).await {
            Ok(Ok(connection)) => {
                Counters::add(&counters.handshakes_completed);
                Ok(connection)
            }
            Ok(Err(quic)) => {
                Counters::add(&counters.handshakes_failed);
                Err(ConnectError::new(addr, after, outcome.take(), quic))
            }
            Err(_) => {
                Counters::add(&counters.handshakes_failed);
                Err(ConnectError::Timeout { addr, after })
            }
        }
    }

    fn dial_config(&self, expected: Option<NodeId>, outcome: Arc<Outcome>) -> quinn::ClientConfig {
        let mut config = quinn::ClientConfig::new(self.shared.provider.dialler(expected, outcome));
        let entropy = self.shared.entropy.clone();
        config
            .transport_config(self.shared.transport.clone())
            // Our listeners hand out no tokens for later.
            .token_store(Arc::new(NoneTokenStore))
            .initial_dst_cid_provider(Arc::new(move || {
                ConnectionId::new(&random::array::<FIRST_ID_LEN>(&*entropy))
            }))
            .version(self.shared.version);
        config
    }

    /// The next attempt of a peer to connect; `None` once the endpoint is closed. Complete each one
    /// in a task of its own with [`Incoming::complete`], so that a slow peer delays nobody.
    ///
    /// # Cancel safety
    /// No attempt is lost when the future is dropped.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let attempt = self.quic.accept().await?;
            let pending = self.shared.pending.load(Relaxed);
            if pending >= self.shared.max_incoming {
                Counters::add(&self.shared.counters.refused_busy);
                attempt.refuse();
            } else if pending >= self.shared.retry_threshold && attempt.may_retry() {
                if attempt.retry().is_ok() {
                    Counters::add(&self.shared.counters.retries_sent);
                }
            } else if let Some(incoming) = self.admit(attempt) {
                return Some(incoming);
            }
        }
    }

    fn admit(&self, attempt: quinn::Incoming) -> Option<Incoming> {
        let addr = attempt.remote_address();
        let pending = Pending::new(self.shared.pending.clone());
        match attempt.accept() {
            Ok(connecting) => Some(Incoming {
                connecting,
                addr,
                pending,
                shared: self.shared.clone(),
            }),
            Err(error) => {
                debug!(%addr, %error, "attempt failed at its first packet");
                Counters::add(&self.shared.counters.handshakes_failed);
                None
            }
        }
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.quic.local_addr()
    }

    /// Dials with and accepts these PSKs from now on. Connections and handshakes under way go on with
    /// those that they began with.
    pub fn set_psks(&self, psks: PskSet) {
        self.shared.provider.set_psks(psks);
    }

    /// Connections that exist now, those in their handshake or being drained included.
    pub fn open_connections(&self) -> usize {
        self.quic.open_connections()
    }

    /// What was counted since the endpoint was bound.
    pub fn stats(&self) -> TransportStats {
        self.shared.counters.snapshot()
    }

    /// Closes all connections with `code` and `reason`, and refuses new ones.
    pub fn close(&self, code: u32, reason: &[u8]) {
        self.quic.close(VarInt::from_u32(code), reason);
    }

    /// Waits until all closed connections are drained, a few round trips after
    /// [`Endpoint::close`].
    pub async fn wait_idle(&self) {
        self.quic.wait_idle().await;
    }
}

/// Opens a UDP socket at `addr` (port 0: any free one) for which the kernel buffers `buffer` bytes
/// each way, if it grants as much. Must be called within a tokio runtime.
pub fn udp_socket(addr: SocketAddr, buffer: usize) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
    let failed = |source| BindError::Socket { addr, source };
    let socket = std::net::UdpSocket::bind(addr).map_err(failed)?;
    let options = UdpSocketState::new((&socket).into()).map_err(failed)?;
    for result in [
        options.set_send_buffer_size((&socket).into(), buffer),
        options.set_recv_buffer_size((&socket).into(), buffer),
    ] {
        // Smaller buffers cost speed, not function.
        let _ = result.inspect_err(|error| debug!(%error, "socket buffer stays as it is"));
    }
    TokioRuntime.wrap_udp_socket(socket).map_err(failed)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("addr", &self.local_addr().ok())
            .finish_non_exhaustive()
    }
}

/// A peer's attempt to connect, whose first packet proved that it holds a PSK.
pub struct Incoming {
    connecting: Connecting,
    addr: SocketAddr,
    pending: Pending,
    shared: Arc<Shared>,
}

impl Incoming {
    /// Whence it comes.
    pub fn remote_address(&self) -> SocketAddr {
        self.addr
    }

    /// Waits for the handshake. The peer of the connection is proven and authorized.
    pub async fn complete(self) -> Result<Connection, AcceptError> {
        let Self {
            connecting,
            addr,
            pending,
            shared,
        } = self;
        let after = shared.handshake_timeout;
        let result = match timeout(after, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(AcceptError::Connection { addr, source }),
            Err(_) => Err(AcceptError::Timeout { addr, after }),
        };
        drop(pending);
        Counters::add(match result {
            Ok(_) => &shared.counters.handshakes_completed,
            Err(_) => &shared.counters.handshakes_failed,
        });
        result
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

/// Counts an attempt as pending while it lives.
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
