//! The real file system.

use std::any::Any;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatfs};
use rustix::io::Errno;

use super::mapped::Mapped;
use super::{File, Files, Listed, LockError};
use crate::log::sync::lock;

/// Names the process that has the log open, and is locked by it.
const LOCK: &str = "lock";
/// Writes of this many bytes and more are cheaper by system call than through the mapping, which
/// takes a page fault for each 4 KiB.
const LARGE_WRITE: usize = 8 << 10;
/// File systems whose `fallocate` reserves the very blocks that are written later, so that a store
/// into the mapping cannot meet a full disk: ext2 to ext4, XFS, tmpfs. Elsewhere (btrfs and ZFS copy
/// on write, overlayfs hides what is below, network file systems may fail at any time) all is written
/// by system calls.
const MAPPABLE: [u64; 3] = [0xEF53, 0x5846_5342, 0x0102_1994];

/// A directory of the file system.
#[derive(Debug)]
pub struct DiskFiles {
    dir: PathBuf,
    handle: fs::File,
    map: bool,
    read_only: bool,
}

impl DiskFiles {
    /// Keeps files in `dir`, which is made (readable by its owner only) when it is missing.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        make_dir(&dir)?;
        Self::existing(dir)
    }

    /// The files in `dir`, which must be there.
    pub fn existing(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        let handle = fs::File::open(&dir)?;
        #[expect(clippy::cast_sign_loss, reason = "a magic number")]
        let map = MAPPABLE.contains(&(fstatfs(&handle)?.f_type as u64));
        Ok(Self {
            dir,
            handle,
            map,
            read_only: false,
        })
    }

    /// Writes by system calls only, also where mapping would be safe.
    #[must_use]
    pub fn unmapped(mut self) -> Self {
        self.map = false;
        self
    }

    /// The files in `dir`, which must be there, for reading alone: whoever may read them can, also
    /// where nothing can be written.
    pub fn for_reading(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let mut files = Self::existing(dir)?.unmapped();
        files.read_only = true;
        Ok(files)
    }

    /// The process that holds the lock, if any does. Takes nothing, so that nobody is kept from it.
    pub fn holder(&self) -> io::Result<Option<u32>> {
        let file = match fs::File::open(self.dir.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = format!(":{}", file.metadata()?.ino());
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:131074 0 EOF`
        let locks = fs::read_to_string("/proc/locks")?;
        let held = locks.lines().any(|lock| {
            let mut words = lock.split_whitespace().skip(1);
            words.next() == Some("FLOCK") && words.nth(3).is_some_and(|on| on.ends_with(&inode))
        });
        Ok(held.then(|| holder(&file)).flatten())
    }

    fn file(&self, name: &str, options: &mut OpenOptions) -> io::Result<DiskFile> {
        let file = options
            .read(true)
            .write(!self.read_only)
            .open(self.dir.join(name))?;
        let len = AtomicU64::new(file.metadata()?.len());
        Ok(DiskFile {
            file,
            len,
            map: self.map.then(Mutex::default),
        })
    }
}

impl Files for DiskFiles {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock(&self) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).mode(0o600);
        let file = self.file(LOCK, &mut options).map_err(LockError::Io)?.file;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held { pid: holder(&file) }),
            Err(error) => return Err(LockError::Io(error.into())),
        }
        let pid = std::process::id().to_string();
        file.set_len(0)
            .and_then(|()| file.write_all_at(pid.as_bytes(), 0))
            .map_err(LockError::Io)?;
        Ok(Box::new(file))
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // What is not UTF-8 is not ours.
            if let Ok(name) = entry.file_name().into_string() {
                listed.push(Listed {
                    name,
                    len: entry.metadata()?.size(),
                });
            }
        }
        Ok(listed)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        let file = self.file(name, options.create_new(true).mode(0o600))?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(self.file(name, &mut OpenOptions::new())?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

#[derive(Debug)]
struct DiskFile {
    file: fs::File,
    /// As far as `allocate` and `set_len` know: stores into the mapping stay below.
    len: AtomicU64,
    /// None where the file system is not fit for it.
    map: Option<Mutex<Option<Mapped>>>,
}

impl DiskFile {
    /// Stores through the mapping. False: this write is not for the mapping.
    fn store(&self, bytes: &[u8], offset: u64) -> bool {
        let Some(map) = &self.map else { return false };
        let len = self.len.load(Ordering::Acquire);
        if bytes.len() >= LARGE_WRITE || offset + bytes.len() as u64 > len {
            return false;
        }
        let mut map = lock(map);
        if map
            .as_ref()
            .is_none_or(|map| !map.covers(offset, bytes.len()))
        {
            *map = Mapped::new(&self.file, offset);
        }
        map.as_mut()
            .is_some_and(|map| map.store(bytes, offset, len))
    }
}

impl File for DiskFile {
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => break,
                Ok(n) => {
                    (read, offset) = (read + n, offset + n as u64);
                    buf = &mut buf[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.store(bytes, offset) {
            return Ok(());
        }
        self.file.write_all_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let had = self.len.load(Ordering::Acquire);
        if len <= had {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::empty(), had, len - had) {
            Ok(()) => {}
            // Such a file system is not one that we map.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(len)?,
            Err(error) => return Err(error.into()),
        }
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // No store may be under way into what is cut off.
        let map = self.map.as_ref().map(lock);
        self.len.fetch_min(len, Ordering::AcqRel);
        self.file.set_len(len)?;
        self.len.store(len, Ordering::Release);
        drop(map);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(map) = self.map.as_ref().map(lock).as_deref_mut() {
            map.iter_mut().for_each(Mapped::forget_ready);
        }
        Ok(())
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

fn holder(file: &fs::File) -> Option<u32> {
    let mut text = [0; 16];
    let n = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..n]).ok()?.trim().parse().ok()
}
