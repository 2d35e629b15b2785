//! A node's signed, versioned, expiring description of itself: rarely changing facts only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use meshwork_identity::{Domain, Envelope, EnvelopeError, Identity, NodeId, Timestamp, Token};
use serde::{Deserialize, Serialize};

use crate::path::NatClass;
pub use crate::subnet::Subnet;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs kernels.
    Agent,
    /// Places sessions on agents.
    Manager,
    /// Forwards packets for peers that cannot reach each other.
    Relay,
    /// Keeps users' folders.
    Storage,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Manager, Self::Relay, Self::Storage];

    /// The name used in configuration, tickets and queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Manager => "manager",
            Self::Relay => "relay",
            Self::Storage => "storage",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.name() == text)
            .ok_or_else(|| format!("`{text}` is no role: use agent, manager, relay or storage"))
    }
}

/// One GPU. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Position on the node, as the driver counts.
    pub index: u32,
    /// `nvidia`, `amd`, … in lower case.
    pub vendor: String,
    /// Marketing name, for example `A100 80GB`.
    pub model: String,
    /// Total memory.
    pub vram: u64,
    /// CUDA compute capability (major, minor).
    pub compute_capability: Option<(u8, u8)>,
    /// Driver version.
    pub driver: String,
    /// The driver's unique name of the device.
    pub uuid: String,
    /// Whether Multi-Instance GPU mode is on.
    pub mig: bool,
    /// NUMA node that the device hangs on.
    pub numa: Option<u32>,
}

/// A file system that kernels may fill. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What it holds: `data` (the node's data directory) or `images` (the container store).
    pub purpose: String,
    /// Its total size.
    pub total: u64,
}

/// The machine. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// As Rust's `std::env::consts::ARCH`: `x86_64`, `aarch64`, ….
    pub arch: String,
    /// Processor model.
    pub cpu_model: String,
    /// Hardware threads that kernels may be given.
    pub cpu_threads: u32,
    /// Physical cores.
    pub cpu_cores: u32,
    /// Main memory.
    pub memory: u64,
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// File systems.
    pub disks: Vec<Disk>,
    /// GPUs, by index.
    pub gpus: Vec<Gpu>,
}

/// The programs on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// Distribution, for example `Debian GNU/Linux 12`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Container backend and version, for example `docker 27.3.1`; none when it runs no kernels.
    pub container_backend: Option<String>,
    /// CUDA version that the driver supports.
    pub cuda: Option<String>,
    /// `ROCm` version.
    pub rocm: Option<String>,
    /// Meshwork's own version.
    pub meshwork: String,
}

/// What a node says about itself. What changes with every announcement stands first, so that a
/// renewal is known by the bytes that follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Larger than in every earlier announcement of the node; persisted before it is sent.
    pub version: u64,
    /// When it was signed, by the node's own clock.
    pub issued_at: Timestamp,
    /// How long it holds, from `issued_at`.
    pub ttl: Duration,
    /// The operator's name for the node.
    pub name: String,
    /// What the node does.
    pub roles: BTreeSet<Role>,
    /// Where it may be dialled: hints only.
    pub addresses: Vec<SocketAddr>,
    /// Its home relays.
    pub relays: Vec<NodeId>,
    /// What lies between it and the rest of the network, as it found out.
    pub nat: NatClass,
    /// RPC services that it serves.
    pub services: BTreeSet<String>,
    /// The machine.
    pub hardware: Hardware,
    /// Its programs.
    pub software: Software,
    /// Container images that it holds, the most recently used first, as many as fit.
    pub images: Vec<String>,
    /// Models that it serves.
    pub models: BTreeSet<String>,
    /// Tools that it offers.
    pub tools: BTreeSet<String>,
    /// The operator's labels; `scope:*` ones narrow who finds the node.
    pub tags: BTreeSet<String>,
    /// Place in the subnet tree.
    pub subnet: Option<Subnet>,
    /// Region name.
    pub region: Option<String>,
}

impl Announcement {
    /// When it stops to hold.
    pub fn expires_at(&self) -> Timestamp {
        self.issued_at.saturating_add(self.ttl)
    }
}

/// An announcement as it travels: signed by the node it describes, with the token that lets it
/// speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedAnnouncement {
    /// The [`Announcement`], signed.
    pub envelope: Envelope,
    /// Grants its signer scope `announce`.
    pub token: Token,
    /// How many nodes have forwarded it. Not signed: it only ever makes the flood stop.
    pub hops: u8,
}

impl SignedAnnouncement {
    /// Signs `body` as `identity`.
    pub fn sign(
        identity: &Identity,
        token: Token,
        body: &Announcement,
    ) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::seal(identity, &Domain::ANNOUNCEMENT, body)?;
        Ok(Self {
            envelope,
            token,
            hops: 0,
        })
    }

    /// The node that it describes.
    pub fn node(&self) -> NodeId {
        self.envelope.signer()
    }

    /// The body, if the signature holds. Says nothing about the token.
    pub fn open(&self) -> Result<Announcement, EnvelopeError> {
        self.envelope.open(&Domain::ANNOUNCEMENT)
    }
}
