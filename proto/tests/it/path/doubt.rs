//! A way that may be broken: what is asked, where packets go meanwhile, and what is used then.

use meshwork_proto::path::{Event, MAX_SPREAD, PathConfig, PeerPaths, ProbeKind};

use super::{Flow, World, addr, at, direct, ms, relay, via};

/// A stream both ways over `direct(1)`, with a relay beside it.
fn streaming() -> World {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (via(1), 60)]);
    world.tell(Event::RelayUp(relay(1)));
    world.flow = Flow::Both;
    world.run(ms(5000));
    assert_eq!(world.machine.chosen(), Some(direct(1)));
    world
}

#[test]
fn in_doubt_packets_go_over_the_relay_too_until_a_way_is_found() {
    let mut world = streaming();
    assert_eq!(world.spread, [], "a sound way is enough");
    let broken = world.now;
    world.alive.remove(&direct(1));
    world.run(ms(2000));
    let [(from, over), (until, none)] = world.spread[..] else {
        panic!("{:?}", world.spread);
    };
    assert_eq!(over, [Some(via(1)), None]);
    assert_eq!(none, [None; MAX_SPREAD]);
    assert!(from <= broken + ms(350), "{from:?} after {broken:?}");
    let (switched, to) = world.used[1];
    assert_eq!((switched, to), (until, via(1)));
    assert!(until <= broken + ms(600), "{until:?} after {broken:?}");
}

#[test]
fn a_short_silence_costs_pings_and_copies_and_no_change() {
    let mut world = streaming();
    world.alive.remove(&direct(1));
    world.run(ms(250));
    world.alive.insert(direct(1), ms(20));
    world.run(ms(5000));
    assert_eq!(world.used, [(ms(0), direct(1))]);
    assert!(world.machine.is_sound());
    assert_eq!(world.spread(), [None; MAX_SPREAD]);
}

#[test]
fn who_was_driven_to_a_relay_is_back_as_soon_as_the_straight_way_works() {
    let mut world = streaming();
    world.alive.remove(&direct(1));
    world.run(ms(700));
    assert_eq!(world.machine.chosen(), Some(via(1)));
    world.alive.insert(direct(1), ms(20));
    world.run(ms(600));
    assert_eq!(world.machine.chosen(), Some(direct(1)));
}

#[test]
fn a_new_address_of_ours_is_a_doubt_at_once_where_there_is_a_nat() {
    let mut world = streaming();
    world.tell(Event::Remapped);
    assert_eq!(world.spread, [], "there is none");
    world.nated(true);
    let before = world.pings_to(direct(1));
    world.tell(Event::Remapped);
    assert_eq!(world.pings_to(direct(1)), before + 1);
    assert_eq!(world.spread(), [Some(via(1)), None]);
    // The peer answers: it has heard of the new address, or needs none.
    world.run(ms(30));
    assert_eq!(world.spread(), [None; MAX_SPREAD]);
    assert!(world.machine.is_sound());
}

#[test]
fn packets_go_over_the_most_likely_of_many_ways() {
    let alive = [(direct(1), 20), (via(2), 90), (via(3), 30), (direct(4), 50)];
    let mut world = World::connected(direct(1), &alive);
    for n in 1..=3 {
        world.tell(Event::RelayUp(relay(n)));
    }
    world.tell(Event::Offered(&[addr(4), addr(5)]));
    world.nated(true);
    world.run(ms(2000));
    world.tell(Event::Remapped);
    assert_eq!(world.spread(), [Some(via(3)), Some(via(2))]);
    // One that goes is not used any more.
    world.tell(Event::RelayDown(relay(3)));
    assert_eq!(world.spread(), [Some(via(2)), Some(direct(4))]);
}

#[test]
fn the_newest_socket_is_not_left_for_a_peer_that_does_not_know_of_it() {
    for kind in [ProbeKind::Used, ProbeKind::Move] {
        for leads in [true, false] {
            let mut world = World::new(&[(direct(1), 20), (at(1, 1), 20)]);
            world.machine = PeerPaths::new(PathConfig::default(), leads, 0);
            world.tell(Event::Proven(direct(1)));
            world.run(ms(1000));
            world.tell(Event::Rotated { socket: 1 });
            world.run(ms(1000));
            assert_eq!(world.machine.chosen(), Some(at(1, 1)));
            let told = world.moves();
            let route = direct(1);
            world.tell(Event::Ping { route, kind });
            world.run(ms(500));
            assert_eq!(world.machine.chosen(), Some(at(1, 1)));
            assert_eq!(world.moves(), told + 1, "the peer is told");
            // But when only the old one works, that is used.
            world.alive.remove(&at(1, 1));
            world.flow = Flow::Both;
            world.run(ms(2000));
            world.tell(Event::Ping { route, kind });
            world.run(ms(2000));
            assert_eq!(world.machine.chosen(), Some(direct(1)));
        }
    }
}

