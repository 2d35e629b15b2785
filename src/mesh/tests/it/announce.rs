//! Announcements: how they spread, how they end, and what is not believed.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{Revoked, Scope};
use meshwork_mesh::{MemoryState, Mesh, MeshError, StateStore};
use meshwork_netsim::{LinkModel, Net, Sim};
use meshwork_proto::announcement::SignedAnnouncement;
use meshwork_proto::facts::Fact;
use meshwork_proto::mesh::{Find, FindNodes, FindScoped, FindScopedNodes, Gossip, GossipBatch};
use meshwork_proto::ports::Directory;
use meshwork_proto::query::{Query, ScopeFilter};
use meshwork_proto::rpc::Status;
use meshwork_proto::service::{Router, call};

use crate::cluster::*;
use crate::common::*;
use crate::probe::patiently;

/// The lifetime of announcements in a small mesh.
const TTL: Duration = Duration::from_mins(5);
const SECOND: Duration = Duration::from_secs(1);

fn simulated<F: Future<Output = ()>>(test: impl FnOnce(Cluster, Net) -> F) {
    let sim = Sim::new(11, LinkModel::default());
    let net = sim.net();
    sim.block_on(async { test(Cluster::simulated(&net), net.clone()).await });
}

fn names(mesh: &Mesh) -> Vec<String> {
    let mut names: Vec<String> = mesh
        .nodes()
        .into_iter()
        .map(|(_, body)| body.name.clone())
        .collect();
    names.sort();
    names
}

fn version(mesh: &Mesh, n: u8) -> u64 {
    let nodes = mesh.nodes();
    nodes
        .iter()
        .find(|(node, _)| *node == node_id(n))
        .expect("it is known")
        .1
        .version
}

/// Nodes 1 to `count`, each connected to the next.
async fn line(cluster: &Cluster, count: u8) -> Vec<Mesh> {
    let nodes: Vec<Mesh> = (1..=count)
        .map(|n| cluster.node(n, Router::new()))
        .collect();
    for pair in nodes.windows(2) {
        pair[0].pin(contact(&pair[1]));
        connect(&pair[0], &pair[1]).await;
    }
    nodes
}

async fn stop_all(nodes: &[Mesh]) {
    stop(&nodes.iter().collect::<Vec<_>>()).await;
}

#[test]
fn a_machine_that_slept_past_its_ttl_announces_itself_anew() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 2).await;
        nodes[0].announce(draft("one", vec![])).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(names(&nodes[1]), ["one"]);
        let before = version(&nodes[1], 1);
        // The wall clock goes on while a machine sleeps, its timers do not.
        cluster.clock.advance(2 * TTL);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(names(&nodes[0]), ["one"]);
        assert_eq!(names(&nodes[1]), ["one"]);
        assert!(version(&nodes[1], 1) > before);
        stop_all(&nodes).await;
    });
}

#[test]
fn they_travel_over_several_hops_and_to_newcomers() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 4).await;
        nodes[0].announce(draft("one", vec![])).await.unwrap();
        tokio::time::sleep(SECOND).await;
        for node in &nodes {
            assert_eq!(names(node), ["one"], "{node:?}");
        }
        let late = cluster.node(5, Router::new());
        late.announce(draft("late", vec![])).await.unwrap();
        connect(&late, &nodes[3]).await;
        tokio::time::sleep(SECOND).await;
        assert_eq!(names(&late), ["late", "one"]);
        assert_eq!(names(&nodes[0]), ["late", "one"]);
        let query = Query::parse(r#"name = "late""#).unwrap();
        assert_eq!(nodes[0].find(&query, 10).1, 1);
        assert_eq!(Directory::find(&nodes[0], &query)[0].0, late.node_id());
        stop_all(&nodes).await;
        stop(&[&late]).await;
    });
}

#[test]
fn they_are_renewed_while_the_node_lives_and_end_after_it() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 3).await;
        nodes[0].announce(draft("one", vec![])).await.unwrap();
        tokio::time::sleep(SECOND).await;
        let first = version(&nodes[2], 1);
        tokio::time::sleep(TTL * 10).await;
        let later = version(&nodes[2], 1);
        // Every third of its lifetime.
        assert!((25..=35).contains(&(later - first)), "{first} to {later}");
        nodes[0].shutdown(SECOND).await;
        tokio::time::sleep(SECOND * 15).await;
        assert!(names(&nodes[1]).is_empty() && names(&nodes[2]).is_empty());
        stop_all(&nodes[1..]).await;
    });
}

#[test]
fn a_ring_passes_each_on_once() {
    simulated(async |cluster, net| {
        let nodes = line(&cluster, 5).await;
        connect(&nodes[4], &nodes[0]).await;
        tokio::time::sleep(SECOND).await;
        let quiet = net.sent();
        nodes[0].announce(draft("one", vec![])).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(nodes.iter().all(|node| names(node) == ["one"]));
        // Each of the five links carries it at most twice, each time with some packets around it.
        assert!(net.sent() - quiet < 100, "{} packets", net.sent() - quiet);
        stop_all(&nodes).await;
    });
}

