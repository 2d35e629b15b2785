//! The calls of a lane that go on in tasks of their own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The calls that go on in tasks of their own.
#[derive(Debug, Default)]
pub(super) struct Running {
    tasks: Mutex<BTreeMap<u64, AbortHandle>>,
    /// The last one has ended.
    pub(super) none: Notify,
}

impl Running {
    pub(super) fn tasks(&self) -> MutexGuard<'_, BTreeMap<u64, AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.tasks().contains_key(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks().is_empty()
    }

    pub(super) fn abort(&self, id: u64) {
        // Dropping what is aborted takes it out of the table.
        let task = self.tasks().get(&id).cloned();
        if let Some(task) = task {
            task.abort();
        }
    }

    pub(super) fn abort_all(&self) {
        let tasks: Vec<AbortHandle> = self.tasks().values().cloned().collect();
        tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Takes a call out of the table when its task ends, however it does.
pub(super) struct Ends {
    pub(super) running: Arc<Running>,
    pub(super) id: u64,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut tasks = self.running.tasks();
        tasks.remove(&self.id);
        if tasks.is_empty() {
            self.running.none.notify_one();
        }
    }
}
