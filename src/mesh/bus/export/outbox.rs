//! The file that makes ids outlive the process: who the producer is, and the parcel under way.
//!
//! One file, replaced whole by a rename for each parcel; one byte of it is changed in place when the
//! parcel has arrived. A process killed at any point leaves the old or the new file. With `sync`, so
//! does a machine that loses power; without, the outbox may then be damaged, which is told.
//!
//! ```text
//! "MWOB" 1  arrived:u8  producer:u64  first:u64  count:u32  (length:u32 bytes)×count  sum:u64
//! ```
//! Little-endian; `sum` is over all but itself and `arrived`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::parcel::Parcel;

const MAGIC: &[u8; 5] = b"MWOB\x01";
/// Where `arrived` is.
const ARRIVED_AT: u64 = 5;
/// Bytes before the first event, and after the last.
const FRAME: usize = 6 + 8 + 8 + 4 + 8;

/// An outbox cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// Another exporter has it open.
    #[error("the outbox {} is in use by another exporter: give each its own", .0.display())]
    InUse(PathBuf),
    /// It is not what an exporter wrote.
    #[error(
        "the outbox {} is damaged: move it away, and a new one is begun; the events in it that had \
         not arrived are lost then, and later ones come from a new producer", .0.display()
    )]
    Damaged(PathBuf),
    /// The disk failed.
    #[error("cannot {action} the outbox {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The outbox of one exporter, kept in a file or, without one, in memory only.
#[derive(Debug)]
pub(super) struct Outbox {
    disk: Option<Disk>,
    producer: u64,
    next: u64,
}

#[derive(Debug)]
struct Disk {
    path: PathBuf,
    sync: bool,
    /// The file as it was written last.
    current: Option<File>,
    /// Keeps others out while it is open.
    _lock: File,
}

impl Outbox {
    /// An outbox that ends with the process; its producer is new.
    pub(super) fn in_memory() -> io::Result<Self> {
        Ok(Self {
            disk: None,
            producer: new_producer()?,
            next: 0,
        })
    }

    /// Opens or begins the outbox at `path`. Returns the parcel that had not arrived, if any.
    pub(super) fn open(path: &Path, sync: bool) -> Result<(Self, Option<Parcel>), OutboxError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| OutboxError::Io {
                action,
                path,
                source,
            }
        };
        let lock = lock(path)?;
        let mut disk = Disk {
            path: path.to_owned(),
            sync,
            current: None,
            _lock: lock,
        };
        match fs::read(path) {
            Ok(bytes) => {
                let damaged = || OutboxError::Damaged(path.to_owned());
                let (parcel, arrived) = decode(&bytes).ok_or_else(damaged)?;
                let file = OpenOptions::new().write(true).open(path);
                disk.current = Some(file.map_err(failed("open"))?);
                let outbox = Self {
                    disk: Some(disk),
                    producer: parcel.producer(),
                    next: parcel.next(),
                };
                let pending = (!arrived && !parcel.is_empty()).then_some(parcel);
                Ok((outbox, pending))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut outbox = Self {
                    disk: Some(disk),
                    producer: new_producer().map_err(failed("name the producer of"))?,
                    next: 0,
                };
                // The name must be on disk before anybody hears it.
                outbox.write(&outbox.parcel())?;
                Ok((outbox, None))
            }
            Err(error) => Err(failed("read")(error)),
        }
    }

    /// An empty parcel with the next numbers.
    pub(super) fn parcel(&self) -> Parcel {
        Parcel::new(self.producer, self.next)
    }

    /// Notes that `parcel` is about to be sent. Its numbers are used up, whatever becomes of it.
    pub(super) fn write(&mut self, parcel: &Parcel) -> Result<(), OutboxError> {
        if let Some(disk) = &mut self.disk {
            disk.replace(&encode(parcel))
                .map_err(|source| OutboxError::Io {
                    action: "write",
                    path: disk.path.clone(),
                    source,
                })?;
        }
        self.next = parcel.next();
        Ok(())
    }

    /// Notes that the parcel written last has arrived.
    pub(super) fn arrived(&mut self) -> Result<(), OutboxError> {
        let Some(disk) = &mut self.disk else {
            return Ok(());
        };
        disk.mark_arrived().map_err(|source| OutboxError::Io {
            action: "write",
            path: disk.path.clone(),
            source,
        })
    }
}

