//! Packet and header protection (RFC 9001 §5.3, §5.4) over AWS-LC.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use bytes::BytesMut;
use meshwork_identity::noise::{Aead, LevelSecrets, Secret};
use quinn::crypto::{CryptoError, HeaderKey, KeyPair, Keys, PacketKey};
use quinn_proto::Side;
use std::sync::Arc;

use super::stats::Counters;

const TAG_LEN: usize = 16;
/// Bytes of ciphertext that the header mask is computed from.
pub(super) const SAMPLE_LEN: usize = 16;
/// Header protection samples as if the packet number had four bytes.
const LONGEST_PACKET_NUMBER: usize = 4;

/// Protects the packets of one direction in one key phase.
pub(super) struct Packets {
    key: LessSafeKey,
    iv: [u8; 12],
    aead: Aead,
    counters: Arc<Counters>,
}

impl Packets {
    pub(super) fn new(aead: Aead, secret: &Secret, counters: &Arc<Counters>) -> Self {
        let secrets = secret.packet(aead);
        let algorithm = match aead {
            Aead::Aes128Gcm => &aead::AES_128_GCM,
            Aead::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &secrets.key).expect("the length is the cipher's");
        Self {
            key: LessSafeKey::new(key),
            iv: secrets.iv,
            aead,
            counters: counters.clone(),
        }
    }

    fn nonce(&self, packet: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(packet.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Decrypts in place; `None` for a forgery. Does not count.
    pub(super) fn open<'p>(
        &self,
        packet: u64,
        header: &[u8],
        payload: &'p mut [u8],
    ) -> Option<&'p mut [u8]> {
        self.key
            .open_in_place(self.nonce(packet), Aad::from(header), payload)
            .ok()
    }
}

impl PacketKey for Packets {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, payload) = buf.split_at_mut(header_len);
        let (payload, tag) = payload.split_at_mut(payload.len() - TAG_LEN);
        let sealed = self
            .key
            .seal_in_place_separate_tag(self.nonce(packet), Aad::from(&*header), payload)
            .expect("a packet is within the cipher's length limit");
        tag.copy_from_slice(sealed.as_ref());
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let Some(length) = self.open(packet, header, payload).map(|plain| plain.len()) else {
            Counters::add(&self.counters.forged_packets);
            return Err(CryptoError);
        };
        payload.truncate(length);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    /// RFC 9001 §6.6.
    fn confidentiality_limit(&self) -> u64 {
        match self.aead {
            Aead::Aes128Gcm => 1 << 23,
            Aead::ChaCha20Poly1305 => u64::MAX,
        }
    }

    /// RFC 9001 §6.6.
    fn integrity_limit(&self) -> u64 {
        match self.aead {
            Aead::Aes128Gcm => 1 << 52,
            Aead::ChaCha20Poly1305 => 1 << 36,
        }
    }
}

/// Hides packet numbers and flags of one direction.
pub(super) struct Headers(quic::HeaderProtectionKey);

impl Headers {
    pub(super) fn new(aead: Aead, secret: &Secret) -> Self {
        let algorithm = match aead {
            Aead::Aes128Gcm => &quic::AES_128,
            Aead::ChaCha20Poly1305 => &quic::CHACHA20,
        };
        let key = quic::HeaderProtectionKey::new(algorithm, &secret.header(aead))
            .expect("the length is the cipher's");
        Self(key)
    }

    /// The mask of RFC 9001 §5.4.1. quinn checks that the packet is long enough for the sample.
    fn mask(&self, pn_offset: usize, packet: &[u8]) -> [u8; 5] {
        let start = pn_offset + LONGEST_PACKET_NUMBER;
        let sample = &packet[start..start + SAMPLE_LEN];
        self.0
            .new_mask(sample)
            .expect("the sample has the right length")
    }
}

/// Which bits of the first byte are hidden: four in long headers, five in short ones.
fn hidden_bits(first: u8) -> u8 {
    if first & 0x80 == 0 { 0x1f } else { 0x0f }
}

