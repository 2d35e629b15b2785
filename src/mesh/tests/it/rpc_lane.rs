//! Small calls that share a stream: each has what a call with a stream of its own has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meshwork_identity::{Revoked, Scope};
use meshwork_mesh::Mesh;
use meshwork_netsim::{LinkModel, Sim};
use meshwork_proto::rpc::lane::{Declare, LANE_ANSWER, LANE_BODY, LaneCall, ToCallee, ToCaller};
use meshwork_proto::rpc::{Codec, RpcError, STREAM_LANE, Status};
use meshwork_proto::service::{CallContext, CallOptions, Method, Router, call};
use quinn::{RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cluster::*;
use crate::probe::{self, *};

meshwork_proto::service! {
    "lane";
    /// Waits for a permit.
    unary Gate("gate", Call, true): () => ();
    /// Not to be repeated: says how often it was called.
    unary Tick("tick", Call, false): () => u64;
    /// The key and the trace of the call.
    unary Tell("tell", Call, false): () => (Option<[u8; 16]>, Option<[u8; 8]>);
    /// Gives the processor away for a while before it is done.
    unary Yield("yield", Call, true): u64 => u64;
    /// Keeps the processor for itself, in milliseconds.
    unary Hog("hog", Call, true): u64 => ();
    /// Fails with as many bytes of words.
    unary Rant("rant", Call, true): u64 => ();
}

pub(crate) struct Stage {
    gate: Arc<Semaphore>,
    /// Calls that have come to the gate.
    at_gate: Arc<AtomicUsize>,
    ticks: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            at_gate: Arc::default(),
            ticks: Arc::default(),
            counters: Arc::default(),
        }
    }

    /// How often [`Tick`] was called.
    pub(crate) fn ticks(&self) -> usize {
        self.ticks.load(Ordering::SeqCst)
    }

    pub(crate) fn router(&self) -> Router {
        let (gate, ticks) = (self.gate.clone(), self.ticks.clone());
        let at_gate = self.at_gate.clone();
        probe::counted(&self.counters)
            .unary::<Gate, _, _>(move |_, ()| {
                let gate = gate.clone();
                at_gate.fetch_add(1, Ordering::SeqCst);
                async move {
                    gate.acquire().await.unwrap().forget();
                    Ok(())
                }
            })
            .unary::<Tick, _, _>(move |_, ()| {
                let tick = ticks.fetch_add(1, Ordering::SeqCst);
                async move { Ok(tick as u64 + 1) }
            })
            .unary::<Tell, _, _>(|cx: CallContext, ()| async move {
                Ok((cx.idempotency_key, cx.trace.map(|trace| trace.span_id)))
            })
            .unary::<Yield, _, _>(|_, n| async move {
                tokio::task::yield_now().await;
                Ok(n)
            })
            .unary::<Hog, _, _>(|_, millis| async move {
                std::thread::sleep(Duration::from_millis(millis));
                Ok(())
            })
            .unary::<Rant, _, _>(|_, bytes| async move {
                let words = "né".repeat(usize::try_from(bytes).unwrap() / 3);
                Err(RpcError::invalid(words))
            })
    }
}

