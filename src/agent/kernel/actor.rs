//! One task per kernel: it brings the container up, watches it, and takes everything down again.
//!
//! What the task acquires it puts on its undo list first, and the list is the only way down,
//! whatever the cause. Before each act the journal says so; a task that is dropped at any await is
//! as one that was killed there, and [`crate::recovery`] goes on with it.
//!
//! A request of an earlier life may still be on its way inside the backend, and come true at any
//! time. So nothing on the way up takes anything away: a container of this name is this try's, and
//! is used as it is found. Stops and removals come only after the journal says that it ends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_proto::agent::PullProgress;
use meshwork_proto::kernel::{ExitReason, KernelState};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::record::{Ended, Ending, Record};
use super::{Kernel, output, plan};
use crate::backend::{Backend, BackendError, Phase, Plan};
use crate::failpoint;
use crate::shared::Shared;

/// Drives `kernel` until it is over or the agent stops. `phase` is what its container was found to
/// be when the agent started.
pub(crate) async fn run(shared: Arc<Shared>, kernel: Arc<Kernel>, phase: Option<Phase>) {
    let record = kernel.record();
    let actor = Actor {
        name: record.container(&shared.node),
        undo: vec![Undo::Slots],
        shared: Arc::clone(&shared),
        kernel,
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => debug!(kernel = %record.kernel, "kernel left alone"),
        () = actor.live(phase) => {}
    }
}

/// First and longest wait between two tries of something that must succeed in the end.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Why a kernel ends; none when somebody decided before.
type Verdict = Option<Ending>;

/// How to take back what was acquired.
#[derive(Debug)]
enum Undo {
    Slots,
    /// Whether or not it was made yet.
    Container,
}

struct Actor {
    shared: Arc<Shared>,
    kernel: Arc<Kernel>,
    /// Of the container.
    name: String,
    undo: Vec<Undo>,
}

impl Actor {
    async fn live(mut self, phase: Option<Phase>) {
        if phase.is_some() || self.kernel.record().state != KernelState::Preparing {
            // Of an earlier life of the agent; maybe it was never made.
            self.undo.push(Undo::Container);
        }
        if !self.kernel.ending.is_cancelled() {
            let (verdict, ended) = match self.bring_up(phase).await {
                Ok(()) => self.watch().await,
                Err(verdict) => (verdict, None),
            };
            if let Some(ending) = verdict {
                self.write(move |shared, kernel| kernel.end(shared, ending.clone(), ended))
                    .await;
            }
        }
        self.take_down().await;
    }

    /// From wherever the kernel is to a running container.
    async fn bring_up(&mut self, phase: Option<Phase>) -> Result<(), Verdict> {
        let ran = self.kernel.record().state == KernelState::Running;
        match phase {
            Some(Phase::Running | Phase::Ended) => {}
            _ if ran => return Err(Some(lost())),
            _ => {
                if phase.is_none() {
                    self.fetch().await?;
                }
                self.make().await?;
            }
        }
        if !ran {
            let now = self.shared.clock.now();
            self.update(move |record| {
                if record.ending.is_none() {
                    record.state = KernelState::Running;
                    record.started_at = Some(now);
                }
            })
            .await;
        }
        Ok(())
    }

    /// Fetches the image where its policy asks for it.
    async fn fetch(&self) -> Result<(), Verdict> {
        let limit = self.shared.config.deadlines.pull;
        tokio::select! {
            biased;
            () = self.kernel.ending.cancelled() => Err(None),
            fetched = self.persist(limit, "fetching the image", || self.fetch_once()) => fetched,
        }
    }

    async fn fetch_once(&self) -> Result<(), BackendError> {
        let Record { kernel, spec, .. } = self.kernel.record();
        let mut progress = self.shared.pull(&spec.image, spec.pull).await?;
        while let Some(item) = progress.next().await {
            let item = item?;
            let fetching = matches!(item, PullProgress::Fetching { .. });
            if fetching && self.kernel.look(|r| r.state != KernelState::Pulling) {
                self.enter(KernelState::Pulling).await;
            }
            // Nobody may be listening.
            drop(self.shared.progress.send((kernel, item)));
        }
        Ok(())
    }

