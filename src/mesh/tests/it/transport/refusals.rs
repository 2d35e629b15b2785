//! Who is refused, what they hear, and what we count. Real sockets.

use std::{sync::Arc, time::Duration};

use meshwork_identity::MeshId;
use meshwork_mesh::transport::{
    ConnectError, Endpoint, PskSet, TransportConfig, VERSION, closed_as_unauthorized, peer_id,
};
use tokio::{net::UdpSocket, time::timeout};

use crate::common::*;

/// How long tests listen to silence, and how long failing dials take.
const SILENCE: Duration = Duration::from_millis(400);

fn bind(config: &TransportConfig) -> Endpoint {
    Endpoint::bind_udp(config, LOOPBACK).unwrap()
}

/// A dialler that gives up soon.
fn hasty(n: u8) -> TransportConfig {
    let mut config = config(n);
    config.handshake_timeout = SILENCE;
    config
}

/// Sends datagrams from a bare socket and returns whether anything came back.
async fn answered(endpoint: &Endpoint, datagrams: &[Vec<u8>]) -> bool {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    for datagram in datagrams {
        socket
            .send_to(datagram, endpoint.local_addr().unwrap())
            .await
            .unwrap();
    }
    timeout(SILENCE, socket.recv_from(&mut [0; 2048]))
        .await
        .is_ok()
}

#[tokio::test]
async fn a_wrong_psk_meets_silence_and_is_counted() {
    let listener = bind(&config(2));
    serve_echo(listener.clone());
    let mut wrong = hasty(1);
    wrong.psks.current = psk(9);
    let dialler = bind(&wrong);
    let addr = listener.local_addr().unwrap();
    let error = dialler.connect(addr, Some(node_id(2))).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("pre-shared key"), "{error}");
    assert!(listener.stats().unknown_initials >= 1);
    assert_eq!(listener.stats().handshakes_failed, 0, "no state was kept");
    assert_eq!(listener.open_connections(), 0);
}

#[tokio::test]
async fn without_keyed_initials_a_wrong_psk_gets_a_clear_error() {
    let open = |n, secret| {
        let mut config = config(n);
        config.keyed_initials = false;
        config.psks.current = psk(secret);
        bind(&config)
    };
    let (listener, dialler) = (open(2, 1), open(1, 9));
    let (dialled, _) = connect_pair(&dialler, &listener, Some(node_id(2))).await;
    assert!(matches!(dialled.unwrap_err(), ConnectError::WrongPsk));
    assert_eq!(listener.stats().failed_unknown_psk, 1);
    let friend = open(3, 1);
    connected(&friend, &listener, node_id(2)).await;
}

#[tokio::test]
async fn another_mesh_with_the_same_psk_is_refused() {
    let listener = bind(&config(2));
    let mut other = config(1);
    other.mesh = MeshId::from_bytes([2; 16]);
    let (dialled, _) = connect_pair(&bind(&other), &listener, Some(node_id(2))).await;
    assert!(matches!(dialled.unwrap_err(), ConnectError::WrongPsk));
    assert_eq!(listener.stats().failed_unknown_psk, 1);
}

#[tokio::test]
async fn an_unexpected_peer_is_named_and_learns_nothing() {
    let (dialler, listener) = (bind(&config(1)), bind(&config(2)));
    let (dialled, accepted) = connect_pair(&dialler, &listener, Some(node_id(3))).await;
    let error = dialled.unwrap_err();
    let ConnectError::UnexpectedPeer { expected, found } = error else {
        panic!("{error}");
    };
    assert_eq!((expected, found), (node_id(3), node_id(2)));
    assert_eq!(dialler.stats().failed_unexpected_peer, 1);
    if let Some(Err(error)) = accepted {
        let text = format!("{error:?}");
        assert!(
            !text.contains(&node_id(1).short()) && !text.contains(&node_id(3).short()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn another_version_is_told_so_if_it_knows_the_psk() {
    let listener = bind(&config(2));
    serve_echo(listener.clone());
    let addr = listener.local_addr().unwrap();
    let mut newer = hasty(1);
    newer.version = VERSION + 1;
    let error = bind(&newer)
        .connect(addr, Some(node_id(2)))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::VersionMismatch), "{error}");
    assert_eq!(listener.stats().other_versions, 1);

    let mut rotating = config(2);
    rotating.psks = PskSet {
        current: psk(2),
        previous: Some(psk(1)),
    };
    let rotating = bind(&rotating);
    let error = bind(&newer)
        .connect(rotating.local_addr().unwrap(), Some(node_id(2)))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::VersionMismatch), "{error}");

    newer.psks.current = psk(9);
    let error = bind(&newer)
        .connect(addr, Some(node_id(2)))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    assert_eq!(listener.stats().other_versions, 1);
    assert!(listener.stats().foreign_datagrams >= 1);
}

#[tokio::test]
async fn the_previous_psk_is_accepted_during_a_rotation() {
    for retry_threshold in [64, 0] {
        let mut rotating = config(2);
        rotating.psks = PskSet {
            current: psk(2),
            previous: Some(psk(1)),
        };
        rotating.retry_threshold = retry_threshold;
        let listener = bind(&rotating);
        for secret in [1, 2] {
            let mut config = config(1);
            config.psks.current = psk(secret);
            let (at_a, at_b) = connected(&bind(&config), &listener, node_id(2)).await;
            assert_eq!(peer_id(&at_a), node_id(2));
            assert_eq!(peer_id(&at_b), node_id(1));
        }
        let retries = if retry_threshold == 0 { 2 } else { 0 };
        assert_eq!(listener.stats().retries_sent, retries);
        assert_eq!(listener.stats().unknown_initials, 0);
    }
}

