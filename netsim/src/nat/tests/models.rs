//! One translator.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use tokio::time::sleep;

use super::*;
use crate::nat::{DEPENDENCES, Dependence, Firewall, Ports};

const EXTERNAL: &str = "203.0.113.1";

/// A host behind one translator, and three addresses on the internet: two ports of one host, and
/// another host.
fn stage(net: &Net, model: NatModel) -> (Udp, [Udp; 3]) {
    let inside = Udp::bind(&behind(net, EXTERNAL, &[model]), 7000);
    let outside = [
        "198.51.100.1:1000",
        "198.51.100.1:2000",
        "198.51.100.2:1000",
    ];
    (inside, outside.map(|text| public(net, text)))
}

#[test]
fn a_mapping_serves_the_destinations_that_it_should() {
    for model in NatModel::kinds() {
        in_net(1, async |net| {
            let (inside, outside) = stage(&net, model);
            let mut seen = Vec::new();
            for other in &outside {
                let from = inside.reach(other.addr(), other).await.unwrap();
                assert_eq!(from.ip(), ip(EXTERNAL), "{model}");
                assert_eq!(inside.reach(other.addr(), other).await, Some(from), "again");
                seen.push(from);
            }
            let same = (seen[0] == seen[1], seen[0] == seen[2]);
            let expected = match model.mapping {
                Dependence::EndpointIndependent => (true, true),
                Dependence::AddressDependent => (true, false),
                Dependence::AddressPortDependent => (false, false),
            };
            assert_eq!(same, expected, "{model}");
        });
    }
}

#[test]
fn a_filter_lets_in_whom_it_should() {
    for model in NatModel::kinds() {
        in_net(1, async |net| {
            let (inside, [asked, port, host]) = stage(&net, model);
            let mapped = inside.reach(asked.addr(), &asked).await.unwrap();
            assert!(
                asked.reach(mapped, &inside).await.is_some(),
                "{model}: who was asked"
            );
            let let_in = (
                port.reach(mapped, &inside).await.is_some(),
                host.reach(mapped, &inside).await.is_some(),
            );
            let expected = match model.filtering {
                Dependence::EndpointIndependent => (true, true),
                Dependence::AddressDependent => (true, false),
                Dependence::AddressPortDependent => (false, false),
            };
            assert_eq!(let_in, expected, "{model}");
        });
    }
}

#[test]
fn nothing_comes_in_where_nothing_went_out() {
    in_net(1, async |net| {
        let (inside, [other, ..]) = stage(&net, NatModel::carrier());
        for port in [1024, 7000, 65535] {
            other.send(SocketAddr::new(ip(EXTERNAL), port), b"scan");
        }
        // Nor does the address inside mean anything outside.
        other.send(inside.addr(), b"private");
        assert_eq!(inside.soon().await, None);
    });
}

#[test]
fn a_mapping_ends_when_the_inside_is_silent() {
    let model = NatModel::home().lifetime(Duration::from_secs(30));
    in_net(1, async |net| {
        let (inside, [other, ..]) = stage(&net, model);
        let first = inside.reach(other.addr(), &other).await.unwrap();
        for _ in 0..5 {
            sleep(Duration::from_secs(25)).await;
            // The inside keeps it alive, the outside would not.
            assert_eq!(inside.reach(other.addr(), &other).await, Some(first));
        }
        for _ in 0..5 {
            other.send(first, b"hello");
            sleep(Duration::from_secs(7)).await;
        }
        inside.drain().await;
        assert_eq!(other.reach(first, &inside).await, None, "it has ended");
        assert_ne!(inside.reach(other.addr(), &other).await, Some(first));
    });
}

#[test]
fn a_hard_lifetime_ends_a_mapping_in_use() {
    let model = NatModel::carrier().hard_lifetime(Duration::from_mins(1));
    in_net(1, async |net| {
        let (inside, [other, ..]) = stage(&net, model);
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(inside.reach(other.addr(), &other).await.unwrap());
            sleep(Duration::from_secs(3)).await;
        }
        // Three minutes, in which each lasts for one.
        assert_eq!(seen.len(), 3, "{seen:?}");
    });
}

#[test]
fn ports_are_given_as_the_model_says() {
    let ports_of = |ports| {
        in_net(1, async |net| {
            let model = NatModel::symmetric().ports(ports);
            let (inside, outside) = stage(&net, model);
            let mut seen = Vec::new();
            for other in &outside {
                let from = inside.reach(other.addr(), other).await.unwrap();
                seen.push(from.port());
            }
            seen
        })
    };
    assert_eq!(ports_of(Ports::Preserve), [7000, 7001, 7002]);
    let sequential = ports_of(Ports::Sequential);
    assert_eq!(sequential[1], sequential[0] + 1);
    assert_eq!(sequential[2], sequential[0] + 2);
    let random = ports_of(Ports::Random);
    assert!(random[1].abs_diff(random[0]) > 1 && random[2].abs_diff(random[1]) > 1);
}

