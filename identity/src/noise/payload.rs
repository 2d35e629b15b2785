//! What rides inside the Noise messages: a list of (type u8, length u16 big-endian, value).
//!
//! Unknown types are skipped, so that a later version can add some; duplicates, of unknown types
//! too, and truncations are refused.

use super::HandshakeError;

/// Transport parameters of QUIC, opaque here. Messages 1 and 2.
pub(super) const PARAMETERS: u8 = 1;
/// Application protocols: offered in message 1, the chosen one in message 2. Each with a length u8.
pub(super) const PROTOCOLS: u8 = 2;
/// Packet ciphers by number: offered in message 1 in order of preference, the chosen one in message 2.
pub(super) const AEADS: u8 = 3;
/// The ed25519 public key. Messages 2 and 3. A separate signed key would get a type of its own.
pub(super) const IDENTITY: u8 = 4;

/// The known fields of one payload.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) parameters: Option<&'a [u8]>,
    pub(super) protocols: Option<&'a [u8]>,
    pub(super) aeads: Option<&'a [u8]>,
    pub(super) identity: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(mut bytes: &'a [u8]) -> Result<Self, HandshakeError> {
        let mut fields = Self::default();
        let mut seen = [false; 256];
        while let Some((&kind, rest)) = bytes.split_first() {
            let (length, rest) = rest
                .split_first_chunk()
                .ok_or(HandshakeError::Malformed("truncated field length"))?;
            let (value, rest) = rest
                .split_at_checked(u16::from_be_bytes(*length).into())
                .ok_or(HandshakeError::Malformed("truncated field"))?;
            if std::mem::replace(&mut seen[usize::from(kind)], true) {
                return Err(HandshakeError::Malformed("duplicate field"));
            }
            match kind {
                PARAMETERS => fields.parameters = Some(value),
                PROTOCOLS => fields.protocols = Some(value),
                AEADS => fields.aeads = Some(value),
                IDENTITY => fields.identity = Some(value),
                _ => {}
            }
            bytes = rest;
        }
        Ok(fields)
    }
}

/// Appends one field. The caller's values are far below 64 KiB; the frame limit catches the rest.
pub(super) fn push(out: &mut Vec<u8>, kind: u8, value: &[u8]) -> Result<(), HandshakeError> {
    let length = u16::try_from(value.len())
        .map_err(|_| HandshakeError::Malformed("our own field is too long"))?;
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// Appends a list of names, each with a length u8 before it.
pub(super) fn encode_names<'n>(
    names: impl IntoIterator<Item = &'n [u8]>,
) -> Result<Vec<u8>, HandshakeError> {
    let mut out = Vec::new();
    for name in names {
        let length = u8::try_from(name.len())
            .map_err(|_| HandshakeError::Malformed("our own protocol name is too long"))?;
        out.push(length);
        out.extend_from_slice(name);
    }
    Ok(out)
}

/// Splits what [`encode_names`] joined.
pub(super) fn decode_names(mut bytes: &[u8]) -> Result<Vec<&[u8]>, HandshakeError> {
    let mut names = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (name, rest) = rest
            .split_at_checked(length.into())
            .ok_or(HandshakeError::Malformed("truncated protocol name"))?;
        names.push(name);
        bytes = rest;
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, value) in fields {
            push(&mut out, *kind, value).unwrap();
        }
        out
    }

    #[test]
    fn known_fields_come_back_and_unknown_ones_are_skipped() {
        let bytes = encode(&[
            (200, b"later"),
            (AEADS, &[1, 2]),
            (IDENTITY, b"id"),
            (201, b""),
        ]);
        let fields = Fields::parse(&bytes).unwrap();
        assert_eq!(fields.aeads, Some(&[1u8, 2][..]));
        assert_eq!(fields.identity, Some(&b"id"[..]));
        assert_eq!(fields.parameters, None);
        assert_eq!(fields.protocols, None);
    }

    #[test]
    fn duplicates_are_refused_even_of_unknown_types() {
        for kind in [PARAMETERS, 200] {
            let bytes = encode(&[(kind, b"a"), (kind, b"a")]);
            assert_eq!(
                Fields::parse(&bytes).unwrap_err(),
                HandshakeError::Malformed("duplicate field")
            );
        }
    }

    #[test]
    fn every_truncation_inside_a_field_is_refused() {
        let bytes = encode(&[(PARAMETERS, b"abc"), (PROTOCOLS, b"d")]);
        let boundaries = [0, 6, bytes.len()];
        for end in 0..=bytes.len() {
            assert_eq!(
                Fields::parse(&bytes[..end]).is_ok(),
                boundaries.contains(&end),
                "{end}"
            );
        }
    }

    #[test]
    fn names_round_trip_and_truncations_are_refused() {
        let bytes = encode_names([&b"meshwork/1"[..], b""]).unwrap();
        assert_eq!(decode_names(&bytes).unwrap(), [&b"meshwork/1"[..], b""]);
        assert!(decode_names(&bytes[..5]).is_err());
        assert!(encode_names([&[0; 256][..]]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Fields::parse(&bytes);
            let _ = decode_names(&bytes);
        }
    }
}
