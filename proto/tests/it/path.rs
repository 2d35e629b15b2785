//! The machine of a peer's paths, against a network of our own: some ways answer, some do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::{Identity, NodeId};
use meshwork_proto::path::{Action, Event, MAX_SPREAD, PathConfig, PeerPaths, ProbeKind, Route};

mod doubt;
mod property;

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
    spread: Vec<(Duration, [Option<Route>; MAX_SPREAD])>,
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
            spread: Vec::new(),
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
                Action::Spread(over) => self.spread.push((self.now, over)),
                Action::Lost => {}
            }
        }
    }

    /// There is a NAT on all ways, or on none.
    fn nated(&mut self, nated: bool) {
        let routes: Vec<Route> = self.machine.routes().collect();
        for route in routes {
            self.tell(Event::Nated { route, nated });
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

    /// The ways that packets go over beside the one in use.
    fn spread(&self) -> [Option<Route>; MAX_SPREAD] {
        let last = self.spread.last();
        last.map_or([None; MAX_SPREAD], |(_, over)| *over)
    }

    /// Pings that tell the peer where to go.
    fn moves(&self) -> usize {
        self.pings.iter().filter(|(_, _, moving)| *moving).count()
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
    world.nated(true);
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

/// A dual-stack peer has answered over IPv6, too, where there is no NAT.
#[test]
fn a_nat_on_another_way_says_nothing_about_the_one_in_use() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (direct(2), 20)]);
    world.tell(Event::Offered(&[addr(2)]));
    world.run(ms(1000));
    for (nated_way, plain, pings) in [(1, 2, 4), (2, 1, 0)] {
        for (n, nated) in [(nated_way, true), (plain, false)] {
            let route = direct(n);
            world.tell(Event::Nated { route, nated });
        }
        let before = world.pings.len();
        world.run(ms(60_000));
        assert_eq!(world.pings.len() - before, pings, "NAT on way {nated_way}");
    }
}

/// Whoever sends from there then is a stranger.
#[test]
fn a_way_that_merely_came_with_a_packet_is_forgotten_with_its_socket() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (at(1, 1), 20)]);
    let stray = direct(9);
    world.alive.insert(stray, ms(20));
    let kind = ProbeKind::Ping;
    world.tell(Event::Ping { route: stray, kind });
    world.run(ms(1000));
    world.tell(Event::Rotated { socket: 1 });
    world.run(ms(1000));
    assert_eq!(world.forgotten, []);
    world.tell(Event::Closed { socket: 0 });
    assert!(world.forgotten.contains(&stray), "{:?}", world.forgotten);
    let on_it = |route: &Route| matches!(route, Route::Direct { socket: 0, .. });
    assert!(!world.machine.routes().any(|route| on_it(&route)));
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
    assert!((13..=16).contains(&pings), "{pings}");
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
    assert!((20..=26).contains(&pings), "{pings}");
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
fn relays_that_bring_no_answer_make_room_for_one_that_does() {
    let mut world = World::connected(direct(1), &[(direct(1), 20), (via(4), 40)]);
    for mute in 1..=3 {
        world.tell(Event::RelayUp(relay(mute)));
    }
    world.run(Duration::from_secs(2));
    world.tell(Event::RelayUp(relay(4)));
    world.run(Duration::from_secs(2));
    assert!(world.machine.alive().any(|route| route == via(4)));
    assert_eq!(
        world
            .machine
            .routes()
            .filter(|way| !way.is_direct())
            .count(),
        3
    );
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
