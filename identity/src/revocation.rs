//! Withdrawing tokens and nodes before their time.
//!
//! Revocations are signed statements that every node stores and passes on. They are never taken
//! back: who is to be trusted again gets a new token, or a new key.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Domain, Envelope, EnvelopeError, Identity, MESH_PATH, NodeId, Resource, Scope, Timestamp,
    Token, TokenError, TokenId, VerifyContext,
    codec::{self, DecodeError},
};

/// Most revocations that a node takes from admins. Only they can fill it, and what is past its time
/// leaves, so this bounds memory (some 40 MB) against a stolen admin key, not daily work. The
/// authority always has room: else that admin could not be revoked any more.
pub const MAX_REVOCATIONS: usize = 65_536;
/// Most bytes of an encoded revocation: a token and a small envelope.
pub const MAX_REVOCATION_BYTES: usize = crate::MAX_TOKEN_BYTES + 512;

/// What is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Revoked {
    /// A token, and every one delegated from it.
    Token(TokenId),
    /// A node or user: every token with this issuer or subject anywhere in its chain.
    Node(NodeId),
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token {id}"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

impl Revoked {
    /// A name of fixed size for what is withdrawn: a hash, under [`Domain::REVOCATION`].
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(Domain::REVOCATION.frame(&codec::encode(self))).into()
    }
}

/// What the signer of a revocation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationNotice {
    /// What is withdrawn.
    pub what: Revoked,
    /// When this was said.
    pub issued_at: Timestamp,
    /// When it may be forgotten: the end of the revoked token, or [`Timestamp::MAX`].
    pub keep_until: Timestamp,
}

/// A notice signed by the authority, or by an admin who shows the token that makes it one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    notice: Envelope,
    proof: Option<Token>,
}

/// Why a revocation is not heeded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// It does not decode, or is not signed by its signer.
    #[error("the revocation is not properly signed")]
    Envelope(#[from] EnvelopeError),
    /// The signer is neither the authority nor an admin for what is revoked.
    #[error("the signer may not revoke this")]
    NotAdmin(#[source] TokenError),
    /// The signer is not the authority and shows no token.
    #[error("the signer is not the mesh's authority and shows no admin token")]
    NoProof,
    /// The authority itself cannot be revoked.
    #[error("the mesh's authority cannot be revoked; make a new mesh instead")]
    Authority,
    /// It claims to be from the future.
    #[error("the revocation is dated {0}, which is yet to come")]
    FromFuture(Timestamp),
    /// What it revokes has expired meanwhile.
    #[error("the revocation was to be kept until {0} only")]
    Obsolete(Timestamp),
    /// [`MAX_REVOCATIONS`] are held already, and the signer is not the authority.
    #[error("this node holds {MAX_REVOCATIONS} revocations already")]
    Full,
}

impl Revocation {
    /// The authority's revocation.
    pub fn by_authority(
        authority: &Identity,
        notice: &RevocationNotice,
    ) -> Result<Self, EnvelopeError> {
        Ok(Self {
            notice: Envelope::seal(authority, &Domain::REVOCATION, notice)?,
            proof: None,
        })
    }

    /// An admin's revocation. The token must have [`Scope::Admin`] and cover [`MESH_PATH`], on the
    /// revoked node or, for a token, on every node.
    pub fn by_admin(
        admin: &Identity,
        proof: Token,
        notice: &RevocationNotice,
    ) -> Result<Self, EnvelopeError> {
        Ok(Self {
            notice: Envelope::seal(admin, &Domain::REVOCATION, notice)?,
            proof: Some(proof),
        })
    }

    /// Who signed it, if it verifies.
    pub fn signer(&self) -> NodeId {
        self.notice.signer()
    }

    /// What is revoked, once it is clear that the signer may.
    ///
    /// An admin's token is checked for the time when the revocation was issued: nodes that come
    /// later must heed what those before them heeded. So an admin whose token has expired could
    /// date a revocation back. Withdrawing the admin ends that; its revocations that are to last
    /// for newcomers must then be issued again by the authority.
    pub fn verify(&self, context: &VerifyContext<'_>) -> Result<RevocationNotice, RevocationError> {
        let notice: RevocationNotice = self.notice.open(&Domain::REVOCATION)?;
        if notice.what == Revoked::Node(*context.root) {
            return Err(RevocationError::Authority);
        }
        if notice.issued_at > context.now.saturating_add(context.tolerance) {
            return Err(RevocationError::FromFuture(notice.issued_at));
        }
        if notice.is_obsolete(context.now, context.tolerance) {
            return Err(RevocationError::Obsolete(notice.keep_until));
        }
        if self.signer() != *context.root {
            let proof = self.proof.as_ref().ok_or(RevocationError::NoProof)?;
            check_admin(proof, &self.signer(), &notice, context)
                .map_err(RevocationError::NotAdmin)?;
        }
        Ok(notice)
    }

    /// Whether its signer is an admin by a token that was withdrawn by something other than this
    /// statement: newcomers do not believe it then.
    pub fn rests_on(&self, is_revoked: impl Fn(&Revoked) -> bool) -> bool {
        let own = self.claimed().ok().map(|notice| notice.what);
        let withdrawn = |what: Revoked| own != Some(what) && is_revoked(&what);
        let links = self.proof.iter().flat_map(Token::links);
        links.into_iter().any(|link| {
            withdrawn(Revoked::Token(link.id())) || withdrawn(Revoked::Node(link.claims().subject))
        })
    }

    /// Whether it shows an admin's token, as all but the authority's have to.
    pub fn has_proof(&self) -> bool {
        self.proof.is_some()
    }

    /// What it says, whoever signed it.
    pub fn claimed(&self) -> Result<RevocationNotice, DecodeError> {
        codec::decode(self.notice.unverified_body())
    }

    /// The revocation as bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// What [`Revocation::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_REVOCATION_BYTES {
            return Err(DecodeError);
        }
        codec::decode_canonical(bytes)
    }
}

