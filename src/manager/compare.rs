//! The full comparison with an agent: what it runs against what should run there. It heals
//! whatever lost messages left behind.

use std::sync::Arc;

use meshwork_identity::NodeId;
use meshwork_proto::agent::{self, Heartbeat, KernelRef, StopKernel};
use meshwork_proto::kernel::{ExitReason, KernelState, KernelView};
use meshwork_proto::rpc::RpcError;

use crate::agents::session_of;
use crate::core::Core;
use crate::ledger::Draft;
use crate::reconcile::forget_at;
use crate::record::Record;

/// What shall happen to a kernel that an agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing, or not ours to judge: other managers have kernels, too.
    Leave,
    /// Its session ended without it.
    Stop,
    /// Its session was placed anew.
    Forget,
}

/// Whether a heartbeat contradicts the records. Cheap, and may err in favour of a comparison.
pub(crate) fn disagree(core: &Core, node: NodeId, heartbeat: &Heartbeat) -> bool {
    let reported = |record: &Record| {
        let (kernel, generation) = (record.kernel(), record.facts.generation);
        heartbeat
            .kernels
            .iter()
            .find(|(k, g, _)| (*k, *g) == (kernel, generation))
    };
    let misses = running_on(core, node)
        .iter()
        .any(|record| reported(record).is_none_or(|(_, _, state)| record.facts.disagrees(state)));
    let strays = heartbeat.kernels.iter().any(|(kernel, generation, state)| {
        let record = session_of(*kernel)
            .and_then(|id| core.ledger.entry(id))
            .map(|e| e.now());
        record.is_some_and(|r| judge(&r, node, *generation, state) != Verdict::Leave)
    });
    misses || strays
}

/// Sessions that the agent has taken and that have not ended.
fn running_on(core: &Core, node: NodeId) -> Vec<Arc<Record>> {
    let records = core.ledger.entries().into_iter().map(|entry| entry.now());
    records
        .filter(|r| r.facts.node == node && r.facts.accepted && !r.ended())
        .collect()
}

fn judge(record: &Record, node: NodeId, generation: u64, state: &KernelState) -> Verdict {
    let facts = &record.facts;
    if facts.removed || generation > facts.generation {
        // Being forgotten already; or a newer manager's.
        Verdict::Leave
    } else if facts.node != node || generation < facts.generation {
        Verdict::Forget
    } else if record.ended() && state.exit().is_none() {
        Verdict::Stop
    } else {
        Verdict::Leave
    }
}

/// Asks the agent for everything that it holds and settles every difference.
pub(crate) async fn settle(core: &Arc<Core>, node: NodeId) -> Result<(), RpcError> {
    // Taken before the question: what the agent accepts from here on may be missing in the answer.
    let expected = running_on(core, node);
    let held = core.ask::<agent::List>(node, &()).await?;
    let now = core.now();
    let views = held.clone();
    let adopt = move |draft: &mut Draft| {
        for record in &expected {
            let generation = record.facts.generation;
            let view = views
                .iter()
                .find(|v| (v.kernel, v.generation) == (record.kernel(), generation));
            draft.update(record.id(), |facts| match view {
                _ if facts.generation != generation => {}
                Some(view) => {
                    facts.apply_view(view, now);
                    if facts.stop_was_lost(&view.state)
                        && let Some(stop) = &mut facts.stop
                    {
                        stop.confirmed = false;
                    }
                }
                None => facts.end(
                    ExitReason::ContainerLost,
                    Some("the node has lost it".into()),
                    now,
                ),
            });
        }
        Ok(())
    };
    core.ledger.change(adopt).await?;
    for view in &held {
        clear(core, node, view).await?;
    }
    Ok(())
}

async fn clear(core: &Core, node: NodeId, view: &KernelView) -> Result<(), RpcError> {
    let Some(record) = core.ledger.entry(view.session).map(|entry| entry.now()) else {
        return Ok(());
    };
    if record.kernel() != view.kernel {
        return Ok(());
    }
    match judge(&record, node, view.generation, &view.state) {
        Verdict::Leave => Ok(()),
        Verdict::Stop => {
            let request = StopKernel {
                kernel: view.kernel,
                grace: None,
            };
            core.ask::<agent::Stop>(node, &request).await.map(drop)
        }
        Verdict::Forget => {
            forget_at(
                core,
                node,
                KernelRef {
                    kernel: view.kernel,
                },
            )
            .await
        }
    }
}
