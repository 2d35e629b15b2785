//! A port on the router's outside that leads to this node: asked for by PCP (RFC 6887), NAT-PMP (RFC
//! 6886) or `UPnP`-IGD, whichever the router speaks, renewed while the node runs and given back when it
//! stops.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{PortMappingProtocol, SearchOptions};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Place, TraversalError};
use crate::node::Node;

/// How long a port is asked for; the router may grant less.
const LEASE: Duration = Duration::from_hours(1);
/// A lease is taken to be at least this, whatever a router says: it is not asked all the time.
const SHORTEST_LEASE: Duration = Duration::from_mins(2);
/// How long a router may take to answer a request of PCP or NAT-PMP.
const PCP_DEADLINE: Duration = Duration::from_secs(1);
/// How long a router may take to be found by `UPnP`, and then to open the port: it is asked over HTTP.
const UPNP_DEADLINE: Duration = Duration::from_secs(3);
/// When a node asks again where no router opened a port.
const RETRY: Duration = Duration::from_mins(10);
/// Renewals that may fail in a row before the port counts as closed.
const MAX_FAILURES: u32 = 3;
/// Where Linux tells its IPv4 routes.
const ROUTES: &str = "/proc/net/route";
/// What the router's owner sees beside the port.
const DESCRIPTION: &str = "meshwork";

/// An open port of the router.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Where the outside reaches this node.
    pub(super) external: SocketAddr,
    /// `pcp`, `nat-pmp` or `upnp`.
    pub(super) protocol: &'static str,
    lease: Duration,
    router: Router,
}

#[derive(Debug)]
enum Router {
    Pcp(crab_nat::PortMapping),
    Upnp {
        gateway: Gateway<Tokio>,
        local: SocketAddr,
    },
}

/// Opens a port of the default gateway that leads to `port` of this machine: by PCP, else NAT-PMP, else
/// `UPnP`.
pub(super) async fn open(port: u16) -> Result<Mapping, TraversalError> {
    let port = NonZeroU16::new(port).ok_or_else(|| unavailable("the node has no port"))?;
    let routes = fs::read_to_string(ROUTES)
        .map_err(|error| unavailable(format!("cannot read {ROUTES}: {error}")))?;
    let gateway = default_gateway(&routes)
        .ok_or_else(|| unavailable("this machine has no default IPv4 gateway"))?;
    let local = facing(gateway)
        .map_err(|error| unavailable(format!("no address faces gateway {gateway}: {error}")))?;
    let (by_pcp, by_nat_pmp, by_upnp);
    match timeout(PCP_DEADLINE, open_by_pcp(gateway, local, port)).await {
        Ok(Ok(mapping)) => return Ok(mapping),
        failed => by_pcp = describe(failed),
    }
    match timeout(PCP_DEADLINE, open_by_nat_pmp(gateway, port)).await {
        Ok(Ok(mapping)) => return Ok(mapping),
        failed => by_nat_pmp = describe(failed),
    }
    match timeout(2 * UPNP_DEADLINE, open_by_upnp(local, port)).await {
        Ok(Ok(mapping)) => return Ok(mapping),
        failed => by_upnp = describe(failed),
    }
    Err(unavailable(format!(
        "router {gateway} opens no port (PCP: {by_pcp}; NAT-PMP: {by_nat_pmp}; UPnP: {by_upnp}); \
         allow one of them in its settings, or forward UDP port {port} by hand"
    )))
}

fn unavailable(why: impl Into<String>) -> TraversalError {
    TraversalError::PortMapUnavailable(why.into())
}

fn describe<T>(failed: Result<Result<T, String>, tokio::time::error::Elapsed>) -> String {
    match failed {
        Ok(Ok(_)) => String::new(),
        Ok(Err(why)) => why,
        Err(_) => "no answer".to_owned(),
    }
}

fn options(external: Option<NonZeroU16>) -> PortMappingOptions {
    PortMappingOptions {
        external_port: external,
        lifetime_seconds: u32::try_from(LEASE.as_secs()).ok(),
        timeout_config: Some(TimeoutConfig {
            initial_timeout: PCP_DEADLINE / 4,
            max_retries: 2,
            max_retry_timeout: None,
        }),
    }
}

async fn open_by_pcp(
    gateway: Ipv4Addr,
    local: Ipv4Addr,
    port: NonZeroU16,
) -> Result<Mapping, String> {
    let request =
        pcp::BaseMapRequest::new(gateway.into(), local.into(), InternetProtocol::Udp, port);
    let opened = pcp::port_mapping(request, None, None, options(Some(port)))
        .await
        .map_err(|error| error.to_string())?;
    let PortMappingType::Pcp { external_ip, .. } = opened.mapping_type() else {
        return Err("the router changed its mind".to_owned());
    };
    Ok(Mapping::of(opened, external_ip, "pcp"))
}

