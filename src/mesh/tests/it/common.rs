//! Nodes for tests: on real sockets of the loopback, or in a simulated network.

use std::net::SocketAddr;

use meshwork_identity::{Identity, MeshId, NodeId, Psk};
use meshwork_mesh::transport::{
    AcceptError, ConnectError, Endpoint, PskSet, TransportConfig, peer_id,
};
use meshwork_netsim::Net;
use quinn::Connection;

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// The identity of test node `n`.
pub(crate) fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

pub(crate) fn node_id(n: u8) -> NodeId {
    identity(n).node_id()
}

pub(crate) fn psk(n: u8) -> Psk {
    Psk::from_bytes([n; 32])
}

/// The settings of test node `n`, in the same mesh as all others.
pub(crate) fn config(n: u8) -> TransportConfig {
    let psks = PskSet {
        current: psk(1),
        previous: None,
    };
    TransportConfig::new(identity(n), MeshId::from_bytes([1; 16]), psks)
}

/// An address in simulated networks.
pub(crate) fn sim_addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7000))
}

/// Node `n` in a simulated network, at [`sim_addr`].
pub(crate) fn sim_endpoint(net: &Net, n: u8, mut config: TransportConfig) -> Endpoint {
    config.entropy = net.entropy();
    let socket = net.socket(sim_addr(n)).unwrap();
    Endpoint::bind(&config, net.runtime(), socket).unwrap()
}

/// Accepts connections for ever and echoes every stream and datagram.
pub(crate) fn serve_echo(endpoint: Endpoint) {
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.complete().await {
                    echo(connection).await;
                }
            });
        }
    });
}

pub(crate) async fn echo(connection: Connection) {
    let datagrams = connection.clone();
    tokio::spawn(async move {
        while let Ok(datagram) = datagrams.read_datagram().await {
            let _ = datagrams.send_datagram(datagram);
        }
    });
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        tokio::spawn(async move {
            if let Ok(bytes) = recv.read_to_end(1 << 24).await {
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
            }
        });
    }
}

/// Sends bytes through an [`serve_echo`] peer and back.
pub(crate) async fn round_trip(connection: &Connection, bytes: &[u8]) -> Result<(), String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(text)?;
    send.write_all(bytes).await.map_err(text)?;
    send.finish().map_err(text)?;
    let back = recv.read_to_end(1 << 24).await.map_err(text)?;
    if back == bytes {
        Ok(())
    } else {
        Err("the echo differs".into())
    }
}

/// Only the text of an error matters to tests.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Dials and answers at the same time; both results.
pub(crate) async fn connect_pair(
    dialler: &Endpoint,
    listener: &Endpoint,
    expected: Option<NodeId>,
) -> (
    Result<Connection, ConnectError>,
    Option<Result<Connection, AcceptError>>,
) {
    let addr = listener.local_addr().unwrap();
    let accept = tokio::spawn({
        let listener = listener.clone();
        async move {
            let incoming = listener.accept().await?;
            Some(incoming.complete().await)
        }
    });
    let dialled = dialler.connect(addr, expected).await;
    if dialled.is_err() {
        accept.abort();
    }
    (dialled, accept.await.ok().flatten())
}

/// Both ends of a working connection.
pub(crate) async fn connected(
    dialler: &Endpoint,
    listener: &Endpoint,
    expected: NodeId,
) -> (Connection, Connection) {
    let (dialled, accepted) = connect_pair(dialler, listener, Some(expected)).await;
    let dialled = dialled.unwrap();
    assert_eq!(peer_id(&dialled), expected);
    (dialled, accepted.unwrap().unwrap())
}
