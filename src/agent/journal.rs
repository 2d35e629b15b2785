//! What must survive a crash: the kernels, the events that no manager has acknowledged, and what
//! must not be done twice. Every write is on disk when it returns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use meshwork_identity::{NodeId, Timestamp};
use meshwork_proto::KernelId;
use meshwork_proto::agent::KernelEvent;
use meshwork_proto::codec;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::watch;
use tracing::warn;

use crate::kernel::record::Record;

/// Kernel id to [`Record`], with a format version in front.
const KERNELS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("kernels");
/// Sequence number to [`KernelEvent`].
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// Counters by name.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Signer and nonce of used exec orders, to the millisecond until which they are kept.
const NONCES: TableDefinition<'_, [u8; 48], u64> = TableDefinition::new("nonces");
/// Removed kernels whose order could still be replayed, to the millisecond until which.
const REMOVED: TableDefinition<'_, [u8; 16], u64> = TableDefinition::new("removed");
/// Records that could not be read, as they were.
const QUARANTINE: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("quarantine");

/// Name of the counter of events.
const LAST_SEQ: &str = "last_seq";
/// Version in front of a record. A record of another version goes to quarantine.
const RECORD_VERSION: u8 = 1;
/// Largest record or event in bytes: a specification has at most 256 KiB of text.
const MAX_ENTRY: usize = 1 << 20;
/// Events kept unacknowledged. Above it the oldest ones go that are not the end of a kernel.
const MAX_EVENTS: u64 = 65_536;
/// Unacknowledged events, ends of kernels included, at which no new kernel is admitted.
const MAX_EVENTS_AT_ADMISSION: u64 = 2 * MAX_EVENTS;
/// Exec orders remembered against replay.
const MAX_NONCES: u64 = 65_536;
/// redb's cache. The journal is small; the default of 1 GiB is not.
const CACHE_BYTES: usize = 4 << 20;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the agent's journal: {0}")]
pub struct JournalError(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for JournalError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl JournalError {
    /// Whether it is for want of room on the disk.
    pub(crate) fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(&*self.0, redb::Error::Io(error) if full.contains(&error.kind()))
    }
}

/// What the journal held at the start.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub records: Vec<Record>,
    /// Kernels whose record could not be read and was put aside.
    pub quarantined: Vec<KernelId>,
}

/// The journal file. Its methods block on the disk: call them from blocking threads.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// None after a failure: the database refuses everything until it is opened again.
    db: Mutex<Option<Database>>,
    /// Held from the writing of a kernel until all have heard of it.
    storing: Mutex<()>,
    last_seq: watch::Sender<u64>,
}

