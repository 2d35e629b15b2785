//! Dials over all the addresses that a node may have at once, on real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_identity::Contact;
use meshwork_mesh::{Env, MemoryState, Mesh, MeshError};
use meshwork_proto::service::Router;

use crate::cluster::{Cluster, PATIENCE, stop};
use crate::common::{LOOPBACK, node_id};

/// A node on a socket of this address.
fn node_at(cluster: &Cluster, n: u8, addr: SocketAddr) -> Mesh {
    let env = Env {
        clock: cluster.clock.clone(),
        ..Env::production(addr, Arc::new(MemoryState::default())).unwrap()
    };
    let config = cluster.config(n, vec![cluster.node_token(n)]);
    Mesh::start(config, env, Router::new()).unwrap()
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

#[tokio::test]
async fn a_socket_of_both_families_reaches_and_is_reached_over_either() {
    let cluster = Cluster::new();
    let both = node_at(&cluster, 1, at("::", 0));
    let port = both.local_addrs()[0].port();
    let four = node_at(&cluster, 2, LOOPBACK);
    let six = node_at(&cluster, 3, at("::1", 0));
    for (dialler, ip) in [(&four, "127.0.0.1"), (&six, "::1")] {
        let addrs = vec![at("127.0.0.1", port), at("::1", port)];
        let contact = Contact {
            node: both.node_id(),
            addrs,
        };
        dialler.dial(&contact, PATIENCE).await.unwrap();
        let view = &dialler.peers()[0];
        assert_eq!((view.path.as_str(), view.address), ("direct", at(ip, port)));
        let seen = both.peers();
        let seen = seen.iter().find(|view| view.node == dialler.node_id());
        assert_eq!(seen.unwrap().address, dialler.local_addrs()[0]);
    }
    stop(&[&both, &four, &six]).await;
    // And the other way round.
    let both = node_at(&cluster, 1, at("::", 0));
    for (n, ip) in [(2, "127.0.0.1"), (3, "::1")] {
        let listener = node_at(&cluster, n, at(ip, 0));
        let contact = Contact {
            node: listener.node_id(),
            addrs: listener.local_addrs(),
        };
        both.dial(&contact, PATIENCE).await.unwrap();
        stop(&[&listener]).await;
    }
    stop(&[&both]).await;
}

#[tokio::test]
async fn another_node_at_one_address_does_not_hide_the_right_one_at_another() {
    let cluster = Cluster::new();
    let [one, wrong, right] = [1, 2, 3].map(|n| cluster.node(n, Router::new()));
    let addrs = vec![wrong.local_addrs()[0], right.local_addrs()[0]];
    for addrs in [addrs.clone(), addrs.into_iter().rev().collect()] {
        let contact = Contact {
            node: node_id(3),
            addrs,
        };
        let dialler = cluster.node(4, Router::new());
        dialler.dial(&contact, PATIENCE).await.unwrap();
        assert_eq!(dialler.peers()[0].address, right.local_addrs()[0]);
        stop(&[&dialler]).await;
    }
    let contact = Contact {
        node: node_id(3),
        addrs: wrong.local_addrs(),
    };
    let error = one.dial(&contact, PATIENCE).await.unwrap_err();
    assert!(matches!(error, MeshError::Unreachable { .. }), "{error}");
    stop(&[&one, &wrong, &right]).await;
}