    /// Makes the container and starts it. A stop that comes meanwhile waits for the step at hand:
    /// a request to the backend that is given up half-way may still be carried out.
    async fn make(&mut self) -> Result<(), Verdict> {
        self.enter(KernelState::Creating).await;
        self.undo.push(Undo::Container);
        failpoint::hit("after-journal");
        let shared = Arc::clone(&self.shared);
        let record = self.kernel.record();
        let planned = tokio::task::spawn_blocking(move || {
            let volumes = shared.config.data_dir.join("volumes");
            let real = shared.has_real_gpus();
            plan::plan(&record, &shared.node, &volumes, &shared.config.bounds, real)
        });
        let plan = planned
            .await
            .map_err(std::io::Error::other)
            .and_then(|p| p)
            .map_err(|e| Some(failed(format!("volumes: {e}"))))?;
        let deadlines = self.shared.config.deadlines;
        let limit = deadlines.create + deadlines.start;
        self.persist(limit, "making the container", || self.make_once(&plan))
            .await
    }

    async fn make_once(&self, plan: &Plan) -> Result<(), BackendError> {
        let fresh = self.shared.backend.create(plan).await?;
        failpoint::hit("after-create");
        let started = self.start(fresh).await;
        failpoint::hit("after-start");
        match started {
            // Its name was taken by a request of an earlier life that is not done yet.
            Err(BackendError::NotFound(error)) => Err(BackendError::Unavailable(error)),
            other => other,
        }
    }

    /// Starts the container, once: one that was there before may have been started by a request
    /// whose answer was lost. It may end at any moment, so not even one that runs is started.
    async fn start(&self, fresh: bool) -> Result<(), BackendError> {
        let backend = &self.shared.backend;
        if !fresh && backend.inspect(&self.name).await?.0 != Phase::Made {
            return Ok(());
        }
        backend.start(&self.name).await
    }

