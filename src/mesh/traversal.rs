//! Ways to peers that cannot be dialled: relays, and what makes them unnecessary.
//!
//! `relay` is the role of a relay, `frame` and `forward` carry packets through one. `homes` keeps the
//! relays over which others reach this node, `via` those over which this node reaches others.
//! `reflex` finds out how the network sees this node, `portmap` asks the router for an open port, and
//! `punch` moves relayed connections to a direct path. `api` is what [`crate::Mesh`] shows of it.
//!
//! All of it is an optimization but the relays: a failure here never makes a peer unreachable.

mod api;
mod budget;
mod callers;
mod error;
mod forward;
mod frame;
mod homes;
mod meter;
mod portmap;
mod probeable;
mod punch;
mod reflex;
mod relay;
mod service;
mod via;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::announcement::{Announcement, Role};
use meshwork_proto::mesh::TraversalStats;
use meshwork_proto::path::NatClass;
use tokio::time::{Instant, sleep};
use tracing::debug;

pub use api::PathKind;
pub use error::TraversalError;
pub(crate) use frame::Reassembly;
pub use relay::RelayConfig;
pub(crate) use service::router;

use crate::config::MeshConfig;
use crate::error::MeshError;
use crate::node::Node;
use crate::watch;
use budget::Budgets;
use callers::Callers;
use portmap::{Opened, judge};
use relay::Relay;
use via::Vias;

/// Most home relays, and most relays over which one peer is reached.
pub(crate) const MAX_RELAYS: usize = 3;
/// How long a relay that was not reached is left alone, before it is dialled for its own sake.
const REST: Duration = Duration::from_secs(10);
/// Relays of which that is remembered.
const MAX_RESTING: usize = 256;
/// How long a firewall may let in answers to a packet; most forget sooner.
const FIREWALL_MEMORY: Duration = Duration::from_mins(10);
/// Peers of which it is remembered that we have sent to them.
const MAX_SENT: usize = 4096;
/// Least time between two announcements for no more than another address that peers see: others use
/// it as a hint only, and behind some NATs it changes all the time.
const TELLING_ADDRESS: Duration = Duration::from_mins(1);
/// Least time between two announcements for what this module finds out. Receivers allow one a
/// second, with some more at once.
const TELLING: Duration = Duration::from_secs(2);

/// What a node knows of its own place in the network, and does about that of others.
pub(crate) struct Traversal {
    pub(crate) relay: Relay,
    place: watch::Sender<Place>,
    budgets: Budgets,
    callers: Callers,
    vias: Mutex<Vias>,
    /// Relays that were not reached, and until when they are left alone.
    resting: Mutex<BTreeMap<NodeId, Instant>>,
    /// Whom we have sent packets to of late, by which a firewall may let theirs in.
    sent: Mutex<BTreeMap<NodeId, Instant>>,
    packet_number: AtomicU16,
    punches_attempted: AtomicU64,
    punches_succeeded: AtomicU64,
    relay_fallbacks: AtomicU64,
}

/// What the network makes of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// By what peers see.
    class: NatClass,
    /// Where they see us, if they agree.
    reflex: Option<SocketAddr>,
    /// At which IPv4 address most see us, whichever the port.
    outside: Option<Ipv4Addr>,
    /// Where we are by the operator's word, which counts above all else.
    forced: Option<SocketAddr>,
    /// What the router says that it forwards to us.
    opened: Option<Opened>,
    /// Why it forwards nothing.
    unmapped: String,
    /// Whether a peer has ever connected to us without help: then others can, too.
    reached: bool,
    homes: Vec<NodeId>,
}

impl Place {
    fn class(&self) -> NatClass {
        if self.forced.or(self.mapped()).is_some() {
            NatClass::Open
        } else {
            self.class
        }
    }

    /// Whether strangers can reach this node without help, by all evidence. What peers see tells
    /// of address translation only, and a router's word of one router: a firewall or another NAT may
    /// yet be in the way.
    fn is_reachable(&self) -> bool {
        self.forced.is_some() || self.class() == NatClass::Open && self.reached
    }

    /// Where the router forwards to us, as far as nothing contradicts it.
    fn mapped(&self) -> Option<SocketAddr> {
        let opened = self.opened.as_ref()?;
        judge(opened, self.outside).ok().map(|()| opened.external)
    }

