//! Calls: small ones alone, small ones by the thousand, and large ones.

use std::future::Future;
use std::net::UdpSocket as StdSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meshwork_proto::limits::MAX_FRAME;
use meshwork_proto::service::BoxFuture;
use quinn::{Connection, VarInt};
use tokio::net::UdpSocket;

use crate::Scale;
use crate::bulk::Link;
use crate::echo;
use crate::figures::{Series, Times, in_turn, series_in_turn};
use crate::lane::Lanes;
use crate::nodes::{Caller, Nodes};
use crate::report::{Bar, Of, Row, Unit};
use crate::stack::{LOOPBACK, Pair, Setup, Stack};

/// Bytes of a small call's body.
const SMALL: usize = 64;
/// Streams that a bare listener allows.
const MANY_STREAMS: u32 = 256;

/// Whoever makes calls.
#[derive(Debug, Clone)]
enum Side {
    /// Our node, through all of it.
    Node(Caller),
    /// The same bytes on a bare stream.
    Bare(Connection),
}

/// Everybody who makes calls here.
struct Sides {
    lanes: Lanes,
    nodes: Nodes,
    pairs: [Pair; 3],
    node: Side,
    noise: Side,
    tls: Side,
    null: Side,
}

/// What became of calls made together.
struct Batch {
    rate: f64,
    times: Times,
}

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let sides = Sides::connect();
    let mut rows = alone(scale, &sides);
    rows.extend(together(scale, &sides));
    rows.extend(crowd(scale, &sides));
    rows.extend(lossy(scale, &sides));
    rows.extend(items(scale, &sides));
    rows.extend(large(scale, &sides));
    sides.close();
    rows
}

impl Sides {
    fn connect() -> Self {
        let lanes = Lanes::start();
        let nodes = Nodes::start(&lanes);
        let node = Side::Node(nodes.caller.clone());
        let pairs = [Stack::Noise, Stack::Tls, Stack::Null]
            .map(|stack| stack.pair(&lanes, Setup::default(), serve_many));
        let [noise, tls, null] = pairs
            .each_ref()
            .map(|pair| Side::Bare(pair.connect(&lanes)));
        Self {
            lanes,
            nodes,
            pairs,
            node,
            noise,
            tls,
            null,
        }
    }

    fn close(self) {
        self.pairs.iter().for_each(Pair::close);
        self.nodes.stop(&self.lanes);
    }

    /// Makes `count` calls, `in_flight` at a time.
    fn batch(&self, side: &Side, body: usize, count: usize, in_flight: usize) -> Batch {
        let side = side.clone();
        let body = Bytes::from(vec![7; body]);
        self.lanes.client.run(async move {
            let call = move || {
                let (side, body) = (side.clone(), body.clone());
                async move { side.call(&body).await }
            };
            make(call, count, in_flight).await
        })
    }
}

/// Answers calls, as many at a time as a node of ours would.
async fn serve_many(connection: Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MANY_STREAMS));
    echo::serve(connection).await;
}

impl Side {
    async fn call(&self, body: &Bytes) {
        match self {
            Self::Node(caller) => caller.echo(body).await,
            Self::Bare(connection) => {
                let answer = echo::call(connection, body).await;
                assert_eq!(answer.len(), body.len());
            }
        }
    }
}

async fn make<F, Fut>(call: F, count: usize, in_flight: usize) -> Batch
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let left = Arc::new(AtomicUsize::new(count));
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let (call, left) = (call.clone(), left.clone());
        callers.spawn(async move {
            let mut times = Vec::with_capacity(2 * count / in_flight);
            while left
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                let start = Instant::now();
                call().await;
                times.push(start.elapsed());
            }
            times
        });
    }
    let times = callers.join_all().await.concat();
    Batch {
        rate: count as f64 / start.elapsed().as_secs_f64(),
        times: Times::new(times),
    }
}

