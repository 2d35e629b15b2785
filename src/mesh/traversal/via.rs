//! The relays over which this node reaches peers: links to them are made when needed and end when
//! nobody is reached over them any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::announcement::{Announcement, Role};
use meshwork_proto::path::NatClass;
use tokio::time::sleep;
use tracing::debug;

use super::MAX_RELAYS;
use super::probeable::is_public;
use crate::node::Node;
use crate::path::virtual_addr;
use crate::peer::{Keep, Link};
use crate::rpc::after;

/// Relays that are kept for reaching peers. Peers beyond it are reached over those that there are.
const MAX_VIAS: usize = 64;
/// Head start of a peer's own addresses where nothing tells that it needs a relay.
const HEAD_START: Duration = Duration::from_millis(1500);
/// How long a dial to a relay may take.
const RELAY_DIAL: Duration = Duration::from_secs(10);

/// Which relays are used for which peers.
#[derive(Debug, Default)]
pub(super) struct Vias(BTreeMap<NodeId, BTreeSet<NodeId>>);

impl Vias {
    /// Notes that `peer` is reached over `relay`. False when there are too many relays.
    fn note(&mut self, relay: NodeId, peer: NodeId) -> bool {
        if !self.0.contains_key(&relay) && self.0.len() >= MAX_VIAS {
            return false;
        }
        self.0.entry(relay).or_default().insert(peer);
        true
    }

    /// Who is reached over `relay`.
    fn over(&self, relay: &NodeId) -> Vec<NodeId> {
        let peers = self.0.get(relay).into_iter().flatten();
        peers.copied().collect()
    }

    /// Forgets the peers that `gone` names; the relays that nobody is reached over then.
    fn prune(&mut self, gone: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        self.0.values_mut().for_each(|peers| {
            peers.retain(|peer| !gone(peer));
        });
        let unused: Vec<NodeId> = self
            .0
            .iter()
            .filter(|(_, peers)| peers.is_empty())
            .map(|(relay, _)| *relay)
            .collect();
        self.0.retain(|_, peers| !peers.is_empty());
        unused
    }
}

impl Node {
    /// Makes the relays over which `peer` may be reached usable: those that we are linked with at
    /// once, others as soon as they are dialled. False when there is none to try.
    pub(crate) fn open_relays(self: &Arc<Self>, peer: NodeId) -> bool {
        self.traversal.note_sent(peer);
        let relays = self.relays_of(&peer);
        if relays.is_empty() {
            return false;
        }
        let body = self.announced(&peer);
        if body.is_some_and(|body| body.nat == NatClass::Open && body.relays.is_empty()) {
            self.open_late(peer, relays);
        } else {
            for relay in relays {
                self.open_relay(peer, relay);
            }
        }
        true
    }

    /// Uses `relays` for a peer that everybody should reach, if it is not reached in a while: there
    /// may be no route between the two networks, or only one of IPv4 and IPv6 on each side.
    fn open_late(self: &Arc<Self>, peer: NodeId, relays: Vec<NodeId>) {
        let node = self.clone();
        self.tasks.spawn(async move {
            let draining = node.desk.draining.clone();
            tokio::select! {
                biased;
                () = draining.cancelled() => return,
                () = sleep(HEAD_START) => {}
            }
            if node.peers.get(&peer).is_none() && node.peers.dialling(&peer).is_some() {
                for relay in relays {
                    node.open_relay(peer, relay);
                }
            }
        });
    }

