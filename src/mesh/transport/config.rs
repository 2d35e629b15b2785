//! Settings of the transport, and how they become quinn's.

use std::{fmt, sync::Arc, time::Duration};

use meshwork_identity::{
    Identity, MeshId,
    noise::{Aead, Authorize, Entropy, HandshakeConfig, PskSet, local_key},
};
use quinn::{MtuDiscoveryConfig, ValidationTokenConfig, VarInt};
use quinn_proto::IdleTimeout;
use tokio::time::Instant;

use super::{
    VERSION,
    error::BindError,
    initial::InitialKeys,
    null::NullProvider,
    provider::CryptoProvider,
    random::{self, IdKey, MarkedIds, ResetKey, SystemEntropy, TokenClock, TokenKey},
    session::NoiseProvider,
    stats::Counters,
};

/// Largest allowed [`TransportConfig::mtu_upper_bound`], in bytes. quinn hands 10 packets at a time to
/// the kernel; 10 × 6,550 is the most that fits into one UDP send, and beyond it every send fails.
pub const MAX_MTU: u16 = 6550;
/// Default of [`TransportConfig::socket_buffer`], in bytes.
pub const SOCKET_BUFFER: usize = 1 << 20;
/// Smallest MTU that QUIC allows (RFC 9000 §14), in bytes.
pub const MIN_MTU: u16 = 1200;

/// How connections are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// Noise, as the design demands.
    #[default]
    Noise,
    /// Nothing at all: anybody may claim any node id and read and alter everything. For measuring the
    /// cost of Noise and for simulations of thousands of nodes.
    Null,
}

/// Settings of an endpoint. Start from [`TransportConfig::new`], whose defaults fit production.
#[derive(Clone)]
pub struct TransportConfig {
    /// Who we are.
    pub identity: Identity,
    /// The mesh we belong to. Nodes of another mesh cannot talk to us even with the same PSK.
    pub mesh: MeshId,
    /// The pre-shared keys: one to dial with, and those to accept.
    pub psks: PskSet,
    /// Random bytes for ephemeral keys and connection ids. Default: the system's. Predictable bytes
    /// give all traffic away; only simulations may change this.
    pub entropy: Arc<dyn Entropy>,
    /// Default: [`Provider::Noise`].
    pub provider: Provider,
    /// The version of the protocol to speak. Default: [`VERSION`]. Tests of upgrades set another one
    /// with the same upper half; nodes of different versions refuse each other.
    pub version: u32,
    /// Whether only holders of a PSK can read and write Initial packets. Default: true. Without it,
    /// strangers learn that a node is here, and make it answer; in return a wrong PSK gets a clear
    /// error instead of silence. All nodes of a mesh must agree.
    pub keyed_initials: bool,
    /// Decides whether a proven peer may connect. Default: everyone. Runs inside packet processing:
    /// it must return within microseconds and never block.
    pub authorize: Authorize,
    /// A connection without traffic ends after this. Default: 60 s; from 1 ms to 2^62 ms. A peer can keep
    /// one open for ever with a packet a minute.
    pub idle_timeout: Duration,
    /// A dial or an accepted attempt that is not complete after this fails. Default: 10 s.
    pub handshake_timeout: Duration,
    /// Sends a packet after this silence, so that the connection does not idle out and NAT mappings
    /// live. Default: none. Shorter than a third of the idle time-out, it lets two of its packets be
    /// lost; and since each must be acknowledged, a dead peer shows as an idle time-out.
    pub keep_alive: Option<Duration>,
    /// Largest UDP payload that path MTU discovery tries, and that we accept, in bytes. Default:
    /// 1,452; from [`MIN_MTU`] to [`MAX_MTU`]. The endpoint's receive buffer grows with it.
    pub mtu_upper_bound: u16,
    /// Bytes that the kernel buffers for the socket, each way. Default: [`SOCKET_BUFFER`], 1 MiB, for
    /// fewer losses in bursts; the system may grant less. Only for
    /// [`Endpoint::bind_udp`](super::Endpoint::bind_udp).
    pub socket_buffer: usize,
    /// Round-trip time assumed before the first sample. Default: 100 ms, which triples the speed of
    /// recovery from a lost first packet against RFC 9002's 333 ms.
    pub initial_rtt: Duration,
    /// Bidirectional streams that a peer may have open. Default: 16. Each allowed one costs some 70
    /// bytes even on an idle connection; whoever serves a busy peer raises the limit of its
    /// connection (`set_max_concurrent_bi_streams`).
    pub max_bidi_streams: u32,
    /// Unidirectional streams that a peer may have open. Default: 4.
    pub max_uni_streams: u32,
    /// Bytes that a peer may send on one stream before we read them. Default: 1 MiB.
    pub stream_receive_window: u32,
    /// Bytes that a peer may send on all streams before we read them: the memory that one member can
    /// hold in our buffers. Default: 8 MiB.
    pub receive_window: u32,
    /// Bytes that we buffer for a peer until it acknowledges them. Default: 8 MiB.
    pub send_window: u32,
    /// Bytes of received datagrams that wait to be read, older ones are dropped first. Default:
    /// 256 KiB.
    pub datagram_receive_buffer: usize,
    /// Bytes of datagrams that wait to be sent. Default: 256 KiB.
    pub datagram_send_buffer: usize,
    /// Connection attempts that may be pending, not yet accepted or not yet complete. Default: 1,024.
    /// More are refused. Only holders of a PSK get this far.
    pub max_incoming: usize,
    /// Bytes buffered for one attempt that is not accepted yet. Default: 16 KiB; all together at most
    /// 256 times this.
    pub incoming_buffer: u32,
    /// From this many pending attempts on, a new one must prove its address with a Retry, which costs
    /// it a round trip and us no memory. Default: 64. Zero: always.
    pub retry_threshold: usize,
}

