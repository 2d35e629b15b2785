//! Nodes behind NATs: always reached, directly where that is possible.

mod changes;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use meshwork_identity::{Contact, NodeId};
use meshwork_mesh::{Env, MemoryState, Mesh, MeshConfig, MeshError, PathKind, TraversalError};
use meshwork_netsim::nat::{Dependence, Firewall, NatModel, theory};
use meshwork_netsim::{Host, Lan, LinkModel, Net, Outage, Sim, Wire};
use meshwork_proto::announcement::Role;
use meshwork_proto::path::NatClass;
use meshwork_proto::ports::Directory;
use meshwork_proto::service::{CallOptions, call, stream};
use tokio::time::{Instant, sleep};

use crate::cluster::*;
use crate::common::node_id;
use crate::probe::{self, Echo, Quiet};

const PORT: u16 = 7000;
/// Time in which the nodes find out about their NATs and their relays.
const SETTLED: Duration = Duration::from_secs(15);

/// A node and the machine that it is on.
struct Place {
    mesh: Mesh,
    host: Host,
}

impl Place {
    fn contact(&self) -> Contact {
        Contact {
            node: self.mesh.node_id(),
            addrs: self.host.addrs(PORT),
        }
    }
}

/// A mesh in a simulated internet.
struct Internet {
    cluster: Cluster,
    net: Net,
}

impl Internet {
    fn new(net: &Net) -> Self {
        Self {
            cluster: Cluster::simulated(net),
            net: net.clone(),
        }
    }

    /// Node `n` on the open internet.
    fn open(&self, n: u8) -> Place {
        let ip = IpAddr::from([198, 51, 100, n]);
        self.start(n, self.net.host_on_internet(ip), |_| {})
    }

    /// Node `n` alone behind a NAT of its own.
    fn behind(&self, n: u8, model: NatModel) -> Place {
        self.behind_with(n, model, |_| {})
    }

    fn behind_with(&self, n: u8, model: NatModel, change: impl FnOnce(&mut MeshConfig)) -> Place {
        let lan = self.net.behind(IpAddr::from([203, 0, 113, n]), model);
        let host = self.net.host(&[(lan, IpAddr::from([192, 168, 1, 10]))]);
        self.start(n, host, change)
    }

    fn start(&self, n: u8, host: Host, change: impl FnOnce(&mut MeshConfig)) -> Place {
        let mut config = self.cluster.config(n, vec![self.cluster.node_token(n)]);
        change(&mut config);
        let socket = host.bind(PORT).unwrap();
        let (machine, whereabouts) = (host.clone(), host.clone());
        let env = Env {
            clock: self.cluster.clock.clone(),
            entropy: self.net.entropy(),
            state: Arc::new(MemoryState::default()),
            runtime: self.net.runtime(),
            socket,
            bind: Arc::new(move |_| machine.bind(0)),
            addresses: Arc::new(move |bound| whereabouts.addrs(bound.port())),
        };
        let mesh = Mesh::start(config, env, probe::router()).unwrap();
        Place { mesh, host }
    }

    /// Relays 100.. on the open internet, and the other places linked with the first of them at
    /// first; everybody has announced itself and knows its own NAT.
    async fn with_relays(&self, relays: u8, others: &[&Place]) -> Vec<Place> {
        let relays: Vec<Place> = (100..100 + relays).map(|n| self.open(n)).collect();
        for place in relays.iter().skip(1).chain(others.iter().copied()) {
            place.mesh.pin(relays[0].contact());
        }
        for place in relays.iter().chain(others.iter().copied()) {
            announce(place).await;
        }
        sleep(SETTLED).await;
        for place in &relays {
            assert_eq!(place.mesh.nat_class(), NatClass::Open, "{:?}", place.mesh);
        }
        relays
    }
}

async fn announce(place: &Place) {
    let draft = draft(&place.mesh.node_id().short(), place.host.addrs(PORT));
    place.mesh.announce(draft).await.unwrap();
}

