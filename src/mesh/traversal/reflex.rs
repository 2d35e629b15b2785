//! Where others see this node, and what that tells about the NAT in front of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use meshwork_identity::NodeId;
use meshwork_proto::mesh::Reflex;
use meshwork_proto::path::{NatClass, classify};
use meshwork_proto::rpc::RpcError;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::TraversalError;
use super::probeable::is_unicast;
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
        if class == NatClass::Unknown && reflex.is_none_or(|seen| before.reflex == Some(seen)) {
            // Fewer see us than before, and those who do contradict nothing.
            (class, reflex) = (before.class, before.reflex);
        }
        if (class, reflex) != (before.class, before.reflex) {
            debug!(%class, ?reflex, observers = observed.len(), "how the network sees us");
        }
        self.traversal.update(|place| {
            // Who reached us elsewhere says nothing about here.
            let behind =
                place.mapped.is_none() && matches!(class, NatClass::Cone | NatClass::Symmetric);
            let elsewhere = place.reflex.is_some() && reflex.is_some() && place.reflex != reflex;
            place.reached &= !behind && !elsewhere;
            place.class = class;
            place.reflex = reflex;
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
