//! Connections: how they come about, how two become one, how they end.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{Contact, MeshId, Scope};
use meshwork_mesh::{Mesh, MeshError, TurnedAway};
use meshwork_netsim::{LinkModel, Sim};
use meshwork_proto::mesh::Ping;
use meshwork_proto::service::{Router, call};

use crate::cluster::*;
use crate::common::*;
use crate::probe::{self, *};

const MINUTE: Duration = Duration::from_mins(1);

async fn echoes(from: &Mesh, to: &Mesh) {
    let bytes = Bytes::from_static(b"hello");
    let answer = call::<Echo>(from, to.node_id(), &bytes, patiently()).await;
    assert_eq!(answer, Ok(bytes), "{from:?} to {to:?}");
}

/// Both nodes dial each other at once and call each other at once. Nothing fails, and one
/// connection is left.
async fn meet(one: &Mesh, other: &Mesh) {
    let half = |from: Mesh, to: Mesh| async move {
        connect(&from, &to).await;
        for _ in 0..3 {
            echoes(&from, &to).await;
        }
    };
    tokio::join!(
        half(one.clone(), other.clone()),
        half(other.clone(), one.clone())
    );
    until("one connection is left", || {
        let linked = linked(one, other.node_id()) && linked(other, one.node_id());
        linked && [one, other].iter().all(|mesh| mesh.open_connections() == 1)
    })
    .await;
    echoes(one, other).await;
    echoes(other, one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_dial_each_other_keep_one_connection() {
    let cluster = Cluster::new();
    for _ in 0..100 {
        let (one, other) = (
            cluster.node(1, probe::router()),
            cluster.node(2, probe::router()),
        );
        meet(&one, &other).await;
        stop(&[&one, &other]).await;
    }
}

#[test]
fn two_that_dial_each_other_keep_one_connection_in_bad_networks() {
    for seed in 0..20 {
        let link = LinkModel {
            loss: 0.1,
            ..LinkModel::default()
        };
        let sim = Sim::new(seed, link);
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let (one, other) = (
                cluster.node(1, probe::router()),
                cluster.node(2, probe::router()),
            );
            meet(&one, &other).await;
            stop(&[&one, &other]).await;
        });
    }
}

#[test]
fn a_peer_that_restarted_is_not_taken_for_its_old_connection() {
    // The lower node id dialled the old connection, or the higher: either is to be given up.
    for (first, second) in [(1, 2), (2, 1)] {
        let sim = Sim::new(7, LinkModel::default());
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let stays = cluster.node(first, probe::router());
            let leaves = cluster.node(second, probe::router());
            connect(&stays, &leaves).await;
            net.partition(sim_addr(first), sim_addr(second));
            leaves.shutdown(Duration::ZERO).await;
            drop(leaves);
            cluster.released(second).await;
            net.heal(sim_addr(first), sim_addr(second));
            assert!(
                linked(&stays, node_id(second)),
                "it has not heard of the end"
            );
            let again = cluster.node(second, probe::router());
            connect(&again, &stays).await;
            echoes(&again, &stays).await;
            echoes(&stays, &again).await;
            stop(&[&stays, &again]).await;
        });
    }
}

#[test]
fn unused_connections_end_and_pinned_ones_stay() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let hub = cluster.node(1, probe::router());
        // Nodes would be neighbours and stay connected; those that may not announce are not.
        let user = |n| cluster.start(n, vec![cluster.token(n, &[Scope::Call])], Router::new());
        let (visitor, keeper) = (user(2), user(3));
        connect(&visitor, &hub).await;
        keeper.pin(contact(&hub));
        tokio::time::sleep(MINUTE / 2).await;
        assert_eq!(hub.peers().len(), 2);
        echoes(&visitor, &hub).await;
        tokio::time::sleep(Duration::from_secs(58)).await;
        assert_eq!(hub.peers().len(), 2, "it was used within the minute");
        tokio::time::sleep(MINUTE * 10).await;
        assert!(!linked(&hub, visitor.node_id()) && !linked(&visitor, hub.node_id()));
        assert!(linked(&hub, keeper.node_id()) && linked(&keeper, hub.node_id()));
        stop(&[&hub, &visitor, &keeper]).await;
    });
}

