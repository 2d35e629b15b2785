//! Text forms that people copy and paste: lower-case base32, with a checksum where a typing error
//! must be told from a forgery.

use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// RFC 4648 §6 base32 in lower case, without padding. Strict: the unused bits of the last character
/// must be zero, so that each byte string has exactly one text.
pub(crate) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification
        .encoding()
        .expect("32 distinct symbols make an encoding")
});

/// Length of the checksum in bytes. It finds slips of the hand (one in 2³² stays unseen); forgery
/// is the signatures' business.
const CHECKSUM_LEN: usize = 4;

/// Why a checksummed text did not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextError {
    /// It does not start with the prefix.
    Prefix,
    /// It is longer than allowed.
    TooLong,
    /// A character at this index (0-based, in bytes) does not belong to base32.
    Symbol(usize),
    /// The checksum differs: something was mistyped or cut off.
    Checksum,
}

/// `prefix` and the base32 of `body ‖ checksum`.
pub(crate) fn to_text(prefix: &str, body: &[u8]) -> String {
    // A ticket's body is secret: no freed copy of it stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + CHECKSUM_LEN));
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&checksum(prefix, body));
    let mut text = prefix.to_owned();
    BASE32.encode_append(&bytes, &mut text);
    text
}

/// The body of what [`to_text`] wrote, of at most `max_chars` characters. White space around it is
/// forgiven, as copying from a terminal brings it along.
pub(crate) fn from_text(prefix: &str, text: &str, max_chars: usize) -> Result<Vec<u8>, TextError> {
    let text = text.trim();
    if text.len() > max_chars {
        return Err(TextError::TooLong);
    }
    let encoded = text.strip_prefix(prefix).ok_or(TextError::Prefix)?;
    let mut bytes = BASE32
        .decode(encoded.as_bytes())
        .map_err(|e| match e.kind {
            data_encoding::DecodeKind::Symbol => TextError::Symbol(prefix.len() + e.position),
            // A character lost or added, or stray bits in the last one.
            _ => TextError::Checksum,
        })?;
    let body_len = bytes
        .len()
        .checked_sub(CHECKSUM_LEN)
        .ok_or(TextError::Checksum)?;
    let (body, sum) = bytes.split_at(body_len);
    if checksum(prefix, body) != sum {
        return Err(TextError::Checksum);
    }
    bytes.truncate(body_len);
    Ok(bytes)
}

/// The first bytes of SHA-256 over prefix and body, so that a text with another prefix fails too.
fn checksum(prefix: &str, body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = Sha256::new()
        .chain_update(prefix)
        .chain_update(body)
        .finalize();
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&digest[..CHECKSUM_LEN]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_white_space() {
        let text = to_text("t1", b"hello");
        assert_eq!(
            from_text("t1", &format!(" {text}\n"), 99).unwrap(),
            b"hello"
        );
    }

    #[test]
    fn each_error_is_reached() {
        let text = to_text("t1", b"hello");
        assert_eq!(from_text("t2", &text, 99), Err(TextError::Prefix));
        assert_eq!(from_text("t1", &text, 5), Err(TextError::TooLong));
        assert_eq!(from_text("t1", "t1aaa0", 99), Err(TextError::Symbol(5)));
        assert_eq!(from_text("t1", "t1", 99), Err(TextError::Checksum));
        let cut = &text[..text.len() - 1];
        assert_eq!(from_text("t1", cut, 99), Err(TextError::Checksum));
    }
}