async fn echo(client: &Mesh, to: &Mesh, len: usize) -> Result<usize, RpcError> {
    let body = Bytes::from(vec![7; len]);
    let answer = call::<Echo>(client, to.node_id(), &body, patiently()).await?;
    Ok(answer.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_at_once_are_all_answered() {
    const CALLS: u64 = 10_000;
    let cluster = Cluster::new();
    let stage = Stage::new();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.concurrent_calls = 10_000;
    let server = cluster.start_with(2, config, stage.router());
    let client = cluster.node(1, Router::new());
    connect(&client, &server).await;
    let to = server.node_id();
    let mut calls = JoinSet::new();
    for n in 0..CALLS {
        let client = client.clone();
        calls.spawn(async move { (n, call::<Yield>(&client, to, &n, patiently()).await) });
    }
    for (n, answer) in calls.join_all().await {
        assert_eq!(answer, Ok(n));
    }
    let mut waiting = JoinSet::new();
    for _ in 0..CALLS {
        let client = client.clone();
        waiting.spawn(async move { call::<Gate>(&client, to, &(), patiently()).await });
    }
    // All of them are under way before the first one ends: one more is too many.
    let all_there = async {
        while stage.at_gate.load(Ordering::SeqCst) as u64 != CALLS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_mins(1);
    tokio::time::timeout(patience, all_there).await.unwrap();
    let one_more = || async { call::<Gate>(&client, to, &(), patiently()).await };
    let refused = one_more().await.unwrap_err();
    assert_eq!(refused.status, Status::Backpressure, "{refused}");
    stage.gate.add_permits(10_001);
    for answer in waiting.join_all().await {
        assert_eq!(answer, Ok(()));
    }
    one_more().await.unwrap();
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn bodies_of_every_size_come_back() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(probe::router()).await;
    let sizes = [
        0,
        1,
        64,
        1200,
        LANE_BODY - 4,
        LANE_BODY,
        LANE_BODY + 1,
        LANE_ANSWER,
        1 << 20,
    ];
    for len in sizes {
        assert_eq!(echo(&client, &server, len).await, Ok(len), "{len} bytes");
    }
    // Small requests, large answers: below, at and above what a lane carries, and below a frame.
    for len in [
        LANE_ANSWER - 3,
        LANE_ANSWER,
        LANE_ANSWER + 1,
        100_000,
        (16 << 20) - 8,
    ] {
        let want = len as u64;
        let answer = call::<Bulk>(&client, server.node_id(), &want, patiently()).await;
        assert_eq!(answer.unwrap().len(), len);
    }
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_large_answer_does_not_hold_small_ones_up() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(probe::router()).await;
    let to = server.node_id();
    let large = (16u64 << 20) - 8;
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let client = client.clone();
        calls.spawn(async move { call::<Bulk>(&client, to, &large, patiently()).await });
    }
    let mut small = 0;
    while calls.try_join_next().is_none() {
        echo(&client, &server, 64).await.unwrap();
        small += 1;
    }
    assert!(small >= 3, "{small} small calls were answered meanwhile");
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap().len() as u64, large);
    }
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn errors_of_any_length_arrive() {
    let stage = Stage::new();
    let (client, server) = Cluster::new().pair(stage.router()).await;
    for bytes in [30, 4095, 4098, 100_000] {
        let error = call::<Rant>(&client, server.node_id(), &bytes, patiently())
            .await
            .unwrap_err();
        assert_eq!(error.status, Status::Invalid);
        assert!(error.message.starts_with("néné"));
        assert!(error.message.len() as u64 <= bytes.min(4096));
    }
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn keys_and_traces_reach_the_handler() {
    let stage = Stage::new();
    let (client, server) = Cluster::new().pair(stage.router()).await;
    let trace = meshwork_proto::rpc::TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
        flags: 1,
    };
    let options = CallOptions {
        idempotency_key: Some([7; 16]),
        trace: Some(trace),
        ..patiently()
    };
    let told = call::<Tell>(&client, server.node_id(), &(), options).await;
    assert_eq!(told, Ok((Some([7; 16]), Some([2; 8]))));
    let told = call::<Tell>(&client, server.node_id(), &(), patiently()).await;
    assert_eq!(told, Ok((None, None)));
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn revoking_a_caller_cuts_its_calls_under_way_and_refuses_later_ones() {
    let cluster = Cluster::new();
    let stage = Stage::new();
    let server = cluster.node(2, stage.router());
    let token = cluster.token(1, &[Scope::Call]);
    let client = cluster.start(1, vec![token.clone()], Router::new());
    connect(&client, &server).await;
    let to = server.node_id();
    // Its permission is looked up, and found, before.
    echo(&client, &server, 8).await.unwrap();
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call::<Hang>(&client, to, &(), patiently()).await }
    });
    until("the handler runs", || stage.counters.started() == 1).await;
    let revocation = cluster.revocation(Revoked::Token(token.id()));
    server.revoke(revocation).await.unwrap();
    let error = hanging.await.unwrap().unwrap_err();
    assert!(
        [Status::Denied, Status::Unauthenticated].contains(&error.status),
        "{error}"
    );
    until("the handler is dropped", || stage.counters.dropped() == 1).await;
    let error = echo(&client, &server, 8).await.unwrap_err();
    assert_eq!(error.reason, "revoked");
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_token_that_expires_allows_no_further_call() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let mut request = Cluster::request(1, &[Scope::Call]);
    request.ttl = Duration::from_mins(1);
    let client = cluster.start(1, vec![cluster.issue(request)], Router::new());
    connect(&client, &server).await;
    echo(&client, &server, 8).await.unwrap();
    cluster.clock.advance(Duration::from_secs(61));
    let error = echo(&client, &server, 8).await.unwrap_err();
    assert!(
        [Status::Denied, Status::Unauthenticated].contains(&error.status),
        "{error}"
    );
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn methods_that_are_served_later_are_found() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(Router::new()).await;
    let error = echo(&client, &server, 8).await.unwrap_err();
    assert_eq!(error.reason, "no_service");
    server.serve(probe::router());
    assert_eq!(echo(&client, &server, 8).await, Ok(8));
    stop(&[&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handlers_do_not_keep_others_from_being_answered() {
    let stage = Stage::new();
    let (client, server) = Cluster::new().pair(stage.router()).await;
    let to = server.node_id();
    // By now it is known that they keep the processor.
    for _ in 0..8 {
        call::<Hog>(&client, to, &1, patiently()).await.unwrap();
    }
    let hogging = tokio::spawn({
        let client = client.clone();
        async move { call::<Hog>(&client, to, &1500, patiently()).await }
    });
    let mut answered = 0;
    while !hogging.is_finished() {
        echo(&client, &server, 8).await.unwrap();
        answered += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(answered > 10, "{answered} others were answered meanwhile");
    hogging.await.unwrap().unwrap();
    stop(&[&client, &server]).await;
}

/// Every call of a method that may not be repeated is made once, whatever becomes of connections: two
/// nodes dial each other again and again while they call, in a network that loses packets.
#[test]
fn calls_are_made_once_while_connections_come_and_go() {
    for seed in 0..500 {
        let link = LinkModel {
            loss: 0.02,
            ..LinkModel::default()
        };
        let sim = Sim::new(seed, link);
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let stages = [Stage::new(), Stage::new()];
            let one = cluster.node(1, stages[0].router());
            let other = cluster.node(2, stages[1].router());
            let half = |from: Mesh, to: Mesh| async move {
                connect(&from, &to).await;
                let mut made = 0;
                for _ in 0..20 {
                    let tick = call::<Tick>(&from, to.node_id(), &(), patiently()).await;
                    assert!(tick.is_ok(), "seed {seed}: {tick:?}");
                    made += 1;
                }
                made
            };
            let (up, down) = tokio::join!(
                half(one.clone(), other.clone()),
                half(other.clone(), one.clone())
            );
            assert_eq!(stages[1].ticks(), up, "seed {seed}");
            assert_eq!(stages[0].ticks(), down, "seed {seed}");
            stop(&[&one, &other]).await;
        });
    }
}

#[tokio::test]
async fn shutdown_answers_what_is_under_way() {
    let stage = Stage::new();
    let (client, server) = Cluster::new().pair(stage.router()).await;
    let to = server.node_id();
    let mut waiting = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        waiting.spawn(async move { call::<Gate>(&client, to, &(), patiently()).await });
    }
    echo(&client, &server, 8).await.unwrap();
    let down = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(PATIENCE).await }
    });
    tokio::task::yield_now().await;
    stage.gate.add_permits(50);
    for answer in waiting.join_all().await {
        assert_eq!(answer, Ok(()));
    }
    down.await.unwrap();
    stop(&[&client]).await;
}

