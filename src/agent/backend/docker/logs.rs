//! A container's output, with the time of every line.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::{Buf, Bytes};
use futures_util::{StreamExt, future};
use meshwork_proto::agent::Output;
use meshwork_proto::service::BoxStream;

use super::blame;
use crate::backend::{BackendError, Line, LogQuery};

pub(super) fn logs(
    docker: &Docker,
    id: &str,
    query: LogQuery,
) -> BoxStream<Result<Line, BackendError>> {
    let options = LogsOptionsBuilder::default()
        .follow(query.follow)
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .since(i32::try_from(query.since).unwrap_or(i32::MAX))
        .tail(
            &query
                .tail
                .map_or_else(|| "all".to_owned(), |n| n.to_string()),
        )
        .build();
    let lines = docker.logs(id, Some(options)).filter_map(|piece| {
        future::ready(match piece {
            Ok(piece) => split(piece).map(|(output, data)| Ok(timed(output, data))),
            Err(error) => Some(Err(blame(error))),
        })
    });
    Box::pin(lines)
}

/// Which descriptor, and the bytes. Input is no output.
pub(super) fn split(piece: LogOutput) -> Option<(Output, Bytes)> {
    match piece {
        LogOutput::StdOut { message } | LogOutput::Console { message } => {
            Some((Output::Stdout, message))
        }
        LogOutput::StdErr { message } => Some((Output::Stderr, message)),
        LogOutput::StdIn { .. } => None,
    }
}

/// Takes Docker's timestamp off the front of a line. A line without one keeps its bytes.
fn timed(output: Output, mut data: Bytes) -> Line {
    let mut at = 0;
    if let Some(stamp) = data.get(..STAMP)
        && data.get(STAMP) == Some(&b' ')
        && let Some(nanos) = std::str::from_utf8(stamp).ok().and_then(nanos)
    {
        at = nanos;
        data.advance(STAMP + 1);
    }
    Line { output, data, at }
}

/// Length of `2026-11-20T18:28:05.317845467Z`, the one form in which Docker writes them.
const STAMP: usize = 30;

/// Nanoseconds since 1970 of a timestamp of Docker's.
fn nanos(stamp: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| stamp.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1970..=2500).contains(&year) || !(1..=12).contains(&month) || !stamp.ends_with('Z') {
        return None;
    }
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1_000_000_000 + number(20..29)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, with years that start in March so
/// that the leap day comes last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_come_off() {
        let line = timed(
            Output::Stdout,
            Bytes::from("2026-11-20T18:28:05.317845467Z hi\n"),
        );
        assert_eq!(line.data, "hi\n");
        assert_eq!(line.at, 1_795_199_285_317_845_467);
        for odd in [
            "hi\n",
            "",
            "2026-11-20T18:28:05.317845467Zhi",
            &"x".repeat(40),
            "9999-99-99T99:99:99.999999999Z x",
        ] {
            let line = timed(Output::Stderr, Bytes::from(odd.to_owned()));
            assert_eq!((line.data, line.at), (Bytes::from(odd.to_owned()), 0));
        }
    }
}