async fn open_by_nat_pmp(gateway: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, String> {
    let udp = InternetProtocol::Udp;
    let ip = natpmp::external_address(gateway.into(), options(None).timeout_config)
        .await
        .map_err(|error| error.to_string())?;
    let opened = natpmp::port_mapping(gateway.into(), udp, port, options(Some(port)))
        .await
        .map_err(|error| error.to_string())?;
    Ok(Mapping::of(opened, ip.into(), "nat-pmp"))
}

async fn open_by_upnp(local: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, String> {
    let mut search = SearchOptions::default();
    search.bind_addr = (local, 0).into();
    search.timeout = Some(UPNP_DEADLINE);
    search.single_search_timeout = Some(UPNP_DEADLINE);
    let gateway = search_gateway(search)
        .await
        .map_err(|error| error.to_string())?;
    let local = SocketAddr::from((local, port.get()));
    let outside = match add_upnp_port(&gateway, port.get(), local).await {
        Ok(()) => port.get(),
        // The same port is taken, perhaps by another node in this house: any other will do.
        Err(_) => gateway
            .add_any_port(
                PortMappingProtocol::UDP,
                local,
                lease_seconds(),
                DESCRIPTION,
            )
            .await
            .map_err(|error| error.to_string())?,
    };
    let ip = gateway
        .get_external_ip()
        .await
        .map_err(|error| error.to_string())?;
    Ok(Mapping {
        external: SocketAddr::new(ip, outside),
        protocol: "upnp",
        lease: LEASE,
        router: Router::Upnp { gateway, local },
    })
}

fn lease_seconds() -> u32 {
    u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX)
}

async fn add_upnp_port(
    gateway: &Gateway<Tokio>,
    outside: u16,
    local: SocketAddr,
) -> Result<(), String> {
    let udp = PortMappingProtocol::UDP;
    gateway
        .add_port(udp, outside, local, lease_seconds(), DESCRIPTION)
        .await
        .map_err(|error| error.to_string())
}

impl Mapping {
    fn of(opened: crab_nat::PortMapping, ip: IpAddr, protocol: &'static str) -> Self {
        Self {
            external: SocketAddr::new(ip, opened.external_port().get()),
            protocol,
            lease: Duration::from_secs(opened.lifetime().into()),
            router: Router::Pcp(opened),
        }
    }

    /// Asks the router to keep the port open for another lease. The router may have changed its
    /// address meanwhile.
    async fn renew(&mut self) -> Result<(), String> {
        let renewal = async {
            match &mut self.router {
                Router::Pcp(opened) => {
                    opened.renew().await.map_err(|error| error.to_string())?;
                    let ip = match opened.mapping_type() {
                        PortMappingType::Pcp { external_ip, .. } => external_ip,
                        PortMappingType::NatPmp => {
                            natpmp::external_address(opened.gateway(), Some(opened.timeout_config))
                                .await
                                .map_err(|error| error.to_string())?
                                .into()
                        }
                    };
                    self.lease = Duration::from_secs(opened.lifetime().into());
                    self.external = SocketAddr::new(ip, opened.external_port().get());
                }
                Router::Upnp { gateway, local } => {
                    add_upnp_port(gateway, self.external.port(), *local).await?;
                    let ip = gateway.get_external_ip().await;
                    self.external.set_ip(ip.map_err(|error| error.to_string())?);
                }
            }
            Ok(())
        };
        timeout(UPNP_DEADLINE, renewal)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    /// Gives the port back, if the router listens.
    pub(super) async fn close(self) {
        let (external, protocol) = (self.external, self.protocol);
        let closing = async {
            match self.router {
                Router::Pcp(opened) => opened
                    .try_drop()
                    .await
                    .map_err(|(error, _)| error.to_string()),
                Router::Upnp { gateway, .. } => gateway
                    .remove_port(PortMappingProtocol::UDP, external.port())
                    .await
                    .map_err(|error| error.to_string()),
            }
        };
        match timeout(PCP_DEADLINE, closing).await {
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
        let lease = lease.max(SHORTEST_LEASE);
        match self.failures {
            0 => Some(lease / 2),
            failures if failures < MAX_FAILURES => Some(lease / 8),
            _ => None,
        }
    }
}

impl Node {
    /// Keeps a port of the router open, if the node is to, until it shuts down.
    pub(super) async fn keep_mapped(self: &Arc<Self>) {
        if !self.config.port_mapping {
            return;
        }
        let draining = self.desk.draining.clone();
        loop {
            let port = self.paths.local_addr().map_or(0, |addr| addr.port());
            let opened = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                opened = open(port) => opened,
            };
            match opened {
                Ok(mapping) => {
                    let mapping = self.hold(mapping, &draining).await;
                    self.traversal.update(Place::unmap);
                    mapping.close().await;
                }
                Err(error) => {
                    debug!(%error, "no port of the router");
                    self.traversal
                        .update(|place| place.mapping = error.to_string());
                }
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    /// Renews the mapping until the router refuses or the node shuts down.
    async fn hold(&self, mut mapping: Mapping, draining: &CancellationToken) -> Mapping {
        let mut renewals = Renewals::default();
        self.note_mapping(&mapping);
        while let Some(pause) = renewals.next(mapping.lease) {
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                () = sleep(pause) => {}
            }
            let renewed = tokio::select! {
                biased;
                () = draining.cancelled() => break,
                renewed = mapping.renew() => renewed,
            };
            match renewed {
                Ok(()) => {
                    renewals = Renewals::default();
                    self.note_mapping(&mapping);
                }
                Err(why) => {
                    debug!(why, "the router does not renew the port");
                    renewals.failures += 1;
                }
            }
        }
        mapping
    }

    /// Uses what the router opened, if that leads to the outside: behind a second NAT it does not.
    fn note_mapping(&self, mapping: &Mapping) {
        let external = mapping.external;
        self.traversal.update(|place| {
            let is_seen = place.reflex.map(|seen| seen.ip()) == Some(external.ip());
            if is_public(external.ip()) || is_seen {
                place.mapped = Some(external);
                mapping.protocol.clone_into(&mut place.mapping);
            } else {
                place.unmap();
                place.mapping = format!(
                    "the router opened {external} by {}, which is behind another NAT",
                    mapping.protocol
                );
            }
        });
        debug!(%external, protocol = mapping.protocol, "the router opened a port");
    }
}

/// This machine's address in the network that it shares with `gateway`. Sends nothing.
fn facing(gateway: Ipv4Addr) -> std::io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// The gateway of the default route with the lowest metric, from the text of `/proc/net/route`: a
/// header, then lines of interface, destination, gateway, flags, references, use, metric, mask, …,
/// addresses as hexadecimal numbers in the machine's byte order.
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    const UP_BY_GATEWAY: u32 = 0x3;
    let gateways = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let metric: u32 = fields.get(6)?.parse().ok()?;
        let (destination, gateway, flags, mask) = (hex(1)?, hex(2)?, hex(3)?, hex(7)?);
        let usable = destination == 0 && mask == 0 && flags & UP_BY_GATEWAY == UP_BY_GATEWAY;
        usable.then(|| (metric, Ipv4Addr::from(gateway.to_ne_bytes())))
    });
    gateways.min().map(|(_, gateway)| gateway)
}

/// Whether an address is one of the internet's, and not of a network behind a NAT (RFC 1918, RFC 6598,
/// RFC 3927).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let is_carrier = first == 100 && (64..128).contains(&second);
            let is_special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
            !ip.is_private() && !ip.is_link_local() && !is_carrier && !is_special
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A laptop on two networks, as Linux prints it on little-endian machines.
    const LAPTOP: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE00A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_default_gateway_is_that_of_the_lowest_metric() {
        assert_eq!(
            default_gateway(LAPTOP),
            Some(Ipv4Addr::new(192, 168, 0, 254))
        );
        let without_eth0: Vec<&str> = LAPTOP.lines().filter(|l| !l.starts_with("eth0")).collect();
        assert_eq!(
            default_gateway(&without_eth0.join("\n")),
            Some(Ipv4Addr::new(192, 168, 1, 1))
        );
    }

    #[test]
    fn routes_without_a_gateway_and_broken_ones_are_passed_over() {
        let down = LAPTOP.replace("\t0003\t", "\t0002\t");
        for routes in [
            "",
            "Iface\n",
            &down,
            "x\ny z\n",
            "h\neth0\t0\tg\t3\t0\t0\t0\t0",
        ] {
            assert_eq!(default_gateway(routes), None, "{routes}");
        }
    }

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
    fn addresses_behind_another_nat_are_told_apart() {
        for (ip, public) in [
            ("203.0.113.5", true),
            ("8.8.8.8", true),
            ("100.63.255.255", true),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.1.1", false),
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("fd00::1", false),
        ] {
            assert_eq!(is_public(ip.parse().unwrap()), public, "{ip}");
        }
    }
}
