//! Permission tokens: "subject may do these scopes on this resource", signed, expiring, and
//! delegable by links that only ever narrow.
//!
//! A token is a chain of links, the authority's first. Each link is signed by its issuer, who is
//! the subject of the link before, and names that link by its hash. Checking needs no one else:
//! the chain begins at a trusted key, every link narrows, and the last link says what is granted.

mod error;
mod verify;

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

pub use error::{Exceeded, TokenError};
pub use verify::{CLOCK_TOLERANCE, ChainLink, Grant, MESH_PATH, VerifyContext};

use crate::{
    Domain, Identity, Limits, NodeId, Resource, Scope, Scopes, Signature, Timestamp, codec,
    text::{self, BASE32, TextError},
};

/// Most links of a chain, so at most four delegations. Bounds the work of a check.
pub const MAX_LINKS: usize = 5;
/// Most bytes of an encoded token. A chain of [`MAX_LINKS`] links with every field at its largest
/// stays below.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// First byte of an encoded token.
const VERSION: u8 = 1;
/// How the printed form begins; the digit is the version.
const TEXT_PREFIX: &str = "mwt1";
/// Most characters of the printed form: prefix, and 8 characters for 5 bytes.
const MAX_TEXT_CHARS: usize = TEXT_PREFIX.len() + (MAX_TOKEN_BYTES + 4).div_ceil(5) * 8;

/// What one link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who grants, and signs.
    pub issuer: NodeId,
    /// Who may act.
    pub subject: NodeId,
    /// The kinds of action.
    pub scopes: Scopes,
    /// On what.
    pub resource: Resource,
    /// From when on.
    pub not_before: Timestamp,
    /// Until when; not valid any more at this time.
    pub expires: Timestamp,
    /// How many more times it may be delegated, one after the other.
    pub depth: u8,
    /// Makes tokens with equal claims distinct, so that each can be revoked on its own.
    pub nonce: [u8; 16],
    /// How much the subject may take.
    pub limits: Limits,
    /// The link that this one narrows; `None` in the authority's own.
    pub parent: Option<TokenId>,
}

/// The name of a link: SHA-256 over the bytes that its issuer signs. The signature is left out, so
/// a link that is signed anew keeps its name, and its revocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId([u8; 32]);

/// Claims and their issuer's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    claims: Claims,
    signature: Signature,
}

/// A chain of links, root first, the granting one last. There is at least one.
///
/// A token at hand is only well formed; [`Token::verify`] says whether it holds. It is no secret:
/// only its subject can use it, with a proof of the subject's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    links: Vec<Link>,
}

/// What a new token, or a new link of one, is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Who may act.
    pub subject: NodeId,
    /// The kinds of action.
    pub scopes: Scopes,
    /// On what.
    pub resource: Resource,
    /// From when on; `None` is now.
    pub not_before: Option<Timestamp>,
    /// For how long from then; at least a millisecond.
    pub ttl: Duration,
    /// How many more times it may be delegated.
    pub depth: u8,
    /// How much the subject may take. Where a delegated link names nothing, its parent's holds.
    pub limits: Limits,
}

impl Token {
    /// The authority's own word. `nonce` must be random.
    pub fn issue_root(
        authority: &Identity,
        request: TokenRequest,
        now: Timestamp,
        nonce: [u8; 16],
    ) -> Result<Self, TokenError> {
        let claims = request.into_claims(authority.node_id(), now, nonce, None)?;
        Ok(Self {
            links: vec![Link::sign(authority, claims)],
        })
    }

    /// Adds a link by which `holder`, the token's subject, passes a part of it on.
    ///
    /// Refuses at once what [`Token::verify`] would refuse later for not narrowing. The request's
    /// time must lie within the token's; only a start that is left open is moved up to the token's.
    pub fn delegate(
        &self,
        holder: &Identity,
        request: TokenRequest,
        now: Timestamp,
        nonce: [u8; 16],
    ) -> Result<Self, TokenError> {
        let parent = self.claims();
        if holder.node_id() != parent.subject {
            return Err(TokenError::WrongSubject {
                expected: parent.subject,
                actual: holder.node_id(),
            });
        }
        if self.links.len() == MAX_LINKS {
            return Err(TokenError::DelegationExhausted);
        }
        let limits = request.limits.inheriting(&parent.limits);
        let request = TokenRequest {
            limits: limits.map_err(|_| TokenError::malformed("it has too many node tags"))?,
            ..request
        };
        let earliest = now.max(parent.not_before);
        let claims = request.into_claims(parent.subject, earliest, nonce, Some(self.id()))?;
        claims.check_narrows(parent)?;
        let mut links = self.links.clone();
        links.push(Link::sign(holder, claims));
        Ok(Self { links })
    }

