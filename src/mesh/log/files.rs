//! What a log needs of a file system. [`DiskFiles`] gives the real one; tests give one that tears,
//! reorders and loses writes.

mod disk;
mod mapped;

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;

pub use disk::DiskFiles;

/// A directory that belongs to one log.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Where it is, for messages.
    fn dir(&self) -> &Path;
    /// Keeps everybody else from opening the log, until what this returns is dropped.
    fn lock(&self) -> Result<Box<dyn Any + Send + Sync>, LockError>;
    /// The files in it, in any order.
    fn list(&self) -> io::Result<Vec<Listed>>;
    /// A new, empty file. An error when there is one of that name. Whether it is there after a power
    /// loss is open until [`Files::sync`].
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// A file that exists, for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Removes a file. Those who have it open can go on reading it. Whether it is gone after a power
    /// loss is open until [`Files::sync`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Waits until what was created and removed is on disk.
    fn sync(&self) -> io::Result<()>;
}

/// One file of a log.
pub trait File: fmt::Debug + Send + Sync {
    /// Fills `buf` from `offset` on; less only where the file ends. Returns how many bytes.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`, within what [`File::allocate`] made room for, or anything else. Once
    /// this returns, the bytes outlive the process. When it fails, any part of them may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file at least this long, with zeros, and has the disk reserve the room where the
    /// file system can.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or lengthens the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Waits until all that was written, and the length, are on disk.
    fn sync(&self) -> io::Result<()>;
}

/// A file in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// Why a log could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it open.
    Held {
        /// Who, where that could be read.
        pid: Option<u32>,
    },
    /// The system refused.
    Io(io::Error),
}