#[test]
fn versions_grow_over_restarts_and_old_ones_are_refused() {
    simulated(async |cluster, _| {
        let hub = cluster.node(1, Router::new());
        let state = Arc::new(MemoryState::default());
        let mut last = 0;
        for _ in 0..3 {
            let config = cluster.config(2, vec![cluster.node_token(2)]);
            let node = Mesh::start(config, cluster.env(2, state.clone()), Router::new()).unwrap();
            connect(&node, &hub).await;
            node.announce(draft("two", vec![])).await.unwrap();
            tokio::time::sleep(SECOND).await;
            let version = version(&hub, 2);
            assert!(version > last, "{version} after {last}");
            last = version;
            stop(&[&node]).await;
            drop(node);
            cluster.released(2).await;
        }
        // The node comes back without its memory, and with the version that it had first.
        let forgetful = cluster.node(2, Router::new());
        forgetful
            .announce(draft("two, forgetful", vec![]))
            .await
            .unwrap();
        assert_eq!(version(&forgetful, 2), 1);
        connect(&forgetful, &hub).await;
        tokio::time::sleep(SECOND).await;
        // The hub holds a later one, and tells; the node goes on from there.
        assert!(version(&hub, 2) > last);
        assert_eq!(names(&hub), ["two, forgetful"]);
        stop(&[&hub, &forgetful]).await;
    });
}

/// An announcement of node `n`, as an attacker may have recorded it.
fn recorded(cluster: &Cluster, n: u8, version: u64) -> SignedAnnouncement {
    let mut body = draft("recorded", vec![]);
    (body.version, body.ttl, body.issued_at) = (version, TTL, cluster.now());
    SignedAnnouncement::sign(&identity(n), cluster.node_token(n), &body).unwrap()
}

#[test]
fn replays_and_rollbacks_are_refused_and_counted() {
    simulated(async |cluster, _| {
        let (victim, liar) = (
            cluster.node(1, Router::new()),
            cluster.node(2, Router::new()),
        );
        connect(&liar, &victim).await;
        let tell = async |items: Vec<SignedAnnouncement>| {
            let batch = GossipBatch {
                messages: Vec::new(),
                facts: items.into_iter().map(Fact::Announcement).collect(),
            };
            call::<Gossip>(&liar, victim.node_id(), &batch, patiently()).await
        };
        let (old, new) = (recorded(&cluster, 3, 1), recorded(&cluster, 3, 2));
        tell(vec![new.clone()]).await.unwrap();
        assert_eq!(version(&victim, 3), 2);
        tell(vec![old, new.clone()]).await.unwrap();
        assert_eq!(version(&victim, 3), 2);
        assert_eq!(
            victim.status().refused_announcements,
            1,
            "a repeat is no offence"
        );
        let mut forged = recorded(&cluster, 4, 1);
        forged.envelope = new.envelope;
        forged.token = cluster.node_token(4);
        tell(vec![forged]).await.unwrap();
        assert_eq!(
            victim.status().refused_announcements,
            1,
            "it is held already"
        );
        let mut unallowed = recorded(&cluster, 5, 1);
        unallowed.token = cluster.token(5, &[Scope::Call]);
        tell(vec![unallowed]).await.unwrap();
        assert_eq!(victim.status().refused_announcements, 2);
        assert_eq!(names(&victim), ["recorded"]);
        let many = vec![recorded(&cluster, 6, 1); 257];
        assert_eq!(tell(many).await.unwrap_err().status, Status::Invalid);
        stop(&[&victim, &liar]).await;
    });
}

#[test]
fn a_node_without_the_scope_cannot_announce() {
    simulated(async |cluster, _| {
        let user = cluster.start(1, vec![cluster.token(1, &[Scope::Call])], Router::new());
        let error = user.announce(draft("x", vec![])).await.unwrap_err();
        assert!(matches!(error, MeshError::Token(_)), "{error}");
        stop(&[&user]).await;
    });
}

#[test]
fn what_a_revoked_node_said_is_forgotten() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 3).await;
        nodes[0].announce(draft("one", vec![])).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(names(&nodes[2]), ["one"]);
        nodes[2]
            .revoke(cluster.revocation(Revoked::Node(nodes[0].node_id())))
            .await
            .unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(names(&nodes[1]).is_empty() && names(&nodes[2]).is_empty());
        assert!(nodes[0].peers().is_empty());
        stop_all(&nodes).await;
    });
}

