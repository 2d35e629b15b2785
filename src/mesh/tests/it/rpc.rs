//! Calls between nodes, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use meshwork_mesh::Mesh;
use meshwork_mesh::transport::{Endpoint, peer_id};
use meshwork_proto::codec;
use meshwork_proto::limits::{MAX_FRAME, MAX_HEADER};
use meshwork_proto::mesh::{Ping, Present, PresentTokens, Presented};
use meshwork_proto::rpc::{Kind, ReplyTag, RequestHeader, Status};
use meshwork_proto::service::{CallOptions, Method, Router, call, stream};

use crate::cluster::*;
use crate::common::*;
use crate::probe::{self, *};

async fn works(client: &Mesh, server: &Mesh) {
    let bytes = Bytes::from_static(b"hello");
    let answer = call::<Echo>(client, server.node_id(), &bytes, patiently())
        .await
        .unwrap();
    assert_eq!(answer, bytes);
}

fn brief() -> CallOptions {
    CallOptions::within(Duration::from_millis(100))
}

#[tokio::test]
async fn unary_and_streaming() {
    let (client, server) = Cluster::new().pair(probe::router()).await;
    works(&client, &server).await;
    let items = stream::<Count>(&client, server.node_id(), &1000, patiently())
        .await
        .unwrap();
    let items: Vec<u64> = items.map(Result::unwrap).collect().await;
    assert!(items.into_iter().eq(0..1000));
    let empty = stream::<Count>(&client, server.node_id(), &0, patiently())
        .await
        .unwrap();
    assert_eq!(empty.count().await, 0);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_node_calls_itself_with_its_own_tokens() {
    let cluster = Cluster::new();
    let node = cluster.node(1, probe::router());
    works(&node, &node).await;
    let items = stream::<Count>(&node, node.node_id(), &3, patiently())
        .await
        .unwrap();
    assert_eq!(items.count().await, 3);
    let error = call::<Panic>(&node, node.node_id(), &(), patiently())
        .await
        .unwrap_err();
    assert_eq!((error.status, &*error.reason), (Status::Internal, "panic"));
    let error = call::<Rule>(&node, node.node_id(), &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Denied, "scope_exceeded")
    );
    let error = call::<Hang>(&node, node.node_id(), &(), brief())
        .await
        .unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    let stranger = cluster.start(2, vec![], probe::router());
    let error = call::<Rule>(&stranger, stranger.node_id(), &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Unauthenticated, "no_token")
    );
    stop(&[&node, &stranger]).await;
}

#[tokio::test]
async fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(probe::router()).await;
    let to = server.node_id();
    // The length of the bytes takes four of them.
    let most = Bytes::from(vec![1; MAX_FRAME - 4]);
    assert_eq!(codec::encode(&most).len(), MAX_FRAME);
    assert_eq!(
        call::<Echo>(&client, to, &most, patiently()).await.unwrap(),
        most
    );
    let more = Bytes::from(vec![1; MAX_FRAME - 3]);
    let error = call::<Echo>(&client, to, &more, patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Invalid, "too_large")
    );
    // The answer is refused where it is made.
    let error = call::<Bulk>(&client, to, &(MAX_FRAME as u64), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Invalid, "too_large")
    );
    works(&client, &server).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_server_refuses_announced_lengths_before_their_bytes() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    let (mut send, mut recv) = client.open(&header::<Echo>()).await;
    let length = u32::try_from(MAX_FRAME).unwrap() + 1;
    send.write_all(&length.to_be_bytes()).await.unwrap();
    assert_eq!(refusal(&mut recv).await.reason, "too_large");

    let (mut send, mut recv) = client.conn.open_bi().await.unwrap();
    let length = u32::try_from(MAX_HEADER).unwrap() + 1;
    send.write_all(&[&[1], &length.to_be_bytes()[..]].concat())
        .await
        .unwrap();
    assert_eq!(refusal(&mut recv).await.reason, "too_large");
    stop(&[&server]).await;
}

#[tokio::test]
async fn a_client_refuses_announced_lengths_before_their_bytes() {
    let cluster = Cluster::new();
    let client = cluster.node(1, Router::new());
    let mut config = config(2);
    config.mesh = meshwork_identity::MeshId::of(&cluster.authority.node_id());
    let server = Endpoint::bind_udp(&config, LOOPBACK).unwrap();
    let addr = server.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let conn = server.accept().await.unwrap().complete().await.unwrap();
        assert_eq!(peer_id(&conn), node_id(1));
        let (mut send, _greeting) = conn.accept_bi().await.unwrap();
        let presented = Presented {
            refused: vec![],
            tokens: vec![],
        };
        send.write_all(&frame(&[&[0], &codec::encode(&presented)[..]].concat()))
            .await
            .unwrap();
        send.finish().unwrap();
        let (mut send, _call) = conn.accept_bi().await.unwrap();
        // The tag is one byte; the bytes themselves never come.
        let length = u32::try_from(MAX_FRAME).unwrap() + 2;
        send.write_all(&length.to_be_bytes()).await.unwrap();
        send.stopped().await.unwrap();
    });
    let contact = meshwork_identity::Contact {
        node: node_id(2),
        addrs: vec![addr],
    };
    client.dial(&contact, PATIENCE).await.unwrap();
    let error = call::<Ping>(&client, node_id(2), &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Invalid, "too_large")
    );
    answering.await.unwrap();
    stop(&[&client]).await;
}