#[test]
fn a_restarted_router_forgets() {
    in_net(1, async |net| {
        let lan = net.lan();
        let nat = net.nat(lan, crate::Lan::INTERNET, ip(EXTERNAL), NatModel::carrier());
        let inside = Udp::bind(&net.host(&[(lan, ip("192.168.1.10"))]), 7000);
        let other = public(&net, "198.51.100.1:1000");
        let mapped = inside.reach(other.addr(), &other).await.unwrap();
        assert_eq!(net.gateway_load(nat), 1);
        net.restart_gateway(nat);
        assert_eq!(net.gateway_load(nat), 0);
        assert_eq!(other.reach(mapped, &inside).await, None);
    });
}

#[test]
fn a_firewall_translates_nothing_and_lets_in_what_was_asked() {
    for filtering in DEPENDENCES {
        in_net(1, async |net| {
            let lan = net.lan();
            let rules = Firewall {
                filtering,
                lifetime: Duration::from_secs(30),
            };
            net.firewall(lan, crate::Lan::INTERNET, true, rules);
            let own = ip("2001:db8:1::10");
            let inside = Udp::bind(&net.host(&[(lan, own)]), 7000);
            let [asked, port, host] = [
                "[2001:db8::1]:1000",
                "[2001:db8::1]:2000",
                "[2001:db8::2]:1000",
            ]
            .map(|text| public(&net, text));
            assert_eq!(asked.reach(inside.addr(), &inside).await, None, "unasked");
            let seen = inside.reach(asked.addr(), &asked).await.unwrap();
            assert_eq!(seen, SocketAddr::new(own, 7000));
            assert!(asked.reach(seen, &inside).await.is_some());
            let let_in = (
                port.reach(seen, &inside).await.is_some(),
                host.reach(seen, &inside).await.is_some(),
            );
            let expected = match filtering {
                Dependence::EndpointIndependent => (true, true),
                Dependence::AddressDependent => (true, false),
                Dependence::AddressPortDependent => (false, false),
            };
            assert_eq!(let_in, expected, "{filtering:?}");
            sleep(Duration::from_secs(31)).await;
            assert_eq!(asked.reach(seen, &inside).await, None, "it has ended");
        });
    }
}

fn dependence() -> impl Strategy<Value = Dependence> {
    prop::sample::select(DEPENDENCES.to_vec())
}

fn model() -> impl Strategy<Value = NatModel> {
    let ports = prop::sample::select(vec![Ports::Preserve, Ports::Random, Ports::Sequential]);
    (dependence(), dependence(), ports, 10..100u64, any::<bool>()).prop_map(
        |(mapping, filtering, ports, life, hard)| {
            let model = NatModel::new(mapping, filtering)
                .ports(ports)
                .lifetime(Duration::from_secs(life));
            if hard {
                model.hard_lifetime(Duration::from_secs(2 * life))
            } else {
                model
            }
        },
    )
}

/// One datagram: from which host and port inside, to which host and port outside, how long after the
/// one before.
fn outgoing() -> impl Strategy<Value = (u8, u16, u8, u16, u64)> {
    (0..3u8, 0..2u16, 0..3u8, 0..2u16, 0..40u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However hosts send: at no time do two of them share an outside address, and an answer to it
    /// reaches the one that sent, if it comes from where that sent to.
    #[test]
    fn outside_addresses_are_unique_and_lead_back(
        model in model(),
        sends in prop::collection::vec(outgoing(), 1..60),
    ) {
        use crate::nat::Table;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let mut table = Table::new(model, ip(EXTERNAL), 1);
        let mut now = tokio::time::Instant::now();
        // Outside port, with who has it and since when nothing was sent.
        let mut held: Vec<(SocketAddr, SocketAddr, SocketAddr, tokio::time::Instant)> = Vec::new();
        for (host, port, to, to_port, wait) in sends {
            now += Duration::from_secs(wait);
            let inside = SocketAddr::from(([10, 0, 0, host], 7000 + port));
            let remote = SocketAddr::from(([198, 51, 100, to], 1000 + to_port));
            let outside = table.outbound(now, inside, remote).unwrap();
            prop_assert!(outside.port() >= 1024);
            prop_assert_eq!(table.inbound(now, remote, outside.port()), Some(inside));
            for (other_inside, _, other_outside, at) in &held {
                let alive = now - *at <= model.lifetime && model.hard_lifetime.is_none();
                if alive && *other_inside != inside {
                    prop_assert_ne!(*other_outside, outside, "two hosts share a port");
                }
            }
            held.retain(|(i, r, ..)| (*i, *r) != (inside, remote));
            held.push((inside, remote, outside, now));
            // Who was never sent to gets in only where the filter looks at nothing.
            let stranger = SocketAddr::from(([192, 0, 2, 1], 1));
            let open = model.filtering == Dependence::EndpointIndependent;
            prop_assert_eq!(table.inbound(now, stranger, outside.port()).is_some(), open);
        }
        let later = now + model.lifetime + Duration::from_secs(1);
        prop_assert_eq!(table.len(later), 0, "all mappings end");
        for (_, remote, outside, _) in held {
            prop_assert_eq!(table.inbound(later, remote, outside.port()), None);
        }
    }
}
