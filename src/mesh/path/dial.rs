//! Dials: one handshake over all the ways that there may be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use meshwork_identity::NodeId;
use meshwork_proto::path::{Route, canonical};

use super::label::{ConnId, is_virtual};
use super::remote::{Remote, RemoteState};
use super::table::Dialling;
use super::{LINGER, Paths};

/// Addresses that a dial tries at once.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// Relays that a dial tries at once.
const MAX_RELAYS: usize = 3;
/// Addresses that are remembered for a peer. Those said last count.
const MAX_CANDIDATES: usize = 16;
/// Connection ids of a dial that answers are known by: a handshake has one, and a Retry another.
const MAX_IDS: usize = 8;

/// A dial under way. Until it is dropped, handshake packets for the node go over all ways, and the
/// first that answers is used.
pub(crate) struct Dial {
    paths: Arc<Paths>,
    remote: Arc<Remote>,
    addrs: Vec<SocketAddr>,
}

impl Paths {
    /// Begins a dial to `peer`, to be made at [`virtual_addr`](super::virtual_addr), over these
    /// addresses and all relays that are known for it.
    pub(crate) fn dial(self: &Arc<Self>, peer: NodeId, addrs: &[SocketAddr]) -> Dial {
        loop {
            let remote = self.base(peer);
            let mut state = remote.state();
            // It may have expired in between.
            if self.table().remote(remote.id).is_none() {
                continue;
            }
            let anew = state.dials == 0 && !state.is_bound();
            if anew {
                // It may be anywhere by now.
                state.machine = self.machine(&peer);
            }
            state.dials += 1;
            state.candidates.clear();
            state.add_candidates(addrs);
            let addrs = state.candidates.iter().take(MAX_ADDRESSES).copied();
            let addrs = addrs.collect();
            remote.unanswered.store(0, Ordering::Relaxed);
            let dialling = Dialling {
                all: self.ways(&state),
                answered: None,
            };
            if let Some(target) = self.table_mut().target_mut(&remote.label) {
                target.dial = Some(dialling);
                if anew {
                    target.route = None;
                }
            }
            drop(state);
            return Dial {
                paths: self.clone(),
                remote,
                addrs,
            };
        }
    }

    /// All ways to a peer that is dialled.
    fn ways(&self, state: &RemoteState) -> Arc<[Route]> {
        let socket = self.table().current().number;
        let direct = state.candidates.iter().take(MAX_ADDRESSES);
        let direct = direct.map(|addr| Route::Direct {
            socket,
            addr: *addr,
        });
        let relays = state.relays.iter().take(MAX_RELAYS);
        direct
            .chain(relays.map(|relay| Route::Relay(*relay)))
            .collect()
    }

    /// Dials under way go over what is known now.
    pub(super) fn refresh_dial(&self, remote: &Remote, state: &RemoteState) {
        if state.dials == 0 {
            return;
        }
        let all = self.ways(state);
        if let Some(target) = self.table_mut().target_mut(&remote.label)
            && let Some(dial) = &mut target.dial
        {
            dial.all = all;
        }
    }

    /// Answers to this connection id are answers to the dial of the remote.
    pub(super) fn await_answers(&self, remote: &Arc<Remote>, id: ConnId) {
        let mut state = remote.state();
        if state.dials > 0 && state.ids.len() < MAX_IDS {
            state.ids.push(id);
            self.table_mut().dialled.insert(id, remote.clone());
        }
    }

    /// A dial was answered over this way.
    pub(super) fn answered(&self, remote: &Remote, route: Route) {
        remote.unanswered.store(0, Ordering::Relaxed);
        let mut table = self.table_mut();
        if let Some(target) = table.target_mut(&remote.label)
            && let Some(dial) = &mut target.dial
        {
            dial.answered.get_or_insert(route);
        }
    }
}

impl Dial {
    /// The addresses that are tried.
    pub(crate) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The relays that are tried.
    pub(crate) fn relays(&self) -> Vec<NodeId> {
        let state = self.remote.state();
        state.relays.iter().take(MAX_RELAYS).copied().collect()
    }

    /// It was another node that answered: over which way, which is not tried again.
    pub(crate) fn refute(&mut self) -> Option<Route> {
        let mut state = self.remote.state();
        let route = {
            let mut table = self.paths.table_mut();
            let target = table.target_mut(&self.remote.label)?;
            target.dial.as_mut()?.answered.take()?
        };
        match route {
            Route::Direct { addr, .. } => {
                self.addrs.retain(|known| *known != addr);
                state.candidates.retain(|known| *known != addr);
            }
            Route::Relay(relay) => {
                state.relays.remove(&relay);
            }
        }
        self.paths.refresh_dial(&self.remote, &state);
        Some(route)
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let mut state = self.remote.state();
        state.dials = state.dials.saturating_sub(1);
        if state.dials > 0 {
            return;
        }
        let ids = std::mem::take(&mut state.ids);
        let now = self.paths.now();
        let mut table = self.paths.table_mut();
        // The listener may still refuse us with a packet of the handshake.
        table.end_dial(ids, now);
        if let Some(target) = table.target_mut(&self.remote.label)
            && let Some(dial) = target.dial.take()
        {
            // What quinn has still to say to whom it has given up goes where it came from.
            target.route = target.route.or(dial.answered).or(state.called);
        }
        state.expires = Some(self.paths.now() + LINGER);
    }
}

impl RemoteState {
    /// Remembers where the peer may be: on the wire, and so at no virtual address.
    pub(super) fn add_candidates(&mut self, addrs: &[SocketAddr]) {
        for addr in addrs.iter().copied().map(canonical) {
            if !self.candidates.contains(&addr) && !is_virtual(&addr) {
                self.candidates.push(addr);
            }
        }
        let excess = self.candidates.len().saturating_sub(MAX_CANDIDATES);
        self.candidates.drain(..excess);
    }

    /// All that is known of ways to the peer, for its machine.
    pub(super) fn known_ways(&self) -> (Vec<SocketAddr>, Vec<NodeId>) {
        let relays = self.relays.iter().copied().collect();
        (self.candidates.clone(), relays)
    }
}
