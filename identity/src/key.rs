//! Ed25519 identities: the one key of a node or a user, its public name, and its signatures.
//!
//! The X25519 key of the Noise handshake comes from the same key (Edwards → Montgomery), so whoever
//! knows a [`NodeId`] can authenticate the node: there are no certificates and no second key.

use std::{borrow::Borrow, fmt, str::FromStr};

use curve25519_dalek::scalar::clamp_integer;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::{Domain, text::BASE32};

/// Characters of a printed node id: 256 bits at 5 bits a character.
pub const NODE_ID_CHARS: usize = 52;
/// Characters of the short form that people see.
pub const SHORT_ID_CHARS: usize = 10;

/// The public name of an identity: its ed25519 public key.
///
/// A value of this type is a point of the curve in its one canonical encoding and not of small
/// order, so two different ids are never the same key and [`NodeId::noise_public`] cannot fail.
/// That costs a point decompression (some microseconds) for each id that is decoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// Why a text or bytes are no node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// Another number of characters than [`NODE_ID_CHARS`].
    #[error("a node id has {NODE_ID_CHARS} characters, this text has {0}")]
    Length(usize),
    /// Not lower-case base32 in its one canonical form.
    #[error("a node id is lower-case base32; character {0} does not fit")]
    Base32(usize),
    /// The bytes are no ed25519 public key, or a weak or non-canonical one.
    #[error("these bytes are not an ed25519 public key")]
    NotAKey,
}

impl NodeId {
    /// Checks that `bytes` are a canonical ed25519 public key of large order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, NodeIdError> {
        checked_key(&bytes).map(|_| Self(bytes))
    }

    /// The id and its [`NodeId::noise_public`], for one point decompression instead of two.
    pub(crate) fn with_noise_public(bytes: [u8; 32]) -> Result<(Self, [u8; 32]), NodeIdError> {
        let key = checked_key(&bytes)?;
        Ok((Self(bytes), key.to_montgomery().to_bytes()))
    }

    /// The ed25519 public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first [`SHORT_ID_CHARS`] characters of the printed form.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_ID_CHARS);
        text
    }

    /// Whether the printed form starts with `prefix`. The empty prefix names nobody.
    pub fn matches_prefix(&self, prefix: &str) -> bool {
        !prefix.is_empty() && self.to_string().starts_with(prefix)
    }

    /// The X25519 public key that this identity uses in the Noise handshake (RFC 7748 §4.1).
    pub fn noise_public(&self) -> [u8; 32] {
        self.verifying_key().to_montgomery().to_bytes()
    }

    /// Checks that this identity signed `message` for `domain`. Strict (no malleable signatures, no
    /// small-order points), so all nodes agree on what is valid.
    pub fn verify(
        &self,
        domain: &Domain,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), SignatureError> {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.to_bytes());
        self.verifying_key()
            .verify_strict(&domain.frame(message), &signature)
            .map_err(|_| SignatureError)
    }

    fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from_bytes(&self.0).expect("checked when the id was made")
    }
}

/// The key of these bytes, if they may be a node id.
fn checked_key(bytes: &[u8; 32]) -> Result<VerifyingKey, NodeIdError> {
    VerifyingKey::from_bytes(bytes)
        .ok()
        .filter(|key| !key.is_weak() && is_canonical(bytes))
        .ok_or(NodeIdError::NotAKey)
}

/// Whether the y coordinate is reduced, that is `y < p = 2²⁵⁵ − 19` (RFC 8032 §5.1.3). The other
/// non-canonical form, `x = 0` with the sign bit set, exists for small-order points only.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    let high = bytes[31] & 0x7f;
    high != 0x7f || bytes[1..31].iter().any(|b| *b != 0xff) || bytes[0] < 0xed
}

/// A map by node id can be asked by raw bytes, without the cost of [`NodeId::from_bytes`].
impl Borrow<[u8; 32]> for NodeId {
    fn borrow(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.0))
    }
}

/// The short form: logs and test output stay readable.
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        if text.len() != NODE_ID_CHARS {
            return Err(NodeIdError::Length(text.chars().count()));
        }
        let mut bytes = [0; 32];
        BASE32
            .decode_mut(text.as_bytes(), &mut bytes)
            .map_err(|e| NodeIdError::Base32(e.error.position + 1))?;
        Self::from_bytes(bytes)
    }
}

/// As text where people read it (JSON), else as 32 bytes without a length.
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        } else {
            let bytes = <[u8; 32]>::deserialize(deserializer)?;
            Self::from_bytes(bytes).map_err(D::Error::custom)
        }
    }
}

/// An ed25519 key pair: a node's or a user's. The secret part is zeroized on drop and appears in no
/// output.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    node_id: NodeId,
}

impl Identity {
    /// The identity of a 32-byte secret seed (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let node_id = NodeId(key.verifying_key().to_bytes());
        Self { key, node_id }
    }

    /// The public name.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Signs `message` for one purpose.
    pub fn sign(&self, domain: &Domain, message: &[u8]) -> Signature {
        Signature::from_bytes(&self.key.sign(&domain.frame(message)).to_bytes())
    }

    /// The X25519 secret of the Noise handshake: the clamped first half of SHA-512 of the seed, the
    /// scalar whose Edwards point is the node id.
    pub fn noise_secret(&self) -> Zeroizing<[u8; 32]> {
        let unclamped = Zeroizing::new(self.key.to_scalar_bytes());
        Zeroizing::new(clamp_integer(*unclamped))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.node_id)
    }
}