#[tokio::test]
async fn a_revoked_node_is_closed_at_once() {
    let mut strict = config(2);
    let revoked = node_id(1);
    strict.authorize = Arc::new(move |peer| *peer != revoked);
    let listener = bind(&strict);
    let (dialled, accepted) = connect_pair(&bind(&config(1)), &listener, Some(node_id(2))).await;
    assert!(accepted.unwrap().is_err());
    match dialled {
        Ok(connection) => assert!(closed_as_unauthorized(&connection.closed().await)),
        Err(error) => assert!(matches!(error, ConnectError::NotAuthorized), "{error}"),
    }
    assert_eq!(listener.stats().failed_not_authorized, 1);
    connected(&bind(&config(3)), &listener, node_id(2)).await;
}

#[tokio::test]
async fn a_bystander_gets_no_answer_and_is_counted() {
    let listener = bind(&config(2));
    serve_echo(listener.clone());
    let long = |version: u32, id_len: u8| {
        let mut packet = vec![0xc3];
        packet.extend_from_slice(&version.to_be_bytes());
        packet.push(id_len);
        packet.extend_from_slice(&vec![7; id_len.into()]);
        // No source id, no token, the rest of the datagram in two bytes of length.
        let rest = u16::try_from(1200 - packet.len() - 4).unwrap();
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(&(0x4000 | rest).to_be_bytes());
        packet.resize(1200, 0x5a);
        packet
    };
    let short = |len: usize| {
        let mut packet = vec![0x41; len];
        packet[1..].fill(0x33);
        packet
    };
    let unknown = [
        long(VERSION, 8),
        long(VERSION, 20),
        long(VERSION, 4),
        long(VERSION, 0),
    ];
    assert!(!answered(&listener, &unknown).await);
    assert_eq!(listener.stats().unknown_initials, 4);

    // QUIC 1 and 2, reserved versions, our family, and no packet at all.
    let versions = [
        1,
        0x6b33_43cf,
        0x0a1a_2a3a,
        u32::MAX,
        VERSION + 1,
        VERSION + 0xffff,
    ];
    let mut foreign: Vec<Vec<u8>> = versions.map(|version| long(version, 8)).into();
    foreign.extend([
        vec![0],
        vec![0xff; 3],
        b"\r\nGET / HTTP/1.1".to_vec(),
        short(8),
    ]);
    assert!(!answered(&listener, &foreign).await);
    assert_eq!(
        listener.stats().foreign_datagrams,
        u64::try_from(foreign.len()).unwrap()
    );

    // First packets below QUIC's least length.
    let mut clipped = long(VERSION, 8);
    clipped.truncate(1199);
    assert!(!answered(&listener, &[clipped.clone(), clipped[..50].to_vec()]).await);
    assert_eq!(listener.stats().unknown_initials, 6);

    // 0-RTT, Handshake and Retry packets, and a version negotiation, for nobody.
    let kinds = [0xd3, 0xe3, 0xf3].map(|first| {
        let mut packet = long(VERSION, 8);
        packet[0] = first;
        packet
    });
    let strays = [&kinds[..], &[long(0, 8), short(9), short(40), short(1200)]].concat();
    assert!(!answered(&listener, &strays).await);
    assert_eq!(listener.stats().unknown_connection_ids, 7);
    assert_eq!(
        listener.stats().foreign_datagrams,
        u64::try_from(foreign.len()).unwrap()
    );
    assert_eq!(listener.open_connections(), 0);
    connected(&bind(&config(1)), &bind(&config(3)), node_id(3)).await;
}

#[tokio::test]
async fn an_address_must_be_proven_when_many_attempts_are_pending() {
    let mut careful = config(2);
    careful.retry_threshold = 0;
    let listener = bind(&careful);
    let (at_a, at_b) = connected(&bind(&config(1)), &listener, node_id(2)).await;
    assert_eq!((peer_id(&at_a), peer_id(&at_b)), (node_id(2), node_id(1)));
    assert_eq!(listener.stats().retries_sent, 1);
}

#[tokio::test]
async fn too_many_pending_attempts_are_refused() {
    let mut full = config(2);
    full.max_incoming = 1;
    let listener = bind(&full);
    let addr = listener.local_addr().unwrap();
    let first = bind(&config(1));
    let second = bind(&config(3));
    let held = tokio::spawn({
        let listener = listener.clone();
        async move { listener.accept().await }
    });
    let first = tokio::spawn(async move { first.connect(addr, Some(node_id(2))).await });
    // Held, not completed: it stays pending.
    let held = held.await.unwrap().unwrap();
    let refusing = tokio::spawn({
        let listener = listener.clone();
        async move { listener.accept().await.is_some() }
    });
    let error = second.connect(addr, Some(node_id(2))).await.unwrap_err();
    assert!(matches!(error, ConnectError::Busy), "{error}");
    assert_eq!(listener.stats().refused_busy, 1);
    refusing.abort();
    held.complete().await.unwrap();
    first.await.unwrap().unwrap();
}
