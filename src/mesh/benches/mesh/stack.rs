//! The stacks that are compared: quinn secured by Noise, by TLS, and by nothing. All three with the
//! same settings, over the same kind of socket, on the same threads.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use meshwork_identity::{Identity, MeshId, NodeId, Psk};
use meshwork_mesh::transport::{Endpoint, Incoming, Provider, PskSet, TransportConfig};
use quinn::udp::UdpSocketState;
use quinn::{
    AsyncUdpSocket, Connection, EndpointConfig, MtuDiscoveryConfig, Runtime, TokioRuntime, VarInt,
};

use crate::lane::Lanes;
use crate::tls;

/// Any free port of the loopback.
pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Seeds of the two nodes' keys.
pub(crate) const CLIENT: [u8; 32] = [1; 32];
pub(crate) const SERVER: [u8; 32] = [2; 32];
/// The secret of the mesh that both are in.
pub(crate) const PSK: [u8; 32] = [7; 32];

/// What secures QUIC.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stack {
    /// Ours.
    Noise,
    /// The peer.
    Tls,
    /// The limit: the same without any cryptography.
    Null,
}

/// What a stack is set up with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// Largest UDP payload that MTU discovery tries, in bytes.
    pub(crate) mtu: u16,
    /// The secret that a node believes in; only Noise has one.
    pub(crate) psk: [u8; 32],
}

/// One node: a socket and what runs over it.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// With the node that it expects when it dials.
    Ours(Endpoint, NodeId),
    Tls(quinn::Endpoint),
}

/// Somebody dials.
pub(crate) enum Attempt {
    Ours(Incoming),
    Tls(Box<quinn::Incoming>),
}

/// A dialler and a listener, each on its lane.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) addr: SocketAddr,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mtu: 1452,
            psk: PSK,
        }
    }
}

impl Stack {
    /// A node with the key of `own`, which expects one with the key of `other`. Within a runtime.
    pub(crate) fn bind(self, setup: Setup, own: [u8; 32], other: [u8; 32]) -> End {
        let psks = PskSet {
            current: Psk::from_bytes(setup.psk),
            previous: None,
        };
        let identity = Identity::from_seed(&own);
        let mut config = TransportConfig::new(identity, MeshId::from_bytes([1; 16]), psks);
        config.mtu_upper_bound = setup.mtu;
        let socket = socket(&config);
        let runtime = Arc::new(TokioRuntime);
        if let Self::Tls = self {
            return End::Tls(bind_tls(&config, runtime, socket, own, other));
        }
        if let Self::Null = self {
            config.provider = Provider::Null;
        }
        let expected = Identity::from_seed(&other).node_id();
        End::Ours(Endpoint::bind(&config, runtime, socket).unwrap(), expected)
    }

    /// Both nodes; the listener does `each` with every connection.
    pub(crate) fn pair<F, Fut>(self, lanes: &Lanes, setup: Setup, each: F) -> Pair
    where
        F: Fn(Connection) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let server = lanes.server.run(async move {
            let server = self.bind(setup, SERVER, CLIENT);
            tokio::spawn(server.clone().serve(each));
            server
        });
        let client = lanes
            .client
            .run(async move { self.bind(setup, CLIENT, SERVER) });
        let addr = server.addr();
        Pair {
            client,
            server,
            addr,
        }
    }
}

impl End {
    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Self::Ours(end, _) => end.local_addr(),
            Self::Tls(end) => end.local_addr(),
        }
        .unwrap()
    }

    /// Dials the other node, which must answer.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Connection {
        self.try_connect(to).await.expect("the other node answers")
    }

    /// Dials; `None` when nobody answers.
    pub(crate) async fn try_connect(&self, to: SocketAddr) -> Option<Connection> {
        match self {
            Self::Ours(end, expected) => end.connect(to, Some(*expected)).await.ok(),
            Self::Tls(end) => end.connect(to, tls::NAME).ok()?.await.ok(),
        }
    }

    /// Does `each` with every connection that comes, until the end is closed.
    pub(crate) async fn serve<F, Fut>(self, each: F)
    where
        F: Fn(Connection) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        while let Some(attempt) = self.accept().await {
            let each = each.clone();
            tokio::spawn(async move {
                if let Some(connection) = attempt.complete().await {
                    each(connection).await;
                }
            });
        }
    }

    pub(crate) async fn accept(&self) -> Option<Attempt> {
        match self {
            Self::Ours(end, _) => end.accept().await.map(Attempt::Ours),
            Self::Tls(end) => end
                .accept()
                .await
                .map(|attempt| Attempt::Tls(Box::new(attempt))),
        }
    }

    pub(crate) fn close(&self) {
        match self {
            Self::Ours(end, _) => end.close(0, b""),
            Self::Tls(end) => end.close(VarInt::from_u32(0), b""),
        }
    }
}

impl Attempt {
    /// The connection, if the other side is who it should be.
    pub(crate) async fn complete(self) -> Option<Connection> {
        match self {
            Self::Ours(attempt) => attempt.complete().await.ok(),
            Self::Tls(attempt) => (*attempt).await.ok(),
        }
    }
}

impl Pair {
    /// A connection, from the dialler's lane.
    pub(crate) fn connect(&self, lanes: &Lanes) -> Connection {
        let pair = self.clone();
        lanes
            .client
            .run(async move { pair.client.connect(pair.addr).await })
    }

    /// Closes both nodes.
    pub(crate) fn close(&self) {
        self.client.close();
        self.server.close();
    }
}

/// A UDP socket with the buffers that our transport asks for.
fn socket(config: &TransportConfig) -> Arc<dyn AsyncUdpSocket> {
    let socket = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let options = UdpSocketState::new((&socket).into()).unwrap();
    options
        .set_send_buffer_size((&socket).into(), config.socket_buffer)
        .unwrap();
    options
        .set_recv_buffer_size((&socket).into(), config.socket_buffer)
        .unwrap();
    TokioRuntime.wrap_udp_socket(socket).unwrap()
}

fn bind_tls(
    config: &TransportConfig,
    runtime: Arc<dyn Runtime>,
    socket: Arc<dyn AsyncUdpSocket>,
    own: [u8; 32],
    other: [u8; 32],
) -> quinn::Endpoint {
    let transport = Arc::new(transport(config));
    let mut listener = tls::listener(own, other);
    listener.transport_config(transport.clone());
    let mut dialler = tls::dialler(own, other);
    dialler.transport_config(transport);
    let mut endpoint = EndpointConfig::default();
    endpoint
        .max_udp_payload_size(config.mtu_upper_bound)
        .unwrap()
        .grease_quic_bit(false);
    let mut end =
        quinn::Endpoint::new_with_abstract_socket(endpoint, Some(listener), socket, runtime)
            .unwrap();
    end.set_default_client_config(dialler);
    end
}

/// The settings of our transport, for quinn alone.
fn transport(config: &TransportConfig) -> quinn::TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(config.mtu_upper_bound);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(config.idle_timeout.try_into().unwrap()))
        .keep_alive_interval(config.keep_alive)
        .mtu_discovery_config(Some(mtu))
        .initial_rtt(config.initial_rtt)
        .max_concurrent_bidi_streams(config.max_bidi_streams.into())
        .max_concurrent_uni_streams(config.max_uni_streams.into())
        .stream_receive_window(config.stream_receive_window.into())
        .receive_window(config.receive_window.into())
        .send_window(config.send_window.into())
        .datagram_receive_buffer_size(Some(config.datagram_receive_buffer))
        .datagram_send_buffer_size(config.datagram_send_buffer)
        .allow_spin(false);
    transport
}
