//! The machine of a peer's paths, against a network of our own: some ways answer, some do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{Identity, NodeId};
use meshwork_proto::path::{Action, Event, PathConfig, PeerPaths, ProbeKind, Route};
use proptest::prelude::*;

/// Time between two packets of a stream.
const PACKET: Duration = Duration::from_millis(20);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn relay(n: u8) -> NodeId {
    Identity::from_seed(&[n; 32]).node_id()
}

fn via(n: u8) -> Route {
    Route::Relay(relay(n))
}

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 7000))
}

fn direct(n: u8) -> Route {
    at(0, n)
}

fn at(socket: u8, n: u8) -> Route {
    Route::Direct {
        socket,
        addr: addr(n),
    }
}

/// What flows, every [`PACKET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Nothing,
    /// Both ways, while the way in use works.
    Both,
    /// To us.
    Download,
    /// From us: the peer answers only with what the machine does not see.
    Upload,
}

/// A machine, its network and its clock.
struct World {
    machine: PeerPaths,
    now: Duration,
    /// Ways that answer, after this time.
    alive: BTreeMap<Route, Duration>,
    pongs: BTreeSet<(Duration, u64, Route)>,
    pings: Vec<(Duration, Route, bool)>,
    used: Vec<(Duration, Route)>,
    forgotten: Vec<Route>,
    flow: Flow,
    sent: u64,
    received: u64,
    looks: u64,
}

impl World {
    fn new(alive: &[(Route, u64)]) -> Self {
        Self {
            machine: PeerPaths::new(PathConfig::default(), true, 0),
            now: Duration::ZERO,
            alive: alive
                .iter()
                .map(|(route, rtt)| (*route, ms(*rtt)))
                .collect(),
            pongs: BTreeSet::new(),
            pings: Vec::new(),
            used: Vec::new(),
            forgotten: Vec::new(),
            flow: Flow::Nothing,
            sent: 0,
            received: 0,
            looks: 0,
        }
    }

    /// One in which the peer was reached over `route`.
    fn connected(route: Route, alive: &[(Route, u64)]) -> Self {
        let mut world = Self::new(alive);
        world.tell(Event::Proven(route));
        world
    }

    fn tell(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.machine.handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Ping {
                    route,
                    transaction,
                    kind,
                } => {
                    let moving = kind == ProbeKind::Move;
                    self.pings.push((self.now, route, moving));
                    if let Some(rtt) = self.alive.get(&route) {
                        self.pongs.insert((self.now + *rtt, transaction, route));
                    }
                }
                Action::Use(route) => self.used.push((self.now, route)),
                Action::Forget(route) => self.forgotten.push(route),
                Action::Lost => {}
            }
        }
    }

    fn packet(&mut self) {
        let works = self
            .machine
            .chosen()
            .is_some_and(|route| self.alive.contains_key(&route));
        let (sent, received) = match self.flow {
            Flow::Nothing => return,
            Flow::Both => (1, u64::from(works)),
            Flow::Download => (0, u64::from(works)),
            Flow::Upload => (1, 0),
        };
        self.sent += sent;
        self.received += received;
        if sent + received > 0 && !self.machine.is_watching() {
            self.look();
        }
    }

    fn look(&mut self) {
        self.looks += 1;
        let (sent, received) = (self.sent, self.received);
        self.tell(Event::Traffic { sent, received });
    }

    /// Lets time pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut packet = self.now + PACKET;
        loop {
            let timer = self.machine.next_timer();
            let pong = self.pongs.first().map(|(at, ..)| *at);
            let next = [timer, pong, Some(packet)].into_iter().flatten().min();
            let next = next.expect("there is always a next packet");
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if pong == Some(next) {
                let (_, transaction, route) = self.pongs.pop_first().expect("it is there");
                // What was broken meanwhile carries no answer.
                if self.alive.contains_key(&route) {
                    self.tell(Event::Pong { route, transaction });
                }
            } else if packet == next {
                packet += PACKET;
                self.packet();
            } else {
                self.look();
            }
        }
    }

    fn pings_to(&self, route: Route) -> usize {
        self.pings.iter().filter(|(_, to, _)| *to == route).count()
    }
}

#[test]
fn the_way_of_the_handshake_is_used_and_then_the_fastest() {
    let mut world = World::connected(direct(1), &[(direct(1), 50), (direct(2), 20)]);
    assert_eq!(world.machine.chosen(), Some(direct(1)));
    world.tell(Event::Offered(&[addr(2), addr(3)]));
    world.run(ms(1000));
    assert_eq!(world.machine.chosen(), Some(direct(2)));
    assert!(
        world.pings.contains(&(world.used[1].0, direct(2), true)),
        "the peer is told"
    );
    assert_eq!(world.pings_to(direct(3)), 3);
    assert_eq!(world.machine.rtt(direct(2)), Some(ms(20)));
}