fn alone(scale: &Scale, sides: &Sides) -> Vec<Row> {
    let count = scale.of(3000);
    let one = |side: &Side| sides.batch(side, SMALL, count, 1).times;
    let [node, noise, tls, null, udp] = in_turn(
        scale.rounds,
        [
            &mut || one(&sides.node),
            &mut || one(&sides.noise),
            &mut || one(&sides.tls),
            &mut || one(&sides.null),
            &mut || ping_pong(&sides.lanes, count),
        ],
    );
    let calls = node.iter().map(Times::count).sum::<usize>();
    eprintln!("call: {calls} calls alone");
    let row = |id, what, ours: &[Times], peer: (&'static str, &[Times]), q| {
        Row::new(id, what, Unit::Micros, Times::series(ours, q))
            .peer(peer.0, &Times::series(peer.1, q))
            .limit("UDP ping-pong", &Times::series(&udp, q))
    };
    let tls = ("rustls, bare", &tls[..]);
    let of_udp = Bar::AtMost(1.6, Of::Limit);
    vec![
        row("call.p50", "64 B call, alone, p50", &node, tls, 0.5).bar(of_udp),
        row(
            "call.p50.peer",
            "the same, against the peer",
            &node,
            tls,
            0.5,
        ),
        row("call.p99", "64 B call, alone, p99", &node, tls, 0.99),
        row("call.p999", "64 B call, alone, p99.9", &node, tls, 0.999),
        row(
            "call.bare.p50",
            "64 B on a bare Noise stream, p50",
            &noise,
            tls,
            0.5,
        ),
        row(
            "call.null.p50",
            "64 B on a stream without crypto, p50",
            &null,
            tls,
            0.5,
        ),
    ]
}

/// 64 B there and back over bare sockets, on the same two runtimes.
fn ping_pong(lanes: &Lanes, count: usize) -> Times {
    let bind = || {
        let socket = StdSocket::bind(LOOPBACK).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let (near, far) = (bind(), bind());
    near.connect(far.local_addr().unwrap()).unwrap();
    far.connect(near.local_addr().unwrap()).unwrap();
    lanes.server.run(async move {
        tokio::spawn(async move {
            let far = UdpSocket::from_std(far).unwrap();
            let mut packet = [0; 2 * SMALL];
            for _ in 0..count {
                let length = far.recv(&mut packet).await.unwrap();
                far.send(&packet[..length]).await.unwrap();
            }
        });
    });
    lanes.client.run(async move {
        let near = UdpSocket::from_std(near).unwrap();
        let mut packet = [7; SMALL];
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            near.send(&packet).await.unwrap();
            near.recv(&mut packet).await.unwrap();
            times.push(start.elapsed());
        }
        Times::new(times)
    })
}

fn together(scale: &Scale, sides: &Sides) -> Vec<Row> {
    let count = scale.of(40_000);
    let many = |side: &Side| sides.batch(side, SMALL, count, 64);
    let results = in_turn(
        scale.rounds,
        [
            &mut || many(&sides.node),
            &mut || many(&sides.noise),
            &mut || many(&sides.tls),
            &mut || many(&sides.null),
            &mut || pings(sides, count),
        ],
    );
    let [node, noise, tls, null, own] = results.map(|batches| split(&batches, 0.99));
    vec![
        Row::new(
            "calls.64",
            "64 B calls, 64 in flight",
            Unit::PerSecond,
            node.0,
        )
        .peer("rustls, bare", &tls.0)
        .limit("no crypto, bare", &null.0)
        .bar(Bar::AtLeast(350_000.0, Of::One)),
        Row::new(
            "calls.64.p99",
            "64 B calls, 64 in flight, p99",
            Unit::Micros,
            node.1,
        )
        .peer("rustls, bare", &tls.1)
        .limit("no crypto, bare", &null.1)
        .bar(Bar::AtMost(2000.0, Of::One)),
        Row::new(
            "calls.64.own",
            "calls with streams of their own, 64 in flight",
            Unit::PerSecond,
            own.0,
        )
        .peer("rustls, bare", &tls.0),
        Row::new(
            "calls.64.bare",
            "64 in flight on bare Noise streams",
            Unit::PerSecond,
            noise.0,
        )
        .peer("rustls, bare", &tls.0)
        .limit("no crypto, bare", &null.0),
    ]
}

/// Calls of our node without a body, each on a stream of its own: what sharing one saves.
fn pings(sides: &Sides, count: usize) -> Batch {
    let caller = sides.nodes.caller.clone();
    sides.lanes.client.run(async move {
        let call = move || {
            let caller = caller.clone();
            async move { caller.ping().await }
        };
        make(call, count, 64).await
    })
}

