//! From a relayed path to a direct one: both sides tell each other over the relay where they may
//! be, and send probes there at the same time, so that the NATs between them let the answers in. The
//! path layer moves the connection as soon as one of them arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::mesh::{MAX_CANDIDATES, OfferPaths, PathOffer};
use meshwork_proto::path::{Route, Strategy, pair};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::TraversalError;
use super::budget::Whose;
use super::probeable::{dialable, probeable};
use crate::node::Node;
use crate::peer::Link;

/// How long both sides send probes.
pub(super) const TRAIN: Duration = Duration::from_secs(5);
/// How long a peer may take to answer an offer.
const OFFER: Duration = Duration::from_secs(5);
/// Between two looks at whether a path has become direct.
const LOOK: Duration = Duration::from_millis(50);
/// Pause after the first attempt that failed; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// Pause between two attempts where the NATs most likely let nothing in.
const UNLIKELY_PAUSE: Duration = Duration::from_mins(5);
/// Between two looks at which connections are relayed. A change of connections is seen at once.
const ROUND: Duration = Duration::from_secs(1);

/// How an attempt with a connection ended.
type Attempt = (Arc<Link>, Result<(), TraversalError>);

/// When to try a peer again.
#[derive(Debug, Clone, Copy)]
struct Patience {
    next: Instant,
    pause: Duration,
    /// An attempt runs.
    busy: bool,
    /// It is counted as staying on a relay.
    counted: bool,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            next: now,
            pause: FIRST_PAUSE,
            busy: false,
            counted: false,
        }
    }

    fn failed(&mut self, now: Instant, likely: bool) {
        self.busy = false;
        self.next = now + if likely { self.pause } else { UNLIKELY_PAUSE };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

impl Node {
    /// Tries to move relayed connections that we dialled to direct paths, all of them where this
    /// machine has moved, and direct ones to a new socket of ours where a filter keeps it from their
    /// peers, until the node shuts down.
    pub(super) async fn keep_upgrading(self: &Arc<Self>) {
        let mut links = self.peers.watch();
        let mut waiting: BTreeMap<NodeId, Patience> = BTreeMap::new();
        let mut running: JoinSet<Attempt> = JoinSet::new();
        let mut whereabouts = self.paths.local_candidates();
        loop {
            links.mark_seen();
            let before = std::mem::replace(&mut whereabouts, self.paths.local_candidates());
            let moved = ips(&before) != ips(&whereabouts);
            if moved {
                debug!(?whereabouts, "this machine has moved");
                // What was in the way may be gone, and a peer may be next door.
                waiting.retain(|_, patience| patience.busy);
            }
            self.start_upgrades(&mut waiting, &mut running, moved);
            tokio::select! {
                biased;
                Some(Ok(attempt)) = running.join_next() => {
                    if let Some(patience) = waiting.get_mut(&attempt.0.peer) {
                        self.learn_from(patience, attempt);
                    }
                }
                _ = links.changed() => {}
                () = sleep(ROUND) => {}
            }
        }
    }

    fn learn_from(&self, patience: &mut Patience, (link, result): Attempt) {
        patience.busy = false;
        let Err(error) = result else {
            return;
        };
        if link.conn.close_reason().is_some() {
            // It failed with its connection. Another one may have taken its place.
            return;
        }
        debug!(peer = ?link.peer, %error, "the connection stays on its path");
        patience.failed(Instant::now(), self.is_likely(&link.peer));
        if self.is_relayed(&link.peer) && !std::mem::replace(&mut patience.counted, true) {
            self.traversal
                .relay_fallbacks
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    fn start_upgrades(
        self: &Arc<Self>,
        waiting: &mut BTreeMap<NodeId, Patience>,
        running: &mut JoinSet<Attempt>,
        moved: bool,
    ) {
        let now = Instant::now();
        let mut relayed: BTreeMap<NodeId, Patience> = BTreeMap::new();
        for link in self.peers.all() {
            let peer = link.peer;
            let outdated = self.paths.is_outdated(&peer);
            if !(outdated || (link.dialled || moved) && self.is_relayed(&peer)) {
                continue;
            }
            // Peers that let everybody in answer the new socket without being told of it.
            let first = if outdated { now + ROUND } else { now };
            let mut patience = waiting.remove(&peer).unwrap_or(Patience::new(first));
            if !patience.busy && patience.next <= now {
                patience.busy = true;
                let node = self.clone();
                running.spawn(async move {
                    let result = node.upgrade(&link).await;
                    (link, result)
                });
            }
            relayed.insert(peer, patience);
        }
        *waiting = relayed;
    }

    /// One attempt to reach the peer of a relayed connection directly, or that of a direct one from our
    /// new socket.
    pub(super) async fn upgrade(self: &Arc<Self>, link: &Arc<Link>) -> Result<(), TraversalError> {
        let Some(_train) = self
            .traversal
            .budgets
            .train(&link.peer, Whose::Ours, Instant::now())
        else {
            return Err(TraversalError::RendezvousRejected(
                "too many attempts of our own at a time".to_owned(),
            ));
        };
        let id = u64::from_be_bytes(self.entropy.array());
        let answer = link.ask::<OfferPaths>(&self.offer(id), OFFER).await;
        let answer = answer.map_err(|error| TraversalError::of_offer(error.into()))?;
        if answer.id != id {
            return Err(TraversalError::RendezvousRejected(
                "the peer answered another offer".to_owned(),
            ));
        }
        self.traversal
            .punches_attempted
            .fetch_add(1, Ordering::Relaxed);
        self.paths
            .punch(link.peer, &self.probeable(&answer.candidates));
        self.comes_through(&link.peer).await?;
        self.traversal
            .punches_succeeded
            .fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn comes_through(&self, peer: &NodeId) -> Result<(), TraversalError> {
        let through = async {
            while !self.is_direct(peer) || self.paths.is_outdated(peer) {
                sleep(LOOK).await;
            }
        };
        timeout(TRAIN, through).await.map_err(|_| {
            TraversalError::PunchFailed(format!(
                "no probe came through within {TRAIN:?}; the path stays as it is"
            ))
        })
    }

    /// Whether an attempt makes sense by the matrix of pairs. Against it, some succeed: where both are
    /// behind the same NAT, where IPv6 goes around it, or where a NAT that shows each peer another
    /// port lets everybody in at each of them.
    pub(super) fn is_likely(&self, peer: &NodeId) -> bool {
        let theirs = self.announced(peer).map(|body| body.nat);
        let ours = self.traversal.nat_class();
        pair(ours, theirs.unwrap_or_default()) != Strategy::Relay
    }

    /// Where we may be reached, for a peer to probe.
    pub(super) fn offer(&self, id: u64) -> PathOffer {
        let place = self.traversal.place();
        let mut candidates: Vec<SocketAddr> = Vec::new();
        let seen = self.paths.reflexive().into_iter().map(|(_, seen)| seen);
        let all = [place.forced, place.mapped(), place.reflex]
            .into_iter()
            .flatten()
            .chain(self.paths.local_candidates())
            .chain(self.addresses())
            .chain(seen);
        for addr in all {
            if candidates.len() < MAX_CANDIDATES && !candidates.contains(&addr) {
                candidates.push(addr);
            }
        }
        PathOffer {
            candidates,
            nat: place.class(),
            id,
        }
    }

    /// Those of a peer's candidates that packets may be sent to.
    pub(super) fn probeable(&self, candidates: &[SocketAddr]) -> Vec<SocketAddr> {
        probeable(candidates, &self.paths.local_candidates())
    }

    /// Those of the addresses at which a node is said to be that it may be dialled at.
    pub(crate) fn dialable(&self, heard: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut own = self.paths.local_candidates();
        if self.peers.is_any_pinned_here() {
            own.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        }
        dialable(heard, &own)
    }

    pub(super) fn is_relayed(&self, peer: &NodeId) -> bool {
        matches!(self.paths.route(peer), Some(Route::Relay(_)))
    }
}

/// The addresses without their ports, which change with each new socket.
fn ips(addrs: &[SocketAddr]) -> BTreeSet<IpAddr> {
    addrs.iter().map(SocketAddr::ip).collect()
}
