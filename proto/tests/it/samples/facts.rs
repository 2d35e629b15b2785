//! What floods: beats, suspicions, revocations, rotations of the key.

use std::time::Duration;

use meshwork_identity::{Psk, Revocation, RevocationNotice, Revoked, Scope, Timestamp};
use meshwork_proto::facts::Fact;
use meshwork_proto::{
    Availability, Beat, PskRotation, SignedBeat, SignedPskRotation, SignedSuspicion, Suspicion,
};

use super::{Sample, sample, signed};
use crate::fixture::{Mesh, NOW, TTL, identity};

pub(super) fn beat() -> SignedBeat {
    let body = Beat {
        version: 8,
        issued_at: NOW,
        ttl: TTL,
        base: 7,
        availability: Some(Availability {
            free: vec![("cpu".into(), 64_000), ("cuda.device".into(), 1)],
            vram_used: vec![0, 40 << 30],
            healthy: true,
        }),
    };
    let signed = SignedBeat::sign(&identity(1), &body).unwrap();
    SignedBeat { hops: 3, ..signed }
}

pub(super) fn rotation() -> PskRotation {
    PskRotation {
        epoch: NOW.as_secs(),
        psk: Psk::from_bytes([7; 32]),
        from: NOW,
        until: NOW.saturating_add(Duration::from_hours(1)),
    }
}

/// Every kind of fact, and what is signed in each.
pub(super) fn facts() -> Vec<Sample> {
    let suspicion = Suspicion {
        accused: identity(1).node_id(),
        version: 8,
        at: NOW,
    };
    let accusation = SignedSuspicion::sign(&identity(2), &suspicion).unwrap();
    let notice = RevocationNotice {
        what: Revoked::Node(identity(3).node_id()),
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let mesh = Mesh::new();
    let revocation = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let rotated = SignedPskRotation::by_authority(&mesh.authority, &rotation()).unwrap();
    let token = mesh.token(identity(1).node_id(), Scope::Admin, Duration::from_hours(1));
    let by_admin = SignedPskRotation::by_admin(&identity(1), token, &rotation()).unwrap();
    vec![
        sample("facts", "Beat", &beat().open().unwrap()),
        sample("facts", "Beat empty", &Beat::default()),
        sample("facts", "Suspicion", &suspicion),
        sample("facts", "PskRotation", &rotation()),
        sample("facts", "Fact::Announcement", &Fact::Announcement(signed())),
        sample("facts", "Fact::Beat", &Fact::Beat(beat())),
        sample("facts", "Fact::Renewed", &Fact::Renewed(signed(), beat())),
        sample("facts", "Fact::Suspicion", &Fact::Suspicion(accusation)),
        sample("facts", "Fact::Revocation", &Fact::Revocation(revocation)),
        sample("facts", "Fact::Psk", &Fact::Psk(rotated)),
        sample("facts", "Fact::Psk by admin", &Fact::Psk(by_admin)),
    ]
}
