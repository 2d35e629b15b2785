//! Attackers who record, replay, forge and flood. Simulated.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use meshwork_mesh::transport::Entropy;
use meshwork_netsim::{Delivery, LinkModel, Net, Sim};

use crate::common::*;

/// Keeps what `from` sends.
fn record(net: &Net, from: u8) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let capture = Arc::new(Mutex::new(Vec::new()));
    let tape = capture.clone();
    net.set_hook(move |datagram| {
        if datagram.from == sim_addr(from) {
            tape.lock().unwrap().push(datagram.payload.to_vec());
        }
        vec![Delivery::of(datagram.payload)]
    });
    capture
}

#[test]
fn a_replayed_capture_changes_nothing() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        let capture = record(&net, 1);
        let connection = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        round_trip(&connection, b"secret order").await.unwrap();
        net.clear_hook();
        let capture = capture.lock().unwrap().clone();
        let replay = |from| {
            for datagram in &capture {
                net.inject(from, sim_addr(2), datagram);
            }
        };
        // While the connection lives, from its own and another address.
        replay(sim_addr(1));
        replay(sim_addr(9));
        tokio::time::sleep(Duration::from_secs(15)).await;
        round_trip(&connection, b"still works").await.unwrap();
        assert_eq!(b.stats().handshakes_completed, 1);
        assert_eq!(b.open_connections(), 1);
        // After it is gone.
        connection.close(0u32.into(), b"");
        a.wait_idle().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        replay(sim_addr(1));
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(b.stats().handshakes_completed, 1);
        assert_eq!(b.open_connections(), 0);
        // To the node after a restart.
        b.close(0, b"");
        b.wait_idle().await;
        drop(b);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let b = sim_endpoint(&net, 2, config(2));
        serve_echo(b.clone());
        replay(sim_addr(1));
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(b.stats().handshakes_completed, 0);
        assert_eq!(b.open_connections(), 0);
    });
}

#[test]
fn garbage_between_genuine_packets_changes_nothing() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        // Every datagram of the handshake arrives after three forgeries of itself.
        net.set_hook(|datagram| {
            let forgery = |position: usize| {
                let mut payload = datagram.payload.to_vec();
                let last = payload.len() - 1;
                payload[position.min(last)] ^= 0x80;
                Delivery::of(&payload)
            };
            vec![
                forgery(40),
                forgery(200),
                forgery(usize::MAX),
                Delivery {
                    payload: datagram.payload.to_vec(),
                    delay: Duration::from_millis(15),
                },
            ]
        });
        let connection = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        let capture = record(&net, 1);
        round_trip(&connection, b"one").await.unwrap();
        net.clear_hook();
        let genuine = capture.lock().unwrap().last().unwrap().clone();
        let before = b.stats().forged_packets;
        for n in 0..10_000usize {
            let mut forged = genuine.clone();
            let position = 9 + n % (forged.len() - 9);
            forged[position] ^= u8::try_from(n % 255).unwrap() + 1;
            net.inject(sim_addr(1), sim_addr(2), &forged);
            if n % 1000 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        round_trip(&connection, b"the next genuine one")
            .await
            .unwrap();
        assert!(
            b.stats().forged_packets - before >= 9_900,
            "{:?}",
            b.stats()
        );
        assert_eq!(b.stats().handshakes_completed, 1);
    });
}

