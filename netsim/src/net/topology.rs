//! Who is where: hosts in networks, and the gateways between them.
//!
//! Networks form a tree with the internet at its root. A datagram goes outwards, through one gateway
//! after the other, until it is in a network that knows its destination: a host, or the outside of a
//! gateway, whence it goes inwards again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::time::Instant;

use crate::nat::{Sessions, Table};

/// Gateways on one way: more are a loop.
const MAX_HOPS: usize = 8;
/// First port that is given to who asks for any (RFC 6335 §6).
const FIRST_FREE_PORT: u16 = 49_152;

/// A network: the internet, or one inside a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lan(pub(super) usize);

impl Lan {
    /// The network that all others are inside of.
    pub const INTERNET: Self = Self(0);
}

/// A gateway between a network and the one outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub(super) usize);

/// Names a host in the network's own books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(super) usize);

/// Names a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketId(pub(super) u64);

/// A host: an address in each network that it is attached to.
#[derive(Debug, Default)]
pub(super) struct HostState {
    pub(super) attached: Vec<(Lan, IpAddr)>,
    pub(super) ports: BTreeMap<u16, SocketId>,
    /// Neither sends nor gets anything, for a while.
    pub(super) paused: bool,
}

#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) inside: Lan,
    pub(super) outside: Lan,
    /// Which of IPv4 and IPv6 it is the way out for.
    pub(super) v6: bool,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Nat(Box<Table>),
    Firewall(Sessions),
}

#[derive(Debug, Default)]
pub(super) struct Topology {
    pub(super) hosts: Vec<HostState>,
    /// Who has which address in which network; where two claim one, who came last.
    directory: BTreeMap<(Lan, IpAddr), HostId>,
    lans: usize,
    pub(super) gateways: Vec<Gateway>,
}

/// Who has an address in some network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Host(HostId),
    Gateway(GatewayId),
}

/// Where a datagram stands when it has gone outwards.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// At a host. `local`: without passing a gateway or the internet.
    Host { host: HostId, local: bool },
    /// At the outside of a gateway. `hairpin`: it came from its inside.
    Gateway { gateway: GatewayId, hairpin: bool },
}

impl Topology {
    pub(super) fn new() -> Self {
        Self {
            lans: 1,
            ..Self::default()
        }
    }

    pub(super) fn add_lan(&mut self) -> Lan {
        self.lans += 1;
        Lan(self.lans - 1)
    }

    pub(super) fn add_gateway(&mut self, gateway: Gateway) -> GatewayId {
        self.gateways.push(gateway);
        GatewayId(self.gateways.len() - 1)
    }

    pub(super) fn add_host(&mut self, attached: &[(Lan, IpAddr)]) -> HostId {
        self.hosts.push(HostState::default());
        let id = HostId(self.hosts.len() - 1);
        self.attach(id, attached);
        id
    }

    /// Gives a host these addresses instead of those that it has.
    pub(super) fn attach(&mut self, id: HostId, attached: &[(Lan, IpAddr)]) {
        self.directory.retain(|_, host| *host != id);
        let entries = attached.iter().map(|at| (*at, id));
        self.directory.extend(entries);
        self.hosts[id.0].attached = attached.to_vec();
    }

    /// The host with this address in this network.
    pub(super) fn host_at(&self, lan: Lan, ip: IpAddr) -> Option<HostId> {
        self.directory.get(&(lan, ip)).copied()
    }

