//! Amounts of memory as people write them: `40GB`, `512MiB`, `1.5TB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Parses `B`, decimal `kB…PB` and binary `KiB…PiB` (letter case is ignored);
/// a bare number is bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ByteSize(pub u64);

/// Text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no size: write a number and a unit, for example 40GB, 512MiB or 1.5TB")]
pub struct ByteSizeError(String);

const UNITS: [(&str, u64); 17] = [
    ("b", 1),
    ("", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("kib", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("mib", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("gib", 1 << 30),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("tib", 1 << 40),
    ("p", 1_000_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
    ("pib", 1 << 50),
];

impl ByteSize {
    /// The factor of a unit (`gb`, `MiB`, …), or nothing when it is none.
    pub fn unit(name: &str) -> Option<u64> {
        let name = name.to_ascii_lowercase();
        UNITS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let fail = || ByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = Self::unit(unit.trim_start()).ok_or_else(fail)?;
        scale(number, factor).map(Self).ok_or_else(fail)
    }
}

/// `number` (digits, at most one point) times `factor`, exactly, rounded down to whole bytes.
pub(crate) fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') || fraction.len() > 15 {
        return None;
    }
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if !fraction.is_empty() {
        let digits = u128::from(fraction.parse::<u64>().ok()?);
        let power = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = digits * u128::from(factor) / power;
        bytes = bytes.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(bytes)
}

impl fmt::Display for ByteSize {
    /// Decimal units with up to one decimal, rounded down: `79.1GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DECIMAL: [(&str, u64); 5] = [
            ("PB", 1_000_000_000_000_000),
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
            ("kB", 1_000),
        ];
        let Some((unit, factor)) = DECIMAL.into_iter().find(|(_, x)| self.0 >= *x) else {
            return write!(f, "{}B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(factor);
        if tenths % 10 == 0 {
            write!(f, "{}{unit}", tenths / 10)
        } else {
            write!(f, "{}.{}{unit}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, bytes) in [
            ("40GB", 40_000_000_000),
            ("40 gb", 40_000_000_000),
            ("512MiB", 512 << 20),
            ("1.5k", 1_500),
            ("0", 0),
            ("7B", 7),
            ("0.1GiB", 107_374_182),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in [
            "",
            "GB",
            "-1GB",
            "1.GB",
            ".5GB",
            "1..2GB",
            "4XB",
            "99999999PB",
            "1e3",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_short() {
        assert_eq!(ByteSize(79_123_456_789).to_string(), "79.1GB");
        assert_eq!(ByteSize(80_000_000_000).to_string(), "80GB");
        assert_eq!(ByteSize(999).to_string(), "999B");
    }
}
