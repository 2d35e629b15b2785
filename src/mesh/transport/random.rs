//! Chance and the keys made from it: connection ids, address tokens, stateless resets.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use meshwork_identity::noise::Entropy;
use quinn::{
    ConnectionId, ConnectionIdGenerator, TimeSource,
    crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey},
};
use quinn_proto::InvalidCid;
use tokio::time::Instant;

use super::stats::Counters;

/// The operating system's random source. Not by way of AWS-LC, whose own generator takes 60 ms to
/// gather entropy from the processor's jitter at its first use.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the system's random source works once it is up");
    }
}

/// Fills an array.
pub(super) fn array<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}

const ID_CHANCE: usize = 4;
const ID_MARK: usize = 4;
/// Length of the connection ids that we issue.
pub(super) const ID_LEN: usize = ID_CHANCE + ID_MARK;

/// The key of the marks by which this node knows its own connection ids again.
#[derive(Clone)]
pub(super) struct IdKey(hmac::Key);

impl IdKey {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn mark(&self, chance: &[u8]) -> [u8; ID_MARK] {
        let mut mark = [0; ID_MARK];
        mark.copy_from_slice(&hmac::sign(&self.0, chance).as_ref()[..ID_MARK]);
        mark
    }

    /// Whether this node issued the connection id, now or before a restart.
    pub(super) fn issued(&self, id: &[u8]) -> bool {
        id.split_at_checked(ID_CHANCE)
            .is_some_and(|(chance, mark)| self.mark(chance) == mark)
    }
}

/// Makes connection ids of 4 random bytes and a 4-byte mark that only this node can compute.
///
/// The mark tells packets of connections that this node has forgotten, which deserve a stateless
/// reset, from garbage, which gets silence. Its key comes from the identity, so that resets work
/// over restarts too.
pub(super) struct MarkedIds {
    key: IdKey,
    entropy: Arc<dyn Entropy>,
    counters: Arc<Counters>,
}

impl MarkedIds {
    pub(super) fn new(key: IdKey, entropy: Arc<dyn Entropy>, counters: Arc<Counters>) -> Self {
        Self {
            key,
            entropy,
            counters,
        }
    }
}

impl ConnectionIdGenerator for MarkedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN];
        self.entropy.fill(&mut id[..ID_CHANCE]);
        let mark = self.key.mark(&id[..ID_CHANCE]);
        id[ID_CHANCE..].copy_from_slice(&mark);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.key.issued(id) {
            return Ok(());
        }
        Counters::add(&self.counters.unknown_connection_ids);
        Err(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// HMAC-SHA256, which makes stateless reset tokens of connection ids.
pub(super) struct ResetKey(hmac::Key);

impl ResetKey {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

/// Seals address-validation tokens: one AES-256-GCM key for each token, made of its random bytes.
pub(super) struct TokenKey(hmac::Key);

impl TokenKey {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let key = hmac::sign(&self.0, random_bytes);
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("HMAC-SHA256 has 32 bytes");
        Box::new(TokenSeal(LessSafeKey::new(key)))
    }
}

struct TokenSeal(LessSafeKey);

impl TokenSeal {
    /// Each key seals one token.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }
}

impl AeadKey for TokenSeal {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        self.0
            .seal_in_place_append_tag(Self::nonce(), Aad::from(additional_data), data)
            .map_err(|_| CryptoError)
    }

    fn open<'a>(
        &self,
        data: &'a mut [u8],
        additional_data: &[u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        self.0
            .open_in_place(Self::nonce(), Aad::from(additional_data), data)
            .map_err(|_| CryptoError)
    }
}

/// The age of address tokens, measured from the endpoint's start. Tokens do not outlive the endpoint,
/// whose key is random, so no wall clock is needed; and simulations run in virtual time.
pub(super) struct TokenClock(pub(super) Instant);

impl TimeSource for TokenClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

impl fmt::Debug for MarkedIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MarkedIds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_connection_ids_validate() {
        let counters = Arc::<Counters>::default();
        let ids = |key| {
            let key = IdKey::new(&[key; 32]);
            MarkedIds::new(key, Arc::new(SystemEntropy), counters.clone())
        };
        let mut ours = ids(1);
        let id = ours.generate_cid();
        assert!(ours.validate(&id).is_ok());
        assert_eq!(counters.snapshot().unknown_connection_ids, 0);
        for bit in 0..64 {
            let mut altered = id.to_vec();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(ours.validate(&ConnectionId::new(&altered)).is_err());
        }
        assert!(ids(2).validate(&id).is_err());
        assert!(ours.validate(&ConnectionId::new(&[1, 2])).is_err());
        assert_eq!(counters.snapshot().unknown_connection_ids, 66);
    }

    #[test]
    fn a_token_opens_under_its_own_random_bytes_only() {
        let key = TokenKey::new(&[1; 32]);
        let mut sealed = b"token".to_vec();
        key.aead_from_hkdf(b"a").seal(&mut sealed, b"").unwrap();
        assert!(
            key.aead_from_hkdf(b"b")
                .open(&mut sealed.clone(), b"")
                .is_err()
        );
        assert!(
            TokenKey::new(&[2; 32])
                .aead_from_hkdf(b"a")
                .open(&mut sealed.clone(), b"")
                .is_err()
        );
        assert_eq!(
            key.aead_from_hkdf(b"a").open(&mut sealed, b"").unwrap(),
            b"token"
        );
    }
}
