//! The lab is what it claims to be, shown with a few packets and without Meshwork.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::echo::{at, heard, punch, seen_as};
use crate::support::lab::{namespaces, sweep};
use crate::support::shell::run;
use crate::support::upnp::{PortMapper, Speaks};
use crate::support::{Host, Lab, Nat, Router, eventually, so};

/// The port that hosts of these tests use.
const PORT: u16 = 4460;

/// A machine behind a NAT of this kind, and two public ones that look at it.
struct Scene {
    host: Host,
    router: Router,
    observers: [Host; 2],
    _lab: Lab,
}

impl Scene {
    fn new(nat: Nat) -> Option<Self> {
        let lab = Lab::new()?;
        let router = lab.router("r", nat);
        Some(Self {
            host: lab.behind(&router, "h"),
            router,
            observers: [lab.public("x"), lab.public("y")],
            _lab: lab,
        })
    }

    /// What the two see of one socket of the host.
    fn views(&self) -> [SocketAddr; 2] {
        let socket = self.host.udp(PORT);
        [0, 1].map(|n: usize| {
            let observer = self.observers[n].udp(PORT);
            seen_as(&socket, &observer, at(&self.observers[n], PORT)).expect("packets go out")
        })
    }
}

#[test]
fn a_preserving_nat_shows_everybody_the_same_port_and_lets_in_answers_only() {
    let Some(scene) = Scene::new(Nat::Preserve) else {
        return;
    };
    let outside = SocketAddr::new(scene.router.wan.ip.into(), PORT);
    assert_eq!(scene.views(), [outside; 2]);

    let (socket, known) = (scene.host.udp(PORT + 1), scene.observers[0].udp(PORT));
    let stranger = scene.observers[1].udp(PORT);
    let mapped = seen_as(&socket, &known, at(&scene.observers[0], PORT)).expect("out");
    assert!(
        seen_as(&known, &socket, mapped).is_some(),
        "an answer comes in"
    );
    let other_port = scene.observers[0].udp(PORT + 1);
    assert_eq!(
        seen_as(&other_port, &socket, mapped),
        None,
        "same address, other port"
    );
    assert_eq!(seen_as(&stranger, &socket, mapped), None, "other address");
    // What the router dropped does not hold its port against the LAN.
    let seen = seen_as(&socket, &stranger, at(&scene.observers[1], PORT));
    assert_eq!(seen, Some(mapped));
}

#[test]
fn random_nats_show_each_a_port_of_its_own() {
    for nat in [Nat::Random, Nat::RandomFully] {
        let Some(scene) = Scene::new(nat) else { return };
        let [x, y] = scene.views();
        assert!(x.ip() == y.ip() && x.port() != y.port(), "{nat:?}: {x} {y}");
    }
}

#[test]
fn an_open_nat_lets_everybody_in() {
    let Some(scene) = Scene::new(Nat::Open) else {
        return;
    };
    let (inside, stranger) = (scene.host.udp(PORT), scene.observers[0].udp(PORT));
    let door = SocketAddr::new(scene.router.wan.ip.into(), PORT);
    assert!(seen_as(&stranger, &inside, door).is_some());
}

#[test]
fn a_mapping_ends_when_it_is_told_to() {
    let Some(scene) = Scene::new(Nat::Preserve) else {
        return;
    };
    scene.router.mapping_lifetime(1);
    let (socket, server) = (scene.host.udp(PORT), scene.observers[0].udp(PORT));
    let mapped = seen_as(&socket, &server, at(&scene.observers[0], PORT)).expect("out");
    // A packet that comes in keeps a mapping up, so one with the system's own 30 s would never end.
    eventually("the mapping's end", || {
        std::thread::sleep(Duration::from_secs(3));
        let _ = server.send_to(b"late", mapped);
        so(heard(&socket).is_none(), "it still comes in")
    });
}

