//! Calls and streams in simulated networks that lose packets, fall apart and lose nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use meshwork_netsim::{LinkModel, Sim};
use meshwork_proto::rpc::Status;
use meshwork_proto::service::{CallOptions, Router, call, duplex};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::*;
use crate::common::sim_addr;
use crate::probe::patiently;
use crate::rpc_lane::{Stage, Tick, Yield};
use crate::rpc_stream::{self, Double};

/// A number that depends on the seed, below `bound`.
fn chance(seed: u64, step: u64, bound: u64) -> u64 {
    let mixed = (seed * 1000 + step).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 33) % bound
}

#[test]
fn items_of_a_stream_arrive_in_order_and_once_whatever_is_lost() {
    const ITEMS: u64 = 2_000;
    for seed in 0..100 {
        let link = LinkModel {
            loss: 0.05,
            ..LinkModel::default()
        };
        let sim = Sim::new(seed, link);
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let server = cluster.node(2, rpc_stream::router());
            let client = cluster.node(1, Router::new());
            connect(&client, &server).await;
            let up = stream::iter(0..ITEMS);
            let down = duplex::<Double>(&client, server.node_id(), up, patiently()).await;
            let down: Vec<u64> = down.unwrap().map(Result::unwrap).collect().await;
            assert!(
                down.into_iter().eq((0..ITEMS).map(|n| 2 * n)),
                "seed {seed}"
            );
            stop(&[&client, &server]).await;
        });
    }
}

/// The network falls apart and heals, and in some runs the server dies. Every call ends by its
/// deadline, in one way; a call that was answered was made, and none of them twice.
#[test]
fn every_call_ends_once_and_by_its_deadline_whatever_happens() {
    const DEADLINE: Duration = Duration::from_secs(8);
    for seed in 0..500 {
        let link = LinkModel {
            loss: 0.03,
            ..LinkModel::default()
        };
        let sim = Sim::new(seed, link);
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let stage = Stage::new();
            let server = cluster.node(2, stage.router());
            let client = cluster.node(1, Router::new());
            connect(&client, &server).await;
            let to = server.node_id();
            let mut calls = JoinSet::new();
            for n in 0..60 {
                let client = client.clone();
                let wait = Duration::from_millis(chance(seed, n, 3000));
                calls.spawn(async move {
                    tokio::time::sleep(wait).await;
                    let (begun, options) = (Instant::now(), CallOptions::within(DEADLINE));
                    // Some are answered where they arrive, and some by a task.
                    let answer = if n % 3 == 0 {
                        call::<Yield>(&client, to, &n, options).await.map(|_| None)
                    } else {
                        call::<Tick>(&client, to, &(), options).await.map(Some)
                    };
                    assert!(begun.elapsed() <= DEADLINE + Duration::from_millis(50));
                    answer
                });
            }
            let cut = Duration::from_millis(500 + chance(seed, 100, 1500));
            let healed = Duration::from_millis(chance(seed, 101, 6000));
            tokio::time::sleep(cut).await;
            if seed % 4 == 0 {
                server.shutdown(Duration::ZERO).await;
            } else {
                net.partition(sim_addr(1), sim_addr(2));
                tokio::time::sleep(healed).await;
                net.heal(sim_addr(1), sim_addr(2));
            }
            let mut ticks = BTreeSet::new();
            let mut answered = 0;
            for answer in calls.join_all().await {
                match answer {
                    Ok(Some(tick)) => {
                        answered += 1;
                        assert!(ticks.insert(tick), "seed {seed}: answered twice");
                    }
                    Ok(None) => {}
                    Err(error) => assert!(
                        [
                            Status::Timeout,
                            Status::Unavailable,
                            Status::NoRoute,
                            Status::Cancelled
                        ]
                        .contains(&error.status),
                        "seed {seed}: {error}"
                    ),
                }
            }
            let made = stage.ticks();
            assert!(answered <= made && made <= 40, "seed {seed}: {made} of 40");
            stop(&[&client, &server]).await;
        });
    }
}
