//! Listens to every agent: one task each, which subscribes to its events after the last one that
//! is on disk here, notes them, and only then acknowledges them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use meshwork_identity::NodeId;
use meshwork_proto::agent::{
    self, AckEvents, EventItem, Events, Heartbeat, KernelEvent, PullProgress,
};
use meshwork_proto::announcement::Role;
use meshwork_proto::manager::LOST_AFTER;
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{CallOptions, ItemStream, stream};
use meshwork_proto::{KernelId, SessionId, Status};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::compare;
use crate::core::{COMMAND_DEADLINE, Core};
use crate::ledger::Draft;

/// How often the directory is looked at for agents that are new or back, and silence is measured.
const LOOK: Duration = Duration::from_millis(250);
/// Events noted in one commit.
const BATCH: usize = 256;
/// First pause before a broken subscription is made anew; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(150);
/// Longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The task that listens to one node.
struct Hold {
    task: AbortHandle,
    /// Rung when the node may have come back.
    news: Arc<Notify>,
    last: Trace,
}

/// What the mesh knows of a node, by which it is seen to come back.
#[derive(Debug, Clone, Copy)]
struct Trace {
    /// Version of its announcement.
    announced: Option<u64>,
    /// Age of the connection with it, looked up while nothing is heard of it.
    connected: Option<Duration>,
}

impl Trace {
    /// Whether the node announced itself or connected after `earlier`.
    fn is_news_after(&self, earlier: &Self) -> bool {
        let anew = |age| earlier.connected.is_none_or(|before| age < before);
        self.announced > earlier.announced || self.connected.is_some_and(anew)
    }
}

/// Runs until `stop`: one listener for every agent in the directory, and for every node that a
/// session is still to be settled with.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut listeners: BTreeMap<NodeId, Hold> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                tracing::error!(%error, "an agent's listener failed; it is started again");
            },
            _ = look.tick() => look_around(&core, &mut listeners, &mut tasks),
        }
    }
    tasks.shutdown().await;
}

/// Starts and ends listeners as nodes come and go, and wakes those whose node came back.
fn look_around(core: &Arc<Core>, listeners: &mut BTreeMap<NodeId, Hold>, tasks: &mut JoinSet<()>) {
    let wanted = wanted(core);
    listeners.retain(|node, hold| {
        let keep = wanted.contains_key(node);
        if !keep {
            hold.task.abort();
            core.nodes.forget(*node);
        }
        keep && !hold.task.is_finished()
    });
    for (node, trace) in wanted {
        core.nodes.expect(node);
        let hold = listeners.entry(node).or_insert_with(|| {
            let news = Arc::new(Notify::new());
            let task = tasks.spawn(listen(Arc::clone(core), node, Arc::clone(&news)));
            let last = trace;
            Hold { task, news, last }
        });
        if trace.is_news_after(&hold.last) {
            hold.news.notify_one();
        }
        hold.last = trace;
    }
    core.nodes.refresh();
}

/// The nodes to listen to.
fn wanted(core: &Core) -> BTreeMap<NodeId, Trace> {
    let agents = core.directory.with_role(Role::Agent).into_iter();
    let agents = agents.map(|(node, version)| (node, Some(version)));
    let records = core.ledger.entries().into_iter().map(|entry| entry.now());
    let open = records
        .filter(|r| r.work().is_some() || !r.ended())
        .map(|r| (r.facts.node, None));
    // Agents last: what they announce counts.
    let wanted: BTreeMap<_, _> = open.chain(agents).collect();
    let trace = |(node, announced)| {
        let silent = !core.nodes.is_ready(node);
        let peer = silent.then(|| core.directory.peer(&node)).flatten();
        let connected = peer.map(|peer| peer.age);
        let trace = Trace {
            announced,
            connected,
        };
        (node, trace)
    };
    wanted.into_iter().map(trace).collect()
}