    /// What is granted, if the token holds: the claims of the last link.
    pub fn claims(&self) -> &Claims {
        &self.leaf().claims
    }

    /// The token's name: its last link's.
    pub fn id(&self) -> TokenId {
        self.leaf().id()
    }

    /// The links, the authority's first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    fn leaf(&self) -> &Link {
        self.links.last().expect("a token has at least one link")
    }

    /// The token as bytes: a version, then the links in postcard.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&(VERSION, self))
    }

    /// What [`Token::encode`] wrote; the only bytes that decode to this token.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        if bytes.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::malformed("it is too long"));
        }
        if bytes.first() != Some(&VERSION) {
            return Err(TokenError::malformed("it has an unknown version"));
        }
        codec::decode_canonical(&bytes[1..])
            .map_err(|_| TokenError::malformed("its bytes do not decode"))
    }
}

impl TokenRequest {
    fn into_claims(
        self,
        issuer: NodeId,
        earliest: Timestamp,
        nonce: [u8; 16],
        parent: Option<TokenId>,
    ) -> Result<Claims, TokenError> {
        let not_before = self.not_before.unwrap_or(earliest);
        let expires = not_before.saturating_add(self.ttl);
        if expires <= not_before {
            return Err(TokenError::ZeroTtl);
        }
        Ok(Claims {
            issuer,
            subject: self.subject,
            scopes: self.scopes,
            resource: self.resource,
            not_before,
            expires,
            depth: self.depth,
            nonce,
            limits: self.limits,
            parent,
        })
    }
}

impl Link {
    fn sign(issuer: &Identity, claims: Claims) -> Self {
        let signature = issuer.sign(&Domain::TOKEN, &codec::encode(&claims));
        Self { claims, signature }
    }

    /// What the link says.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The link's name.
    pub fn id(&self) -> TokenId {
        let signed = Domain::TOKEN.frame(&codec::encode(&self.claims));
        TokenId(Sha256::digest(signed).into())
    }
}

impl TokenId {
    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a hash that was printed or stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({}…)", BASE32.encode(&self.0[..5]))
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = BASE32.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| Some(Self(bytes.try_into().ok()?)))
            .ok_or(TokenError::malformed("a token id is 52 base32 characters"))
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.links.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let links = codec::bounded_vec::<_, _, MAX_LINKS>(deserializer)?;
        if links.is_empty() {
            return Err(serde::de::Error::custom("a token has at least one link"));
        }
        Ok(Self { links })
    }
}

/// One line of lower-case text with a checksum: `mwt1…`.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::to_text(TEXT_PREFIX, &self.encode()))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = text::from_text(TEXT_PREFIX, text, MAX_TEXT_CHARS).map_err(|e| {
            TokenError::malformed(match e {
                TextError::Prefix => "its text does not begin with `mwt1`",
                TextError::TooLong => "it is too long",
                TextError::Symbol(_) | TextError::Checksum => "its text was mistyped or cut off",
            })
        })?;
        Self::decode(&bytes)
    }
}

impl Claims {
    /// Whether these claims, as the link after `parent`, stay within it.
    fn check_narrows(&self, parent: &Self) -> Result<(), TokenError> {
        if !parent.scopes.allows(Scope::Delegate) || self.depth >= parent.depth {
            return Err(TokenError::DelegationExhausted);
        }
        if !self.scopes.is_subset_of(parent.scopes) {
            return Err(TokenError::exceeded(Exceeded::Scopes));
        }
        if !parent.resource.covers(&self.resource) {
            return Err(TokenError::WrongResource {
                allowed: parent.resource.clone(),
                wanted: self.resource.to_string(),
            });
        }
        if self.not_before < parent.not_before || self.expires > parent.expires {
            return Err(TokenError::exceeded(Exceeded::Validity));
        }
        if !self.limits.is_within(&parent.limits) {
            return Err(TokenError::exceeded(Exceeded::Limits));
        }
        Ok(())
    }
}
