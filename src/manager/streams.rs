//! The streaming methods: a session's changes, its output, a command in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream as streams};
use meshwork_proto::SessionId;
use meshwork_proto::agent::{
    self, ExecItem, ExecKernel, ExecOrder, KernelLogs, LogChunk, PullProgress,
};
use meshwork_proto::manager::{self, SessionExec, SessionLogs, SessionRef};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{CallContext, CallOptions, ItemStream, Method, stream};
use meshwork_proto::session::{SessionUpdate, SessionView};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::core::{Core, no_answer};
use crate::ledger::{Audience, Entry, lock};
use crate::record::Record;

/// Longest wait for an agent's first answer on a stream.
const FIRST_ITEM: Duration = Duration::from_secs(30);

/// Counts a reader of a session as long as it lives.
struct Attached {
    core: Arc<Core>,
    audience: Arc<Audience>,
    /// Whether the reader was told that the session ended.
    told: bool,
}

impl Attached {
    fn new(core: &Arc<Core>, entry: &Entry) -> Self {
        let audience = Arc::clone(&entry.audience);
        audience.attached.fetch_add(1, Ordering::SeqCst);
        Self {
            core: Arc::clone(core),
            audience,
            told: false,
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.told {
            *lock(&self.audience.told) = Some(Instant::now());
        }
        self.audience.attached.fetch_sub(1, Ordering::SeqCst);
        self.core.ledger.poke();
    }
}

/// The present state, then each change. States that follow each other faster than the reader takes
/// them are skipped; the last one never is.
pub(crate) async fn watch(
    core: Arc<Core>,
    cx: CallContext,
    request: SessionRef,
) -> Result<ItemStream<SessionUpdate>, RpcError> {
    let entry = core.resolve(&cx, &manager::Watch::INFO, &request.session)?;
    let watcher = Watcher {
        record: entry.record.subscribe(),
        progress: entry.progress.subscribe(),
        nodes: core.nodes.watch(),
        attached: Attached::new(&core, &entry),
        last: None,
    };
    let next = |watcher: Option<Watcher>| async { watcher?.next().await };
    Ok(Box::pin(streams::unfold(Some(watcher), next)))
}

struct Watcher {
    record: watch::Receiver<Arc<Record>>,
    progress: watch::Receiver<Option<PullProgress>>,
    nodes: watch::Receiver<u64>,
    attached: Attached,
    /// What was told last.
    last: Option<SessionView>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<SessionUpdate, RpcError>, Option<Self>)> {
        if self
            .last
            .as_ref()
            .is_some_and(|view| view.state.exit().is_some())
        {
            // Asked for more after the end: so the end has been taken.
            self.attached.told = true;
            return None;
        }
        loop {
            let view = self.attached.core.view(&self.record.borrow_and_update());
            if self.last.as_ref() != Some(&view) {
                self.last = Some(view.clone());
                return Some((Ok(SessionUpdate::View(view)), Some(self)));
            }
            let core = Arc::clone(&self.attached.core);
            tokio::select! {
                biased;
                changed = self.record.changed() => changed.ok()?,
                changed = self.progress.changed() => {
                    changed.ok()?;
                    let progress = self.progress.borrow_and_update().clone();
                    if let Some(progress) = progress {
                        return Some((Ok(SessionUpdate::Pull(progress)), Some(self)));
                    }
                }
                changed = self.nodes.changed() => changed.ok()?,
                () = core.closing.cancelled() => return Some((Err(shutting_down()), None)),
            }
        }
    }
}

fn shutting_down() -> RpcError {
    RpcError::unavailable("the manager is shutting down")
}

/// The agent's stream, as it comes.
pub(crate) async fn logs(
    core: Arc<Core>,
    cx: CallContext,
    request: SessionLogs,
) -> Result<ItemStream<LogChunk>, RpcError> {
    let entry = core.resolve(&cx, &manager::Logs::INFO, &request.session)?;
    let record = entry.now();
    let logs = KernelLogs {
        kernel: record.kernel(),
        tail: request.tail,
        follow: request.follow,
        since: request.since,
    };
    relay::<agent::Logs>(&core, &cx, &entry, &record, &logs).await
}

/// Passes a signed command on. That the owner signed it for this session is for the agent to say;
/// the manager only refuses what would go to another one.
pub(crate) async fn exec(
    core: Arc<Core>,
    cx: CallContext,
    request: SessionExec,
) -> Result<ItemStream<ExecItem>, RpcError> {
    let SessionExec { session, warrant } = request;
    let entry = core.resolve(&cx, &manager::Exec::INFO, &session.to_string())?;
    let record = entry.now();
    let malformed = |e| RpcError::invalid(format!("the order cannot be read: {e}")).reason("order");
    let order: ExecOrder = warrant.open().map_err(malformed)?;
    if order.kernel != record.kernel() {
        return Err(foreign_kernel(session));
    }
    relay::<agent::Exec>(&core, &cx, &entry, &record, &ExecKernel { warrant }).await
}

fn foreign_kernel(session: SessionId) -> RpcError {
    let message = format!(
        "the order names a kernel that is not one of {}",
        session.short()
    );
    RpcError::invalid(message).reason("order")
}

async fn relay<M: Method>(
    core: &Arc<Core>,
    cx: &CallContext,
    entry: &Entry,
    record: &Record,
    request: &M::Request,
) -> Result<ItemStream<M::Response>, RpcError> {
    let attached = Attached::new(core, entry);
    let options = CallOptions {
        trace: cx.trace,
        ..CallOptions::within(cx.deadline.map_or(FIRST_ITEM, |d| d.min(FIRST_ITEM)))
    };
    let node = record.facts.node;
    let items = stream::<M>(&*core.caller, node, request, options);
    let items = timeout(options.deadline, items)
        .await
        .unwrap_or_else(|_| Err(no_answer(node, &M::INFO)))?;
    let closing = core.closing.clone();
    let cut = async move { closing.is_cancelled().then(|| Err(shutting_down())) };
    let items = items
        .take_until(core.closing.clone().cancelled_owned())
        .chain(streams::once(cut).filter_map(std::future::ready))
        .map(move |item| {
            let _ = &attached;
            item
        });
    Ok(Box::pin(items))
}
