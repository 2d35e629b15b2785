//! One signed fact, as it travels.

use meshwork_identity::{NodeId, Revocation, Revoked, Timestamp};
use serde::{Deserialize, Serialize};

use crate::announcement::SignedAnnouncement;
use crate::beat::SignedBeat;
use crate::codec;
use crate::limits::{MAX_HOPS, MAX_SUSPICION};
use crate::membership::Key;
use crate::psk::SignedPskRotation;
use crate::suspicion::{SignedSuspicion, Suspicion};

/// A signed statement that every node shall know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// What a node says of itself.
    Announcement(SignedAnnouncement),
    /// That it holds for longer, and what is free.
    Beat(SignedBeat),
    /// An announcement with the latest beat upon it: for who may lack the announcement.
    Renewed(SignedAnnouncement, SignedBeat),
    /// That a node does not answer.
    Suspicion(SignedSuspicion),
    /// That a token or a node is trusted no more.
    Revocation(Revocation),
    /// That the mesh's key changes.
    Psk(SignedPskRotation),
}

impl Fact {
    /// The key under which it is known, and its version, as it claims; nothing when it does not
    /// decode. Who believes it has to check the signatures.
    ///
    /// A revocation's key is a hash of what it revokes, and its version its rank, so that of two
    /// statements about the same all nodes keep the same one. A rotation's version is its epoch, and
    /// below that 16 bits that tell two of one epoch apart.
    pub fn claim(&self) -> Option<(Key<NodeId>, u64)> {
        match self {
            Self::Announcement(signed) => {
                let version = first_field(signed.envelope.unverified_body())?;
                Some((Key::Node(signed.node()), version))
            }
            Self::Beat(beat) | Self::Renewed(_, beat) => {
                let version = first_field(beat.envelope.unverified_body())?;
                Some((Key::Node(beat.node()), version))
            }
            Self::Suspicion(signed) => {
                let body = claimed_suspicion(signed)?;
                let (accused, accuser) = (body.accused, signed.accuser());
                Some((Key::Suspicion { accused, accuser }, body.version))
            }
            Self::Revocation(statement) => {
                let notice = statement.claimed().ok()?;
                let rank = revocation_rank(statement, notice.keep_until);
                Some((revocation_key(&notice.what), rank))
            }
            Self::Psk(signed) => Some((Key::Psk, psk_version(signed, signed.claimed()?.epoch))),
        }
    }

    /// Who claims to have signed it.
    pub fn signer(&self) -> NodeId {
        match self {
            Self::Announcement(signed) => signed.node(),
            Self::Beat(beat) | Self::Renewed(_, beat) => beat.node(),
            Self::Suspicion(signed) => signed.accuser(),
            Self::Revocation(statement) => statement.signer(),
            Self::Psk(signed) => signed.signer(),
        }
    }

    /// How many nodes have forwarded it; kinds that do not count have come from nowhere.
    pub fn hops(&self) -> u8 {
        match self {
            Self::Announcement(signed) => signed.hops,
            Self::Beat(beat) => beat.hops,
            Self::Renewed(signed, beat) => signed.hops.max(beat.hops),
            Self::Suspicion(signed) => signed.hops,
            Self::Revocation(_) | Self::Psk(_) => 0,
        }
    }

    /// The same after one more hop. At the limit it stays: who repairs what a flood missed may
    /// still send it, and who gets it does not pass it on.
    #[must_use]
    pub(crate) fn forwarded(mut self) -> Self {
        let step = |hops: &mut u8| *hops = hops.saturating_add(1).min(MAX_HOPS);
        match &mut self {
            Self::Announcement(signed) => step(&mut signed.hops),
            Self::Beat(beat) => step(&mut beat.hops),
            Self::Renewed(signed, beat) => {
                step(&mut signed.hops);
                step(&mut beat.hops);
            }
            Self::Suspicion(signed) => step(&mut signed.hops),
            Self::Revocation(_) | Self::Psk(_) => {}
        }
        self
    }
}

pub(super) fn claimed_suspicion(signed: &SignedSuspicion) -> Option<Suspicion> {
    codec::decode(signed.envelope.unverified_body(), MAX_SUSPICION).ok()
}

pub(super) fn revocation_key(what: &Revoked) -> Key<NodeId> {
    Key::Revocation(what.digest())
}

/// The authority's word counts more than an admin's, and the longer lasting one more than the other.
pub(super) fn revocation_rank(statement: &Revocation, keep_until: Timestamp) -> u64 {
    const AUTHORITY: u64 = 1 << 63;
    let authority = if statement.has_proof() { 0 } else { AUTHORITY };
    authority | (keep_until.as_millis() >> 1)
}

/// Bits of a rotation's version below the epoch.
const TIE_BITS: u32 = 16;

pub(super) fn psk_version(signed: &SignedPskRotation, epoch: u64) -> u64 {
    let tie = signed.envelope.fingerprint() & ((1 << TIE_BITS) - 1);
    epoch.saturating_mul(1 << TIE_BITS) | tie
}

/// The version with which announcements and beats begin.
fn first_field(body: &[u8]) -> Option<u64> {
    postcard::take_from_bytes(body)
        .ok()
        .map(|(version, _)| version)
}
