//! When nothing arrives.

use std::{net::SocketAddr, time::Duration};

use super::{Host, Net};

/// When a direction between two hosts is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Always.
    Always,
    /// For `out`, then not for `well`, then again, from the start of the simulation on.
    Flapping {
        /// How long it is out each time.
        out: Duration,
        /// How long it works each time.
        well: Duration,
    },
}

impl Outage {
    /// Whether it is out so long after the start.
    pub(super) fn is_on(&self, since_start: Duration) -> bool {
        match self {
            Self::Always => true,
            Self::Flapping { out, well } => {
                let period = (*out + *well).as_nanos().max(1);
                since_start.as_nanos() % period < out.as_nanos()
            }
        }
    }
}

impl Net {
    /// Loses everything that is sent to an IPv6 address over the internet from now on, or no longer.
    pub fn blackhole_v6(&self, on: bool) {
        self.state().no_v6 = on;
    }

    /// Loses everything between `a` and `b` from now on.
    pub fn partition(&self, a: SocketAddr, b: SocketAddr) {
        self.state().cut.extend([(a, b), (b, a)]);
    }

    /// Ends [`Net::partition`].
    pub fn heal(&self, a: SocketAddr, b: SocketAddr) {
        let mut state = self.state();
        state.cut.remove(&(a, b));
        state.cut.remove(&(b, a));
    }

    /// Loses what each of `from` sends to each of `to`, over whatever address, from now on and as
    /// `outage` says. One direction.
    pub fn cut(&self, from: &[&Host], to: &[&Host], outage: Outage) {
        let mut state = self.state();
        for from in from {
            for to in to {
                state.outages.insert((from.id(), to.id()), outage);
            }
        }
    }

    /// Ends [`Net::cut`] in this direction.
    pub fn mend(&self, from: &[&Host], to: &[&Host]) {
        let mut state = self.state();
        for from in from {
            for to in to {
                state.outages.remove(&(from.id(), to.id()));
            }
        }
    }
}
