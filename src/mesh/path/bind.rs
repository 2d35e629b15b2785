//! Connections whose peer is proven, and the remotes that they lead to.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use meshwork_identity::NodeId;
use meshwork_proto::path::{Event, Route, canonical};
use quinn::Connection;
use tracing::debug;

use super::keys::{KeyId, ProbeKeys};
use super::label::{is_virtual, mapped};
use super::remote::Remote;
use super::table::Target;
use super::{LINGER, Paths};

/// A connection known to the path layer. It is unknown again when this is dropped.
pub(crate) struct Bound {
    paths: Arc<Paths>,
    key: KeyId,
}

impl Paths {
    /// The handshake of this connection has proven its peer. `None` when a relay has named another
    /// node than the one that has proven itself: then nothing about the connection can be trusted.
    pub(crate) fn bind(self: &Arc<Self>, peer: NodeId, conn: &Connection) -> Option<Bound> {
        let at = mapped(conn.remote_address());
        let (remote, route) = if is_virtual(&at) {
            self.behind_label(peer, at)?
        } else {
            let route = self.direct(at);
            (self.behind_address(peer, at, route), route)
        };
        if let Some(addr) = route.addr() {
            self.own(&remote, addr);
        }
        let keys = Arc::new(ProbeKeys::of(conn, &self.local, &peer, remote.id));
        let key = keys.receive_id;
        let mut state = remote.state();
        state.keys.push(keys.clone());
        {
            let mut table = self.table_mut();
            table.keys.insert(key, keys);
            table.callers.remove(remote.id);
        }
        let (candidates, relays) = state.known_ways();
        self.handle(&remote, &mut state, Event::Proven(route));
        self.handle(&remote, &mut state, Event::Offered(&candidates));
        for relay in relays {
            self.handle(&remote, &mut state, Event::RelayUp(relay));
        }
        drop(state);
        debug!(?peer, ?route, "connection bound");
        Some(Bound {
            paths: self.clone(),
            key,
        })
    }

    /// A connection that we dialled, or that came through a relay.
    fn behind_label(&self, peer: NodeId, at: SocketAddr) -> Option<(Arc<Remote>, Route)> {
        let table = self.table();
        let target = table.target(&at)?;
        if target.remote.node != peer {
            return None;
        }
        let answered = target.dial.as_ref().and_then(|dial| dial.answered);
        let (remote, route) = (target.remote.clone(), target.route);
        drop(table);
        let route = answered.or(route).or_else(|| remote.state().called)?;
        Some((remote, route))
    }

    /// A connection that came straight from an address.
    fn behind_address(&self, peer: NodeId, at: SocketAddr, route: Route) -> Arc<Remote> {
        let known = {
            let table = self.table();
            let source = table.source(&at);
            source.map(|source| source.remote.clone())
        };
        let remote = match known {
            Some(remote) if remote.node == peer => remote,
            _ => {
                let label = self.table().free_label(&peer);
                let remote = self.new_remote(peer, label);
                self.table_mut().add_remote(&remote);
                remote
            }
        };
        let target = Target::new(&remote, Some(route));
        self.table_mut().set_target(at, target);
        remote
    }

    /// The remote was proven at `addr`: nobody else is there. Another remote of the same node that
    /// is known there is the same one.
    fn own(&self, remote: &Arc<Remote>, addr: SocketAddr) {
        let moved = remote.state().moved;
        let before = self.table_mut().set_source(addr, remote, moved);
        if let Some(before) = before {
            self.part(&before, remote, addr);
        }
    }

    /// `now` was found where `before` was: they are one, or `before` is not there any more.
    pub(super) fn part(&self, before: &Arc<Remote>, now: &Arc<Remote>, addr: SocketAddr) {
        if before.node == now.node {
            self.merge(before, now);
        } else {
            self.tell(before, Event::Taken(addr));
        }
    }

    /// Makes one of two remotes that were found at the same place.
    fn merge(&self, from: &Arc<Remote>, into: &Arc<Remote>) {
        let (keys, transaction) = {
            let mut state = from.state();
            let keys = std::mem::take(&mut state.keys);
            (keys, state.machine.last_transaction())
        };
        self.schedule.set(from.id, None);
        let mut state = into.state();
        state.machine.skip_transactions(transaction);
        for key in &keys {
            key.remote.store(into.id, Ordering::Relaxed);
        }
        state.keys.splice(0..0, keys);
        state.moved = true;
        let chosen = state.machine.chosen();
        let mut table = self.table_mut();
        table.merge(from, into, chosen);
        table.set_moved(into, chosen);
    }

    /// Where a packet for `addr`, which has called us, goes from here.
    fn direct(&self, addr: SocketAddr) -> Route {
        Route::Direct {
            socket: self.table().called_at(&mapped(addr)),
            addr: canonical(addr),
        }
    }

    fn unbind(&self, key: KeyId) {
        let Some(keys) = self.table_mut().keys.remove(&key) else {
            return;
        };
        let remote = self.table().remote(keys.remote()).cloned();
        let Some(remote) = remote else {
            return;
        };
        let mut state = remote.state();
        state.keys.retain(|keys| keys.receive_id != key);
        if !state.is_bound() {
            state.observed = None;
            state.expires = Some(self.now() + LINGER);
            self.schedule.set(remote.id, None);
            // What has still to be sent finds its way; whoever comes from there is somebody new.
            self.table_mut().forget_sources(remote.id);
        }
    }
}

impl Bound {
    /// The path in use, for people, and the peer's address: of the relay, where there is one. `quinn`
    /// is where quinn sees the peer.
    pub(crate) fn view(&self, quinn: SocketAddr) -> (String, SocketAddr) {
        let remote = {
            let table = self.paths.table();
            let keys = table.keys.get(&self.key);
            keys.and_then(|keys| table.remote(keys.remote()).cloned())
        };
        let chosen = remote.and_then(|remote| remote.state().machine.chosen());
        match chosen {
            Some(route @ Route::Relay(relay)) => {
                let relay = self.paths.route(&relay).and_then(|route| route.addr());
                let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                (route.to_string(), relay.unwrap_or(nowhere))
            }
            // Until a peer that dialled us has moved, quinn follows it by itself.
            Some(route @ Route::Direct { addr, .. }) if is_virtual(&quinn) => {
                (route.to_string(), addr)
            }
            _ => ("direct".to_owned(), canonical(quinn)),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.paths.unbind(self.key);
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").finish_non_exhaustive()
    }
}