fn run(seed: u64, test: impl AsyncFnOnce(Internet)) {
    let sim = Sim::new(seed, LinkModel::default());
    let net = sim.net();
    sim.block_on(async { test(Internet::new(&net)).await });
}

async fn stop_all(places: &[&Place]) {
    stop(&places.iter().map(|place| &place.mesh).collect::<Vec<_>>()).await;
}

async fn echoes(from: &Place, to: &Place, bytes: &Bytes) {
    let options = CallOptions::within(Duration::from_secs(20));
    let answer = call::<Echo>(&from.mesh, to.mesh.node_id(), bytes, options).await;
    assert_eq!(
        answer.as_ref(),
        Ok(bytes),
        "{:?} to {:?}",
        from.mesh,
        to.mesh
    );
}

fn path(from: &Place, to: &Place) -> String {
    let view = from.mesh.peer(&to.mesh.node_id());
    view.map_or_else(|| "none".to_owned(), |view| view.path)
}

fn is_relayed(from: &Place, to: &Place) -> bool {
    path(from, to).starts_with("relay via ")
}

fn relay_in_use(from: &Place, to: &Place, relays: &[Place]) -> usize {
    let path = path(from, to);
    let via = |relay: &Place| path == format!("relay via {}", relay.mesh.node_id().short());
    relays
        .iter()
        .position(via)
        .unwrap_or_else(|| panic!("path {path}"))
}

