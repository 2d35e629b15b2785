//! A disk in memory that fails on demand, and forgets at a power loss what was not synced: any part of
//! it, in pieces of a sector, regardless of order.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::super::sync::lock;
use super::super::{File, Files, Listed, LockError};
use super::Chance;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// The next operation of a kind fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fail {
    /// There is no room to write, to enlarge a file or to create one.
    Room,
    /// A sync fails, and what it should have brought to disk may be there or not.
    Sync,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// It is killed: the system has all that it was given.
    Kill,
    /// The power is lost.
    Power,
}

#[derive(Debug)]
pub(super) struct Disk(Mutex<State>);

#[derive(Debug)]
struct State {
    chance: Chance,
    names: BTreeMap<String, Arc<Mutex<Content>>>,
    /// The names on disk.
    on_disk: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Operations until the process dies.
    left: Option<u64>,
    dead: bool,
    fail: Option<Fail>,
    full: bool,
    locked: Arc<AtomicBool>,
    syncs: u64,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    disk: Vec<u8>,
    /// What was done since the last sync.
    pending: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

impl Disk {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            chance: Chance(seed),
            names: BTreeMap::new(),
            on_disk: BTreeMap::new(),
            left: None,
            dead: false,
            fail: None,
            full: false,
            locked: Arc::default(),
            syncs: 0,
        })))
    }

    /// Another disk with the same files, all of them on disk.
    pub(super) fn copy(&self) -> Arc<Self> {
        let copy = Self::new(2);
        for (name, content) in &lock(&self.0).names {
            let now = lock(content).now.clone();
            let content = Content {
                disk: now.clone(),
                now,
                pending: Vec::new(),
            };
            let content = Arc::new(Mutex::new(content));
            lock(&copy.0).names.insert(name.clone(), content.clone());
            lock(&copy.0).on_disk.insert(name.clone(), content);
        }
        copy
    }

    /// What the log is given.
    pub(super) fn files(self: &Arc<Self>) -> Arc<Handle> {
        Arc::new(Handle(self.clone()))
    }

    /// The process dies in the midst of the operation after so many.
    pub(super) fn die_after(&self, operations: u64) {
        lock(&self.0).left = Some(operations);
    }

    pub(super) fn is_dead(&self) -> bool {
        lock(&self.0).dead
    }

    pub(super) fn fail_next(&self, fail: Option<Fail>) {
        lock(&self.0).fail = fail;
    }

    /// Whether there is no room for anything.
    pub(super) fn set_full(&self, full: bool) {
        lock(&self.0).full = full;
    }

    /// Syncs of files so far.
    pub(super) fn syncs(&self) -> u64 {
        lock(&self.0).syncs
    }

    /// Ends the process, if it has not died, and starts the machine again where needed.
    pub(super) fn crash(&self, crash: Crash) {
        let mut state = lock(&self.0);
        let State {
            chance,
            names,
            on_disk,
            ..
        } = &mut *state;
        if crash == Crash::Power {
            lose_names(chance, names, on_disk);
            for content in names.values() {
                lock(content).lose(chance);
            }
        }
        (state.left, state.dead, state.fail) = (None, false, None);
        state.locked = Arc::default();
    }

    /// Changes bytes of a file, now and on disk.
    pub(super) fn corrupt(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let content = lock(&self.0).names[name].clone();
        let mut content = lock(&content);
        change(&mut content.now);
        content.disk = content.now.clone();
        content.pending.clear();
    }

    pub(super) fn remove(&self, name: &str) {
        let mut state = lock(&self.0);
        state.names.remove(name);
        state.on_disk.remove(name);
    }

    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.0).names.keys().cloned().collect()
    }

    /// Counts an operation. An error if it does not take place; `Ok(true)` if the process dies in it.
    fn operate(&self, room: bool, sync: bool) -> Result<bool, (io::Error, bool)> {
        let mut state = lock(&self.0);
        if state.dead {
            return Err((io::Error::other("the process is dead"), false));
        }
        if let Some(left) = &mut state.left {
            if *left == 0 {
                state.dead = true;
                return Ok(true);
            }
            *left -= 1;
        }
        if state.full && room {
            return Err((io::ErrorKind::StorageFull.into(), true));
        }
        let failing = match state.fail {
            Some(Fail::Room) if room => io::ErrorKind::StorageFull,
            Some(Fail::Sync) if sync => io::ErrorKind::Other,
            _ => return Ok(false),
        };
        state.fail = None;
        Err((failing.into(), true))
    }

    fn below(&self, n: u64) -> u64 {
        lock(&self.0).chance.below(n)
    }
}

fn dead() -> io::Error {
    io::Error::other("the process died in this")
}

/// Each name that differs from the disk's is as it was, or as it is on disk.
fn lose_names(
    chance: &mut Chance,
    names: &mut BTreeMap<String, Arc<Mutex<Content>>>,
    on_disk: &mut BTreeMap<String, Arc<Mutex<Content>>>,
) {
    let all: std::collections::BTreeSet<String> =
        names.keys().chain(on_disk.keys()).cloned().collect();
    for name in all {
        if chance.one_in(2) {
            match on_disk.get(&name).cloned() {
                Some(content) => names.insert(name, content),
                None => names.remove(&name),
            };
        }
    }
    *on_disk = names.clone();
}

impl Content {
    fn write(now: &mut Vec<u8>, bytes: &[u8], offset: u64) {
        let offset = usize::try_from(offset).unwrap();
        let end = offset + bytes.len();
        if now.len() < end {
            now.resize(end, 0);
        }
        now[offset..end].copy_from_slice(bytes);
    }

