//! Why announcements are refused, and how often that happened.

use std::collections::BTreeMap;

use meshwork_identity::{Timestamp, TokenError};

use crate::limits::{MAX_ANNOUNCEMENT, MAX_HOPS};

/// Why an announcement is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedBy {
    /// Its body is larger than [`MAX_ANNOUNCEMENT`].
    #[error("the announcement has {bytes} bytes, at most {MAX_ANNOUNCEMENT} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Its signer did not sign it.
    #[error("the announcement is not signed by the node that it describes")]
    BadSignature,
    /// Its token does not let its signer announce.
    #[error("its token does not allow it to announce")]
    Token(#[source] TokenError),
    /// It is older than one that was seen, or another of the same version.
    #[error("version {version} is not later than {known}, which was seen before")]
    Rollback {
        /// Its version.
        version: u64,
        /// The latest seen.
        known: u64,
    },
    /// Its time is over.
    #[error("the announcement expired at {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// It claims to be from the future.
    #[error("the announcement is dated {at}, which is yet to come")]
    FutureIssued {
        /// When.
        at: Timestamp,
    },
    /// It was forwarded more often than [`MAX_HOPS`].
    #[error("the announcement was forwarded {hops} times, at most {MAX_HOPS} are allowed")]
    Hops {
        /// How often.
        hops: u8,
    },
    /// It is properly signed, but says what no node may say.
    #[error("the announcement's {0} is malformed")]
    Malformed(&'static str),
    /// As many nodes are held as may be.
    #[error("this node holds as many announcements as it may")]
    StoreFull,
    /// Its signer announces too often.
    #[error("the node announces too often")]
    RateLimited,
}

impl RefusedBy {
    /// The stable name of the kind, for metrics: `rollback`, `bad_signature`, ….
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::BadSignature => "bad_signature",
            Self::Token(_) => "token",
            Self::Rollback { .. } => "rollback",
            Self::Expired { .. } => "expired",
            Self::FutureIssued { .. } => "future_issued",
            Self::Hops { .. } => "hops",
            Self::Malformed(_) => "malformed",
            Self::StoreFull => "store_full",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// How often announcements were refused, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(BTreeMap<&'static str, u64>);

impl Refusals {
    pub(super) fn count(&mut self, refusal: &RefusedBy) {
        *self.0.entry(refusal.kind()).or_default() += 1;
    }

    /// Refusals of one [`RefusedBy::kind`].
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// Refusals of every kind.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Kinds that occurred, with their number.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(kind, number)| (*kind, *number))
    }
}
