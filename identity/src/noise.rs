//! The Noise handshake of a connection, as a machine without I/O.
//!
//! One pattern, `Noise_XXpsk0_25519_AESGCM_SHA256`, always with the mesh's pre-shared key. Both ends
//! prove the X25519 image of their ed25519 key; the PSK keeps outsiders from learning that anybody
//! is there. The machine reads and writes bytes and hands out the secrets of QUIC's packet number
//! spaces; `meshwork-mesh` drives it from quinn.
//!
//! ```text
//! initiator                                                     responder
//!   m1: psk, e; parameters, protocols, packet ciphers  ─────▶
//!                      ◀─────  m2: e, ee, s, es; parameters, choices, identity
//!                      ◀─────  confirm: an empty frame under the Handshake keys
//!   m3: s, se; identity  ─────▶
//! ```
//! *Confirm* exists because quinn's client ends its handshake on a Handshake packet only, while its
//! server drops the Handshake keys when it finishes: with m3 sent before, a lost datagram could leave
//! a connection half open for ever.

mod error;
mod handshake;
mod hmac;
mod payload;
#[cfg(test)]
mod reference;
mod resolver;
mod schedule;

use std::{fmt, sync::Arc};

use resolver::KeyPair;

pub use error::HandshakeError;
pub use handshake::{Flight, Handshake, MAX_FRAME};
pub use schedule::{Aead, InitialSalt, LevelSecrets, PacketSecrets, Secret, local_key};

use crate::{Identity, MeshId, NodeId, Psk};

/// A source of unpredictable bytes, given by the caller: the operating system's in production, a
/// seeded one in simulations.
pub trait Entropy: Send + Sync + fmt::Debug {
    /// Fills `out`. A source that cannot deliver must not return.
    fn fill(&self, out: &mut [u8]);
}

impl dyn Entropy {
    /// `N` random bytes.
    pub fn array<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

/// The pre-shared keys of a mesh: one in use, and during a rotation a second one.
///
/// A node that dials with a key which its peer does not accept meets silence. So a rotation without a
/// gap gives every node the new key as the second one first, and only then makes it the current one.
#[derive(Debug, Clone)]
pub struct PskSet {
    /// The key that this node dials with, and accepts.
    pub current: Psk,
    /// A key that this node accepts too.
    pub previous: Option<Psk>,
}

impl PskSet {
    /// The accepted keys, the current one first.
    pub fn accepted(&self) -> impl Iterator<Item = &Psk> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

/// Decides after the last message whether a proven peer may stay. Revoked nodes are refused here.
pub type Authorize = Arc<dyn Fn(&NodeId) -> bool + Send + Sync>;

/// What all handshakes of a node have in common.
#[derive(Clone)]
pub struct HandshakeConfig {
    identity: NodeId,
    static_key: Arc<KeyPair>,
    prologue: Vec<u8>,
    psks: PskSet,
    entropy: Arc<dyn Entropy>,
    /// Application protocols that this node speaks, the preferred one first.
    pub protocols: Vec<Vec<u8>>,
    /// Packet ciphers that this node has, the fastest one on its processor first.
    pub aeads: Vec<Aead>,
    /// Whom the responder lets in. Default: every member.
    pub authorize: Authorize,
}

impl HandshakeConfig {
    /// `version` is the QUIC version number. Both it and the mesh are part of the prologue, so that
    /// nodes of different meshes or versions share no transcript.
    pub fn new(
        identity: &Identity,
        mesh: &MeshId,
        version: u32,
        psks: PskSet,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let mut prologue = b"meshwork noise".to_vec();
        prologue.extend_from_slice(&version.to_be_bytes());
        prologue.extend_from_slice(mesh.as_bytes());
        Self {
            identity: identity.node_id(),
            static_key: Arc::new(KeyPair::of(identity)),
            prologue,
            psks,
            entropy,
            protocols: vec![b"meshwork/1".to_vec()],
            aeads: vec![Aead::Aes128Gcm, Aead::ChaCha20Poly1305],
            authorize: Arc::new(|_| true),
        }
    }

    /// The same with other pre-shared keys, for handshakes that begin after a rotation's step.
    #[must_use]
    pub fn with_psks(&self, psks: PskSet) -> Self {
        Self {
            psks,
            ..self.clone()
        }
    }
}

impl fmt::Debug for HandshakeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeConfig")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
