//! Does for each session what is left to do: looks at the record, makes one call, notes the
//! outcome, looks again. It has no input but the ledger, so it goes on after a restart where it
//! was, and a lost answer only means that the call is made again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{CLOCK_TOLERANCE, NodeId};
use meshwork_proto::SessionId;
use meshwork_proto::agent::{self, CreateKernel, KernelRef, StopKernel};
use meshwork_proto::kernel::{ExitReason, KernelView};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_sched::{NotPlaced, Refusal, describe};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::create::next_generation;
use crate::ledger::Draft;
use crate::placement::not_placed;
use crate::record::{Facts, Record, Refused, StopIntent, Work};

/// Steps under way at once; one per session at most.
const CONCURRENCY: usize = 256;
/// Of these, to one node: those that wait for a dead one keep no other waiting.
const PER_NODE: usize = 8;
/// First pause after a failed step; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often everything is looked at again without being asked.
const CYCLE: Duration = Duration::from_secs(5);
/// Nodes that one order is offered to.
const MAX_PLACEMENTS: usize = 8;

/// How long a removed session waits for a node that left the mesh, from the session's end.
const ABANDONED_AFTER: Duration = Duration::from_hours(7 * 24);
/// Time after the start in which announcements are still coming in.
const DIRECTORY_FILLS: Duration = Duration::from_mins(10);

/// How one step went.
enum Step {
    /// Noted; the record says what is next.
    Done,
    /// Nothing known; the same again later.
    Again,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    failures: u32,
    at: Instant,
}

/// A step under way.
struct Busy {
    task: task::Id,
    node: NodeId,
}

/// Runs until `stop`. Steps under way are then dropped: each may be repeated.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut steps: JoinSet<Step> = JoinSet::new();
    let mut busy: BTreeMap<SessionId, Busy> = BTreeMap::new();
    let mut retries: BTreeMap<SessionId, Retry> = BTreeMap::new();
    loop {
        let unsettled = core.ledger.unsettled();
        retries.retain(|id, _| unsettled.binary_search(id).is_ok());
        let idle = unsettled.into_iter().filter(|id| !busy.contains_key(id));
        let mut waiting: Vec<_> = idle
            .filter_map(|id| due(&core, id, retries.get(&id)))
            .collect();
        // Whoever waits longest comes first, so that none starves.
        waiting.sort_by_key(|(_, due)| *due);
        let now = Instant::now();
        let next = waiting.iter().map(|(_, due)| *due).find(|due| *due > now);
        for (record, _) in waiting.into_iter().take_while(|(_, due)| *due <= now) {
            let (id, node) = (record.id(), record.facts.node);
            let to_node = busy.values().filter(|step| step.node == node).count();
            if busy.len() >= CONCURRENCY || to_node >= PER_NODE {
                // The end of a step wakes.
                continue;
            }
            let task = steps.spawn(step(Arc::clone(&core), record)).id();
            busy.insert(id, Busy { task, node });
        }
        let wake = next.map_or(now + CYCLE, |due| due.min(now + CYCLE));
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = steps.join_next_with_id() => {
                let (task, outcome) = ended.unwrap_or_else(|error| {
                    tracing::error!(%error, "a step failed");
                    (error.id(), Step::Again)
                });
                let id = busy.iter().find(|(_, step)| step.task == task).map(|(id, _)| *id);
                let id = id.expect("every step under way is busy");
                busy.remove(&id);
                match outcome {
                    Step::Done => drop(retries.remove(&id)),
                    Step::Again => drop(retries.insert(id, later(retries.get(&id).copied()))),
                }
            }
            () = core.ledger.poked() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
    }
    steps.shutdown().await;
}

/// A session with work, and when that is due; none while nothing can be done for it.
fn due(core: &Core, id: SessionId, retry: Option<&Retry>) -> Option<(Arc<Record>, Instant)> {
    let entry = core.ledger.entry(id)?;
    let record = entry.now();
    let now = Instant::now();
    let due = match record.work()? {
        Work::Linger => entry.lingers_until()?,
        Work::Create | Work::Stop | Work::Remove => now,
    };
    Some((record, retry.map_or(due, |retry| retry.at.max(due))))
}

fn later(before: Option<Retry>) -> Retry {
    let failures = before.map_or(0, |r| r.failures);
    let pause = RETRY_MIN
        .saturating_mul(1 << failures.min(16))
        .min(RETRY_MAX);
    Retry {
        failures: failures.saturating_add(1),
        at: Instant::now() + pause,
    }
}

