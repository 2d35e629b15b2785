//! What the machine does by itself as time passes: tries ways, watches the one in use, looks for better.

use std::cmp::Reverse;
use std::time::Duration;

use super::{
    DEAD_AFTER, DENSE_TRIALS, MAX_PENDING, PUNCH_TRIALS, Path, PeerPaths, Pending, RTT, TRIAL_GAP,
    TRIALS,
};
use crate::path::{Action, MAX_SPREAD, ProbeKind, Route};

/// Time between two pings of the way in use while it is in doubt.
const DOUBT_GAP: Duration = Duration::from_millis(80);
/// Pings of the way in use that are lost before another one is taken: one or two are lost on sound ways.
const CERTAIN: u8 = 3;
/// Time between two rounds of pings on all ways while none answers: first, and at most.
const SEARCH_GAP: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A search that finds nothing ends after this: QUIC gives the connection up before.
const SEARCH_END: Duration = Duration::from_mins(1);
/// Time between two rounds of pings on straight ways while a relay is used: first, and at most. The first
/// comes soon, as a straight way was mostly in use before.
const RECHECK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(64));
/// Acknowledgements may wait for so long (RFC 9000 §18.2, `max_ack_delay`).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// An answer may be late by this much.
const GRACE: Duration = Duration::from_millis(20);

/// The way in use may be broken.
#[derive(Debug)]
pub(super) struct Doubt {
    since: Duration,
    begun: Duration,
    /// How long an answer may take.
    patience: Duration,
    /// Pings of the way in use.
    asked: u8,
    next_ping: Duration,
    next_search: Duration,
    gap: Duration,
    /// When packets begin to go over other ways, too.
    spread_at: Duration,
    spreading: bool,
    /// When the last of [`CERTAIN`] pings is taken for lost.
    verdict_at: Option<Duration>,
    /// All of them are: the first way that answers is used.
    pub(super) broken: bool,
}

impl Doubt {
    pub(super) fn next_timer(&self) -> Duration {
        let verdict = self.verdict_at.filter(|_| !self.broken);
        let spread = Some(self.spread_at).filter(|_| !self.spreading);
        let times = [verdict, spread, Some(self.next_search)];
        times
            .into_iter()
            .flatten()
            .fold(self.next_ping, Duration::min)
    }

    /// The way in use is pinged now.
    fn ask(&mut self, now: Duration) {
        self.asked = self.asked.saturating_add(1);
        if self.asked == CERTAIN {
            self.verdict_at = Some(now + self.patience);
        }
        self.next_ping = if self.asked < CERTAIN {
            now + DOUBT_GAP
        } else {
            // With all the others.
            self.next_search
        };
    }
}

impl PeerPaths {
    /// Does what is due.
    pub(super) fn step(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.do_trials(now, out);
        self.watch(now, out);
        self.keep_alive(now, out);
        self.look_past_relay(now);
        self.do_trials(now, out);
    }

    /// Pings the ways that are on trial.
    fn do_trials(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.paths.iter().all(|path| path.trials == 0) {
            self.next_trial = None;
            return;
        }
        if self.next_trial.is_some_and(|at| now < at) {
            return;
        }
        let mut routes = Vec::new();
        for path in self.paths.iter_mut().filter(|path| path.trials > 0) {
            let sparse = TRIALS + 1..=PUNCH_TRIALS - DENSE_TRIALS;
            if !sparse.contains(&path.trials) || path.trials % 5 == 0 {
                routes.push(path.route);
            }
            path.trials -= 1;
        }
        for route in routes {
            self.ping(now, route, false, out);
        }
        self.prune(out);
        let more = self.paths.iter().any(|path| path.trials > 0);
        self.next_trial = more.then_some(now + TRIAL_GAP);
    }

    /// Forgets ways that only came with a packet and do not answer; takes others for dead.
    fn prune(&mut self, out: &mut Vec<Action>) {
        let chosen = self.chosen;
        for path in &mut self.paths {
            if path.unanswered >= DEAD_AFTER && Some(path.route) != chosen {
                path.proven = None;
            }
        }
        self.paths.retain(|path| {
            let keep = path.offered
                || path.proven.is_some()
                || path.trials > 0
                || path.unanswered < DEAD_AFTER
                || Some(path.route) == chosen;
            if !keep {
                out.push(Action::Forget(path.route));
            }
            keep
        });
    }

    /// Looks whether the way in use still works, and for another one if not.
    fn watch(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(chosen) = self.chosen else {
            return;
        };
        // No answer comes sooner than a round trip allows, and QUIC's delay of acknowledgements.
        let answer = self.rtt(chosen).unwrap_or_default() * 3 / 2 + ACK_DELAY;
        let patience = self.config.ping_after.max(answer);
        if let Some(since) = self.traffic.silence(now, patience) {
            self.begin_doubt(now, since);
        }
        let Some(doubt) = &mut self.doubt else {
            return;
        };
        if now.saturating_sub(doubt.since) > SEARCH_END {
            self.doubt = None;
            self.traffic.give_up();
            out.push(Action::Lost);
            return;
        }
        doubt.spreading |= now >= doubt.spread_at;
        let verdict = !doubt.broken && doubt.verdict_at.is_some_and(|at| now >= at);
        doubt.broken |= verdict;
        let mut due = Vec::new();
        if now >= doubt.next_search {
            doubt.next_search = now + doubt.gap;
            doubt.gap = (doubt.gap * 2).min(SEARCH_GAP.1);
            doubt.ask(now);
            due.extend(self.paths.iter().map(|path| path.route));
        } else if now >= doubt.next_ping {
            doubt.ask(now);
            due.push(chosen);
        }
        for route in due {
            self.ping(now, route, false, out);
        }
        if verdict && let Some(route) = self.best_answer() {
            self.switch(now, route, true, out);
        }
    }

