//! Secrets in files: identities, and with [`SecretFile`] whatever else others must not read.
//!
//! A secret file belongs to the user who runs the program and is readable by no one else; anything
//! laxer is refused with the command that repairs it, as the secret may have leaked already. Files
//! appear whole or not at all, also when the power goes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use zeroize::Zeroizing;

use crate::{Identity, text::BASE32};

/// How a key file begins; the base32 of the seed follows.
const KEY_PREFIX: &str = "meshwork-key-v1 ";
/// Most bytes that are read from a key file.
const MAX_KEY_FILE: usize = 256;
/// Permission bits of group and others.
const FOREIGN_BITS: u32 = 0o077;

/// Why a secret was not read or written. Every text names the file and, where there is one, the
/// command that helps.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others have some access to the file.
    #[error(
        "{0} can be accessed by other users (mode {mode:04o}); if they may have read it, make a \
         new one, else run: chmod 600 {0}",
        path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to someone else.
    #[error(
        "{0} belongs to user {owner}, but this program runs as user {user}; run it as that user, \
         or: chown {user} {0}",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// The uid that owns it.
        owner: u32,
        /// The effective uid of this process.
        user: u32,
    },
    /// A link, a folder, a pipe: not a plain file.
    #[error("{} is not a regular file; put the file itself there", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The file is larger than what it should hold.
    #[error("{} is larger than {max} bytes; it is not what it should be", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        max: usize,
    },
    /// The file holds no key.
    #[error(
        "{} does not hold a meshwork key; restore it from a copy, or move it away to start as a \
         new node",
        path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
}

/// Loads the identity in `path`.
pub fn load_identity(path: &Path) -> Result<Identity, KeyStoreError> {
    let text = SecretFile::new(path).read(MAX_KEY_FILE)?;
    let seed = parse_key(&text).ok_or_else(|| KeyStoreError::NotAKey {
        path: path.to_owned(),
    })?;
    Ok(Identity::from_seed(&seed))
}

/// Loads the identity in `path`, or makes the one of `seed_if_new` there. Of several programs that
/// make one at the same time, the first wins and all get its identity.
pub fn load_or_create_identity(
    path: &Path,
    seed_if_new: &[u8; 32],
) -> Result<Identity, KeyStoreError> {
    let file = SecretFile::new(path);
    if !file.exists()? {
        file.create(print_key(seed_if_new).as_bytes())?;
    }
    load_identity(path)
}

fn print_key(seed: &[u8; 32]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(BASE32.encode(seed));
    Zeroizing::new(format!("{KEY_PREFIX}{}\n", *encoded))
}

fn parse_key(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let encoded = text.strip_prefix(KEY_PREFIX.as_bytes())?;
    let encoded = encoded.strip_suffix(b"\n").unwrap_or(encoded);
    let bytes = Zeroizing::new(BASE32.decode(encoded).ok()?);
    let mut seed = Zeroizing::new([0; 32]);
    if bytes.len() != seed.len() {
        return None;
    }
    seed.copy_from_slice(&bytes);
    Some(seed)
}

/// A file that only its owner may read.
#[derive(Debug, Clone, Copy)]
pub struct SecretFile<'a> {
    path: &'a Path,
}

impl<'a> SecretFile<'a> {
    /// Names the file; touches nothing.
    pub fn new(path: &'a Path) -> Self {
        Self { path }
    }

    /// Whether anything has this name, be it a broken link.
    pub fn exists(&self) -> Result<bool, KeyStoreError> {
        match fs::symlink_metadata(self.path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.io("look at", e)),
        }
    }

    /// Its content of at most `max` bytes, once type, owner and permissions are found in order.
    pub fn read(&self, max: usize) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        let named = fs::symlink_metadata(self.path).map_err(|e| self.io("look at", e))?;
        if !named.is_file() {
            return Err(self.not_a_file());
        }
        let file = File::open(self.path).map_err(|e| self.io("open", e))?;
        let opened = file.metadata().map_err(|e| self.io("look at", e))?;
        // The name may have been turned into a link between the two calls.
        if (named.dev(), named.ino()) != (opened.dev(), opened.ino()) {
            return Err(self.not_a_file());
        }
        self.check_access(&opened)?;
        // One allocation of the full size, so that no freed copy of the secret stays behind.
        let mut content = Zeroizing::new(Vec::with_capacity(max + 1));
        file.take(max as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|e| self.io("read", e))?;
        if content.len() > max {
            let path = self.path.to_owned();
            return Err(KeyStoreError::TooLarge { path, max });
        }
        Ok(content)
    }

    /// Writes a new file, its folders too. False, and nothing changed, when one is there already.
    pub fn create(&self, content: &[u8]) -> Result<bool, KeyStoreError> {
        let temporary = self.write_temporary(content)?;
        // Unlike a rename, a link never replaces what someone else put there meanwhile.
        let linked = fs::hard_link(&temporary, self.path);
        fs::remove_file(&temporary).map_err(|e| self.io("clean up beside", e))?;
        match linked {
            Ok(()) => self.sync_folder().map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(self.io("create", e)),
        }
    }

    /// Writes the file, in place of one that may be there.
    pub fn replace(&self, content: &[u8]) -> Result<(), KeyStoreError> {
        let temporary = self.write_temporary(content)?;
        fs::rename(&temporary, self.path).map_err(|e| self.io("replace", e))?;
        self.sync_folder()
    }

    fn write_temporary(&self, content: &[u8]) -> Result<PathBuf, KeyStoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = self.folder();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| self.io("make the folder of", e))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".secret-{}-{count}.tmp", std::process::id());
        let temporary = folder.join(name);
        // Left by a process of the same number that was killed.
        let _ = fs::remove_file(&temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            });
        match written {
            Ok(()) => Ok(temporary),
            Err(e) => {
                let _ = fs::remove_file(&temporary);
                Err(self.io("write", e))
            }
        }
    }

    fn check_access(&self, metadata: &fs::Metadata) -> Result<(), KeyStoreError> {
        let path = || self.path.to_owned();
        let (user, owner) = (effective_user()?, metadata.uid());
        if owner != user {
            let path = path();
            return Err(KeyStoreError::Owner { path, owner, user });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & FOREIGN_BITS != 0 {
            return Err(KeyStoreError::Permissions { path: path(), mode });
        }
        Ok(())
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Makes the new name last.
    fn sync_folder(&self) -> Result<(), KeyStoreError> {
        File::open(self.folder())
            .and_then(|folder| folder.sync_all())
            .map_err(|e| self.io("sync the folder of", e))
    }

    fn not_a_file(&self) -> KeyStoreError {
        KeyStoreError::NotAFile {
            path: self.path.to_owned(),
        }
    }

    fn io(&self, action: &'static str, source: io::Error) -> KeyStoreError {
        KeyStoreError::Io {
            action,
            path: self.path.to_owned(),
            source,
        }
    }
}

/// The effective uid, from the kernel's own account of this process: the standard library has no
/// call for it, and the owner of `/proc/self` is root for a process that may not be dumped.
fn effective_user() -> Result<u32, KeyStoreError> {
    const STATUS: &str = "/proc/self/status";
    let failed = |source| KeyStoreError::Io {
        action: "learn this process's user from",
        path: STATUS.into(),
        source,
    };
    let status = fs::read_to_string(STATUS).map_err(failed)?;
    // "Uid:\treal\teffective\tsaved\tfilesystem", proc_pid_status(5).
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}
