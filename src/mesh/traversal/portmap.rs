//! A port on the router's outside that leads to this node: asked for by PCP, NAT-PMP or `UPnP`-IGD,
//! whichever the router speaks, renewed while the node runs and given back when it stops.
//!
//! What answers may be broken, or not the router at all: everything is waited for a short while only,
//! and what it says is used as far as nothing contradicts it ([`judge`]).

mod pcp;
mod spot;
mod upnp;

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::pcp::Pcp;
use self::spot::Spot;
use self::upnp::{Search, Upnp};
use super::TraversalError;
use super::probeable::{is_public, is_unicast};
use crate::node::Node;

/// How long a port is asked for; the router may grant less.
const LEASE: Duration = Duration::from_hours(1);
/// A lease is taken to be at least this, whatever a router says: it is not asked all the time.
const SHORTEST_LEASE: Duration = Duration::from_mins(2);
/// A lease is taken to be at most this: routers are restarted, and forget.
const LONGEST_LEASE: Duration = Duration::from_hours(2);
/// Between two looks at whether the machine is still where the port leads.
const LOOK: Duration = Duration::from_secs(15);
/// When a node asks again where no router opened a port.
const RETRY: Duration = Duration::from_mins(10);
/// How long the end of a port may take.
const CLOSING: Duration = Duration::from_secs(1);
/// Renewals that may fail in a row before the port counts as closed.
const MAX_FAILURES: u32 = 3;
/// Longest text of a router that is passed on to people, in characters.
const MAX_TEXT: usize = 120;

/// What a router says that it has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    /// Where the outside reaches this node.
    pub(super) external: SocketAddr,
    /// `pcp`, `nat-pmp` or `upnp`.
    pub(super) protocol: &'static str,
    lease: Duration,
}

#[cfg(test)]
impl Opened {
    /// That, by `UPnP`, for an hour.
    pub(super) fn sample(external: SocketAddr) -> Self {
        Self {
            external,
            protocol: "upnp",
            lease: LEASE,
        }
    }
}

/// Whether what a router says that it has opened leads to this node from everywhere, as far as that
/// can be known; if not, why. `seen` is the address at which peers see this node.
pub(super) fn judge(opened: &Opened, seen: Option<Ipv4Addr>) -> Result<(), String> {
    let Opened {
        external, protocol, ..
    } = opened;
    let but = match seen {
        _ if !is_unicast(external) => "where nobody can be".to_owned(),
        Some(seen) if seen == external.ip() => return Ok(()),
        _ if !is_public(external.ip()) => "which is behind another NAT".to_owned(),
        Some(seen) => format!(
            "but peers see this node at {seen}: the way out leads through another router or NAT, or \
             what answered is no router"
        ),
        None => return Ok(()),
    };
    Err(format!("the router opened {external} by {protocol}, {but}"))
}

/// An open port, and what is needed to keep it so.
#[derive(Debug)]
struct Mapping {
    opened: Opened,
    router: Router,
    /// Where the port leads.
    spot: Spot,
    port: NonZeroU16,
}

#[derive(Debug)]
enum Router {
    Pcp(Pcp),
    Upnp(Box<Upnp>),
}

/// Opens a port of the default gateway that leads to `port` of this machine: by PCP, else NAT-PMP, else
/// `UPnP`.
async fn open(port: u16) -> Result<Mapping, TraversalError> {
    let unavailable = TraversalError::PortMapUnavailable;
    let port =
        NonZeroU16::new(port).ok_or_else(|| unavailable("the node has no port".to_owned()))?;
    let spot = Spot::find().map_err(unavailable)?;
    open_at(port, &Search::around(spot))
        .await
        .map_err(unavailable)
}

