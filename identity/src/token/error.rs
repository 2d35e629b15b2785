//! Why a token does not permit something.

use crate::{NodeId, Resource, Revoked, Scope, Timestamp};

/// Each kind of refusal is its own, so that people learn what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No well-formed token, or its links do not hang together.
    #[error("the token is malformed: {why}")]
    Malformed {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A link was not signed by its issuer, or was changed afterwards.
    #[error("the token's link {link} is not signed by its issuer")]
    InvalidSignature {
        /// Which link, the authority's being 1.
        link: usize,
    },
    /// The chain begins with another key than the mesh's authority.
    #[error("the token was issued by {}…, which is not this mesh's authority", issuer.short())]
    UntrustedRoot {
        /// The key that the chain begins with.
        issuer: NodeId,
    },
    /// Its time is over.
    #[error("the token expired at {at}")]
    Expired {
        /// The end of the link that ended first.
        at: Timestamp,
    },
    /// Its time has not come.
    #[error("the token is not valid before {from}; check this machine's clock")]
    NotYetValid {
        /// The start of the link that starts last.
        from: Timestamp,
    },
    /// Someone else's token.
    #[error("the token is for {}…, not for {}…", expected.short(), actual.short())]
    WrongSubject {
        /// Whom the token is for.
        expected: NodeId,
        /// Who used it.
        actual: NodeId,
    },
    /// The resource pattern does not cover what is asked for: by a user, or by the next link.
    #[error("the token covers `{allowed}`, not `{wanted}`")]
    WrongResource {
        /// The pattern that the token, or the earlier link, has.
        allowed: Resource,
        /// What was asked for.
        wanted: String,
    },
    /// More is asked for than is granted: by a user, or by a link than the one before it.
    #[error("{what}")]
    ScopeExceeded {
        /// What is more.
        what: Exceeded,
    },
    /// A link where no further delegation was allowed: the one before it has no `delegate` scope,
    /// or not enough depth, or the chain is as long as any may be.
    #[error("the token may not be delegated further")]
    DelegationExhausted,
    /// A link was revoked, or one of its nodes.
    #[error("the token is revoked: {what}")]
    Revoked {
        /// The revocation that hit it.
        what: Revoked,
    },
    /// A token valid for no time was asked for. Occurs at issue only.
    #[error("a token must be valid for some time; give a lifetime above zero")]
    ZeroTtl,
}

/// What exceeds what is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// An action of a scope that the token does not have.
    #[error("the token does not have the scope `{0}`")]
    Scope(Scope),
    /// A link with scopes that the one before it does not have.
    #[error("a delegated token cannot have scopes that its parent lacks")]
    Scopes,
    /// A link that is valid before or after the one before it is.
    #[error("a delegated token cannot start before or outlive its parent")]
    Validity,
    /// A link with wider limits than the one before it.
    #[error("a delegated token cannot have wider limits than its parent")]
    Limits,
}

impl TokenError {
    /// The stable name of the kind, for programs, metrics and audit logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::InvalidSignature { .. } => "invalid_signature",
            Self::UntrustedRoot { .. } => "untrusted_root",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::WrongSubject { .. } => "wrong_subject",
            Self::WrongResource { .. } => "wrong_resource",
            Self::ScopeExceeded { .. } => "scope_exceeded",
            Self::DelegationExhausted => "delegation_exhausted",
            Self::Revoked { .. } => "revoked",
            Self::ZeroTtl => "zero_ttl",
        }
    }

    pub(super) const fn malformed(why: &'static str) -> Self {
        Self::Malformed { why }
    }

    pub(super) const fn exceeded(what: Exceeded) -> Self {
        Self::ScopeExceeded { what }
    }
}
