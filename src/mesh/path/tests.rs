//! Paths under real connections, in a simulated network: peers that move, NATs that forget, relays
//! that carry, strangers that forge.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::AtomicU16;
use std::task::{Context, Poll};

use meshwork_identity::{Identity, MeshId, Psk};
use meshwork_netsim::{Delivery, LinkModel, Net, Sim};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{Connection, UdpPoller};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::transport::{Endpoint, PskSet, TransportConfig, peer_id};

/// Longest wait for anything, in virtual time.
const PATIENCE: Duration = Duration::from_secs(20);
/// One way.
const LATENCY: Duration = Duration::from_millis(15);
/// Bytes of the streams that must survive a change of the path.
const LONG: usize = 3_000_000;

/// A socket whose address can change under its owner, as behind a NAT that forgets.
#[derive(Debug)]
struct Roaming(Mutex<Arc<dyn AsyncUdpSocket>>);

impl Roaming {
    fn now(&self) -> Arc<dyn AsyncUdpSocket> {
        self.0.lock().unwrap().clone()
    }

    fn move_to(&self, socket: Arc<dyn AsyncUdpSocket>) {
        *self.0.lock().unwrap() = socket;
    }
}

impl AsyncUdpSocket for Roaming {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.now().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.now().try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.now().poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.now().local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A node without all that lies above its paths.
struct Peer {
    node: NodeId,
    endpoint: Endpoint,
    paths: Arc<Paths>,
    socket: Arc<Roaming>,
    stop: CancellationToken,
    net: Net,
}

fn node_id(n: u8) -> NodeId {
    Identity::from_seed(&[n; 32]).node_id()
}

fn v4(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7000))
}

fn v6(n: u8) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)], 7000))
}

impl Peer {
    /// Node `n`, which echoes streams.
    fn start(net: &Net, n: u8, addr: SocketAddr) -> Self {
        let psks = PskSet {
            current: Psk::from_bytes([1; 32]),
            previous: None,
        };
        let identity = Identity::from_seed(&[n; 32]);
        let node = identity.node_id();
        let mut config = TransportConfig::new(identity, MeshId::from_bytes([1; 16]), psks);
        config.entropy = net.entropy();
        config.idle_timeout = PATIENCE;
        config.keep_alive = Some(PATIENCE / 3);
        let socket = Arc::new(Roaming(Mutex::new(net.socket(addr).unwrap())));
        let ports = AtomicU16::new(addr.port());
        let bind: BindSocket = Arc::new({
            let net = net.clone();
            move |addr| {
                let port = ports.fetch_add(1, Ordering::Relaxed) + 1;
                net.socket(SocketAddr::new(addr.ip(), port))
            }
        });
        let paths = Paths::new(node, socket.clone(), bind, PathConfig::default()).unwrap();
        let endpoint = Endpoint::bind(&config, net.runtime(), paths.socket()).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(paths.clone().run(stop.clone()));
        tokio::spawn(accept(endpoint.clone(), paths.clone()));
        Self {
            node,
            endpoint,
            paths,
            socket,
            stop,
            net: net.clone(),
        }
    }

    async fn dial(&self, to: &Peer, addrs: &[SocketAddr]) -> Result<Conn, String> {
        let _dial = self.paths.dial(to.node, addrs);
        let conn = self.endpoint.connect(virtual_addr(&to.node), Some(to.node));
        let conn = conn.await.map_err(|error| error.to_string())?;
        let bound = self.paths.bind(to.node, &conn).unwrap();
        Ok(Conn { conn, bound })
    }

    /// From now on the network shows this node at another port; nothing arrives at the old one.
    fn roam(&self, port: u16) {
        let mut addr = self.socket.local_addr().unwrap();
        addr.set_port(port);
        self.socket.move_to(self.net.socket(addr).unwrap());
        // The reader of the old socket is told of the new one, as a NAT's inside does not change.
        self.paths.inbound.wake();
    }

    /// Takes the place of a node that has died.
    fn roam_to(&self, dead: &Peer) {
        let place = dead.addr();
        let aside = SocketAddr::new(place.ip(), 1);
        dead.socket.move_to(self.net.socket(aside).unwrap());
        self.net.partition(aside, v4(1));
        self.socket.move_to(self.net.socket(place).unwrap());
        self.paths.inbound.wake();
    }

    fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Conn {
    conn: Connection,
    bound: Bound,
}

async fn accept(endpoint: Endpoint, paths: Arc<Paths>) {
    while let Some(incoming) = endpoint.accept().await {
        let paths = paths.clone();
        tokio::spawn(async move {
            let Ok(conn) = incoming.complete().await else {
                return;
            };
            let _bound = paths.bind(peer_id(&conn), &conn);
            while let Ok((mut send, mut recv)) = conn.accept_bi().await {
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(Some(len)) = recv.read(&mut buffer).await {
                        if send.write_all(&buffer[..len]).await.is_err() {
                            return;
                        }
                    }
                    let _ = send.finish();
                });
            }
        });
    }
}

/// Sends a numbered stream there and back, whole and in order, with a pause now and then so that it
/// lasts for some seconds.
fn long_echo(conn: &Connection) -> JoinHandle<Duration> {
    let conn = conn.clone();
    tokio::spawn(async move {
        let (mut send, mut recv) = conn.open_bi().await.unwrap();
        let bytes: Vec<u8> = (0..=250u8).cycle().take(LONG).collect();
        let expected = bytes.clone();
        tokio::spawn(async move {
            for chunk in bytes.chunks(LONG / 100) {
                send.write_all(chunk).await.unwrap();
                sleep(Duration::from_millis(40)).await;
            }
            send.finish().unwrap();
            // The stream's end is the other half's.
            let _ = send.stopped().await;
        });
        let (mut got, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
        let mut buffer = vec![0; 65536];
        while let Some(len) = recv.read(&mut buffer).await.unwrap() {
            got.extend_from_slice(&buffer[..len]);
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        assert!(got == expected, "{} of {LONG} bytes", got.len());
        longest
    })
}

async fn echo(conn: &Connection) {
    let (mut send, mut recv) = conn.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_to_end(100).await.unwrap(), b"hello");
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn in_sim<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Net) -> F) {
    // Without reordering, which QUIC takes for loss and slows down.
    let link = LinkModel {
        latency: LATENCY..LATENCY,
        loss: 0.0,
    };
    let sim = Sim::new(seed, link);
    let net = sim.net();
    sim.block_on(async { timeout(Duration::from_mins(2), test(net)).await.unwrap() });
}

/// Carries what both have for relays, as from `relay`.
fn relay_between(relay: NodeId, one: &Peer, other: &Peer) -> [JoinHandle<()>; 2] {
    let half = |from: &Peer, to: &Peer| {
        let (from, src, to) = (from.paths.clone(), from.node, to.paths.clone());
        tokio::spawn(async move {
            while let Some((via, _, packet)) = from.relay_queue().next().await {
                sleep(Duration::from_millis(5)).await;
                if via == relay {
                    to.inject(src, via, &packet);
                }
            }
        })
    };
    [half(one, other), half(other, one)]
}

fn is_probe(payload: &[u8]) -> bool {
    Probe::looks_like_one(payload)
}

#[test]
fn nodes_are_dialled_by_id_over_either_family() {
    for addr in [v4, v6] {
        in_sim(1, |net| async move {
            let (a, b) = (Peer::start(&net, 1, addr(1)), Peer::start(&net, 2, addr(2)));
            let dead = SocketAddr::new(addr(9).ip(), 1);
            let conn = a.dial(&b, &[dead, b.addr()]).await.unwrap();
            echo(&conn.conn).await;
            let view = conn.bound.view(conn.conn.remote_address());
            assert_eq!(view, ("direct".to_owned(), addr(2)));
            until("b sees a", || b.paths.route(&a.node).is_some()).await;
            assert_eq!(b.paths.route(&a.node).unwrap().addr(), Some(addr(1)));
            until("each knows how the other sees it", || {
                a.paths.reflexive() == [(b.node, addr(1))]
                    && b.paths.reflexive() == [(a.node, addr(2))]
            })
            .await;
        });
    }
}

