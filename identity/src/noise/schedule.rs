//! The key schedule: from the Noise chaining key to the keys of QUIC packets.
//!
//! HKDF-SHA256 throughout, with the Expand-Label of TLS 1.3 (RFC 8446 §7.1) under our own prefix, so
//! that no key can be mistaken for one of TLS:
//!
//! ```text
//! PRK        = Extract(salt = h, ikm = raw split of ck)     after message 2 and after message 3
//! c hs, s hs = Expand-Label(PRK, …)                          after message 2: Handshake packets
//! c ap, s ap, exp                                            after message 3: 1-RTT packets, exporter
//! initial    = Extract(salt = from the PSK, ikm = first destination connection id)
//! c in, s in = Expand-Label(initial, …)                      Initial packets
//! retry, negotiation = Expand-Label(salt from the PSK, …)    HMAC keys of these packets' tags
//! ```
//! Packet key, IV, header key and key update follow RFC 9001 §5.1 and §6. The handshake hash `h` is
//! public: it salts, it never is a key.

use std::fmt;

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::hmac::{self, Hmac};

/// Goes before every label.
const PREFIX: &[u8] = b"meshwork1 ";
/// Salt of the extraction that turns a PSK into the salt of Initial keys.
const INITIAL_LABEL: &[u8] = b"meshwork1 initial";

/// A packet cipher. The numbers are those of the handshake payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Aead {
    /// AES-128-GCM, the faster one on processors with AES instructions.
    Aes128Gcm = 1,
    /// ChaCha20-Poly1305, the faster one everywhere else.
    ChaCha20Poly1305 = 2,
}

impl Aead {
    /// The cipher of this number, if we have it.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Aes128Gcm, Self::ChaCha20Poly1305]
            .into_iter()
            .find(|aead| *aead as u8 == number)
    }

    /// Length of the packet key and of the header key, in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::ChaCha20Poly1305 => 32,
        }
    }
}

/// A 32-byte secret of the schedule. Zeroized on drop, printed nowhere.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Key and IV of one direction of one key phase (RFC 9001 §5.1).
#[derive(Debug)]
pub struct PacketSecrets {
    /// The AEAD key; its length is [`Aead::key_len`].
    pub key: Zeroizing<Vec<u8>>,
    /// Its exclusive or with the packet number is the nonce (RFC 9001 §5.3).
    pub iv: [u8; 12],
}

impl Secret {
    /// Key and IV for packets under this secret.
    pub fn packet(&self, aead: Aead) -> PacketSecrets {
        let prk = self.prk();
        let (mut key, mut iv) = (Zeroizing::new(vec![0; aead.key_len()]), [0; 12]);
        prk.expand(b"quic key", b"", &mut key);
        prk.expand(b"quic iv", b"", &mut iv);
        PacketSecrets { key, iv }
    }

    /// The header protection key (RFC 9001 §5.4). It survives key updates.
    pub fn header(&self, aead: Aead) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(vec![0; aead.key_len()]);
        self.prk().expand(b"quic hp", b"", &mut key);
        key
    }

    /// The secret of the next key phase (RFC 9001 §6.1).
    #[must_use]
    pub fn update(&self) -> Self {
        self.prk().derive(b"quic ku")
    }

    /// Keying material for the layers above, as RFC 8446 §7.5. Only called on the `exp` secret.
    /// `None` if `out` is longer than HKDF can fill (8,160 bytes) or the label longer than 200 bytes.
    pub(super) fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
        if out.len() > 255 * hmac::LEN || label.len() > 200 {
            return None;
        }
        let context = digest::digest(&digest::SHA256, context);
        let labelled = self.prk().derive(label);
        labelled.prk().expand(b"exporter", context.as_ref(), out);
        Some(())
    }

    fn prk(&self) -> Prk {
        Prk(Hmac::new(self.0.as_slice()))
    }
}

/// A secret, ready for any number of expansions.
struct Prk(Hmac);

impl Prk {
    fn derive(&self, label: &[u8]) -> Secret {
        let mut out = Zeroizing::new([0; hmac::LEN]);
        self.expand(label, b"", out.as_mut());
        Secret(out)
    }

    /// HKDF-Expand-Label (RFC 8446 §7.1): length u16, label and context each with a length u8.
    fn expand(&self, label: &[u8], context: &[u8], out: &mut [u8]) {
        let length = u16::try_from(out.len()).expect("at most 8,160 bytes are asked for");
        let label_length = u8::try_from(PREFIX.len() + label.len()).expect("labels are short");
        let context_length = u8::try_from(context.len()).expect("contexts are empty or hashes");
        let length = length.to_be_bytes();
        // HKDF-Expand (RFC 5869 §2.3): each block is made from the one before.
        let mut block = Zeroizing::new([0; hmac::LEN]);
        for (number, out) in (1..=u8::MAX).zip(out.chunks_mut(hmac::LEN)) {
            let before = if number == 1 { &[][..] } else { &block[..] };
            block = self.0.tag(&[
                before,
                &length,
                &[label_length],
                PREFIX,
                label,
                &[context_length],
                context,
                &[number],
            ]);
            out.copy_from_slice(&block[..out.len()]);
        }
    }
}

