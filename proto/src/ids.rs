//! Identifiers of sessions and kernels: 128 bits, chosen by the user's client, so that a repeated
//! request is recognized wherever it arrives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of the short form of an identifier, after its prefix.
const SHORT: usize = 6;

/// Text that is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind} id: expected `{prefix}` and 26 characters of a-z, 2-7")]
pub struct IdError {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id with these bytes (random ones, drawn by the caller).
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Prefix and first characters, for tables.
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate($prefix.len() + SHORT);
                text
            }

            /// Whether the printed form, with or without its prefix, starts with `text`.
            pub fn matches_prefix(&self, text: &str) -> bool {
                let text = text.strip_prefix($prefix).unwrap_or(text);
                !text.is_empty() && self.to_string()[$prefix.len()..].starts_with(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = data_encoding::BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
                write!(f, "{}{text}", $prefix)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let fail = || IdError { text: text.to_owned(), kind: $kind, prefix: $prefix };
                let body = text.strip_prefix($prefix).ok_or_else(fail)?;
                if body.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(fail());
                }
                let bytes = data_encoding::BASE32_NOPAD
                    .decode(body.to_ascii_uppercase().as_bytes())
                    .map_err(|_| fail())?;
                bytes.try_into().map(Self).map_err(|_| fail())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    self.0.serialize(s)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(d).map(Self)
                }
            }
        }
    };
}

id!(
    /// What a user asks the manager for: one or more kernels. Printed as `s-…`.
    SessionId, "s-", "session"
);
id!(
    /// One container that an agent runs. Printed as `k-…`.
    KernelId, "k-", "kernel"
);

impl SessionId {
    /// The id of this session's kernel number `index`. It follows from the session id, so that a
    /// manager cannot start one order's kernel twice under two names.
    pub fn kernel(&self, index: u8) -> KernelId {
        let mut bytes = self.0;
        bytes[15] ^= index.wrapping_add(1);
        KernelId(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses() {
        let id = SessionId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        assert!(id.matches_prefix(&id.short()));
        assert!(!id.matches_prefix("s-"));
        assert!(id.to_string().parse::<KernelId>().is_err());
        assert_ne!(id.kernel(0), id.kernel(1));
    }
}
