//! What the machine does by itself as time passes: tries ways, watches the one in use, looks for better.

use std::time::Duration;

use super::{DEAD_AFTER, MAX_PENDING, PeerPaths, Pending, RTT, TRIAL_GAP};
use crate::path::{Action, ProbeKind, Route};

/// Time between two pings of the way in use while it is in doubt.
const DOUBT_GAP: Duration = Duration::from_millis(200);
/// Time between two rounds of pings on all ways while none answers: first, and at most.
const SEARCH_GAP: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A search that finds nothing ends after this: QUIC gives the connection up before.
const SEARCH_END: Duration = Duration::from_mins(1);
/// Time between two rounds of pings on straight ways while a relay is used: first, and at most.
const RECHECK: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(64));

/// The way in use may be broken.
#[derive(Debug)]
pub(super) struct Doubt {
    since: Duration,
    /// When a sound way would have answered.
    pub(super) overdue: Duration,
    pub(super) next_ping: Duration,
    pub(super) next_search: Duration,
    gap: Duration,
    pub(super) searching: bool,
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
        let due = self.paths.iter_mut().filter(|path| path.trials > 0);
        let routes: Vec<Route> = due
            .map(|path| {
                path.trials -= 1;
                path.route
            })
            .collect();
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
        if let Some(since) = self.traffic.silence(now, self.config.ping_after) {
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
        let mut due = Vec::new();
        if now >= doubt.next_search {
            doubt.searching = true;
            doubt.next_search = now + doubt.gap;
            doubt.next_ping = doubt.next_search;
            doubt.gap = (doubt.gap * 2).min(SEARCH_GAP.1);
            due.extend(self.paths.iter().map(|path| path.route));
        } else if now >= doubt.next_ping {
            doubt.next_ping = now + DOUBT_GAP;
            due.push(chosen);
        }
        for route in due {
            self.ping(now, route, false, out);
        }
    }

    /// The way in use may carry nothing since `since`.
    pub(super) fn begin_doubt(&mut self, now: Duration, since: Duration) {
        if self.doubt.is_some() {
            return;
        }
        let rtt = self.chosen.and_then(|route| self.rtt(route)).unwrap_or(RTT);
        self.doubt = Some(Doubt {
            since,
            overdue: now + rtt * 2 + TRIAL_GAP / 2,
            next_ping: now,
            next_search: since + self.config.search_after,
            gap: SEARCH_GAP.0,
            searching: false,
        });
    }

    /// Keeps the NAT's mapping alive, and learns when it changes. Without a NAT, the peer learns in this
    /// way when we have moved, while something flows.
    fn keep_alive(&mut self, now: Duration, out: &mut Vec<Action>) {
        let busy = self.traffic.is_busy(now);
        let watched = |route: &Route| route.is_direct() && (self.nated || busy);
        let Some(chosen) = self.chosen.filter(watched) else {
            self.next_keep_alive = None;
            return;
        };
        let gap = if busy && self.nated {
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