    /// The protocol by which it was asked to, or why it does not.
    fn mapping(&self) -> String {
        let Some(opened) = &self.opened else {
            return self.unmapped.clone();
        };
        match judge(opened, self.outside) {
            Ok(()) => opened.protocol.to_owned(),
            Err(why) => why,
        }
    }

    /// No router forwards to us any more: who came in that way says nothing about the others.
    fn unmap(&mut self, why: &str) {
        if self.opened.take().is_some() {
            self.reached = false;
        }
        why.clone_into(&mut self.unmapped);
    }

    fn public(&self) -> Option<SocketAddr> {
        self.forced.or(self.mapped()).or(self.reflex)
    }
}

impl fmt::Debug for Traversal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traversal")
            .field("place", &*self.place.borrow())
            .finish_non_exhaustive()
    }
}

impl Traversal {
    pub(crate) fn new(config: &MeshConfig) -> Result<Self, MeshError> {
        let forced = config.reflex_override.map(reflex::reachable).transpose()?;
        let place = Place {
            forced,
            unmapped: if config.port_mapping {
                "asking the router"
            } else {
                "off"
            }
            .to_owned(),
            ..Place::default()
        };
        Ok(Self {
            relay: Relay::new(config.relay),
            place: watch::Sender::new(place),
            budgets: Budgets::default(),
            callers: Callers::default(),
            vias: Mutex::default(),
            resting: Mutex::default(),
            sent: Mutex::default(),
            packet_number: AtomicU16::new(0),
            punches_attempted: AtomicU64::new(0),
            punches_succeeded: AtomicU64::new(0),
            relay_fallbacks: AtomicU64::new(0),
        })
    }

    fn place(&self) -> Place {
        self.place.borrow().clone()
    }

    /// Changes what is known of our place; whoever waits for that hears of it if it is any change.
    fn update(&self, change: impl FnOnce(&mut Place)) {
        self.place.send_if_modified(|place| {
            let before = place.clone();
            change(place);
            *place != before
        });
    }

    fn vias(&self) -> MutexGuard<'_, Vias> {
        self.vias.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a relay alone for a while, as it was not reached.
    fn rest(&self, relay: NodeId) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if resting.len() >= MAX_RESTING {
            resting.retain(|_, until| *until > now);
        }
        if resting.len() < MAX_RESTING {
            resting.insert(relay, now + REST);
        }
    }

    fn is_resting(&self, relay: &NodeId) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting
            .get(relay)
            .is_some_and(|until| *until > Instant::now())
    }

    /// The node is reached again.
    fn wake(&self, relay: &NodeId) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.remove(relay);
    }

    /// Packets are about to be sent to `peer`'s addresses.
    fn note_sent(&self, peer: NodeId) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if sent.len() >= MAX_SENT {
            sent.retain(|_, at| now.duration_since(*at) < FIREWALL_MEMORY);
        }
        if sent.len() < MAX_SENT {
            sent.insert(peer, now);
        }
    }

    /// Whether packets were sent to `peer` that a firewall may remember. When there were too many to
    /// remember ourselves, they may have.
    fn has_sent(&self, peer: &NodeId) -> bool {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = sent
            .get(peer)
            .is_some_and(|at| at.elapsed() < FIREWALL_MEMORY);
        recent || sent.len() >= MAX_SENT
    }

    /// What lies between this node and the network.
    pub(crate) fn nat_class(&self) -> NatClass {
        self.place().class()
    }

    /// Where others see this node.
    pub(crate) fn reflex(&self) -> Option<SocketAddr> {
        self.place().public()
    }

    /// Where the router forwards to this node.
    pub(crate) fn mapped(&self) -> Option<SocketAddr> {
        self.place().mapped()
    }

    /// How that came about, or why it did not.
    pub(crate) fn mapping(&self) -> String {
        self.place().mapping()
    }

    /// The relays over which others reach this node.
    pub(crate) fn relays(&self) -> Vec<NodeId> {
        self.place().homes
    }

    /// Whether this node tells others that it relays. Where a firewall is in the way after all, they
    /// find out when they dial; until somebody has tried, nobody knows.
    pub(crate) fn serves_as_relay(&self) -> bool {
        self.relay
            .config()
            .is_some_and(|relay| relay.always || self.nat_class() == NatClass::Open)
    }

    /// Adds to an announcement of this node what is known of its place.
    pub(crate) fn complete(&self, body: &mut Announcement) {
        let place = self.place();
        body.nat = place.class();
        body.relays.clone_from(&place.homes);
        // A symmetric NAT's address is of no use to anybody but who saw it.
        if let Some(public) = place.public()
            && !body.addresses.contains(&public)
        {
            body.addresses.push(public);
        }
        if self.serves_as_relay() {
            body.roles.insert(Role::Relay);
        }
    }

    /// Counts so far; those of the path layer are the caller's to add.
    pub(crate) fn stats(&self, rotations: u64) -> TraversalStats {
        let drops = self.relay.drops();
        TraversalStats {
            punches_attempted: self.punches_attempted.load(Ordering::Relaxed),
            punches_succeeded: self.punches_succeeded.load(Ordering::Relaxed),
            relay_fallbacks: self.relay_fallbacks.load(Ordering::Relaxed),
            rotations,
            relayed_bytes: self.relay.bytes(),
            relay_dropped: drops.total(),
            relay_drops: drops,
        }
    }
}