#[test]
fn a_pinned_peer_is_dialled_until_it_is_back() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let hub = cluster.node(1, probe::router());
        let keeper = cluster.node(2, Router::new());
        keeper.pin(contact(&hub));
        until("it is connected", || linked(&keeper, hub.node_id())).await;
        let before = net.sent();
        stop(&[&hub]).await;
        drop(hub);
        cluster.released(1).await;
        tokio::time::sleep(MINUTE * 10).await;
        // Every half a minute, several packets a dial.
        assert!(
            net.sent() - before < 1000,
            "{} packets",
            net.sent() - before
        );
        let hub = cluster.node(1, probe::router());
        tokio::time::sleep(MINUTE).await;
        echoes(&keeper, &hub).await;
        stop(&[&hub, &keeper]).await;
    });
}

#[test]
fn a_dead_peer_is_noticed() {
    let sim = Sim::new(3, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let (one, other) = cluster.pair(probe::router()).await;
        net.partition(sim_addr(1), sim_addr(2));
        tokio::time::sleep(MINUTE / 2).await;
        assert!(one.peers().is_empty() && other.peers().is_empty());
        net.heal(sim_addr(1), sim_addr(2));
        connect(&one, &other).await;
        echoes(&one, &other).await;
        stop(&[&one, &other]).await;
    });
}

#[tokio::test]
async fn a_failed_dial_names_each_address_and_why() {
    let cluster = Cluster::new();
    let (one, other) = (
        cluster.node(1, Router::new()),
        cluster.node(2, Router::new()),
    );
    // The discard prefix of the loopback: nobody listens.
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let addrs = vec![other.local_addrs()[0], nowhere];
    let contact = Contact {
        node: node_id(3),
        addrs: addrs.clone(),
    };
    let error = one.dial(&contact, PATIENCE).await.unwrap_err();
    let MeshError::Unreachable { node, tried } = &error else {
        panic!("{error}")
    };
    assert_eq!(*node, node_id(3));
    let tried: Vec<SocketAddr> = tried.0.iter().map(|(addr, _)| *addr).collect();
    assert_eq!(tried, addrs);
    let text = error.to_string();
    assert!(
        text.contains("but node") && text.contains("did not answer"),
        "{text}"
    );
    stop(&[&one, &other]).await;
}

#[tokio::test]
async fn the_first_address_that_answers_wins() {
    let cluster = Cluster::new();
    let (one, other) = (
        cluster.node(1, Router::new()),
        cluster.node(2, Router::new()),
    );
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let addrs = vec![nowhere, other.local_addrs()[0]];
    one.dial(
        &Contact {
            node: other.node_id(),
            addrs,
        },
        PATIENCE,
    )
    .await
    .unwrap();
    stop(&[&one, &other]).await;
}

#[tokio::test]
async fn another_psk_looks_like_nobody_and_is_counted() {
    let cluster = Cluster::new();
    let server = cluster.node(2, Router::new());
    let mut config = cluster.config(1, vec![cluster.node_token(1)]);
    config.psk = psk(9);
    let stranger = cluster.start_with(1, config, Router::new());
    let error = stranger
        .dial(&contact(&server), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(error, MeshError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("pre-shared key"), "{error}");
    assert!(server.status().strangers > 0);
    assert!(server.peers().is_empty());
    stop(&[&server, &stranger]).await;
}

#[tokio::test]
async fn no_address_and_oneself_are_errors_of_their_own() {
    let cluster = Cluster::new();
    let node = cluster.node(1, Router::new());
    let unknown = Contact {
        node: node_id(5),
        addrs: vec![],
    };
    let error = node.dial(&unknown, PATIENCE).await.unwrap_err();
    assert!(matches!(error, MeshError::NoAddress { .. }), "{error}");
    let error = node.dial(&contact(&node), PATIENCE).await.unwrap_err();
    assert!(matches!(error, MeshError::Own), "{error}");
    stop(&[&node]).await;
}

#[tokio::test]
async fn more_peers_than_allowed_are_turned_away() {
    let cluster = Cluster::new();
    let mut config = cluster.config(1, vec![cluster.node_token(1)]);
    config.max_peers = 2;
    let hub = cluster.start_with(1, config, Router::new());
    let nodes: Vec<Mesh> = (2..=4).map(|n| cluster.node(n, Router::new())).collect();
    connect(&nodes[0], &hub).await;
    connect(&nodes[1], &hub).await;
    let error = nodes[2].dial(&contact(&hub), PATIENCE).await.unwrap_err();
    assert!(
        matches!(
            error,
            MeshError::Refused {
                why: TurnedAway::Busy,
                ..
            }
        ),
        "{error}"
    );
    stop(&[&nodes[0]]).await;
    until("there is room", || hub.open_connections() < 2).await;
    connect(&nodes[2], &hub).await;
    stop(&[&hub, &nodes[1], &nodes[2]]).await;
}

#[tokio::test]
async fn connections_of_one_peer_are_bounded() {
    const BUSY: u32 = 5;
    const MAX: usize = 64;
    let cluster = Cluster::new();
    let hub = cluster.node(2, Router::new());
    let mut silent = Vec::new();
    for _ in 0..MAX {
        silent.push(ByHand::dial_silently(&cluster, 1, &hub).await);
    }
    until("all are there", || hub.open_connections() == MAX).await;
    let one_more = ByHand::dial_silently(&cluster, 1, &hub).await;
    let closed = one_more.conn.closed().await;
    assert!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close)
            if close.error_code == BUSY.into()),
        "{closed}"
    );
    stop(&[&hub]).await;
}

