//! The whole transport in a simulated network, repeatable bit for bit.

use std::{process::Command, time::Duration};

use meshwork_mesh::transport::{Endpoint, peer_id};
use meshwork_netsim::{LinkModel, Sim};

use crate::common::*;

const NODES: u8 = 20;
/// Virtual time.
const RUN: Duration = Duration::from_mins(10);
/// Between two calls of a node, virtual time.
const PAUSE: Duration = Duration::from_secs(3);
/// Names the seed for [`another_process_prints_its_hash`].
const SEED_VARIABLE: &str = "MESHWORK_TEST_SEED";

/// 20 nodes at 5 % loss dial two others each and call them for ten minutes. The hash over all
/// datagrams, in hex, and how many calls were answered.
fn run(seed: u64) -> (String, u64) {
    let sim = Sim::new(
        seed,
        LinkModel {
            loss: 0.05,
            ..LinkModel::default()
        },
    );
    let net = sim.net();
    let answered = sim.block_on(async {
        let endpoints: Vec<Endpoint> = (0..NODES)
            .map(|n| sim_endpoint(&net, n, config(n)))
            .collect();
        for endpoint in &endpoints {
            serve_echo(endpoint.clone());
        }
        let mut callers = tokio::task::JoinSet::new();
        for (n, endpoint) in (0..NODES).zip(&endpoints) {
            for step in [1, 7] {
                callers.spawn(call_for_ten_minutes(endpoint.clone(), (n + step) % NODES));
            }
        }
        callers.join_all().await.into_iter().sum()
    });
    (data_encoding::HEXLOWER.encode(&net.trace_hash()), answered)
}

async fn call_for_ten_minutes(endpoint: Endpoint, callee: u8) -> u64 {
    let end = tokio::time::Instant::now() + RUN;
    let connection = endpoint
        .connect(sim_addr(callee), Some(node_id(callee)))
        .await
        .unwrap();
    assert_eq!(peer_id(&connection), node_id(callee));
    let mut answered = 0;
    while tokio::time::Instant::now() < end {
        round_trip(&connection, &[callee; 3000]).await.unwrap();
        answered += 1;
        tokio::time::sleep(PAUSE).await;
    }
    answered
}

#[test]
fn the_same_seed_gives_the_same_datagrams() {
    let (hash, answered) = run(1);
    // 40 callers, at most one call every 3 s, at least one every 6 s.
    assert!((4_000..=8_000).contains(&answered), "{answered} calls");
    assert_eq!(run(1), (hash.clone(), answered));
    assert_ne!(run(2).0, hash);

    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sim::another_process_prints_its_hash",
            "--ignored",
            "--nocapture",
        ])
        .env(SEED_VARIABLE, "1")
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.contains(&format!("hash {hash}")),
        "expected {hash} in:\n{output}"
    );
}

#[test]
#[ignore = "the other process of the test above"]
fn another_process_prints_its_hash() {
    let seed = std::env::var(SEED_VARIABLE).expect("run by the test above");
    println!("hash {}", run(seed.parse().unwrap()).0);
}