#[test]
fn nodes_learn_what_lies_between_them_and_the_network() {
    run(1, async |internet| {
        let home = internet.behind(1, NatModel::home());
        let firm = internet.behind(2, NatModel::symmetric());
        let relays = internet.with_relays(3, &[&home, &firm]).await;
        assert_eq!(home.mesh.nat_class(), NatClass::Cone);
        let reflex = home.mesh.reflex_addr().unwrap();
        assert_eq!(reflex.ip(), IpAddr::from([203, 0, 113, 1]));
        assert_eq!(
            home.mesh
                .probe_reflex(relays[0].mesh.node_id())
                .await
                .unwrap(),
            reflex
        );
        assert_eq!(firm.mesh.nat_class(), NatClass::Symmetric);
        assert_eq!(firm.mesh.reflex_addr(), None);
        // Others know it as well, and which relays they are reached over.
        for place in [&home, &firm] {
            let (_, said) = relays[1]
                .mesh
                .nodes()
                .into_iter()
                .find(|(node, _)| *node == place.mesh.node_id())
                .unwrap();
            assert_eq!(said.nat, place.mesh.nat_class());
            assert_eq!(said.relays.len(), 3);
            assert_eq!(said.relays, place.mesh.home_relays());
            assert!(!said.roles.contains(&Role::Relay));
        }
        let (_, said) = home
            .mesh
            .nodes()
            .into_iter()
            .find(|(node, _)| *node == node_id(100))
            .unwrap();
        assert!(said.roles.contains(&Role::Relay) && said.relays.is_empty());
        stop_all(&[&home, &firm]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn two_behind_symmetric_nats_talk_over_a_relay_and_nobody_reads_it() {
    run(2, async |internet| {
        let one = internet.behind(1, NatModel::symmetric());
        let two = internet.behind(2, NatModel::symmetric());
        let relays = internet.with_relays(2, &[&one, &two]).await;
        let secret: Bytes = b"a sentence that no relay may read ".repeat(200).into();
        let needle = secret.slice(..32);
        let (seen, marker) = (
            Arc::new(std::sync::atomic::AtomicBool::new(false)),
            needle.clone(),
        );
        let flag = seen.clone();
        internet.net.set_hook(move |datagram| {
            if datagram
                .payload
                .windows(marker.len())
                .any(|part| part == marker)
            {
                flag.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            vec![meshwork_netsim::Delivery::of(datagram.payload)]
        });
        for _ in 0..20 {
            echoes(&one, &two, &secret).await;
            echoes(&two, &one, &secret).await;
            sleep(Duration::from_secs(1)).await;
        }
        assert!(is_relayed(&one, &two) && is_relayed(&two, &one));
        assert!(!seen.load(std::sync::atomic::Ordering::Relaxed));
        let relayed: u64 = relays
            .iter()
            .map(|relay| relay.mesh.traversal_stats().relayed_bytes)
            .sum();
        assert!(
            relayed > 40 * secret.len() as u64,
            "{relayed} bytes relayed"
        );
        let (ours, theirs) = (one.mesh.traversal_stats(), two.mesh.traversal_stats());
        assert_eq!(ours.punches_succeeded + theirs.punches_succeeded, 0);
        assert_eq!(ours.relay_fallbacks + theirs.relay_fallbacks, 1);
        // Asked for a direct path, the node says which one it has, and that is no error.
        let kind = one.mesh.connect_direct(node_id(2), None).await.unwrap();
        assert!(matches!(kind, PathKind::Relay(_)));
        stop_all(&[&one, &two]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

/// Echoes bytes from `from` to `to` until `end`; the longest time without one.
async fn chat(from: &Place, to: &Place, end: Instant) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut turn = 0u64;
    while Instant::now() < end {
        turn += 1;
        let bytes: Bytes = turn.to_be_bytes().repeat(300).into();
        echoes(from, to, &bytes).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        sleep(Duration::from_millis(50)).await;
    }
    longest
}

#[test]
fn punching_moves_a_live_connection_to_the_direct_path() {
    run(3, async |internet| {
        let one = internet.behind(1, NatModel::home());
        let two = internet.behind(2, NatModel::home());
        // At first, only relays carry packets between the two.
        let (hosts, others) = ([&one.host], [&two.host]);
        internet.net.cut(&hosts, &others, Outage::Always);
        internet.net.cut(&others, &hosts, Outage::Always);
        let relays = internet.with_relays(2, &[&one, &two]).await;
        chat(&one, &two, Instant::now() + Duration::from_secs(5)).await;
        assert!(is_relayed(&one, &two) && is_relayed(&two, &one));
        internet.net.mend(&hosts, &others);
        internet.net.mend(&others, &hosts);
        let before = one.mesh.traversal_stats();
        let (stall, moved) = tokio::join!(
            chat(&one, &two, Instant::now() + Duration::from_secs(20)),
            one.mesh.connect_direct(node_id(2), None),
        );
        assert_eq!(moved.unwrap(), PathKind::Direct);
        assert!(stall < Duration::from_secs(1), "nothing for {stall:?}");
        assert_eq!(
            (path(&one, &two), path(&two, &one)),
            ("direct".into(), "direct".into())
        );
        let after = one.mesh.traversal_stats();
        assert!(after.punches_attempted > before.punches_attempted);
        assert!(after.punches_succeeded > before.punches_succeeded);
        assert_eq!(after.relay_fallbacks, before.relay_fallbacks);
        let relayed = |relays: &[Place]| -> u64 {
            let each = relays
                .iter()
                .map(|r| r.mesh.traversal_stats().relayed_bytes);
            each.sum()
        };
        let before = relayed(&relays);
        chat(&one, &two, Instant::now() + Duration::from_secs(20)).await;
        let after = relayed(&relays) - before;
        assert!(
            after < 20_000,
            "{after} bytes over relays, though there is a direct path"
        );
        assert_eq!(
            one.mesh.connect_direct(node_id(2), None).await.unwrap(),
            PathKind::Direct
        );
        stop_all(&[&one, &two]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn the_first_try_is_direct_where_theory_allows() {
    use Dependence::{AddressDependent, EndpointIndependent};
    let kinds = [
        NatModel::home(),
        NatModel::carrier(),
        NatModel::symmetric(),
        // Symmetric by what peers see, and open to everybody at each of its ports.
        NatModel::new(AddressDependent, EndpointIndependent),
    ];
    for (seed, (a, b)) in (10..).zip([(0, 0), (0, 1), (1, 1), (1, 2), (2, 1), (3, 3)]) {
        run(seed, async |internet| {
            let (one, two) = (internet.behind(1, kinds[a]), internet.behind(2, kinds[b]));
            assert!(theory::direct_possible(&[kinds[a]], &[kinds[b]]));
            let relays = internet.with_relays(2, &[&one, &two]).await;
            echoes(&one, &two, &Bytes::from_static(b"hello")).await;
            // Probes are on their way since the connection is up.
            sleep(Duration::from_secs(5)).await;
            assert_eq!(path(&one, &two), "direct", "{a} and {b}");
            stop_all(&[&one, &two, &relays[0], &relays[1]]).await;
        });
    }
}

#[test]
fn an_address_of_ones_own_behind_a_firewall_does_not_make_a_node_reachable() {
    run(20, async |internet| {
        let behind = |n| {
            let (inside, rules) = (internet.net.lan(), Firewall::default());
            internet.net.firewall(inside, Lan::INTERNET, false, rules);
            let host = internet.net.host(&[(inside, IpAddr::from([192, 0, 2, n]))]);
            internet.start(n, host, |_| {})
        };
        let (one, two) = (behind(1), behind(2));
        let relays = internet.with_relays(3, &[&one, &two]).await;
        for place in [&one, &two] {
            assert_eq!(place.mesh.nat_class(), NatClass::Open);
            assert!(
                !place.mesh.home_relays().is_empty(),
                "nobody gets in without help"
            );
        }
        // A third one, which knows them from hearsay only, reaches both.
        let late = internet.behind(3, NatModel::symmetric());
        late.mesh.pin(relays[0].contact());
        announce(&late).await;
        sleep(SETTLED).await;
        for place in [&one, &two] {
            echoes(&late, place, &Bytes::from_static(b"hello")).await;
        }
        stop_all(&[&one, &two, &late]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn nobody_is_dialled_where_no_node_can_be() {
    run(24, async |internet| {
        let (one, two) = (internet.open(1), internet.open(2));
        one.mesh.pin(two.contact());
        let nowhere = [
            "224.0.0.251:5353",
            "255.255.255.255:9",
            "127.0.0.1:22",
            "203.0.113.77:0",
            "[fd4d:5701::1]:1",
        ];
        let told = nowhere.iter().map(|text| text.parse().unwrap());
        let told = told.chain(two.host.addrs(PORT)).collect();
        two.mesh.announce(draft("two", told)).await.unwrap();
        announce(&one).await;
        sleep(SETTLED).await;
        let nodes = one.mesh.nodes().into_iter();
        let known = nodes.filter(|(_, body)| body.name == "two");
        assert_eq!(known.count(), 1, "it is listened to");
        two.host.crash();
        sleep(Duration::from_mins(1)).await;
        let options = CallOptions::within(Duration::from_secs(20));
        let to = two.mesh.node_id();
        let answer = call::<Echo>(&one.mesh, to, &Bytes::new(), options).await;
        let tried = answer.unwrap_err().to_string();
        assert!(tried.contains("198.51.100.2:7000"), "{tried}");
        for address in nowhere {
            assert!(!tried.contains(address), "{address}: {tried}");
        }
        stop_all(&[&one]).await;
    });
}

#[test]
fn relaying_works_where_wires_carry_no_more_than_quic_demands() {
    run(21, async |internet| {
        // UDP payloads of 1,200 bytes.
        internet.net.set_link(Wire {
            mtu: 1228,
            ..Wire::from(LinkModel::default())
        });
        let one = internet.behind(1, NatModel::symmetric());
        let two = internet.behind(2, NatModel::symmetric());
        let relays = internet.with_relays(2, &[&one, &two]).await;
        echoes(&one, &two, &vec![7; 300_000].into()).await;
        assert!(is_relayed(&one, &two));
        // One way wide, the other narrow: packets fit the way to the relay, and not the way from it.
        internet.net.set_uplink(&one.host, LinkModel::default());
        internet.net.set_downlink(&one.host, LinkModel::default());
        sleep(Duration::from_secs(700)).await;
        echoes(&one, &two, &vec![7; 300_000].into()).await;
        assert!(is_relayed(&one, &two));
        stop_all(&[&one, &two]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn an_override_makes_a_node_open_at_once_and_its_end_undoes_that() {
    run(5, async |internet| {
        let home = internet.behind(1, NatModel::home());
        let relays = internet.with_relays(2, &[&home]).await;
        let public: SocketAddr = "203.0.113.1:9000".parse().unwrap();
        let said = |by: &Place| {
            let nodes = by.mesh.nodes();
            nodes
                .into_iter()
                .find(|(node, _)| *node == node_id(1))
                .unwrap()
                .1
        };
        home.mesh.set_reflex_override(public).unwrap();
        assert_eq!(
            (home.mesh.nat_class(), home.mesh.reflex_addr()),
            (NatClass::Open, Some(public))
        );
        sleep(Duration::from_secs(10)).await;
        let known = said(&relays[1]);
        assert!(known.nat == NatClass::Open && known.addresses.contains(&public));
        assert!(known.relays.is_empty());
        let nowhere = home
            .mesh
            .set_reflex_override("0.0.0.0:9000".parse().unwrap());
        let refused = matches!(
            nowhere,
            Err(MeshError::Setting {
                setting: "reflex_override",
                ..
            })
        );
        assert!(refused, "{nowhere:?}");
        assert_eq!(home.mesh.reflex_addr(), Some(public));
        home.mesh.clear_reflex_override();
        assert_eq!(home.mesh.nat_class(), NatClass::Cone);
        sleep(Duration::from_secs(10)).await;
        let known = said(&relays[1]);
        assert!(known.nat == NatClass::Cone && !known.addresses.contains(&public));
        assert_eq!(known.relays.len(), 2);
        assert_eq!(home.mesh.reclassify_nat().await, NatClass::Cone);
        stop_all(&[&home]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn connecting_directly_says_by_its_kind_why_not() {
    run(6, async |internet| {
        let home = internet.behind(1, NatModel::home());
        let relays = internet.with_relays(2, &[&home]).await;
        let mesh = &home.mesh;
        let kind = |result: Result<PathKind, TraversalError>| result.unwrap_err().kind();
        let nobody: NodeId = node_id(77);
        assert_eq!(
            kind(mesh.connect_direct(nobody, None).await),
            "peer-not-reachable"
        );
        let relay = relays[0].mesh.node_id();
        assert_eq!(
            kind(mesh.connect_direct(nobody, Some(nobody)).await),
            "rendezvous-no-relay"
        );
        assert_eq!(
            kind(mesh.connect_direct(relay, Some(nobody)).await),
            "rendezvous-no-relay"
        );
        assert_eq!(
            mesh.connect_direct(relay, None).await.unwrap(),
            PathKind::Direct
        );
        assert_eq!(
            mesh.probe_reflex(nobody).await.unwrap_err().kind(),
            "peer-not-reachable"
        );
        stop_all(&[&home]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn a_given_coordinator_is_enough_to_meet() {
    run(7, async |internet| {
        let one = internet.behind(1, NatModel::home());
        let two = internet.behind(2, NatModel::home());
        let relays = internet.with_relays(1, &[&one, &two]).await;
        let coordinator = relays[0].mesh.node_id();
        let kind = one
            .mesh
            .connect_direct(node_id(2), Some(coordinator))
            .await
            .unwrap();
        assert_eq!(kind, PathKind::Direct);
        assert_eq!(path(&one, &two), "direct");
        stop_all(&[&one, &two, &relays[0]]).await;
    });
}
