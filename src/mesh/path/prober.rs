//! Drives the machines of all peers: tells them what happens and does what they ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_proto::path::{Action, Event, PROBE_LEN, Probe, ProbeKind, Route};
use tokio::sync::Notify;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use super::keys::ProbeKeys;
use super::remote::{Remote, RemoteState};
use super::stats::Counters;
use super::{Paths, Taken};

/// Longest sleep of the prober: what expires without a timer of its own is looked at then.
const ROUND: Duration = Duration::from_secs(10);

/// Between two times that all ways are looked at because our address has changed. A peer that lies
/// about it makes us send so many pings and no more.
const REMAP_PAUSE: Duration = Duration::from_secs(1);

/// A handshake is over after this, one way or the other.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// When which machine is to be told the time.
#[derive(Default)]
pub(super) struct Schedule {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    due: BTreeSet<(Duration, u64)>,
    at: BTreeMap<u64, Duration>,
    /// Machines that are to be told of traffic.
    active: BTreeSet<u64>,
}

impl Schedule {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The machine is to be told the time at `at`, and at no other.
    pub(super) fn set(&self, id: u64, at: Option<Duration>) {
        let sooner = self.with(|inner| {
            let first = inner.due.first().map(|(at, _)| *at);
            if let Some(before) = inner.at.remove(&id) {
                inner.due.remove(&(before, id));
            }
            if let Some(at) = at {
                inner.at.insert(id, at);
                inner.due.insert((at, id));
            }
            at.is_some_and(|at| first.is_none_or(|first| at < first))
        });
        if sooner {
            self.changed.notify_one();
        }
    }

    fn next(&self) -> Option<Duration> {
        self.with(|inner| inner.due.first().map(|(at, _)| *at))
    }

    /// Takes the machines that are due or active.
    fn take(&self, now: Duration) -> BTreeSet<u64> {
        self.with(|inner| {
            let mut ids = std::mem::take(&mut inner.active);
            while let Some(&(at, id)) = inner.due.first()
                && at <= now
            {
                inner.due.pop_first();
                inner.at.remove(&id);
                ids.insert(id);
            }
            ids
        })
    }
}

