//! What a connection between two honest nodes can do. Real sockets.

use bytes::Bytes;
use meshwork_mesh::transport::{Endpoint, Provider, peer_id};

use crate::common::*;

fn endpoint(n: u8) -> Endpoint {
    Endpoint::bind_udp(&config(n), LOOPBACK).unwrap()
}

#[tokio::test]
async fn both_ends_authenticate_by_node_id() {
    let (a, b) = (endpoint(1), endpoint(2));
    let (at_a, at_b) = connected(&a, &b, node_id(2)).await;
    assert_eq!(peer_id(&at_a), node_id(2));
    assert_eq!(peer_id(&at_b), node_id(1));
    for stats in [a.stats(), b.stats()] {
        assert_eq!(stats.handshakes_completed, 1);
        assert_eq!(stats.handshakes_failed, 0);
        assert_eq!(
            stats.unknown_initials + stats.foreign_datagrams + stats.forged_packets,
            0
        );
    }
}

#[tokio::test]
async fn a_first_contact_needs_no_node_id() {
    let (a, b) = (endpoint(1), endpoint(2));
    let (dialled, _) = connect_pair(&a, &b, None).await;
    assert_eq!(peer_id(&dialled.unwrap()), node_id(2));
}

#[tokio::test]
async fn streams_and_datagrams_carry_bytes() {
    let (a, b) = (endpoint(1), endpoint(2));
    serve_echo(b.clone());
    let connection = a
        .connect(b.local_addr().unwrap(), Some(node_id(2)))
        .await
        .unwrap();
    for size in [0, 1, 1200, 300_000] {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        round_trip(&connection, &bytes).await.unwrap();
    }
    let datagram = Bytes::from_static(b"a datagram");
    connection.send_datagram(datagram.clone()).unwrap();
    assert_eq!(connection.read_datagram().await.unwrap(), datagram);
}

#[tokio::test]
async fn many_streams_at_once() {
    let (a, b) = (endpoint(1), endpoint(2));
    serve_echo(b.clone());
    let connection = a
        .connect(b.local_addr().unwrap(), Some(node_id(2)))
        .await
        .unwrap();
    let mut streams = tokio::task::JoinSet::new();
    for n in 0..500u16 {
        let connection = connection.clone();
        streams.spawn(async move { round_trip(&connection, &n.to_be_bytes()).await });
    }
    for result in streams.join_all().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn exported_keys_agree_and_differ_by_label_context_and_connection() {
    let (a, b) = (endpoint(1), endpoint(2));
    let (at_a, at_b) = connected(&a, &b, node_id(2)).await;
    let (again, _) = connected(&a, &b, node_id(2)).await;
    let export = |connection: &quinn::Connection, label: &[u8], context: &[u8]| {
        let mut key = [0; 48];
        connection
            .export_keying_material(&mut key, label, context)
            .unwrap();
        key
    };
    let key = export(&at_a, b"label", b"context");
    assert_eq!(key, export(&at_b, b"label", b"context"));
    assert_ne!(key, export(&at_a, b"another", b"context"));
    assert_ne!(key, export(&at_a, b"label", b"another"));
    assert_ne!(key, export(&again, b"label", b"context"));
    assert!(
        at_a.export_keying_material(&mut [0; 9000], b"label", b"")
            .is_err()
    );
}

#[tokio::test]
async fn the_null_provider_connects_without_protecting() {
    let null = |n| {
        let mut config = config(n);
        config.provider = Provider::Null;
        Endpoint::bind_udp(&config, LOOPBACK).unwrap()
    };
    let (a, b) = (null(1), null(2));
    serve_echo(b.clone());
    let addr = b.local_addr().unwrap();
    let connection = a.connect(addr, Some(node_id(2))).await.unwrap();
    assert_eq!(peer_id(&connection), node_id(2));
    round_trip(&connection, &vec![7; 100_000]).await.unwrap();
    connection.force_key_update();
    round_trip(&connection, &vec![8; 100_000]).await.unwrap();
    assert!(
        a.connect(addr, Some(node_id(3))).await.is_err(),
        "even null checks who answers"
    );
}

#[tokio::test]
async fn closing_tells_the_peer_and_drains() {
    let (a, b) = (endpoint(1), endpoint(2));
    let (_at_a, at_b) = connected(&a, &b, node_id(2)).await;
    a.close(7, b"done");
    a.wait_idle().await;
    assert_eq!(a.open_connections(), 0);
    let quinn::ConnectionError::ApplicationClosed(close) = at_b.closed().await else {
        panic!("closed otherwise");
    };
    assert_eq!(
        (close.error_code.into_inner(), &close.reason[..]),
        (7, &b"done"[..])
    );
    assert!(a.accept().await.is_none());
}

#[test]
fn settings_out_of_bounds_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    for mtu in [1199, 6551] {
        let mut config = config(1);
        config.mtu_upper_bound = mtu;
        let error = Endpoint::bind_udp(&config, LOOPBACK).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("transport setting mtu_upper_bound is "),
            "{error}"
        );
    }
    let mut config = config(1);
    config.idle_timeout = std::time::Duration::ZERO;
    let error = Endpoint::bind_udp(&config, LOOPBACK).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("transport setting idle_timeout is "),
        "{error}"
    );
}