/// Attempts with full buffers that may wait at the same time.
const INCOMING_BUFFERS: u64 = 256;
/// Bytes of a peer's handshake that we buffer out of order: its two messages, twice.
const CRYPTO_BUFFER: usize = 16 * 1024;
/// Bytes that may be under way before a round trip is measured, and after all of them were lost: 32
/// small packets, where RFC 9002 §7.2 has 10. A way that was dead for a moment comes back before the
/// window is full: quinn acknowledges nothing while it is, and two ends that both wait for that only
/// move at their probe time-outs.
const INITIAL_WINDOW: u64 = 32 * MIN_MTU as u64;

impl TransportConfig {
    /// Production defaults.
    pub fn new(identity: Identity, mesh: MeshId, psks: PskSet) -> Self {
        Self {
            identity,
            mesh,
            psks,
            entropy: Arc::new(SystemEntropy),
            provider: Provider::Noise,
            version: VERSION,
            keyed_initials: true,
            authorize: Arc::new(|_| true),
            idle_timeout: Duration::from_mins(1),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: None,
            mtu_upper_bound: 1452,
            socket_buffer: SOCKET_BUFFER,
            initial_rtt: Duration::from_millis(100),
            max_bidi_streams: 16,
            max_uni_streams: 4,
            stream_receive_window: 1 << 20,
            receive_window: 8 << 20,
            send_window: 8 << 20,
            datagram_receive_buffer: 256 << 10,
            datagram_send_buffer: 256 << 10,
            max_incoming: 1024,
            incoming_buffer: 16 << 10,
            retry_threshold: 64,
        }
    }