async fn listen(core: Arc<Core>, node: NodeId, news: Arc<Notify>) {
    let mut failures = 0;
    loop {
        let mut listener = Listener::new(&core, node);
        let mut heard = false;
        let error = listener.follow(&mut heard).await;
        failures = if heard { 0 } else { failures + 1 };
        tracing::debug!(node = node.short(), %error, "subscription ended; it is made anew");
        // Not even news shortens the first pause.
        tokio::time::sleep(pause(node, 0)).await;
        let more = pause(node, failures).saturating_sub(pause(node, 0));
        if timeout(more, news.notified()).await.is_ok() {
            failures = 0;
        }
    }
}

/// Grows with the failures and differs between nodes, so that a manager that comes back does not
/// call all of them in the same instant, again and again.
fn pause(node: NodeId, failures: u32) -> Duration {
    let base = RETRY_MIN
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(RETRY_MAX);
    base + base * u32::from(node.as_bytes()[0]) / 512
}

/// One subscription.
struct Listener<'a> {
    core: &'a Arc<Core>,
    node: NodeId,
    /// Whether an event of this subscription was noted.
    noted: bool,
    /// Whether events were lost for good: only a comparison can tell what they said.
    missed: bool,
    /// How far events were known at a heartbeat that knew of more.
    behind: Option<u64>,
    /// How far they were acknowledged.
    acked: u64,
    /// Calls that a heartbeat led to, one task at most: events do not wait for their answers.
    aside: JoinSet<Result<Acked, RpcError>>,
}

/// How far events were acknowledged; none: the acknowledgement was lost.
type Acked = Option<u64>;

/// What happened to a batch of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    any: bool,
    /// The agent no longer has some that were not seen.
    missed: bool,
    /// One is missing in the middle; a new subscription brings it.
    broken: bool,
}

impl<'a> Listener<'a> {
    fn new(core: &'a Arc<Core>, node: NodeId) -> Self {
        Self {
            core,
            node,
            noted: false,
            missed: false,
            behind: None,
            acked: 0,
            aside: JoinSet::new(),
        }
    }

    /// Follows until something ends it, and tells what.
    async fn follow(&mut self, heard: &mut bool) -> RpcError {
        match self.subscribe().await {
            Ok(mut items) => loop {
                match self.turn(&mut items).await {
                    Ok(()) => *heard = true,
                    Err(error) => return error,
                }
            },
            Err(error) => error,
        }
    }

    async fn subscribe(&self) -> Result<ItemStream<EventItem>, RpcError> {
        let request = Events {
            after: self.core.ledger.seen(self.node),
        };
        let options = CallOptions::within(COMMAND_DEADLINE);
        let items = stream::<agent::Watch>(&*self.core.caller, self.node, &request, options);
        timeout(COMMAND_DEADLINE, items)
            .await
            .unwrap_or_else(|_| Err(silent()))
    }

    /// Takes in what has arrived, up to and including a heartbeat; or what was done aside.
    async fn turn(&mut self, items: &mut ItemStream<EventItem>) -> Result<(), RpcError> {
        let ended = || RpcError::unavailable("the agent ended the stream");
        let first = tokio::select! {
            biased;
            Some(done) = self.aside.join_next() => return self.done_aside(done),
            first = timeout(LOST_AFTER, items.next()) => first.map_err(|_| silent())?,
        };
        let mut next = Some(first.ok_or_else(ended)??);
        let (mut events, mut heartbeat, mut broken) = (Vec::new(), None, None);
        while let Some(item) = next.take() {
            match item {
                EventItem::Event(event) => events.push(event),
                EventItem::Progress { kernel, progress } => self.progress(kernel, progress),
                EventItem::Heartbeat(beat) => heartbeat = Some(beat),
            }
            if heartbeat.is_some() || events.len() >= BATCH {
                break;
            }
            match items.next().now_or_never() {
                Some(Some(Ok(item))) => next = Some(item),
                Some(Some(Err(error))) => broken = Some(error),
                Some(None) => broken = Some(ended()),
                None => {}
            }
        }
        self.core.nodes.hear(self.node);
        self.note(events).await?;
        if let Some(heartbeat) = heartbeat {
            self.beat(heartbeat).await?;
        }
        broken.map_or(Ok(()), Err)
    }

