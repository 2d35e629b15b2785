//! The manager's file: orders, what became of them, and how far each agent's events are known.
//! Every commit is on disk when it returns, whole or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshwork_identity::{NodeId, Warrant};
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_FRAME;
use meshwork_proto::session::SessionOrder;
use meshwork_proto::{RpcError, SessionId, Status};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;

use crate::record::{Facts, Ordered, Record};

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
/// Session id → [`Warrant`]. Written once, as it is large and never changes.
const ORDERS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("orders");
/// Session id → [`Facts`].
const SESSIONS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("sessions");
/// Agent → sequence number of the last of its events that is in `sessions`.
const AGENTS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("agents");

const SCHEMA_KEY: &str = "schema";
/// Version of the tables and of what is in them.
const SCHEMA: u32 = 1;
/// Memory for pages in bytes; the store is small and read once.
const CACHE: usize = 4 << 20;
const FILE: &str = "manager.redb";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the file open.
    #[error("another manager is using the store; stop it first")]
    InUse,
    /// The file was written by another version.
    #[error(
        "the store has format {found}, this version reads {SCHEMA}; use the version that wrote it"
    )]
    Format {
        /// The file's format.
        found: u32,
    },
    /// The disk is full.
    #[error("no space left for the store")]
    Full,
    /// Anything else that the database reports.
    #[error("the store failed")]
    Database(#[source] redb::Error),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Io(e) if is_full(&e) => Self::Full,
            error => Self::Database(error),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl StoreError {
    /// What a user whose request could not be kept is told.
    pub(crate) fn to_rpc(&self) -> RpcError {
        match self {
            Self::Full => RpcError::new(
                Status::ResourceExhausted,
                "the manager's disk is full; nothing was changed",
            )
            .reason("disk_full")
            .fix("free space where the manager keeps its data, then repeat"),
            _ => RpcError::internal("the manager could not write its store; nothing was changed")
                .reason("store")
                .fix("see the manager's log"),
        }
    }
}

/// What one commit writes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Changes {
    /// Sessions as they are now; none: forgotten.
    pub(crate) sessions: BTreeMap<SessionId, Option<Arc<Record>>>,
    /// Of `sessions`, those whose order is not in the store yet or is another.
    pub(crate) orders: std::collections::BTreeSet<SessionId>,
    /// How far agents' events are known now.
    pub(crate) seen: BTreeMap<NodeId, u64>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.seen.is_empty()
    }
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) sessions: BTreeMap<SessionId, Arc<Record>>,
    pub(crate) seen: BTreeMap<NodeId, u64>,
}

type Open = Box<dyn Fn() -> Result<Database, StoreError> + Send>;

/// The open file.
pub(crate) struct Store {
    open: Open,
    /// None after a failed commit: the database refuses everything until it is opened again.
    database: Option<Database>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the store in `folder`.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join(FILE);
        Self::open_with(Box::new(move || {
            Ok(Database::builder().set_cache_size(CACHE).create(&path)?)
        }))
    }

    fn open_with(open: Open) -> Result<Self, StoreError> {
        let database = open()?;
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(SCHEMA_KEY)?.map(|version| version.value());
            match found {
                None => drop(meta.insert(SCHEMA_KEY, SCHEMA)?),
                Some(SCHEMA) => {}
                Some(found) => return Err(StoreError::Format { found }),
            }
            transaction.open_table(ORDERS)?;
            transaction.open_table(SESSIONS)?;
            transaction.open_table(AGENTS)?;
        }
        transaction.commit()?;
        Ok(Self {
            open,
            database: Some(database),
        })
    }

    /// Reads everything. A session that cannot be read stays in the file and is left out: one bad
    /// row must not stop the others.
    pub(crate) fn load(&mut self) -> Result<Contents, StoreError> {
        let transaction = self.database()?.begin_read()?;
        let (orders, sessions) = (
            transaction.open_table(ORDERS)?,
            transaction.open_table(SESSIONS)?,
        );
        let mut contents = Contents::default();
        for row in sessions.iter()? {
            let (id, facts) = row?;
            let id = SessionId::from_bytes(*id.value());
            let warrant = orders.get(id.as_bytes())?;
            let record = warrant.and_then(|w| record(id, w.value(), facts.value()));
            if let Some(record) = record {
                contents.sessions.insert(id, Arc::new(record));
            } else {
                tracing::error!(session = %id, "stored session does not decode; left out");
            }
        }
        for row in transaction.open_table(AGENTS)?.iter()? {
            let (node, seq) = row?;
            if let Ok(node) = NodeId::from_bytes(*node.value()) {
                contents.seen.insert(node, seq.value());
            }
        }
        Ok(contents)
    }

    /// Writes `changes`, all or none, durably.
    pub(crate) fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let result = write(self.database()?, changes);
        if result.is_err() {
            self.database = None;
        }
        result
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        Ok(self.database.insert(database))
    }
}