/// Bytes of the packet number; `first` is the unprotected first byte.
pub(super) fn packet_number_len(first: u8) -> usize {
    usize::from(first & 0x03) + 1
}

fn xor(bytes: &mut [u8], mask: &[u8]) {
    for (byte, mask) in bytes.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

impl HeaderKey for Headers {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let mask = self.mask(pn_offset, packet);
        packet[0] ^= mask[0] & hidden_bits(packet[0]);
        let length = packet_number_len(packet[0]);
        xor(&mut packet[pn_offset..pn_offset + length], &mask[1..]);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let mask = self.mask(pn_offset, packet);
        let length = packet_number_len(packet[0]);
        packet[0] ^= mask[0] & hidden_bits(packet[0]);
        xor(&mut packet[pn_offset..pn_offset + length], &mask[1..]);
    }

    fn sample_size(&self) -> usize {
        SAMPLE_LEN
    }
}

/// (ours, the peer's) of the two directions.
pub(super) fn by_side(secrets: &LevelSecrets, side: Side) -> (&Secret, &Secret) {
    match side {
        Side::Client => (&secrets.initiator, &secrets.responder),
        Side::Server => (&secrets.responder, &secrets.initiator),
    }
}

/// Both directions' packet keys.
pub(super) fn packet_keys(
    secrets: &LevelSecrets,
    side: Side,
    counters: &Arc<Counters>,
) -> KeyPair<Box<dyn PacketKey>> {
    let (local, remote) = by_side(secrets, side);
    KeyPair {
        local: Box::new(Packets::new(secrets.aead, local, counters)),
        remote: Box::new(Packets::new(secrets.aead, remote, counters)),
    }
}

/// All keys of one packet number space.
pub(super) fn keys(secrets: &LevelSecrets, side: Side, counters: &Arc<Counters>) -> Keys {
    let (local, remote) = by_side(secrets, side);
    Keys {
        header: KeyPair {
            local: Box::new(Headers::new(secrets.aead, local)),
            remote: Box::new(Headers::new(secrets.aead, remote)),
        },
        packet: packet_keys(secrets, side, counters),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::noise::InitialSalt;

    fn long_packet() -> (Vec<u8>, usize) {
        // First byte (packet number of 2 bytes), 5 bytes of header, packet number, text, tag.
        let mut packet = vec![0xc1, 1, 2, 3, 4, 5, 0, 7];
        packet.extend_from_slice(&[0x55; 40]);
        packet.extend_from_slice(&[0; TAG_LEN]);
        (packet, 6)
    }

    #[test]
    fn what_one_side_protects_the_other_opens_and_nobody_else() {
        let counters = Arc::<Counters>::default();
        for aead in [Aead::Aes128Gcm, Aead::ChaCha20Poly1305] {
            let mut secrets = InitialSalt::keyed(&[1; 32]).secrets(b"12345678");
            secrets.aead = aead;
            let client = keys(&secrets, Side::Client, &counters);
            let server = keys(&secrets, Side::Server, &counters);

            let (plain, pn_offset) = long_packet();
            let mut packet = plain.clone();
            client.packet.local.encrypt(7, &mut packet, 8);
            client.header.local.encrypt(pn_offset, &mut packet);
            assert_ne!(packet[8..48], plain[8..48]);

            let open = |keys: &Keys, mut packet: Vec<u8>| {
                keys.header.remote.decrypt(pn_offset, &mut packet);
                let header = packet[..8].to_vec();
                let mut payload = BytesMut::from(&packet[8..]);
                let result = keys.packet.remote.decrypt(7, &header, &mut payload);
                result.is_ok().then(|| [header, payload.to_vec()].concat())
            };
            assert_eq!(open(&server, packet.clone()).unwrap(), plain[..48]);
            assert_eq!(
                open(&client, packet.clone()),
                None,
                "directions have separate keys"
            );
            for bit in 0..packet.len() * 8 {
                let mut altered = packet.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                let opened = open(&server, altered);
                assert_eq!(opened, None, "bit {bit}");
            }
        }
    }
}