/// A lane, by hand.
struct Lane {
    send: SendStream,
    recv: RecvStream,
}

impl Lane {
    async fn open(peer: &ByHand) -> Self {
        let (mut send, recv) = peer.conn.open_bi().await.unwrap();
        send.write_all(&[STREAM_LANE]).await.unwrap();
        Self { send, recv }
    }

    async fn say(&mut self, frames: &[ToCallee]) {
        let mut out = BytesMut::new();
        for frame in frames {
            frame.put(&mut out);
        }
        self.send.write_all(&out).await.unwrap();
    }

    /// The next frame; none when the lane ends, however it does.
    async fn hear(&mut self) -> Option<ToCaller> {
        let mut length = [0; 4];
        self.recv.read_exact(&mut length).await.ok()?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.recv.read_exact(&mut frame).await.ok()?;
        Some(ToCaller::decode(frame.into()).unwrap())
    }
}

fn declared<M: Method>(index: u16) -> ToCallee {
    ToCallee::Declare(Declare {
        index,
        codec: Codec::Postcard,
        service: M::INFO.service.into(),
        method: M::INFO.name.into(),
    })
}

fn lane_call(id: u64, method: u16) -> ToCallee {
    let call = LaneCall {
        id,
        method,
        deadline_ms: None,
        idempotency_key: None,
        trace: None,
    };
    // An empty body: of Echo, the bytes of length zero.
    ToCallee::Call(call, Bytes::from_static(&[0]))
}

