//! A new pre-shared key for the whole mesh.
//!
//! It travels like every other fact, over connections that only members have. From `from` on nodes
//! dial with the new key; until `until` they answer to the old one too, so that whoever was away for
//! less than that finds back.

use std::fmt;
use std::time::Duration;

use meshwork_identity::{
    Domain, Envelope, EnvelopeError, Identity, MESH_PATH, NodeId, Psk, Resource, Revoked, Scope,
    Timestamp, Token, TokenError, VerifyContext,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MAX_PSK_ROTATION;

/// Longest time from the making of a key to the end of the one before it.
pub const MAX_OVERLAP: Duration = Duration::from_hours(24 * 90);

/// One change of the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PskRotation {
    /// Unix seconds when it was made, or one more than in the rotation before it: the largest counts.
    /// As it may not lie in the future, nobody can take the last number there is.
    pub epoch: u64,
    /// The new key.
    #[serde(serialize_with = "write_psk", deserialize_with = "read_psk")]
    pub psk: Psk,
    /// From when on nodes dial with it. They answer to it at once.
    pub from: Timestamp,
    /// Until when they answer to the key before it.
    pub until: Timestamp,
}

/// A rotation as it travels: signed by the mesh's authority, or by an admin who shows the token that
/// makes it one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPskRotation {
    /// The [`PskRotation`], signed.
    pub envelope: Envelope,
    /// Grants its signer scope `admin` on the whole mesh; none when the authority signed.
    pub token: Option<Token>,
}

/// Why a rotation is not heeded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PskRotationError {
    /// It is larger than [`MAX_PSK_ROTATION`].
    #[error("the rotation has {0} bytes, at most {MAX_PSK_ROTATION} are allowed")]
    TooLarge(usize),
    /// It does not decode, or is not signed by its signer.
    #[error("the rotation is not properly signed")]
    Envelope(#[from] EnvelopeError),
    /// The signer is neither the authority nor an admin of the whole mesh.
    #[error("the signer may not change the mesh's key")]
    NotAdmin(#[source] TokenError),
    /// The signer is not the authority and shows no token.
    #[error("the signer is not the mesh's authority and shows no admin token")]
    NoProof,
    /// It claims to be from the future.
    #[error("the rotation was made at {0}, which is yet to come")]
    FromFuture(Timestamp),
    /// The old key would end before the new one begins, or more than [`MAX_OVERLAP`] after the making.
    #[error("the old key ends at {until}, the new one begins at {from}")]
    Times {
        /// See [`PskRotation::from`].
        from: Timestamp,
        /// See [`PskRotation::until`].
        until: Timestamp,
    },
}

impl PskRotation {
    /// When it was made.
    pub fn made_at(&self) -> Timestamp {
        Timestamp::from_secs(self.epoch)
    }
}

impl SignedPskRotation {
    /// The authority's rotation.
    pub fn by_authority(
        authority: &Identity,
        rotation: &PskRotation,
    ) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::seal(authority, &Domain::PSK_ROTATION, rotation)?;
        Ok(Self {
            envelope,
            token: None,
        })
    }

    /// An admin's rotation. The token must have scope `admin` and cover the whole mesh.
    pub fn by_admin(
        admin: &Identity,
        token: Token,
        rotation: &PskRotation,
    ) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::seal(admin, &Domain::PSK_ROTATION, rotation)?;
        Ok(Self {
            envelope,
            token: Some(token),
        })
    }

    /// Who signed it, if it verifies.
    pub fn signer(&self) -> NodeId {
        self.envelope.signer()
    }

    /// What it says, once it is clear that the signer may.
    ///
    /// As with revocations, an admin's token is checked for the time when the rotation was made, so
    /// that who comes later heeds what those before them heeded.
    pub fn verify(&self, trust: &VerifyContext<'_>) -> Result<PskRotation, PskRotationError> {
        let bytes = self.envelope.body_len();
        if bytes > MAX_PSK_ROTATION {
            return Err(PskRotationError::TooLarge(bytes));
        }
        let rotation: PskRotation = self.envelope.open(&Domain::PSK_ROTATION)?;
        let made = rotation.made_at();
        if made > trust.now.saturating_add(trust.tolerance) {
            return Err(PskRotationError::FromFuture(made));
        }
        if rotation.until < rotation.from || rotation.until > made.saturating_add(MAX_OVERLAP) {
            return Err(PskRotationError::Times {
                from: rotation.from,
                until: rotation.until,
            });
        }
        if self.signer() != *trust.root {
            let token = self.token.as_ref().ok_or(PskRotationError::NoProof)?;
            check_admin(token, &self.signer(), made, trust).map_err(PskRotationError::NotAdmin)?;
        }
        Ok(rotation)
    }

    /// Whether its signer is an admin by a token that was withdrawn.
    pub(crate) fn rests_on(&self, is_revoked: impl Fn(&Revoked) -> bool) -> bool {
        let links = self.token.iter().flat_map(Token::links);
        links.into_iter().any(|link| {
            is_revoked(&Revoked::Token(link.id()))
                || is_revoked(&Revoked::Node(link.claims().subject))
        })
    }

    /// What it says, whoever signed it.
    pub(crate) fn claimed(&self) -> Option<PskRotation> {
        let body = self.envelope.unverified_body();
        (body.len() <= MAX_PSK_ROTATION)
            .then(|| crate::codec::decode(body, MAX_PSK_ROTATION).ok())
            .flatten()
    }
}

fn check_admin(
    token: &Token,
    signer: &NodeId,
    made: Timestamp,
    trust: &VerifyContext<'_>,
) -> Result<(), TokenError> {
    let grant = token.verify(&VerifyContext {
        now: made,
        ..*trust
    })?;
    grant.check(signer, Scope::Admin, MESH_PATH, trust.root, made)?;
    if grant.resource.node().is_some() {
        return Err(TokenError::WrongResource {
            allowed: grant.resource,
            wanted: Resource::any().to_string(),
        });
    }
    Ok(())
}

/// Without the key.
impl fmt::Debug for PskRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PskRotation")
            .field("epoch", &self.epoch)
            .field("from", &self.from)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Without the key.
impl fmt::Debug for SignedPskRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedPskRotation")
            .field("signer", &self.signer())
            .finish_non_exhaustive()
    }
}

impl Drop for SignedPskRotation {
    fn drop(&mut self) {
        self.envelope.wipe();
    }
}

fn write_psk<S: Serializer>(psk: &Psk, serializer: S) -> Result<S::Ok, S::Error> {
    psk.as_bytes().serialize(serializer)
}

fn read_psk<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Psk, D::Error> {
    <[u8; 32]>::deserialize(deserializer).map(Psk::from_bytes)
}
