//! Ports by `UPnP`-IGD (`WANIPConnection`): a search by multicast, then SOAP over HTTP. Anybody in the
//! network may answer the search, and say what he likes: only the machine's own gateway is listened
//! to, for a while and up to a size (`igd-next` takes 1 MiB of an answer).

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{
    AddAnyPortError, AddPortError, GatewayIpVersion, PortMappingProtocol, SearchOptions,
};
use tokio::time::timeout;

use super::spot::Spot;
use super::{LEASE, Opened, brief};
use crate::traversal::probeable::is_unicast;

/// Where gateways listen to searches.
const SEARCH_PORT: u16 = 1900;
/// The group of those who do.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// What the router's owner sees beside the port.
const DESCRIPTION: &str = "meshwork";
/// Stands for a lease that never ends. Some routers know nothing else.
const FOR_EVER: u32 = 0;

/// How a router is looked for and waited for.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) spot: Spot,
    /// Where questions go, one after the other, and how long each may take to be answered.
    pub(super) at: Vec<(SocketAddr, Duration)>,
    /// How long a found router may take for each of: its address outside, a port, the port's end.
    pub(super) patience: Duration,
}

/// An open port.
#[derive(Debug)]
pub(super) struct Upnp {
    gateway: Gateway<Tokio>,
    local: SocketAddr,
    outside: u16,
    /// How long the router keeps the port unless it is asked again, in seconds, or [`FOR_EVER`].
    lease: u32,
    patience: Duration,
}

impl Search {
    /// Asks the gateway itself, which most answer; then all devices, as the gateway may listen to the
    /// group only.
    pub(super) fn around(spot: Spot) -> Self {
        Self {
            spot,
            at: vec![
                ((spot.gateway, SEARCH_PORT).into(), Duration::from_secs(1)),
                ((GROUP, SEARCH_PORT).into(), Duration::from_secs(3)),
            ],
            patience: Duration::from_secs(3),
        }
    }

    async fn find(&self) -> Result<Gateway<Tokio>, String> {
        let mut stranger = None;
        for (at, patience) in &self.at {
            let mut search = SearchOptions::default();
            search.bind_addr = (self.spot.local, 0).into();
            search.broadcast_address = *at;
            search.timeout = Some(*patience);
            search.single_search_timeout = Some(*patience);
            search.gateway_ip_version = GatewayIpVersion::V4;
            search.allowed_gateway_ips = vec![self.spot.gateway.into()];
            match search_gateway(search).await {
                Ok(found) if found.addr.ip() == self.spot.gateway => return Ok(found),
                Ok(found) => stranger = Some(found.addr.ip()),
                // That nobody answers is told below; other errors are about answers of others.
                Err(_) => {}
            }
        }
        Err(match stranger {
            Some(stranger) => format!("{stranger} answers, which is not this machine's router"),
            None => "no answer that a router would give".to_owned(),
        })
    }
}

impl Upnp {
    /// Finds the router, and has it forward a port to `port` of this machine.
    pub(super) async fn open(search: &Search, port: NonZeroU16) -> Result<(Self, Opened), String> {
        let gateway = search.find().await?;
        let mut upnp = Self {
            gateway,
            local: (search.spot.local, port.get()).into(),
            outside: port.get(),
            lease: seconds(),
            patience: search.patience,
        };
        // First, as a port that leads nowhere is not to be opened.
        upnp.external().await?;
        let Ok(added) = timeout(search.patience, upnp.add()).await else {
            // It may have opened the port all the same, perhaps for ever.
            let _ = upnp.remove().await;
            return Err(unanswered("to open a port"));
        };
        added?;
        let told = upnp.told().await;
        if told.is_err() {
            let _ = upnp.remove().await;
        }
        let told = told?;
        Ok((upnp, told))
    }

    /// Asks the router again for the port. One that keeps it for ever may have been restarted.
    pub(super) async fn renew(&mut self) -> Result<Opened, String> {
        let (gateway, udp) = (&self.gateway, PortMappingProtocol::UDP);
        let asked = gateway.add_port(udp, self.outside, self.local, self.lease, DESCRIPTION);
        match timeout(self.patience, asked).await {
            Ok(added) => added.map_err(brief)?,
            Err(_) => return Err(unanswered("to renew the port")),
        }
        self.told().await
    }

    pub(super) async fn close(self) -> Result<(), String> {
        self.remove().await
    }

    async fn told(&self) -> Result<Opened, String> {
        Ok(Opened {
            external: self.external().await?,
            protocol: "upnp",
            lease: LEASE,
        })
    }

    /// Where the router says that the port is.
    async fn external(&self) -> Result<SocketAddr, String> {
        let ip = timeout(self.patience, self.gateway.get_external_ip()).await;
        let ip = ip.map_err(|_| unanswered("for its address outside"))?;
        let external = SocketAddr::new(ip.map_err(brief)?, self.outside);
        if is_unicast(&external) {
            Ok(external)
        } else {
            Err(format!(
                "the router says that it is {} outside, where nobody can be",
                external.ip()
            ))
        }
    }

    /// Opens this port of the router, or where it is taken, perhaps by another node in this house,
    /// any other.
    async fn add(&mut self) -> Result<(), String> {
        let (gateway, udp, local) = (&self.gateway, PortMappingProtocol::UDP, self.local);
        for lease in [seconds(), FOR_EVER] {
            self.lease = lease;
            let same = gateway.add_port(udp, self.outside, local, lease, DESCRIPTION);
            match same.await {
                Ok(()) => return Ok(()),
                Err(AddPortError::OnlyPermanentLeasesSupported) => continue,
                Err(_) => {}
            }
            let any = gateway.add_any_port(udp, local, lease, DESCRIPTION);
            match any.await {
                Ok(0) => return Err("the router opened port 0, which is none".to_owned()),
                Ok(outside) => {
                    self.outside = outside;
                    return Ok(());
                }
                Err(AddAnyPortError::OnlyPermanentLeasesSupported) => {}
                Err(error) => return Err(brief(error)),
            }
        }
        Err("the router wants ports kept for ever, and does not keep them so".to_owned())
    }

    async fn remove(&self) -> Result<(), String> {
        let removed = self
            .gateway
            .remove_port(PortMappingProtocol::UDP, self.outside);
        match timeout(self.patience, removed).await {
            Ok(removed) => removed.map_err(brief),
            Err(_) => Err(unanswered("to close the port")),
        }
    }
}

fn seconds() -> u32 {
    u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX)
}

fn unanswered(what: &str) -> String {
    format!("the router does not answer when it is asked {what}")
}

#[cfg(test)]
mod tests;
