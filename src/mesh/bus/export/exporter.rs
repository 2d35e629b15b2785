//! The loop between a bus and a sink.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::outbox::{Outbox, OutboxError};
use super::parcel::Parcel;
use super::{Consumer, ExportStats, Sink, SinkError};
use crate::bus::batch::{Order, Want};
use crate::bus::consumer::News;

/// How an exporter works.
#[derive(Debug, Clone)]
pub struct ExportConfig {
    /// Where the producer's name, the numbers and the parcel under way are kept. Without it they end
    /// with the process, and ids are stable over retries only. Default none.
    pub outbox: Option<PathBuf>,
    /// Whether the outbox outlives a loss of power too, at the price of two `fsync` for a parcel.
    /// Default no.
    pub sync: bool,
    /// Events in a parcel, 1..=65,536. Default 1,000.
    pub events: usize,
    /// Bytes of payload in a parcel, single events that are larger apart. Default 1 MiB.
    pub bytes: usize,
    /// Longest wait for the other side's answer. Default 30 s.
    pub patience: Duration,
    /// Pause after a first failure; doubles with each further one. Default 100 ms.
    pub least_pause: Duration,
    /// Longest pause. Default 10 s.
    pub longest_pause: Duration,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            outbox: None,
            sync: false,
            events: 1_000,
            bytes: 1 << 20,
            patience: Duration::from_secs(30),
            least_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
        }
    }
}

/// An exporter cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The outbox cannot be used.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The system gives no randomness to name the producer with.
    #[error("cannot name the producer")]
    Producer(#[source] std::io::Error),
    /// The other side refuses the events. What was under way is still in the outbox.
    #[error(transparent)]
    Refused(SinkError),
}

/// Why the loop ends early.
enum Halt {
    Stopped,
    Failed(ExportError),
}

/// Sends what a consumer reads to a sink.
#[derive(Debug)]
pub struct Exporter<S> {
    consumer: Consumer,
    sink: S,
    config: ExportConfig,
    outbox: Option<Outbox>,
    /// Left by an earlier run.
    pending: Option<Parcel>,
    stats: Arc<ExportStats>,
}

impl<S: Sink> Exporter<S> {
    /// Opens the outbox. Reads and writes the disk: not for use on a busy runtime's thread.
    pub fn new(consumer: Consumer, sink: S, config: ExportConfig) -> Result<Self, ExportError> {
        let (outbox, pending) = match &config.outbox {
            Some(path) => Outbox::open(path, config.sync)?,
            None => (Outbox::in_memory().map_err(ExportError::Producer)?, None),
        };
        Ok(Self {
            consumer,
            sink,
            config,
            outbox: Some(outbox),
            pending,
            stats: Arc::default(),
        })
    }

    /// Its counts, to look at while it runs.
    pub fn stats(&self) -> Arc<ExportStats> {
        self.stats.clone()
    }

    /// What an earlier run left in the outbox, to be sent first.
    pub fn pending(&self) -> Option<&Parcel> {
        self.pending.as_ref()
    }

    /// The number of the next event that is read from the bus. Every event before it has arrived or is
    /// [`Self::pending`]: a producer that numbers its events from 0, and repeats after a crash from
    /// here on, exports each of them exactly once.
    pub fn next_number(&self) -> u64 {
        self.outbox().parcel().first()
    }

