//! Where others see this node, and what that tells about the NAT in front of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use meshwork_identity::NodeId;
use meshwork_proto::mesh::Reflex;
use meshwork_proto::path::{NatClass, canonical, classify};
use meshwork_proto::rpc::RpcError;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::TraversalError;
use super::probeable::is_unicast;
use crate::error::MeshError;
use crate::node::Node;
use crate::peer::Link;

/// How long one peer may take to say where it sees us.
pub(super) const PROBE: Duration = Duration::from_secs(3);
/// How long a sweep may take.
const SWEEP: Duration = Duration::from_secs(5);
/// Time between two sweeps.
const PERIOD: Duration = Duration::from_mins(1);
/// Between two looks at whether the probes of paths show another address.
const GLANCE: Duration = Duration::from_secs(5);
/// Peers that a sweep asks. Two would do; one of them may not answer.
const OBSERVERS: usize = 4;
/// How long changes of connections are gathered before a sweep.
const GATHERING: Duration = Duration::from_secs(1);

/// The operator's word for where others reach this node, if they can reach anybody there at all.
pub(super) fn reachable(addr: SocketAddr) -> Result<SocketAddr, MeshError> {
    let ip = addr.ip().to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let why = if addr.port() == 0 {
        "nobody can be reached at port 0; name the UDP port that is forwarded to this node"
    } else if ip.is_loopback() || is_link_local {
        "no other network leads there; name the address at which machines elsewhere reach this node"
    } else if !is_unicast(&addr) {
        "that is not the address of one machine; name the public one that leads to this node"
    } else {
        return Ok(canonical(addr));
    };
    Err(MeshError::Setting {
        setting: "reflex_override",
        value: addr.to_string(),
        why,
    })
}

/// The IPv4 address at which more than half of those who see one see us.
fn common_ipv4(observed: &[(IpAddr, SocketAddr)]) -> Option<Ipv4Addr> {
    let mut votes: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
    for (_, seen) in observed {
        if let IpAddr::V4(seen) = seen.ip().to_canonical() {
            *votes.entry(seen).or_default() += 1;
        }
    }
    let all: usize = votes.values().sum();
    let most = votes.into_iter().find(|(_, count)| 2 * count > all);
    most.map(|(seen, _)| seen)
}

impl Node {
    /// Keeps the class of our NAT up to date until the node shuts down: every minute, and
    /// as soon as there are peers to tell or one of them sees us elsewhere.
    pub(super) async fn keep_classified(&self) {
        if !self.config.accept {
            // A client is gone before it matters.
            return;
        }
        let mut links = self.peers.watch();
        loop {
            links.mark_seen();
            self.sweep().await;
            let seen = self.seen();
            let changed = async {
                // Once it is known, only time or a change of the path calls for another look.
                loop {
                    let _ = links.changed().await;
                    if self.traversal.place().class == NatClass::Unknown {
                        return sleep(GATHERING).await;
                    }
                }
            };
            let moved = async {
                while self.seen().is_subset(&seen) {
                    sleep(GLANCE).await;
                }
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = moved => {}
                () = sleep(PERIOD) => {}
            }
        }
    }

    /// Where peers see us, by the answers to the probes of paths.
    fn seen(&self) -> BTreeSet<SocketAddr> {
        let all = self.paths.reflexive().into_iter();
        all.map(|(_, seen)| seen).collect()
    }

    /// Asks some peers where they see us, and classifies by their answers.
    pub(super) async fn sweep(&self) {
        let observers = self.observers();
        let asked = observers.iter().map(|(link, _)| self.probe_link(link));
        let answers = timeout(SWEEP, join_all(asked)).await.unwrap_or_default();
        let mut seen: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
        // What came with the probes of paths counts where there is no newer answer.
        seen.extend(self.paths.reflexive());
        let answers = observers.iter().zip(answers);
        seen.extend(answers.filter_map(|((link, _), seen)| Some((link.peer, seen.ok()?))));
        let observed: Vec<(IpAddr, SocketAddr)> = seen
            .iter()
            .filter(|(_, seen)| is_unicast(seen))
            .filter_map(|(peer, seen)| Some((self.address_of(peer)?.ip(), *seen)))
            .collect();
        self.conclude(&observed);
    }

