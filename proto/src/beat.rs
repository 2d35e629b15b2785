//! What a node says often: that its announcement still holds, and what of it is free.
//!
//! An announcement has a kilobyte and changes seldom. A beat has a tenth of that: it names the
//! announcement that it renews and carries only what changes.

use std::time::Duration;

use meshwork_identity::{
    Domain, Envelope, EnvelopeError, Identity, NodeId, Timestamp, bounded_vec,
};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_FREE_SLOTS, MAX_GPUS, MAX_SLOT_NAME};

/// Renews one announcement of its signer.
///
/// The first three fields are those of an [`Announcement`](crate::Announcement), in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Larger than in every earlier beat and announcement of the node: they share one counter.
    pub version: u64,
    /// When it was signed, by the node's own clock.
    pub issued_at: Timestamp,
    /// How long the announcement holds from now on, from `issued_at`.
    pub ttl: Duration,
    /// The version of the announcement that it renews.
    pub base: u64,
    /// What is free; none, when the node has nothing to give.
    pub availability: Option<Availability>,
}

/// What a node has free, and whether it is well. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// Free amount by slot (`cpu`, `mem`, `cuda.device`, …), in the slot's unit; at most
    /// [`MAX_FREE_SLOTS`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_FREE_SLOTS>")]
    pub free: Vec<(String, u64)>,
    /// Memory of each GPU that no kernel may be given, in the order of the announcement: what anybody
    /// uses, or all of it when a kernel holds the GPU or its health is unknown; at most [`MAX_GPUS`].
    #[serde(deserialize_with = "bounded_vec::<_, _, MAX_GPUS>")]
    pub vram_used: Vec<u64>,
    /// Whether the node would take work.
    pub healthy: bool,
}

impl Beat {
    /// When the announcement stops to hold, unless it is renewed again.
    pub fn expires_at(&self) -> Timestamp {
        self.issued_at.saturating_add(self.ttl)
    }

    /// Whether every name in it is one that an honest node writes.
    pub(crate) fn is_sound(&self) -> bool {
        let sound = |name: &str| {
            (1..=MAX_SLOT_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
        };
        let free = self.availability.iter().flat_map(|a| &a.free);
        free.into_iter().all(|(name, _)| sound(name))
    }
}

/// A beat as it travels: signed by the node that it renews. It needs no token, as it says nothing
/// without the announcement, which has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBeat {
    /// The [`Beat`], signed.
    pub envelope: Envelope,
    /// How many nodes have forwarded it. Not signed: it only ever makes the flood stop.
    pub hops: u8,
}

impl SignedBeat {
    /// Signs `body` as `identity`.
    pub fn sign(identity: &Identity, body: &Beat) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::seal(identity, &Domain::BEAT, body)?;
        Ok(Self { envelope, hops: 0 })
    }

    /// The node whose announcement it renews.
    pub fn node(&self) -> NodeId {
        self.envelope.signer()
    }

    /// The body, if the signature holds.
    pub fn open(&self) -> Result<Beat, EnvelopeError> {
        self.envelope.open(&Domain::BEAT)
    }
}
