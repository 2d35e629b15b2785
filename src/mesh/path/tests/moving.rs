//! Connections whose paths change.

use super::*;

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
        assert_eq!(a.paths.table().sockets.len(), 2, "and the first");
        assert_eq!(a.paths.local_addr().unwrap(), next);
        echo(&conn.conn).await;
    });
}

#[test]
fn packets_go_over_the_relay_too_until_a_broken_way_is_left() {
    in_sim(15, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        let relay = node_id(9);
        let _carriers = relay_between(relay, &a, &b);
        let conn = a.dial(&b, &[b.addr()]).await.unwrap();
        until("b has bound", || b.paths.route(&a.node).is_some()).await;
        a.paths.add_relay(b.node, relay);
        b.paths.add_relay(a.node, relay);
        let stream = long_echo(&conn.conn);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(a.paths.stats().spread, 0);
        net.partition(a.addr(), b.addr());
        let stall = stream.await.unwrap();
        assert!(stall < Duration::from_secs(1), "stalled for {stall:?}");
        let copies = a.paths.stats().spread;
        assert!((1..=256).contains(&copies), "{copies}");
        assert_eq!(a.paths.route(&b.node), Some(Route::Relay(relay)));
        // On the relay that works, each packet goes once.
        let before = [a.paths.stats().spread, b.paths.stats().spread];
        echo(&conn.conn).await;
        assert_eq!([a.paths.stats().spread, b.paths.stats().spread], before);
    });
}

/// Commands of the machine, and whoever is told of a forwarded port, find the node there for good.
#[test]
fn the_port_that_the_node_was_started_with_stays() {
    in_sim(16, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        for _ in 0..2 {
            a.paths.rotate().unwrap();
            sleep(Duration::from_secs(45)).await;
        }
        // Its answers come from there, too: a NAT in between would let no others in.
        let strays = Arc::new(AtomicU64::new(0));
        let (count, to) = (strays.clone(), b.addr());
        net.set_hook(move |datagram| {
            if datagram.to == to && datagram.from != v4(1) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            vec![Delivery::of(datagram.payload)]
        });
        let conn = b.dial(&a, &[v4(1)]).await.unwrap();
        echo(&conn.conn).await;
        assert_eq!(strays.load(Ordering::Relaxed), 0);
        assert_eq!(b.paths.route(&a.node).unwrap().addr(), Some(v4(1)));
        assert_eq!(a.paths.table().sockets.len(), 2);
    });
}

#[test]
fn a_port_that_was_used_of_late_is_not_taken_again() {
    in_sim(17, |net| async move {
        // As a system that gives the lowest port that is free.
        let lowest: BindSocket = {
            let net = net.clone();
            Arc::new(move |addr| {
                let mut ports = (8000..8100u16).map(|port| SocketAddr::new(addr.ip(), port));
                ports
                    .find_map(|addr| net.socket(addr).ok())
                    .ok_or_else(|| io::ErrorKind::AddrInUse.into())
            })
        };
        let addresses: FindAddresses = Arc::new(|bound| vec![bound]);
        let socket = net.socket(v4(1)).unwrap();
        let how = PathConfig::default();
        let paths = Paths::new(node_id(1), socket, lowest, addresses, how).unwrap();
        let mut used = vec![v4(1)];
        for _ in 0..8 {
            let addr = paths.rotate().unwrap();
            assert!(!used.contains(&addr), "{addr} after {used:?}");
            used.push(addr);
            assert!(paths.table().sockets.len() <= 4);
        }
    });
}

/// Paths of which nothing is known but that a NAT forgets after 20 s.
fn behind_a_short_memory(net: &Net, bind: BindSocket, addresses: FindAddresses) -> Arc<Paths> {
    let socket = net.socket(v4(1)).unwrap();
    let how = PathConfig::default();
    let paths = Paths::new(node_id(1), socket, bind, addresses, how).unwrap();
    for (at, port) in [(0, 1), (20, 2)] {
        let seen = SocketAddr::from(([203, 0, 113, 1], port));
        let at = Duration::from_secs(at);
        paths.lifetime().observed(at, node_id(2), v4(2), seen);
    }
    assert!(paths.next_rotation().is_some());
    paths
}

/// As for a node that listens at one address, when the machine has lost it.
#[test]
fn a_system_without_another_socket_is_not_asked_all_the_time() {
    in_sim(20, |net| async move {
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let none: BindSocket = Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Err(io::ErrorKind::AddrNotAvailable.into())
        });
        let paths = behind_a_short_memory(&net, none, Arc::new(|bound| vec![bound]));
        let stop = CancellationToken::new();
        let run = tokio::spawn(paths.run(stop.clone()));
        sleep(Duration::from_mins(1)).await;
        let asked = asked.load(Ordering::Relaxed);
        assert!((2..=6).contains(&asked), "{asked}");
        stop.cancel();
        run.await.unwrap();
    });
}

#[test]
fn what_was_learnt_of_a_nat_is_void_in_another_network_only() {
    in_sim(21, |net| async move {
        let places = Arc::new(Mutex::new(vec![v4(1)]));
        let told = places.clone();
        let addresses: FindAddresses = Arc::new(move |_| told.lock().unwrap().clone());
        let none: BindSocket = Arc::new(|_| Err(io::ErrorKind::AddrInUse.into()));
        let paths = behind_a_short_memory(&net, none, addresses);
        places.lock().unwrap().push(v4(7));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(paths.local_candidates(), [v4(1), v4(7)]);
        assert!(paths.next_rotation().is_some(), "a container's network");
        *places.lock().unwrap() = vec![v4(8), v4(7)];
        sleep(Duration::from_secs(2)).await;
        assert_eq!(paths.local_candidates(), [v4(8), v4(7)]);
        assert_eq!(paths.next_rotation(), None);
    });
}
