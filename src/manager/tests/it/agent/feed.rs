//! The event stream of the agent in memory, with the faults that are ordered for it.

use meshwork_proto::KernelId;
use meshwork_proto::agent::{EventItem, Events, HEARTBEAT, KernelEvent, PullProgress};
use meshwork_proto::rpc::RpcError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;

/// One subscription.
pub(super) struct Feed {
    agent: Agent,
    after: u64,
    /// To send next, last first.
    queue: Vec<KernelEvent>,
    next_beat: Instant,
    changed: watch::Receiver<u64>,
    epoch: watch::Receiver<u64>,
    progress: watch::Receiver<Option<(KernelId, PullProgress)>>,
}

impl Feed {
    pub(super) fn new(agent: &Agent, request: Events) -> Self {
        Self {
            agent: agent.clone(),
            after: request.after,
            queue: Vec::new(),
            next_beat: Instant::now(),
            changed: agent.changed.subscribe(),
            epoch: agent.epoch.subscribe(),
            progress: agent.progress.subscribe(),
        }
    }

    pub(super) async fn next(mut self) -> Option<(Result<EventItem, RpcError>, Option<Self>)> {
        loop {
            if self.epoch.has_changed().unwrap_or(true) {
                return Some((Err(RpcError::unavailable("connection lost")), None));
            }
            self.fill();
            if let Some(event) = self.queue.pop() {
                return Some((Ok(EventItem::Event(event)), Some(self)));
            }
            let told = self.progress.has_changed().unwrap_or(false);
            let progress = self.progress.borrow_and_update().clone();
            if told && let Some((kernel, progress)) = progress {
                return Some((Ok(EventItem::Progress { kernel, progress }), Some(self)));
            }
            if self.next_beat <= Instant::now() {
                self.next_beat = Instant::now() + HEARTBEAT;
                let beat = self.agent.state().heartbeat();
                return Some((Ok(EventItem::Heartbeat(beat)), Some(self)));
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.epoch.changed() => {
                    return Some((Err(RpcError::unavailable("connection lost")), None));
                }
                () = tokio::time::sleep_until(self.next_beat) => {}
            }
        }
    }

    /// Queues what is new, with the faults that are ordered.
    fn fill(&mut self) {
        if !self.queue.is_empty() {
            return;
        }
        let mut faults = self.agent.faults();
        let state = self.agent.state();
        let mut new: Vec<_> = state
            .log
            .iter()
            .filter(|e| e.seq > self.after)
            .cloned()
            .collect();
        let Some(last) = new.last().map(|e| e.seq) else {
            return;
        };
        self.after = last;
        new.retain(|event| !faults.skip.remove(&event.seq));
        if let Some(at) = new
            .iter()
            .position(|e| Some(e.seq) == faults.swap)
            .filter(|at| at + 1 < new.len())
        {
            new.swap(at, at + 1);
            faults.swap = None;
        }
        if faults.duplicate {
            new = new
                .into_iter()
                .flat_map(|event| [event.clone(), event])
                .collect();
        }
        new.reverse();
        self.queue = new;
    }
}
