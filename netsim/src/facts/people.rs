//! Who speaks, what they say, and what is said of them falsely.

use std::time::Duration;

use meshwork_identity::{
    Identity, Limits, NodeId, Resource, Scope, Scopes, Timestamp, Token, TokenRequest,
};
use meshwork_proto::announcement::{Disk, Gpu, Hardware, Role, Software};
use meshwork_proto::facts::Fact;
use meshwork_proto::{Announcement, Availability, Beat, SignedAnnouncement, SignedBeat, codec};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

/// How long an announcement holds: longer than any scenario of this kind.
const TTL: Duration = Duration::from_hours(24);
/// How long before the scenario tokens were issued, and for how long.
const ISSUED: Timestamp = Timestamp::from_secs(1_800_000_000 - 86_400);
const LIFE: Duration = Duration::from_hours(24 * 365);
/// By how much the versions of lies are ahead of the truth.
const AHEAD: u64 = 1_000;

/// All identities of a seed.
pub(super) struct Town {
    seed: u64,
    authority: Identity,
}

/// What is not to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// A new announcement of the victim, signed by somebody else with the victim's token.
    Forged,
    /// A new one with the victim's signature, in which a bit is turned.
    Flipped,
    /// The victim's first announcement again.
    RolledBack,
    /// The victim's first beat again.
    Replayed,
    /// A new one of the victim itself, longer than is allowed.
    Oversized,
    /// Of somebody whose token another authority has signed.
    Foreign,
}

pub(super) const LIES: [Lie; 6] = [
    Lie::Forged,
    Lie::Flipped,
    Lie::RolledBack,
    Lie::Replayed,
    Lie::Oversized,
    Lie::Foreign,
];