impl Journal {
    /// Opens or makes the file. Fails when another process has it open.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let db = open(path)?;
        let tx = db.begin_write()?;
        let last = {
            tx.open_table(KERNELS)?;
            tx.open_table(EVENTS)?;
            tx.open_table(NONCES)?;
            tx.open_table(REMOVED)?;
            tx.open_table(QUARANTINE)?;
            let counters = tx.open_table(COUNTERS)?;
            counters.get(LAST_SEQ)?.map_or(0, |n| n.value())
        };
        tx.commit()?;
        let last_seq = watch::Sender::new(last);
        Ok(Self {
            path: path.to_owned(),
            db: Mutex::new(Some(db)),
            storing: Mutex::new(()),
            last_seq,
        })
    }

    /// Does `work` with the open file.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let mut slot = self
            .db
            .lock()
            .expect("nothing panics while it has the file");
        let db = slot.take().map_or_else(|| open(&self.path), Ok)?;
        let done = work(&db)?;
        *slot = Some(db);
        Ok(done)
    }

    /// Every kernel. One that cannot be read is put aside and does not keep the others.
    pub(crate) fn load(&self) -> Result<Loaded, JournalError> {
        let mut loaded = Loaded::default();
        self.with(|db| {
            let tx = db.begin_write()?;
            {
                let mut kernels = tx.open_table(KERNELS)?;
                let mut quarantine = tx.open_table(QUARANTINE)?;
                let mut bad = Vec::new();
                for entry in kernels.iter()? {
                    let (key, value) = entry?;
                    match decode_record(value.value()) {
                        Some(record) if *record.kernel.as_bytes() == key.value() => {
                            loaded.records.push(record);
                        }
                        _ => bad.push((key.value(), value.value().to_vec())),
                    }
                }
                for (key, bytes) in bad {
                    let kernel = KernelId::from_bytes(key);
                    warn!(%kernel, "record of a kernel cannot be read, put into quarantine");
                    quarantine.insert(key, bytes.as_slice())?;
                    kernels.remove(key)?;
                    loaded.quarantined.push(kernel);
                }
            }
            tx.commit()?;
            Ok(loaded)
        })
    }

    /// Writes a kernel and, with `announce`, an event of its state, both or neither. Calls `then`
    /// before anybody hears of the event: whoever hears of it and asks finds the kernel as it says.
    pub(crate) fn store(
        &self,
        record: &Record,
        announce: bool,
        now: Timestamp,
        then: impl FnOnce(),
    ) -> Result<(), JournalError> {
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(codec::encode(record));
        let _turn = self.storing.lock().expect("nothing panics while it stores");
        let seq = self.with(|db| {
            let tx = db.begin_write()?;
            let mut seq = None;
            {
                tx.open_table(KERNELS)?
                    .insert(record.kernel.as_bytes(), bytes.as_slice())?;
                if announce {
                    let mut counters = tx.open_table(COUNTERS)?;
                    let next = counters.get(LAST_SEQ)?.map_or(0, |n| n.value()) + 1;
                    counters.insert(LAST_SEQ, next)?;
                    let mut events = tx.open_table(EVENTS)?;
                    events.insert(next, codec::encode(&record.event(next, now)).as_slice())?;
                    trim(&mut events)?;
                    seq = Some(next);
                }
            }
            tx.commit()?;
            Ok(seq)
        })?;
        then();
        if let Some(seq) = seq {
            self.last_seq.send_replace(seq);
        }
        Ok(())
    }

    /// Forgets a terminated kernel, but not that its order was used.
    pub(crate) fn forget(&self, record: &Record, now: Timestamp) -> Result<(), JournalError> {
        self.with(|db| {
            let tx = db.begin_write()?;
            {
                tx.open_table(KERNELS)?.remove(record.kernel.as_bytes())?;
                let mut removed = tx.open_table(REMOVED)?;
                removed.retain(|_, until| until > now.as_millis())?;
                if record.order_ends > now {
                    removed.insert(record.kernel.as_bytes(), record.order_ends.as_millis())?;
                }
            }
            tx.commit()?;
            Ok(())
        })
    }

    /// Whether the kernel was removed and its order could still be replayed.
    pub(crate) fn was_removed(&self, kernel: &KernelId) -> Result<bool, JournalError> {
        self.with(|db| {
            let tx = db.begin_read()?;
            Ok(tx.open_table(REMOVED)?.get(kernel.as_bytes())?.is_some())
        })
    }

    /// Marks an exec order as used until `until`. False when it was used before, or when so many
    /// are remembered that this could not be known of the next.
    pub(crate) fn use_nonce(
        &self,
        signer: &NodeId,
        nonce: &[u8; 16],
        until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, JournalError> {
        let mut key = [0; 48];
        key[..32].copy_from_slice(signer.as_bytes());
        key[32..].copy_from_slice(nonce);
        self.with(|db| {
            let tx = db.begin_write()?;
            let fresh = {
                let mut nonces = tx.open_table(NONCES)?;
                nonces.retain(|_, until| until > now.as_millis())?;
                let fresh = nonces.get(key)?.is_none() && nonces.len()? < MAX_NONCES;
                if fresh {
                    nonces.insert(key, until.as_millis())?;
                }
                fresh
            };
            tx.commit()?;
            Ok(fresh)
        })
    }

    /// At most `limit` kept events after sequence number `after`, in order.
    pub(crate) fn events_after(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<KernelEvent>, JournalError> {
        self.with(|db| {
            let tx = db.begin_read()?;
            let events = tx.open_table(EVENTS)?;
            let mut found = Vec::new();
            // Later ones are not told of yet.
            let last = *self.last_seq.borrow();
            if after >= last {
                return Ok(found);
            }
            for entry in events.range(after + 1..=last)?.take(limit) {
                let (seq, value) = entry?;
                match codec::decode(value.value(), MAX_ENTRY) {
                    Ok(event) => found.push(event),
                    Err(error) => {
                        warn!(seq = seq.value(), %error, "event cannot be read, left out");
                    }
                }
            }
            Ok(found)
        })
    }

    /// Forgets events up to and including `up_to`.
    pub(crate) fn ack(&self, up_to: u64) -> Result<(), JournalError> {
        self.with(|db| {
            let tx = db.begin_write()?;
            tx.open_table(EVENTS)?.retain_in(..=up_to, |_, _| false)?;
            tx.commit()?;
            Ok(())
        })
    }

    /// Whether events may still pile up, or managers must first acknowledge some.
    pub(crate) fn has_room(&self) -> Result<bool, JournalError> {
        self.with(|db| {
            let tx = db.begin_read()?;
            Ok(tx.open_table(EVENTS)?.len()? < MAX_EVENTS_AT_ADMISSION)
        })
    }

    /// Sequence number of the last event, and how to wait for the next.
    pub(crate) fn last_seq(&self) -> watch::Receiver<u64> {
        self.last_seq.subscribe()
    }
}

fn open(path: &Path) -> Result<Database, JournalError> {
    Ok(Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)?)
}

fn decode_record(bytes: &[u8]) -> Option<Record> {
    let (version, body) = bytes.split_first()?;
    (*version == RECORD_VERSION)
        .then(|| codec::decode(body, MAX_ENTRY).ok())
        .flatten()
}

