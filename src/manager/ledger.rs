//! The one writer of everything the manager must not forget.
//!
//! A change is a closure over a [`Draft`]. The writer runs the waiting changes one after the other,
//! commits them together, publishes the new records and only then answers, so that whatever anybody
//! sees is on disk, and decisions about the same session or the same free GPU never race.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::agent::PullProgress;
use meshwork_proto::{RpcError, SessionId, Status};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::record::{Facts, Record};
use crate::store::{Changes, Contents, Store, StoreError};

/// Changes that may wait for the writer. Each waiter holds one call of a peer, and those are
/// bounded per peer.
const QUEUE: usize = 256;
/// Changes committed together.
const BATCH: usize = 64;
/// Longest wait for a place in the queue.
const QUEUE_DEADLINE: Duration = Duration::from_secs(10);

/// Answers a change once it is known whether its commit succeeded.
type Answer = Box<dyn FnOnce(Result<(), RpcError>) + Send>;
type Job = Box<dyn FnOnce(&mut Draft) -> Answer + Send>;

/// One session in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As committed. Closes when the session is forgotten.
    pub(crate) record: watch::Sender<Arc<Record>>,
    /// Progress of its image; not kept.
    pub(crate) progress: watch::Sender<Option<PullProgress>>,
    /// Who is reading it.
    pub(crate) audience: Arc<Audience>,
}

/// Readers of a session, for `--rm`.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    /// Open watch, log and exec streams.
    pub(crate) attached: AtomicUsize,
    /// When its end became known in this process.
    pub(crate) ended: Mutex<Option<Instant>>,
    /// When a reader that was told the end went away.
    pub(crate) told: Mutex<Option<Instant>>,
}

impl Entry {
    fn new(record: Arc<Record>) -> Self {
        let entry = Self {
            record: watch::Sender::new(record),
            progress: watch::Sender::new(None),
            audience: Arc::default(),
        };
        entry.note_end();
        entry
    }

    /// The record as it is now.
    pub(crate) fn now(&self) -> Arc<Record> {
        Arc::clone(&self.record.borrow())
    }

    fn note_end(&self) {
        let mut ended = lock(&self.audience.ended);
        *ended = self
            .record
            .borrow()
            .ended()
            .then(|| ended.unwrap_or_else(Instant::now));
    }

    /// When a session with `--rm` may go: not while anybody reads it.
    pub(crate) fn lingers_until(&self) -> Option<Instant> {
        if self.audience.attached.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let told = *lock(&self.audience.told);
        let ended = *lock(&self.audience.ended);
        told.map(|at| at + LINGER_TOLD)
            .or(ended.map(|at| at + LINGER_UNTOLD))
    }
}

/// How long an ended `--rm` session stays after a reader learned of its end: time to fetch the rest
/// of its output.
const LINGER_TOLD: Duration = Duration::from_secs(10);
/// How long it stays when nobody came to learn of its end.
const LINGER_UNTOLD: Duration = Duration::from_mins(1);

/// Locks a mutex whose data no panic can leave half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is published, and the way to change it.
#[derive(Debug)]
pub(crate) struct Ledger {
    jobs: mpsc::Sender<Job>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: RwLock<BTreeMap<SessionId, Arc<Entry>>>,
    seen: Mutex<BTreeMap<NodeId, u64>>,
    /// Sessions that have work left.
    unsettled: Mutex<BTreeSet<SessionId>>,
    /// Rung when `unsettled` may have grown.
    poke: Notify,
}

/// The task that [`Ledger::new`] leaves to its caller to run.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Receiver<Job>,
    state: Arc<State>,
    store: Arc<Mutex<Store>>,
}

impl Ledger {
    /// Publishes what the store holds. Nothing changes until the writer runs.
    pub(crate) fn new(mut store: Store) -> Result<(Self, Writer), StoreError> {
        let Contents { sessions, seen } = store.load()?;
        let state = Arc::new(State::default());
        *lock(&state.seen) = seen;
        for (id, record) in sessions {
            state.publish(id, Some(record));
        }
        let (sender, jobs) = mpsc::channel(QUEUE);
        let writer = Writer {
            jobs,
            state: Arc::clone(&state),
            store: Arc::new(Mutex::new(store)),
        };
        Ok((
            Self {
                jobs: sender,
                state,
            },
            writer,
        ))
    }

