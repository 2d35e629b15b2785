//! Membership in whole nodes: who is dead leaves all directories, who lives stays in them, and what
//! was divided or down comes together again.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{NodeId, Revoked};
use meshwork_mesh::{MemberEvent, MemoryState, Mesh, MeshError};
use meshwork_netsim::{LinkModel, Net, Sim};
use meshwork_proto::beat::Availability;
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::{Liveness, Message};
use meshwork_proto::mesh::{Gossip, GossipBatch};
use meshwork_proto::ports::Directory;
use meshwork_proto::query::Query;
use meshwork_proto::service::{Router, call};
use meshwork_proto::suspicion::{SignedSuspicion, Suspicion};
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep};

use crate::cluster::*;
use crate::common::*;
use crate::probe::patiently;

const SECOND: Duration = Duration::from_secs(1);

fn simulated<F: Future<Output = ()>>(loss: f64, test: impl FnOnce(Field) -> F) {
    let model = LinkModel {
        loss,
        ..LinkModel::default()
    };
    let sim = Sim::new(23, model);
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        test(Field { cluster, net }).await;
    });
}

/// Where nodes come, go and fail.
struct Field {
    cluster: Cluster,
    net: Net,
}

/// A node with what it keeps.
struct Member {
    n: u8,
    mesh: Mesh,
    state: Arc<MemoryState>,
    events: Receiver<MemberEvent>,
}

impl Field {
    /// Starts node `n` with this memory, and lets it announce itself.
    async fn start(&self, n: u8, state: Arc<MemoryState>) -> Member {
        let config = self.cluster.config(n, vec![self.cluster.node_token(n)]);
        let env = self.cluster.env(n, state.clone());
        let mesh = Mesh::start(config, env, Router::new()).unwrap();
        let events = mesh.watch_members();
        mesh.announce(draft(&name(n), mesh.local_addrs()))
            .await
            .unwrap();
        Member {
            n,
            mesh,
            state,
            events,
        }
    }

    /// Nodes 1 to `count`, which know node 1 and find the others through it.
    async fn mesh(&self, count: u8) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        for n in 1..=count {
            let member = self.start(n, Arc::default()).await;
            if n > 1 {
                connect(&member, &members[0]).await;
            }
            members.push(member);
        }
        self.all_know(&members, 1..=count, SECOND * 20).await;
        // Neighbours are looked for every few seconds.
        sleep(SECOND * 15).await;
        members
    }

    /// Waits until each of `members` shows just these nodes.
    async fn all_know(
        &self,
        members: &[Member],
        nodes: impl IntoIterator<Item = u8>,
        patience: Duration,
    ) {
        let mut expected: Vec<String> = nodes.into_iter().map(name).collect();
        expected.sort();
        let end = Instant::now() + patience;
        loop {
            let wrong = members.iter().find(|member| member.shows() != expected);
            let Some(wrong) = wrong else {
                return;
            };
            let (shown, status) = (wrong.shows(), wrong.status());
            assert!(
                Instant::now() < end,
                "{} shows {shown:?}, suspects {:?}, holds {} dead, doubts itself by {}",
                wrong.n,
                status.suspects,
                status.dead,
                status.health,
            );
            sleep(SECOND / 10).await;
        }
    }

    /// Lets no datagram pass between the two groups.
    fn divide(&self, some: &[Member], others: &[Member]) {
        for (a, b) in pairs(some, others) {
            self.net.partition(sim_addr(a), sim_addr(b));
        }
    }

    fn unite(&self, some: &[Member], others: &[Member]) {
        for (a, b) in pairs(some, others) {
            self.net.heal(sim_addr(a), sim_addr(b));
        }
    }

    /// The node's machine loses its power.
    fn kill(&self, n: u8) {
        self.net.host_on_internet(sim_addr(n).ip()).crash();
    }
}

fn pairs(some: &[Member], others: &[Member]) -> Vec<(u8, u8)> {
    let with_others = |a: &Member| others.iter().map(|b| (a.n, b.n)).collect::<Vec<_>>();
    some.iter().flat_map(with_others).collect()
}

fn name(n: u8) -> String {
    format!("node-{n:03}")
}

impl Member {
    fn shows(&self) -> Vec<String> {
        let known = self.mesh.nodes();
        let mut names: Vec<String> = known.iter().map(|(_, body)| body.name.clone()).collect();
        names.sort();
        names
    }

    /// What this node has held of `peer` since the last look, in order.
    fn held(&mut self, peer: NodeId) -> Vec<Liveness> {
        let mut held = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if event.node == peer {
                held.push(event.status);
            }
        }
        held
    }

    fn deaths(&mut self) -> usize {
        let mut deaths = 0;
        while let Ok(event) = self.events.try_recv() {
            deaths += usize::from(event.status == Liveness::Dead);
        }
        deaths
    }
}

