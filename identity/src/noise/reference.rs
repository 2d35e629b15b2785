//! A second derivation of all keys, written from the specifications alone: Noise revision 34,
//! RFC 5869, RFC 8446 §7.1, RFC 9001 §5, and our design page. It shares no code with the first:
//! curve25519-dalek instead of AWS-LC for the curve, AWS-LC instead of sha2 for what is hashed under
//! a key, and no snow. (AES-GCM is AWS-LC's in both.)

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{Context, SHA256};
use curve25519_dalek::MontgomeryPoint;

type Hash = [u8; 32];

pub(super) fn hash(parts: &[&[u8]]) -> Hash {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(part);
    }
    hash.finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

/// RFC 2104, for keys of at most one block.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Hash {
    let (mut inner, mut outer) = ([0x36; 64], [0x5c; 64]);
    for (i, byte) in key.iter().enumerate() {
        inner[i] ^= byte;
        outer[i] ^= byte;
    }
    let parts: Vec<&[u8]> = std::iter::once(&inner[..])
        .chain(parts.iter().copied())
        .collect();
    hash(&[&outer, &hash(&parts)])
}

/// Noise §4.3.
fn noise_hkdf(ck: &Hash, input: &[u8]) -> [Hash; 3] {
    let temp = hmac(ck, &[input]);
    let one = hmac(&temp, &[&[1]]);
    let two = hmac(&temp, &[&one, &[2]]);
    let three = hmac(&temp, &[&two, &[3]]);
    [one, two, three]
}

/// X25519 (RFC 7748 §5).
pub(super) fn dh(private: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint(*public).mul_clamped(*private).to_bytes()
}

pub(super) fn public(private: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(*private).to_bytes()
}

/// Noise §5.2, the `SymmetricState`.
pub(super) struct Symmetric {
    pub(super) h: Hash,
    ck: Hash,
    k: Hash,
    n: u64,
}

impl Symmetric {
    pub(super) fn new(prologue: &[u8]) -> Self {
        // The name has exactly 32 bytes, so it is the first hash as it stands (Noise §5.2).
        let name = *b"Noise_XXpsk0_25519_AESGCM_SHA256";
        Self {
            h: hash(&[&name, prologue]),
            ck: name,
            k: [0; 32],
            n: 0,
        }
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.h = hash(&[&self.h, data]);
    }

    pub(super) fn mix_key(&mut self, input: &[u8]) {
        [self.ck, self.k, _] = noise_hkdf(&self.ck, input);
        self.n = 0;
    }

    pub(super) fn mix_psk(&mut self, psk: &[u8; 32]) {
        let mixed;
        [self.ck, mixed, self.k] = noise_hkdf(&self.ck, psk);
        self.n = 0;
        self.mix_hash(&mixed);
    }

    /// Message 1's tokens: psk, e (which is mixed into the key too, Noise §9.2).
    pub(super) fn hello(&mut self, psk: &[u8; 32], ephemeral: &[u8; 32]) {
        self.mix_psk(psk);
        self.mix_hash(ephemeral);
        self.mix_key(ephemeral);
    }

    fn cipher(&mut self) -> (LessSafeKey, Nonce, Aad<Hash>) {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.k).unwrap());
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.n.to_be_bytes());
        self.n += 1;
        (key, Nonce::assume_unique_for_key(nonce), Aad::from(self.h))
    }

    pub(super) fn open(&mut self, sealed: &[u8]) -> Vec<u8> {
        let (key, nonce, ad) = self.cipher();
        let mut text = sealed.to_vec();
        let length = key.open_in_place(nonce, ad, &mut text).unwrap().len();
        text.truncate(length);
        self.mix_hash(sealed);
        text
    }

    pub(super) fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let (key, nonce, ad) = self.cipher();
        let mut sealed = text.to_vec();
        key.seal_in_place_append_tag(nonce, ad, &mut sealed)
            .unwrap();
        self.mix_hash(&sealed);
        sealed
    }

    /// The input of our schedule: both halves of Noise's split, under salt h.
    pub(super) fn prk(&self) -> Hash {
        let [one, two, _] = noise_hkdf(&self.ck, &[]);
        hmac(&self.h, &[&one, &two])
    }
}

/// HKDF-Expand-Label with our prefix.
pub(super) fn expand(secret: &Hash, label: &str, context: &[u8], length: usize) -> Vec<u8> {
    let label = format!("meshwork1 {label}");
    let mut info = u16::try_from(length).unwrap().to_be_bytes().to_vec();
    info.push(u8::try_from(label.len()).unwrap());
    info.extend_from_slice(label.as_bytes());
    info.push(u8::try_from(context.len()).unwrap());
    info.extend_from_slice(context);
    let mut out = Vec::new();
    let mut block = Vec::new();
    for counter in 1.. {
        if out.len() >= length {
            break;
        }
        block = hmac(secret, &[&block, &info, &[counter]]).to_vec();
        out.extend_from_slice(&block);
    }
    out.truncate(length);
    out
}

pub(super) fn derive(secret: &Hash, label: &str) -> Hash {
    expand(secret, label, b"", 32).try_into().unwrap()
}