impl Town {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            authority: identity(seed, "authority", 0),
        }
    }

    pub(super) fn authority(&self) -> NodeId {
        self.authority.node_id()
    }

    /// Who listens.
    pub(super) fn listener(&self) -> NodeId {
        identity(self.seed, "listener", 0).node_id()
    }

    pub(super) fn node(&self, node: u32) -> NodeId {
        self.identity(node).node_id()
    }

    /// What a node says of itself.
    pub(super) fn announcement(
        &self,
        node: u32,
        version: u64,
        now: Timestamp,
    ) -> SignedAnnouncement {
        let identity = self.identity(node);
        let token = token(&self.authority, identity.node_id());
        let body = Announcement {
            version,
            issued_at: now,
            ..self.machine(node)
        };
        SignedAnnouncement::sign(&identity, token, &body).expect("a plain body is signed")
    }

    /// That it is still there, and what is free.
    pub(super) fn beat(&self, node: u32, version: u64, now: Timestamp) -> SignedBeat {
        let mut chance = self.chance("free", node);
        let gpus = self.machine(node).hardware.gpus;
        let mut used = |gpu: &Gpu| chance.random_range(0..gpu.vram);
        let vram_used = gpus.iter().map(&mut used).collect();
        let beat = Beat {
            version,
            issued_at: now,
            ttl: TTL,
            base: 1,
            availability: Some(Availability {
                free: vec![
                    ("cpu".into(), chance.random_range(0..128_000)),
                    ("mem".into(), chance.random_range(0..1 << 39)),
                    ("cuda.device".into(), gpus.len() as u64),
                ],
                vram_used,
                healthy: true,
            }),
        };
        SignedBeat::sign(&self.identity(node), &beat).expect("a plain body is signed")
    }

    /// `None`: it is so wrong that it is no fact at all.
    pub(super) fn lie(
        &self,
        lie: Lie,
        victim: u32,
        now: Timestamp,
        chance: &mut impl Rng,
    ) -> Option<Fact> {
        let ahead = AHEAD + chance.random_range(0..AHEAD);
        let mut body = Announcement {
            version: ahead,
            issued_at: now,
            ..self.machine(victim)
        };
        let identity = self.identity(victim);
        let token = token(&self.authority, identity.node_id());
        let signed = match lie {
            Lie::Forged => {
                let liar = self.identity(victim.wrapping_add(1));
                SignedAnnouncement::sign(&liar, token, &body)
            }
            Lie::Flipped => {
                let word = self.announcement(victim, ahead, now);
                return flipped(&Fact::Announcement(word), chance);
            }
            Lie::RolledBack => Ok(self.announcement(victim, 1, super::START)),
            Lie::Replayed => {
                return Some(Fact::Beat(self.beat(victim, 2, super::START)));
            }
            Lie::Oversized => {
                body.images = vec!["x".repeat(100); 50];
                SignedAnnouncement::sign(&identity, token, &body)
            }
            Lie::Foreign => {
                let stranger = self::identity(self.seed, "stranger", victim);
                let token = self::token(&stranger, stranger.node_id());
                SignedAnnouncement::sign(&stranger, token, &body)
            }
        };
        signed.ok().map(Fact::Announcement)
    }

    /// A machine with some GPUs, images and labels: about 1,100 bytes in the mean.
    fn machine(&self, node: u32) -> Announcement {
        let mut chance = self.chance("machine", node);
        let gpu = |index: u32| Gpu {
            index,
            vendor: "nvidia".into(),
            model: "NVIDIA A100-SXM4-80GB".into(),
            vram: 80 << 30,
            compute_capability: Some((8, 0)),
            driver: "550.54.14".into(),
            uuid: format!("GPU-{node:08x}-1b2c-4d5e-8f90-{index:012x}"),
            mig: false,
            numa: Some(index / 2),
        };
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let disk = |purpose: &str| Disk {
            purpose: purpose.into(),
            total: 1 << 41,
        };
        let [_, site, high, low] = node.to_be_bytes();
        Announcement {
            ttl: TTL,
            name: format!("gpu-{node}"),
            roles: [Role::Agent, Role::Relay].into(),
            addresses: vec![
                ([10, site, high, low], 4460).into(),
                (
                    [0x2001, 0xdb8, 0, 0, 0, 0, u16::from(high), u16::from(low)],
                    4460,
                )
                    .into(),
            ],
            services: texts(&["agent", "mesh"]),
            hardware: Hardware {
                arch: "x86_64".into(),
                cpu_model: "AMD EPYC 7763 64-Core Processor".into(),
                cpu_threads: 128,
                cpu_cores: 64,
                memory: 512 << 30,
                numa_nodes: 2,
                disks: vec![disk("data"), disk("images")],
                gpus: (0..chance.random_range(0..=8)).map(gpu).collect(),
            },
            software: Software {
                os: "Ubuntu 24.04.1 LTS".into(),
                kernel: "6.8.0-45-generic".into(),
                container_backend: Some("docker 27.3.1".into()),
                cuda: Some("12.4".into()),
                meshwork: "0.1.0".into(),
                ..Software::default()
            },
            images: (0..chance.random_range(0..=16))
                .map(|n| format!("registry.example.org/ml/pytorch:2.{n}-cuda12.4"))
                .collect(),
            models: texts(&["llama-3.1-70b", "mixtral-8x22b"]),
            tags: [
                format!("rack-{}", node / 40),
                "prod".into(),
                "zone:b".into(),
            ]
            .into(),
            region: Some("eu".into()),
            ..Announcement::default()
        }
    }

    fn identity(&self, node: u32) -> Identity {
        identity(self.seed, "node", node)
    }

    fn chance(&self, purpose: &str, node: u32) -> StdRng {
        StdRng::from_seed(derived(self.seed, purpose, node))
    }
}

fn flipped(fact: &Fact, chance: &mut impl Rng) -> Option<Fact> {
    let mut bytes = codec::encode(fact);
    let at = chance.random_range(0..bytes.len());
    bytes[at] ^= 1 << chance.random_range(0..8);
    let flipped = codec::decode(&bytes, bytes.len()).ok()?;
    // The count of hops is not signed.
    let Fact::Announcement(word) = &flipped else {
        return Some(flipped);
    };
    word.open().is_err().then_some(flipped)
}

fn token(authority: &Identity, subject: NodeId) -> Token {
    let request = TokenRequest {
        subject,
        scopes: Scopes::from([Scope::Join, Scope::Announce, Scope::Call]),
        resource: Resource::any(),
        not_before: None,
        ttl: LIFE,
        depth: 0,
        limits: Limits::none(),
    };
    Token::issue_root(authority, request, ISSUED, [7; 16]).expect("a plain token is issued")
}

fn identity(seed: u64, purpose: &str, node: u32) -> Identity {
    Identity::from_seed(&derived(seed, purpose, node))
}

fn derived(seed: u64, purpose: &str, node: u32) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_be_bytes());
    hash.update(node.to_be_bytes());
    hash.update(purpose);
    hash.finalize().into()
}
