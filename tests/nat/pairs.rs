//! Two agents behind each kind of pair of NATs: they find each other, calls go through, and their
//! connection takes the way that theory allows.

use crate::support::node::Member;
use crate::support::{Lab, Nat, eventually, so};

/// Where an agent lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the public segment.
    Public,
    /// On a LAN of its own, behind this NAT.
    Behind(Nat),
}

const PRESERVE: Place = Place::Behind(Nat::Preserve);
const RANDOM: Place = Place::Behind(Nat::Random);
const RANDOM_FULLY: Place = Place::Behind(Nat::RandomFully);
const OPEN: Place = Place::Behind(Nat::Open);

/// A hub, and an agent in each of two places.
struct Pair {
    hub: Member,
    a: Member,
    b: Member,
    // Last: what runs in it ends before it.
    _lab: Lab,
}

impl Pair {
    fn new(places: [Place; 2]) -> Option<Self> {
        let lab = Lab::new()?;
        let hub = Member::hub(&lab.public("hub"));
        let [a, b] = [("a", places[0]), ("b", places[1])].map(|(name, place)| {
            let host = match place {
                Place::Public => lab.public(name),
                Place::Behind(nat) => lab.behind(&lab.router(&format!("r{name}"), nat), name),
            };
            Member::joins(&hub, &host, name, "agent", "")
        });
        Some(Self {
            hub,
            a,
            b,
            _lab: lab,
        })
    }

    /// They see each other, the manager sees both, and a user behind one NAT calls the other's node.
    fn work(&self) {
        eventually("both in the manager's list", || {
            let nodes = self.hub.json(&["node", "ls"])?;
            let names = nodes.as_array().into_iter().flatten();
            let names: Vec<_> = names.filter_map(|node| node["name"].as_str()).collect();
            so(["a", "b"].iter().all(|name| names.contains(name)), &nodes)
        });
        for (from, to) in [(&self.a, &self.b), (&self.b, &self.a)] {
            eventually("the other agent is a peer", || from.peer(to).map(drop));
            eventually("a call to the other agent", || {
                let status = from.json(&["--server", &to.id(), "status"])?;
                so(status["node"] == to.id().as_str(), &status)
            });
        }
    }

    /// Both ends' connection is direct in the end.
    fn is_direct(&self) {
        self.work();
        self.a.reaches(&self.b, "direct");
        self.b.reaches(&self.a, "direct");
    }

    /// Both ends' connection takes the hub's relay, and stays there when direct ways were tried.
    fn is_relayed(&self) {
        self.work();
        let via = format!("relay via {}", &self.hub.id()[..10]);
        self.a.reaches(&self.b, &via);
        self.b.reaches(&self.a, &via);
    }
}

#[test]
fn two_preserving_nats_are_punched() {
    if let Some(pair) = Pair::new([PRESERVE, PRESERVE]) {
        pair.is_direct();
    }
}

#[test]
fn a_preserving_and_a_random_nat_need_a_relay() {
    // The kernel's NAT filters by address and port, and the other side's port is never known.
    if let Some(pair) = Pair::new([PRESERVE, RANDOM]) {
        pair.is_relayed();
    }
}

#[test]
fn two_random_nats_need_a_relay() {
    if let Some(pair) = Pair::new([RANDOM, RANDOM_FULLY]) {
        pair.is_relayed();
    }
}

#[test]
fn a_public_machine_is_reached_from_behind_a_random_nat() {
    if let Some(pair) = Pair::new([Place::Public, RANDOM]) {
        pair.is_direct();
    }
}

#[test]
fn a_forwarded_machine_is_reached_from_behind_a_random_nat() {
    if let Some(pair) = Pair::new([OPEN, RANDOM_FULLY]) {
        pair.is_direct();
    }
}

#[test]
fn machines_of_one_lan_talk_over_it() {
    for nat in [Nat::Preserve, Nat::Random] {
        let Some(lab) = Lab::new() else { return };
        let hub = Member::hub(&lab.public("hub"));
        let router = lab.router("r", nat);
        let [a, b] = ["a", "b"].map(|name| {
            let host = lab.behind(&router, name);
            Member::joins(&hub, &host, name, "agent", "")
        });
        let pair = Pair {
            hub,
            a,
            b,
            _lab: lab,
        };
        pair.is_direct();
        for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            let peer = from.peer(to).unwrap();
            let address = peer["address"].as_str().unwrap();
            assert!(
                address.starts_with(&to.host.ip.to_string()),
                "{nat:?}: {peer}"
            );
        }
    }
}

#[test]
fn two_firewalls_of_ipv6_are_punched() {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public_with_ipv6("hub"));
    let [a, b] = ["a", "b"].map(|name| {
        let host = lab.behind(&lab.router(&format!("r{name}"), Nat::Firewall6), name);
        Member::joins(&hub, &host, name, "agent", "")
    });
    let pair = Pair {
        hub,
        a,
        b,
        _lab: lab,
    };
    pair.is_direct();
}
