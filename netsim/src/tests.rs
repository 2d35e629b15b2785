//! The simulator itself.

pub(crate) mod udp;

use std::{
    future::poll_fn, io::IoSliceMut, net::SocketAddr, sync::Arc, task::Poll, time::Duration,
};

use quinn::{
    AsyncUdpSocket,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{Delivery, LinkModel, Net, Sim};

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7000))
}

fn send(from: &Arc<dyn AsyncUdpSocket>, to: u8, contents: &[u8]) {
    let destination = addr(to);
    let transmit = Transmit {
        destination,
        ecn: None,
        contents,
        segment_size: None,
        src_ip: None,
    };
    from.try_send(&transmit).unwrap();
}

async fn receive(socket: &Arc<dyn AsyncUdpSocket>) -> (SocketAddr, Vec<u8>) {
    poll_fn(|cx| {
        let mut buffer = [0; 2048];
        let mut meta = [RecvMeta::default()];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        socket.poll_recv(cx, &mut slices, &mut meta).map(|count| {
            assert_eq!(count.unwrap(), 1);
            (meta[0].addr, buffer[..meta[0].len].to_vec())
        })
    })
    .await
}

/// All that arrives within a minute.
async fn receive_all(socket: &Arc<dyn AsyncUdpSocket>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Ok((_, payload)) = timeout(Duration::from_mins(1), receive(socket)).await {
        all.push(payload);
    }
    all
}

fn with_two<F, T>(seed: u64, link: LinkModel, test: F) -> T
where
    F: AsyncFnOnce(Net, Arc<dyn AsyncUdpSocket>, Arc<dyn AsyncUdpSocket>) -> T,
{
    let sim = Sim::new(seed, link);
    let net = sim.net();
    let (a, b) = (net.socket(addr(1)).unwrap(), net.socket(addr(2)).unwrap());
    sim.block_on(test(net, a, b))
}

#[test]
fn a_datagram_arrives_within_the_latency() {
    with_two(1, LinkModel::default(), async |_, a, b| {
        let start = Instant::now();
        send(&a, 2, b"hello");
        assert_eq!(receive(&b).await, (addr(1), b"hello".to_vec()));
        let latency = start.elapsed();
        // tokio's timers round up to the next millisecond.
        assert!((10..=21).contains(&latency.as_millis()), "{latency:?}");
    });
}

#[test]
fn an_earlier_arrival_wakes_a_waiting_reader() {
    with_two(1, LinkModel::default(), async |net, a, b| {
        net.set_hook(|datagram| {
            let slow = datagram.payload == b"slow";
            let delay = Duration::from_secs(if slow { 5 } else { 0 });
            vec![Delivery {
                delay,
                ..Delivery::of(datagram.payload)
            }]
        });
        send(&a, 2, b"slow");
        let reader = tokio::spawn(async move { receive_all(&b).await });
        sleep(Duration::from_millis(100)).await;
        send(&a, 2, b"fast");
        assert_eq!(reader.await.unwrap(), [b"fast".to_vec(), b"slow".to_vec()]);
    });
}

#[test]
fn the_share_of_losses_is_as_asked() {
    let link = LinkModel {
        loss: 0.3,
        ..LinkModel::default()
    };
    with_two(1, link, async |_, a, b| {
        for n in 0..2000u16 {
            send(&a, 2, &n.to_be_bytes());
        }
        let arrived = receive_all(&b).await.len();
        assert!((1300..=1500).contains(&arrived), "{arrived} of 2000");
    });
}

#[test]
fn all_chance_comes_from_the_seed() {
    let run = |seed| {
        let link = LinkModel {
            loss: 0.3,
            ..LinkModel::default()
        };
        with_two(seed, link, async |net, a, b| {
            for n in 0..100u8 {
                send(&a, 2, &[n]);
            }
            // Answers depend on losses and order, and go into the trace.
            for payload in receive_all(&b).await {
                send(&b, 1, &vec![0; payload[0].into()]);
                sleep(Duration::from_millis(payload[0].into())).await;
            }
            (net.trace_hash(), net.sent())
        })
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_hook_decides_what_arrives() {
    with_two(1, LinkModel::default(), async |net, a, b| {
        net.set_hook(|datagram| match datagram.payload {
            b"drop" => vec![],
            b"double" => vec![Delivery::of(b"double"), Delivery::of(b"double")],
            _ => vec![Delivery::of(b"altered")],
        });
        for payload in [&b"drop"[..], b"double", b"alter"] {
            send(&a, 2, payload);
        }
        let mut arrived = receive_all(&b).await;
        arrived.sort();
        assert_eq!(arrived, [&b"altered"[..], b"double", b"double"]);
        net.clear_hook();
        send(&a, 2, b"drop");
        assert_eq!(receive(&b).await.1, b"drop");
    });
}

#[test]
fn a_partition_cuts_both_ways_until_it_heals() {
    with_two(1, LinkModel::default(), async |net, a, b| {
        net.partition(addr(1), addr(2));
        send(&a, 2, b"lost");
        send(&b, 1, b"lost");
        assert!(receive_all(&a).await.is_empty() && receive_all(&b).await.is_empty());
        net.heal(addr(2), addr(1));
        send(&a, 2, b"through");
        assert_eq!(receive(&b).await.1, b"through");
    });
}

#[test]
fn wires_lose_what_is_too_large_or_goes_nowhere() {
    with_two(1, LinkModel::default(), async |net, a, b| {
        send(&a, 2, &[0; 1473]);
        send(&a, 2, &[0; 1472]);
        send(&a, 9, b"nobody");
        assert_eq!(receive_all(&b).await, [vec![0; 1472]]);
        assert_eq!(net.sent(), 3);
    });
}

#[test]
fn an_attacker_needs_no_socket() {
    with_two(1, LinkModel::default(), async |net, _a, b| {
        net.inject(addr(66), addr(2), b"forged");
        assert_eq!(receive(&b).await, (addr(66), b"forged".to_vec()));
        assert_eq!(net.sent(), 0, "the trace is of the nodes' own doing");
    });
}

#[test]
fn an_address_is_taken_until_its_socket_is_dropped() {
    with_two(1, LinkModel::default(), async |net, a, _b| {
        assert_eq!(
            net.socket(addr(1)).unwrap_err().kind(),
            std::io::ErrorKind::AddrInUse
        );
        drop(a);
        assert!(net.socket(addr(1)).is_ok());
    });
}

#[test]
fn nothing_arrives_at_once() {
    with_two(1, LinkModel::default(), async |_, a, b| {
        send(&a, 2, b"later");
        let first = poll_fn(|cx| {
            let mut buffer = [0; 16];
            let mut slices = [IoSliceMut::new(&mut buffer)];
            Poll::Ready(
                b.poll_recv(cx, &mut slices, &mut [RecvMeta::default()])
                    .is_ready(),
            )
        });
        assert!(!first.await);
    });
}

#[test]
fn entropy_repeats_and_differs_between_nodes() {
    use meshwork_identity::noise::Entropy;
    let draw = |seed| {
        let net = Sim::new(seed, LinkModel::default()).net();
        let (a, b) = (net.entropy(), net.entropy());
        let (mut one, mut two) = ([0; 32], [0; 32]);
        a.fill(&mut one);
        b.fill(&mut two);
        (one, two)
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let (one, two) = draw(1);
    assert_ne!(one, two);
}