#[test]
fn punching_opens_two_preserving_nats_and_no_random_one() {
    for (left, right, opens) in [
        (Nat::Preserve, Nat::Preserve, true),
        (Nat::Preserve, Nat::Random, false),
        (Nat::RandomFully, Nat::RandomFully, false),
    ] {
        let Some(lab) = Lab::new() else { return };
        let broker = lab.public("broker");
        let meeting = broker.udp(PORT);
        let sides = [("a", left), ("b", right)].map(|(name, nat)| {
            let router = lab.router(&format!("r{name}"), nat);
            let socket = lab.behind(&router, name).udp(PORT);
            let seen = seen_as(&socket, &meeting, at(&broker, PORT)).expect("out");
            (socket, seen)
        });
        let [a, b] = &sides;
        assert_eq!(
            punch((&a.0, a.1), (&b.0, b.1)),
            opens,
            "{left:?} and {right:?}"
        );
    }
}

#[test]
fn neighbours_talk_directly_and_lans_do_not_mix() {
    let Some(lab) = Lab::new() else { return };
    let (left, right) = (
        lab.router("r1", Nat::Preserve),
        lab.router("r2", Nat::Preserve),
    );
    let (a, b) = (lab.behind(&left, "a"), lab.behind(&left, "b"));
    let elsewhere = lab.behind(&right, "c");
    let (from, to) = (a.udp(PORT), b.udp(PORT));
    assert_eq!(seen_as(&from, &to, at(&b, PORT)), Some(at(&a, PORT)));
    // Both LANs have this address.
    assert_eq!(elsewhere.ip, a.ip);
    let far = elsewhere.udp(PORT);
    assert_eq!(seen_as(&to, &far, at(&elsewhere, PORT)), None);
}

#[test]
fn an_ipv6_firewall_translates_nothing_and_opens_for_both_at_once() {
    let Some(lab) = Lab::new() else { return };
    let (left, right) = (
        lab.router("r1", Nat::Firewall6),
        lab.router("r2", Nat::Firewall6),
    );
    let (a, b) = (lab.behind(&left, "a"), lab.behind(&right, "b"));
    let (from, to) = (a.udp(PORT), b.udp(PORT));
    assert_eq!(seen_as(&from, &to, at(&b, PORT)), None, "unasked for");
    assert!(punch((&from, at(&a, PORT)), (&to, at(&b, PORT))));
}

#[test]
fn a_roaming_machine_gets_another_way_out() {
    let Some(lab) = Lab::new() else { return };
    let routers = ["r1", "r2"].map(|name| lab.router(name, Nat::Preserve));
    let mut host = lab.behind(&routers[0], "h");
    let observer = lab.public("x");
    let (socket, server) = (host.udp(PORT), observer.udp(PORT));
    let seen = || seen_as(&socket, &server, at(&observer, PORT)).map(|a| a.ip());
    assert_eq!(seen(), Some(routers[0].wan.ip.into()));
    host.roam(&routers[1]);
    assert_eq!(seen(), Some(routers[1].wan.ip.into()));
}

#[test]
fn a_cut_between_two_machines_is_one() {
    let Some(scene) = Scene::new(Nat::Preserve) else {
        return;
    };
    scene.router.cut_off(scene.observers[0].ip);
    let socket = scene.host.udp(PORT);
    let [cut, other] = scene.observers.each_ref().map(|observer| {
        let server = observer.udp(PORT);
        seen_as(&socket, &server, at(observer, PORT))
    });
    assert!(cut.is_none() && other.is_some(), "{cut:?} {other:?}");
}

#[test]
fn a_port_mapper_runs_in_a_router() {
    for speaks in [Speaks::Upnp, Speaks::Pmp] {
        let Some(scene) = Scene::new(Nat::Preserve) else {
            return;
        };
        let mapper = PortMapper::start(&scene.router, speaks);
        assert_eq!(mapper.mappings(), Vec::<String>::new());
    }
}

#[test]
fn what_a_killed_run_left_is_swept_and_what_runs_stays() {
    let Some(lab) = Lab::new() else { return };
    // Above every process id that Linux gives out (2^22).
    const NOBODY: &str = "mwnat-9999999-0-x";
    run(&["ip", "netns", "add", NOBODY]);
    sweep();
    assert_eq!(namespaces("mwnat-9999999-"), Vec::<String>::new());
    let host = lab.public("h");
    assert!(host.run(&["ip", "addr"]).contains(&host.ip.to_string()));
    let own = format!("mwnat-{}-", std::process::id());
    assert!(!namespaces(&own).is_empty());
}