    /// Runs `change` on its own among all changes and answers once its outcome is on disk. A change
    /// that fails leaves nothing behind.
    ///
    /// # Cancel safety
    /// A change that is in the queue is carried out even if the answer is not awaited.
    pub(crate) async fn change<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<R, RpcError> + Send + 'static,
    ) -> Result<R, RpcError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |draft| {
            let before = draft.changes.clone();
            // A fault in one change must not end the writer, and with it every other change.
            let outcome = catch_unwind(AssertUnwindSafe(|| change(draft))).unwrap_or_else(|_| {
                Err(
                    RpcError::internal("the manager has a fault; nothing was changed")
                        .reason("fault")
                        .fix("see the manager's log"),
                )
            });
            if outcome.is_err() {
                draft.changes = before;
            }
            Box::new(move |committed| {
                // Nobody waits for the answer of a call that was given up.
                let _ = sender.send(outcome.and_then(|value| committed.map(|()| value)));
            })
        });
        let closed = || RpcError::unavailable("the manager is shutting down");
        self.jobs
            .send_timeout(job, QUEUE_DEADLINE)
            .await
            .map_err(|e| match e {
                mpsc::error::SendTimeoutError::Timeout(_) => RpcError::new(
                    Status::Backpressure,
                    "the manager's store cannot keep up; repeat later",
                ),
                mpsc::error::SendTimeoutError::Closed(_) => closed(),
            })?;
        receiver.await.map_err(|_| closed())?
    }

    /// Changes the facts of one session, if it is there. Tells whether it was.
    pub(crate) async fn update(
        &self,
        id: SessionId,
        change: impl FnOnce(&mut Facts) + Send + 'static,
    ) -> Result<bool, RpcError> {
        self.change(move |draft| Ok(draft.update(id, change))).await
    }

    pub(crate) fn entry(&self, id: SessionId) -> Option<Arc<Entry>> {
        self.state.entries().get(&id).cloned()
    }

    /// Every session, by id.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.state.entries().values().cloned().collect()
    }

    /// Up to which of its events an agent is known.
    pub(crate) fn seen(&self, node: NodeId) -> u64 {
        lock(&self.state.seen).get(&node).copied().unwrap_or(0)
    }

    /// Sessions with work left.
    pub(crate) fn unsettled(&self) -> Vec<SessionId> {
        lock(&self.state.unsettled).iter().copied().collect()
    }

    /// Makes the reconciler look again.
    pub(crate) fn poke(&self) {
        self.state.poke.notify_one();
    }

    /// Waits until there may be new work.
    pub(crate) async fn poked(&self) {
        self.state.poke.notified().await;
    }
}

impl State {
    fn entries(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<SessionId, Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, id: SessionId, record: Option<Arc<Record>>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut unsettled = lock(&self.unsettled);
        let Some(record) = record else {
            entries.remove(&id);
            unsettled.remove(&id);
            return;
        };
        if record.work().is_some() {
            unsettled.insert(id);
        } else {
            unsettled.remove(&id);
        }
        match entries.get(&id) {
            Some(entry) => {
                entry.record.send_replace(record);
                entry.note_end();
            }
            None => drop(entries.insert(id, Arc::new(Entry::new(record)))),
        }
    }
}

impl Writer {
    /// Carries out changes until `stop`, then those that are in the queue.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled(), if !self.jobs.is_closed() => self.jobs.close(),
                job = self.jobs.recv() => match job {
                    Some(job) => self.batch(job).await,
                    None => return,
                },
            }
        }
    }

    async fn batch(&mut self, first: Job) {
        let mut draft = Draft {
            state: Arc::clone(&self.state),
            changes: Changes::default(),
        };
        let mut answers = vec![first(&mut draft)];
        while answers.len() < BATCH
            && let Ok(job) = self.jobs.try_recv()
        {
            answers.push(job(&mut draft));
        }
        let result = self.commit(draft.changes).await;
        for answer in answers {
            answer(result.clone());
        }
    }

    async fn commit(&self, changes: Changes) -> Result<(), RpcError> {
        if changes.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let commit = move || {
            let result = lock(&store).commit(&changes);
            (changes, result)
        };
        let (changes, result) = tokio::task::spawn_blocking(commit)
            .await
            .map_err(|_| RpcError::unavailable("the manager is shutting down"))?;
        if let Err(error) = result {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot write the store"
            );
            return Err(error.to_rpc());
        }
        lock(&self.state.seen).extend(changes.seen);
        for (id, record) in changes.sessions {
            self.state.publish(id, record);
        }
        self.state.poke.notify_one();
        Ok(())
    }
}

/// The state as it will be when the changes so far are committed.
#[derive(Debug)]
pub(crate) struct Draft {
    state: Arc<State>,
    changes: Changes,
}

impl Draft {
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Record>> {
        match self.changes.sessions.get(&id) {
            Some(changed) => changed.clone(),
            None => self.state.entries().get(&id).map(|entry| entry.now()),
        }
    }

    /// Every session.
    pub(crate) fn all(&self) -> Vec<Arc<Record>> {
        let changed = &self.changes.sessions;
        let entries = self.state.entries();
        let old = entries
            .iter()
            .filter(|(id, _)| !changed.contains_key(id))
            .map(|(_, e)| e.now());
        old.chain(changed.values().flatten().cloned()).collect()
    }

    /// Adds a session, or puts a new one in the place of an old one.
    pub(crate) fn insert(&mut self, record: Record) {
        let id = record.id();
        self.changes.orders.insert(id);
        self.changes.sessions.insert(id, Some(Arc::new(record)));
    }

    /// Changes the facts of a session, if it is there. Tells whether it was.
    pub(crate) fn update(&mut self, id: SessionId, change: impl FnOnce(&mut Facts)) -> bool {
        let Some(before) = self.get(id) else {
            return false;
        };
        let mut after = Record::clone(&before);
        change(&mut after.facts);
        if after.facts != before.facts {
            self.changes.sessions.insert(id, Some(Arc::new(after)));
        }
        true
    }

    pub(crate) fn remove(&mut self, id: SessionId) {
        self.changes.orders.remove(&id);
        self.changes.sessions.insert(id, None);
    }

    pub(crate) fn seen(&self, node: NodeId) -> u64 {
        let changed = self.changes.seen.get(&node).copied();
        changed.unwrap_or_else(|| lock(&self.state.seen).get(&node).copied().unwrap_or(0))
    }

    pub(crate) fn set_seen(&mut self, node: NodeId, seq: u64) {
        if self.seen(node) != seq {
            self.changes.seen.insert(node, seq);
        }
    }
}