    /// Uses `relay` for `peer`, after dialling it if need be.
    pub(super) fn open_relay(self: &Arc<Self>, peer: NodeId, relay: NodeId) {
        if !self.traversal.vias().note(relay, peer) {
            return debug!(?peer, ?relay, "too many relays in use");
        }
        self.peers.keep(&relay, Keep::Relay);
        if self.peers.get(&relay).is_some() {
            return self.paths.add_relay(peer, relay);
        }
        if self.peers.dialling(&relay).is_some() || self.traversal.is_resting(&relay) {
            return;
        }
        let node = self.clone();
        self.tasks.spawn(async move {
            let draining = node.desk.draining.clone();
            let contact = node.contact(relay);
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                dialled = node.reach(&contact, after(RELAY_DIAL)) => {
                    // When it succeeds, `link_up` puts the relay to use.
                    if let Err(error) = dialled {
                        debug!(?relay, %error, "relay is not reached");
                        node.traversal.rest(relay);
                    }
                }
            }
        });
    }

    /// A connection is in use from now on.
    pub(crate) fn link_up(self: &Arc<Self>, link: &Link) {
        let peer = link.peer;
        self.traversal.wake(&peer);
        self.traversal.callers.settled(&peer);
        for waiting in self.traversal.vias().over(&peer) {
            self.paths.add_relay(waiting, peer);
        }
        if self.is_relayed(&peer) {
            self.open_relays(peer);
        }
        if self.came_unasked(link) {
            self.traversal.update(|place| place.reached = true);
        }
    }

    /// Whether the peer has connected to us at our own address without help, so that others can, too:
    /// not over a relay, not through a way that packets of ours had opened, and not from our own
    /// network behind whatever is between that and the others.
    fn came_unasked(&self, link: &Link) -> bool {
        let from = link.conn.remote_address();
        if link.dialled || from == virtual_addr(&link.peer) || self.traversal.has_sent(&link.peer) {
            return false;
        }
        let local = self.paths.local_candidates();
        is_from_outside(from.ip(), &local)
    }

    /// A connection has ended.
    pub(crate) fn link_down(&self, link: &Link) {
        if self.peers.get(&link.peer).is_none() {
            self.paths.remove_relay(link.peer);
        }
    }

    /// Relays to try for `peer`: those that it announces, then those that both may be linked with.
    fn relays_of(&self, peer: &NodeId) -> Vec<NodeId> {
        let announced = self.announced_relays(peer);
        let own = self.credentials.node_id();
        let ours = self.traversal.relays();
        let common = self.peers.all().into_iter().map(|link| link.peer);
        let is_relay = |node: &NodeId| {
            let body = self.announced(node);
            body.is_some_and(|body| body.roles.contains(&Role::Relay))
        };
        let common = common.filter(is_relay);
        let mut relays: Vec<NodeId> = Vec::new();
        for relay in announced.into_iter().chain(ours).chain(common) {
            if relay != own && relay != *peer && !relays.contains(&relay) {
                relays.push(relay);
            }
            if relays.len() == MAX_RELAYS {
                break;
            }
        }
        relays
    }

    fn announced_relays(&self, peer: &NodeId) -> Vec<NodeId> {
        let relays = match self.announced(peer) {
            Some(body) => body.relays.clone(),
            // From an earlier run.
            None => self.gossip.kept_relays(peer),
        };
        relays.into_iter().take(MAX_RELAYS).collect()
    }

    /// What `node` says of itself.
    pub(super) fn announced(&self, node: &NodeId) -> Option<Arc<Announcement>> {
        self.gossip.facts().store().get(node)
    }

    /// Nodes that say that they relay, by node id.
    pub(super) fn known_relays(&self) -> Vec<NodeId> {
        let relays = self.gossip.facts().store().with_role(Role::Relay);
        relays.into_iter().map(|(node, _)| node).collect()
    }

    /// Lets go of relays for peers that we are not linked with any more, and adds those for peers
    /// that have announced others since.
    pub(super) fn tend_relays(self: &Arc<Self>) {
        let gone =
            |peer: &NodeId| self.peers.get(peer).is_none() && self.peers.dialling(peer).is_none();
        let unused = self.traversal.vias().prune(gone);
        for relay in unused {
            self.peers.release(&relay, Keep::Relay);
        }
        for link in self.peers.all() {
            if !self.is_direct(&link.peer) || !self.announced_relays(&link.peer).is_empty() {
                self.open_relays(link.peer);
            }
        }
    }
}

/// Whether a peer at `from` is somewhere else than we are. With addresses of the internet, neighbours
/// have private ones, or the same IPv6 prefix.
fn is_from_outside(from: IpAddr, local: &[SocketAddr]) -> bool {
    let from = from.to_canonical();
    // This machine's own programs, whichever addresses it has.
    if from.is_loopback() {
        return false;
    }
    let ours = || local.iter().map(|addr| addr.ip().to_canonical());
    match from {
        IpAddr::V4(from) => {
            is_public(from.into()) || !ours().any(|ip| ip.is_ipv4() && is_public(ip))
        }
        IpAddr::V6(from) => !ours().any(|ip| match ip {
            IpAddr::V6(ip) => ip.segments()[..4] == from.segments()[..4],
            IpAddr::V4(_) => false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn node(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    #[test]
    fn a_relay_is_kept_as_long_as_somebody_is_reached_over_it() {
        let mut vias = Vias::default();
        assert!(vias.note(node(1), node(10)) && vias.note(node(1), node(11)));
        assert!(vias.note(node(2), node(10)));
        assert_eq!(vias.prune(|peer| *peer == node(10)), [node(2)]);
        assert_eq!(vias.prune(|_| false), []);
        assert_eq!(vias.prune(|_| true), [node(1)]);
    }

    #[test]
    fn neighbours_prove_nothing_about_what_lies_between_us_and_the_others() {
        let outside = |from: &str, local: &str| {
            is_from_outside(from.parse().unwrap(), &[local.parse().unwrap()])
        };
        assert!(outside("198.51.100.7", "198.51.100.8:1"));
        assert!(!outside("127.0.0.1", "[2001:db8::2]:1"), "ourselves");
        assert!(!outside("::1", "[2001:db8::2]:1"), "ourselves");
        assert!(
            outside("10.0.0.2", "10.0.0.3:1"),
            "a mesh in a private network"
        );
        assert!(!outside("10.0.0.2", "198.51.100.8:1"));
        assert!(!outside("::ffff:10.0.0.2", "[::ffff:198.51.100.8]:1"));
        assert!(outside("2001:db8:1::1", "[2001:db8:2::1]:1"));
        assert!(!outside("2001:db8:1::1", "[2001:db8:1::2]:1"));
    }

    #[test]
    fn relays_in_use_are_bounded() {
        let mut vias = Vias::default();
        for n in 0..MAX_VIAS {
            assert!(vias.note(node(u8::try_from(n).unwrap()), node(200)));
        }
        assert!(!vias.note(node(100), node(200)));
        assert!(vias.note(node(0), node(201)), "one that is in use already");
    }
}