    fn conclude(&self, observed: &[(IpAddr, SocketAddr)]) {
        let local = self.paths.local_candidates();
        let before = self.traversal.place();
        let (mut class, mut reflex) = classify(observed, &local);
        let outside = common_ipv4(observed);
        if class == NatClass::Unknown && reflex.is_none_or(|seen| before.reflex == Some(seen)) {
            // Fewer see us than before, and those who do contradict nothing.
            (class, reflex) = (before.class, before.reflex);
        }
        if (class, reflex) != (before.class, before.reflex) {
            debug!(%class, ?reflex, observers = observed.len(), "how the network sees us");
        }
        self.traversal.update(|place| {
            // Who reached us elsewhere says nothing about here.
            let elsewhere = place.reflex.is_some() && reflex.is_some() && place.reflex != reflex;
            place.class = class;
            place.reflex = reflex;
            place.outside = outside.or(place.outside);
            let behind =
                place.mapped().is_none() && matches!(class, NatClass::Cone | NatClass::Symmetric);
            place.reached &= !behind && !elsewhere;
        });
    }

    /// Links whose peers see us directly, from addresses of their own.
    fn observers(&self) -> Vec<(Arc<Link>, IpAddr)> {
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        let links = self.peers.all().into_iter();
        let direct = links.filter(|link| self.is_direct(&link.peer) && !link.is_client());
        direct
            .filter_map(|link| {
                let from = self.address_of(&link.peer)?.ip();
                taken.insert(from).then_some((link, from))
            })
            .take(OBSERVERS)
            .collect()
    }

    /// Asks one peer where it sees us.
    pub(super) async fn probe_link(&self, link: &Link) -> Result<SocketAddr, TraversalError> {
        let answer = link.ask::<Reflex>(&(), PROBE).await;
        let answer = answer.map_err(|error| TraversalError::of_reflex(error.into(), PROBE))?;
        if is_unicast(&answer.address) {
            return Ok(answer.address);
        }
        Err(TraversalError::Transport(RpcError::internal(format!(
            "node {}… says that it sees us at {}, where nobody can be",
            link.peer.short(),
            answer.address
        ))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_reached_where_the_operator_cannot_have_meant() {
        let port = ("port 0", "name the UDP port");
        let nobody = ("not the address of one machine", "name the public");
        let local = ("no other network", "name the address");
        for (wrong, (cause, fix)) in [
            ("203.0.113.5:0", port),
            ("0.0.0.0:4460", nobody),
            ("[::]:4460", nobody),
            ("224.0.0.1:4460", nobody),
            ("255.255.255.255:1", nobody),
            ("[ff02::1]:4460", nobody),
            ("[fd4d:5701::1]:1", nobody),
            ("127.0.0.1:4460", local),
            ("[::ffff:127.0.0.1]:4460", local),
            ("[::1]:4460", local),
            ("169.254.1.1:4460", local),
            ("[fe80::1]:4460", local),
        ] {
            let error = reachable(wrong.parse().unwrap()).unwrap_err().to_string();
            let thing = format!("reflex_override = \"{wrong}\"");
            for part in [&thing, cause, fix] {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
    }

    #[test]
    fn one_of_three_observers_cannot_say_that_we_are_elsewhere() {
        let seen = |all: &[&str]| {
            let observed = all.iter().zip(1..).map(|(seen, n)| {
                let by = IpAddr::from([198, 51, 100, n]);
                (by, seen.parse().unwrap())
            });
            common_ipv4(&observed.collect::<Vec<_>>())
        };
        let home = Some(Ipv4Addr::new(203, 0, 113, 5));
        assert_eq!(seen(&["203.0.113.5:1"]), home);
        assert_eq!(seen(&["8.8.8.8:1", "203.0.113.5:1", "203.0.113.5:2"]), home);
        assert_eq!(seen(&["8.8.8.8:1", "203.0.113.5:1"]), None);
        assert_eq!(seen(&["[2001:db8::1]:1", "203.0.113.5:1"]), home);
        assert_eq!(seen(&["[2001:db8::1]:1"]), None);
        assert_eq!(seen(&[]), None);
    }

    #[test]
    fn a_network_of_a_company_may_be_where_the_others_are() {
        for right in ["203.0.113.5:9001", "10.1.2.3:4460", "[2001:db8::1]:4460"] {
            let addr = right.parse().unwrap();
            assert_eq!(reachable(addr).unwrap(), addr);
        }
        let mapped = reachable("[::ffff:203.0.113.5]:1".parse().unwrap()).unwrap();
        assert_eq!(mapped, "203.0.113.5:1".parse().unwrap());
    }
}