/// Calls over a link that loses one datagram in a hundred each way, against the same without loss.
fn lossy(scale: &Scale, sides: &Sides) -> Vec<Row> {
    const PER_MILLE: u64 = 10;
    let count = scale.of(40_000);
    let nodes = Nodes::start_lossy(&sides.lanes, PER_MILLE);
    let lossy = Side::Node(nodes.caller.clone());
    let results = in_turn(
        scale.rounds,
        [&mut || sides.batch(&lossy, SMALL, count, 64), &mut || {
            sides.batch(&sides.node, SMALL, count, 64)
        }],
    );
    nodes.stop(&sides.lanes);
    let [with, without] = results.map(|batches| split(&batches, 0.99));
    vec![
        Row::new(
            "calls.64.loss",
            "64 B calls, 64 in flight, 1 % loss",
            Unit::PerSecond,
            with.0,
        )
        .peer("without loss", &without.0)
        .bar(Bar::AtLeast(0.7, Of::Peer)),
        Row::new(
            "calls.64.loss.p99",
            "64 B calls, 64 in flight, 1 % loss, p99",
            Unit::Micros,
            with.1,
        )
        .peer("without loss", &without.1),
    ]
}

/// Items of one stream, each way.
fn items(scale: &Scale, sides: &Sides) -> Vec<Row> {
    let count = scale.of(1_000_000) as u64;
    let rate = |work: fn(Caller, u64) -> BoxFuture<()>| {
        let caller = sides.nodes.caller.clone();
        let start = Instant::now();
        sides.lanes.client.run(work(caller, count));
        count as f64 / start.elapsed().as_secs_f64()
    };
    let [down, up] = series_in_turn(
        scale.rounds,
        [
            &mut || rate(|caller, count| Box::pin(async move { caller.download(count).await })),
            &mut || rate(|caller, count| Box::pin(async move { caller.upload(count).await })),
        ],
    );
    let unit = Unit::PerSecond;
    vec![
        Row::new(
            "items.down",
            "items of a stream, callee to caller",
            unit,
            down,
        ),
        Row::new("items.up", "items of a stream, caller to callee", unit, up),
    ]
}

/// More than most would: whether all are answered, and none waits long.
fn crowd(scale: &Scale, sides: &Sides) -> Vec<Row> {
    let count = scale.of(40_000).max(5_000);
    let many = |side: &Side| sides.batch(side, SMALL, count, 1024);
    let results = in_turn(
        scale.rounds,
        [&mut || many(&sides.node), &mut || many(&sides.tls)],
    );
    let [node, tls] = results.map(|batches| split(&batches, 1.0));
    vec![
        Row::new(
            "calls.1024",
            "64 B calls, 1,024 in flight",
            Unit::PerSecond,
            node.0,
        )
        .peer("rustls, bare", &tls.0),
        Row::new(
            "calls.1024.max",
            "64 B calls, 1,024 in flight, longest",
            Unit::Micros,
            node.1,
        )
        .peer("rustls, bare", &tls.1)
        .bar(Bar::AtMost(
            Duration::from_secs(1).as_secs_f64() * 1e6,
            Of::One,
        )),
    ]
}

/// Rates, and one quantile of the times.
fn split(batches: &[Batch], q: f64) -> (Series, Series) {
    let rates = batches.iter().map(|batch| batch.rate).collect();
    let times = batches
        .iter()
        .map(|batch| batch.times.quantile(q))
        .collect();
    (Series::new(rates), Series::new(times))
}

fn large(scale: &Scale, sides: &Sides) -> Vec<Row> {
    let bytes = scale.of(256 << 20);
    let link = Link::new(Stack::Noise, &sides.lanes, Setup::default());
    // The largest body that fits into a frame with its length.
    let largest = MAX_FRAME - 8;
    let [middle, large, bulk] = series_in_turn(
        scale.rounds,
        [
            &mut || upload(sides, 64 << 10, bytes, 16),
            &mut || upload(sides, largest, bytes, 2),
            &mut || link.rate(&sides.lanes, bytes),
        ],
    );
    let unit = Unit::GigabytesPerSecond;
    vec![
        Row::new("calls.64k", "64 KiB calls, 16 in flight", unit, middle)
            .limit("one stream", &bulk)
            .bar(Bar::AtLeast(0.8, Of::Limit)),
        Row::new("calls.16m", "16 MiB calls, 2 in flight", unit, large)
            .limit("one stream", &bulk)
            .bar(Bar::AtLeast(0.8, Of::Limit)),
    ]
}

/// Gigabytes a second of calls with `size` bytes each.
fn upload(sides: &Sides, size: usize, bytes: usize, in_flight: usize) -> f64 {
    let caller = sides.nodes.caller.clone();
    let body = Bytes::from(vec![7; size]);
    let count = bytes.div_ceil(size).max(in_flight);
    let batch = sides.lanes.client.run(async move {
        let call = move || {
            let (caller, body) = (caller.clone(), body.clone());
            async move { caller.swallow(&body).await }
        };
        make(call, count, in_flight).await
    });
    batch.rate * size as f64 / 1e9
}