#[tokio::test]
async fn deadlines_end_calls_on_both_sides() {
    let cluster = Cluster::new();
    let counters = Arc::<Counters>::default();
    let (client, server) = cluster.pair(counted(&counters)).await;
    let error = call::<Hang>(&client, server.node_id(), &(), brief())
        .await
        .unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    until("the handler is dropped", || counters.dropped() == 1).await;

    // A client that would wait for ever is told by the server.
    let patient = ByHand::dial(&cluster, 3, &server).await;
    let header = RequestHeader {
        deadline_ms: Some(100),
        ..header::<Hang>()
    };
    let (_send, mut recv) = patient.request(&header, &[]).await;
    assert_eq!(refusal(&mut recv).await.status, Status::Timeout);
    until("the handler is dropped", || counters.dropped() == 2).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_quiet_stream_outlives_its_deadline() {
    let counters = Arc::<Counters>::default();
    let (client, server) = Cluster::new().pair(counted(&counters)).await;
    let options = CallOptions::within(Duration::from_millis(500));
    let mut items = stream::<Quiet>(&client, server.node_id(), &(), options)
        .await
        .unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(1), items.next()).await;
    assert!(waited.is_err(), "nothing was said, and nothing ended");
    assert_eq!(counters.dropped(), 0);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn dropping_a_call_cancels_its_handler() {
    let counters = Arc::<Counters>::default();
    let (client, server) = Cluster::new().pair(counted(&counters)).await;
    let to = server.node_id();
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call::<Hang>(&client, to, &(), patiently()).await }
    });
    until("the handler runs", || counters.started() == 1).await;
    hanging.abort();
    until("the handler is dropped", || counters.dropped() == 1).await;

    let quiet = stream::<Quiet>(&client, to, &(), patiently())
        .await
        .unwrap();
    until("the stream's handler runs", || counters.started() == 2).await;
    drop(quiet);
    until("the stream's handler is dropped", || {
        counters.dropped() == 2
    })
    .await;
    works(&client, &server).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_an_internal_error_and_no_more() {
    let (client, server) = Cluster::new().pair(probe::router()).await;
    let to = server.node_id();
    for _ in 0..3 {
        let error = call::<Panic>(&client, to, &(), patiently())
            .await
            .unwrap_err();
        assert_eq!((error.status, &*error.reason), (Status::Internal, "panic"));
    }
    let items = stream::<PanicLater>(&client, to, &(), patiently())
        .await
        .unwrap();
    let items: Vec<_> = items.collect().await;
    assert_eq!((&items[0], &items[1], items.len()), (&Ok(0), &Ok(1), 3));
    assert_eq!(items[2].as_ref().unwrap_err().reason, "panic");
    works(&client, &server).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn more_calls_than_allowed_are_told_backpressure() {
    let cluster = Cluster::new();
    let counters = Arc::<Counters>::default();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.concurrent_calls = 4;
    let server = cluster.start_with(2, config, counted(&counters));
    let client = cluster.node(1, Router::new());
    connect(&client, &server).await;
    let to = server.node_id();
    let mut quiet = Vec::new();
    for _ in 0..4 {
        quiet.push(
            stream::<Quiet>(&client, to, &(), patiently())
                .await
                .unwrap(),
        );
    }
    let error = call::<Echo>(&client, to, &Bytes::new(), patiently())
        .await
        .unwrap_err();
    assert_eq!(error.status, Status::Backpressure);
    // The bound is one peer's: another is served.
    let other = cluster.node(3, Router::new());
    connect(&other, &server).await;
    works(&other, &server).await;
    quiet.pop();
    until("the place is free", || counters.dropped() == 1).await;
    works(&client, &server).await;
    stop(&[&client, &other, &server]).await;
}

#[tokio::test]
async fn a_second_connection_is_no_second_share() {
    let cluster = Cluster::new();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.concurrent_calls = 1;
    let server = cluster.start_with(2, config, probe::router());
    let one = ByHand::dial(&cluster, 1, &server).await;
    let other = ByHand::dial(&cluster, 1, &server).await;
    let (_send, mut started) = one.request(&header::<Quiet>(), &codec::encode(&())).await;
    assert_eq!(reply(&mut started).await.unwrap().0, ReplyTag::Started);
    let (_send, mut recv) = other
        .request(&header::<Echo>(), &codec::encode(&Bytes::new()))
        .await;
    assert_eq!(refusal(&mut recv).await.status, Status::Backpressure);
    assert_eq!(server.open_connections(), 2, "both are there");
    stop(&[&server]).await;
}

#[tokio::test]
async fn strangers_cannot_make_a_node_hold_large_requests() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let stranger = ByHand::dial_silently(&cluster, 1, &server).await;
    let (mut send, mut recv) = stranger.open(&header::<PresentTokens>()).await;
    // The bytes themselves never come: the length is enough.
    send.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
    let error = refusal(&mut recv).await;
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Invalid, "too_large")
    );
    stop(&[&server]).await;
}