#[test]
fn one_address_that_two_nodes_claim_serves_the_one_that_is_there() {
    in_sim(2, |net| async move {
        let (a, b, c) = (
            Peer::start(&net, 1, v4(1)),
            Peer::start(&net, 2, v4(2)),
            Peer::start(&net, 3, v4(3)),
        );
        // c is reached first, so its address is proven to be c's when b is dialled there.
        let to_c = a.dial(&c, &[c.addr()]).await.unwrap();
        let addrs = [c.addr(), b.addr()];
        let mut dial = a.paths.dial(b.node, &addrs);
        let virt = virtual_addr(&b.node);
        let mut tries = 0;
        let conn = loop {
            tries += 1;
            match a.endpoint.connect(virt, Some(b.node)).await {
                Ok(conn) => break conn,
                Err(_) => assert_eq!(dial.refute().and_then(|route| route.addr()), Some(c.addr())),
            }
        };
        assert!(tries <= 2);
        let _bound = a.paths.bind(b.node, &conn).unwrap();
        drop(dial);
        echo(&conn).await;
        echo(&to_c.conn).await;
        assert_eq!(a.paths.route(&b.node).unwrap().addr(), Some(b.addr()));
        assert_eq!(a.paths.route(&c.node).unwrap().addr(), Some(c.addr()));
    });
}

#[test]
fn two_dials_share_an_address() {
    in_sim(3, |net| async move {
        let (a, b, c) = (
            Peer::start(&net, 1, v4(1)),
            Peer::start(&net, 2, v4(2)),
            Peer::start(&net, 3, v4(3)),
        );
        let addrs = [v4(9), b.addr()];
        let more = [v4(9), c.addr()];
        let (to_b, to_c) = tokio::join!(a.dial(&b, &addrs), a.dial(&c, &more));
        let (to_b, to_c) = (to_b.unwrap(), to_c.unwrap());
        tokio::join!(echo(&to_b.conn), echo(&to_c.conn));
    });
}

#[test]
fn both_dial_each_other() {
    for seed in 0..20 {
        in_sim(seed, |net| async move {
            net.set_link(LinkModel {
                loss: 0.1,
                ..LinkModel::default()
            });
            let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
            let (to_b, to_a) = (vec![b.addr()], vec![a.addr()]);
            let (ab, ba) = tokio::join!(a.dial(&b, &to_b), b.dial(&a, &to_a));
            let (ab, ba) = (ab.unwrap(), ba.unwrap());
            tokio::join!(echo(&ab.conn), echo(&ba.conn));
            // What is kept outlives the other, and the time in which handshakes are remembered.
            ab.conn.close(1u32.into(), b"");
            drop(ab);
            for _ in 0..20 {
                sleep(Duration::from_secs(2)).await;
                echo(&ba.conn).await;
            }
        });
    }
}

/// A peer that has died comes back at the same place, while we still know it, and dial it, elsewhere.
#[test]
fn who_comes_back_is_let_in_where_it_is() {
    for linked in [true, false] {
        in_sim(3, |net| async move {
            let a = Peer::start(&net, 1, v4(1));
            let first = Peer::start(&net, 2, v4(2));
            let conn = a.dial(&first, &[first.addr()]).await.unwrap();
            echo(&conn.conn).await;
            first.stop.cancel();
            net.partition(v4(1), v4(2));
            let conn = if linked {
                // Not noticed yet: the path has gone over to a relay that leads nowhere.
                a.paths.add_relay(first.node, node_id(9));
                a.paths.inject(first.node, node_id(9), &[0x41; 60]);
                Some(conn)
            } else {
                conn.conn.close(0u32.into(), b"");
                drop(conn);
                None
            };
            let second = Peer::start(&net, 2, v4(3));
            second.roam_to(&first);
            net.heal(v4(1), v4(2));
            let (nowhere, place) = ([v4(9)], [a.addr()]);
            let (back, ours) = tokio::join!(
                second.dial(&a, &place),
                timeout(Duration::from_secs(2), a.dial(&second, &nowhere))
            );
            assert!(ours.is_err());
            let back = back.unwrap();
            for _ in 0..5 {
                echo(&back.conn).await;
                sleep(Duration::from_secs(1)).await;
            }
            drop(conn);
        });
    }
}

#[test]
fn a_dialler_whose_address_changes_loses_no_byte() {
    in_sim(4, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        let stream = long_echo(&conn.conn);
        for port in 8001..8004 {
            sleep(Duration::from_secs(1)).await;
            a.roam(port);
        }
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_secs(1), "stalled for {stall:?}");
        // quinn has followed at once; whoever asks the path layer is told by the next ping.
        a.paths.candidates(b.node, &[b.addr()]);
        until("b has heard of it", || {
            b.paths.route(&a.node).unwrap().addr() == Some(a.addr())
        })
        .await;
    });
}