impl Paths {
    /// Watches the paths of all peers until `stop`. To be run once.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let rounds = async {
            loop {
                let now = self.now();
                let next = self.next_wake(now);
                tokio::select! {
                    biased;
                    () = self.schedule.changed.notified() => {}
                    () = sleep_until(self.started + next) => {}
                }
                self.do_due(self.now());
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = rounds => {}
        }
        self.relay_queue.close();
    }

    fn next_wake(&self, now: Duration) -> Duration {
        let rotation = self.next_rotation().map(|at| at.max(now));
        let times = [self.schedule.next(), rotation, Some(now + ROUND)];
        times.into_iter().flatten().min().unwrap_or(now + ROUND)
    }

    fn do_due(&self, now: Duration) {
        for id in self.schedule.take(now) {
            let remote = self.table().remote(id).cloned();
            if let Some(remote) = remote {
                self.look_at(&remote);
            }
        }
        if self.remapped.swap(false, Ordering::Relaxed) {
            self.doubt_all(now);
        }
        let rotate = self.next_rotation().is_some_and(|at| at <= now);
        if rotate && let Err(error) = self.rotate() {
            debug!(%error, "no other socket");
            self.put_off_rotation(now);
        }
        self.close_old_sockets(now);
        self.expire(now);
    }

    /// A NAT has changed our address: who is behind a filter of its own does not reach us any more.
    fn doubt_all(&self, now: Duration) {
        let mut last = self
            .last_remap
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now < last + REMAP_PAUSE) {
            return;
        }
        *last = Some(now);
        drop(last);
        let remotes = self.table().all();
        for remote in remotes {
            self.tell(&remote, Event::Remapped);
        }
    }

    /// The machine of a remote is to be told of its traffic soon.
    pub(super) fn activate(&self, id: u64) {
        if self.schedule.with(|inner| inner.active.insert(id)) {
            self.schedule.changed.notify_one();
        }
    }

    /// Tells a machine what flowed.
    fn look_at(&self, remote: &Arc<Remote>) {
        let mut state = remote.state();
        if !state.is_bound() {
            remote.set_watched(false);
            return;
        }
        loop {
            let (sent, received) = remote.traffic();
            self.handle(remote, &mut state, Event::Traffic { sent, received });
            let watching = state.machine.is_watching();
            remote.set_watched(watching);
            // What came in between told nobody.
            if watching || remote.traffic() == (sent, received) {
                return;
            }
        }
    }

    /// Tells the machine of a remote something.
    pub(super) fn tell(&self, remote: &Arc<Remote>, event: Event<'_>) {
        self.handle(remote, &mut remote.state(), event);
    }

    /// The same, with the state at hand.
    pub(super) fn handle(&self, remote: &Arc<Remote>, state: &mut RemoteState, event: Event<'_>) {
        let mut actions = Vec::new();
        state.machine.handle(self.now(), event, &mut actions);
        for action in actions {
            self.perform(remote, state, action);
        }
        let at = state.machine.next_timer().filter(|_| state.is_bound());
        self.schedule.set(remote.id, at);
    }

    fn perform(&self, remote: &Arc<Remote>, state: &mut RemoteState, action: Action) {
        match action {
            Action::Ping {
                route,
                transaction,
                kind,
            } => {
                if let Some(keys) = state.keys.last() {
                    Counters::add(&self.counters.pings);
                    self.send_kind(remote, keys, route, kind, transaction);
                }
            }
            Action::Use(route) => self.use_route(remote, state, route),
            Action::Spread(over) => self.table_mut().spread(remote, over),
            Action::Forget(route) => self.forget_unless_kept(remote, state, route),
            Action::Lost => debug!(peer = ?remote.node, "no path to the peer answers"),
        }
    }

    fn send_kind(
        &self,
        remote: &Remote,
        keys: &ProbeKeys,
        route: Route,
        kind: ProbeKind,
        transaction: u64,
    ) {
        let pong = kind == ProbeKind::Pong;
        let probe = Probe {
            key: [0; 8],
            kind,
            transaction,
            observed: route.addr().filter(|_| pong),
        };
        self.send_probe(remote, route, &keys.seal(probe));
    }

    fn use_route(&self, remote: &Arc<Remote>, state: &mut RemoteState, route: Route) {
        let moves = !state.moved && !route.is_direct();
        state.moved |= moves;
        let before = {
            let mut table = self.table_mut();
            let addr = route.addr();
            let before = addr.and_then(|addr| table.set_source(addr, remote, state.moved));
            table.use_route(remote, Some(route));
            if moves {
                table.set_moved(remote, Some(route));
            }
            before
        };
        let changed = state.route.replace(route) != Some(route);
        if changed {
            Counters::add(&self.counters.switches);
            debug!(peer = ?remote.node, %route, addr = ?route.addr(), "path of a peer");
        }
        self.taken_from(before, remote, route);
    }

    /// Who was at an address before is not there any more. The prober sees to it, as the state of that
    /// one may be locked by a thread that waits for ours.
    fn taken_from(&self, before: Option<Arc<Remote>>, now: &Arc<Remote>, route: Route) {
        if let (Some(before), Some(addr)) = (before, route.addr()) {
            self.taken().push((before, now.clone(), addr));
            self.schedule.changed.notify_one();
        }
    }

    /// Takes a probe under a key of ours.
    pub(super) fn take_probe(&self, route: Route, datagram: &[u8; PROBE_LEN]) {
        let Some((claimed, _)) = Probe::decode(datagram) else {
            return;
        };
        let found = {
            let table = self.table();
            table.keys.get(&claimed.key).and_then(|keys| {
                let remote = table.remote(keys.remote())?;
                Some((keys.clone(), remote.clone()))
            })
        };
        let Some((keys, remote)) = found else {
            return Counters::add(&self.counters.unknown_probes);
        };
        let Some(probe) = keys.open(datagram) else {
            return Counters::add(&self.counters.refused_probes);
        };
        trace!(peer = ?remote.node, ?route, ?probe, "probe");
        if probe.kind == ProbeKind::Pong {
            self.take_pong(&remote, route, &probe);
        } else if keys.admit(probe.transaction) {
            self.send_kind(&remote, &keys, route, ProbeKind::Pong, probe.transaction);
            self.take_ping(&remote, route, probe.kind);
        } else {
            Counters::add(&self.counters.refused_probes);
        }
    }

    fn take_ping(&self, remote: &Arc<Remote>, route: Route, kind: ProbeKind) {
        let mut state = remote.state();
        self.learn(remote, &mut state, route, false);
        self.handle(remote, &mut state, Event::Ping { route, kind });
        self.forget_unless_kept(remote, &state, route);
    }

    fn take_pong(&self, remote: &Arc<Remote>, route: Route, probe: &Probe) {
        let mut state = remote.state();
        let transaction = probe.transaction;
        let awaited = state.machine.awaits(route, transaction);
        if !awaited {
            return;
        }
        Counters::add(&self.counters.pongs);
        self.learn(remote, &mut state, route, true);
        if let Some(seen) = probe.observed {
            self.note_observed(remote, &mut state, route, seen);
        }
        self.handle(remote, &mut state, Event::Pong { route, transaction });
        self.forget_unless_kept(remote, &state, route);
    }

    /// Of a peer's addresses, those are remembered that its machine has room for: a peer may send from
    /// any number of them.
    fn forget_unless_kept(&self, remote: &Remote, state: &RemoteState, route: Route) {
        let Some(addr) = route.addr() else {
            return;
        };
        let mut routes = state.machine.routes();
        if !routes.any(|kept| kept.addr() == Some(addr)) {
            self.table_mut().forget_source(addr, remote.id);
        }
    }

    /// The peer is behind `route`: proven by an answer, or so it says. What another peer has proven
    /// stays that one's until there is a proof.
    fn learn(&self, remote: &Arc<Remote>, state: &mut RemoteState, route: Route, proof: bool) {
        let chosen = state.machine.chosen();
        // Until another way is proven, quinn follows who dialled us by itself, and knows better.
        let elsewhere = chosen.is_some_and(|chosen| match route {
            Route::Direct { addr, .. } => chosen.addr() != Some(addr),
            Route::Relay(_) => chosen != route,
        });
        let moves = !state.moved && elsewhere && (proof || !route.is_direct());
        state.moved |= moves;
        let mut table = self.table_mut();
        if moves {
            table.set_moved(remote, chosen);
        }
        let before = match route {
            Route::Relay(_) => {
                table.relayed.insert(remote.node, remote.clone());
                None
            }
            Route::Direct { addr, .. } => {
                let owner = table.owner(addr);
                if owner.is_none() || proof && owner != Some(remote.id) {
                    table.set_source(addr, remote, state.moved)
                } else {
                    None
                }
            }
        };
        drop(table);
        self.taken_from(before, remote, route);
    }

    fn note_observed(
        &self,
        remote: &Arc<Remote>,
        state: &mut RemoteState,
        route: Route,
        seen: SocketAddr,
    ) {
        let current = self.table().current().number;
        let to = match route {
            Route::Direct { socket, addr } if socket == current => addr,
            _ => return,
        };
        state.observed = Some(seen);
        let nated = !self.local_candidates().contains(&seen);
        self.handle(remote, state, Event::Nated { route, nated });
        let now = self.now();
        let changed = self.lifetime().observed(now, remote.node, to, seen);
        if changed {
            debug!(peer = ?remote.node, %seen, "our address as the peer sees it has changed");
            self.remapped.store(true, Ordering::Relaxed);
            self.schedule.changed.notify_one();
        }
    }

    /// Sees to addresses at which another remote was proven.
    fn see_to_taken(&self) {
        let taken = std::mem::take(&mut *self.taken());
        for (before, now, addr) in taken {
            let still = |remote: &Arc<Remote>| self.table().remote(remote.id).is_some();
            if still(&before) && still(&now) {
                self.part(&before, &now, addr);
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets remotes whose connections and dials are over for a while.
    fn expire(&self, now: Duration) {
        self.see_to_taken();
        if self.last_expiry.swap(now.as_secs(), Ordering::Relaxed) == now.as_secs() {
            return;
        }
        self.table_mut()
            .forget_handshakes(now.saturating_sub(HANDSHAKE));
        let remotes = self.table().all();
        for remote in remotes {
            let state = remote.state();
            let idle = !state.is_bound() && state.dials == 0;
            if idle && state.expires.is_some_and(|at| at <= now) {
                self.table_mut().remove(remote.id);
                self.schedule.set(remote.id, None);
            }
        }
    }
}
