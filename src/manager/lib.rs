//! The manager: takes users' signed orders, places them on agents, and keeps sessions.
//!
//! ```text
//!  CLI ── session.* ──▶ api, streams ─┐              ┌─▶ store (one file)
//!                       create ───────┼─▶ ledger ────┤   durable before anybody sees it
//!  agents ── events ──▶ agents ───────┤   one writer └─▶ watchers
//!                       compare ──────┘      │
//!  agents ◀── commands ── reconcile ◀────────┘ what is left to do follows from the records
//! ```
//! It is written against the traits of `meshwork_proto` only: it calls nodes through a
//! [`Caller`], finds them in a [`Directory`] and is served by a [`Router`].

mod agents;
mod api;
mod compare;
mod core;
mod create;
mod ledger;
mod nodes;
mod placement;
mod reconcile;
mod record;
mod store;
mod streams;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshwork_proto::ports::{Directory, Trust, WallClock};
use meshwork_proto::service::{Caller, Router};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::ledger::{Ledger, lock};
use crate::nodes::Nodes;
use crate::store::Store;
pub use crate::store::StoreError;

/// What a manager needs to start.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Folder for its store; made when it is missing.
    pub data_dir: PathBuf,
}

/// Why a manager did not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Its store cannot be used.
    #[error("the manager's store cannot be opened")]
    Store(#[from] StoreError),
}

/// A running manager. Dropping it stops its tasks where they are; what it has acknowledged is on
/// disk.
pub struct Manager {
    core: Arc<Core>,
    /// Stops the writer, after all others.
    closed: CancellationToken,
    workers: Mutex<JoinSet<()>>,
    writer: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Opens the store and goes on with every session in it. Within a tokio runtime.
    pub async fn start(
        config: ManagerConfig,
        caller: Arc<dyn Caller>,
        directory: Arc<dyn Directory>,
        trust: Arc<dyn Trust>,
        clock: Arc<dyn WallClock>,
    ) -> Result<Self, ManagerError> {
        let open = move || Ledger::new(Store::open(&config.data_dir)?);
        let (ledger, writing) = tokio::task::spawn_blocking(open)
            .await
            .expect("opening the store does not panic, and nobody aborts it")?;
        let core = Arc::new(Core {
            ledger,
            nodes: Nodes::default(),
            caller,
            directory,
            trust,
            clock,
            started: Instant::now(),
            closing: CancellationToken::new(),
        });
        let closed = CancellationToken::new();
        let (mut workers, mut writer) = (JoinSet::new(), JoinSet::new());
        writer.spawn(writing.run(closed.clone()));
        workers.spawn(agents::run(Arc::clone(&core), core.closing.clone()));
        workers.spawn(reconcile::run(Arc::clone(&core), core.closing.clone()));
        Ok(Self {
            core,
            closed,
            workers: Mutex::new(workers),
            writer: Mutex::new(writer),
        })
    }

    /// The service `manager`.
    pub fn router(&self) -> Router {
        api::router(&self.core)
    }

    /// Stops within `deadline`: streams end, commands under way are dropped (they are repeated at
    /// the next start), changes in the queue are written. Sessions go on.
    pub async fn shutdown(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.core.closing.cancel();
        join(&self.workers, until).await;
        self.closed.cancel();
        join(&self.writer, until).await;
    }
}

/// Joins tasks until then, and aborts those that are left.
async fn join(tasks: &Mutex<JoinSet<()>>, until: Instant) {
    let mut tasks = std::mem::take(&mut *lock(tasks));
    while let Ok(Some(_)) = timeout_at(until, tasks.join_next()).await {}
    tasks.shutdown().await;
}