fn write(database: &Database, changes: &Changes) -> Result<(), StoreError> {
    let transaction = database.begin_write()?;
    {
        let mut orders = transaction.open_table(ORDERS)?;
        let mut sessions = transaction.open_table(SESSIONS)?;
        for (id, record) in &changes.sessions {
            let key = id.as_bytes();
            let Some(record) = record else {
                sessions.remove(key)?;
                orders.remove(key)?;
                continue;
            };
            sessions.insert(key, codec::encode(&record.facts).as_slice())?;
            if changes.orders.contains(id) {
                orders.insert(key, codec::encode(&record.ordered.warrant).as_slice())?;
            }
        }
        let mut agents = transaction.open_table(AGENTS)?;
        for (node, seq) in &changes.seen {
            agents.insert(node.as_bytes(), seq)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn record(id: SessionId, warrant: &[u8], facts: &[u8]) -> Option<Record> {
    let warrant: Warrant = decode(warrant)?;
    let facts: Facts = decode(facts)?;
    let order: SessionOrder = warrant.open().ok()?;
    let owner = warrant.order.signer();
    (order.session == id).then(|| Record {
        ordered: Arc::new(Ordered {
            warrant,
            order,
            owner,
        }),
        facts,
    })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    codec::decode(bytes, MAX_FRAME).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use meshwork_identity::{
        Identity, Limits, Resource, Scope, Scopes, Timestamp, Token, TokenRequest,
    };
    use meshwork_proto::session::{SessionSpec, SessionState};

    use super::*;

    /// A disk in memory that can be full.
    #[derive(Debug, Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn room(&self) -> io::Result<()> {
            let full = self.full.load(Ordering::SeqCst);
            if full {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        }
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            out.copy_from_slice(&self.bytes.lock().unwrap()[at..at + out.len()]);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.room()?;
            self.bytes
                .lock()
                .unwrap()
                .resize(usize::try_from(len).unwrap(), 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.room()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room()?;
            let at = usize::try_from(offset).unwrap();
            self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn open(disk: &Disk) -> Result<Store, StoreError> {
        let disk = disk.clone();
        Store::open_with(Box::new(move || {
            Ok(Database::builder().create_with_backend(disk.clone())?)
        }))
    }

    fn session(seed: u8) -> Record {
        let user = Identity::from_seed(&[1; 32]);
        let request = TokenRequest {
            subject: user.node_id(),
            scopes: Scopes::from([Scope::Call]),
            resource: Resource::any(),
            not_before: None,
            ttl: Duration::from_hours(1),
            depth: 0,
            limits: Limits::none(),
        };
        let now = Timestamp::from_secs(1);
        let token = Token::issue_root(&user, request, now, [0; 16]).unwrap();
        let order = SessionOrder {
            session: SessionId::from_bytes([seed; 16]),
            spec: SessionSpec::default(),
            issued_at: now,
            valid_for: Duration::from_hours(1),
        };
        let warrant = Warrant::seal(&user, token, &order).unwrap();
        let facts = Facts {
            node: user.node_id(),
            node_name: "n".into(),
            plan: "n".into(),
            attempt: 1,
            generation: 1,
            accepted: false,
            state: SessionState::Scheduled,
            gpus: Vec::new(),
            stop: None,
            refused: Vec::new(),
            refusal: None,
            removed: false,
            created_at: now,
            started_at: None,
            ended_at: None,
        };
        Record {
            ordered: Arc::new(Ordered {
                warrant,
                order,
                owner: user.node_id(),
            }),
            facts,
        }
    }

    fn adding(seed: u8) -> Changes {
        let (record, mut changes) = (session(seed), Changes::default());
        changes.orders.insert(record.id());
        changes.sessions.insert(record.id(), Some(Arc::new(record)));
        changes
    }

    fn ids(store: &mut Store) -> Vec<SessionId> {
        store.load().unwrap().sessions.into_keys().collect()
    }

    #[test]
    fn a_full_disk_changes_nothing_and_heals() {
        let disk = Disk::default();
        let mut store = open(&disk).unwrap();
        store.commit(&adding(1)).unwrap();
        disk.full.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            let error = store.commit(&adding(2)).unwrap_err();
            assert!(matches!(error, StoreError::Full), "{error:?}");
            assert_eq!(error.to_rpc().status, Status::ResourceExhausted);
        }
        disk.full.store(false, Ordering::SeqCst);
        let id = |seed| SessionId::from_bytes([seed; 16]);
        assert_eq!(ids(&mut store), [id(1)]);
        store.commit(&adding(3)).unwrap();
        drop(store);
        assert_eq!(ids(&mut open(&disk).unwrap()), [id(1), id(3)]);
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_not_seen() {
        let disk = Disk::default();
        let (ledger, writer) = crate::ledger::Ledger::new(open(&disk).unwrap()).unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let writing = tokio::spawn(writer.run(stop.clone()));
        let add = |seed| {
            ledger.change(move |draft| {
                draft.insert(session(seed));
                Ok(())
            })
        };
        disk.full.store(true, Ordering::SeqCst);
        let (one, two) = tokio::join!(add(1), add(2));
        for error in [one.unwrap_err(), two.unwrap_err()] {
            assert_eq!(
                (error.status, error.reason.as_str()),
                (Status::ResourceExhausted, "disk_full")
            );
        }
        assert!(ledger.entries().is_empty());
        disk.full.store(false, Ordering::SeqCst);
        add(3).await.unwrap();
        assert_eq!(ledger.entries().len(), 1);
        stop.cancel();
        writing.await.unwrap();
        assert_eq!(add(4).await.unwrap_err().status, Status::Unavailable);
    }

    #[tokio::test]
    async fn a_change_that_panics_changes_nothing_and_stops_no_other() {
        let (ledger, writer) = crate::ledger::Ledger::new(open(&Disk::default()).unwrap()).unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let writing = tokio::spawn(writer.run(stop.clone()));
        let faulty = ledger.change(|draft| -> Result<(), RpcError> {
            draft.insert(session(1));
            panic!("on purpose")
        });
        let sound = ledger.change(|draft| {
            draft.insert(session(2));
            Ok(())
        });
        let (one, two) = tokio::join!(faulty, sound);
        assert_eq!(one.unwrap_err().status, Status::Internal);
        two.unwrap();
        assert_eq!(ledger.entries().len(), 1);
        stop.cancel();
        writing.await.unwrap();
    }

    #[test]
    fn what_was_written_is_read() {
        let disk = Disk::default();
        let mut store = open(&disk).unwrap();
        let mut changes = adding(1);
        let node = Identity::from_seed(&[9; 32]).node_id();
        changes.seen.insert(node, 77);
        store.commit(&changes).unwrap();
        drop(store);
        let contents = open(&disk).unwrap().load().unwrap();
        let (id, record) = contents.sessions.first_key_value().unwrap();
        let written = changes.sessions[id].as_ref().unwrap();
        assert_eq!(record.facts, written.facts);
        assert_eq!(record.ordered.warrant, written.ordered.warrant);
        assert_eq!(contents.seen, BTreeMap::from([(node, 77)]));
    }

    #[test]
    fn one_bad_row_hides_no_other() {
        let disk = Disk::default();
        let mut store = open(&disk).unwrap();
        store.commit(&adding(1)).unwrap();
        store.commit(&adding(2)).unwrap();
        let transaction = store.database().unwrap().begin_write().unwrap();
        transaction
            .open_table(SESSIONS)
            .unwrap()
            .insert(&[1; 16], &b"junk"[..])
            .unwrap();
        transaction.commit().unwrap();
        assert_eq!(ids(&mut store), [SessionId::from_bytes([2; 16])]);
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let disk = Disk::default();
        let mut store = open(&disk).unwrap();
        let transaction = store.database().unwrap().begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert(SCHEMA_KEY, SCHEMA + 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(store);
        assert!(matches!(open(&disk), Err(StoreError::Format { found }) if found == SCHEMA + 1));
    }
}
