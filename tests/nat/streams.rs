//! A stream goes on while the network changes under it: every number arrives, in order and once.

use std::time::{Duration, Instant};

use crate::support::inside::{Inside, goes_on};
use crate::support::node::Member;
use crate::support::{Host, Lab, Nat, eventually, so};

/// Numbers that show that a stream runs: a second of them.
const SECOND: u64 = 50;

/// A node of this process on a machine of the lab.
fn inside(hub: &Member, host: &Host, name: &str) -> (Member, Inside) {
    let member = Member::new(host, name);
    let node = Inside::joins(hub, &member);
    (member, node)
}

/// For the reader of the test's output: times are what people feel.
fn tell(what: &str, time: Duration) {
    eprintln!("{what}: {} ms", time.as_millis());
}

/// The longest pause in a stream.
fn tell_pause(when: &str, pause: Duration) {
    tell(&format!("{when}: longest pause"), pause);
}

#[test]
fn a_laptop_changes_networks_under_a_stream() {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public("hub"));
    let [home, cafe] = ["home", "cafe"].map(|name| lab.router(name, Nat::Preserve));
    let mut host = lab.behind(&home, "laptop");
    let (_box, server) = inside(&hub, &lab.public("server"), "server");
    let (_laptop, laptop) = inside(&hub, &host, "laptop");
    laptop.meets(&server);
    let numbers = laptop.count(&server);
    goes_on(&numbers, SECOND);
    let age = connection_age(&laptop, &server);
    host.roam(&cafe);
    let stall = goes_on(&numbers, 3 * SECOND);
    tell_pause("roaming", stall);
    assert!(
        connection_age(&laptop, &server) > age,
        "the same connection"
    );
    // And back.
    host.roam(&home);
    tell_pause("roaming back", goes_on(&numbers, 3 * SECOND));
}

#[test]
fn a_relay_dies_under_a_stream() {
    let Some(lab) = Lab::new() else { return };
    let mut hub = Member::hub(&lab.public("hub"));
    let mut relays =
        ["r1", "r2"].map(|name| Member::joins(&hub, &lab.public(name), name, "relay", ""));
    let nodes = [("a", Nat::Random), ("b", Nat::RandomFully)].map(|(name, nat)| {
        let router = lab.router(&format!("n{name}"), nat);
        inside(&hub, &lab.behind(&router, name), name)
    });
    let [(_, a), (_, b)] = &nodes;
    for (one, other) in [(a, b), (b, a)] {
        one.meets(other);
        eventually("two home relays", || {
            let relays = one.mesh.status().relays;
            so(relays.len() >= 2, relays)
        });
    }
    let numbers = a.count(b);
    goes_on(&numbers, SECOND);
    let via = a.reaches(b, "relay via ");
    // The mesh's manager relays, too.
    let mut servers = relays.iter_mut().chain([&mut hub]);
    let dying = servers.find(|relay| via.ends_with(&relay.id()[..10]));
    dying.expect("one of those there are").kill();
    tell_pause("a relay died", goes_on(&numbers, 3 * SECOND));
    assert_ne!(a.reaches(b, "relay via "), via);
}

#[test]
fn a_direct_path_is_cut_under_a_stream() {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public("hub"));
    let routers = ["na", "nb"].map(|name| lab.router(name, Nat::Preserve));
    let (_a, a) = inside(&hub, &lab.behind(&routers[0], "a"), "a");
    let (_b, b) = inside(&hub, &lab.behind(&routers[1], "b"), "b");
    let joined = Instant::now();
    a.meets(&b);
    tell(
        "first contact of two behind NATs, after both joined",
        joined.elapsed(),
    );
    a.reaches(&b, "direct");
    tell(
        "their first direct path, after both joined",
        joined.elapsed(),
    );
    let numbers = a.count(&b);
    goes_on(&numbers, SECOND);
    a.reaches(&b, "direct");
    b.reaches(&a, "direct");
    routers[0].cut_off(routers[1].wan.ip);
    tell_pause("the direct path was cut", goes_on(&numbers, 3 * SECOND));
    a.reaches(&b, "relay via ");
}

#[test]
fn a_stream_outlives_the_mappings_of_a_nat() {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public("hub"));
    let routers = ["na", "nb"].map(|name| lab.router(name, Nat::Preserve));
    for router in &routers {
        // As short as carriers have it (RFC 4787 asks for 120 s): only a quiet path notices.
        router.mapping_lifetime(10);
    }
    let (_a, a) = inside(&hub, &lab.behind(&routers[0], "a"), "a");
    let (_b, b) = inside(&hub, &lab.behind(&routers[1], "b"), "b");
    a.meets(&b);
    let numbers = a.count(&b);
    a.reaches(&b, "direct");
    tell_pause("short mappings", goes_on(&numbers, 15 * SECOND));
}

fn connection_age(from: &Inside, to: &Inside) -> Duration {
    let node = to.mesh.node_id();
    let mut peers = from.mesh.peers().into_iter();
    peers.find(|peer| peer.node == node).expect("connected").age
}