#[test]
fn users_ask_and_are_not_told() {
    simulated(async |cluster, _| {
        let hub = cluster.node(1, Router::new());
        hub.announce(draft("hub", vec![])).await.unwrap();
        let user = cluster.start(2, vec![cluster.token(2, &[Scope::Call])], Router::new());
        connect(&user, &hub).await;
        tokio::time::sleep(SECOND).await;
        assert!(names(&user).is_empty());
        let ask = async |query: &str| {
            let find = Find {
                query: query.into(),
                limit: 10,
                tenants: [].into(),
                region: None,
            };
            call::<FindNodes>(&user, hub.node_id(), &find, patiently()).await
        };
        let found = ask(r#"name = "hub""#).await.unwrap();
        assert_eq!((found.total, found.nodes[0].node()), (1, hub.node_id()));
        assert_eq!(ask(r#"name = "other""#).await.unwrap().total, 0);
        let error = ask("name = ").await.unwrap_err();
        assert_eq!((error.status, &*error.reason), (Status::Invalid, "query"));
        assert!(error.message.contains('^'), "{}", error.message);
        stop(&[&hub, &user]).await;
    });
}

#[test]
fn a_question_is_narrowed_by_scope() {
    simulated(async |cluster, _| {
        let hub = cluster.node(1, Router::new());
        let mut narrowed = draft("hub", vec![]);
        narrowed.tags = ["scope:subnet-local".to_owned()].into();
        narrowed.subnet = Some("3.7".parse().unwrap());
        hub.announce(narrowed).await.unwrap();
        let user = cluster.start(2, vec![cluster.token(2, &[Scope::Call])], Router::new());
        let admin = cluster.start(3, vec![cluster.token(3, &[Scope::Admin])], Router::new());
        connect(&user, &hub).await;
        connect(&admin, &hub).await;
        let ask = async |who: &Mesh, scope: &str| {
            let find = Find {
                query: String::new(),
                limit: 10,
                tenants: ["lab".to_owned()].into(),
                region: None,
            };
            let scope = scope.parse().unwrap();
            let request = FindScoped { find, scope };
            let found = call::<FindScopedNodes>(who, hub.node_id(), &request, patiently()).await;
            found.map(|found| found.total)
        };
        for (scope, total) in [
            ("same-subnet", 1),
            ("own", 1),
            ("any", 0),
            ("global-only", 0),
            ("tenant:lab", 0),
        ] {
            assert_eq!(ask(&user, scope).await.unwrap(), total, "{scope}");
        }
        let refused = ask(&user, "everything").await.unwrap_err();
        assert_eq!(
            (refused.status, &*refused.reason),
            (Status::Denied, "scope_exceeded")
        );
        assert_eq!(ask(&admin, "everything").await.unwrap(), 1);
        assert_eq!(ask(&admin, "any").await.unwrap(), 0);
        stop(&[&hub, &user, &admin]).await;
    });
}

#[test]
fn a_lookup_is_narrowed_by_scope_tags() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 2).await;
        let mut narrowed = draft("narrowed", nodes[1].local_addrs());
        narrowed.tags = ["scope:tenant:lab".to_owned()].into();
        nodes[1].announce(narrowed).await.unwrap();
        let query = Query::parse("name = \"narrowed\"").unwrap();
        until("the announcement arrives", || {
            nodes[0].find(&query, 1).1 == 1
        })
        .await;
        let tenant = |name: &str| ScopeFilter::Tenants([name.to_owned()].into());
        let found = |filter| nodes[0].find_scoped(&query, filter, 1).1;
        assert_eq!(found(tenant("lab")), 1);
        assert_eq!(found(tenant("other")), 0);
        assert_eq!(found(ScopeFilter::GlobalOnly), 0);
        assert_eq!(found(ScopeFilter::Own), 0, "this node is of no tenant");
        assert_eq!(found(ScopeFilter::Any), 1);
        stop_all(&nodes).await;
    });
}

#[test]
fn announced_addresses_make_nodes_reachable() {
    simulated(async |cluster, _| {
        let nodes = line(&cluster, 3).await;
        nodes[2]
            .announce(draft("three", nodes[2].local_addrs()))
            .await
            .unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(!linked(&nodes[0], nodes[2].node_id()));
        let to = nodes[2].node_id();
        call::<meshwork_proto::mesh::Ping>(&nodes[0], to, &(), patiently())
            .await
            .unwrap();
        assert!(linked(&nodes[0], to));
        stop_all(&nodes).await;
    });
}

#[test]
fn state_that_is_damaged_stops_the_start() {
    simulated(async |cluster, _| {
        for key in ["announcement-version", "admissions", "revocations"] {
            let state = Arc::new(MemoryState::default());
            state.put(key, b"\xff\xff\xff").unwrap();
            let config = cluster.config(1, vec![]);
            let error = Mesh::start(config, cluster.env(1, state), Router::new()).unwrap_err();
            assert!(
                matches!(&error, MeshError::State { key: k, .. } if *k == key),
                "{error}"
            );
        }
    });
}
