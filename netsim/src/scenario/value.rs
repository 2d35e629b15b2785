//! Values as people write them in scenario files: `"250 ms"`, `"2s..5s"`, `"1 KB"`, `"30 %"`.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// Reads `"250 ms"`, `"2s"`, `"1.5 min"`, `"1h"`, `"1 d"`.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(from)?).map_err(Error::custom)
}

/// As [`duration`], for a field that may be left out.
pub fn maybe_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

/// Reads `"10 ms..40 ms"`, or one duration for both ends.
pub fn duration_range<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<RangeInclusive<Duration>, D::Error> {
    parse_range(&String::deserialize(from)?).map_err(Error::custom)
}

/// As [`duration_range`], for a field that may be left out.
pub fn maybe_duration_range<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<RangeInclusive<Duration>>, D::Error> {
    duration_range(from).map(Some)
}

/// Reads a share from 0 to 1, written `0.3` or `"30 %"`.
pub fn share<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let share = match Number::deserialize(from)? {
        Number::Plain(number) => number,
        Number::Text(text) => {
            let percent = text.trim().strip_suffix('%').map(str::trim);
            let percent = percent.and_then(|number| number.parse::<f64>().ok());
            percent.map(|number| number / 100.0).ok_or_else(|| {
                D::Error::custom(format!("`{text}` is no share: write 0.3 or \"30 %\""))
            })?
        }
    };
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        let problem = format!("the share {share} lies outside 0 to 1 (0 % to 100 %)");
        Err(D::Error::custom(problem))
    }
}

/// Reads bytes, written as a number or `"1 KB"`, `"64 KiB"`, `"10 MB"`.
pub fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    match Number::deserialize(from)? {
        Number::Plain(number) if number >= 0.0 => Ok(number as u64),
        Number::Plain(number) => Err(D::Error::custom(format!("{number} bytes are too few"))),
        Number::Text(text) => {
            let (number, unit) = split(&text).map_err(D::Error::custom)?;
            let factor = byte_unit(unit).ok_or_else(|| {
                D::Error::custom(format!(
                    "`{unit}` is no unit of size: use B, KB, KiB, MB, GB"
                ))
            })?;
            Ok((number * factor) as u64)
        }
    }
}

/// Parses a duration with its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let factor = time_unit(unit).ok_or_else(|| {
        format!("`{text}` lacks a unit of time: write us, ms, s, min, h or d, like \"250 ms\"")
    })?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| {
        format!("`{text}` is no duration: it must be positive and below 500 billion years")
    })
}

/// Writes a duration so that [`parse_duration`] reads the same.
pub fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    for (factor, unit) in [
        (3_600_000_000, "h"),
        (60_000_000, "min"),
        (1_000_000, "s"),
        (1000, "ms"),
    ] {
        if micros >= factor && micros.is_multiple_of(factor) {
            return format!("{} {unit}", micros / factor);
        }
    }
    format!("{micros} us")
}

pub(crate) fn time_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    })
}

pub(crate) fn byte_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return None,
    })
}

/// Splits `"2.5 KB/s"` into 2.5 and `KB/s`.
pub(crate) fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number
        .parse()
        .map_err(|_| format!("`{text}` does not begin with a number, like \"250 ms\""))?;
    Ok((number, unit.trim()))
}

fn parse_range(text: &str) -> Result<RangeInclusive<Duration>, String> {
    let Some((low, high)) = text.split_once("..") else {
        let both = parse_duration(text)?;
        return Ok(both..=both);
    };
    let (low, high) = (parse_duration(low)?, parse_duration(high)?);
    if low > high {
        return Err(format!(
            "`{text}` runs backwards: write the shorter end first"
        ));
    }
    Ok(low..=high)
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a number, or text with a unit like \"30 %\" or \"1 KB\""
)]
enum Number {
    Plain(f64),
    Text(String),
}