impl RevocationNotice {
    fn is_obsolete(&self, now: Timestamp, tolerance: Duration) -> bool {
        now >= self.keep_until.saturating_add(tolerance) && self.keep_until != Timestamp::MAX
    }
}

fn check_admin(
    proof: &Token,
    signer: &NodeId,
    notice: &RevocationNotice,
    context: &VerifyContext<'_>,
) -> Result<(), TokenError> {
    let at_issue = VerifyContext {
        now: notice.issued_at,
        ..*context
    };
    let grant = proof.verify(&at_issue)?;
    let on = match notice.what {
        Revoked::Node(node) => node,
        Revoked::Token(_) => *context.root,
    };
    grant.check(signer, Scope::Admin, MESH_PATH, &on, notice.issued_at)?;
    if matches!(notice.what, Revoked::Token(_)) && grant.resource.node().is_some() {
        // The token's own resource is not known from its id, so the admin must be one everywhere.
        return Err(TokenError::WrongResource {
            allowed: grant.resource,
            wanted: Resource::any().to_string(),
        });
    }
    Ok(())
}

/// The revocations that this node heeds, each with its statement, to pass on and to store.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    held: BTreeMap<Revoked, Held>,
}

#[derive(Debug, Clone)]
struct Held {
    notice: RevocationNotice,
    statement: Revocation,
}

impl Held {
    /// Of two statements about the same, every node keeps the one of higher rank.
    fn rank(&self, root: &NodeId) -> (bool, Timestamp) {
        (self.statement.signer() == *root, self.notice.keep_until)
    }
}

