//! What time does to connections: time-outs, keep-alive, key updates. Simulated.

use std::time::Duration;

use meshwork_mesh::transport::ConnectError;
use meshwork_netsim::{LinkModel, Sim};

use crate::common::*;

#[test]
fn a_silent_peer_times_out() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let dialler = sim_endpoint(&net, 1, config(1));
        let error = dialler
            .connect(sim_addr(2), Some(node_id(2)))
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
        assert_eq!(dialler.stats().handshakes_failed, 1);
    });
}

#[test]
fn an_idle_connection_ends_after_its_time() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        let (at_a, at_b) = connected(&a, &b, node_id(2)).await;
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert!(at_a.close_reason().is_none() && at_b.close_reason().is_none());
        tokio::time::sleep(Duration::from_secs(3)).await;
        for end in [at_a, at_b] {
            assert!(matches!(
                end.close_reason(),
                Some(quinn::ConnectionError::TimedOut)
            ));
        }
        assert_eq!((a.open_connections(), b.open_connections()), (0, 0));
    });
}

#[test]
fn a_keep_alive_holds_an_idle_connection() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let mut pinned = config(1);
        pinned.keep_alive = Some(Duration::from_secs(20));
        let (a, b) = (
            sim_endpoint(&net, 1, pinned),
            sim_endpoint(&net, 2, config(2)),
        );
        let (at_a, at_b) = connected(&a, &b, node_id(2)).await;
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert!(at_a.close_reason().is_none() && at_b.close_reason().is_none());
    });
}

#[test]
fn keys_are_updated_under_load() {
    let sim = Sim::new(
        1,
        LinkModel {
            loss: 0.01,
            ..LinkModel::default()
        },
    );
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        let connection = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        let bytes = vec![7; 200_000];
        for _ in 0..20 {
            connection.force_key_update();
            let (one, two) = tokio::join!(
                round_trip(&connection, &bytes),
                round_trip(&connection, &bytes)
            );
            one.unwrap();
            two.unwrap();
        }
        // quinn refuses an update while the one before is fresh, so not all 20 need happen.
        for stats in [a.stats(), b.stats()] {
            assert!(stats.key_updates >= 10, "{stats:?}");
            assert_eq!(stats.forged_packets, 0, "{stats:?}");
        }
    });
}

#[test]
fn an_endpoint_is_freed_when_its_connections_are_closed() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let endpoint = sim_endpoint(&net, 1, config(1));
        assert!(net.socket(sim_addr(1)).is_err());
        endpoint.close(0, b"");
        endpoint.wait_idle().await;
        drop(endpoint);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(net.socket(sim_addr(1)).is_ok());
    });
}
