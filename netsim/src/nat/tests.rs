//! Translators and firewalls, as packets see them.

mod chains;
mod models;
mod puncher;

use std::net::{IpAddr, SocketAddr};

use crate::{Host, LinkModel, Net, Sim, nat::NatModel, tests::udp::Udp};

/// Runs a test in a new network.
fn in_net<T>(seed: u64, test: impl AsyncFnOnce(Net) -> T) -> T {
    let sim = Sim::new(seed, LinkModel::default());
    let net = sim.net();
    sim.block_on(test(net))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A socket on the internet.
fn public(net: &Net, text: &str) -> Udp {
    let addr = addr(text);
    Udp::bind(&net.host_on_internet(addr.ip()), addr.port())
}

/// A host behind translators, from the host outwards. The outermost has this address outside.
fn behind(net: &Net, external: &str, nats: &[NatModel]) -> Host {
    let mut lan = crate::Lan::INTERNET;
    for (level, model) in nats.iter().rev().enumerate() {
        let outside = if level == 0 {
            ip(external)
        } else {
            IpAddr::from([10, 60, u8::try_from(level).unwrap(), 1])
        };
        let inside = net.lan();
        net.nat(inside, lan, outside, *model);
        lan = inside;
    }
    let own = if nats.is_empty() {
        ip(external)
    } else {
        ip("192.168.1.10")
    };
    net.host(&[(lan, own)])
}