#[tokio::test]
async fn clients_that_share_an_identity_each_keep_their_connection() {
    let cluster = Cluster::new();
    let hub = cluster.node(1, probe::router());
    let client = || {
        let mut config = cluster.config(2, vec![cluster.node_token(2)]);
        config.accept = false;
        cluster.start_with(2, config, Router::new())
    };
    let clients = [client(), client(), client()];
    for client in &clients {
        connect(client, &hub).await;
    }
    for client in &clients {
        echoes(client, &hub).await;
    }
    assert_eq!(hub.open_connections(), clients.len());
    stop(&[&clients[0], &clients[1], &clients[2], &hub]).await;
}

#[test]
fn a_connection_that_ends_while_it_is_contested_is_not_used() {
    // One of the two has the older connection preferred, and asks it for a sign of life. The end of
    // the newer comes before or after the answer, as chance has it.
    for (seed, first) in (0..40).zip([1, 2].into_iter().cycle()) {
        let second = 3 - first;
        let sim = Sim::new(seed, LinkModel::default());
        let net = sim.net();
        sim.block_on(async {
            let cluster = Cluster::simulated(&net);
            let stays = cluster.node(first, Router::new());
            let leaves = cluster.node(second, Router::new());
            connect(&stays, &leaves).await;
            net.partition(sim_addr(first), sim_addr(second));
            leaves.shutdown(Duration::ZERO).await;
            drop(leaves);
            cluster.released(second).await;
            net.heal(sim_addr(first), sim_addr(second));
            let again = cluster.node(second, Router::new());
            connect(&again, &stays).await;
            stop(&[&again]).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(!linked(&stays, node_id(second)), "it has gone");
            assert_eq!(stays.open_connections(), 0);
            stop(&[&stays]).await;
        });
    }
}

#[test]
fn who_holds_no_token_and_does_nothing_is_dropped() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let hub = cluster.node(1, Router::new());
        let stranger = cluster.start(2, vec![], Router::new());
        // It would stay, and dial again later and later.
        stranger.pin(contact(&hub));
        until("it is there", || linked(&hub, stranger.node_id())).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        until("it is dropped", || !linked(&hub, stranger.node_id())).await;
        stop(&[&hub, &stranger]).await;
    });
}

#[test]
fn who_does_not_greet_is_dropped() {
    const NO_GREETING: u32 = 6;
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let hub = cluster.node(2, Router::new());
        let mut config = config(1);
        config.mesh = MeshId::of(&cluster.authority.node_id());
        config.keep_alive = Some(Duration::from_secs(1));
        let silent = sim_endpoint(&net, 1, config);
        let conn = silent
            .connect(sim_addr(2), Some(hub.node_id()))
            .await
            .unwrap();
        let closed = conn.closed().await;
        assert!(
            matches!(&closed, quinn::ConnectionError::ApplicationClosed(close)
                if close.error_code == NO_GREETING.into()),
            "{closed}"
        );
        stop(&[&hub]).await;
    });
}

#[tokio::test]
async fn a_node_that_only_dials_is_not_dialled() {
    let cluster = Cluster::new();
    let mut config = cluster.config(1, vec![cluster.token(1, &[Scope::Call])]);
    config.accept = false;
    let laptop = cluster.start_with(1, config, Router::new());
    let server = cluster.node(2, probe::router());
    assert!(
        server
            .dial(&contact(&laptop), Duration::from_secs(1))
            .await
            .is_err()
    );
    connect(&laptop, &server).await;
    echoes(&laptop, &server).await;
    // Over the connection that it made, it can be called.
    call::<Ping>(&server, laptop.node_id(), &(), patiently())
        .await
        .unwrap();
    stop(&[&laptop, &server]).await;
}
