//! Several translators, several hosts behind one, and hosts that are in several networks.

use super::*;
use crate::nat::Firewall;

#[test]
fn hosts_of_a_network_reach_each_other_without_its_translator() {
    in_net(1, async |net| {
        let lan = net.behind(ip("203.0.113.1"), NatModel::home());
        let [a, b] = ["192.168.1.10", "192.168.1.11"]
            .map(|own| Udp::bind(&net.host(&[(lan, ip(own))]), 7000));
        let start = tokio::time::Instant::now();
        assert_eq!(a.reach(b.addr(), &b).await, Some(a.addr()));
        assert!(start.elapsed().as_millis() <= 2, "a cable's latency");
    });
}

#[test]
fn two_networks_may_use_the_same_addresses() {
    in_net(1, async |net| {
        let helper = public(&net, "198.51.100.1:1000");
        let mut seen = Vec::new();
        let mut sockets = Vec::new();
        for external in ["203.0.113.1", "203.0.113.2"] {
            let socket = Udp::bind(&behind(&net, external, &[NatModel::carrier()]), 7000);
            seen.push(socket.reach(helper.addr(), &helper).await.unwrap());
            sockets.push(socket);
        }
        assert_eq!(sockets[0].addr(), sockets[1].addr());
        assert_eq!(seen[0].ip(), ip("203.0.113.1"));
        assert_eq!(seen[1].ip(), ip("203.0.113.2"));
        assert_eq!(sockets[0].reach(seen[1], &sockets[1]).await, Some(seen[0]));
    });
}

#[test]
fn hairpin_works_where_the_model_has_it() {
    for hairpin in [false, true] {
        in_net(1, async |net| {
            let lan = net.behind(ip("203.0.113.1"), NatModel::home().hairpin(hairpin));
            let helper = public(&net, "198.51.100.1:1000");
            let [a, b] = ["192.168.1.10", "192.168.1.11"]
                .map(|own| Udp::bind(&net.host(&[(lan, ip(own))]), 7000));
            let seen_a = a.reach(helper.addr(), &helper).await.unwrap();
            let seen_b = b.reach(helper.addr(), &helper).await.unwrap();
            // Filtered by address and port: the first opens the way for the answer.
            assert_eq!(a.reach(seen_b, &b).await, None);
            let expected = hairpin.then_some(seen_b);
            assert_eq!(b.reach(seen_a, &a).await, expected, "hairpin {hairpin}");
        });
    }
}

#[test]
fn a_carrier_puts_many_homes_behind_one_address() {
    in_net(1, async |net| {
        let carrier = net.behind(ip("203.0.113.1"), NatModel::carrier());
        let helper = public(&net, "198.51.100.1:1000");
        let mut homes = Vec::new();
        for n in 0..20u8 {
            let home = net.lan();
            net.nat(
                home,
                carrier,
                IpAddr::from([100, 64, 0, n]),
                NatModel::home(),
            );
            let socket = Udp::bind(&net.host(&[(home, ip("192.168.1.10"))]), 7000);
            let seen = socket.reach(helper.addr(), &helper).await.unwrap();
            assert_eq!(seen.ip(), ip("203.0.113.1"));
            homes.push((socket, seen));
        }
        for (socket, seen) in &homes {
            helper.send(*seen, &seen.port().to_be_bytes());
            let (_, payload) = socket.soon().await.unwrap();
            assert_eq!(payload, seen.port().to_be_bytes());
        }
        // Subscribers reach each other through the carrier's hairpin, both having sent.
        let [(a, seen_a), (b, seen_b), ..] = &homes[..] else {
            unreachable!("there are twenty");
        };
        assert_eq!(a.reach(*seen_b, b).await, None);
        assert_eq!(b.reach(*seen_a, a).await, Some(*seen_b));
    });
}

#[test]
fn a_host_with_both_kinds_of_address_uses_the_right_one() {
    in_net(1, async |net| {
        let lan = net.behind(ip("203.0.113.1"), NatModel::home());
        net.firewall(lan, crate::Lan::INTERNET, true, Firewall::default());
        let own = [(lan, ip("192.168.1.10")), (lan, ip("2001:db8:1::10"))];
        let socket = Udp::bind(&net.host(&own), 7000);
        assert_eq!(socket.addr(), addr("[::]:7000"));
        let (v4, v6) = (
            public(&net, "198.51.100.1:1000"),
            public(&net, "[2001:db8::1]:1000"),
        );
        let seen = socket.reach(v4.addr(), &v4).await.unwrap();
        assert_eq!(seen.ip(), ip("203.0.113.1"));
        assert_eq!(
            v4.reach(seen, &socket).await,
            Some(addr("[::ffff:198.51.100.1]:1000"))
        );
        let seen = socket.reach(v6.addr(), &v6).await.unwrap();
        assert_eq!(seen, addr("[2001:db8:1::10]:7000"));
        assert_eq!(v6.reach(seen, &socket).await, Some(v6.addr()));
        // It answers to the mapped form as well.
        let back = socket.reach(addr("[::ffff:198.51.100.1]:1000"), &v4).await;
        assert_eq!(back.map(|from| from.ip()), Some(ip("203.0.113.1")));
    });
}

#[test]
fn a_host_that_moves_keeps_its_sockets() {
    in_net(1, async |net| {
        let helper = public(&net, "198.51.100.1:1000");
        let host = behind(&net, "203.0.113.1", &[NatModel::carrier()]);
        let socket = Udp::bind(&host, 7000);
        let before = socket.reach(helper.addr(), &helper).await.unwrap();
        let elsewhere = net.behind(ip("203.0.113.2"), NatModel::carrier());
        host.move_to(&[(elsewhere, ip("10.1.1.1"))]);
        assert_eq!(socket.addr(), addr("10.1.1.1:7000"));
        let after = socket.reach(helper.addr(), &helper).await.unwrap();
        assert_eq!(after.ip(), ip("203.0.113.2"));
        assert_eq!(helper.reach(before, &socket).await, None, "nobody is there");
        assert_eq!(helper.reach(after, &socket).await, Some(helper.addr()));
    });
}
