//! Why facts are refused, and how often that happened.

use std::collections::BTreeMap;

use meshwork_identity::{RevocationError, Timestamp, TokenError};

use crate::limits::MAX_HOPS;
use crate::psk::PskRotationError;

/// Why a fact is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedBy {
    /// Its body is larger than its kind may be.
    #[error("it has {bytes} bytes, at most {most} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound of its kind.
        most: usize,
    },
    /// Its signer did not sign it.
    #[error("it is not signed by the node that it names")]
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
    #[error("it expired at {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// It claims to be from the future.
    #[error("it is dated {at}, which is yet to come")]
    FutureIssued {
        /// When.
        at: Timestamp,
    },
    /// It was forwarded more often than [`MAX_HOPS`].
    #[error("it was forwarded {hops} times, at most {MAX_HOPS} are allowed")]
    Hops {
        /// How often.
        hops: u8,
    },
    /// It is properly signed, but says what no node may say.
    #[error("its {0} is malformed")]
    Malformed(&'static str),
    /// As many nodes are held as may be, and those have a better claim: see the module `shares`.
    #[error("this node holds as many announcements as it may")]
    StoreFull,
    /// Its signer says too much in too short a time.
    #[error("the node speaks too often")]
    RateLimited,
    /// The beat renews another announcement than the latest.
    #[error("the beat renews version {base}, the announcement has version {held}")]
    WrongBase {
        /// What it renews.
        base: u64,
        /// What there is to renew.
        held: u64,
    },
    /// The accuser is no node whose announcement holds.
    #[error("the accuser is no known node")]
    Stranger,
    /// The accused is no node that is known.
    #[error("the accused is no known node")]
    UnknownAccused,
    /// It revokes, but may not.
    #[error("the revocation is not heeded")]
    Revocation(#[source] RevocationError),
    /// It changes the mesh's key, but may not.
    #[error("the change of the mesh's key is not heeded")]
    Psk(#[source] PskRotationError),
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
            Self::WrongBase { .. } => "wrong_base",
            Self::Stranger => "stranger",
            Self::UnknownAccused => "unknown_accused",
            Self::Revocation(_) => "revocation",
            Self::Psk(_) => "psk",
        }
    }
}

impl RefusedBy {
    /// Whether a peer that checks what it passes on would not have told it. The other reasons lie in
    /// this node, as when it is full or knows less, or in the signer, who may say another thing to
    /// each of its neighbours.
    pub fn blames_teller(&self) -> bool {
        match self {
            Self::TooLarge { .. }
            | Self::BadSignature
            | Self::Token(_)
            | Self::Hops { .. }
            | Self::Malformed(_) => true,
            Self::Revocation(error) => !matches!(
                error,
                RevocationError::Full
                    | RevocationError::FromFuture(_)
                    | RevocationError::Obsolete(_)
            ),
            Self::Psk(error) => !matches!(error, PskRotationError::FromFuture(_)),
            Self::Rollback { .. }
            | Self::Expired { .. }
            | Self::FutureIssued { .. }
            | Self::StoreFull
            | Self::RateLimited
            | Self::WrongBase { .. }
            | Self::Stranger
            | Self::UnknownAccused => false,
        }
    }
}

/// How often facts were refused, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(BTreeMap<&'static str, u64>);

impl Refusals {
    pub(crate) fn count(&mut self, refusal: &RefusedBy) {
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
