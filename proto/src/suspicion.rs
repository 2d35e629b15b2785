//! A node's word that another is dead.

use meshwork_identity::{Domain, Envelope, EnvelopeError, Identity, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

/// What the accuser says. Nobody is declared dead on another's word alone: it makes others watch,
/// and the accused answer with a larger version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Who does not answer.
    pub accused: NodeId,
    /// The latest version of the accused that the accuser holds. A later one refutes the suspicion.
    pub version: u64,
    /// When it was signed, by the accuser's clock.
    pub at: Timestamp,
}

/// A suspicion as it travels: signed by the accuser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSuspicion {
    /// The [`Suspicion`], signed.
    pub envelope: Envelope,
    /// How many nodes have forwarded it. Not signed: it only ever makes the flood stop.
    pub hops: u8,
}

impl SignedSuspicion {
    /// Signs `body` as `identity`.
    pub fn sign(identity: &Identity, body: &Suspicion) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::seal(identity, &Domain::SUSPICION, body)?;
        Ok(Self { envelope, hops: 0 })
    }

    /// Who accuses.
    pub fn accuser(&self) -> NodeId {
        self.envelope.signer()
    }

    /// The body, if the signature holds.
    pub fn open(&self) -> Result<Suspicion, EnvelopeError> {
        self.envelope.open(&Domain::SUSPICION)
    }
}
