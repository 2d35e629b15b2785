//! The event stream: what the journal keeps from a number on, then what comes, with progress and
//! heartbeats between.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use meshwork_proto::KernelId;
use meshwork_proto::agent::{EventItem, HEARTBEAT, PullProgress};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::ItemStream;
use tokio::sync::{broadcast, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::shared::Shared;

/// Events read from the journal at a time.
const PAGE: usize = 256;

/// Every kept event after `after`, in order and once each, and whatever follows.
pub(crate) fn watch(shared: &Arc<Shared>, after: u64) -> ItemStream<EventItem> {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_seq = shared.journal.last_seq();
    // What is there already is looked at first.
    last_seq.mark_changed();
    let watcher = Watcher {
        shared: Arc::clone(shared),
        after,
        page: VecDeque::new(),
        last_seq,
        progress: shared.progress.subscribe(),
        heartbeat,
    };
    Box::pin(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Some(Ok(item)) => Some((Ok(item), Some(watcher))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    }))
}

struct Watcher {
    shared: Arc<Shared>,
    /// Events up to here were told, or are in `page`.
    after: u64,
    page: VecDeque<EventItem>,
    last_seq: watch::Receiver<u64>,
    progress: broadcast::Receiver<(KernelId, PullProgress)>,
    heartbeat: Interval,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<EventItem, RpcError>> {
        loop {
            if let Some(item) = self.page.pop_front() {
                return Some(Ok(item));
            }
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return None,
                changed = self.last_seq.changed() => {
                    changed.ok()?;
                    if let Err(error) = self.read().await {
                        return Some(Err(error));
                    }
                }
                _ = self.heartbeat.tick() => {
                    return Some(Ok(EventItem::Heartbeat(self.shared.heartbeat(|_| true))));
                }
                progress = self.progress.recv() => match progress {
                    Ok((kernel, progress)) => {
                        return Some(Ok(EventItem::Progress { kernel, progress }));
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    }

    /// Reads the next page.
    async fn read(&mut self) -> Result<(), RpcError> {
        let (shared, after) = (Arc::clone(&self.shared), self.after);
        let read = move || Ok(shared.journal.events_after(after, PAGE)?);
        let events = self.shared.blocking(read).await?;
        if let Some(last) = events.last() {
            self.after = last.seq;
        }
        if events.len() == PAGE {
            self.last_seq.mark_changed();
        }
        self.page.extend(events.into_iter().map(EventItem::Event));
        Ok(())
    }
}