    /// What a socket of the host says where it is: at the host's only address of its kind, or at none
    /// in particular.
    pub(super) fn local_addr(&self, host: HostId, port: u16, v6: bool) -> SocketAddr {
        let attached = &self.hosts[host.0].attached;
        let mut usable = attached
            .iter()
            .map(|at| at.1)
            .filter(|ip| v6 || ip.is_ipv4());
        let ip = match (usable.next(), usable.next()) {
            (Some(only), None) if only.is_ipv6() == v6 => only,
            _ if v6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        SocketAddr::new(ip, port)
    }

    /// Whether what comes from the inside of a gateway for its outside is taken inwards again.
    pub(super) fn hairpins(&self, gateway: GatewayId) -> bool {
        match &self.gateways[gateway.0].kind {
            Kind::Nat(table) => table.hairpins(),
            Kind::Firewall(_) => true,
        }
    }

    /// A port of the host that no socket has.
    pub(super) fn free_port(&self, host: HostId) -> Option<u16> {
        let taken = &self.hosts[host.0].ports;
        (FIRST_FREE_PORT..=u16::MAX).find(|port| !taken.contains_key(port))
    }

    /// From which of its attachments a host sends to `to`: one of the same kind of address, and
    /// rather one where `to` is at hand; `wanted` if that is one of its addresses.
    pub(super) fn source(
        &self,
        host: HostId,
        to: IpAddr,
        wanted: Option<IpAddr>,
    ) -> Option<(Lan, IpAddr)> {
        let attached = &self.hosts[host.0].attached;
        let fits = |at: &&(Lan, IpAddr)| at.1.is_ipv4() == to.is_ipv4();
        let mut fitting = attached.iter().filter(fits);
        if let Some(at) = wanted.and_then(|ip| fitting.clone().find(|at| at.1 == ip)) {
            return Some(*at);
        }
        let at_hand = |at: &&(Lan, IpAddr)| self.owner(at.0, to).is_some();
        let first = fitting.clone().next();
        fitting.find(at_hand).or(first).copied()
    }

    /// Takes a datagram outwards from `lan`: where it gets to, and from which address it then is.
    /// `None`: nobody has the address, or a table is full.
    pub(super) fn outwards(
        &mut self,
        now: Instant,
        mut lan: Lan,
        mut from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(Reached, SocketAddr)> {
        let mut passed = None;
        for _ in 0..MAX_HOPS {
            match self.owner(lan, to.ip()) {
                Some(Owner::Host(host)) => {
                    let local = passed.is_none() && lan != Lan::INTERNET;
                    return Some((Reached::Host { host, local }, from));
                }
                Some(Owner::Gateway(gateway)) => {
                    let hairpin = passed == Some(gateway);
                    return Some((Reached::Gateway { gateway, hairpin }, from));
                }
                None => {}
            }
            let out = self.way_out(lan, to.is_ipv6())?;
            let gateway = &mut self.gateways[out.0];
            from = match &mut gateway.kind {
                Kind::Nat(table) => table.outbound(now, from, to)?,
                Kind::Firewall(sessions) => {
                    sessions.outbound(now, from, to);
                    from
                }
            };
            lan = gateway.outside;
            passed = Some(out);
        }
        None
    }

    /// Takes a datagram inwards through `gateway`, and through those inside of it: the host that it
    /// gets to, and the host's address that it is then for. `None`: it is filtered.
    pub(super) fn inwards(
        &self,
        now: Instant,
        mut gateway: GatewayId,
        from: SocketAddr,
        mut to: SocketAddr,
    ) -> Option<(HostId, SocketAddr)> {
        for _ in 0..MAX_HOPS {
            let Gateway { inside, kind, .. } = &self.gateways[gateway.0];
            to = match kind {
                Kind::Nat(table) => table.inbound(now, from, to.port())?,
                Kind::Firewall(sessions) => sessions.admits(now, from, to).then_some(to)?,
            };
            match self.owner(*inside, to.ip())? {
                Owner::Host(host) => return Some((host, to)),
                Owner::Gateway(next) => gateway = next,
            }
        }
        None
    }

    /// The host that a datagram for `to` at `gateway` is meant for, whether it comes through or not.
    pub(super) fn meant(&self, mut gateway: GatewayId, mut to: SocketAddr) -> Option<HostId> {
        for _ in 0..MAX_HOPS {
            let Gateway { inside, kind, .. } = &self.gateways[gateway.0];
            if let Kind::Nat(table) = kind {
                to = table.owner(to.port())?;
            }
            match self.owner(*inside, to.ip())? {
                Owner::Host(host) => return Some(host),
                Owner::Gateway(next) => gateway = next,
            }
        }
        None
    }

    /// Who has an address in a network. Of a firewall, that is who is behind it.
    fn owner(&self, lan: Lan, ip: IpAddr) -> Option<Owner> {
        if let Some(host) = self.host_at(lan, ip) {
            return Some(Owner::Host(host));
        }
        let here = |gateway: &&(usize, &Gateway)| gateway.1.outside == lan;
        let mut gateways = self.gateways.iter().enumerate();
        let has = |gateway: &Gateway| match &gateway.kind {
            Kind::Nat(table) => table.external() == ip,
            Kind::Firewall(_) => {
                gateway.v6 == ip.is_ipv6() && self.owner(gateway.inside, ip).is_some()
            }
        };
        gateways
            .find(|gateway| here(&gateway) && has(gateway.1))
            .map(|(index, _)| Owner::Gateway(GatewayId(index)))
    }

    fn way_out(&self, lan: Lan, v6: bool) -> Option<GatewayId> {
        let leads = |gateway: &Gateway| gateway.inside == lan && gateway.v6 == v6;
        self.gateways.iter().position(leads).map(GatewayId)
    }
}
