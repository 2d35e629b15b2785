//! The mesh's pre-shared key changes under a running mesh: without a gap for who is there, with a way
//! back for who was away, and for members only.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{Psk, Scope};
use meshwork_mesh::{MemoryState, Mesh, MeshError};
use meshwork_netsim::{LinkModel, Sim};
use meshwork_proto::facts::Fact;
use meshwork_proto::mesh::{Gossip, GossipBatch, RotatePsk};
use meshwork_proto::psk::{PskRotation, SignedPskRotation};
use meshwork_proto::rpc::Status;
use meshwork_proto::service::{Router, call};
use tokio::time::sleep;

use crate::cluster::*;
use crate::common::*;
use crate::probe::patiently;

const SECOND: Duration = Duration::from_secs(1);
/// From the rotation's making to its turn.
const LEAD: Duration = Duration::from_mins(1);
/// From its making to the end of the old key.
const OVERLAP: Duration = Duration::from_mins(10);

fn simulated<F: Future<Output = ()>>(test: impl FnOnce(Cluster) -> F) {
    let sim = Sim::new(31, LinkModel::default());
    let net = sim.net();
    sim.block_on(async { test(Cluster::simulated(&net)).await });
}

/// Node `n` with this memory and the old key.
async fn start(cluster: &Cluster, n: u8, state: &Arc<MemoryState>) -> Mesh {
    let config = cluster.config(n, vec![cluster.node_token(n)]);
    let mesh = Mesh::start(config, cluster.env(n, state.clone()), Router::new()).unwrap();
    mesh.announce(draft("node", mesh.local_addrs()))
        .await
        .unwrap();
    mesh
}

fn rotation(cluster: &Cluster, to: u8) -> PskRotation {
    PskRotation {
        epoch: cluster.now().as_secs(),
        psk: psk(to),
        from: cluster.now().saturating_add(LEAD),
        until: cluster.now().saturating_add(OVERLAP),
    }
}

fn by_authority(cluster: &Cluster, to: u8) -> SignedPskRotation {
    SignedPskRotation::by_authority(&cluster.authority, &rotation(cluster, to)).unwrap()
}

/// The keys of a node: the one to dial with, and the other.
fn keys(mesh: &Mesh) -> (Psk, Option<Psk>) {
    let view = mesh.psk().borrow().clone();
    (view.current, view.other)
}

async fn halt(cluster: &Cluster, n: u8, mesh: Mesh) {
    stop(&[&mesh]).await;
    drop(mesh);
    cluster.released(n).await;
}

#[test]
fn it_changes_without_a_gap_and_with_a_way_back() {
    simulated(async |cluster| {
        let states: Vec<Arc<MemoryState>> = (0..=5).map(|_| Arc::default()).collect();
        let mut nodes = Vec::new();
        for n in 1..=5 {
            nodes.push(start(&cluster, n, &states[usize::from(n)]).await);
        }
        for node in &nodes[1..] {
            connect(node, &nodes[0]).await;
        }
        sleep(SECOND * 3).await;
        let too_long_away = nodes.pop().unwrap();
        halt(&cluster, 5, too_long_away).await;
        let away = nodes.pop().unwrap();
        halt(&cluster, 4, away).await;

        nodes[0].rotate_psk(by_authority(&cluster, 2)).unwrap();
        sleep(SECOND * 2).await;
        for node in &nodes {
            assert_eq!(keys(node), (psk(1), Some(psk(2))), "{node:?}");
        }
        sleep(LEAD).await;
        for node in &nodes {
            assert_eq!(keys(node), (psk(2), Some(psk(1))), "{node:?}");
            let ages = node.peers().into_iter().map(|peer| peer.age);
            assert!(ages.min().unwrap() > LEAD, "no connection had to end");
        }

        // Who was away comes back with the old key, and learns the new one.
        let back = start(&cluster, 4, &states[4]).await;
        back.dial(&contact(&nodes[1]), PATIENCE).await.unwrap();
        sleep(SECOND * 2).await;
        assert_eq!(keys(&back), (psk(2), Some(psk(1))));
        // It keeps it: the configuration still has the old one.
        halt(&cluster, 4, back).await;
        let back = start(&cluster, 4, &states[4]).await;
        assert_eq!(keys(&back), (psk(2), Some(psk(1))));
        back.dial(&contact(&nodes[1]), PATIENCE).await.unwrap();

        sleep(OVERLAP).await;
        for node in nodes.iter().chain([&back]) {
            assert_eq!(keys(node), (psk(2), None), "{node:?}");
        }
        let lost = start(&cluster, 5, &states[5]).await;
        let error = lost.dial(&contact(&nodes[0]), PATIENCE).await.unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(
                error,
                MeshError::Timeout { .. } | MeshError::Unreachable { .. }
            ),
            "{text}"
        );
        assert!(text.contains("new ticket"), "{text}");
        stop(&nodes.iter().chain([&back, &lost]).collect::<Vec<_>>()).await;
    });
}

