//! The ways to one peer: which there are, which are alive, which to use.
//!
//! A way is alive when a ping over it was answered. Straight ways beat relays, and a shorter round
//! trip beats a longer one by a margin. While packets flow and none come back, the way in use is
//! pinged. Unless the answer comes in time, packets go over the best of the other ways, too, until
//! either an answer comes or a few pings were lost; then the best that answers is used. QUIC above
//! sees some lost packets and some that come twice, no more.
//! Whoever chooses another way tells the peer, which follows: so both directions keep one NAT
//! mapping alive. When both have moved at once, the follower of the two gives way.

mod search;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_identity::NodeId;

use self::search::Doubt;
use super::traffic::Traffic;
use super::{Action, Event, MAX_SPREAD, PathConfig, ProbeKind, Route, canonical};

/// Straight ways to a peer that are remembered. The worst makes room for a new one.
const MAX_DIRECT: usize = 16;
/// Relays to a peer that are remembered.
const MAX_RELAYS: usize = 3;
/// Pings whose answer is awaited. The oldest makes room.
const MAX_PENDING: usize = 128;
/// Pings of a new way.
const TRIALS: u8 = 3;
/// Trials of a way through NATs: for 5 s, until the mappings of both sides are surely there.
const PUNCH_TRIALS: u8 = 50;
/// After so many of them, only every fifth is a ping: who does not answer gets few.
const DENSE_TRIALS: u8 = 10;
/// Time between two pings of a new way.
const TRIAL_GAP: Duration = Duration::from_millis(100);
/// Pings without an answer after which a way counts as dead.
const DEAD_AFTER: u8 = 5;
/// Round-trip time of a way that was never pinged.
const RTT: Duration = Duration::from_millis(200);
/// An answer is news for so long: whoever wants us on that way is followed without another ping.
const FRESH: Duration = Duration::from_secs(3);
/// A straight way replaces another when its round trip is this much shorter: a fifth, and 2 ms.
const MARGIN: Duration = Duration::from_millis(2);

/// The machine of one peer. See the [module](super) for its place.
#[derive(Debug)]
pub struct PeerPaths {
    config: PathConfig,
    leads: bool,
    paths: Vec<Path>,
    chosen: Option<Route>,
    /// Where the peer wants us.
    wanted: Option<Route>,
    socket: u8,
    transaction: u64,
    pending: VecDeque<Pending>,
    traffic: Traffic,
    next_trial: Option<Duration>,
    next_keep_alive: Option<Duration>,
    recheck: Option<(Duration, Duration)>,
    doubt: Option<Doubt>,
    /// The ways that packets go over, too.
    spread: [Option<Route>; MAX_SPREAD],
}

/// What is known of one way.
#[derive(Debug)]
struct Path {
    route: Route,
    /// Whether somebody told us of it, rather than that a packet came over it.
    offered: bool,
    /// Pings still to be sent, one every [`TRIAL_GAP`].
    trials: u8,
    unanswered: u8,
    /// The last answer, while it counts as alive.
    proven: Option<Duration>,
    /// The shortest round trip.
    rtt: Option<Duration>,
    samples: u8,
    /// Whether there is a NAT on it.
    nated: bool,
}

#[derive(Debug)]
struct Pending {
    transaction: u64,
    route: Route,
    at: Duration,
}

impl PeerPaths {
    /// A peer of which nothing is known, from the socket of this number. One of the two ends leads.
    pub fn new(config: PathConfig, leads: bool, socket: u8) -> Self {
        Self {
            config,
            leads,
            paths: Vec::new(),
            chosen: None,
            wanted: None,
            socket,
            transaction: 0,
            pending: VecDeque::new(),
            traffic: Traffic::default(),
            next_trial: None,
            next_keep_alive: None,
            recheck: None,
            doubt: None,
            spread: [None; MAX_SPREAD],
        }
    }