impl Disk {
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let temporary = beside(&self.path, ".new");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        if self.sync {
            file.sync_all()?;
        }
        fs::rename(&temporary, &self.path)?;
        self.current = Some(file);
        match self.path.parent() {
            Some(folder) if self.sync && !folder.as_os_str().is_empty() => {
                File::open(folder)?.sync_all()
            }
            _ => Ok(()),
        }
    }

    fn mark_arrived(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.current {
            file.seek(SeekFrom::Start(ARRIVED_AT))?;
            file.write_all(&[1])?;
        }
        Ok(())
    }
}

/// Locks the file beside the outbox: the outbox itself is replaced all the time.
fn lock(path: &Path) -> Result<File, OutboxError> {
    let lock_path = beside(path, ".lock");
    let failed = |source| OutboxError::Io {
        action: "lock",
        path: path.to_owned(),
        source,
    };
    let file = File::create(&lock_path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OutboxError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn new_producer() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}

fn encode(parcel: &Parcel) -> Vec<u8> {
    let count = u32::try_from(parcel.len()).expect("a batch has at most 65,536 events");
    let mut bytes = Vec::with_capacity(FRAME + parcel.payload() + 4 * parcel.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(0);
    bytes.extend(parcel.producer().to_le_bytes());
    bytes.extend(parcel.first().to_le_bytes());
    bytes.extend(count.to_le_bytes());
    for (_, payload) in parcel.iter() {
        let length = u32::try_from(payload.len()).expect("a shard holds at most 1 GiB");
        bytes.extend(length.to_le_bytes());
        bytes.extend_from_slice(payload);
    }
    let sum = sum(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The parcel, and whether it arrived.
fn decode(bytes: &[u8]) -> Option<(Parcel, bool)> {
    let (body, stored) = bytes.split_last_chunk::<8>()?;
    let rest = body.strip_prefix(MAGIC)?;
    if u64::from_le_bytes(*stored) != sum(body) {
        return None;
    }
    let (arrived, rest) = rest.split_first()?;
    let (producer, rest) = rest.split_first_chunk::<8>()?;
    let (first, rest) = rest.split_first_chunk::<8>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut parcel = Parcel::new(u64::from_le_bytes(*producer), u64::from_le_bytes(*first));
    for _ in 0..u32::from_le_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (payload, after) = after.split_at_checked(length)?;
        parcel.push(payload);
        rest = after;
    }
    rest.is_empty().then_some((parcel, *arrived != 0))
}

/// FNV-1a over all but `arrived`: against damage, not against forgers.
fn sum(bytes: &[u8]) -> u64 {
    let at = usize::from(u8::try_from(ARRIVED_AT).expect("it is in the head"));
    let covered = bytes.iter().enumerate().filter(|(index, _)| *index != at);
    covered.fold(0xcbf2_9ce4_8422_2325, |hash, (_, byte)| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(outbox: &Outbox, events: &[&str]) -> Parcel {
        let mut parcel = outbox.parcel();
        for event in events {
            parcel.push(event.as_bytes());
        }
        parcel
    }

    fn ids(parcel: &Parcel) -> Vec<String> {
        parcel.iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn ids_outlive_the_process_and_are_never_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox");
        let (mut outbox, pending) = Outbox::open(&path, true).unwrap();
        assert_eq!(pending, None);
        let sent = parcel(&outbox, &["a", "", "c"]);
        outbox.write(&sent).unwrap();
        drop(outbox);

        let (mut outbox, pending) = Outbox::open(&path, false).unwrap();
        assert_eq!(pending.as_ref(), Some(&sent));
        assert_eq!(ids(&pending.unwrap()), ids(&sent));
        outbox.arrived().unwrap();
        drop(outbox);

        let (outbox, pending) = Outbox::open(&path, false).unwrap();
        assert_eq!(pending, None);
        let next = parcel(&outbox, &["d"]);
        assert_eq!(next.producer(), sent.producer());
        assert_eq!(next.first(), 3);
    }

    #[test]
    fn an_outbox_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox");
        let held = Outbox::open(&path, false).unwrap();
        assert!(matches!(
            Outbox::open(&path, false),
            Err(OutboxError::InUse(_))
        ));
        drop(held);
        Outbox::open(&path, false).unwrap();
    }

    #[test]
    fn every_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox");
        let (mut outbox, _) = Outbox::open(&path, false).unwrap();
        let sent = parcel(&outbox, &["some", "events"]);
        outbox.write(&sent).unwrap();
        drop(outbox);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).filter(|at| *at != 5) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
        }
        fs::write(&path, b"").unwrap();
        assert!(matches!(
            Outbox::open(&path, false),
            Err(OutboxError::Damaged(_))
        ));
    }
}
