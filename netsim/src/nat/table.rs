//! The mappings of one translator.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::{Dependence, NatModel, Ports};

/// Remote addresses that one mapping lets in, and sessions of one firewall. Beyond it, new ones are
/// not let in, as in a full table.
pub(crate) const MAX_PERMITTED: usize = 65_536;
/// Outside ports (RFC 4787 REQ-3: none of the well-known).
const FIRST_PORT: u16 = 1024;

/// A translator's memory.
#[derive(Debug)]
pub(crate) struct Table {
    model: NatModel,
    external: IpAddr,
    mappings: BTreeMap<Key, Mapping>,
    /// The mapping of each outside port that is taken.
    ports: BTreeMap<u16, Key>,
    last_port: u16,
    rng: StdRng,
}

/// What of a remote address matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remote {
    Any,
    Ip(IpAddr),
    Addr(SocketAddr),
}

impl Remote {
    pub(crate) fn of(dependence: Dependence, addr: SocketAddr) -> Self {
        match dependence {
            Dependence::EndpointIndependent => Self::Any,
            Dependence::AddressDependent => Self::Ip(addr.ip()),
            Dependence::AddressPortDependent => Self::Addr(addr),
        }
    }
}

/// What shares a mapping: an inside address and as much of the remote one as matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    inside: SocketAddr,
    remote: Remote,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    made: Instant,
    /// Last datagram from the inside.
    used: Instant,
    /// Who was sent to through it, and when last.
    permitted: BTreeMap<Remote, Instant>,
}

impl Table {
    pub(crate) fn new(model: NatModel, external: IpAddr, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            model,
            external,
            mappings: BTreeMap::new(),
            ports: BTreeMap::new(),
            last_port: rng.random_range(FIRST_PORT..=u16::MAX),
            rng,
        }
    }

    pub(crate) fn external(&self) -> IpAddr {
        self.external
    }

    pub(crate) fn hairpins(&self) -> bool {
        self.model.hairpin
    }

    /// Mappings that live.
    pub(crate) fn len(&self, now: Instant) -> usize {
        let living = |mapping: &&Mapping| self.model.lives(mapping, now);
        self.mappings.values().filter(living).count()
    }

    /// Forgets everything, as a router does that restarts.
    pub(crate) fn clear(&mut self) {
        self.mappings.clear();
        self.ports.clear();
    }

    /// Under which outside address a datagram from the inside goes on; `None`: no port is free.
    pub(crate) fn outbound(
        &mut self,
        now: Instant,
        inside: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let model = self.model;
        let key = Key {
            inside,
            remote: Remote::of(model.mapping, to),
        };
        if !self.mappings.get(&key).is_some_and(|m| model.lives(m, now)) {
            self.make(now, key)?;
        }
        let mapping = self.mappings.get_mut(&key)?;
        mapping.used = now;
        let remote = Remote::of(model.filtering, to);
        if mapping.permitted.len() >= MAX_PERMITTED {
            let fresh = |_: &Remote, at: &mut Instant| now - *at <= model.lifetime;
            mapping.permitted.retain(fresh);
        }
        if mapping.permitted.len() < MAX_PERMITTED || mapping.permitted.contains_key(&remote) {
            mapping.permitted.insert(remote, now);
        }
        Some(SocketAddr::new(self.external, mapping.port))
    }

    /// To which inside address a datagram for an outside port goes on; `None`: it is filtered.
    pub(crate) fn inbound(&self, now: Instant, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let key = self.ports.get(&port)?;
        let mapping = self.mappings.get(key)?;
        let permitted = mapping
            .permitted
            .get(&Remote::of(self.model.filtering, from))?;
        let open = self.model.lives(mapping, now) && now - *permitted <= self.model.lifetime;
        open.then_some(key.inside)
    }

    /// Which inside address an outside port stands for, whoever asks.
    pub(crate) fn owner(&self, port: u16) -> Option<SocketAddr> {
        self.ports.get(&port).map(|key| key.inside)
    }

    fn make(&mut self, now: Instant, key: Key) -> Option<()> {
        let model = self.model;
        self.mappings.retain(|_, mapping| model.lives(mapping, now));
        self.ports.retain(|_, key| self.mappings.contains_key(key));
        let port = self.free_port(key.inside.port())?;
        self.last_port = port;
        self.ports.insert(port, key);
        let mapping = Mapping {
            port,
            made: now,
            used: now,
            permitted: BTreeMap::new(),
        };
        self.mappings.insert(key, mapping);
        Some(())
    }

    fn free_port(&mut self, inside: u16) -> Option<u16> {
        let wanted = match self.model.ports {
            Ports::Preserve => inside.max(FIRST_PORT),
            Ports::Random => self.rng.random_range(FIRST_PORT..=u16::MAX),
            Ports::Sequential => self.last_port.checked_add(1).unwrap_or(FIRST_PORT),
        };
        let mut candidates = (wanted..=u16::MAX).chain(FIRST_PORT..wanted);
        candidates.find(|port| !self.ports.contains_key(port))
    }
}

impl NatModel {
    fn lives(&self, mapping: &Mapping, now: Instant) -> bool {
        now - mapping.used <= self.lifetime
            && self
                .hard_lifetime
                .is_none_or(|age| now - mapping.made <= age)
    }
}