#[test]
fn a_little_faster_is_not_worth_a_change() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (direct(2), 16)]);
    world.tell(Event::Offered(&[addr(2)]));
    world.run(ms(5000));
    assert_eq!(world.used, [(ms(0), direct(1))]);
}

#[test]
fn straight_beats_relayed_however_slow() {
    let mut world = World::connected(via(1), &[(via(1), 10), (direct(1), 300)]);
    world.tell(Event::RelayUp(relay(1)));
    world.tell(Event::Offered(&[addr(1)]));
    world.run(ms(1000));
    assert_eq!(world.machine.chosen(), Some(direct(1)));
    world.tell(Event::RelayUp(relay(2)));
    world.alive.insert(via(2), ms(1));
    world.run(ms(5000));
    assert_eq!(world.machine.chosen(), Some(direct(1)));
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

#[test]
fn nobody_looks_when_nothing_flows() {
    let mut world = World::connected(direct(1), &[(direct(1), 20)]);
    world.flow = Flow::Both;
    world.run(ms(3000));
    world.flow = Flow::Nothing;
    world.run(ms(5000));
    assert_eq!(world.machine.next_timer(), None);
    let pings = world.pings.len();
    world.run(ms(600_000));
    assert_eq!(world.pings.len(), pings);
}

#[test]
fn mappings_are_kept_alive_and_watched_while_they_are_used() {
    let mut world = World::connected(direct(1), &[(direct(1), 20)]);
    world.tell(Event::Nated(true));
    world.run(ms(1000));
    let before = world.pings.len();
    world.run(ms(60_000));
    assert_eq!(world.pings.len() - before, 4, "every 15 s");
    world.flow = Flow::Both;
    let before = world.pings.len();
    world.run(ms(10_000));
    let busy = world.pings.len() - before;
    assert!((18..=21).contains(&busy), "{busy} in 10 s of traffic");
}

#[test]
fn the_peer_is_followed_where_it_goes_once_that_is_proven() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (direct(2), 20)]);
    world.run(ms(1000));
    let moving = |n| Event::Ping {
        route: direct(n),
        kind: ProbeKind::Move,
    };
    world.tell(moving(9));
    world.run(ms(2000));
    assert_eq!(
        world.machine.chosen(),
        Some(direct(1)),
        "nobody answers there"
    );
    world.tell(moving(2));
    assert_eq!(world.machine.chosen(), Some(direct(1)), "not proven yet");
    world.run(ms(100));
    assert_eq!(world.machine.chosen(), Some(direct(2)));
    let told = world.pings.iter().filter(|(_, _, moving)| *moving).count();
    assert_eq!(told, 0, "who follows does not lead");
}

#[test]
fn the_follower_goes_where_the_leader_is() {
    for leads in [true, false] {
        let mut world = World::new(&[(direct(1), 20), (direct(2), 20)]);
        world.machine = PeerPaths::new(PathConfig::default(), leads, 0);
        world.tell(Event::Proven(direct(1)));
        world.run(ms(1000));
        let route = direct(2);
        let kind = ProbeKind::Used;
        world.tell(Event::Ping { route, kind });
        world.run(ms(500));
        let expected = if leads { direct(1) } else { direct(2) };
        assert_eq!(world.machine.chosen(), Some(expected));
        // The leader goes, too, when its own way carries nothing.
        world.alive.remove(&direct(1));
        world.tell(Event::Ping { route, kind });
        world.run(ms(500));
        assert_eq!(world.machine.chosen(), Some(direct(2)));
    }
}

#[test]
fn a_pong_counts_only_for_its_own_ping() {
    let mut world = World::connected(direct(1), &[(direct(1), 20)]);
    world.run(ms(1000));
    let before = world.machine.alive().count();
    for transaction in 0..100 {
        let route = direct(7);
        world.tell(Event::Pong { route, transaction });
        let route = direct(1);
        world.tell(Event::Pong { route, transaction });
    }
    assert_eq!(world.machine.alive().count(), before);
    assert_eq!(world.machine.chosen(), Some(direct(1)));
}

#[test]
fn a_hole_is_punched_for_five_seconds_or_until_it_is_there() {
    let mut world = World::connected(via(1), &[(via(1), 30)]);
    world.tell(Event::Punch(&[addr(1), addr(2)]));
    world.run(ms(3000));
    let pings = world.pings_to(direct(1));
    assert!((29..=32).contains(&pings), "{pings}");
    world.alive.insert(direct(2), ms(40));
    world.run(ms(1000));
    assert_eq!(world.machine.chosen(), Some(direct(2)));
    let pings = world.pings_to(direct(1));
    world.run(ms(10_000));
    assert!(
        world.pings_to(direct(1)) <= pings + 3,
        "the others are left"
    );

    let mut world = World::connected(via(1), &[(via(1), 30)]);
    world.tell(Event::Punch(&[addr(1)]));
    world.run(ms(30_000));
    let pings = world.pings_to(direct(1));
    assert!((50..=56).contains(&pings), "{pings}");
    assert_eq!(world.machine.chosen(), Some(via(1)));
}