#[tokio::test]
async fn what_breaks_the_format_ends_the_lane_and_nothing_else() {
    let cluster = Cluster::new();
    let counters = Arc::<Counters>::default();
    let server = cluster.node(2, probe::counted(&counters));
    let client = ByHand::dial(&cluster, 1, &server).await;
    let long_name = ToCallee::Declare(Declare {
        index: 0,
        codec: Codec::Json,
        service: "s".repeat(65),
        method: String::new(),
    });
    let hang = |id| {
        let ToCallee::Call(call, _) = lane_call(id, 0) else {
            unreachable!()
        };
        ToCallee::Call(call, Bytes::new())
    };
    for wrong in [
        vec![lane_call(1, 0)],
        vec![declared::<Echo>(0), declared::<Echo>(0)],
        vec![declared::<Echo>(256)],
        vec![long_name],
        vec![declared::<Hang>(0), hang(5), hang(5)],
    ] {
        let mut lane = Lane::open(&client).await;
        lane.say(&wrong).await;
        assert_eq!(lane.hear().await, None, "{wrong:?}");
    }
    let mut lane = Lane::open(&client).await;
    lane.send.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(lane.hear().await, None, "a frame that is too long");
    until("what hung is dropped with its lane", || {
        counters.started() == counters.dropped() && counters.started() > 0
    })
    .await;
    let mut lane = Lane::open(&client).await;
    lane.say(&[declared::<Echo>(7), lane_call(9, 7)]).await;
    let answer = ToCaller::Item(9, Bytes::from_static(&[0]));
    assert_eq!(lane.hear().await, Some(answer));
    client.conn.close(0u32.into(), b"");
    stop(&[&server]).await;
}

#[tokio::test]
async fn lanes_of_a_peer_are_few() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    let mut lanes = Vec::new();
    for _ in 0..8 {
        let mut lane = Lane::open(&client).await;
        lane.say(&[declared::<Echo>(0), lane_call(1, 0)]).await;
        assert!(lane.hear().await.is_some());
        lanes.push(lane);
    }
    let mut more = Lane::open(&client).await;
    more.say(&[declared::<Echo>(0), lane_call(1, 0)]).await;
    assert_eq!(more.hear().await, None);
    client.conn.close(0u32.into(), b"");
    stop(&[&server]).await;
}

#[tokio::test]
async fn cancelled_calls_are_dropped_and_their_places_free() {
    let cluster = Cluster::new();
    let counters = Arc::<Counters>::default();
    let mut config = cluster.config(2, vec![cluster.node_token(2)]);
    config.limits.concurrent_calls = 2;
    let server = cluster.start_with(2, config, probe::counted(&counters));
    let client = ByHand::dial(&cluster, 1, &server).await;
    let mut lane = Lane::open(&client).await;
    let hang = |id| {
        let ToCallee::Call(call, _) = lane_call(id, 0) else {
            unreachable!()
        };
        ToCallee::Call(call, Bytes::new())
    };
    lane.say(&[declared::<Hang>(0), declared::<Echo>(1)]).await;
    lane.say(&[hang(1), hang(2), lane_call(3, 1)]).await;
    let Some(ToCaller::Failed(3, error)) = lane.hear().await else {
        panic!("two are too many beside it")
    };
    assert_eq!(error.status, Status::Backpressure);
    lane.say(&[ToCallee::Cancel(1), ToCallee::Cancel(77)]).await;
    until("the handler is dropped", || counters.dropped() == 1).await;
    lane.say(&[lane_call(4, 1)]).await;
    assert!(matches!(lane.hear().await, Some(ToCaller::Item(4, _))));
    client.conn.close(0u32.into(), b"");
    stop(&[&server]).await;
}

#[tokio::test]
async fn streams_of_answers_that_nobody_waits_for_are_refused() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = ByHand::dial(&cluster, 1, &server).await;
    let mut uni = client.conn.open_uni().await.unwrap();
    uni.write_all(&[meshwork_proto::rpc::STREAM_ANSWER])
        .await
        .unwrap();
    uni.write_all(&77u64.to_be_bytes()).await.unwrap();
    uni.write_all(&[0, 0, 0, 9, 0]).await.unwrap();
    assert!(uni.stopped().await.unwrap().is_some());
    client.conn.close(0u32.into(), b"");
    stop(&[&server]).await;
}