#[test]
fn an_acceptor_whose_address_changes_loses_no_byte() {
    in_sim(5, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        let stream = long_echo(&conn.conn);
        for port in 8001..8004 {
            sleep(Duration::from_secs(1)).await;
            b.roam(port);
        }
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_secs(1), "stalled for {stall:?}");
        assert_eq!(a.paths.route(&b.node).unwrap().addr(), Some(b.addr()));
    });
}

#[test]
fn peers_meet_through_a_relay_and_go_on_directly() {
    in_sim(6, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        net.partition(a.addr(), b.addr());
        let relay = node_id(9);
        let _carriers = relay_between(relay, &a, &b);
        a.paths.add_relay(b.node, relay);
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        echo(&conn.conn).await;
        assert_eq!(a.paths.route(&b.node), Some(Route::Relay(relay)));
        assert_eq!(b.paths.route(&a.node), Some(Route::Relay(relay)));
        let (text, _) = conn.bound.view(conn.conn.remote_address());
        assert_eq!(text, format!("relay via {}", relay.short()));

        let stream = long_echo(&conn.conn);
        sleep(Duration::from_millis(500)).await;
        net.heal(a.addr(), b.addr());
        a.paths.punch(b.node, &[b.addr()]);
        b.paths.punch(a.node, &[a.addr()]);
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_secs(1), "stalled for {stall:?}");
        assert_eq!(a.paths.route(&b.node).unwrap().addr(), Some(b.addr()));
        assert_eq!(b.paths.route(&a.node).unwrap().addr(), Some(a.addr()));
    });
}

#[test]
fn a_direct_path_that_breaks_is_left_for_a_relay_and_taken_up_again() {
    for dialler_has_it in [true, false] {
        in_sim(7, |net| async move {
            let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
            let relay = node_id(9);
            let _carriers = relay_between(relay, &a, &b);
            let conn = a.dial(&b, &[b.addr()]).await.unwrap();
            until("b has bound", || b.paths.route(&a.node).is_some()).await;
            // Only one of the two knows of the relay.
            let (with, of) = if dialler_has_it { (&a, &b) } else { (&b, &a) };
            with.paths.add_relay(of.node, relay);
            let stream = long_echo(&conn.conn);
            sleep(Duration::from_secs(1)).await;
            net.partition(a.addr(), b.addr());
            sleep(Duration::from_secs(2)).await;
            assert_eq!(a.paths.route(&b.node), Some(Route::Relay(relay)));
            assert_eq!(b.paths.route(&a.node), Some(Route::Relay(relay)));
            net.heal(a.addr(), b.addr());
            let stall = stream.await.unwrap();
            assert!(stall < Duration::from_secs(3), "stalled for {stall:?}");
            until("the path is direct again", || {
                [a.paths.route(&b.node), b.paths.route(&a.node)]
                    .iter()
                    .all(|route| route.is_some_and(|route| route.is_direct()))
            })
            .await;
            echo(&conn.conn).await;
        });
    }
}

#[test]
fn a_relay_that_dies_is_replaced_under_a_stream() {
    in_sim(8, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        net.partition(a.addr(), b.addr());
        let dead = Arc::new(Mutex::new(BTreeSet::new()));
        let carry = |from: &Peer, to: &Peer| {
            let (from, src, to) = (from.paths.clone(), from.node, to.paths.clone());
            let dead = dead.clone();
            tokio::spawn(async move {
                while let Some((via, _, packet)) = from.relay_queue().next().await {
                    if !dead.lock().unwrap().contains(&via) {
                        to.inject(src, via, &packet);
                    }
                }
            })
        };
        let _carriers = [carry(&a, &b), carry(&b, &a)];
        for relay in [8, 9] {
            a.paths.add_relay(b.node, node_id(relay));
        }
        let conn = a.dial(&b, &[]).await.unwrap();
        let stream = long_echo(&conn.conn);
        sleep(Duration::from_secs(1)).await;
        // Nobody says so: its packets are just lost.
        let Some(Route::Relay(used)) = a.paths.route(&b.node) else {
            panic!("not relayed")
        };
        dead.lock().unwrap().insert(used);
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_secs(3), "stalled for {stall:?}");
        let other = a.paths.route(&b.node);
        assert!(matches!(other, Some(Route::Relay(relay)) if relay != used));
    });
}