impl std::ops::Deref for Member {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        &self.mesh
    }
}

async fn stop_all(members: Vec<Member>) {
    let all: Vec<&Mesh> = members.iter().map(|member| &member.mesh).collect();
    stop(&all).await;
}

#[test]
fn a_dead_node_leaves_every_directory() {
    simulated(0.05, async |field| {
        let mut members = field.mesh(20).await;
        let killed = members.remove(6);
        field.kill(killed.n);
        let others = (1..=20).filter(|n| *n != killed.n);
        field.all_know(&members, others, SECOND * 15).await;
        let query = Query::parse(&format!("name = \"{}\"", name(killed.n))).unwrap();
        for member in &mut members {
            assert_eq!(member.find(&query, 10).1, 0);
            assert_eq!(member.status().dead, 1, "{}", member.n);
            assert_eq!(member.deaths(), 1, "nobody else died at {}", member.n);
        }
        // Whoever comes later hears of the living at once, and is not told of the dead for long.
        let late = field.start(21, Arc::default()).await;
        connect(&late, &members[0]).await;
        sleep(SECOND * 2).await;
        let shown = late.shows();
        let living = (1..=21).filter(|n| *n != killed.n).map(name);
        assert!(
            living.clone().all(|name| shown.contains(&name)),
            "{shown:?}"
        );
        members.push(late);
        let living = (1..=21).filter(|n| *n != killed.n);
        field.all_know(&members, living, SECOND * 20).await;
        stop_all(members).await;
    });
}

#[test]
fn a_node_that_stalls_objects_in_time() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(6).await;
        let stalled = field.net.host_on_internet(sim_addr(3).ip());
        stalled.pause();
        sleep(SECOND * 5).await;
        stalled.resume();
        sleep(SECOND * 30).await;
        field.all_know(&members, 1..=6, SECOND).await;
        let mut doubted = 0;
        for member in &mut members {
            let held = member.held(node_id(3));
            assert!(!held.contains(&Liveness::Dead), "{} at {}", 3, member.n);
            doubted += usize::from(held == [Liveness::Suspect, Liveness::Alive]);
        }
        assert!(doubted > 0, "the stall was noticed");
        stop_all(members).await;
    });
}

#[test]
fn halves_that_forgot_each_other_meet_again() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(6).await;
        let others = members.split_off(3);
        field.divide(&members, &others);
        sleep(SECOND * 30).await;
        field.all_know(&members, 1..=3, SECOND).await;
        field.all_know(&others, 4..=6, SECOND).await;
        sleep(Duration::from_mins(10)).await;
        let forgotten = members[0].status();
        assert_eq!((forgotten.known, forgotten.dead), (3, 0), "they expired");
        field.unite(&members, &others);
        members.extend(others);
        field.all_know(&members, 1..=6, SECOND * 30).await;
        stop_all(members).await;
    });
}

#[test]
fn a_short_division_heals_within_seconds() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(6).await;
        let others = members.split_off(3);
        field.divide(&members, &others);
        sleep(Duration::from_mins(2)).await;
        field.all_know(&members, 1..=3, SECOND).await;
        field.unite(&members, &others);
        members.extend(others);
        field.all_know(&members, 1..=6, SECOND * 10).await;
        stop_all(members).await;
    });
}

#[test]
fn a_mesh_comes_back_by_itself_when_all_nodes_restart() {
    simulated(0.0, async |field| {
        let members = field.mesh(5).await;
        let states: Vec<_> = members.iter().map(|m| (m.n, m.state.clone())).collect();
        stop_all(members).await;
        let mut again = Vec::new();
        for (n, state) in states {
            field.cluster.released(n).await;
            again.push(field.start(n, state).await);
        }
        // Nobody was told of anybody.
        field.all_know(&again, 1..=5, SECOND * 30).await;
        stop_all(again).await;
    });
}

#[test]
fn a_node_that_leaves_is_missed_at_once() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(5).await;
        let leaving = members.remove(2);
        stop_all(vec![leaving]).await;
        field.all_know(&members, [1, 2, 4, 5], SECOND * 15).await;
        stop_all(members).await;
    });
}

/// What one member may say against all others.
fn slander(field: &Field, liar: u8, accused: &Mesh, witness: &Mesh) -> Fact {
    let known = witness.nodes();
    let node = accused.node_id();
    let version = known.iter().find(|(id, _)| *id == node).unwrap().1.version;
    let body = Suspicion {
        accused: node,
        version,
        at: field.cluster.now(),
    };
    Fact::Suspicion(SignedSuspicion::sign(&identity(liar), &body).unwrap())
}

