//! A place in a bus, as a text to keep and to give back.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::config::MAX_SHARDS;
use super::error::CursorError;

/// First byte of a cursor.
const VERSION: u8 = 1;
/// Longest text that can be a cursor: all shards at the end of time.
const MAX_TEXT: usize = (1 + 8 + MAX_SHARDS * 10 + 4) * 4 / 3 + 1;

/// A place in all shards of one bus. Opaque: print it, keep it, parse it, give it back.
///
/// The same place always has the same text. It is worth something as long as the bus lives; for
/// another bus it is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Cursor {
    pub(super) bus: u64,
    /// Per shard, the sequence number of the next event.
    pub(super) next: Vec<u64>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend(self.bus.to_le_bytes());
        for position in &self.next {
            write_number(&mut bytes, *position);
        }
        bytes.extend(checksum(&bytes));
        f.write_str(&BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        parse(text).ok_or(CursorError::Malformed)
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn parse(text: &str) -> Option<Cursor> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    if checksum(body) != *sum {
        return None;
    }
    let body = body.strip_prefix(&[VERSION])?;
    let (bus, mut rest) = body.split_first_chunk::<8>()?;
    let mut next = Vec::new();
    while !rest.is_empty() && next.len() < MAX_SHARDS {
        let (position, after) = read_number(rest)?;
        next.push(position);
        rest = after;
    }
    rest.is_empty().then(|| Cursor {
        bus: u64::from_le_bytes(*bus),
        next,
    })
}

/// Little-endian base 128, as in LEB128.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn read_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        let low = u64::from(byte & 0x7f);
        let shifted = low << (7 * place);
        if shifted >> (7 * place) != low {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[place + 1..]));
        }
    }
    None
}

/// Against damage and typing errors, not against forgers: FNV-1a, folded.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let bytes = hash.to_le_bytes();
    std::array::from_fn(|at| bytes[at] ^ bytes[at + 4])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_has_one_text() {
        let cursor = Cursor {
            bus: 7,
            next: vec![0, 300, u64::MAX],
        };
        assert_text(&cursor, "AQcAAAAAAAAAAKwC____________ARXBDmU");
    }

    fn assert_text(cursor: &Cursor, text: &str) {
        assert_eq!(cursor.to_string(), text);
        assert_eq!(&text.parse::<Cursor>().unwrap(), cursor);
    }

    proptest! {
        #[test]
        fn cursors_survive_being_text(
            bus in any::<u64>(),
            next in prop::collection::vec(any::<u64>(), 0..=MAX_SHARDS),
        ) {
            let cursor = Cursor { bus, next };
            let text = cursor.to_string();
            prop_assert!(text.len() <= MAX_TEXT);
            prop_assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
        }

        #[test]
        fn a_damaged_cursor_is_refused(
            next in prop::collection::vec(any::<u64>(), 1..4),
            at in any::<prop::sample::Index>(),
            put in "[A-Za-z0-9_=-]",
        ) {
            let text = Cursor { bus: 1, next }.to_string();
            let at = at.index(text.len());
            let damaged = format!("{}{put}{}", &text[..at], &text[at + 1..]);
            prop_assume!(damaged != text);
            prop_assert_eq!(damaged.parse::<Cursor>(), Err(CursorError::Malformed));
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error(text in ".{0,200}") {
            let _ = text.parse::<Cursor>();
        }
    }
}
