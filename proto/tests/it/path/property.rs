//! Whatever a machine of paths is told: its memory and its pings are bounded.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use meshwork_proto::path::{Event, ProbeKind, Route};
use proptest::prelude::*;

use super::{World, addr, at, ms, relay, via};

#[derive(Debug, Clone)]
enum Step {
    Offered(Vec<u8>),
    Punch(Vec<u8>),
    Relay(u8, bool),
    Proven(Route),
    Ping(Route, ProbeKind),
    Pong(Route, u64),
    Packets(u64, u64),
    Taken(u8),
    Remapped,
    Nated(bool),
    Rotated(u8),
    Closed(u8),
    Run(u64),
}

fn any_route() -> impl Strategy<Value = Route> {
    prop_oneof![
        (0u8..3, 0u8..40).prop_map(|(socket, n)| at(socket, n)),
        (1u8..7).prop_map(via),
    ]
}

fn any_kind() -> impl Strategy<Value = ProbeKind> {
    prop_oneof![
        Just(ProbeKind::Ping),
        Just(ProbeKind::Move),
        Just(ProbeKind::Used),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0u8..40, 0..20);
    prop_oneof![
        some().prop_map(Step::Offered),
        some().prop_map(Step::Punch),
        (1u8..7, any::<bool>()).prop_map(|(n, up)| Step::Relay(n, up)),
        any_route().prop_map(Step::Proven),
        (any_route(), any_kind()).prop_map(|(route, kind)| Step::Ping(route, kind)),
        (any_route(), 0u64..300).prop_map(|(route, number)| Step::Pong(route, number)),
        (0u64..9, 0u64..9).prop_map(|(sent, received)| Step::Packets(sent, received)),
        (0u8..40).prop_map(Step::Taken),
        any::<bool>().prop_map(Step::Nated),
        Just(Step::Remapped),
        (0u8..3).prop_map(Step::Rotated),
        (0u8..3).prop_map(Step::Closed),
        (1u64..3000).prop_map(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes: memory and pings are bounded, time moves on, and what is used is known.
    #[test]
    fn bounds_hold_whatever_comes(
        steps in prop::collection::vec(any_step(), 1..80),
        alive in prop::collection::btree_map(any_route(), 1u64..400, 0..20),
    ) {
        let alive: Vec<(Route, u64)> = alive.into_iter().collect();
        let mut world = World::new(&alive);
        for step in steps {
            let (start, before) = (world.now, world.pings.len());
            match step {
                Step::Offered(some) => {
                    let some: Vec<SocketAddr> = some.into_iter().map(addr).collect();
                    world.tell(Event::Offered(&some));
                }
                Step::Punch(some) => {
                    let some: Vec<SocketAddr> = some.into_iter().map(addr).collect();
                    world.tell(Event::Punch(&some));
                }
                Step::Relay(n, true) => world.tell(Event::RelayUp(relay(n))),
                Step::Relay(n, false) => world.tell(Event::RelayDown(relay(n))),
                Step::Proven(route) => world.tell(Event::Proven(route)),
                Step::Ping(route, kind) => world.tell(Event::Ping { route, kind }),
                Step::Pong(route, transaction) => world.tell(Event::Pong { route, transaction }),
                Step::Packets(sent, received) => {
                    world.sent += sent;
                    world.received += received;
                    world.look();
                }
                Step::Taken(n) => world.tell(Event::Taken(addr(n))),
                Step::Remapped => world.tell(Event::Remapped),
                Step::Nated(nated) => world.nated(nated),
                Step::Rotated(socket) => world.tell(Event::Rotated { socket }),
                Step::Closed(socket) => world.tell(Event::Closed { socket }),
                Step::Run(span) => world.run(ms(span)),
            }
            let routes: Vec<Route> = world.machine.routes().collect();
            prop_assert!(routes.len() <= 19, "{} ways", routes.len());
            let distinct: BTreeSet<&Route> = routes.iter().collect();
            prop_assert_eq!(distinct.len(), routes.len());
            if let Some(chosen) = world.machine.chosen() {
                prop_assert!(routes.contains(&chosen));
                prop_assert_eq!(world.used.last().map(|(_, route)| *route), Some(chosen));
            }
            let spread: Vec<Route> = world.spread().iter().flatten().copied().collect();
            prop_assert!(spread.iter().all(|route| routes.contains(route)));
            prop_assert!(!spread.iter().any(|route| Some(*route) == world.machine.chosen()));
            prop_assert!(spread.is_empty() || !world.machine.is_sound());
            // At most a round of all ways every 100 ms, and a few answers to what came.
            let rounds = (world.now.saturating_sub(start).as_millis() / 100) as usize + 3;
            let pings = world.pings.len() - before;
            prop_assert!(pings <= rounds * 2 * 19, "{} pings in {} rounds", pings, rounds);
            // A timer that is due is over once it was served.
            world.look();
            prop_assert!(world.machine.next_timer().is_none_or(|at| at > world.now));
        }
    }
}