/// An ed25519 signature: the halves R and s (RFC 8032 §5.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl Signature {
    /// Takes any 64 bytes; whether they are a signature shows at verification.
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let (mut r, mut s) = ([0; 32], [0; 32]);
        r.copy_from_slice(&bytes[..32]);
        s.copy_from_slice(&bytes[32..]);
        Self(r, s)
    }

    /// The 64 bytes, R before s.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", BASE32.encode(&self.0[..5]))
    }
}

/// A signature is not by the claimed signer, or not over these bytes, or not for this purpose.
/// Ed25519 does not tell these apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match its signer, its content or its purpose")]
pub struct SignatureError;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u8) -> Identity {
        Identity::from_seed(&[n; 32])
    }

    #[test]
    fn rfc_8032_test_1_public_key() {
        let seed = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap();
        let id = Identity::from_seed(&seed.try_into().unwrap()).node_id();
        assert_eq!(
            data_encoding::HEXLOWER.encode(id.as_bytes()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        // The neutral element (y = 1), and the same with y + p.
        let mut one = [0; 32];
        one[0] = 1;
        assert_eq!(NodeId::from_bytes(one), Err(NodeIdError::NotAKey));
        // y = 3 and y = 4 among others are on the curve; y + p encodes the same points once more.
        let mut refused = 0;
        for y in 2..19u8 {
            let mut plain = [0; 32];
            plain[0] = y;
            let mut plus_p = [0xff; 32];
            plus_p[0] = 0xed + y;
            plus_p[31] = 0x7f;
            assert_eq!(NodeId::from_bytes(plus_p), Err(NodeIdError::NotAKey));
            let on_curve = NodeId::from_bytes(plain).is_ok();
            refused += usize::from(on_curve && VerifyingKey::from_bytes(&plus_p).is_ok());
        }
        assert!(refused > 0, "some of these differ only in being canonical");
    }

    #[test]
    fn only_the_canonical_text_parses() {
        let id = identity(1).node_id();
        let text = id.to_string();
        assert_eq!(text.len(), NODE_ID_CHARS);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(
            text.to_uppercase()
                .parse::<NodeId>()
                .map_err(|e| matches!(e, NodeIdError::Base32(_))),
            Err(true)
        );
        assert_eq!(text[1..].parse::<NodeId>(), Err(NodeIdError::Length(51)));
        assert_eq!(
            format!("{text}=").parse::<NodeId>(),
            Err(NodeIdError::Length(53))
        );
        // The last character carries one bit of the key and four zero bits.
        let last = if text.ends_with('a') { 'b' } else { 'r' };
        let stray = format!("{}{last}", &text[..51]);
        assert!(matches!(
            stray.parse::<NodeId>(),
            Err(NodeIdError::Base32(52))
        ));
    }

    #[test]
    fn prefixes() {
        let id = identity(1).node_id();
        assert!(id.matches_prefix(&id.short()));
        assert!(id.matches_prefix(&id.to_string()));
        assert!(!id.matches_prefix(""));
        assert!(!id.matches_prefix("0"));
        assert_eq!(id.short().len(), SHORT_ID_CHARS);
    }

    #[test]
    fn serde_is_text_for_people_and_bytes_else() {
        let id = identity(2).node_id();
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert_eq!(postcard::to_allocvec(&id).unwrap(), id.as_bytes());
        let weak = postcard::to_allocvec(&[0u8; 32]).unwrap();
        assert!(postcard::from_bytes::<NodeId>(&weak).is_err());
    }

    #[test]
    fn the_noise_key_belongs_to_the_node_id() {
        use aws_lc_rs::agreement::{PrivateKey, X25519};
        for n in 0..20 {
            let identity = identity(n);
            let secret =
                PrivateKey::from_private_key(&X25519, identity.noise_secret().as_slice()).unwrap();
            let public = secret.compute_public_key().unwrap();
            assert_eq!(public.as_ref(), identity.node_id().noise_public());
        }
    }

    #[test]
    fn signatures_hold_for_one_signer_message_and_domain() {
        let (a, b) = (identity(1), identity(2));
        for domain in Domain::ALL {
            let signature = a.sign(&domain, b"message");
            assert_eq!(a.node_id().verify(&domain, b"message", &signature), Ok(()));
            assert!(a.node_id().verify(&domain, b"massage", &signature).is_err());
            assert!(b.node_id().verify(&domain, b"message", &signature).is_err());
            for other in Domain::ALL.into_iter().filter(|d| *d != domain) {
                assert!(a.node_id().verify(&other, b"message", &signature).is_err());
            }
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let identity = identity(7);
        let shown = format!("{identity:?}");
        assert_eq!(shown, format!("Identity({})", identity.node_id().short()));
    }
}
