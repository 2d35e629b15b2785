//! Handshakes with mutual authentication: what they cost, how many go, how long one takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};

use crate::Scale;
use crate::echo;
use crate::figures::{Series, Times, in_turn, series_in_turn};
use crate::lane::Lanes;
use crate::meter::process_cpu;
use crate::report::{Bar, Of, Row, Unit};
use crate::stack::{Pair, Setup, Stack};

const IN_FLIGHT: usize = 32;

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let lanes = Lanes::start();
    let mut rows = one_by_one(scale, &lanes);
    rows.push(many(scale, &lanes));
    rows.extend(with_first_call(scale, &lanes));
    rows
}

/// The listener ends each connection as soon as it is complete, so that both ends have done all
/// their work when the dialler sees the end.
fn closing_pair(stack: Stack, lanes: &Lanes) -> Pair {
    stack.pair(
        lanes,
        Setup::default(),
        |connection: Connection| async move {
            connection.close(VarInt::from_u32(0), b"");
        },
    )
}

fn one_by_one(scale: &Scale, lanes: &Lanes) -> Vec<Row> {
    let count = scale.of(200);
    let pairs = [Stack::Noise, Stack::Tls, Stack::Null].map(|stack| closing_pair(stack, lanes));
    let measure = |pair: &Pair| {
        let before = process_cpu();
        let times = connect_each(lanes, pair, count);
        ((process_cpu() - before) / count as f64, times)
    };
    let [noise, tls, null] = &pairs;
    let results = in_turn(
        scale.rounds,
        [&mut || measure(noise), &mut || measure(tls), &mut || {
            measure(null)
        }],
    );
    pairs.iter().for_each(Pair::close);
    let [noise, tls, null] = results.map(|rounds| {
        let (cpu, times): (Vec<f64>, Vec<Times>) = rounds.into_iter().unzip();
        (Series::new(cpu), times)
    });
    let mut rows = vec![
        Row::new(
            "handshake.cpu",
            "handshake: CPU of both ends",
            Unit::Micros,
            noise.0,
        )
        .peer("rustls", &tls.0)
        .limit("no crypto", &null.0)
        .bar(Bar::AtMost(0.80, Of::Peer)),
    ];
    for (id, what, q) in [
        ("handshake.connect.p50", "handshake: connect, p50", 0.5),
        ("handshake.connect.p99", "handshake: connect, p99", 0.99),
    ] {
        let ours = Times::series(&noise.1, q);
        rows.push(
            Row::new(id, what, Unit::Micros, ours)
                .peer("rustls", &Times::series(&tls.1, q))
                .limit("no crypto", &Times::series(&null.1, q)),
        );
    }
    rows
}

fn connect_each(lanes: &Lanes, pair: &Pair, count: usize) -> Times {
    let pair = pair.clone();
    Times::new(lanes.client.run(async move {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let connection = pair.client.connect(pair.addr).await;
            times.push(start.elapsed());
            connection.closed().await;
        }
        times
    }))
}

fn many(scale: &Scale, lanes: &Lanes) -> Row {
    let count = scale.of(1000);
    let pairs = [Stack::Noise, Stack::Tls, Stack::Null].map(|stack| closing_pair(stack, lanes));
    let [noise, tls, null] = &pairs;
    let [ours, peer, limit] = series_in_turn(
        scale.rounds,
        [
            &mut || connect_many(lanes, noise, count),
            &mut || connect_many(lanes, tls, count),
            &mut || connect_many(lanes, null, count),
        ],
    );
    pairs.iter().for_each(Pair::close);
    Row::new(
        "handshake.rate",
        "handshakes, 32 in flight",
        Unit::PerSecond,
        ours,
    )
    .peer("rustls", &peer)
    .limit("no crypto", &limit)
    .bar(Bar::AtLeast(1.3, Of::Peer))
}

/// Handshakes a second.
fn connect_many(lanes: &Lanes, pair: &Pair, count: usize) -> f64 {
    let pair = pair.clone();
    let left = Arc::new(AtomicUsize::new(count));
    let took: Duration = lanes.client.run(async move {
        let start = Instant::now();
        let mut diallers = tokio::task::JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let (pair, left) = (pair.clone(), left.clone());
            diallers.spawn(async move {
                while left
                    .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    pair.client.connect(pair.addr).await.closed().await;
                }
            });
        }
        diallers.join_all().await;
        start.elapsed()
    });
    count as f64 / took.as_secs_f64()
}

fn with_first_call(scale: &Scale, lanes: &Lanes) -> Vec<Row> {
    let count = scale.of(200);
    let pairs = [Stack::Noise, Stack::Tls, Stack::Null]
        .map(|stack| stack.pair(lanes, Setup::default(), echo::serve));
    let [noise, tls, null] = &pairs;
    let [ours, peer, limit] = in_turn(
        scale.rounds,
        [
            &mut || call_each(lanes, noise, count),
            &mut || call_each(lanes, tls, count),
            &mut || call_each(lanes, null, count),
        ],
    );
    pairs.iter().for_each(Pair::close);
    [
        ("handshake.call.p50", "handshake and first call, p50", 0.5),
        ("handshake.call.p99", "handshake and first call, p99", 0.99),
    ]
    .map(|(id, what, q)| {
        Row::new(id, what, Unit::Micros, Times::series(&ours, q))
            .peer("rustls", &Times::series(&peer, q))
            .limit("no crypto", &Times::series(&limit, q))
    })
    .into()
}

fn call_each(lanes: &Lanes, pair: &Pair, count: usize) -> Times {
    let pair = pair.clone();
    Times::new(lanes.client.run(async move {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let connection = pair.client.connect(pair.addr).await;
            echo::call(&connection, &[7; 64]).await;
            times.push(start.elapsed());
            connection.close(VarInt::from_u32(0), b"");
        }
        times
    }))
}
