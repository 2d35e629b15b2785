//! The check of a token, offline, and the grant that it yields.

use std::time::Duration;

use super::{Claims, Exceeded, Link, Token, TokenError, TokenId};
use crate::{
    Domain, Limits, NodeId, Resource, Revocations, Revoked, Scope, Scopes, Timestamp, codec,
};

/// How far clocks may lie apart by default.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// The path that actions on the mesh as a whole are checked against: joining, announcing, revoking.
pub const MESH_PATH: &str = "mesh";

/// What a token is checked against.
#[derive(Debug, Clone, Copy)]
pub struct VerifyContext<'a> {
    /// The mesh's authority, where every chain must begin.
    pub root: &'a NodeId,
    /// The current time.
    pub now: Timestamp,
    /// How far the issuer's clock may be from ours; [`CLOCK_TOLERANCE`] by default.
    pub tolerance: Duration,
    /// What has been withdrawn.
    pub revocations: &'a Revocations,
}

impl<'a> VerifyContext<'a> {
    /// With the default tolerance.
    pub fn new(root: &'a NodeId, now: Timestamp, revocations: &'a Revocations) -> Self {
        Self {
            root,
            now,
            tolerance: CLOCK_TOLERANCE,
            revocations,
        }
    }
}

/// What a token that was checked permits. Made once per connection; each action is then a
/// [`Grant::check`] without any cryptography.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who may act.
    pub subject: NodeId,
    /// The kinds of action.
    pub scopes: Scopes,
    /// On what.
    pub resource: Resource,
    /// How much.
    pub limits: Limits,
    /// From when on.
    pub not_before: Timestamp,
    /// Until when.
    pub expires: Timestamp,
    /// How far the issuer's clock may be from ours, as in the check of the token.
    pub tolerance: Duration,
    /// Every link of the token, root first, to find the grants that a revocation hits.
    pub chain: Vec<ChainLink>,
}

/// One link of a checked token, by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLink {
    /// The link.
    pub id: TokenId,
    /// Who signed it. In the first link, the authority.
    pub issuer: NodeId,
    /// For whom.
    pub subject: NodeId,
}

impl Token {
    /// Whether this token holds, here and now.
    ///
    /// The cheap questions come before the signatures, so a stale or foreign token costs its sender
    /// more than us. What they find says nothing about a forger's token, and need not.
    pub fn verify(&self, context: &VerifyContext<'_>) -> Result<Grant, TokenError> {
        let root = &self.links[0].claims;
        if root.issuer != *context.root {
            return Err(TokenError::UntrustedRoot {
                issuer: root.issuer,
            });
        }
        self.check_chain()?;
        let grant = self.grant(context.tolerance);
        grant.check_time(context.now)?;
        if let Some(what) = grant.revoked_by(context.revocations) {
            return Err(TokenError::Revoked { what });
        }
        self.check_signatures()?;
        Ok(grant)
    }

    /// Each link hangs on the one before it, and narrows it.
    fn check_chain(&self) -> Result<(), TokenError> {
        if self.links[0].claims.parent.is_some() {
            return Err(TokenError::malformed("its first link has a parent"));
        }
        if self.links.iter().any(|link| link.claims.is_void()) {
            return Err(TokenError::malformed("it ends before it starts"));
        }
        for pair in self.links.windows(2) {
            let (parent, child) = (&pair[0], &pair[1].claims);
            if child.issuer != parent.claims.subject || child.parent != Some(parent.id()) {
                return Err(TokenError::malformed(
                    "its links do not continue each other",
                ));
            }
            child.check_narrows(&parent.claims)?;
        }
        Ok(())
    }

    fn check_signatures(&self) -> Result<(), TokenError> {
        for (index, Link { claims, signature }) in self.links.iter().enumerate() {
            claims
                .issuer
                .verify(&Domain::TOKEN, &codec::encode(claims), signature)
                .map_err(|_| TokenError::InvalidSignature { link: index + 1 })?;
        }
        Ok(())
    }

    /// What a token grants that [`Token::verify`] found to hold once: so that who keeps the token need
    /// not keep the grant. Of any other token it says what that claims, and nothing more. Time and
    /// revocations are for the caller to ask.
    pub fn grant_as_verified(&self, tolerance: Duration) -> Grant {
        self.grant(tolerance)
    }

    /// What the last link says; as every link narrows, it stands for all of them.
    fn grant(&self, tolerance: Duration) -> Grant {
        let claims = self.claims().clone();
        let chain = self.links.iter().map(|link| ChainLink {
            id: link.id(),
            issuer: link.claims.issuer,
            subject: link.claims.subject,
        });
        Grant {
            subject: claims.subject,
            scopes: claims.scopes,
            resource: claims.resource,
            limits: claims.limits,
            not_before: claims.not_before,
            expires: claims.expires,
            tolerance,
            chain: chain.collect(),
        }
    }
}

impl Claims {
    fn is_void(&self) -> bool {
        self.expires <= self.not_before
    }
}

impl Grant {
    /// Whether `subject` may do `scope` on `path` of `node` now.
    ///
    /// [`Scope::Admin`] stands for every scope, still only on what the resource pattern covers.
    pub fn check(
        &self,
        subject: &NodeId,
        scope: Scope,
        path: &str,
        node: &NodeId,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if *subject != self.subject {
            return Err(TokenError::WrongSubject {
                expected: self.subject,
                actual: *subject,
            });
        }
        self.check_time(now)?;
        if !self.scopes.allows(scope) {
            return Err(TokenError::exceeded(Exceeded::Scope(scope)));
        }
        if !self.resource.matches(path, node) {
            return Err(TokenError::WrongResource {
                allowed: self.resource.clone(),
                wanted: format!("{path}@{node}"),
            });
        }
        Ok(())
    }

    /// Whether the grant is in its time, clocks apart by the tolerance at most.
    pub fn check_time(&self, now: Timestamp) -> Result<(), TokenError> {
        if now.saturating_add(self.tolerance) < self.not_before {
            return Err(TokenError::NotYetValid {
                from: self.not_before,
            });
        }
        if now >= self.deadline() {
            return Err(TokenError::Expired { at: self.expires });
        }
        Ok(())
    }

    /// When [`Grant::check_time`] begins to say `Expired`, and what the grant permits must end.
    pub fn deadline(&self) -> Timestamp {
        self.expires.saturating_add(self.tolerance)
    }

    /// The token's name.
    pub fn id(&self) -> TokenId {
        self.chain.last().expect("a chain has a link").id
    }

    /// The revocation that cuts this grant, if there is one: of a link, or of a node that issued or
    /// received one. The authority cannot be cut.
    pub fn revoked_by(&self, revocations: &Revocations) -> Option<Revoked> {
        self.chain.iter().find_map(|link| {
            if revocations.contains_token(&link.id) {
                Some(Revoked::Token(link.id))
            } else if revocations.contains_node(&link.subject) {
                // Every issuer but the authority is the subject of the link before.
                Some(Revoked::Node(link.subject))
            } else {
                None
            }
        })
    }
}
