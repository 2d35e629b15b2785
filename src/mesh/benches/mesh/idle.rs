//! What an idle connection holds in memory.

use std::thread;
use std::time::Duration;

use quinn::Connection;

use crate::Scale;
use crate::echo;
use crate::figures::series_in_turn;
use crate::lane::Lanes;
use crate::meter::heap_growth;
use crate::report::{Bar, Of, Row, Unit};
use crate::stack::{Pair, Setup, Stack};

/// Time for the last acknowledgements, and for closed connections to go.
const REST: Duration = Duration::from_millis(250);

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let lanes = Lanes::start();
    let count = scale.of(200);
    let [ours, peer, limit] = series_in_turn(
        scale.rounds,
        [
            &mut || heap(&lanes, Stack::Noise, count),
            &mut || heap(&lanes, Stack::Tls, count),
            &mut || heap(&lanes, Stack::Null, count),
        ],
    );
    vec![
        Row::new(
            "idle.heap",
            "idle connection, heap a side",
            Unit::Kibibytes,
            ours,
        )
        .peer("rustls", &peer)
        .limit("no crypto", &limit)
        .bar(Bar::AtMost(30.0, Of::One)),
    ]
}

/// KiB that each side of a connection holds after one call.
fn heap(lanes: &Lanes, stack: Stack, count: usize) -> f64 {
    let pair = stack.pair(lanes, Setup::default(), echo::serve);
    // What both ends make once.
    let first = open(lanes, &pair, 1);
    let (bytes, connections) = heap_growth(|| open(lanes, &pair, count));
    drop((first, connections));
    pair.close();
    thread::sleep(REST);
    bytes as f64 / (2 * count) as f64 / 1024.0
}

/// Connections that have carried a call and come to rest.
fn open(lanes: &Lanes, pair: &Pair, count: usize) -> Vec<Connection> {
    let pair = pair.clone();
    lanes.client.run(async move {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            let connection = pair.client.connect(pair.addr).await;
            echo::call(&connection, &[7; 64]).await;
            connections.push(connection);
        }
        tokio::time::sleep(REST).await;
        connections
    })
}
