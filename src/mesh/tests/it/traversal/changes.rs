//! What nodes behind NATs do when one of them moves or ends.

use super::*;

#[test]
fn a_machine_that_moves_next_to_another_talks_to_it_directly() {
    run(22, async |internet| {
        let home = internet
            .net
            .behind(IpAddr::from([203, 0, 113, 1]), NatModel::symmetric());
        let host = |lan, n| internet.net.host(&[(lan, IpAddr::from([192, 168, 1, n]))]);
        let stays = internet.start(1, host(home, 10), |_| {});
        let office = internet
            .net
            .behind(IpAddr::from([203, 0, 113, 2]), NatModel::symmetric());
        let moves = internet.start(2, host(office, 20), |_| {});
        let relays = internet.with_relays(2, &[&stays, &moves]).await;
        echoes(&stays, &moves, &Bytes::from_static(b"hello")).await;
        assert!(is_relayed(&stays, &moves), "theory allows nothing else");
        moves
            .host
            .move_to(&[(home, IpAddr::from([192, 168, 1, 30]))]);
        sleep(SETTLED).await;
        for (from, to) in [(&stays, &moves), (&moves, &stays)] {
            assert_eq!(path(from, to), "direct");
            echoes(from, to, &Bytes::from_static(b"neighbour")).await;
        }
        stop_all(&[&stays, &moves, &relays[0], &relays[1]]).await;
    });
}

#[test]
fn calls_over_a_relay_end_in_order_when_their_server_shuts_down() {
    run(23, async |internet| {
        let nodes = [1, 2].map(|n| internet.behind(n, NatModel::symmetric()));
        let [client, server] = &nodes;
        let relays = internet.with_relays(2, &[client, server]).await;
        let to = server.mesh.node_id();
        let options = CallOptions::within(Duration::from_secs(20));
        let quiet = stream::<Quiet>(&client.mesh, to, &(), options).await;
        let mut quiet = quiet.unwrap();
        echoes(client, server, &Bytes::from_static(b"hello")).await;
        assert!(is_relayed(client, server));
        let reader = tokio::spawn(async move { quiet.next().await });
        // Of virtual time, much less passes than the calls might have, or a lost peer would take.
        let begun = Instant::now();
        server.mesh.shutdown(Duration::from_mins(1)).await;
        let end = reader.await.unwrap();
        let why = end.map(|item| item.map_err(|error| error.reason));
        assert_eq!(why, Some(Err("shutting_down".into())));
        sleep(Duration::from_millis(500)).await;
        assert!(client.mesh.peer(&to).is_none(), "it was told");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        stop_all(&[client, &relays[0], &relays[1]]).await;
    });
}

#[test]
fn a_relay_that_dies_is_replaced_under_a_running_conversation() {
    run(4, async |internet| {
        let one = internet.behind(1, NatModel::symmetric());
        let two = internet.behind(2, NatModel::symmetric());
        let relays = internet.with_relays(4, &[&one, &two]).await;
        chat(&one, &two, Instant::now() + Duration::from_secs(5)).await;
        let dead = relay_in_use(&one, &two, &relays);
        relays[dead].host.crash();
        let stall = chat(&one, &two, Instant::now() + Duration::from_secs(30)).await;
        assert!(stall <= Duration::from_secs(3), "nothing for {stall:?}");
        assert_ne!(relay_in_use(&one, &two, &relays), dead);
        let age = one.mesh.peer(&node_id(2)).unwrap().age;
        assert!(age > Duration::from_secs(30), "it is the same connection");
        // Its place among the home relays is taken by another.
        sleep(Duration::from_secs(30)).await;
        for place in [&one, &two] {
            let homes = place.mesh.home_relays();
            assert!(
                homes.len() == 3 && !homes.contains(&relays[dead].mesh.node_id()),
                "{homes:?}"
            );
        }
        stop_all(&[&one, &two]).await;
        stop_all(&relays.iter().collect::<Vec<_>>()).await;
    });
}