#[test]
fn an_unproven_address_gets_at_most_three_times_what_it_sent() {
    for (retry_threshold, seed) in [(64, 1), (0, 2)] {
        let sim = Sim::new(seed, LinkModel::default());
        let net = sim.net();
        sim.block_on(async move {
            let mut listening = config(2);
            listening.retry_threshold = retry_threshold;
            let (a, b) = (
                sim_endpoint(&net, 1, config(1)),
                sim_endpoint(&net, 2, listening),
            );
            serve_echo(b.clone());
            let capture = record(&net, 1);
            let connection = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
            round_trip(&connection, &[0; 5000]).await.unwrap();
            connection.close(0u32.into(), b"");
            tokio::time::sleep(Duration::from_secs(5)).await;
            let capture = capture.lock().unwrap().clone();

            // Each of 200 spoofed addresses plays some of the capture, cut or whole.
            let answers = Arc::new(Mutex::new(BTreeMap::new()));
            let tally = answers.clone();
            net.set_hook(move |datagram| {
                *tally.lock().unwrap().entry(datagram.to).or_insert(0) += datagram.payload.len();
                vec![]
            });
            let mut sent = BTreeMap::new();
            let mut chance = 12345u64;
            for n in 0..200 {
                let spoofed = SocketAddr::from(([10, 1, 0, n], 9));
                for datagram in &capture {
                    chance = chance
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let keep = match chance >> 61 {
                        0 => continue,
                        1 => usize::try_from(chance >> 33).unwrap() % datagram.len(),
                        _ => datagram.len(),
                    };
                    *sent.entry(spoofed).or_insert(0) += keep;
                    net.inject(spoofed, sim_addr(2), &datagram[..keep]);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            tokio::time::sleep(Duration::from_mins(1)).await;
            let answers = answers.lock().unwrap();
            assert!(!answers.is_empty(), "the capture's first packet is genuine");
            for (address, bytes) in &*answers {
                let sent = sent.get(address).copied().unwrap_or(0);
                assert!(*bytes <= 3 * sent, "{address}: {bytes} bytes for {sent}");
            }
            assert_eq!(b.stats().handshakes_completed, 1);
        });
    }
}

#[test]
fn a_wrong_psk_draws_not_one_datagram() {
    for retry_threshold in [64, 0] {
        let sim = Sim::new(1, LinkModel::default());
        let net = sim.net();
        sim.block_on(async move {
            let mut listening = config(2);
            listening.retry_threshold = retry_threshold;
            let mut wrong = config(1);
            wrong.psks.current = psk(9);
            let (a, b) = (
                sim_endpoint(&net, 1, wrong),
                sim_endpoint(&net, 2, listening),
            );
            serve_echo(b.clone());
            net.set_hook(|datagram| {
                assert_eq!(datagram.from, sim_addr(1), "the listener is silent");
                vec![Delivery::of(datagram.payload)]
            });
            a.connect(sim_addr(2), Some(node_id(2))).await.unwrap_err();
            assert!(b.stats().unknown_initials > 1, "{:?}", b.stats());
        });
    }
}

#[test]
fn a_flood_of_strangers_leaves_no_trace() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        let capture = record(&net, 1);
        let _friend = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        let genuine = capture.lock().unwrap()[0].clone();
        net.set_hook(|datagram| {
            assert!(
                datagram.to.ip() != Ipv4Addr::new(10, 2, 0, 1),
                "strangers get no answer"
            );
            vec![Delivery::of(datagram.payload)]
        });
        for n in 0..5_000u16 {
            let mut forged = genuine.clone();
            // Another first connection id, so that each looks like an attempt of its own.
            forged[6..8].copy_from_slice(&n.to_be_bytes());
            net.inject(
                SocketAddr::from(([10, 2, 0, 1], n + 1)),
                sim_addr(2),
                &forged,
            );
            if n % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let late_friend = sim_endpoint(&net, 3, config(3));
        let connection = late_friend
            .connect(sim_addr(2), Some(node_id(2)))
            .await
            .unwrap();
        round_trip(&connection, b"served").await.unwrap();
        assert_eq!(b.stats().unknown_initials, 5_000);
        assert_eq!(b.open_connections(), 2);
    });
}

#[test]
fn no_mutation_of_recorded_datagrams_disturbs_anybody() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        let capture = Arc::new(Mutex::new(Vec::new()));
        let tape = capture.clone();
        net.set_hook(move |datagram| {
            tape.lock()
                .unwrap()
                .push((datagram.from, datagram.to, datagram.payload.to_vec()));
            vec![Delivery::of(datagram.payload)]
        });
        let connection = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        round_trip(&connection, &[1; 3000]).await.unwrap();
        net.clear_hook();
        let capture = capture.lock().unwrap().clone();
        let entropy = net.entropy();
        let draw = |below: usize| {
            let mut bytes = [0; 8];
            entropy.fill(&mut bytes);
            usize::try_from(u64::from_be_bytes(bytes) % u64::try_from(below).unwrap()).unwrap()
        };
        for n in 0..20_000 {
            let (from, to, payload) = &capture[draw(capture.len())];
            let mut payload = payload.clone();
            // Early bytes, which parsers look at, as often as all others.
            for _ in 0..=draw(4) {
                let span = if draw(2) == 0 {
                    payload.len()
                } else {
                    payload.len().min(40)
                };
                payload[draw(span)] = u8::try_from(draw(256)).unwrap();
            }
            let cut = if draw(4) == 0 {
                draw(payload.len())
            } else {
                payload.len()
            };
            net.inject(*from, *to, &payload[..cut]);
            if n % 1000 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        round_trip(&connection, b"undisturbed").await.unwrap();
        for endpoint in [&a, &b] {
            assert_eq!(endpoint.stats().handshakes_completed, 1);
            assert_eq!(endpoint.open_connections(), 1);
        }
    });
}