    /// Takes note of an event at time `now`, and says what to do about it, in order.
    pub fn handle(&mut self, now: Duration, event: Event<'_>, out: &mut Vec<Action>) {
        match event {
            Event::Offered(addrs) => self.offer(addrs, TRIALS, out),
            Event::Punch(addrs) => self.offer(addrs, PUNCH_TRIALS, out),
            Event::RelayUp(relay) => self.relay_up(relay, out),
            Event::RelayDown(relay) => self.drop_route(Route::Relay(relay), now, out),
            Event::Proven(route) => self.proven(now, route, out),
            Event::Ping { route, kind } => self.pinged(now, route, kind, out),
            Event::Pong { route, transaction } => self.ponged(now, route, transaction, out),
            Event::Traffic { sent, received } => self.sampled(now, sent, received),
            Event::Taken(addr) => self.taken(now, addr, out),
            Event::Nated { route, nated } => {
                if let Some(path) = self.find_mut(route) {
                    path.nated = nated;
                }
            }
            Event::Remapped => self.remapped(now),
            Event::Rotated { socket } => self.rotated(socket, out),
            Event::Closed { socket } => self.closed(now, socket, out),
            Event::Timer => {}
        }
        self.step(now, out);
        self.spread(out);
    }

    /// When [`Event::Timer`] is due.
    pub fn next_timer(&self) -> Option<Duration> {
        let doubt = self.doubt.as_ref();
        [
            self.next_trial,
            self.next_keep_alive,
            self.traffic.next_sample(),
            self.recheck.map(|(at, _)| at),
            doubt.map(Doubt::next_timer),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether it looks at the traffic by itself, at its timer.
    pub fn is_watching(&self) -> bool {
        self.traffic.next_sample().is_some()
    }

    /// The way in use.
    pub fn chosen(&self) -> Option<Route> {
        self.chosen
    }

    /// Whether nothing is known to be wrong with the way in use.
    pub fn is_sound(&self) -> bool {
        self.chosen.is_some() && self.doubt.is_none()
    }

    /// Round-trip time of a way, from its pings: the shortest.
    pub fn rtt(&self, route: Route) -> Option<Duration> {
        self.find(route).and_then(|path| path.rtt)
    }

    /// Whether an answer to this ping is awaited over this way.
    pub fn awaits(&self, route: Route, transaction: u64) -> bool {
        let matches = |ping: &Pending| ping.transaction == transaction && ping.route == route;
        self.pending.iter().any(matches)
    }

    /// The number of the last ping.
    pub fn last_transaction(&self) -> u64 {
        self.transaction
    }

    /// Numbers the next pings from above `transaction` on: those below are used up.
    pub fn skip_transactions(&mut self, transaction: u64) {
        self.transaction = self.transaction.max(transaction);
    }

    /// Ways that are remembered.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.paths.iter().map(|path| path.route)
    }

    /// Ways that answer.
    pub fn alive(&self) -> impl Iterator<Item = Route> {
        let alive = self.paths.iter().filter(|path| path.proven.is_some());
        alive.map(|path| path.route)
    }

    fn find(&self, route: Route) -> Option<&Path> {
        self.paths.iter().find(|path| path.route == route)
    }

    fn find_mut(&mut self, route: Route) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.route == route)
    }

    /// Whether there is a NAT on a way to this address of the peer.
    fn is_nated_at(&self, addr: Option<SocketAddr>) -> bool {
        let mut paths = self.paths.iter();
        paths.any(|path| path.nated && path.route.addr() == addr)
    }

    /// Whether there is a NAT on the way in use.
    fn is_nated(&self) -> bool {
        let chosen = self.chosen.and_then(|route| self.find(route));
        chosen.is_some_and(|path| path.nated)
    }

    fn direct(&self, addr: SocketAddr) -> Route {
        let addr = canonical(addr);
        Route::Direct {
            socket: self.socket,
            addr,
        }
    }

    fn offer(&mut self, addrs: &[SocketAddr], trials: u8, out: &mut Vec<Action>) {
        for addr in addrs.iter().take(MAX_DIRECT) {
            let route = self.direct(*addr);
            self.add(route, true, trials, out);
        }
        // What is told anew is worth looking at anew.
        if self.recheck.is_some() {
            self.recheck = None;
        }
    }

    /// A link to a relay says nothing of the peer behind it: a relay that did not bring an answer makes
    /// room for one that may.
    fn relay_up(&mut self, relay: NodeId, out: &mut Vec<Action>) {
        let route = Route::Relay(relay);
        if self.find(route).is_some() {
            return;
        }
        let chosen = self.chosen;
        let relays = self.paths.iter().filter(|path| !path.route.is_direct());
        if relays.count() >= MAX_RELAYS {
            let is_mute = |path: &Path| {
                !path.route.is_direct()
                    && Some(path.route) != chosen
                    && path.proven.is_none()
                    && path.unanswered >= TRIALS
            };
            let Some(index) = self.paths.iter().position(is_mute) else {
                return;
            };
            out.push(Action::Forget(self.paths.remove(index).route));
        }
        self.paths.push(Path::new(route, true, TRIALS));
    }

    /// Remembers a way, and pings it so often.
    fn add(&mut self, route: Route, offered: bool, trials: u8, out: &mut Vec<Action>) {
        if let Some(path) = self.find_mut(route) {
            path.offered |= offered;
            path.trials = path.trials.max(trials);
            return;
        }
        if route.is_direct() {
            let direct = self.paths.iter().filter(|path| path.route.is_direct());
            if direct.count() >= MAX_DIRECT && !self.make_room(offered, out) {
                return;
            }
        } else {
            let relays = self.paths.iter().filter(|path| !path.route.is_direct());
            if relays.count() >= MAX_RELAYS {
                return;
            }
        }
        let mut path = Path::new(route, offered, trials);
        // From another socket of ours, as far as is known, it is the same way.
        path.nated = route.is_direct() && self.is_nated_at(route.addr());
        self.paths.push(path);
    }

    /// Remembers a way even if another one of its kind, which is not in use, must go for it.
    fn insist(&mut self, route: Route, out: &mut Vec<Action>) {
        self.add(route, true, 0, out);
        if self.find(route).is_some() {
            return;
        }
        let chosen = self.chosen;
        let of_kind = |path: &Path| path.route.is_direct() == route.is_direct();
        let mut paths = self.paths.iter();
        let index = paths.position(|path| of_kind(path) && Some(path.route) != chosen);
        if let Some(index) = index {
            out.push(Action::Forget(self.paths.remove(index).route));
        }
        self.add(route, true, 0, out);
    }

    /// Drops the worst straight way that is neither in use nor alive. What merely came with a packet
    /// pushes out nothing that was offered.
    fn make_room(&mut self, for_offered: bool, out: &mut Vec<Action>) -> bool {
        let chosen = self.chosen;
        let expendable = |path: &Path| {
            path.route.is_direct()
                && Some(path.route) != chosen
                && path.proven.is_none()
                && (for_offered || !path.offered)
        };
        let candidates = self.paths.iter().enumerate();
        let worst = candidates
            .filter(|(_, path)| expendable(path))
            .min_by_key(|(_, path)| (path.offered, path.trials, u8::MAX - path.unanswered));
        let Some((index, _)) = worst else {
            return false;
        };
        out.push(Action::Forget(self.paths.remove(index).route));
        true
    }

    fn proven(&mut self, now: Duration, route: Route, out: &mut Vec<Action>) {
        self.insist(route, out);
        self.heard(now);
        if let Some(path) = self.find_mut(route) {
            path.proven = Some(now);
            path.unanswered = 0;
            path.trials = path.trials.max(TRIALS);
        }
        // Nothing is more certain to work now. A better way that works, too, answers its next ping.
        if let Some(before) = self.chosen.filter(|before| *before != route)
            && let Some(path) = self.find_mut(before)
        {
            path.trials = path.trials.max(TRIALS);
        }
        self.switch(now, route, false, out);
    }

    fn pinged(&mut self, now: Duration, route: Route, kind: ProbeKind, out: &mut Vec<Action>) {
        self.add(route, false, 0, out);
        let chosen = self.chosen;
        let Some(path) = self.find_mut(route) else {
            return;
        };
        if chosen == Some(route) {
            return;
        }
        if path.proven.is_none() || kind != ProbeKind::Ping {
            path.trials = path.trials.max(TRIALS);
        }
        let fresh = path.proven.is_some_and(|at| at + FRESH > now);
        match kind {
            ProbeKind::Ping | ProbeKind::Pong => {}
            // The peer does not know which of our sockets is the one to stay.
            _ if self.outranks(route) => {
                if let Some(chosen) = chosen {
                    self.ping(now, chosen, true, out);
                }
            }
            // Either the peer has not heard of our way, or ours does not carry any more.
            ProbeKind::Used if self.leads && chosen.is_some() => self.begin_doubt(now, now),
            ProbeKind::Used | ProbeKind::Move => {
                self.wanted = Some(route);
                if fresh {
                    self.switch(now, route, false, out);
                }
            }
        }
    }

    fn ponged(&mut self, now: Duration, route: Route, transaction: u64, out: &mut Vec<Action>) {
        let matches = |ping: &Pending| ping.transaction == transaction && ping.route == route;
        let Some(index) = self.pending.iter().position(matches) else {
            return;
        };
        let ping = self.pending.remove(index).expect("its position was found");
        let rtt = now.saturating_sub(ping.at);
        let Some(path) = self.find_mut(route) else {
            return;
        };
        path.proven = Some(now);
        path.unanswered = 0;
        path.samples = path.samples.saturating_add(1);
        path.rtt = Some(path.rtt.map_or(rtt, |known| known.min(rtt)));
        if route.is_direct() && path.trials > TRIALS {
            // The hole is there.
            self.end_punching();
        }
        self.weigh(now, route, out);
        if self.chosen == Some(route) {
            if self.doubt.is_some() {
                // What came before has just ended: one ping is enough to know.
                self.traffic.end_stream();
            }
            self.heard(now);
        }
    }

    /// Other holes are not needed: what is left are the pings that compare.
    fn end_punching(&mut self) {
        for path in &mut self.paths {
            path.trials = path.trials.min(TRIALS);
        }
    }

    /// Uses `route`, which has just answered, if that is better.
    fn weigh(&mut self, now: Duration, route: Route, out: &mut Vec<Action>) {
        let Some(chosen) = self.chosen else {
            return self.switch(now, route, true, out);
        };
        if chosen == route {
            return;
        }
        if self.wanted == Some(route) {
            return self.switch(now, route, false, out);
        }
        let newer = |route| self.is_newest(route);
        let better = self.doubt.as_ref().is_some_and(|doubt| doubt.broken)
            || route.is_direct() && !chosen.is_direct()
            || route.is_direct() && newer(route) && !newer(chosen)
            || route.is_direct() == chosen.is_direct()
                && newer(route) == newer(chosen)
                && self.is_faster(route, chosen);
        if better {
            self.switch(now, route, true, out);
        }
    }

    /// Whether it leads from the socket that is to be used.
    fn is_newest(&self, route: Route) -> bool {
        matches!(route, Route::Direct { socket, .. } if socket == self.socket)
    }

    /// Whether the way in use is sound and leads from our newest socket, which `route` does not.
    fn outranks(&self, route: Route) -> bool {
        let newest = self.chosen.is_some_and(|chosen| self.is_newest(chosen));
        newest && self.doubt.is_none() && route.is_direct() && !self.is_newest(route)
    }

    /// Whether enough pings say that a way is faster by the margin.
    fn is_faster(&self, route: Route, than: Route) -> bool {
        let measured = |route| {
            let path = self.find(route)?;
            (path.samples >= TRIALS).then_some(path.rtt?)
        };
        match (measured(route), measured(than)) {
            (Some(rtt), Some(other)) => rtt * 6 / 5 + MARGIN < other,
            _ => false,
        }
    }

    fn switch(&mut self, now: Duration, route: Route, tell: bool, out: &mut Vec<Action>) {
        self.wanted = None;
        self.recheck = None;
        self.doubt = None;
        self.heard(now);
        if self.chosen == Some(route) {
            return;
        }
        self.chosen = Some(route);
        self.next_keep_alive = None;
        out.push(Action::Use(route));
        if tell {
            self.ping(now, route, true, out);
        }
    }

    fn heard(&mut self, now: Duration) {
        self.traffic.heard(now);
        self.doubt = None;
    }

    fn taken(&mut self, now: Duration, addr: SocketAddr, out: &mut Vec<Action>) {
        let addr = canonical(addr);
        let routes: Vec<Route> = self.routes().collect();
        for route in routes {
            if route.addr() == Some(addr) {
                self.drop_route(route, now, out);
            }
        }
    }

    /// Forgets a way. If it is in use, the best of the others is.
    fn drop_route(&mut self, route: Route, now: Duration, out: &mut Vec<Action>) {
        if self.find(route).is_none() {
            return;
        }
        self.paths.retain(|path| path.route != route);
        self.pending.retain(|ping| ping.route != route);
        out.push(Action::Forget(route));
        if self.chosen == Some(route) {
            self.choose_anew(now, out);
        }
    }

    /// The way in use is gone: takes the most promising of the others, and looks for a better one.
    fn choose_anew(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.chosen = None;
        // It was about the way that is gone. If there is no other, nothing would end it.
        self.doubt = None;
        let promise = |path: &&Path| {
            let alive = path.proven.is_some();
            (alive, path.route.is_direct(), path.proven)
        };
        let best = self.paths.iter().max_by_key(promise).map(|path| path.route);
        if let Some(route) = best {
            self.switch(now, route, true, out);
        }
        for path in &mut self.paths {
            path.trials = path.trials.max(TRIALS);
        }
    }

    /// Moves to another socket: the way in use is tried from there, and left when that answers.
    fn rotated(&mut self, socket: u8, out: &mut Vec<Action>) {
        self.socket = socket;
        if let Some(Route::Direct { addr, .. }) = self.chosen {
            let route = Route::Direct { socket, addr };
            self.add(route, true, PUNCH_TRIALS, out);
        }
    }

    fn closed(&mut self, now: Duration, socket: u8, out: &mut Vec<Action>) {
        let current = self.socket;
        let on_it =
            |route: Route| matches!(route, Route::Direct { socket: of, .. } if of == socket);
        if socket == current {
            return;
        }
        let gone: Vec<Route> = self.routes().filter(|route| on_it(*route)).collect();
        let was_used = self.chosen.filter(|route| on_it(*route));
        for route in gone {
            let offered = self.find(route).is_some_and(|path| path.offered);
            let in_use = self.chosen == Some(route);
            let nated = self.is_nated_at(route.addr());
            self.paths.retain(|path| path.route != route);
            self.pending.retain(|ping| ping.route != route);
            // Unless another way leads to the same address, nobody is known there any more.
            out.push(Action::Forget(route));
            if let (Route::Direct { addr, .. }, true) = (route, offered || in_use) {
                let trials = if in_use { TRIALS } else { 0 };
                let route = self.direct(addr);
                if in_use {
                    self.insist(route, out);
                }
                self.add(route, true, trials, out);
                if let Some(path) = self.find_mut(route) {
                    path.nated |= nated;
                }
            }
        }
        let Some(addr) = was_used.and_then(|route| route.addr()) else {
            return;
        };
        let same = self.direct(addr);
        if self.alive().next().is_none() && self.find(same).is_some() {
            self.switch(now, same, true, out);
        } else {
            self.choose_anew(now, out);
        }
    }

    fn sampled(&mut self, now: Duration, sent: u64, received: u64) {
        if self.traffic.sample(now, sent, received) {
            self.heard(now);
        }
    }
}

impl Path {
    fn new(route: Route, offered: bool, trials: u8) -> Self {
        Self {
            route,
            offered,
            trials,
            unanswered: 0,
            proven: None,
            rtt: None,
            samples: 0,
            nated: false,
        }
    }
}
