//! HMAC-SHA256 (RFC 2104) under a key that is prepared once.
//!
//! A handshake takes some hundred of them over a few bytes each, several under the same key. AWS-LC
//! spends twice the time of the hashing on building, copying and clearing its contexts.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of an output.
pub(super) const LEN: usize = 32;
/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// A key, ready for any number of messages. Zeroized on drop.
pub(super) struct Hmac {
    inner: Sha256,
    outer: Sha256,
}

impl Hmac {
    /// `key` has at most a block (64 bytes); ours are secrets of 32 bytes and labels.
    pub(super) fn new(key: &[u8]) -> Self {
        let padded = |pad: u8| {
            let mut block = Zeroizing::new([pad; BLOCK]);
            for (byte, key) in block[..key.len()].iter_mut().zip(key) {
                *byte ^= key;
            }
            Sha256::new_with_prefix(block.as_slice())
        };
        Self {
            inner: padded(0x36),
            outer: padded(0x5c),
        }
    }

    /// The tag of the parts, one after the other.
    pub(super) fn tag(&self, parts: &[&[u8]]) -> Zeroizing<[u8; LEN]> {
        let mut inner = self.inner.clone();
        for part in parts {
            inner.update(part);
        }
        let inner = Zeroizing::new(<[u8; LEN]>::from(inner.finalize()));
        let outer = self.outer.clone().chain_update(*inner);
        Zeroizing::new(outer.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;

    #[test]
    fn equals_that_of_aws_lc() {
        let bytes: Vec<u8> = (0..=255).collect();
        for key in [0, 1, 32, 63, 64] {
            let ours = Hmac::new(&bytes[..key]);
            let theirs = hmac::Key::new(hmac::HMAC_SHA256, &bytes[..key]);
            for message in [0, 1, 55, 64, 256] {
                let (start, end) = bytes[..message].split_at(message / 3);
                assert_eq!(
                    ours.tag(&[start, end]).as_slice(),
                    hmac::sign(&theirs, &bytes[..message]).as_ref(),
                    "{key} and {message} bytes"
                );
            }
        }
    }
}