/// HKDF-Extract (RFC 5869 §2.2), which is HMAC-SHA256 under the salt.
fn extract(salt: &[u8], ikm: &[u8]) -> Secret {
    Secret(Hmac::new(salt).tag(&[ikm]))
}

/// The secrets of one packet number space, both directions.
#[derive(Debug, Clone)]
pub struct LevelSecrets {
    /// The cipher of its packets.
    pub aead: Aead,
    /// Protects what the initiator (the QUIC client) sends.
    pub initiator: Secret,
    /// Protects what the responder (the QUIC server) sends.
    pub responder: Secret,
}

/// Secrets of Handshake packets, from the state after message 2.
pub(super) fn handshake_level(aead: Aead, h: &[u8], split: &[u8; 64]) -> LevelSecrets {
    let prk = extract(h, split).prk();
    LevelSecrets {
        aead,
        initiator: prk.derive(b"c hs"),
        responder: prk.derive(b"s hs"),
    }
}

/// Secrets of 1-RTT packets and the exporter's secret, from the state after message 3.
pub(super) fn application_level(aead: Aead, h: &[u8], split: &[u8; 64]) -> (LevelSecrets, Secret) {
    let prk = extract(h, split).prk();
    let level = LevelSecrets {
        aead,
        initiator: prk.derive(b"c ap"),
        responder: prk.derive(b"s ap"),
    };
    (level, prk.derive(b"exp"))
}

/// What Initial and Retry packets are keyed with.
#[derive(Debug, Clone)]
pub struct InitialSalt(Secret);

impl InitialSalt {
    /// Only holders of the PSK can read or write Initial packets. The derivation is the same in
    /// every version of the protocol, so that a member of another version is recognized as a member.
    pub fn keyed(psk: &[u8; 32]) -> Self {
        Self(extract(INITIAL_LABEL, psk))
    }

    /// Anybody can, as in RFC 9001 §5.2; a wrong PSK is then answered with an alert.
    pub fn open() -> Self {
        Self(extract(INITIAL_LABEL, b""))
    }

    /// Secrets of the Initial packets that follow this first destination connection id. Their
    /// cipher is always AES-128-GCM, because nothing is negotiated yet.
    pub fn secrets(&self, connection_id: &[u8]) -> LevelSecrets {
        let initial = extract(self.0.0.as_slice(), connection_id).prk();
        LevelSecrets {
            aead: Aead::Aes128Gcm,
            initiator: initial.derive(b"c in"),
            responder: initial.derive(b"s in"),
        }
    }

    /// The integrity tag of a Retry packet: HMAC-SHA256, cut to 16 bytes, over the first destination
    /// connection id (length u8 before it) and the packet without its tag.
    ///
    /// RFC 9001 §5.8 uses AES-GCM with a fixed nonce, which is sound only as long as its key is
    /// public anyway: under a secret key two tags would give the authentication key away.
    pub fn retry_tag(&self, connection_id: &[u8], packet: &[&[u8]]) -> [u8; 16] {
        self.tag(b"retry", connection_id, packet)
    }

    /// The tag at the end of a version negotiation packet, made like that of a Retry packet. In
    /// RFC 9000 §6.2 anybody who sees a first packet can forge one and so end the dial.
    pub fn negotiation_tag(&self, connection_id: &[u8], packet: &[u8]) -> [u8; 16] {
        self.tag(b"negotiation", connection_id, &[packet])
    }

    fn tag(&self, purpose: &[u8], connection_id: &[u8], packet: &[&[u8]]) -> [u8; 16] {
        let key = self.0.prk().derive(purpose);
        let length = u8::try_from(connection_id.len()).expect("a connection id's length is a u8");
        let length = [length];
        let parts = [&[&length[..], connection_id], packet].concat();
        let mut tag = [0; 16];
        tag.copy_from_slice(&Hmac::new(key.0.as_slice()).tag(&parts)[..16]);
        tag
    }
}

/// A key for one of a node's own uses (connection ids, stateless resets, address tokens), which
/// stays the same over restarts: nobody else can compute it.
pub fn local_key(noise_secret: &[u8; 32], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    extract(b"meshwork1 local", noise_secret)
        .prk()
        .derive(purpose)
        .0
}