impl Node {
    /// Keeps this node reachable and its paths short, until it shuts down.
    pub(crate) async fn traverse(self: Arc<Self>) {
        let draining = self.desk.draining.clone();
        let all = async {
            tokio::join!(
                self.keep_homes(),
                self.keep_classified(),
                self.keep_upgrading(),
                self.keep_told(),
            );
        };
        let until_drained = async {
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                () = all => {}
            }
        };
        // Calls end over relays, too, and an open port is given back after that.
        tokio::join!(until_drained, self.forward_packets(), self.keep_mapped());
    }

    /// Announces our place again whenever it changes.
    async fn keep_told(self: &Arc<Self>) {
        let mut changes = self.traversal.place.subscribe();
        let mut told = Told::of(&self.traversal.place());
        let mut last: Option<Instant> = None;
        loop {
            let now = Told::of(&self.traversal.place());
            let pause = if now == told {
                None
            } else {
                let pause = if now.differs_by_address(&told) {
                    TELLING_ADDRESS
                } else {
                    TELLING
                };
                Some(last.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed())))
            };
            let due = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = due => {
                    if let Err(error) = self.reannounce() {
                        debug!(%error, "this node's place in the network is not announced");
                    }
                    (told, last) = (now, Some(Instant::now()));
                }
            }
        }
    }
}

/// What others are told of our place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    class: NatClass,
    homes: Vec<NodeId>,
    /// By the operator's or the router's word.
    fixed: Option<SocketAddr>,
    seen: Option<SocketAddr>,
}

impl Told {
    fn of(place: &Place) -> Self {
        Self {
            class: place.class(),
            homes: place.homes.clone(),
            fixed: place.forced.or(place.mapped()),
            seen: place.reflex,
        }
    }

    fn differs_by_address(&self, other: &Self) -> bool {
        let without = |told: &Self| Self {
            seen: None,
            ..told.clone()
        };
        without(self) == without(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_relays_are_kept_until_somebody_came_in_without_them() {
        let addr: SocketAddr = "203.0.113.5:9001".parse().unwrap();
        let open = Place {
            class: NatClass::Open,
            ..Place::default()
        };
        let mapped = Place {
            class: NatClass::Cone,
            opened: Some(Opened::sample(addr)),
            ..Place::default()
        };
        for place in [open, mapped] {
            assert!(!place.is_reachable(), "{place:?}");
            let reached = Place {
                reached: true,
                ..place
            };
            assert!(reached.is_reachable(), "{reached:?}");
        }
        let forced = Place {
            forced: Some(addr),
            ..Place::default()
        };
        assert!(forced.is_reachable(), "the operator knows");
    }

    #[test]
    fn what_a_router_says_counts_until_peers_see_otherwise() {
        let mut place = Place {
            class: NatClass::Cone,
            ..Place::default()
        };
        place.unmap("off");
        assert_eq!(place.mapping(), "off");
        let addr: SocketAddr = "203.0.113.5:9001".parse().unwrap();
        place.opened = Some(Opened::sample(addr));
        let said = |place: &Place| (place.class(), place.public(), place.mapped());
        assert_eq!(said(&place), (NatClass::Open, Some(addr), Some(addr)));
        assert_eq!(place.mapping(), "upnp");
        place.outside = Some(Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(said(&place), (NatClass::Cone, None, None));
        assert!(
            place.mapping().contains("198.51.100.7"),
            "{}",
            place.mapping()
        );
    }
}