async fn step(core: Arc<Core>, record: Arc<Record>) -> Step {
    let id = record.id();
    let outcome = match record.work() {
        Some(Work::Create) => create(&core, &record).await,
        Some(Work::Stop) => stop(&core, &record).await,
        Some(Work::Linger) => core
            .ledger
            .update(id, |facts| facts.removed = true)
            .await
            .map(drop),
        Some(Work::Remove) => remove(&core, &record).await,
        None => Ok(()),
    };
    match outcome {
        Ok(()) => Step::Done,
        Err(error) => {
            tracing::debug!(session = %id, node = record.facts.node.short(), %error, "will try again");
            Step::Again
        }
    }
}

async fn create(core: &Arc<Core>, record: &Record) -> Result<(), RpcError> {
    let facts = &record.facts;
    let request = CreateKernel {
        kernel: record.kernel(),
        index: 0,
        attempt: facts.attempt,
        generation: facts.generation,
        warrant: record.ordered.warrant.clone(),
    };
    let (node, generation) = (facts.node, facts.generation);
    match core.ask::<agent::Create>(node, &request).await {
        Ok(view) => taken(core, record, view).await,
        Err(error) if is_answer(&error) => {
            // An earlier call, whose answer was lost, may have been taken: a refused repeat, for
            // example under a token that has expired since, must not end what runs.
            let kernel = record.kernel();
            match core.ask::<agent::Get>(node, &KernelRef { kernel }).await {
                Ok(view) if view.generation == generation => taken(core, record, view).await,
                Ok(_) => refused(core, record, error).await,
                Err(unknown) if is_unknown(&unknown) => refused(core, record, error).await,
                Err(unclear) => Err(unclear),
            }
        }
        Err(error) => Err(error),
    }
}

/// Takes in that the node has the kernel.
async fn taken(core: &Core, record: &Record, view: KernelView) -> Result<(), RpcError> {
    let (now, generation) = (core.now(), record.facts.generation);
    let plan = given_plan(core, record, &view);
    let apply = move |facts: &mut Facts| {
        facts.apply_view(&view, now);
        if let Some(plan) = plan.filter(|_| facts.generation == generation) {
            facts.plan = plan;
        }
    };
    core.ledger.update(record.id(), apply).await.map(drop)
}

/// The plan with the devices that the agent gave, if it differs from the guess in more than words.
fn given_plan(core: &Core, record: &Record, view: &KernelView) -> Option<String> {
    let (_, heartbeat) = core.nodes.standing(record.facts.node).heard?;
    let gpus = &heartbeat.capacity.gpus;
    let given: Option<Vec<_>> = view
        .allocation
        .gpus
        .iter()
        .map(|grant| gpus.iter().find(|gpu| gpu.device.index == grant.index))
        .collect();
    let given = given.filter(|given| !given.is_empty())?;
    Some(describe(&record.facts.node_name, given.into_iter()))
}

/// Whether an error is the agent's own decision. All others leave open whether the call arrived.
fn is_answer(error: &RpcError) -> bool {
    match error.status {
        Status::Denied
        | Status::Invalid
        | Status::ResourceExhausted
        | Status::Conflict
        | Status::App(_) => true,
        Status::NotFound => error.reason != "no_service",
        _ => false,
    }
}

/// Takes in an agent's refusal: without room there, the next best node is tried; every other
/// refusal would be the same elsewhere, and is final.
async fn refused(core: &Arc<Core>, record: &Record, error: RpcError) -> Result<(), RpcError> {
    let (id, generation) = (record.id(), record.facts.generation);
    let grant = core.trust.verify(&record.ordered.warrant);
    let shared = Arc::clone(core);
    let change = move |draft: &mut Draft| {
        let Some(known) = draft.get(id) else {
            return Ok(());
        };
        let facts = &known.facts;
        if facts.generation != generation || facts.accepted || known.ended() {
            return Ok(());
        }
        let now = shared.now();
        if facts.stop.is_some() {
            draft.update(id, |facts| facts.end(ExitReason::UserRequested, None, now));
            return Ok(());
        }
        let mut refused = facts.refused.clone();
        refused.push(Refused {
            node: facts.node,
            name: facts.node_name.clone(),
            words: error.message.clone(),
        });
        let next = match grant {
            _ if error.status != Status::ResourceExhausted => Err(error),
            Err(error) => Err(error),
            Ok(_) if refused.len() >= MAX_PLACEMENTS => Err(refused_everywhere(&refused)),
            Ok(grant) => shared.place(draft, &known.ordered, &grant, &refused),
        };
        draft.update(id, |facts| match next {
            Ok(placement) => {
                facts.refused = refused;
                facts.node = placement.node;
                facts.node_name = placement.name;
                facts.plan = placement.plan;
                facts.attempt += 1;
                facts.generation = next_generation(facts.generation, now);
            }
            Err(error) => facts.refuse(error, now),
        });
        Ok(())
    };
    core.ledger.change(change).await
}