#[test]
fn a_liar_kills_nobody() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(6).await;
        for _ in 0..60 {
            let liar = &members[5];
            for victim in &members[..5] {
                let facts = members[..5]
                    .iter()
                    .map(|accused| slander(&field, 6, accused, victim));
                let batch = GossipBatch {
                    facts: facts.collect(),
                    messages: Vec::new(),
                };
                call::<Gossip>(&liar.mesh, victim.node_id(), &batch, patiently())
                    .await
                    .unwrap();
            }
            sleep(SECOND).await;
        }
        field.all_know(&members, 1..=6, SECOND * 5).await;
        for member in &mut members {
            assert_eq!(member.deaths(), 0, "at {}", member.n);
        }
        stop_all(members).await;
    });
}

#[test]
fn a_member_that_floods_is_not_heard_and_harms_nobody() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(5).await;
        let flooder = &members[4];
        let victim = &members[0];
        let mut wrong = slander(&field, 5, &members[1], victim);
        if let Fact::Suspicion(signed) = &mut wrong {
            signed.hops = 99;
        }
        let batch = GossipBatch {
            facts: vec![wrong; 256],
            messages: vec![Message::Summary { hash: 1, count: 1 }; 64],
        };
        for _ in 0..100 {
            call::<Gossip>(&flooder.mesh, victim.node_id(), &batch, patiently())
                .await
                .unwrap();
        }
        let stats = victim.gossip_stats();
        assert!(stats.refused > 20_000, "{stats:?}");
        assert!(victim.status().refused_announcements < 1_000);
        sleep(SECOND * 30).await;
        field.all_know(&members, 1..=5, SECOND).await;
        for member in &mut members {
            assert_eq!(member.deaths(), 0, "at {}", member.n);
        }
        stop_all(members).await;
    });
}

#[test]
fn a_revoked_node_is_cut_everywhere_and_stays_out() {
    simulated(0.0, async |field| {
        let mut members = field.mesh(6).await;
        let revoked = members.remove(5);
        let revocation = field.cluster.revocation(Revoked::Node(revoked.node_id()));
        members[2].revoke(revocation).await.unwrap();
        field.all_know(&members, 1..=5, SECOND * 3).await;
        assert!(members.iter().all(|m| !linked(m, revoked.node_id())));
        assert!(revoked.peers().is_empty());
        // Nor does it come back with a restart of those that it wants to talk to.
        let old = members.remove(0);
        let state = old.state.clone();
        stop_all(vec![old]).await;
        field.cluster.released(1).await;
        members.push(field.start(1, state).await);
        let refused = revoked.dial(&contact(&members[4]), PATIENCE).await;
        assert!(
            matches!(
                &refused,
                Err(MeshError::Refused { .. } | MeshError::Unreachable { .. })
            ),
            "{refused:?}"
        );
        sleep(SECOND * 30).await;
        field.all_know(&members, 1..=5, SECOND).await;
        stop_all(members).await;
        stop_all(vec![revoked]).await;
    });
}

#[test]
fn what_is_free_is_known_to_all_and_not_told_more_often_than_needed() {
    simulated(0.0, async |field| {
        let members = field.mesh(4).await;
        let free = |amount| Availability {
            free: vec![("cpu".into(), amount)],
            vram_used: vec![],
            healthy: true,
        };
        let version = |member: &Member| {
            let known = member.nodes();
            let own = known.iter().find(|(node, _)| *node == node_id(1));
            own.unwrap().1.version
        };
        let before = version(&members[3]);
        for amount in 0..200 {
            members[0].set_availability(Some(free(amount)));
            sleep(SECOND / 10).await;
        }
        sleep(SECOND * 6).await;
        for member in &members {
            let known = member.availability(&node_id(1)).unwrap();
            assert_eq!(*known, free(199), "at {}", member.n);
            let found = |text: &str| member.find(&text.parse().unwrap(), 10).1;
            assert_eq!(found("free.cpu = 0.199 and healthy = true"), 1);
            assert_eq!(found("free.cpu >= 0.2"), 0);
            assert_eq!(
                found("free.cpu != 0.199"),
                0,
                "what is unknown fits nothing"
            );
        }
        let told = version(&members[3]) - before;
        assert!((2..=6).contains(&told), "{told} beats in 26 s");
        sleep(SECOND * 20).await;
        assert_eq!(version(&members[3]) - before, told, "nothing has changed");
        stop_all(members).await;
    });
}
