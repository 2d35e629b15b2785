//! The streaming methods: a session's changes, its output, a command in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream as streams};
use meshwork_proto::SessionId;
use meshwork_proto::agent::{
    self, ExecItem, ExecKernel, ExecOrder, KernelLogs, LogChunk, PullProgress,
};
use meshwork_proto::manager::{self, NodeState, SessionExec, SessionLogs, SessionRef};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, CallOptions, ItemStream, Method, stream};
use meshwork_proto::session::{SessionState, SessionUpdate, SessionView};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::core::{Core, no_answer};
use crate::ledger::{Audience, Entry, lock};
use crate::record::{Facts, Record};

/// Longest wait until an agent takes a stream.
const OPENING: Duration = Duration::from_secs(30);
/// The same where somebody waits for what is there already.
const OPENING_AT_ONCE: Duration = Duration::from_secs(3);

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
    let (within, tells_end) = if request.follow {
        (OPENING, true)
    } else {
        (OPENING_AT_ONCE, false)
    };
    let relay = Relay {
        core: &core,
        cx: &cx,
        entry: &entry,
        within,
        tells_end,
    };
    relay.open::<agent::Logs>(&logs).await
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
    if record.ended() {
        return Err(not_running(&record));
    }
    let relay = Relay {
        core: &core,
        cx: &cx,
        entry: &entry,
        within: OPENING,
        tells_end: false,
    };
    relay.open::<agent::Exec>(&ExecKernel { warrant }).await
}

fn foreign_kernel(session: SessionId) -> RpcError {
    let message = format!(
        "the order names a kernel that is not one of {}",
        session.short()
    );
    RpcError::invalid(message).reason("order")
}

/// Why nothing can be run in a session now.
fn not_running(record: &Record) -> RpcError {
    let id = record.id().short();
    let text = match record.facts.state {
        SessionState::Terminated(_) => format!("session {id} has ended"),
        SessionState::Terminating => format!("session {id} is ending"),
        SessionState::Running => format!("session {id} is not running at this moment"),
        _ => format!("session {id} has not started yet"),
    };
    RpcError::new(Status::Conflict, text)
        .reason("not_running")
        .fix(format!("meshwork logs {id} shows what it wrote"))
}

/// Why there is no output of a session.
fn no_output(record: &Record) -> RpcError {
    let id = record.id().short();
    let text = if record.ended() {
        format!("session {id} has ended, and no output of it is kept")
    } else {
        format!("session {id} has no output yet")
    };
    RpcError::not_found(text).reason("no_output")
}

fn unreachable(record: &Record) -> RpcError {
    let Facts {
        node, node_name, ..
    } = &record.facts;
    let text = format!("{node_name} ({}) is not reachable now", node.short());
    RpcError::unavailable(text)
        .reason("node_unreachable")
        .fix("repeat it when meshwork node ls shows the node as ready")
}

/// A stream from a session's agent to a caller.
struct Relay<'a> {
    core: &'a Arc<Core>,
    cx: &'a CallContext,
    entry: &'a Entry,
    /// Longest wait until the agent takes it.
    within: Duration,
    /// Whether its end tells the reader that the session ended.
    tells_end: bool,
}

impl Relay<'_> {
    async fn open<M: Method>(
        self,
        request: &M::Request,
    ) -> Result<ItemStream<M::Response>, RpcError> {
        let core = self.core;
        let attached = Attached::new(core, self.entry);
        let record = self.entry.now();
        let node = record.facts.node;
        if core.nodes.standing(node).state == NodeState::Lost {
            return Err(unreachable(&record));
        }
        let options = CallOptions {
            trace: self.cx.trace,
            ..CallOptions::within(self.cx.deadline.map_or(self.within, |d| d.min(self.within)))
        };
        let items = stream::<M>(&*core.caller, node, request, options);
        let items = timeout(options.deadline, items)
            .await
            .unwrap_or_else(|_| Err(no_answer(node, &M::INFO)))
            .map_err(|error| self.in_plain_words::<M>(error))?;
        let relayed = Relayed {
            items,
            attached,
            tells_end: self.tells_end,
        };
        Ok(Box::pin(streams::unfold(Some(relayed), |relayed| async {
            relayed?.next().await
        })))
    }

    /// The agent's refusal as users, who know nothing of kernels, understand it.
    fn in_plain_words<M: Method>(&self, error: RpcError) -> RpcError {
        let record = self.entry.now();
        let lost = error.status == Status::Timeout || error.reason == "connection_lost";
        match error.status {
            // Whether a command that is not to be repeated was run, is open then.
            _ if lost && !M::INFO.idempotent => error,
            _ if lost || error.status == Status::NoRoute => unreachable(&record),
            Status::Conflict if error.reason == "not_running" => not_running(&record),
            Status::NotFound if error.reason == "no_kernel" && M::INFO.idempotent => {
                no_output(&record)
            }
            // A living one that the agent denies to know may be another's there.
            Status::NotFound if error.reason == "no_kernel" && record.ended() => {
                not_running(&record)
            }
            _ => error,
        }
    }
}

/// The agent's stream, as it comes.
struct Relayed<T> {
    items: ItemStream<T>,
    attached: Attached,
    tells_end: bool,
}

impl<T> Relayed<T> {
    async fn next(mut self) -> Option<(Result<T, RpcError>, Option<Self>)> {
        let closing = self.attached.core.closing.clone();
        let item = tokio::select! {
            biased;
            () = closing.cancelled() => return Some((Err(shutting_down()), None)),
            item = self.items.next() => item,
        };
        match item {
            Some(Ok(item)) => Some((Ok(item), Some(self))),
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                // Asked for more after the last item: so all of them have been taken.
                self.attached.told |= self.tells_end;
                None
            }
        }
    }
}
