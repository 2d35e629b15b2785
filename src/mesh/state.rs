//! The few things that a node must remember: a small durable map from names to bytes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};

/// Longest key in bytes.
const MAX_KEY: usize = 64;

/// Keeps values by key. Keys are 1 to 64 characters of `a-z`, `0-9`, `-` and `_`.
///
/// The mesh writes seldom (when it starts, joins, invites, revokes, and every thousand
/// announcements), so the calls may block for a disk's time.
pub trait StateStore: Send + Sync + 'static {
    /// What was put last under `key`.
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>>;
    /// Puts `value` under `key`: durably, once this returns; wholly or not at all, whenever the
    /// process or the machine dies.
    fn put(&self, key: &str, value: &[u8]) -> io::Result<()>;
}

/// Keeps values until the process ends: for simulations, and for the command line, which has
/// nothing to remember. Clones of its `Arc` survive a simulated restart.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<BTreeMap<String, Vec<u8>>>);

impl StateStore for MemoryState {
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        check_key(key)?;
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        check_key(key)?;
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(key.to_owned(), value.to_vec());
        Ok(())
    }
}

/// Keeps each value in a file of its own.
#[derive(Debug)]
pub struct FileState {
    dir: PathBuf,
    /// One writer at a time: the temporary file of a key is its own.
    writing: Mutex<()>,
}

impl FileState {
    /// Keeps the files in `dir`, which is made when it is missing.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            writing: Mutex::new(()),
        })
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl StateStore for FileState {
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        check_key(key)?;
        match fs::read(self.dir.join(key)) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        check_key(key)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // No key contains a point, so no key's file is another's temporary one.
        let temporary = self.dir.join(format!("{key}.tmp"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(value)?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join(key))?;
        // The rename itself is durable only with its directory.
        File::open(&self.dir)?.sync_all()
    }
}

/// Runs work that waits for the disk. On a runtime of several threads, its other tasks move to
/// another thread meanwhile; a runtime of one thread waits along.
pub(crate) fn durably<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

fn check_key(key: &str) -> io::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(fits) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{key}` is no state key"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps(store: &dyn StateStore) {
        assert_eq!(store.get("version").unwrap(), None);
        store.put("version", b"1").unwrap();
        store.put("version", b"22").unwrap();
        store.put("book", b"").unwrap();
        assert_eq!(store.get("version").unwrap().unwrap(), b"22");
        assert_eq!(store.get("book").unwrap().unwrap(), b"");
        for key in ["", "../x", "a.tmp", "A", "a/b", &"k".repeat(MAX_KEY + 1)] {
            assert!(store.put(key, b"").is_err(), "{key:?}");
            assert!(store.get(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn memory_keeps() {
        keeps(&MemoryState::default());
    }

    #[test]
    fn files_keep_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        keeps(&FileState::open(&path).unwrap());
        // What a crash left half-written is not seen, and is in nobody's way.
        fs::write(path.join("version.tmp"), b"torn").unwrap();
        let again = FileState::open(&path).unwrap();
        assert_eq!(again.get("version").unwrap().unwrap(), b"22");
        again.put("version", b"333").unwrap();
        assert_eq!(again.get("version").unwrap().unwrap(), b"333");
    }
}