    /// Checks all bounds and makes quinn's configuration.
    pub(super) fn build(&self) -> Result<Parts, BindError> {
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu_upper_bound) {
            return Err(BindError::Setting {
                setting: "mtu_upper_bound",
                value: self.mtu_upper_bound.to_string(),
                allowed: "1,200 to 6,550 bytes",
            });
        }
        let counters = Arc::<Counters>::default();
        let initial = (self.provider == Provider::Noise)
            .then(|| InitialKeys::new(&self.psks, self.keyed_initials, counters.clone()))
            .map(Arc::new);
        let provider: Arc<dyn CryptoProvider> = match &initial {
            Some(initial) => {
                let handshake = self.handshake();
                Arc::new(NoiseProvider::new(
                    self.version,
                    handshake,
                    initial.clone(),
                    counters.clone(),
                ))
            }
            None => Arc::new(NullProvider::new(self.identity.node_id(), self.version)),
        };
        let transport = Arc::new(self.transport()?);
        let id_key = IdKey::new(&local_key(&self.identity.noise_secret(), b"connection ids"));
        let mut server =
            quinn::ServerConfig::new(provider.listener(), Arc::new(TokenKey::new(&self.chance())));
        let mut no_tokens = ValidationTokenConfig::default();
        no_tokens.sent(0);
        server
            .transport_config(transport.clone())
            .max_incoming(self.max_incoming)
            .incoming_buffer_size(self.incoming_buffer.into())
            .incoming_buffer_size_total(u64::from(self.incoming_buffer) * INCOMING_BUFFERS)
            // Whatever features of quinn another crate turns on: no address tokens for later dials.
            .validation_token_config(no_tokens)
            .time_source(Arc::new(TokenClock(Instant::now())));
        Ok(Parts {
            endpoint: self.endpoint(id_key.clone(), &counters),
            server,
            transport,
            provider,
            id_key,
            screen: initial.filter(|_| self.keyed_initials),
            counters,
        })
    }

    fn chance(&self) -> [u8; 32] {
        random::array(&*self.entropy)
    }

    fn handshake(&self) -> HandshakeConfig {
        let (psks, entropy) = (self.psks.clone(), self.entropy.clone());
        let mut config =
            HandshakeConfig::new(&self.identity, &self.mesh, self.version, psks, entropy);
        config.aeads = fastest_first();
        config.authorize = self.authorize.clone();
        config
    }

    fn endpoint(&self, id_key: IdKey, counters: &Arc<Counters>) -> quinn::EndpointConfig {
        let reset_key = local_key(&self.identity.noise_secret(), b"resets");
        let (entropy, counters) = (self.entropy.clone(), counters.clone());
        let mut endpoint = quinn::EndpointConfig::new(Arc::new(ResetKey::new(&reset_key)));
        endpoint
            .cid_generator(move || {
                Box::new(MarkedIds::new(
                    id_key.clone(),
                    entropy.clone(),
                    counters.clone(),
                ))
            })
            .supported_versions(vec![self.version])
            .grease_quic_bit(false)
            .rng_seed(Some(self.chance()))
            .max_udp_payload_size(self.mtu_upper_bound)
            .expect("checked against stricter bounds");
        endpoint
    }

    fn transport(&self) -> Result<quinn::TransportConfig, BindError> {
        // QUIC reads zero as "never" (RFC 9000 §18.2), and dead peers would stay for ever.
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .ok()
            .filter(|_| self.idle_timeout >= Duration::from_millis(1))
            .ok_or_else(|| BindError::Setting {
                setting: "idle_timeout",
                value: format!("{:?}", self.idle_timeout),
                allowed: "1 ms to 2^62 ms",
            })?;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu_upper_bound);
        let mut congestion = quinn::congestion::CubicConfig::default();
        congestion.initial_window(INITIAL_WINDOW);
        let mut transport = quinn::TransportConfig::default();
        transport
            .congestion_controller_factory(Arc::new(congestion))
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(self.keep_alive)
            .mtu_discovery_config(Some(mtu))
            .initial_rtt(self.initial_rtt)
            .max_concurrent_bidi_streams(self.max_bidi_streams.into())
            .max_concurrent_uni_streams(self.max_uni_streams.into())
            .stream_receive_window(self.stream_receive_window.into())
            .receive_window(VarInt::from_u32(self.receive_window))
            .send_window(self.send_window.into())
            .datagram_receive_buffer_size(Some(self.datagram_receive_buffer))
            .datagram_send_buffer_size(self.datagram_send_buffer)
            .crypto_buffer_size(CRYPTO_BUFFER)
            .allow_spin(false);
        Ok(transport)
    }
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportConfig")
            .field("identity", &self.identity)
            .field("mesh", &self.mesh)
            .field("provider", &self.provider)
            .field("keyed_initials", &self.keyed_initials)
            .finish_non_exhaustive()
    }
}

/// What an endpoint is made of.
pub(super) struct Parts {
    pub(super) endpoint: quinn::EndpointConfig,
    pub(super) server: quinn::ServerConfig,
    pub(super) transport: Arc<quinn::TransportConfig>,
    pub(super) provider: Arc<dyn CryptoProvider>,
    /// For the screening of packets that go to no connection of ours.
    pub(super) id_key: IdKey,
    /// For the screening of other versions; none when everybody may speak.
    pub(super) screen: Option<Arc<InitialKeys>>,
    pub(super) counters: Arc<Counters>,
}

/// Packet ciphers by speed on this processor.
fn fastest_first() -> Vec<Aead> {
    if has_aes() {
        vec![Aead::Aes128Gcm, Aead::ChaCha20Poly1305]
    } else {
        vec![Aead::ChaCha20Poly1305, Aead::Aes128Gcm]
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}
