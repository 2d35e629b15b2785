//! When nothing arrives.

use std::time::Duration;

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