#[test]
fn another_socket_takes_over_under_a_stream() {
    in_sim(9, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        let stream = long_echo(&conn.conn);
        sleep(Duration::from_secs(1)).await;
        let next = a.paths.rotate().unwrap();
        assert_ne!(next, v4(1));
        until("b follows", || {
            b.paths.route(&a.node).unwrap().addr() == Some(next)
        })
        .await;
        sleep(Duration::from_secs(1)).await;
        let from_b = b.paths.rotate().unwrap();
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_millis(300), "stalled for {stall:?}");
        assert_eq!(a.paths.route(&b.node).unwrap().addr(), Some(from_b));
        // The old sockets are closed in time, and nothing hangs on them.
        sleep(Duration::from_secs(45)).await;
        assert_eq!(a.paths.table().sockets.len(), 1);
        assert_eq!(a.paths.local_addr().unwrap(), next);
        echo(&conn.conn).await;
    });
}

#[test]
fn forged_and_repeated_probes_change_nothing_and_get_no_answer() {
    for seed in 0..10 {
        in_sim(seed, forge_and_repeat);
    }
}

async fn forge_and_repeat(net: Net) {
    let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let log = recorded.clone();
    let stranger = v4(66);
    net.set_hook(move |datagram| {
        assert_ne!(datagram.to, stranger, "the stranger got an answer");
        if is_probe(datagram.payload) {
            let mut log = log.lock().unwrap();
            log.push((datagram.to, datagram.payload.to_vec()));
        }
        vec![Delivery::of(datagram.payload)]
    });
    let conn = a.dial(&b, &[b.addr()]).await.unwrap();
    echo(&conn.conn).await;
    a.paths.candidates(b.node, &[b.addr()]);
    sleep(Duration::from_secs(2)).await;
    let before = [a.paths.stats(), b.paths.stats()];
    let routes = [a.paths.route(&b.node), b.paths.route(&a.node)];
    let probes = recorded.lock().unwrap().clone();
    assert!(probes.len() >= 4, "{}", probes.len());
    for (to, probe) in &probes {
        net.inject(stranger, *to, probe);
        for index in 0..probe.len() {
            let mut forged = probe.clone();
            forged[index] ^= 0x10;
            net.inject(stranger, *to, &forged);
        }
    }
    sleep(Duration::from_secs(2)).await;
    let after = [a.paths.stats(), b.paths.stats()];
    for (before, after) in before.iter().zip(&after) {
        assert!(after.refused_probes > before.refused_probes);
        assert!(after.unknown_probes > before.unknown_probes);
        assert_eq!(after.pings, before.pings);
        assert_eq!(after.pongs, before.pongs);
        assert_eq!(after.switches, before.switches);
    }
    assert_eq!([a.paths.route(&b.node), b.paths.route(&a.node)], routes);
    assert!(
        !b.paths
            .table()
            .sources
            .contains_key(&label::mapped(stranger))
    );
    echo(&conn.conn).await;
}

#[test]
fn relays_cannot_make_a_node_remember_without_end() {
    in_sim(11, |net| async move {
        let b = Peer::start(&net, 2, v4(2));
        let mut packet = vec![0x41; 60];
        packet[1] = 0;
        for n in 0..=255u8 {
            for m in 0..4u8 {
                let mut seed = [n; 32];
                seed[0] = m;
                let src = Identity::from_seed(&seed).node_id();
                b.paths.inject(src, node_id(9), &packet);
            }
        }
        assert_eq!(b.paths.table().remotes.len(), MAX_CALLERS);
        assert!(b.paths.stats().unroutable >= 700);
        sleep(LINGER * 2).await;
        assert_eq!(b.paths.table().remotes.len(), 0);
        assert_eq!(b.paths.table().labels.len(), 0);
    });
}

#[test]
fn what_is_over_is_forgotten() {
    in_sim(12, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        echo(&conn.conn).await;
        conn.conn.close(0u32.into(), b"");
        drop(conn);
        assert!(a.dial(&b, &[v4(9)]).await.is_err());
        sleep(Duration::from_mins(1)).await;
        for peer in [&a, &b] {
            let table = peer.paths.table();
            let sizes = [
                table.labels.len(),
                table.sources.len(),
                table.dialled.len(),
                table.accepted.len(),
                table.keys.len(),
                table.remotes.len(),
                table.relayed.len(),
            ];
            assert_eq!(sizes, [0; 7]);
        }
    });
}