#[tokio::test]
async fn a_busy_peer_gets_more_streams_than_an_idle_one_has() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = cluster.node(1, Router::new());
    connect(&client, &server).await;
    let mut quiet = Vec::new();
    for _ in 0..100 {
        let one = stream::<Quiet>(&client, server.node_id(), &(), patiently());
        quiet.push(one.await.unwrap());
    }
    works(&client, &server).await;
    drop(quiet);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_method_can_have_a_bound_of_its_own() {
    let cluster = Cluster::new();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.method_calls = [("probe/quiet".to_owned(), 1)].into();
    let server = cluster.start_with(2, config, probe::router());
    let client = cluster.node(1, Router::new());
    connect(&client, &server).await;
    let to = server.node_id();
    let _first = stream::<Quiet>(&client, to, &(), patiently())
        .await
        .unwrap();
    let error = stream::<Quiet>(&client, to, &(), patiently())
        .await
        .err()
        .unwrap();
    assert_eq!(error.status, Status::Backpressure);
    works(&client, &server).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn request_bytes_of_a_peer_are_bounded() {
    let cluster = Cluster::new();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.request_bytes = 1 << 20;
    let server = cluster.start_with(2, config, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    let (mut first, _answer) = client.open(&header::<Echo>()).await;
    first.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
    // The first request holds all there is, without having sent any of it.
    let mut refused = false;
    while !refused {
        let (_send, mut recv) = client
            .request(&header::<Echo>(), &codec::encode(&Bytes::new()))
            .await;
        let (tag, _) = reply(&mut recv).await.unwrap();
        refused = tag == ReplyTag::Error;
    }
    first.reset(0u32.into()).unwrap();
    let mut served = false;
    while !served {
        let (_send, mut recv) = client
            .request(&header::<Echo>(), &codec::encode(&Bytes::new()))
            .await;
        served = reply(&mut recv).await.unwrap().0 == ReplyTag::Item;
    }
    stop(&[&server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_misses_nothing() {
    const ITEMS: u64 = 100_000;
    let (client, server) = Cluster::new().pair(probe::router()).await;
    let mut items = stream::<Count>(&client, server.node_id(), &ITEMS, patiently())
        .await
        .unwrap();
    let mut expected = 0;
    while let Some(item) = items.next().await {
        assert_eq!(item.unwrap(), expected);
        expected += 1;
        if expected % 5000 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(expected, ITEMS);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn what_is_not_served_is_named() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    for (header, status, reason) in [
        (
            header_named("nothing", "echo"),
            Status::NotFound,
            "no_service",
        ),
        (
            header_named("probe", "nothing"),
            Status::NotFound,
            "no_method",
        ),
        (header_named("probe", "count"), Status::Invalid, "kind"),
        (
            RequestHeader {
                kind: Kind::ServerStream,
                ..header::<Echo>()
            },
            Status::Invalid,
            "kind",
        ),
    ] {
        let (_send, mut recv) = client.request(&header, &[]).await;
        let error = refusal(&mut recv).await;
        assert_eq!(
            (error.status, &*error.reason),
            (status, reason),
            "{header:?}"
        );
    }
    let (_send, mut recv) = client.request(&header::<Echo>(), b"\xff").await;
    assert_eq!(refusal(&mut recv).await.reason, "decode");
    stop(&[&server]).await;
}

#[tokio::test]
async fn streams_of_unknown_type_are_refused() {
    const UNKNOWN_TYPE: u32 = 0x11;
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    for first in [0u8, 2, 0x7f, 0xff] {
        let (mut send, mut recv) = client.conn.open_bi().await.unwrap();
        send.write_all(&[first]).await.unwrap();
        let reset = recv.read_to_end(1).await.unwrap_err();
        let expected = quinn::ReadError::Reset(UNKNOWN_TYPE.into());
        assert_eq!(reset, quinn::ReadToEndError::Read(expected), "type {first}");
    }
    let mut uni = client.conn.open_uni().await.unwrap();
    uni.write_all(&[1]).await.unwrap();
    assert_eq!(uni.stopped().await.unwrap(), Some(UNKNOWN_TYPE.into()));
    stop(&[&server]).await;
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    let (mut send, mut recv) = client.conn.open_bi().await.unwrap();
    send.write_all(&[&[1][..], &frame(&[0xff; 40])].concat())
        .await
        .unwrap();
    assert_eq!(refusal(&mut recv).await.reason, "format");
    // No body; a body that is cut off; bytes after it.
    for (rest, reason) in [
        (vec![], "format"),
        (vec![0, 0, 0, 9, 1], "format"),
        (
            [frame(&codec::encode(&Bytes::new())), vec![1]].concat(),
            "format",
        ),
    ] {
        let (mut send, mut recv) = client.open(&header::<Echo>()).await;
        send.write_all(&rest).await.unwrap();
        send.finish().unwrap();
        assert_eq!(refusal(&mut recv).await.reason, reason, "{rest:?}");
    }
    stop(&[&server]).await;
}

#[tokio::test]
async fn slow_requests_are_given_up() {
    const BAD_REQUEST: u32 = 0x12;
    let cluster = Cluster::new();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.header_deadline = Duration::from_millis(200);
    let server = cluster.start_with(2, config, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    // Half a header.
    let (mut send, mut recv) = client.conn.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0]).await.unwrap();
    let reset = recv.read_to_end(1).await.unwrap_err();
    let expected = quinn::ReadError::Reset(BAD_REQUEST.into());
    assert_eq!(reset, quinn::ReadToEndError::Read(expected));
    // A whole request that is never finished.
    let (mut send, mut recv) = client.open(&header::<Echo>()).await;
    send.write_all(&frame(&codec::encode(&Bytes::new())))
        .await
        .unwrap();
    assert_eq!(refusal(&mut recv).await.status, Status::Timeout);
    stop(&[&server]).await;
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_and_a_missing_one_no_route() {
    let counters = Arc::<Counters>::default();
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(counted(&counters)).await;
    let to = server.node_id();
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call::<Hang>(&client, to, &(), patiently()).await }
    });
    until("the handler runs", || counters.started() == 1).await;
    // No time to end in peace.
    server.shutdown(Duration::ZERO).await;
    let error = hanging.await.unwrap().unwrap_err();
    assert!(
        [Status::Unavailable, Status::Cancelled].contains(&error.status),
        "{error}"
    );
    until("the client notices", || !linked(&client, to)).await;
    let error = call::<Hang>(&client, to, &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::NoRoute, "no_address")
    );
    stop(&[&client]).await;
}

#[tokio::test]
async fn shutdown_lets_unary_calls_end_and_ends_streams() {
    meshwork_proto::service! {
        "slow";
        /// Answers after a while.
        unary Slow("slow", Call, true): () => ();
    }
    let router = probe::router().unary::<Slow, _, _>(|_, ()| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(())
    });
    let (client, server) = Cluster::new().pair(router).await;
    let to = server.node_id();
    let mut quiet = stream::<Quiet>(&client, to, &(), patiently())
        .await
        .unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call::<Slow>(&client, to, &(), patiently()).await }
    });
    works(&client, &server).await;
    let down = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(PATIENCE).await }
    });
    assert_eq!(
        quiet.next().await.unwrap().unwrap_err().reason,
        "shutting_down"
    );
    slow.await.unwrap().unwrap();
    down.await.unwrap();
    assert_eq!(SERVICE, "slow");
    assert_eq!(METHODS.len(), 1);
    stop(&[&client]).await;
}

#[tokio::test]
async fn greetings_are_bounded() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial_silently(&cluster, 1, &server).await;
    let present = Present {
        tokens: (0..17).map(|_| cluster.node_token(1)).collect(),
        version: String::new(),
        addresses: vec![],
        accepts: false,
    };
    let (_send, mut recv) = client
        .request(&header::<PresentTokens>(), &codec::encode(&present))
        .await;
    assert_eq!(refusal(&mut recv).await.status, Status::Invalid);
    let present = Present {
        tokens: vec![],
        ..present
    };
    let mut backpressure = false;
    for _ in 0..40 {
        let (_send, mut recv) = client
            .request(&header::<PresentTokens>(), &codec::encode(&present))
            .await;
        backpressure |= reply(&mut recv).await.unwrap().0 == ReplyTag::Error;
    }
    assert!(backpressure, "each costs us signatures to check");
    assert_eq!(PresentTokens::INFO.path(), "mesh/present");
    stop(&[&server]).await;
}
