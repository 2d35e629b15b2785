//! The primitives that snow calls, from AWS-LC: X25519, AES-256-GCM, SHA-256.
//!
//! snow's own resolver computes the static public key anew for every session, accepts all-zero
//! results of X25519, and is half as fast.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{self, PrivateKey, UnparsedPublicKey, X25519},
    digest,
};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::Zeroizing;

use super::{Entropy, hmac::Hmac};
use crate::Identity;

const TAG_LEN: usize = 16;

/// An X25519 key pair, ready for use.
pub(super) struct KeyPair {
    private: PrivateKey,
    public: [u8; 32],
}

impl KeyPair {
    pub(super) fn of(identity: &Identity) -> Self {
        Self::from_private(&identity.noise_secret())
    }

    fn from_private(private: &[u8; 32]) -> Self {
        let private = PrivateKey::from_private_key(&X25519, private)
            .expect("any 32 bytes are an X25519 private key");
        let computed = private
            .compute_public_key()
            .expect("an X25519 key has a public half");
        let mut public = [0; 32];
        public.copy_from_slice(computed.as_ref());
        Self { private, public }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(…)")
    }
}

/// Hands snow its primitives for one session.
pub(super) struct Resolver {
    pub(super) static_key: Arc<KeyPair>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Source(self.entropy.clone())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let dh = X25519Dh {
            static_key: self.static_key.clone(),
            current: None,
        };
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(dh) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha256::new()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::new(AesGcm(None)) as Box<dyn Cipher>)
    }
}

/// What the node passes to snow as its private key. The real one is in the [`Resolver`].
pub(super) const STATIC_KEY_HANDLE: [u8; 32] = [0; 32];

struct Source(Arc<dyn Entropy>);

impl Random for Source {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.0.fill(out);
        Ok(())
    }
}

struct X25519Dh {
    static_key: Arc<KeyPair>,
    current: Option<Arc<KeyPair>>,
}

impl Dh for X25519Dh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// snow sets only the static key; `key` is [`STATIC_KEY_HANDLE`].
    fn set(&mut self, _key: &[u8]) {
        self.current = Some(self.static_key.clone());
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(private.as_mut())?;
        self.current = Some(Arc::new(KeyPair::from_private(&private)));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |pair| &pair.public)
    }

    /// Private keys stay inside: snow asks for them only to generate a pair for its caller.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    /// AWS-LC refuses an all-zero result, so a peer's point of small order fails here.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let pair = self.current.as_ref().ok_or(Error::Dh)?;
        let public = public.get(..32).ok_or(Error::Dh)?;
        let public = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&pair.private, public, Error::Dh, |shared| {
            out.get_mut(..shared.len())
                .ok_or(Error::Dh)?
                .copy_from_slice(shared);
            Ok(())
        })
    }
}

struct Sha256(digest::Context);

impl Sha256 {
    fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let done = std::mem::replace(self, Self::new()).0.finish();
        out[..32].copy_from_slice(done.as_ref());
    }

    fn hmac(&mut self, key: &[u8], data: &[u8], out: &mut [u8]) {
        // snow passes buffers of the largest hash's length; a chaining key has 32 bytes.
        let tag = Hmac::new(&key[..32]).tag(&[data]);
        out[..32].copy_from_slice(tag.as_slice());
    }

    /// Noise §4.3, with the key of all outputs prepared once.
    fn hkdf(
        &mut self,
        chaining_key: &[u8],
        input: &[u8],
        outputs: usize,
        out1: &mut [u8],
        out2: &mut [u8],
        out3: &mut [u8],
    ) {
        let prk = Hmac::new(Hmac::new(chaining_key).tag(&[input]).as_slice());
        let mut last = prk.tag(&[&[1]]);
        out1[..32].copy_from_slice(last.as_slice());
        for (number, out) in (2..).zip([out2, out3]).take(outputs - 1) {
            last = prk.tag(&[last.as_slice(), &[number]]);
            out[..32].copy_from_slice(last.as_slice());
        }
    }
}

/// AES-256-GCM with Noise's nonce: four zero bytes and the big-endian counter.
struct AesGcm(Option<LessSafeKey>);

impl AesGcm {
    fn nonce(counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        self.0 = Some(LessSafeKey::new(key));
    }

    fn encrypt(&self, nonce: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let key = self.0.as_ref().expect("snow sets a key before it encrypts");
        let (text, rest) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(Self::nonce(nonce), Aad::from(ad), text)
            .expect("a handshake message is within AES-GCM's length limit");
        rest[..TAG_LEN].copy_from_slice(tag.as_ref());
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        ad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let (text, tag) = ciphertext
            .split_at_checked(ciphertext.len().wrapping_sub(TAG_LEN))
            .ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        key.open_separate_gather(Self::nonce(nonce), Aad::from(ad), text, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(text.len())
    }
}
