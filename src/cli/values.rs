//! Values on the command line: durations, processor shares, folders, variables.

use std::time::Duration;

use meshwork_proto::ByteSize;
use meshwork_proto::kernel::Mount;
use meshwork_proto::slots::GpuRequest;

/// `90s`, `30m`, `8h`, `7d`; also several after another: `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("`{text}` is no duration: write 90s, 30m, 8h or 7d");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(fail());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fail)?;
        let number: u64 = rest[..digits].parse().map_err(|_| fail())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let part = match &rest[..unit] {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3_600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        };
        total = part.and_then(|p| total.checked_add(p)).ok_or_else(fail)?;
        rest = &rest[unit..];
    }
    Ok(total)
}

/// A share of processors in thousandths of a hardware thread: `2`, `0.5`, `1.25`.
pub(crate) fn cpu_millis(text: &str) -> Result<u64, String> {
    let fail = || format!("`{text}` is no number of processors: write 2, 0.5 or 1.25");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || fraction.len() > 3
        || !digits(whole)
        || !digits(fraction)
        || text.ends_with('.')
    {
        return Err(fail());
    }
    let whole: u64 = whole.parse().map_err(|_| fail())?;
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| fail())?;
    whole
        .checked_mul(1000)
        .and_then(|w| w.checked_add(fraction))
        .filter(|m| *m > 0)
        .ok_or_else(fail)
}

/// An amount of memory with its unit: `512MiB`. A bare number would be bytes, which nobody means.
pub(crate) fn memory(text: &str) -> Result<ByteSize, String> {
    if is_bare(text) {
        return Err(unitless(text));
    }
    text.parse::<ByteSize>().map_err(|e| e.to_string())
}

/// GPUs wanted; amounts of memory in it have a unit, only the count has none.
pub(crate) fn gpus(text: &str) -> Result<GpuRequest, String> {
    let bare = text
        .split(':')
        .filter(|part| part.trim().parse::<u32>().is_err())
        .flat_map(|part| part.split(".."))
        .find(|size| is_bare(size));
    match bare {
        Some(size) => Err(unitless(size)),
        None => text.parse(),
    }
}

fn is_bare(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn unitless(text: &str) -> String {
    format!("`{text}` is no amount of memory; write a unit: 40GB")
}

/// `NAME=VALUE`, or `NAME` for the value that it has here.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("`{text}` has no name before the `=`")),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("`{text}` is not set here: write {text}=VALUE")),
        },
    }
}

/// `NAME:/path[:ro]`.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (volume, target, read_only) = match parts[..] {
        [volume, target] | [volume, target, "rw"] => (volume, target, false),
        [volume, target, "ro"] => (volume, target, true),
        _ => {
            return Err(format!(
                "`{text}` is no folder: write NAME:/path or NAME:/path:ro"
            ));
        }
    };
    if volume.contains('/') {
        return Err(format!(
            "`{volume}` is a path; folders have names, and live on the node that runs the kernel"
        ));
    }
    Ok(Mount {
        volume: volume.to_owned(),
        target: target.to_owned(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in [
            "",
            "h",
            "1",
            "1w",
            "1h-",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(cpu_millis("2"), Ok(2_000));
        assert_eq!(cpu_millis("0.5"), Ok(500));
        for text in [
            "",
            "0",
            ".5",
            "1.",
            "1.2345",
            "-1",
            "1e3",
            "18446744073709551615",
        ] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_has_a_unit() {
        assert_eq!(memory("512MiB"), Ok(ByteSize(512 << 20)));
        for text in ["4096", "1.5", " 7 ", "", "GB"] {
            assert!(memory(text).is_err(), "{text}");
        }
        for text in ["2", "40GB..", "24GB..48GB:2", "nvidia:A100:..80GB"] {
            assert!(gpus(text).is_ok(), "{text}");
        }
        for text in ["40..80", "40GB..80", "..80:2", "A100:1.5", "99999999999"] {
            assert!(gpus(text).unwrap_err().contains("write a unit"), "{text}");
        }
    }

    #[test]
    fn folders_and_variables() {
        assert!(mount("code:/home/work:ro").unwrap().read_only);
        assert!(mount("code").is_err() && mount("/etc:/x").is_err() && mount("a:/b:c").is_err());
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=x").is_err() && variable("SURELY_NOT_SET").is_err());
    }
}
