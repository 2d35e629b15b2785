//! How a log is kept.

use std::num::NonZeroU64;
use std::time::Duration;

use super::error::LogError;
use super::record::MAX_RECORD;

/// Smallest and largest segment.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
/// Most bytes of one batch, which lies in one segment and is copied once in memory.
pub(super) const MAX_BATCH: usize = MAX_RECORD + (1 << 20);

/// When an append is on disk, chosen anew for each one. Whatever is chosen, records become visible
/// in order, and one that is on disk has all before it there too.
///
/// | | after `kill -9` | after power loss |
/// |---|---|---|
/// | `Never` | all acknowledged records are there | the last ones may be gone: those since the last sync of any kind, at most about 4 MiB and what the disk is behind |
/// | `Every(n)` | all | at most the last `n - 1` acknowledged ones are gone |
/// | `Within(t)` | all | those of the last `t` and of the sync that was under way may be gone |
/// | `Each` | all | all |
///
/// Records that are gone are the newest ones, without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Waits for nothing: the operating system has the record once the append returns.
    Never,
    /// Waits for the disk when this append makes it `n` records that are not there.
    Every(NonZeroU64),
    /// Does not wait. The log syncs in the background, this long after the append at the latest.
    Within(Duration),
    /// Waits for the disk. Appends that wait together share one sync.
    #[default]
    Each,
}

/// What a log keeps. Whole segments go, oldest first, and never the one that is written to; so a
/// little more is kept than the limits say. Without limits all is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// The newest so many records are kept at least; older segments go.
    pub records: Option<u64>,
    /// The newest so many bytes of segments are kept at least; older segments go. So a log takes at
    /// most this and one segment.
    pub bytes: Option<u64>,
    /// Segments go once their newest record is older than this.
    pub age: Option<Duration>,
}

/// How a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment is closed before it gets larger than this many bytes (4 KiB to 1 GiB; default
    /// 64 MiB), except that a batch is never split. Retention drops whole segments, so that smaller
    /// ones follow its limits more closely.
    pub segment_bytes: u64,
    /// What is kept. Default: all.
    pub retention: Retention,
    /// The number of the first record of a new log (default 0). A follower starts where its leader's
    /// log starts.
    pub first_seq: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            retention: Retention::default(),
            first_seq: 0,
        }
    }
}

impl LogConfig {
    pub(super) fn check(&self) -> Result<(), LogError> {
        if !SEGMENT_BYTES.contains(&self.segment_bytes) {
            return Err(LogError::Config("segments have 4 KiB to 1 GiB"));
        }
        Ok(())
    }
}