#[test]
fn a_broken_way_is_left_for_a_relay_within_a_second() {
    for flow in [Flow::Both, Flow::Download] {
        let mut world = World::connected(direct(1), &[(direct(1), 20), (via(1), 60)]);
        world.tell(Event::RelayUp(relay(1)));
        world.flow = flow;
        world.run(ms(5000));
        assert_eq!(world.machine.chosen(), Some(direct(1)));
        world.alive.remove(&direct(1));
        world.run(ms(1000));
        assert_eq!(world.machine.chosen(), Some(via(1)), "{flow:?}");
        // And back, when it works again.
        world.alive.insert(direct(1), ms(20));
        world.run(ms(10_000));
        assert_eq!(world.machine.chosen(), Some(direct(1)), "{flow:?}");
    }
}

#[test]
fn a_relay_that_falls_silent_is_left_for_one_that_answers_within_a_second() {
    for flow in [Flow::Both, Flow::Download] {
        let mut world = World::connected(via(1), &[(via(1), 40), (via(2), 60), (via(3), 60)]);
        world.tell(Event::RelayUp(relay(2)));
        world.tell(Event::RelayUp(relay(3)));
        world.flow = flow;
        world.run(ms(3_000));
        assert_eq!(world.machine.chosen(), Some(via(1)), "{flow:?}");

        // Nobody says that it is down, and one of the others has gone with it.
        world.alive.remove(&via(1));
        world.alive.remove(&via(3));
        world.run(ms(1_000));
        assert_eq!(world.machine.chosen(), Some(via(2)), "{flow:?}");
        assert!(world.machine.is_sound(), "{flow:?}");
    }
}

#[test]
fn the_end_of_a_stream_costs_one_ping() {
    let mut world = streaming();
    let before = world.pings.len();
    world.flow = Flow::Nothing;
    world.run(ms(10_000));
    assert_eq!(world.pings.len() - before, 1);
    assert_eq!(world.spread, []);
    // The next one is watched as the first.
    world.flow = Flow::Download;
    world.run(ms(1000));
    world.alive.remove(&direct(1));
    world.run(ms(1000));
    assert_eq!(world.machine.chosen(), Some(via(1)));
}

#[test]
fn one_way_traffic_costs_pings_and_no_change() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (via(1), 60)]);
    world.tell(Event::RelayUp(relay(1)));
    world.flow = Flow::Upload;
    world.run(ms(10_000));
    assert_eq!(world.used, [(ms(0), direct(1))]);
    let pings = world.pings_to(direct(1));
    assert!((10..60).contains(&pings), "{pings}");
}

#[test]
fn a_packet_now_and_then_is_looked_at_and_no_cause_for_doubt() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (via(1), 10)]);
    world.tell(Event::RelayUp(relay(1)));
    world.run(ms(2000));
    let (pings, looks) = (world.pings.len(), world.looks);
    for n in 0..100 {
        world.sent += 1;
        world.received += n % 2;
        world.look();
        world.run(ms(5000));
    }
    assert_eq!(world.pings.len(), pings);
    assert!(world.looks - looks <= 300, "{} looks", world.looks - looks);
}

/// The last way is lost while it is in doubt: there is nothing to do until another is known.
#[test]
fn without_any_way_nothing_is_due() {
    let mut machine = PeerPaths::new(PathConfig::default(), true, 0);
    let mut out = Vec::new();
    machine.handle(ms(0), Event::Proven(via(1)), &mut out);
    let ping = Event::Ping {
        route: direct(2),
        kind: ProbeKind::Used,
    };
    machine.handle(ms(10), ping, &mut out);
    assert!(!machine.is_sound());
    machine.handle(ms(20), Event::Taken(addr(2)), &mut out);
    machine.handle(ms(30), Event::RelayDown(relay(1)), &mut out);
    assert_eq!((machine.chosen(), machine.routes().count()), (None, 0));
    let mut now = ms(30);
    for _ in 0..10 {
        let Some(due) = machine.next_timer() else {
            return;
        };
        assert!(due > now, "due at {due:?} since {now:?}");
        now = due;
        machine.handle(now, Event::Timer, &mut out);
    }
    panic!("still busy at {now:?}");
}
