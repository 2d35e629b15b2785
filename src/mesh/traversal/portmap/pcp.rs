//! Ports by PCP (RFC 6887) and its forerunner NAT-PMP (RFC 6886): a datagram to the router and back.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};

use super::spot::Spot;
use super::{LEASE, Opened, brief};

/// How long a router may take to answer, all tries together.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);

/// A port that one of the two has opened.
#[derive(Debug)]
pub(super) struct Pcp(PortMapping);

impl Pcp {
    /// Opens a port by PCP.
    pub(super) async fn open(spot: Spot, port: NonZeroU16) -> Result<(Self, Opened), String> {
        let (gateway, client) = (spot.gateway.into(), spot.local.into());
        let request = pcp::BaseMapRequest::new(gateway, client, InternetProtocol::Udp, port);
        let opened = pcp::port_mapping(request, None, None, options(Some(port))).await;
        let opened = opened.map_err(brief)?;
        let PortMappingType::Pcp { external_ip, .. } = opened.mapping_type() else {
            return Err("the router changed its mind".to_owned());
        };
        Ok(Self::of(opened, external_ip, "pcp"))
    }

    /// Opens a port by NAT-PMP.
    pub(super) async fn open_old(spot: Spot, port: NonZeroU16) -> Result<(Self, Opened), String> {
        let ip = natpmp::external_address(spot.gateway.into(), options(None).timeout_config);
        let ip = ip.await.map_err(brief)?;
        let udp = InternetProtocol::Udp;
        let opened = natpmp::port_mapping(spot.gateway.into(), udp, port, options(Some(port)));
        Ok(Self::of(opened.await.map_err(brief)?, ip.into(), "nat-pmp"))
    }

    fn of(opened: PortMapping, ip: IpAddr, protocol: &'static str) -> (Self, Opened) {
        let told = Opened {
            external: SocketAddr::new(ip, opened.external_port().get()),
            protocol,
            lease: Duration::from_secs(opened.lifetime().into()),
        };
        (Self(opened), told)
    }

    /// Asks for another lease.
    pub(super) async fn renew(&mut self) -> Result<Opened, String> {
        self.0.renew().await.map_err(brief)?;
        let (ip, protocol) = match self.0.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => (external_ip, "pcp"),
            PortMappingType::NatPmp => {
                let timing = Some(self.0.timeout_config);
                let ip = natpmp::external_address(self.0.gateway(), timing).await;
                (ip.map_err(brief)?.into(), "nat-pmp")
            }
        };
        Ok(Self::of(self.0.clone(), ip, protocol).1)
    }

    pub(super) async fn close(self) -> Result<(), String> {
        let closed = self.0.try_drop().await;
        closed.map_err(|(error, _)| brief(error))
    }
}

fn options(external: Option<NonZeroU16>) -> PortMappingOptions {
    PortMappingOptions {
        external_port: external,
        lifetime_seconds: u32::try_from(LEASE.as_secs()).ok(),
        timeout_config: Some(TimeoutConfig {
            initial_timeout: DEADLINE / 4,
            max_retries: 2,
            max_retry_timeout: None,
        }),
    }
}