    async fn note(&mut self, events: Vec<KernelEvent>) -> Result<(), RpcError> {
        if events.is_empty() {
            return Ok(());
        }
        let (node, first) = (self.node, !self.noted);
        let noted = self
            .core
            .ledger
            .change(move |draft| Ok(note(draft, node, &events, first)))
            .await?;
        self.noted |= noted.any;
        self.missed |= noted.missed;
        if noted.broken {
            return Err(RpcError::unavailable("an event is missing in the stream"));
        }
        Ok(())
    }

    async fn beat(&mut self, heartbeat: Heartbeat) -> Result<(), RpcError> {
        let (node, last) = (self.node, heartbeat.last_seq);
        self.core.nodes.beat(node, heartbeat.clone());
        let seen = self.core.ledger.seen(node);
        if last < seen {
            // Its log is shorter than what we saw of it: it begins anew.
            let again = move |draft: &mut Draft| {
                draft.set_seen(node, 0);
                Ok(())
            };
            self.core.ledger.change(again).await?;
            return Err(RpcError::unavailable("the agent's log began anew"));
        }
        if last > seen && self.behind.replace(seen) == Some(seen) {
            return Err(RpcError::unavailable("announced events did not arrive"));
        }
        if self.aside.is_empty() {
            let differs = self.missed || compare::disagree(self.core, node, &heartbeat);
            self.missed = false;
            let ack = (seen > self.acked).then_some(seen);
            if differs || ack.is_some() {
                let core = Arc::clone(self.core);
                self.aside.spawn(answer(core, node, differs, ack));
            }
        }
        Ok(())
    }

    fn done_aside(
        &mut self,
        done: Result<Result<Acked, RpcError>, JoinError>,
    ) -> Result<(), RpcError> {
        let fault = |e: JoinError| RpcError::internal(format!("a comparison failed: {e}"));
        if let Some(seq) = done.map_err(fault)?? {
            self.acked = seq;
        }
        Ok(())
    }

    fn progress(&self, kernel: KernelId, progress: PullProgress) {
        if let Some(id) = session_of(kernel)
            && let Some(entry) = self.core.ledger.entry(id)
            && entry.now().facts.node == self.node
        {
            entry.progress.send_replace(Some(progress));
        }
    }
}

/// What a heartbeat leads to: the comparison with an agent that differs, and the acknowledgement.
async fn answer(
    core: Arc<Core>,
    node: NodeId,
    differs: bool,
    ack: Option<u64>,
) -> Result<Acked, RpcError> {
    if differs {
        compare::settle(&core, node).await?;
    }
    let Some(up_to) = ack else {
        return Ok(None);
    };
    // A lost acknowledgement only makes the agent keep events for longer.
    let acked = core.ask::<agent::Ack>(node, &AckEvents { up_to }).await;
    Ok(acked.is_ok().then_some(up_to))
}

fn silent() -> RpcError {
    RpcError::new(Status::Timeout, "the agent is silent")
}

/// Applies the events that are new, in order, and how far they go. `first`: no event of this
/// subscription was applied before, so that a gap in front means the agent keeps no older ones.
fn note(draft: &mut Draft, node: NodeId, events: &[KernelEvent], first: bool) -> Noted {
    let mut seq = draft.seen(node);
    let mut noted = Noted {
        any: false,
        missed: false,
        broken: false,
    };
    for event in events {
        if event.seq <= seq {
            continue;
        }
        if event.seq > seq + 1 {
            if !first || noted.any {
                noted.broken = true;
                break;
            }
            noted.missed = true;
        }
        let ours = draft
            .get(event.session)
            .filter(|r| r.facts.node == node && r.kernel() == event.kernel);
        if ours.is_some() {
            draft.update(event.session, |facts| facts.apply_event(event));
        }
        seq = event.seq;
        noted.any = true;
    }
    draft.set_seen(node, seq);
    noted
}

/// The session whose first kernel this is: [`SessionId::kernel`] undone, and checked.
pub(crate) fn session_of(kernel: KernelId) -> Option<SessionId> {
    let mut bytes = *kernel.as_bytes();
    bytes[15] ^= 1;
    let id = SessionId::from_bytes(bytes);
    (id.kernel(0) == kernel).then_some(id)
}
