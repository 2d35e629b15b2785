//! How connections come up, whoever else is or was there.

use super::*;

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

/// While we dial somebody in vain, it calls us through a relay that we did not know of.
#[test]
fn who_is_dialled_in_vain_may_call_through_a_relay() {
    in_sim(14, |net| async move {
        let (a, b) = (Peer::start(&net, 1, v4(1)), Peer::start(&net, 2, v4(2)));
        net.partition(a.addr(), b.addr());
        let relay = node_id(9);
        let _carriers = relay_between(relay, &a, &b);
        b.paths.add_relay(a.node, relay);
        let nowhere = [v4(7)];
        let in_vain = timeout(Duration::from_secs(3), a.dial(&b, &nowhere));
        let call = async {
            sleep(Duration::from_millis(50)).await;
            b.dial(&a, &[]).await
        };
        let (_, called) = tokio::join!(in_vain, call);
        let called = called.unwrap();
        echo(&called.conn).await;
        assert_eq!(b.paths.route(&a.node), Some(Route::Relay(relay)));
        until("a knows the way", || {
            a.paths.route(&b.node) == Some(Route::Relay(relay))
        })
        .await;
    });
}