async fn open_at(port: NonZeroU16, search: &Search) -> Result<Mapping, String> {
    let spot = search.spot;
    let mapping = |(router, opened)| Mapping {
        opened,
        router,
        spot,
        port,
    };
    let by_pcp = match timeout(pcp::DEADLINE, Pcp::open(spot, port)).await {
        Ok(Ok((pcp, opened))) => return Ok(mapping((Router::Pcp(pcp), opened))),
        failed => describe(failed),
    };
    let by_nat_pmp = match timeout(pcp::DEADLINE, Pcp::open_old(spot, port)).await {
        Ok(Ok((pcp, opened))) => return Ok(mapping((Router::Pcp(pcp), opened))),
        failed => describe(failed),
    };
    let by_upnp = match Upnp::open(search, port).await {
        Ok((upnp, opened)) => return Ok(mapping((Router::Upnp(Box::new(upnp)), opened))),
        Err(why) => why,
    };
    Err(format!(
        "router {} opens no port (PCP: {by_pcp}; NAT-PMP: {by_nat_pmp}; UPnP: {by_upnp}); \
         allow one of them in its settings, or forward UDP port {port} by hand",
        spot.gateway
    ))
}

fn describe<T>(failed: Result<Result<T, String>, tokio::time::error::Elapsed>) -> String {
    match failed {
        Ok(Ok(_)) => String::new(),
        Ok(Err(why)) => why,
        Err(_) => "no answer".to_owned(),
    }
}

/// The text of an error, which may hold a whole answer of a router: short, and on one line.
fn brief(error: impl Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut text: String = chars.by_ref().take(MAX_TEXT).map(plain).collect();
    if chars.next().is_some() {
        text.push('…');
    }
    text
}

impl Mapping {
    /// Asks the router to keep the port open for another lease. The router may have changed its
    /// address meanwhile.
    async fn renew(&mut self) -> Result<(), String> {
        self.opened = match &mut self.router {
            Router::Pcp(pcp) => timeout(2 * pcp::DEADLINE, pcp.renew())
                .await
                .unwrap_or_else(|_| Err("no answer".to_owned()))?,
            Router::Upnp(upnp) => upnp.renew().await?,
        };
        Ok(())
    }

    /// Whether the port still leads to this node: the machine is in the same network, and the node
    /// listens to the same port.
    fn leads_to(&self, port: Option<u16>) -> bool {
        port == Some(self.port.get()) && Spot::find().is_ok_and(|spot| spot == self.spot)
    }

    /// Gives the port back, if the router listens.
    async fn close(self) {
        let Opened {
            external, protocol, ..
        } = self.opened;
        let closing = async {
            match self.router {
                Router::Pcp(pcp) => pcp.close().await,
                Router::Upnp(upnp) => upnp.close().await,
            }
        };
        match timeout(CLOSING, closing).await {
            Ok(Ok(())) => debug!(%external, protocol, "the router closed the port again"),
            failed => debug!(%external, protocol, why = describe(failed), "the port stays open \
                until its lease ends"),
        }
    }
}

/// When to renew a lease, and when to give it up: at half of it, then twice more at short
/// intervals, all before it ends.
#[derive(Debug, Default, PartialEq, Eq)]
struct Renewals {
    failures: u32,
}

impl Renewals {
    /// Time until the next try. None when there were enough.
    fn next(&self, lease: Duration) -> Option<Duration> {
        let lease = lease.clamp(SHORTEST_LEASE, LONGEST_LEASE);
        match self.failures {
            0 => Some(lease / 2),
            failures if failures < MAX_FAILURES => Some(lease / 8),
            _ => None,
        }
    }
}

/// Why a port is held no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The node shuts down.
    Draining,
    /// The router does not renew it.
    Refused,
    /// It leads elsewhere: another one is needed at once.
    Moved,
}