fn refused_everywhere(refused: &[Refused]) -> RpcError {
    let refusal = |r: &Refused| Refusal {
        node: r.node,
        name: r.name.clone(),
        reasons: vec![format!("refused: {}", r.words)],
    };
    let refusals = refused.iter().map(refusal).collect();
    not_placed(&NotPlaced {
        filter: None,
        filtered: 0,
        refusals,
    })
}

async fn stop(core: &Core, record: &Record) -> Result<(), RpcError> {
    let Some(StopIntent { grace, .. }) = record.facts.stop else {
        return Ok(());
    };
    let request = StopKernel {
        kernel: record.kernel(),
        grace,
    };
    let now = core.now();
    match core.ask::<agent::Stop>(record.facts.node, &request).await {
        Ok(view) => {
            let confirm = move |facts: &mut Facts| {
                facts.apply_view(&view, now);
                // A stop with another grace may have come meanwhile; that one is not confirmed.
                if let Some(stop) = facts.stop.as_mut().filter(|stop| stop.grace == grace) {
                    stop.confirmed = true;
                }
            };
            core.ledger.update(record.id(), confirm).await.map(drop)
        }
        Err(error) if is_unknown(&error) => {
            let gone = move |facts: &mut Facts| {
                let reason = if facts.accepted {
                    ExitReason::ContainerLost
                } else {
                    ExitReason::UserRequested
                };
                facts.end(reason, None, now);
            };
            core.ledger.update(record.id(), gone).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

async fn remove(core: &Arc<Core>, record: &Record) -> Result<(), RpcError> {
    let forgotten = forget_at(
        core,
        record.facts.node,
        KernelRef {
            kernel: record.kernel(),
        },
    )
    .await;
    if !is_abandoned(core, record) {
        forgotten?;
        if may_still_start(core, record) {
            let text = "a call to start it may still be on its way";
            return Err(RpcError::unavailable(text));
        }
    }
    let (id, shared) = (record.id(), Arc::clone(core));
    let forget = move |draft: &mut Draft| {
        if let Some(known) = draft.get(id).filter(|known| known.facts.removed) {
            shared.nodes.release(&known);
            draft.remove(id);
        }
        Ok(())
    };
    core.ledger.change(forget).await
}

/// Whether a call to start it that was given up can still reach the agent and be obeyed. The record
/// then stays, as nobody else would know the kernel as a stray.
fn may_still_start(core: &Core, record: &Record) -> bool {
    let (facts, order) = (&record.facts, &record.ordered.order);
    let until = order.issued_at.saturating_add(order.valid_for);
    let in_time = core.now() < until.saturating_add(CLOCK_TOLERANCE);
    !facts.accepted && facts.refusal.is_none() && in_time
}

/// Whether the node left the mesh long ago with the session's remains.
fn is_abandoned(core: &Core, record: &Record) -> bool {
    let node = record.facts.node;
    let since = record.facts.ended_at.unwrap_or(record.facts.created_at);
    let long_ago = core.now().duration_since(since) > ABANDONED_AFTER;
    long_ago && core.started.elapsed() > DIRECTORY_FILLS && !core.directory.knows(&node)
}

/// Makes an agent forget a kernel; one that it does not know is forgotten already.
pub(crate) async fn forget_at(
    core: &Core,
    node: NodeId,
    kernel: KernelRef,
) -> Result<(), RpcError> {
    match core.ask::<agent::Remove>(node, &kernel).await {
        Err(error) if !is_unknown(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the agent has said that it does not know the kernel.
fn is_unknown(error: &RpcError) -> bool {
    error.status == Status::NotFound && is_answer(error)
}