#[test]
fn only_admins_change_it_and_only_members_learn_it() {
    simulated(async |cluster| {
        let state = Arc::default();
        let hub = start(&cluster, 1, &state).await;
        let member = cluster.node(2, Router::new());
        let stranger = cluster.start(3, vec![], Router::new());
        let user = cluster.start_with(
            4,
            {
                let mut config = cluster.config(4, vec![cluster.token(4, &[Scope::Call])]);
                config.accept = false;
                config
            },
            Router::new(),
        );
        for node in [&member, &stranger, &user] {
            connect(node, &hub).await;
        }

        // A member's own rotation is refused, in each of the ways that there are.
        let forged = SignedPskRotation::by_authority(&identity(2), &rotation(&cluster, 9)).unwrap();
        let refused = member.rotate_psk(forged.clone()).unwrap_err();
        assert!(matches!(refused, MeshError::Rotation(_)), "{refused}");
        let asked = call::<RotatePsk>(&member, hub.node_id(), &forged, patiently()).await;
        assert_eq!(asked.unwrap_err().status, Status::Denied);
        let batch = GossipBatch {
            facts: vec![Fact::Psk(forged)],
            messages: Vec::new(),
        };
        call::<Gossip>(&member, hub.node_id(), &batch, patiently())
            .await
            .unwrap();
        sleep(SECOND).await;
        assert_eq!(keys(&hub), (psk(1), None));

        // Who is no node tells no news at all.
        let batch = GossipBatch {
            facts: vec![Fact::Psk(by_authority(&cluster, 8))],
            messages: Vec::new(),
        };
        for teller in [&stranger, &user] {
            let told = call::<Gossip>(teller, hub.node_id(), &batch, patiently()).await;
            let status = told.unwrap_err().status;
            assert!(matches!(status, Status::Denied | Status::Unauthenticated));
        }
        assert_eq!(keys(&hub), (psk(1), None));

        let admin = cluster.start(5, vec![cluster.token(5, &[Scope::Admin])], Router::new());
        connect(&admin, &hub).await;
        let token = cluster.token(5, &[Scope::Admin]);
        sleep(SECOND).await;
        let signed =
            SignedPskRotation::by_admin(&identity(5), token, &rotation(&cluster, 2)).unwrap();
        for _ in 0..2 {
            call::<RotatePsk>(&admin, hub.node_id(), &signed, patiently())
                .await
                .unwrap();
        }
        sleep(SECOND * 2).await;
        for node in [&hub, &member, &admin] {
            assert_eq!(keys(node), (psk(1), Some(psk(2))), "{node:?}");
        }
        assert_eq!(keys(&stranger), (psk(1), None));
        // A user's next command learns it with its connection.
        let again = cluster.start_with(
            6,
            {
                let mut config = cluster.config(6, vec![cluster.token(6, &[Scope::Call])]);
                config.accept = false;
                config
            },
            Router::new(),
        );
        connect(&again, &hub).await;
        sleep(SECOND).await;
        assert_eq!(keys(&again), (psk(1), Some(psk(2))));
        stop(&[&hub, &member, &stranger, &user, &admin, &again]).await;
    });
}

#[test]
fn a_rotation_that_is_damaged_on_the_disk_stops_the_start() {
    simulated(async |cluster| {
        use meshwork_mesh::StateStore;
        let state = Arc::new(MemoryState::default());
        state.put("psk", b"\xff\xff\xff").unwrap();
        let config = cluster.config(1, vec![]);
        let error = Mesh::start(config, cluster.env(1, state), Router::new()).unwrap_err();
        assert!(
            matches!(error, MeshError::State { key: "psk", .. }),
            "{error}"
        );
    });
}
