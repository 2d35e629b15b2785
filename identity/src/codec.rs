//! Postcard with the strictness that signed and stored things need: one encoding per value, no
//! trailing bytes, and sizes checked before anything is allocated for them.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error, SeqAccess, Visitor},
};

/// The bytes are not the one encoding of a value of the wanted type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes do not decode")]
pub struct DecodeError;

/// Encodes. Cannot fail for the types of this crate: they have no maps of unknown length and no
/// serializers of their own that refuse.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data always encodes into memory")
}

/// Decodes all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError),
    }
}

/// Decodes all of `bytes` and refuses every encoding but the one that [`encode`] makes (postcard
/// itself accepts longer forms of its integers), so that equal values have equal bytes.
pub(crate) fn decode_canonical<T>(bytes: &[u8]) -> Result<T, DecodeError>
where
    T: DeserializeOwned + Serialize,
{
    let value: T = decode(bytes)?;
    if encode(&value) == bytes {
        Ok(value)
    } else {
        Err(DecodeError)
    }
}

/// For `#[serde(deserialize_with)]`: a list of at most `MAX` items. A longer one is refused at its
/// length, before memory is set aside for it or an item is decoded.
pub fn bounded_vec<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(BoundedVec::<T, MAX>(PhantomData))
}

struct BoundedVec<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVec<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let announced = seq.size_hint().unwrap_or(0);
        if announced > MAX {
            return Err(A::Error::invalid_length(announced, &self));
        }
        let mut items = Vec::with_capacity(announced);
        while let Some(item) = seq.next_element()? {
            if items.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            items.push(item);
        }
        Ok(items)
    }
}

/// For `#[serde(deserialize_with)]`: at most `MAX` bytes, taken in one copy where the format knows
/// byte strings.
pub(crate) fn bounded_bytes<'de, D, const MAX: usize>(deserializer: D) -> Result<Vec<u8>, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_bytes(BoundedBytes::<MAX>)
}

struct BoundedBytes<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for BoundedBytes<MAX> {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        if bytes.len() > MAX {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(bytes.to_vec())
    }

    /// JSON has no byte strings: there they are lists of numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<u8>, A::Error> {
        BoundedVec::<u8, MAX>(PhantomData).visit_seq(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Bounded {
        #[serde(deserialize_with = "bounded_vec::<_, _, 2>")]
        items: Vec<u16>,
        #[serde(deserialize_with = "bounded_bytes::<_, 3>")]
        bytes: Vec<u8>,
    }

    fn bounded(items: usize, bytes: usize) -> Bounded {
        Bounded {
            items: vec![300; items],
            bytes: vec![7; bytes],
        }
    }

    #[test]
    fn bounds_hold_in_both_formats() {
        for (value, fits) in [
            (bounded(2, 3), true),
            (bounded(3, 3), false),
            (bounded(2, 4), false),
        ] {
            assert_eq!(decode_canonical::<Bounded>(&encode(&value)).is_ok(), fits);
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<Bounded>(&json).is_ok(), fits);
        }
    }

    #[test]
    fn only_the_one_encoding_decodes() {
        assert_eq!(decode_canonical::<u16>(&[0x05]), Ok(5));
        assert_eq!(decode_canonical::<u16>(&[0x85, 0x00]), Err(DecodeError));
        assert_eq!(decode::<u16>(&[0x05, 0x00]), Err(DecodeError));
        assert_eq!(decode::<u16>(&[]), Err(DecodeError));
    }
}