    /// Runs until the bus is closed and all of it has arrived, or until `stop`, or until the other side
    /// refuses for good. To be spawned by whoever owns the bus; close the bus and wait for this to
    /// end gracefully, then `stop` at the deadline: the parcel under way stays in the outbox.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ExportError> {
        match self.export(&stop).await {
            Err(Halt::Stopped) | Ok(()) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    async fn export(&mut self, stop: &CancellationToken) -> Result<(), Halt> {
        if let Some(parcel) = self.pending.take() {
            self.deliver(&parcel, stop).await?;
            self.stats
                .resumed
                .fetch_add(parcel.len() as u64, Ordering::Relaxed);
        }
        let want = Want::up_to(self.config.events).max_bytes(self.config.bytes);
        let want = want.order(Order::Time);
        loop {
            let news = stop.run_until_cancelled(self.consumer.wait()).await;
            let news = news.ok_or(Halt::Stopped)?;
            let batch = self
                .consumer
                .poll(None, &want)
                .expect("it has no cursor to be wrong");
            if batch.is_empty() && news == News::Closed {
                return Ok(());
            }
            let mut parcel = self.outbox().parcel();
            for event in batch.iter() {
                if event.payload.len() > self.sink.max_event() {
                    self.stats.too_large.fetch_add(1, Ordering::Relaxed);
                } else {
                    parcel.push(event.payload);
                }
            }
            if !parcel.is_empty() {
                let parcel = self.store(parcel, stop).await?;
                self.deliver(&parcel, stop).await?;
            }
            let confirmed = self.consumer.confirm(batch.cursor());
            confirmed.expect("the cursor is of this bus");
        }
    }

    /// Writes the parcel into the outbox, however long that takes: what is not written is not sent.
    async fn store(
        &mut self,
        parcel: Parcel,
        stop: &CancellationToken,
    ) -> Result<Arc<Parcel>, Halt> {
        let parcel = Arc::new(parcel);
        for attempt in 0.. {
            let written = parcel.clone();
            match self.on_disk(move |outbox| outbox.write(&written)).await {
                Ok(()) => break,
                Err(error) => self.fail(&error, attempt, stop).await?,
            }
        }
        Ok(parcel)
    }

    /// Sends until it has arrived, and notes that.
    async fn deliver(&mut self, parcel: &Parcel, stop: &CancellationToken) -> Result<(), Halt> {
        for attempt in 0.. {
            let sending = tokio::time::timeout(self.config.patience, self.sink.send(parcel));
            match stop
                .run_until_cancelled(sending)
                .await
                .ok_or(Halt::Stopped)?
            {
                Ok(Ok(())) => break,
                Ok(Err(SinkError::Transient(error))) => self.fail(&*error, attempt, stop).await?,
                Ok(Err(fatal)) => return Err(Halt::Failed(ExportError::Refused(fatal))),
                Err(late) => self.fail(&late, attempt, stop).await?,
            }
        }
        self.stats
            .sent
            .fetch_add(parcel.len() as u64, Ordering::Relaxed);
        for attempt in 0.. {
            match self.on_disk(Outbox::arrived).await {
                Ok(()) => break,
                Err(error) => self.fail(&error, attempt, stop).await?,
            }
        }
        Ok(())
    }

    /// Counts and tells a failure, and pauses before the next attempt.
    async fn fail(
        &self,
        error: &(dyn Error + Send + Sync + 'static),
        attempt: u32,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        self.tell(error, attempt);
        let pause = tokio::time::sleep(self.pause(attempt));
        stop.run_until_cancelled(pause).await.ok_or(Halt::Stopped)
    }

    /// Once is news, the rest is repetition.
    fn tell(&self, error: &(dyn Error + 'static), attempt: u32) {
        let consumer = self.consumer.name();
        if attempt == 0 {
            tracing::warn!(error, consumer, "export failed, trying again");
        } else {
            tracing::debug!(error, consumer, attempt, "export failed again");
        }
    }

    /// Exponential, the upper half of it by chance, so that exporters do not come back all at once.
    fn pause(&self, attempt: u32) -> Duration {
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let longest = self
            .config
            .least_pause
            .saturating_mul(factor)
            .min(self.config.longest_pause);
        let chance = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
        longest.mul_f64(0.5 + chance / 2.0)
    }

    fn outbox(&self) -> &Outbox {
        self.outbox
            .as_ref()
            .expect("it is away only while `on_disk` waits for it")
    }

    /// Lets a thread that may block work on the outbox.
    async fn on_disk(
        &mut self,
        work: impl FnOnce(&mut Outbox) -> Result<(), OutboxError> + Send + 'static,
    ) -> Result<(), OutboxError> {
        let mut outbox = self
            .outbox
            .take()
            .expect("only one at a time works on the outbox");
        if self.config.outbox.is_none() {
            let outcome = work(&mut outbox);
            self.outbox = Some(outbox);
            return outcome;
        }
        let task = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut outbox);
            (outbox, outcome)
        });
        let (outbox, outcome) = task.await.expect("the outbox does not panic");
        self.outbox = Some(outbox);
        outcome
    }
}