impl Revocations {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks and adds one. True when it is new, and so to be passed on: when nothing revoked the
    /// same before, or not for as long, or an admin did and now the authority does.
    ///
    /// Admins' tokens are checked against the revocations held so far. The authority's word is not
    /// replaced by an admin's, which newcomers refuse once that admin is revoked itself.
    pub fn insert(
        &mut self,
        statement: Revocation,
        root: &NodeId,
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<bool, RevocationError> {
        let notice = statement.verify(&VerifyContext {
            root,
            now,
            tolerance,
            revocations: self,
        })?;
        let by_authority = statement.signer() == *root;
        let rank = (by_authority, notice.keep_until);
        let known = self.held.get(&notice.what);
        if known.is_some_and(|known| known.rank(root) >= rank) {
            return Ok(false);
        }
        if known.is_none() && !by_authority && self.held.len() >= MAX_REVOCATIONS {
            return Err(RevocationError::Full);
        }
        self.held.insert(notice.what, Held { notice, statement });
        Ok(true)
    }

    /// The set whose statements this node stored itself: each was checked when it came, so only what
    /// is past its time is left out. Checked again, in whatever order, the word of an admin who was
    /// revoked later could be lost, and with it what it had withdrawn.
    pub fn restore(
        stored: impl IntoIterator<Item = Revocation>,
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<Self, DecodeError> {
        let mut restored = Self::new();
        for statement in stored {
            let notice = statement.claimed()?;
            restored
                .held
                .insert(notice.what, Held { notice, statement });
        }
        restored.purge(now, tolerance);
        Ok(restored)
    }

    /// Forgets what is past its time.
    pub fn purge(&mut self, now: Timestamp, tolerance: Duration) {
        self.held
            .retain(|_, held| !held.notice.is_obsolete(now, tolerance));
    }

    /// Whether this link is revoked by its name.
    pub fn contains_token(&self, id: &TokenId) -> bool {
        self.held.contains_key(&Revoked::Token(*id))
    }

    /// Whether this node or user is revoked.
    pub fn contains_node(&self, id: &NodeId) -> bool {
        self.held.contains_key(&Revoked::Node(*id))
    }

    /// Whether exactly this statement is held: then it was checked, which costs signatures, before.
    pub fn holds(&self, statement: &Revocation) -> bool {
        let held = |notice: RevocationNotice| self.held.get(&notice.what);
        let known = statement.claimed().ok().and_then(held);
        known.is_some_and(|known| known.statement == *statement)
    }

    /// The statement that revokes `what`.
    pub fn get(&self, what: &Revoked) -> Option<(&RevocationNotice, &Revocation)> {
        let held = self.held.get(what)?;
        Some((&held.notice, &held.statement))
    }

    /// The statements held, in a fixed order. See [`Revocations::restore`].
    pub fn iter(&self) -> impl Iterator<Item = (&RevocationNotice, &Revocation)> {
        self.held
            .values()
            .map(|held| (&held.notice, &held.statement))
    }

    /// Number of revocations held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CLOCK_TOLERANCE, Limits, Scopes, TokenRequest};

    const NOW: Timestamp = Timestamp::from_secs(1000);

    fn notice(what: Revoked) -> RevocationNotice {
        RevocationNotice {
            what,
            issued_at: NOW,
            keep_until: Timestamp::MAX,
        }
    }

    #[test]
    fn a_stolen_admin_key_fills_the_store_but_does_not_lock_the_authority_out() {
        let [authority, thief, other] = [0, 1, 2].map(|n| Identity::from_seed(&[n; 32]));
        let request = TokenRequest {
            subject: thief.node_id(),
            scopes: Scopes::from([Scope::Admin]),
            resource: Resource::any(),
            not_before: None,
            ttl: Duration::from_hours(1),
            depth: 0,
            limits: Limits::none(),
        };
        let proof = Token::issue_root(&authority, request, NOW, [1; 16]).unwrap();
        let victim = notice(Revoked::Node(other.node_id()));
        let by_thief = Revocation::by_admin(&thief, proof, &victim).unwrap();
        let mut revocations = Revocations::new();
        for n in 0..MAX_REVOCATIONS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let notice = notice(Revoked::Token(TokenId::from_bytes(id)));
            let statement = by_thief.clone();
            revocations
                .held
                .insert(notice.what, Held { notice, statement });
        }
        let root = authority.node_id();
        let mut insert = |statement| revocations.insert(statement, &root, NOW, CLOCK_TOLERANCE);
        assert_eq!(insert(by_thief), Err(RevocationError::Full));
        let end = notice(Revoked::Node(thief.node_id()));
        let end = Revocation::by_authority(&authority, &end).unwrap();
        assert_eq!(insert(end), Ok(true));
        assert!(revocations.contains_node(&thief.node_id()));
    }
}
