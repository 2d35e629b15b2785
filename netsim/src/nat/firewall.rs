//! A firewall that translates nothing: hosts behind it have addresses of the outside.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{
    Dependence,
    table::{MAX_PERMITTED, Remote},
};

/// Lets in what was asked for (RFC 6092 for IPv6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firewall {
    /// Whose datagrams are let in: of those that the inside address has sent to.
    /// [`Dependence::EndpointIndependent`]: anybody's, once it has sent to somebody.
    pub filtering: Dependence,
    /// How long that holds after the last datagram from the inside.
    pub lifetime: Duration,
}

/// Stateful filtering by address and port for 2 minutes.
impl Default for Firewall {
    fn default() -> Self {
        Self {
            filtering: Dependence::AddressPortDependent,
            lifetime: Duration::from_mins(2),
        }
    }
}

/// What a firewall remembers.
#[derive(Debug)]
pub(crate) struct Sessions {
    rules: Firewall,
    /// When each inside address has last sent to whom.
    sent: BTreeMap<(SocketAddr, Remote), Instant>,
}

impl Sessions {
    pub(crate) fn new(rules: Firewall) -> Self {
        Self {
            rules,
            sent: BTreeMap::new(),
        }
    }

    /// Sessions that live.
    pub(crate) fn len(&self, now: Instant) -> usize {
        let living = |at: &&Instant| now - **at <= self.rules.lifetime;
        self.sent.values().filter(living).count()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.sent.clear();
    }

    pub(crate) fn outbound(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) {
        if self.sent.len() >= MAX_PERMITTED {
            let lifetime = self.rules.lifetime;
            self.sent.retain(|_, at| now - *at <= lifetime);
        }
        let key = (from, Remote::of(self.rules.filtering, to));
        if self.sent.len() < MAX_PERMITTED || self.sent.contains_key(&key) {
            self.sent.insert(key, now);
        }
    }

    pub(crate) fn admits(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        let key = (to, Remote::of(self.rules.filtering, from));
        self.sent
            .get(&key)
            .is_some_and(|at| now - *at <= self.rules.lifetime)
    }
}