    /// The best of the ways that have answered since the one in use is in doubt.
    fn best_answer(&self) -> Option<Route> {
        let begun = self.doubt.as_ref()?.begun;
        let chosen = self.chosen;
        let answered = self.paths.iter().filter(|path| {
            Some(path.route) != chosen && path.proven.is_some_and(|proven| proven >= begun)
        });
        let best = answered.max_by_key(|path| {
            let rtt = path.rtt.unwrap_or(RTT);
            (
                path.route.is_direct(),
                self.is_newest(path.route),
                Reverse(rtt),
            )
        });
        best.map(|path| path.route)
    }

    /// The way in use may carry nothing since `since`.
    pub(super) fn begin_doubt(&mut self, now: Duration, since: Duration) {
        if self.doubt.is_some() {
            return;
        }
        let rtt = self.chosen.and_then(|route| self.rtt(route)).unwrap_or(RTT);
        let patience = rtt * 3 / 2 + GRACE;
        self.doubt = Some(Doubt {
            since,
            begun: now,
            patience,
            asked: 0,
            next_ping: now,
            next_search: (now + patience).max(since + self.config.search_after),
            gap: SEARCH_GAP.0,
            spread_at: now + patience,
            spreading: false,
            verdict_at: None,
            broken: false,
        });
    }

    /// The NAT before the socket in use has another address for it. Those that it filters for do not
    /// reach us until they know.
    pub(super) fn remapped(&mut self, now: Duration) {
        if !self.is_nated() || !self.chosen.is_some_and(|route| self.is_newest(route)) {
            return;
        }
        self.begin_doubt(now, now);
        if let Some(doubt) = &mut self.doubt {
            doubt.spread_at = now;
        }
    }

    /// Says over which ways packets go beside the one in use, if that has changed.
    pub(super) fn spread(&mut self, out: &mut Vec<Action>) {
        let spread = self.others();
        if spread != self.spread {
            self.spread = spread;
            out.push(Action::Spread(spread));
        }
    }

    /// While the way in use is in doubt: the others that most likely work. Those of the other kind
    /// hardly break with it.
    fn others(&self) -> [Option<Route>; MAX_SPREAD] {
        let (Some(chosen), Some(doubt)) = (self.chosen, &self.doubt) else {
            return [None; MAX_SPREAD];
        };
        if !doubt.spreading {
            return [None; MAX_SPREAD];
        }
        let mut others: Vec<&Path> = self.paths.iter().collect();
        others.retain(|path| {
            let likely = path.proven.is_some() || !path.route.is_direct();
            path.route != chosen && likely
        });
        others.sort_by_key(|path| {
            let silent = path.proven.is_none_or(|proven| proven < doubt.begun);
            let same_kind = path.route.is_direct() == chosen.is_direct();
            let rtt = path.rtt.unwrap_or(RTT);
            (silent, path.proven.is_none(), same_kind, rtt, path.route)
        });
        std::array::from_fn(|index| others.get(index).map(|path| path.route))
    }

    /// Keeps the NAT's mapping alive, and learns when it changes. Without a NAT, the peer learns in this
    /// way when we have moved, while something flows.
    fn keep_alive(&mut self, now: Duration, out: &mut Vec<Action>) {
        let busy = self.traffic.is_busy(now);
        let nated = self.is_nated();
        let watched = |route: &Route| route.is_direct() && (nated || busy);
        let Some(chosen) = self.chosen.filter(watched) else {
            self.next_keep_alive = None;
            return;
        };
        let gap = if busy && nated {
            self.config.busy_ping
        } else {
            self.config.keep_alive
        };
        let at = self.next_keep_alive.unwrap_or(now + gap).min(now + gap);
        if at > now {
            self.next_keep_alive = Some(at);
            return;
        }
        self.next_keep_alive = Some(now + gap);
        self.ping(now, chosen, false, out);
    }

    /// Tries the straight ways again, more and more seldom, while a relay is in use.
    fn look_past_relay(&mut self, now: Duration) {
        let direct = self.paths.iter().any(|path| path.route.is_direct());
        if !direct || self.chosen.is_none_or(|route| route.is_direct()) {
            self.recheck = None;
            return;
        }
        let (at, gap) = self.recheck.unwrap_or((now + RECHECK.0, RECHECK.0));
        if now < at {
            self.recheck = Some((at, gap));
            return;
        }
        for path in &mut self.paths {
            if path.route.is_direct() {
                path.trials = path.trials.max(1);
            }
        }
        let gap = (gap * 2).min(RECHECK.1);
        self.recheck = Some((now + gap, gap));
    }

    pub(super) fn ping(
        &mut self,
        now: Duration,
        route: Route,
        moving: bool,
        out: &mut Vec<Action>,
    ) {
        let kind = match self.chosen {
            _ if moving => ProbeKind::Move,
            Some(chosen) if chosen == route => ProbeKind::Used,
            _ => ProbeKind::Ping,
        };
        self.transaction += 1;
        if self.pending.len() == MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(Pending {
            transaction: self.transaction,
            route,
            at: now,
        });
        if let Some(path) = self.find_mut(route) {
            path.unanswered = path.unanswered.saturating_add(1);
        }
        out.push(Action::Ping {
            route,
            transaction: self.transaction,
            kind,
        });
    }
}