    /// Waits until the container has ended, and says how.
    async fn watch(&self) -> (Verdict, Option<Ended>) {
        let backend = &self.shared.backend;
        let mut backoff = BACKOFF.0;
        loop {
            let waited = tokio::select! {
                biased;
                () = self.kernel.ending.cancelled() => return (None, None),
                () = self.kernel.poke.notified() => Ok(()),
                waited = backend.wait(&self.name) => waited,
            };
            match backend.inspect(&self.name).await {
                Ok((Phase::Ended, ended)) => return (Some(ended_by_itself()), ended),
                Ok((Phase::Made, _)) | Err(BackendError::NotFound(_)) => {
                    return (Some(lost()), None);
                }
                Ok((Phase::Running, _)) if waited.is_ok() => {
                    backoff = BACKOFF.0;
                    continue;
                }
                Ok((Phase::Running, _)) => {
                    debug!(container = %self.name, ?waited, "wait broke off");
                }
                Err(error) => {
                    warn!(container = %self.name, %error, "container cannot be looked at");
                }
            }
            tokio::select! {
                () = self.kernel.ending.cancelled() => {}
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF.1),
            }
        }
    }

    /// Undoes everything, the last acquired first, and only then calls the kernel terminated.
    async fn take_down(&mut self) {
        while let Some(step) = self.undo.pop() {
            match step {
                Undo::Container => self.dispose().await,
                Undo::Slots => {
                    let id = self.kernel.record().kernel;
                    self.shared.slots.release(&id);
                }
            }
        }
        failpoint::hit("before-terminated");
        let now = self.shared.clock.now();
        self.update(move |record| {
            record.state = KernelState::Terminated(record.exit());
            record.ended_at = Some(now);
        })
        .await;
    }

    /// Stops the container, keeps how it ended and what it said, and removes it.
    async fn dispose(&self) {
        // How it ended is known when it ended by itself: then it does not run.
        if self.kernel.look(|r| r.ended.is_none()) {
            self.stop().await;
            if let Some(ended) = self.ended().await {
                self.update(move |record| record.ended = Some(ended)).await;
            }
        }
        if self.kernel.look(|r| r.ended.is_some()) {
            self.keep_output().await;
        }
        failpoint::hit("before-remove");
        self.eventually(
            "remove a container",
            |b, n| async move { b.remove(&n).await },
        )
        .await;
        failpoint::hit("after-remove");
    }

    /// How the stopped container ended; none when it never ran or is gone.
    async fn ended(&self) -> Option<Ended> {
        self.eventually("look at a stopped container", |b, n| async move {
            match b.inspect(&n).await {
                Ok((_, ended)) => Ok(ended),
                Err(BackendError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn keep_output(&self) {
        let limit = self.shared.config.deadlines.logs;
        let record = self.kernel.record();
        match tokio::time::timeout(limit, output::keep(&self.shared, &record)).await {
            Ok(Ok(())) => {}
            Ok(Err(BackendError::NotFound(_))) => {
                debug!(container = %self.name, "gone; its output was kept before, or is lost");
            }
            Ok(Err(error)) => warn!(container = %self.name, %error, "output is lost"),
            Err(_) => warn!(container = %self.name, "output took too long and is lost"),
        }
    }

    async fn stop(&self) {
        let grace = self
            .kernel
            .look(|r| r.ending.as_ref().map_or(Duration::ZERO, |e| e.grace));
        let polite = self.eventually(
            "stop a container",
            |b, n| async move { b.stop(&n, grace).await },
        );
        tokio::select! {
            biased;
            () = self.kernel.kill_now.cancelled() => {}
            () = polite => return,
        }
        self.eventually("kill a container", |b, n| async move {
            b.stop(&n, Duration::ZERO).await
        })
        .await;
    }

    /// Does what must succeed in the end, however long the backend is away.
    async fn eventually<T, F, Fut>(&self, what: &str, act: F) -> T
    where
        F: Fn(Arc<dyn Backend>, String) -> Fut,
        Fut: Future<Output = Result<T, BackendError>>,
    {
        let mut backoff = BACKOFF.0;
        loop {
            match act(Arc::clone(&self.shared.backend), self.name.clone()).await {
                Ok(value) => return value,
                Err(error) => warn!(container = %self.name, %error, "could not {what}, trying on"),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Does one step of the way up: again while the backend is away, until `limit` is over or the
    /// kernel is to end.
    async fn persist<T, F, Fut>(&self, limit: Duration, what: &str, act: F) -> Result<T, Verdict>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, BackendError>>,
    {
        let deadline = Instant::now() + limit;
        let mut backoff = BACKOFF.0;
        loop {
            if self.kernel.ending.is_cancelled() {
                return Err(None);
            }
            match timeout_at(deadline, act()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(BackendError::Unavailable(error))) if Instant::now() < deadline => {
                    warn!(container = %self.name, %error, "{what}: trying on");
                }
                Ok(Err(BackendError::Unavailable(_))) | Err(_) => return Err(Some(too_late(what))),
                Ok(Err(error)) => return Err(Some(failed(error.to_string()))),
            }
            tokio::select! {
                () = self.kernel.ending.cancelled() => {}
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF.1),
            }
        }
    }

    /// Goes on to a state of the way up, unless the kernel is to end.
    async fn enter(&self, state: KernelState) {
        self.update(move |record| {
            if record.ending.is_none() {
                record.state = state.clone();
            }
        })
        .await;
    }

    async fn update(&self, change: impl Fn(&mut Record) + Send + Sync + 'static) {
        self.write(move |shared, kernel| kernel.update(shared, &change))
            .await;
    }

    /// Writes to the journal, again until it succeeds: a full disk stops the kernel's life, not
    /// the truth about it.
    async fn write(
        &self,
        act: impl Fn(&Shared, &Kernel) -> Result<(), crate::journal::JournalError>
        + Send
        + Sync
        + 'static,
    ) {
        let act = Arc::new(act);
        let mut backoff = BACKOFF.0;
        loop {
            let (shared, kernel) = (Arc::clone(&self.shared), Arc::clone(&self.kernel));
            let act = Arc::clone(&act);
            match tokio::task::spawn_blocking(move || act(&shared, &kernel)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => warn!(container = %self.name, %error, "journal, trying on"),
                Err(error) => warn!(container = %self.name, %error, "journal, trying on"),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

fn ending(reason: ExitReason, message: Option<String>) -> Ending {
    Ending {
        reason,
        message,
        grace: Duration::ZERO,
    }
}

fn ended_by_itself() -> Ending {
    ending(ExitReason::SelfTerminated, None)
}

fn lost() -> Ending {
    ending(
        ExitReason::ContainerLost,
        Some("its container is gone".into()),
    )
}

/// Longest cause of a failed start that is kept, in bytes: it may quote what the user sent.
const MAX_CAUSE: usize = 4096;

fn failed(mut message: String) -> Ending {
    message.truncate(message.floor_char_boundary(MAX_CAUSE));
    ending(ExitReason::FailedToStart, Some(message))
}

fn too_late(what: &str) -> Ending {
    ending(
        ExitReason::DeadlineExceeded,
        Some(format!("{what} took too long")),
    )
}