#[test]
fn another_socket_is_used_when_it_answers() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (at(1, 1), 20)]);
    world.flow = Flow::Both;
    world.run(ms(1000));
    world.tell(Event::Rotated { socket: 1 });
    assert_eq!(world.machine.chosen(), Some(direct(1)), "make before break");
    world.run(ms(300));
    assert_eq!(world.machine.chosen(), Some(at(1, 1)));
    assert!(
        world
            .pings
            .iter()
            .any(|ping| (ping.1, ping.2) == (at(1, 1), true))
    );
    world.tell(Event::Closed { socket: 0 });
    world.run(ms(1000));
    let left: Vec<Route> = world.machine.routes().collect();
    assert_eq!(left, [at(1, 1)]);
    assert_eq!(world.machine.chosen(), Some(at(1, 1)));
}

#[test]
fn when_the_old_socket_goes_before_the_new_one_answers_the_new_one_is_used() {
    let mut world = World::connected(direct(1), &[(direct(1), 20)]);
    world.tell(Event::Offered(&[addr(1), addr(2)]));
    world.run(ms(1000));
    world.tell(Event::Rotated { socket: 1 });
    world.run(ms(10_000));
    assert_eq!(world.machine.chosen(), Some(direct(1)));
    world.tell(Event::Closed { socket: 0 });
    assert_eq!(world.machine.chosen(), Some(at(1, 1)));
    let routes: BTreeSet<Route> = world.machine.routes().collect();
    assert_eq!(routes, BTreeSet::from([at(1, 1), at(1, 2)]));
}

#[test]
fn a_relay_that_goes_is_replaced_at_once() {
    let mut world = World::connected(via(1), &[(via(1), 10), (via(2), 40)]);
    world.tell(Event::RelayUp(relay(2)));
    world.run(ms(1000));
    world.tell(Event::RelayDown(relay(1)));
    assert_eq!(world.machine.chosen(), Some(via(2)));
    assert!(world.forgotten.contains(&via(1)));
    world.tell(Event::RelayDown(relay(2)));
    assert_eq!(world.machine.chosen(), None);
    world.alive.insert(via(3), ms(10));
    world.tell(Event::RelayUp(relay(3)));
    world.run(ms(100));
    assert_eq!(world.machine.chosen(), Some(via(3)));
}

#[test]
fn an_address_of_another_peer_is_not_used_any_more() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (direct(2), 20)]);
    world.tell(Event::Offered(&[addr(2)]));
    world.run(ms(1000));
    world.tell(Event::Taken(addr(1)));
    assert_eq!(world.machine.chosen(), Some(direct(2)));
    assert_eq!(world.forgotten, [direct(1)]);
}

#[test]
fn straight_ways_are_tried_ever_more_seldom_while_relayed() {
    let mut world = World::connected(via(1), &[(via(1), 10)]);
    world.tell(Event::Offered(&[addr(1)]));
    world.run(ms(1000));
    let before = world.pings_to(direct(1));
    world.run(Duration::from_hours(1));
    let tries = world.pings_to(direct(1)) - before;
    assert!((55..=65).contains(&tries), "{tries} in an hour");
}

#[test]
fn strangers_addresses_push_nothing_out_that_matters() {
    let mut world = World::connected(direct(1), &[(direct(1), 20)]);
    let offered: Vec<SocketAddr> = (2..=10).map(addr).collect();
    world.tell(Event::Offered(&offered));
    world.run(ms(1000));
    for n in 11..=250 {
        let route = direct(n);
        world.tell(Event::Ping {
            route,
            kind: ProbeKind::Ping,
        });
    }
    let routes: BTreeSet<Route> = world.machine.routes().collect();
    assert!(routes.len() <= 16);
    for n in 1..=10 {
        assert!(routes.contains(&direct(n)), "{n}");
    }
    // Those that do not answer go by themselves.
    world.run(ms(5000));
    assert!(world.machine.routes().count() <= 16);
    assert_eq!(world.machine.chosen(), Some(direct(1)));
}

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
        (0u8..3).prop_map(Step::Rotated),
        (0u8..3).prop_map(Step::Closed),
        (1u64..3000).prop_map(Step::Run),
    ]
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
                Step::Nated(nated) => world.tell(Event::Nated(nated)),
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