impl Node {
    /// Keeps a port of the router open, if the node is to, until it shuts down.
    pub(super) async fn keep_mapped(self: &Arc<Self>) {
        if !self.config.port_mapping {
            return;
        }
        let draining = self.desk.draining.clone();
        loop {
            let opened = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                opened = open(self.own_port().unwrap_or(0)) => opened,
            };
            match opened {
                Ok(mut mapping) => {
                    let over = self.hold(&mut mapping, &draining).await;
                    self.traversal.update(|place| place.unmap(RENEWING));
                    mapping.close().await;
                    if over == Over::Moved {
                        continue;
                    }
                }
                Err(error) => {
                    debug!(%error, "no port of the router");
                    let why = error.to_string();
                    self.traversal.update(|place| place.unmap(&why));
                }
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    fn own_port(&self) -> Option<u16> {
        self.paths.local_addr().ok().map(|addr| addr.port())
    }

    /// Renews the mapping until it is over.
    async fn hold(&self, mapping: &mut Mapping, draining: &CancellationToken) -> Over {
        let mut renewals = Renewals::default();
        self.note_opened(mapping.opened);
        while let Some(pause) = renewals.next(mapping.opened.lease) {
            tokio::select! {
                biased;
                () = draining.cancelled() => return Over::Draining,
                () = self.has_moved(mapping) => return Over::Moved,
                () = sleep(pause) => {}
            }
            let renewed = tokio::select! {
                biased;
                () = draining.cancelled() => return Over::Draining,
                renewed = mapping.renew() => renewed,
            };
            match renewed {
                Ok(()) => {
                    renewals = Renewals::default();
                    self.note_opened(mapping.opened);
                }
                Err(why) => {
                    debug!(why, "the router does not renew the port");
                    renewals.failures += 1;
                }
            }
        }
        Over::Refused
    }

    /// Waits until the port does not lead here any more.
    async fn has_moved(&self, mapping: &Mapping) {
        while mapping.leads_to(self.own_port()) {
            sleep(LOOK).await;
        }
        debug!(external = %mapping.opened.external, "the router's port leads elsewhere");
    }

    fn note_opened(&self, opened: Opened) {
        debug!(external = %opened.external, protocol = opened.protocol, "the router opened a port");
        self.traversal.update(|place| place.opened = Some(opened));
    }
}

/// What is said of a port that is over, until another try has succeeded or failed.
const RENEWING: &str = "the router does not keep the port open any more; it is asked again";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_at_half_and_given_up_before_it_ends() {
        let mut renewals = Renewals::default();
        let mut passed = Duration::ZERO;
        assert_eq!(renewals.next(LEASE), Some(LEASE / 2));
        while let Some(pause) = renewals.next(LEASE) {
            passed += pause;
            renewals.failures += 1;
        }
        assert_eq!(renewals.failures, MAX_FAILURES);
        assert_eq!(passed, LEASE * 3 / 4);
    }

    #[test]
    fn a_router_that_grants_next_to_nothing_is_not_asked_all_the_time() {
        let least = Renewals::default().next(Duration::ZERO).unwrap();
        assert_eq!(least, SHORTEST_LEASE / 2);
    }

    #[test]
    fn a_lease_for_ever_is_looked_at_now_and_then() {
        let most = Renewals::default().next(Duration::MAX).unwrap();
        assert_eq!(most, LONGEST_LEASE / 2);
    }

    #[track_caller]
    fn judged(external: &str, seen: Option<&str>) -> Result<(), String> {
        let opened = Opened::sample(external.parse().unwrap());
        judge(&opened, seen.map(|seen| seen.parse().unwrap()))
    }

    #[test]
    fn a_port_is_used_when_peers_see_the_same_address_or_none_yet() {
        for seen in [None, Some("203.0.113.5")] {
            assert_eq!(judged("203.0.113.5:4460", seen), Ok(()));
        }
        // A mesh within a private network, over which the router leads out.
        assert_eq!(judged("10.0.0.5:4460", Some("10.0.0.5")), Ok(()));
    }

    #[test]
    fn a_port_that_cannot_lead_here_is_not_used_and_people_learn_why() {
        for (external, seen, why) in [
            ("0.0.0.0:4460", None, "where nobody can be"),
            ("224.0.0.1:4460", None, "where nobody can be"),
            (
                "255.255.255.255:4460",
                Some("255.255.255.255"),
                "where nobody can be",
            ),
            ("203.0.113.5:0", None, "where nobody can be"),
            ("10.0.0.5:4460", None, "behind another NAT"),
            ("100.64.0.5:4460", Some("203.0.113.5"), "behind another NAT"),
            ("127.0.0.1:4460", None, "behind another NAT"),
            (
                "203.0.113.5:4460",
                Some("198.51.100.7"),
                "peers see this node at 198.51.100.7",
            ),
        ] {
            let said = judged(external, seen).unwrap_err();
            assert!(said.contains(why) && said.contains(external), "{said}");
            assert!(said.contains("by upnp"), "{said}");
        }
    }

    #[test]
    fn a_routers_text_is_cut() {
        assert_eq!(brief("no\nroom\u{7}"), "no room ");
        let cut = brief("é".repeat(1 << 20));
        assert_eq!(cut.chars().count(), MAX_TEXT + 1);
    }
}
