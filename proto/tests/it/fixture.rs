//! A mesh authority, identities with tokens, and announcements to sign.

use std::time::Duration;

use meshwork_identity::{
    Identity, Limits, NodeId, Resource, Revocations, Scope, Scopes, Timestamp, Token, TokenRequest,
    VerifyContext,
};
use meshwork_proto::announcement::{Gpu, Hardware, Role, Software};
use meshwork_proto::facts::Fact;
use meshwork_proto::{
    Announcement, Availability, Beat, SignedAnnouncement, SignedBeat, SignedSuspicion, Suspicion,
};

/// When the tests play.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// How long announcements hold.
pub(crate) const TTL: Duration = Duration::from_mins(5);

/// A mesh: its authority and what it has revoked.
pub(crate) struct Mesh {
    pub(crate) authority: Identity,
    pub(crate) root: NodeId,
    pub(crate) revocations: Revocations,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let authority = identity(0);
        let root = authority.node_id();
        Self {
            authority,
            root,
            revocations: Revocations::new(),
        }
    }

    pub(crate) fn trust(&self, now: Timestamp) -> VerifyContext<'_> {
        VerifyContext::new(&self.root, now, &self.revocations)
    }

    pub(crate) fn token(&self, subject: NodeId, scope: Scope, ttl: Duration) -> Token {
        let request = TokenRequest {
            subject,
            scopes: Scopes::from([scope]),
            resource: Resource::any(),
            not_before: None,
            ttl,
            depth: 0,
            limits: Limits::none(),
        };
        Token::issue_root(&self.authority, request, NOW, [7; 16]).unwrap()
    }

    /// A token that the authority issued to the first of `chain`, each of which passed it on to the
    /// next.
    pub(crate) fn delegated(&self, chain: &[u16]) -> Token {
        let request = |i: usize| TokenRequest {
            subject: identity(chain[i]).node_id(),
            scopes: Scopes::from([Scope::Announce, Scope::Delegate]),
            resource: Resource::any(),
            not_before: None,
            ttl: Duration::from_hours(1000),
            depth: u8::try_from(chain.len() - i).unwrap(),
            limits: Limits::none(),
        };
        let root = Token::issue_root(&self.authority, request(0), NOW, [7; 16]).unwrap();
        (1..chain.len()).fold(root, |token, i| {
            let issuer = identity(chain[i - 1]);
            token.delegate(&issuer, request(i), NOW, [7; 16]).unwrap()
        })
    }

    /// Announces `body` as the last of `chain`, with a token that came to it so.
    pub(crate) fn announce_as(&self, chain: &[u16], body: &Announcement) -> SignedAnnouncement {
        let node = identity(*chain.last().unwrap());
        SignedAnnouncement::sign(&node, self.delegated(chain), body).unwrap()
    }

    /// Announces `body` as the identity `seed`, with a token that outlives the tests.
    pub(crate) fn announce(&self, seed: u16, body: &Announcement) -> SignedAnnouncement {
        let node = identity(seed);
        let token = self.token(node.node_id(), Scope::Announce, Duration::from_hours(1000));
        SignedAnnouncement::sign(&node, token, body).unwrap()
    }
}

/// The beat of the identity `seed` with this `version`, signed `now`, upon its announcement `base`.
pub(crate) fn beat(seed: u16, base: u64, version: u64, now: Timestamp) -> SignedBeat {
    beat_with(seed, (base, version), now, None)
}

/// The same, which says what is free.
pub(crate) fn beat_with(
    seed: u16,
    (base, version): (u64, u64),
    now: Timestamp,
    availability: Option<Availability>,
) -> SignedBeat {
    let body = Beat {
        version,
        issued_at: now,
        ttl: TTL,
        base,
        availability,
    };
    SignedBeat::sign(&identity(seed), &body).unwrap()
}

/// `accuser` holds `accused` to be dead as of `version`.
pub(crate) fn suspicion(accuser: u16, accused: u16, version: u64, at: Timestamp) -> Fact {
    let body = Suspicion {
        accused: identity(accused).node_id(),
        version,
        at,
    };
    Fact::Suspicion(SignedSuspicion::sign(&identity(accuser), &body).unwrap())
}

/// So many seconds after [`NOW`].
pub(crate) fn at(seconds: u64) -> Timestamp {
    NOW.saturating_add(Duration::from_secs(seconds))
}

pub(crate) fn identity(seed: u16) -> Identity {
    let mut bytes = [1; 32];
    bytes[..2].copy_from_slice(&seed.to_le_bytes());
    Identity::from_seed(&bytes)
}

pub(crate) fn gpu(model: &str, vram: u64) -> Gpu {
    Gpu {
        index: 0,
        vendor: "nvidia".into(),
        model: model.into(),
        vram,
        compute_capability: Some((8, 0)),
        driver: "550.54.14".into(),
        uuid: "GPU-1".into(),
        mig: false,
        numa: Some(0),
    }
}

/// A machine with these GPUs.
pub(crate) fn body(version: u64, gpus: Vec<Gpu>) -> Announcement {
    Announcement {
        version,
        issued_at: NOW,
        ttl: TTL,
        name: "lab-1".into(),
        roles: [Role::Agent].into(),
        hardware: Hardware {
            arch: "x86_64".into(),
            cpu_model: "AMD EPYC 7763".into(),
            cpu_threads: 128,
            cpu_cores: 64,
            memory: 512 << 30,
            numa_nodes: 2,
            gpus,
            ..Hardware::default()
        },
        software: Software {
            os: "Debian GNU/Linux 12".into(),
            kernel: "6.8.0-45-generic".into(),
            container_backend: Some("docker 27.3.1".into()),
            cuda: Some("12.4".into()),
            meshwork: "0.1.0".into(),
            ..Software::default()
        },
        tags: ["prod".to_owned()].into(),
        region: Some("eu".into()),
        ..Announcement::default()
    }
}