/// Keeps the log within its bound. The end of a kernel is never dropped: it is the one event that
/// no later state can tell.
fn trim(events: &mut redb::Table<'_, u64, &[u8]>) -> Result<(), JournalError> {
    if events.len()? <= MAX_EVENTS {
        return Ok(());
    }
    let mut victim = None;
    for entry in events.iter()? {
        let (seq, value) = entry?;
        let event = codec::decode::<KernelEvent>(value.value(), MAX_ENTRY);
        if event.is_ok_and(|e| e.state.exit().is_none()) {
            victim = Some(seq.value());
            break;
        }
    }
    if let Some(seq) = victim {
        events.remove(seq)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;
    use meshwork_proto::kernel::{Exit, ExitReason, KernelState};

    use super::*;
    use crate::kernel::record::tests::record;

    fn now() -> Timestamp {
        Timestamp::from_secs(10)
    }

    #[test]
    fn everything_survives_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        for n in 1..=3 {
            journal.store(&record(n), true, now(), || {}).unwrap();
        }
        journal.store(&record(3), false, now(), || {}).unwrap();
        journal.ack(1).unwrap();
        assert!(Journal::open(&path).is_err(), "one agent at a time");
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(
            journal.load().unwrap().records,
            [record(1), record(2), record(3)]
        );
        let seqs: Vec<u64> = journal
            .events_after(0, 10)
            .unwrap()
            .iter()
            .map(|e| e.seq)
            .collect();
        assert_eq!(seqs, [2, 3]);
        assert_eq!(*journal.last_seq().borrow(), 3);
        journal.ack(9).unwrap();
        journal.store(&record(4), true, now(), || {}).unwrap();
        assert_eq!(
            journal.events_after(0, 10).unwrap()[0].seq,
            4,
            "numbers never repeat"
        );
    }

    #[test]
    fn after_a_failure_the_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        journal.store(&record(1), true, now(), || {}).unwrap();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let failed = journal.with(|_| Err::<(), _>(redb::Error::Io(full).into()));
        assert!(failed.unwrap_err().is_full());
        journal.store(&record(2), true, now(), || {}).unwrap();
        assert_eq!(journal.load().unwrap().records, [record(1), record(2)]);
        assert_eq!(journal.events_after(0, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_bad_record_goes_to_quarantine_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        journal.store(&record(1), false, now(), || {}).unwrap();
        for (n, bytes) in [(2, &[RECORD_VERSION, 9, 9][..]), (3, &[7]), (4, &[])] {
            let tx = journal
                .db
                .lock()
                .unwrap()
                .as_ref()
                .unwrap()
                .begin_write()
                .unwrap();
            tx.open_table(KERNELS)
                .unwrap()
                .insert([n; 16], bytes)
                .unwrap();
            tx.commit().unwrap();
        }
        let loaded = journal.load().unwrap();
        assert_eq!(loaded.records, [record(1)]);
        assert_eq!(loaded.quarantined.len(), 3);
        assert!(
            journal.load().unwrap().quarantined.is_empty(),
            "put aside once"
        );
    }

    #[test]
    fn the_end_of_a_kernel_is_never_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let exit = Exit {
            reason: ExitReason::SelfTerminated,
            code: Some(0),
            oom: false,
            message: None,
        };
        let tx = journal
            .db
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .begin_write()
            .unwrap();
        {
            let mut events = tx.open_table(EVENTS).unwrap();
            for seq in 1..=MAX_EVENTS + 3 {
                let mut one = record(1);
                if seq <= 2 {
                    one.state = KernelState::Terminated(exit.clone());
                }
                let bytes = codec::encode(&one.event(seq, now()));
                events.insert(seq, bytes.as_slice()).unwrap();
                trim(&mut events).unwrap();
            }
            assert_eq!(events.len().unwrap(), MAX_EVENTS);
        }
        tx.commit().unwrap();
        journal.last_seq.send_replace(MAX_EVENTS + 3);
        let seqs: Vec<u64> = journal
            .events_after(0, 3)
            .unwrap()
            .iter()
            .map(|e| e.seq)
            .collect();
        assert_eq!(seqs, [1, 2, 6], "3 to 5 made room");
    }

    #[test]
    fn nothing_is_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let (a, b) = (
            Identity::from_seed(&[1; 32]).node_id(),
            Identity::from_seed(&[2; 32]).node_id(),
        );
        let until = Timestamp::from_secs(20);
        assert!(journal.use_nonce(&a, &[1; 16], until, now()).unwrap());
        assert!(!journal.use_nonce(&a, &[1; 16], until, now()).unwrap());
        assert!(journal.use_nonce(&b, &[1; 16], until, now()).unwrap());
        assert!(
            journal.use_nonce(&a, &[1; 16], until, until).unwrap(),
            "expired by then"
        );

        journal.store(&record(1), false, now(), || {}).unwrap();
        assert!(!journal.was_removed(&record(1).kernel).unwrap());
        journal.forget(&record(1), now()).unwrap();
        assert!(journal.was_removed(&record(1).kernel).unwrap());
        assert!(journal.load().unwrap().records.is_empty());
        journal
            .forget(&record(2), Timestamp::from_secs(100))
            .unwrap();
        assert!(
            !journal.was_removed(&record(1).kernel).unwrap(),
            "its order is over"
        );
    }
}
