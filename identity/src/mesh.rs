//! What the members of one mesh share: its id, its pre-shared key, and words to recognize it by.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{Domain, NodeId, text::BASE32, words::WORDS};

/// The name of a mesh on the wire: the first 16 bytes of a hash of its authority's key. It is no
/// secret and proves nothing; it tells meshes apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshId([u8; 16]);

impl MeshId {
    /// The mesh of this authority.
    pub fn of(authority: &NodeId) -> Self {
        let digest = Sha256::digest(Domain::MESH_ID.frame(authority.as_bytes()));
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// From bytes that a peer sent.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshId({self})")
    }
}

/// Three words that stand for an authority's key, such as `maple-river-oak`: 24 bits to read out on
/// the phone. They guard against a mix-up, not against a key searched to match.
pub fn fingerprint(authority: &NodeId) -> String {
    let digest = Sha256::digest(authority.as_bytes());
    let word = |byte: u8| WORDS[usize::from(byte)];
    [word(digest[0]), word(digest[1]), word(digest[2])].join("-")
}

/// The secret that all members share and that the handshake asks for first.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Psk([u8; 32]);

impl Psk {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the handshake and for storing.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In constant time.
impl PartialEq for Psk {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Psk {}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn ids_and_fingerprints_follow_the_authority() {
        let [one, two] = [1, 2].map(|n| Identity::from_seed(&[n; 32]).node_id());
        assert_eq!(MeshId::of(&one), MeshId::of(&one));
        assert_ne!(MeshId::of(&one), MeshId::of(&two));
        assert_ne!(fingerprint(&one), fingerprint(&two));
        assert_eq!(fingerprint(&one).split('-').count(), 3);
    }

    #[test]
    fn the_psk_is_not_shown() {
        assert_eq!(format!("{:?}", Psk::from_bytes([0x41; 32])), "Psk(…)");
        assert_eq!(Psk::from_bytes([1; 32]), Psk::from_bytes([1; 32]));
        assert_ne!(Psk::from_bytes([1; 32]), Psk::from_bytes([2; 32]));
    }
}
