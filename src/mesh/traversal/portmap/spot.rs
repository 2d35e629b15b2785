//! Where this machine is in its network: which router it goes out by, and as whom.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// Where Linux tells its IPv4 routes.
const ROUTES: &str = "/proc/net/route";

/// A machine's place behind a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    /// The router.
    pub(super) gateway: Ipv4Addr,
    /// The machine's address in the network that it shares with the router.
    pub(super) local: Ipv4Addr,
}

impl Spot {
    /// Where the machine is now, or why that says nothing.
    pub(super) fn find() -> Result<Self, String> {
        let routes =
            fs::read_to_string(ROUTES).map_err(|error| format!("cannot read {ROUTES}: {error}"))?;
        let gateway = default_gateway(&routes).ok_or("this machine has no default IPv4 gateway")?;
        let local = facing(gateway)
            .map_err(|error| format!("no address faces gateway {gateway}: {error}"))?;
        Ok(Self { gateway, local })
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
}
