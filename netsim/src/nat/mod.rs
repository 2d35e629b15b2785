//! Network address translators and firewalls, in the terms of RFC 4787.
//!
//! A translator gives each *mapping* of an inside address an outside port. Its **mapping** behaviour
//! (§4.1) says for which destinations one mapping serves; its **filtering** behaviour (§5) says whose
//! datagrams to that port it lets in. What RFC 3489 called "full cone", "restricted cone", "port
//! restricted cone" and "symmetric" are four of the nine combinations.
//!
//! [`theory::direct_possible`] says from these alone which two hosts can reach each other.

mod firewall;
mod table;
pub mod theory;

use std::{fmt, time::Duration};

pub use firewall::Firewall;
pub(crate) use firewall::Sessions;
pub(crate) use table::Table;

/// How far a destination matters (RFC 4787 §4.1, §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// Not at all.
    EndpointIndependent,
    /// Its IP address does.
    AddressDependent,
    /// Its IP address and port do.
    AddressPortDependent,
}

/// Which outside port a new mapping gets (RFC 4787 §4.2). No two mappings share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// That of the inside address if it is free, else the next free one.
    Preserve,
    /// Any free one.
    Random,
    /// The one after that of the mapping before.
    Sequential,
}

/// How a translator behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatModel {
    /// Which destinations share a mapping.
    pub mapping: Dependence,
    /// Whose datagrams are let in to a mapping: of those that were sent to through it.
    pub filtering: Dependence,
    /// Which ports mappings get.
    pub ports: Ports,
    /// A mapping ends when nothing was sent through it from the inside for so long, and so does the
    /// permission of a remote address. RFC 4787 §4.3 asks for 2 minutes; 30 s are seen.
    pub lifetime: Duration,
    /// A mapping ends after so long whatever is sent, as some carriers do. `None`: it does not.
    pub hard_lifetime: Option<Duration>,
    /// Whether two hosts inside reach each other by their outside addresses (RFC 4787 §6).
    pub hairpin: bool,
}

/// All three kinds, from the most to the least open.
pub const DEPENDENCES: [Dependence; 3] = [
    Dependence::EndpointIndependent,
    Dependence::AddressDependent,
    Dependence::AddressPortDependent,
];

impl NatModel {
    /// A model of this mapping and filtering; the rest as in [`NatModel::home`].
    pub const fn new(mapping: Dependence, filtering: Dependence) -> Self {
        Self {
            mapping,
            filtering,
            ports: Ports::Random,
            lifetime: Duration::from_mins(2),
            hard_lifetime: None,
            hairpin: false,
        }
    }

    /// What most home routers are ("port restricted cone"): one mapping for all, filtered by address
    /// and port, random ports, 2 minutes, no hairpin. Linux's masquerading looks like this, with
    /// preserved ports.
    pub const fn home() -> Self {
        Self::new(
            Dependence::EndpointIndependent,
            Dependence::AddressPortDependent,
        )
    }

    /// What some firms and carriers are ("symmetric"): a mapping for each destination.
    pub const fn symmetric() -> Self {
        Self::new(
            Dependence::AddressPortDependent,
            Dependence::AddressPortDependent,
        )
    }

    /// A carrier's that keeps to RFC 6888: one mapping for all, open filtering, hairpin.
    pub const fn carrier() -> Self {
        let mut model = Self::new(
            Dependence::EndpointIndependent,
            Dependence::EndpointIndependent,
        );
        model.hairpin = true;
        model
    }

    /// The nine combinations of mapping and filtering, in the order of [`DEPENDENCES`].
    pub fn kinds() -> impl Iterator<Item = Self> {
        DEPENDENCES
            .into_iter()
            .flat_map(|mapping| DEPENDENCES.map(|filtering| Self::new(mapping, filtering)))
    }

    /// With these ports.
    #[must_use]
    pub const fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// With mappings that end after so long without traffic from the inside.
    #[must_use]
    pub const fn lifetime(mut self, idle: Duration) -> Self {
        self.lifetime = idle;
        self
    }

    /// With mappings that end after so long in any case.
    #[must_use]
    pub const fn hard_lifetime(mut self, age: Duration) -> Self {
        self.hard_lifetime = Some(age);
        self
    }

    /// With or without hairpin.
    #[must_use]
    pub const fn hairpin(mut self, hairpin: bool) -> Self {
        self.hairpin = hairpin;
        self
    }
}

/// `EIM/APDF` and the like.
impl fmt::Display for NatModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M/{}F", self.mapping.short(), self.filtering.short())
    }
}

impl Dependence {
    fn short(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "EI",
            Self::AddressDependent => "AD",
            Self::AddressPortDependent => "APD",
        }
    }
}

#[cfg(test)]
mod tests;
