//! What can go wrong with a log, and whose doing it is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why an operation on a log failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Another process (or another part of this one) has the log open.
    #[error("the log in {} is in use by {}: stop it, or use another directory", dir.display(), holder(*pid))]
    InUse {
        /// Where the log is.
        dir: PathBuf,
        /// Who has it, where that could be read.
        pid: Option<u32>,
    },
    /// The configuration cannot work.
    #[error("log configuration: {0}")]
    Config(&'static str),
    /// A record or a batch is larger than a log takes.
    #[error("{bytes} bytes at once are too large for a log: at most {limit} are taken; split them")]
    TooLarge {
        /// The size asked for.
        bytes: usize,
        /// What is taken.
        limit: usize,
    },
    /// The disk has no room. Nothing of the append is visible; try again when there is room.
    #[error("no room to append to {file}: free space on its disk, or let the log keep less")]
    Full {
        /// The file that could not grow.
        file: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The system refused something. Nothing of a failed append is visible.
    #[error("{doing} {file} failed")]
    Io {
        /// What was tried, such as `reading`.
        doing: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Writing to disk failed, so that what is there is unknown: Linux reports such a failure once
    /// and forgets what it could not write. The log takes no more records until it is opened anew,
    /// which keeps what is whole. What was appended can still be read.
    #[error("{doing} {file} failed, so that its last records may be lost: open the log anew")]
    Broken {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The record was there, and retention has dropped it since.
    #[error(
        "the log starts at record {first} by now: what was before is dropped; go on from there"
    )]
    Trimmed {
        /// The first record that is left.
        first: u64,
    },
    /// The record is not there yet, and neither is the one before it. A reader that has seen it reads
    /// a log that lost its last records with the power, or another log.
    #[error(
        "the log ends before record {next}, and does not reach {asked}: read it anew from a record that is there"
    )]
    Ahead {
        /// The record that was asked for.
        asked: u64,
        /// The one that comes next in the log.
        next: u64,
    },
    /// Records that were on disk cannot be read any more.
    #[error("{0}")]
    Damaged(Damage),
    /// An append that must come next in order does not.
    #[error("record {expected} comes next in the log, not {got}")]
    OutOfOrder {
        /// The number that comes next.
        expected: u64,
        /// The number that was given.
        got: u64,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

/// Where a log is damaged, and what can be read around it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file} is damaged at byte {offset}: record {seq} cannot be read; all before it can, and {}", after(*.resume))]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it, in bytes from its start.
    pub offset: u64,
    /// The first record that cannot be read.
    pub seq: u64,
    /// The first record after the damage that can be read, if any.
    pub resume: Option<u64>,
}

impl LogError {
    pub(super) fn io(doing: &'static str, file: &str, error: io::Error) -> Self {
        let (file, source) = (file.to_owned(), Arc::new(error));
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { file, source }
            }
            _ => Self::Io {
                doing,
                file,
                source,
            },
        }
    }

    pub(super) fn broken(doing: &'static str, file: &str, error: io::Error) -> Self {
        Self::Broken {
            doing,
            file: file.to_owned(),
            source: Arc::new(error),
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

fn after(resume: Option<u64>) -> String {
    resume.map_or_else(
        || "nothing after it".to_owned(),
        |seq| format!("again from record {seq}"),
    )
}
