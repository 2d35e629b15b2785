//! What strangers and liars can do, and what is remembered.

use meshwork_proto::path::ProbeKind;

use super::*;
use crate::path::callers::MAX_CALLERS;

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
    assert!(b.paths.table().source(&label::mapped(stranger)).is_none());
    echo(&conn.conn).await;
}

#[test]
fn relays_cannot_make_a_node_remember_without_end() {
    in_sim(11, |net| async move {
        let b = Peer::start(&net, 2, v4(2));
        let mut packet = vec![0x41; 60];
        packet[1] = 0;
        let caller = |n: u8, m: u8| {
            let mut seed = [n; 32];
            seed[0] = m;
            Identity::from_seed(&seed).node_id()
        };
        for liar in 0..4u8 {
            for n in 0..=255u8 {
                b.paths
                    .inject(caller(n, liar), node_id(200 + liar), &packet);
            }
        }
        let known = b.paths.table().all().len();
        assert!(known < MAX_CALLERS, "{known}");
        let refused = b.paths.stats().unroutable;
        assert_eq!(refused, 1024 - known as u64);
        // Another relay still brings callers.
        b.paths.inject(caller(1, 9), node_id(9), &packet);
        assert_eq!(b.paths.stats().unroutable, refused);
        sleep(LINGER * 2).await;
        assert_eq!(b.paths.table().sizes(), [0; 9]);
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
            assert_eq!(peer.paths.table().sizes(), [0; 9]);
        }
    });
}

/// Whoever says that it relays for a peer gets nothing that is meant for it, but what goes everywhere.
#[test]
fn a_relay_that_names_whom_we_dial_does_not_draw_the_connection_to_itself() {
    in_sim(13, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let liar = node_id(9);
        let mut packet = vec![0x41; 60];
        packet[1] = 0;
        let place = [b.addr()];
        let dial = a.dial(&b, &place);
        let lies = async {
            for _ in 0..20 {
                a.paths.inject(b.node, liar, &packet);
                sleep(Duration::from_millis(5)).await;
            }
        };
        let (conn, ()) = tokio::join!(dial, lies);
        let conn = conn.unwrap();
        for _ in 0..10 {
            a.paths.inject(b.node, liar, &packet);
            echo(&conn.conn).await;
            assert_eq!(a.paths.route(&b.node).unwrap().addr(), Some(b.addr()));
        }
        assert_eq!(a.paths.stats().switches, 1);
    });
}

/// A member may send from as many addresses as it likes.
#[test]
fn addresses_that_a_peer_pings_from_are_bounded() {
    in_sim(18, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let _conn = a.dial(&b, &[b.addr()]).await.unwrap();
        until("b has bound", || b.paths.route(&a.node).is_some()).await;
        let elsewhere: Vec<SocketAddr> = (100..120).map(v4).collect();
        b.paths.candidates(a.node, &elsewhere);
        let keys = a.paths.table().keys.values().next().cloned().unwrap();
        for port in 1..2000u16 {
            let ping = keys.seal(Probe {
                key: [0; 8],
                kind: ProbeKind::Ping,
                transaction: 1000 + u64::from(port),
                observed: None,
            });
            let from = SocketAddr::from(([10, 0, 1, 1], port));
            net.inject(from, b.addr(), &ping);
            sleep(Duration::from_millis(1)).await;
        }
        sleep(LATENCY * 2).await;
        let sources = b.paths.table().sizes()[1];
        assert!((1..=16).contains(&sources), "{sources}");
        // All were taken, but some of its own, whose numbers are used up by then.
        let refused = b.paths.stats().refused_probes;
        assert!(refused < 100, "{refused}");
    });
}

/// A socket that takes nothing.
#[derive(Debug)]
struct Full(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Full {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// quinn asks the socket in use when there is room, and would ask without end.
#[test]
fn quinn_does_not_wait_for_room_in_an_old_socket() {
    in_sim(19, |net| async move {
        let full = |n| Arc::new(Full(net.socket(v4(n)).unwrap()));
        let mut table = Table::new(Socket::new(FIRST, full(1)).unwrap());
        let transmit = Transmit {
            destination: v4(9),
            ecn: None,
            contents: b"x",
            segment_size: None,
            src_ip: None,
        };
        let sent = |table: &Table, socket| table.send(socket, v4(9), &transmit).is_ok();
        assert!(!sent(&table, FIRST));
        table.sockets.push(Socket::new(1, full(2)).unwrap());
        assert!(sent(&table, FIRST));
        assert!(!sent(&table, 1));
        assert!(!sent(&table, 77), "one that is closed is the one in use");
    });
}
