//! Home relays: a node that others cannot dial keeps connections with a few relays and says which,
//! so that whoever looks for it knows over whom to go.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use meshwork_identity::NodeId;
use meshwork_proto::announcement::{Announcement, Role};
use meshwork_proto::path::NatClass;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::MAX_RELAYS;
use crate::node::Node;
use crate::peer::Keep;
use crate::rpc::after;

/// Longest time until a relay that is gone is seen to be, if nothing else tells.
const ROUND: Duration = Duration::from_secs(5);
/// How long changes are gathered before they are looked at.
const GATHERING: Duration = Duration::from_millis(200);
/// Relays that are dialled at once to be compared, for each one that is wanted.
const TRIED_PER_HOME: usize = 2;
/// How long a dial to a relay may take.
const DIAL: Duration = Duration::from_secs(5);

/// A relay that could be a home.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    node: NodeId,
    rtt: Duration,
    /// Whether it says that everybody can reach it.
    open: bool,
    /// Where it is, as far as that tells which relays fail together.
    place: Placement,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Placement {
    region: Option<String>,
    subnet: Option<String>,
    /// The network of its address: /24 or /48.
    network: Option<Vec<u8>>,
}

impl Placement {
    fn of(body: &Announcement) -> Self {
        let network = body.addresses.first().map(|addr| match addr.ip() {
            IpAddr::V4(ip) => ip.octets()[..3].to_vec(),
            IpAddr::V6(ip) => ip.octets()[..6].to_vec(),
        });
        Self {
            region: body.region.clone(),
            subnet: body.subnet.as_ref().map(ToString::to_string),
            network,
        }
    }

    /// How much the two have in common.
    fn shared(&self, other: &Self) -> usize {
        fn same<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> usize {
            usize::from(one.is_some() && one == other)
        }
        same(self.region.as_ref(), other.region.as_ref())
            + same(self.subnet.as_ref(), other.subnet.as_ref())
            + same(self.network.as_ref(), other.network.as_ref())
    }
}

/// Adds the best of `candidates` to `homes` until there are `wanted`: open ones first, then near
/// ones; and of those that are about as near, the ones that have least in common with the others.
fn choose(homes: &mut Vec<Candidate>, mut candidates: Vec<Candidate>, wanted: usize) {
    while homes.len() < wanted {
        let Some(nearest) = candidates
            .iter()
            .min_by_key(|candidate| (Reverse(candidate.open), candidate.rtt))
        else {
            return;
        };
        let (open, near) = (nearest.open, nearest.rtt.mul_f32(1.2) + SLACK);
        let alike = |candidate: &Candidate| -> usize {
            let shared = homes.iter().map(|home| home.place.shared(&candidate.place));
            shared.sum()
        };
        let best = (0..candidates.len())
            .filter(|at| candidates[*at].open == open && candidates[*at].rtt <= near)
            .min_by_key(|at| (alike(&candidates[*at]), candidates[*at].rtt))
            .expect("the nearest is near");
        homes.push(candidates.swap_remove(best));
    }
}

/// Round-trip times that differ by less are equal.
const SLACK: Duration = Duration::from_millis(5);

impl Node {
    /// Keeps the home relays until the node shuts down.
    pub(super) async fn keep_homes(self: &Arc<Self>) {
        let mut links = self.peers.watch();
        loop {
            links.mark_seen();
            self.tend_relays();
            self.settle_homes().await;
            // In a mesh that changes all the time, a round every so often is enough.
            sleep(GATHERING).await;
            let _ = timeout(ROUND, links.changed()).await;
        }
    }

    async fn settle_homes(self: &Arc<Self>) {
        let place = self.traversal.place();
        let mut homes = Vec::new();
        // Nobody dials a client.
        if self.config.accept && !place.is_reachable() {
            homes.extend(place.homes.iter().filter_map(|relay| self.candidate(relay)));
            if homes.len() < MAX_RELAYS {
                let others = self.find_relays(&homes).await;
                choose(&mut homes, others, MAX_RELAYS);
            }
        }
        let chosen: Vec<NodeId> = homes.iter().map(|home| home.node).collect();
        for left in place.homes.iter().filter(|relay| !chosen.contains(relay)) {
            debug!(relay = ?left, "no longer a home relay");
            self.peers.release(left, Keep::HomeRelay);
        }
        for relay in &chosen {
            self.peers.keep(relay, Keep::HomeRelay);
        }
        if chosen != place.homes {
            debug!(relays = ?chosen, "home relays");
            self.traversal.update(|place| place.homes = chosen);
        }
    }

