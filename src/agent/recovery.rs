//! Making what is agree with what should be: once when the agent starts, after whatever ended it,
//! and then again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshwork_proto::KernelId;
use meshwork_proto::kernel::KernelState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::AgentError;
use crate::backend::{BackendError, Found, Phase};
use crate::journal::Loaded;
use crate::kernel::record::Record;
use crate::kernel::{Kernel, output};
use crate::shared::Shared;

/// Terminated kernels remembered. Above it the longest dead go; managers remove theirs earlier.
const MAX_REMEMBERED: usize = 4096;
/// Time between two tries to reach the backend at the start.
const RETRY: Duration = Duration::from_millis(500);

/// Takes over what the journal and the backend know: living kernels are adopted, what no living
/// kernel needs is removed.
pub(crate) async fn recover(shared: &Arc<Shared>, loaded: Loaded) -> Result<(), AgentError> {
    let found = list(shared).await?;
    let mut phases: BTreeMap<(KernelId, u32, u64), Phase> = found
        .iter()
        .filter_map(|f| Some((f.kernel?, f.phase)))
        .collect();
    let live = |record: &&Record| !record.is_over();
    let wanted: BTreeSet<_> = loaded.records.iter().filter(live).map(key).collect();
    for record in loaded.records {
        let phase = phases.remove(&key(&record));
        if !record.is_over() {
            info!(kernel = %record.kernel, state = record.state.name(), "kernel taken over");
            shared
                .slots
                .restore(record.kernel, record.owner, record.allocation.clone());
        }
        shared.adopt(Kernel::new(record), phase);
    }
    for container in found {
        if container.kernel.is_none_or(|k| !wanted.contains(&k)) {
            discard(shared, &container).await;
        }
    }
    forget_logs(shared).await;
    Ok(())
}

fn key(record: &Record) -> (KernelId, u32, u64) {
    (record.kernel, record.attempt, record.generation)
}

async fn list(shared: &Shared) -> Result<Vec<Found>, AgentError> {
    let listed = async {
        loop {
            match shared.backend.list().await {
                Err(BackendError::Unavailable(error)) => debug!(%error, "backend is away"),
                other => return other,
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let limit = shared.config.deadlines.ask;
    let late = || BackendError::Unavailable(format!("no answer within {limit:?}"));
    let listed = tokio::time::timeout(limit, listed).await;
    listed
        .unwrap_or_else(|_| Err(late()))
        .map_err(AgentError::Backend)
}

async fn discard(shared: &Shared, container: &Found) {
    match shared.backend.remove(&container.id).await {
        Ok(()) => info!(container = %container.id, "container that no kernel needs removed"),
        Err(error) => warn!(container = %container.id, %error, "container could not be removed"),
    }
}

/// Removes output of kernels that nobody remembers.
async fn forget_logs(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let forget = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        for entry in std::fs::read_dir(shared.config.data_dir.join("logs"))? {
            let entry = entry?;
            let kernel = entry.file_name().to_str().and_then(|n| n.parse().ok());
            if kernel.is_none_or(|k| shared.kernel(&k).is_none()) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    });
    if let Ok(Err(error)) = forget.await {
        warn!(%error, "old output could not be removed");
    }
}

/// Compares and repairs, until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut tick = interval(shared.config.reconcile_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let repair = async {
        let mut swept_at = 0;
        loop {
            tick.tick().await;
            match shared.backend.list().await {
                Ok(found) => reconcile(&shared, &found).await,
                Err(error) => warn!(%error, "containers cannot be listed, nothing is changed"),
            }
            forget_oldest(&shared).await;
            // Nothing has ended where nothing was told.
            let last_seq = *shared.journal.last_seq().borrow();
            if last_seq != swept_at {
                swept_at = last_seq;
                let owned = Arc::clone(&shared);
                if let Err(error) = tokio::task::spawn_blocking(move || bound_output(&owned)).await
                {
                    warn!(%error, "kept output could not be measured");
                }
            }
        }
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = repair => {}
    }
}

/// One comparison. The kernels are read after the containers were listed: a container that no
/// kernel needs now is of the past, as each is made for a kernel that is known already.
async fn reconcile(shared: &Arc<Shared>, found: &[Found]) {
    let live: Vec<Record> = shared
        .all()
        .iter()
        .filter(|k| !k.look(Record::is_over))
        .map(|k| k.record())
        .collect();
    let wanted: BTreeSet<_> = live.iter().map(key).collect();
    for container in found {
        if container.kernel.is_none_or(|k| !wanted.contains(&k)) {
            discard(shared, container).await;
        }
    }
    let running: BTreeSet<_> = found
        .iter()
        .filter(|f| f.phase == Phase::Running)
        .filter_map(|f| f.kernel)
        .collect();
    for record in &live {
        if record.state == KernelState::Running
            && !running.contains(&key(record))
            && let Some(kernel) = shared.kernel(&record.kernel)
        {
            kernel.poke.notify_one();
        }
    }
    let owned = Arc::clone(shared);
    if let Err(error) = tokio::task::spawn_blocking(move || free_unheld(&owned)).await {
        warn!(%error, "slots could not be compared");
    }
}

/// Frees slots that no living kernel holds. There should be none.
fn free_unheld(shared: &Shared) {
    // Between a reservation and its kernel lies a write to the journal.
    let _turn = shared
        .admission
        .lock()
        .expect("nothing panics while it admits a kernel");
    for id in shared.slots.holders() {
        if shared.kernel(&id).is_none_or(|k| k.look(Record::is_over)) {
            warn!(kernel = %id, "slots were held by no kernel and are free again");
            shared.slots.release(&id);
        }
    }
}

/// Drops the output of the longest dead kernels above the bound on that of all. Blocks on the disk.
fn bound_output(shared: &Shared) {
    // None of them is begun anew meanwhile.
    let _turn = shared
        .admission
        .lock()
        .expect("nothing panics while it admits a kernel");
    let mut over: Vec<Record> = shared
        .all()
        .iter()
        .filter(|k| k.look(Record::is_over))
        .map(|k| k.record())
        .collect();
    over.sort_by_key(|r| std::cmp::Reverse(r.ended_at));
    let mut total = 0u64;
    for record in over {
        let size = output::size(&shared.logs(&record.kernel));
        total = total.saturating_add(size);
        if size > 0 && total > shared.config.bounds.dead_log_bytes {
            shared.drop_logs(&record);
        }
    }
}

async fn forget_oldest(shared: &Arc<Shared>) {
    let mut over: Vec<_> = shared
        .all()
        .into_iter()
        .filter(|k| k.look(Record::is_over))
        .collect();
    if over.len() <= MAX_REMEMBERED {
        return;
    }
    over.sort_by_key(|k| k.look(|r| r.ended_at));
    let surplus = over.len() - MAX_REMEMBERED;
    for kernel in over.into_iter().take(surplus) {
        let shared = Arc::clone(shared);
        let forgotten = tokio::task::spawn_blocking(move || shared.forget(&kernel));
        if let Ok(Err(error)) = forgotten.await {
            warn!(%error, "an old kernel could not be forgotten");
        }
    }
}