    /// Brings to disk what was done since the last sync, and no more: what a failed sync has dropped
    /// stays in memory only.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Len(len) => self.disk.resize(usize::try_from(len).unwrap(), 0),
                Change::Write(offset, bytes) => Self::write(&mut self.disk, &bytes, offset),
            }
        }
    }

    /// The power goes: some sectors of some writes are on disk.
    fn lose(&mut self, chance: &mut Chance) {
        // Now and then nothing or all of it has got there.
        let odds = [0, 1, 1, 1, 2][usize::try_from(chance.below(5)).unwrap()];
        let kept = |chance: &mut Chance| odds == 2 || odds == 1 && chance.one_in(2);
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Len(len) if kept(chance) => {
                    self.disk.resize(usize::try_from(len).unwrap(), 0);
                }
                Change::Len(_) => {}
                Change::Write(mut offset, mut bytes) => {
                    while !bytes.is_empty() {
                        let sector = usize::try_from(SECTOR - offset % SECTOR)
                            .unwrap()
                            .min(bytes.len());
                        let rest = bytes.split_off(sector);
                        if kept(chance) {
                            Self::write(&mut self.disk, &bytes, offset);
                        }
                        offset += sector as u64;
                        bytes = rest;
                    }
                }
            }
        }
        self.now = self.disk.clone();
    }
}

#[derive(Debug)]
pub(super) struct Handle(Arc<Disk>);

struct Hold(Arc<AtomicBool>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Files for Handle {
    fn dir(&self) -> &Path {
        Path::new("memory")
    }

    fn lock(&self) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        let locked = lock(&self.0.0).locked.clone();
        if locked.swap(true, Ordering::SeqCst) {
            return Err(LockError::Held { pid: Some(1) });
        }
        Ok(Box::new(Hold(locked)))
    }

    fn list(&self) -> io::Result<Vec<Listed>> {
        let state = lock(&self.0.0);
        let listed = |(name, content): (&String, &Arc<Mutex<Content>>)| Listed {
            name: name.clone(),
            len: lock(content).now.len() as u64,
        };
        Ok(state.names.iter().map(listed).collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let dies = self.0.operate(true, false).map_err(|(error, _)| error)?;
        let mut state = lock(&self.0.0);
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content: Arc<Mutex<Content>> = Arc::default();
        state.names.insert(name.to_owned(), content.clone());
        drop(state);
        if dies {
            Err(dead())
        } else {
            Ok(Box::new(FaultyFile {
                disk: self.0.clone(),
                content,
            }))
        }
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let state = lock(&self.0.0);
        let content = state
            .names
            .get(name)
            .cloned()
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(FaultyFile {
            disk: self.0.clone(),
            content,
        }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let dies = self.0.operate(false, false).map_err(|(error, _)| error)?;
        let gone = lock(&self.0.0).names.remove(name).map(|_| ());
        if dies {
            Err(dead())
        } else {
            gone.ok_or(io::ErrorKind::NotFound.into())
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.0.operate(false, true).map_err(|(error, _)| error)? {
            return Err(dead());
        }
        let mut state = lock(&self.0.0);
        state.on_disk = state.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: Arc<Disk>,
    content: Arc<Mutex<Content>>,
}

impl FaultyFile {
    fn apply(&self, bytes: &[u8], offset: u64) {
        let mut content = lock(&self.content);
        Content::write(&mut content.now, bytes, offset);
        content.pending.push(Change::Write(offset, bytes.to_vec()));
    }
}

impl File for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = lock(&self.content);
        let from = content.now.len().min(usize::try_from(offset).unwrap());
        let n = buf.len().min(content.now.len() - from);
        buf[..n].copy_from_slice(&content.now[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let len = bytes.len() as u64;
        match self.disk.operate(true, false) {
            Ok(false) => {
                self.apply(bytes, offset);
                Ok(())
            }
            // A store in the midst of which the process dies has done any part, in words of 8 bytes.
            Ok(true) => {
                for (n, word) in bytes.chunks(8).enumerate() {
                    if self.disk.below(8) != 0 {
                        self.apply(word, offset + 8 * n as u64);
                    }
                }
                Err(dead())
            }
            // A write that the disk had no room for has done a first part.
            Err((error, failed)) => {
                if failed {
                    let done = usize::try_from(self.disk.below(len / 2 + 1)).unwrap();
                    self.apply(&bytes[..done], offset);
                }
                Err(error)
            }
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len <= self.size()? {
            return Ok(());
        }
        let dies = self.disk.operate(true, false).map_err(|(error, _)| error)?;
        if dies { Err(dead()) } else { self.resize(len) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let dies = self
            .disk
            .operate(false, false)
            .map_err(|(error, _)| error)?;
        if dies { Err(dead()) } else { self.resize(len) }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.content).now.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        match self.disk.operate(false, true) {
            Ok(false) => {
                lock(&self.disk.0).syncs += 1;
                lock(&self.content).sync();
                Ok(())
            }
            Ok(true) => Err(dead()),
            Err((error, failed)) => {
                if failed {
                    // The kernel says so once, drops what it could not write, and says all is well
                    // from then on; in memory the bytes are still there.
                    lock(&self.content).pending.clear();
                }
                Err(error)
            }
        }
    }
}

impl FaultyFile {
    #[expect(clippy::unnecessary_wraps, reason = "ends the operations above")]
    fn resize(&self, len: u64) -> io::Result<()> {
        let mut content = lock(&self.content);
        content.now.resize(usize::try_from(len).unwrap(), 0);
        content.pending.push(Change::Len(len));
        Ok(())
    }
}
