//! Postcard, with the checks that hostile input needs: a size bound before decoding, and no bytes
//! left over after it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes from a peer could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The peer sent more than the bound of this type.
    #[error("{len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes received.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes are no value of this type.
    #[error("malformed encoding: {0}")]
    Malformed(String),
    /// The value ended before the bytes did.
    #[error("{0} bytes left over after the value")]
    Trailing(usize),
}

/// Encodes `value`.
///
/// # Panics
/// Never for the types of this crate: postcard fails only on values that do not know their
/// length, and none of ours is such a one.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("wire types know their length")
}

/// Decodes a `T` from exactly `bytes`, which may be at most `max` bytes long.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong {
            len: bytes.len(),
            max,
        });
    }
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::Trailing(rest.len()))
    }
}
