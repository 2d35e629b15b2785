//! An append-only log of records on disk, for one writing process.
//!
//! Records get consecutive numbers, lie in segment files with a checksum each (`record`), and can
//! be read and followed from any number that retention has left. Each append says how durable it must
//! be ([`Durability`] tells what survives what); many that wait for the disk share one sync. A crash
//! at any moment loses nothing more, and leaves no half record and no half batch.
//!
//! How it hangs together: [`Log`] appends (`writer`), a thread of its own syncs, closes full segments
//! and drops old ones (`keeper`), readers (`read`, `tail`) read the files, and opening (`recovery`)
//! finds the end and cuts what a crash has torn. Who does not have the log open reads its files
//! alone (`reader`, `inspect`). Below lies [`Files`], the file system.

mod config;
mod error;
mod files;
mod handle;
mod index;
mod inspect;
mod keeper;
mod read;
mod reader;
mod record;
mod recovery;
mod segment;
mod shared;
mod sync;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

pub use config::{Durability, LogConfig, Retention};
pub use error::{Damage, LogError};
pub use files::{DiskFiles, File, Files, Listed, LockError};
pub use handle::{Log, LogInfo};
pub use inspect::{Inspection, SegmentInspection, inspect};
pub use read::{Batch, BatchIter, Records};
pub use reader::{Outline, Reader, outline};
pub use record::{MAX_RECORD, Record, RecordRef};
pub use recovery::Recovered;
pub use tail::{Follow, Scan, Tail};