    /// The relay, if it still is one and its link works without help.
    fn candidate(&self, relay: &NodeId) -> Option<Candidate> {
        let link = self.peers.get(relay)?;
        let body = self.announced(relay)?;
        let usable = body.roles.contains(&Role::Relay) && self.is_direct(relay);
        usable.then(|| Candidate {
            node: *relay,
            rtt: link.conn.rtt(),
            open: body.nat == NatClass::Open,
            place: Placement::of(&body),
        })
    }

    /// Relays other than `homes` that we are linked with directly: as many as there are, or else some
    /// that are dialled for it.
    async fn find_relays(self: &Arc<Self>, homes: &[Candidate]) -> Vec<Candidate> {
        let own = self.credentials.node_id();
        let is_home = |node: &NodeId| homes.iter().any(|home| home.node == *node);
        let relays: Vec<NodeId> = self
            .known_relays()
            .into_iter()
            .filter(|node| *node != own && !is_home(node))
            .collect();
        let wanted = (MAX_RELAYS - homes.len()) * TRIED_PER_HOME;
        // Those that we are linked with over others are of no use.
        let usable = relays
            .iter()
            .filter(|node| self.candidate(node).is_some())
            .count();
        let mut strangers: Vec<NodeId> = relays
            .iter()
            .filter(|node| self.peers.get(node).is_none() && !self.traversal.is_resting(node))
            .copied()
            .collect();
        self.shuffle(&mut strangers);
        strangers.truncate(wanted.saturating_sub(usable));
        let dials = strangers.iter().map(|node| async {
            let contact = self.contact(*node);
            (*node, self.reach(&contact, after(DIAL)).await)
        });
        for (relay, dialled) in join_all(dials).await {
            if let Err(error) = dialled {
                debug!(?relay, %error, "relay is not reached");
                self.traversal.rest(relay);
            }
        }
        relays
            .iter()
            .filter_map(|relay| self.candidate(relay))
            .collect()
    }

    fn shuffle(&self, nodes: &mut [NodeId]) {
        for last in (1..nodes.len()).rev() {
            let chance = u64::from_be_bytes(self.entropy.array());
            let other = chance % (last as u64 + 1);
            nodes.swap(last, usize::try_from(other).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn candidate(n: u8, rtt: u64, region: &str) -> Candidate {
        Candidate {
            node: Identity::from_seed(&[n; 32]).node_id(),
            rtt: Duration::from_millis(rtt),
            open: true,
            place: Placement {
                region: Some(region.to_owned()),
                ..Placement::default()
            },
        }
    }

    fn chosen(candidates: &[Candidate]) -> Vec<Candidate> {
        let mut homes = Vec::new();
        choose(&mut homes, candidates.to_vec(), MAX_RELAYS);
        homes
    }

    #[test]
    fn the_nearest_are_chosen() {
        let [a, b, c, d] =
            [(1, 90), (2, 10), (3, 300), (4, 50)].map(|(n, rtt)| candidate(n, rtt, ""));
        assert_eq!(chosen(&[a.clone(), b.clone(), c, d.clone()]), [b, d, a]);
    }

    #[test]
    fn of_equally_near_ones_those_in_other_regions() {
        let [a, b, c, d] = [
            (1, 10, "eu"),
            (2, 11, "eu"),
            (3, 12, "us"),
            (4, 200, "asia"),
        ]
        .map(|(n, rtt, region)| candidate(n, rtt, region));
        assert_eq!(
            chosen(&[a.clone(), b.clone(), c.clone(), d]),
            [a, c, b],
            "the far one is no match"
        );
    }

    #[test]
    fn who_is_not_open_comes_last() {
        let (mut near, far) = (candidate(1, 1, "eu"), candidate(2, 500, "eu"));
        near.open = false;
        assert_eq!(chosen(&[near.clone(), far.clone()]), [far, near]);
        assert_eq!(chosen(&[]), []);
    }
}
