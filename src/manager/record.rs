//! One session as the manager keeps it, and every way in which it may change. Pure: time and
//! reports come in as arguments.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp, Warrant};
use meshwork_proto::agent::KernelEvent;
use meshwork_proto::kernel::{Exit, ExitReason, KernelState, KernelView};
use meshwork_proto::session::{SessionOrder, SessionState, SessionView};
use meshwork_proto::slots::{Allocation, Resources};
use meshwork_proto::{KernelId, RpcError, SessionId};
use serde::{Deserialize, Serialize};

/// What the user signed; never changes.
#[derive(Debug)]
pub(crate) struct Ordered {
    /// As it goes to the agent.
    pub(crate) warrant: Warrant,
    /// What the warrant's order says.
    pub(crate) order: SessionOrder,
    /// Who signed it.
    pub(crate) owner: NodeId,
}

impl Ordered {
    pub(crate) fn resources(&self) -> &Resources {
        &self.order.spec.kernel.resources
    }
}

/// What became of the order so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The node that it is placed on.
    pub(crate) node: NodeId,
    /// That node's name when it was chosen.
    pub(crate) node_name: String,
    /// Why that node, for people.
    pub(crate) plan: String,
    /// Which placement this is; grows with each.
    pub(crate) attempt: u32,
    /// As the agents know it; grows with each placement, across managers too.
    pub(crate) generation: u64,
    /// Whether the node has answered that it took the order.
    pub(crate) accepted: bool,
    /// Where the session is in its life, as last told.
    pub(crate) state: SessionState,
    /// Devices that it was given.
    pub(crate) gpus: Vec<String>,
    /// That it shall end.
    pub(crate) stop: Option<StopIntent>,
    /// Nodes that had no room for it after all.
    pub(crate) refused: Vec<Refused>,
    /// Why it was refused for good; it then never ran.
    pub(crate) refusal: Option<RpcError>,
    /// That it shall be forgotten; from then on nobody sees it.
    pub(crate) removed: bool,
    /// When it was ordered.
    pub(crate) created_at: Timestamp,
    /// When it began to run.
    pub(crate) started_at: Option<Timestamp>,
    /// When it ended.
    pub(crate) ended_at: Option<Timestamp>,
}

/// An agent's refusal of one placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    /// What it said.
    pub(crate) words: String,
}

/// A user's wish that a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StopIntent {
    /// Time between signal and kill; none: the kernel's own.
    pub(crate) grace: Option<Duration>,
    /// Whether the agent has answered that it knows.
    pub(crate) confirmed: bool,
}

/// A session.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// What was signed.
    pub(crate) ordered: Arc<Ordered>,
    /// What became of it.
    pub(crate) facts: Facts,
}

/// What is left to do for a session. Follows from the record alone, so that it is the same after a
/// restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Tell the agent to make the kernel.
    Create,
    /// Tell the agent to stop it.
    Stop,
    /// Wait for readers to go away, then mark it for removal (`--rm`).
    Linger,
    /// Tell the agent to forget it, then forget it here.
    Remove,
}

impl Record {
    pub(crate) fn id(&self) -> SessionId {
        self.ordered.order.session
    }

    pub(crate) fn kernel(&self) -> KernelId {
        self.id().kernel(0)
    }

    pub(crate) fn ended(&self) -> bool {
        self.facts.state.exit().is_some()
    }

    pub(crate) fn work(&self) -> Option<Work> {
        let facts = &self.facts;
        if facts.removed {
            Some(Work::Remove)
        } else if self.ended() {
            self.ordered.order.spec.remove.then_some(Work::Linger)
        } else if let Some(stop) = facts.stop {
            (!stop.confirmed).then_some(Work::Stop)
        } else {
            (!facts.accepted).then_some(Work::Create)
        }
    }

    pub(crate) fn view(&self, node_reachable: bool) -> SessionView {
        let (spec, facts) = (&self.ordered.order.spec, &self.facts);
        SessionView {
            session: self.id(),
            name: spec.name.clone(),
            owner: self.ordered.owner,
            image: spec.kernel.image.clone(),
            command: spec.kernel.command.clone(),
            state: facts.state.clone(),
            node: facts.node,
            node_name: facts.node_name.clone(),
            gpus: facts.gpus.clone(),
            node_reachable,
            created_at: facts.created_at,
            started_at: facts.started_at,
            ended_at: facts.ended_at,
        }
    }
}

impl Facts {
    /// Takes in an event of this placement; those of others say nothing about it.
    pub(crate) fn apply_event(&mut self, event: &KernelEvent) {
        if event.generation == self.generation {
            self.advance(&event.state, event.at);
        }
    }

    /// Takes in an agent's answer about this placement. An agent that knows the kernel has taken
    /// the order.
    pub(crate) fn apply_view(&mut self, view: &KernelView, now: Timestamp) {
        if view.generation != self.generation {
            return;
        }
        self.accepted = true;
        if self.gpus.is_empty() {
            self.gpus = device_names(&view.allocation);
        }
        self.started_at = self.started_at.or(view.started_at);
        self.advance(&view.state, view.ended_at.unwrap_or(now));
    }

    /// Moves the state forward, never back: answers and events come over different streams, and
    /// the older may arrive last. The first end wins.
    fn advance(&mut self, state: &KernelState, at: Timestamp) {
        let next = session_state(state);
        if rank(&next) <= rank(&self.state) {
            return;
        }
        if next == SessionState::Running {
            self.started_at = self.started_at.or(Some(at));
        }
        if next.exit().is_some() {
            self.ended_at = Some(at);
        }
        self.state = next;
    }

    /// Ends the session on the manager's own account.
    pub(crate) fn end(&mut self, reason: ExitReason, message: Option<String>, at: Timestamp) {
        let exit = Exit {
            reason,
            code: None,
            oom: false,
            message,
        };
        self.advance(&KernelState::Terminated(exit), at);
    }

    /// Ends a session that no agent takes.
    pub(crate) fn refuse(&mut self, error: RpcError, at: Timestamp) {
        self.end(ExitReason::FailedToStart, Some(error.message.clone()), at);
        self.refusal = Some(error);
    }

    /// Notes the wish to end. A changed grace is told to the agent anew.
    pub(crate) fn request_stop(&mut self, grace: Option<Duration>) {
        if self.stop.is_none_or(|stop| stop.grace != grace) {
            self.stop = Some(StopIntent {
                grace,
                confirmed: false,
            });
        }
        if rank(&self.state) < rank(&SessionState::Terminating) {
            self.state = SessionState::Terminating;
        }
    }

    /// Whether the agent, which reports `state` for this placement, is behind or ahead of what is
    /// known here.
    pub(crate) fn disagrees(&self, state: &KernelState) -> bool {
        let (theirs, ours) = (rank(&session_state(state)), rank(&self.state));
        theirs > ours || self.stop_was_lost(state)
    }

    /// Whether the agent confirmed a stop that it now knows nothing of.
    pub(crate) fn stop_was_lost(&self, state: &KernelState) -> bool {
        let stopping = rank(&session_state(state)) >= rank(&SessionState::Terminating);
        !stopping && self.stop.is_some_and(|stop| stop.confirmed)
    }
}

fn session_state(state: &KernelState) -> SessionState {
    match state {
        KernelState::Preparing => SessionState::Preparing,
        KernelState::Pulling => SessionState::Pulling,
        KernelState::Creating => SessionState::Creating,
        KernelState::Running | KernelState::Restarting => SessionState::Running,
        KernelState::Terminating => SessionState::Terminating,
        KernelState::Terminated(exit) => SessionState::Terminated(exit.clone()),
    }
}

/// Order of the states in a session's life.
fn rank(state: &SessionState) -> u8 {
    match state {
        SessionState::Scheduled => 0,
        SessionState::Preparing => 1,
        SessionState::Pulling => 2,
        SessionState::Creating => 3,
        SessionState::Running => 4,
        SessionState::Terminating => 5,
        SessionState::Terminated(_) => 6,
    }
}

fn device_names(allocation: &Allocation) -> Vec<String> {
    let name = |gpu: &meshwork_proto::slots::GpuGrant| format!("GPU {} ({})", gpu.index, gpu.model);
    allocation.gpus.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_identity::Identity;

    fn facts() -> Facts {
        Facts {
            node: Identity::from_seed(&[1; 32]).node_id(),
            node_name: "n".into(),
            plan: "n".into(),
            attempt: 1,
            generation: 7,
            accepted: true,
            state: SessionState::Scheduled,
            gpus: Vec::new(),
            stop: None,
            refused: Vec::new(),
            refusal: None,
            removed: false,
            created_at: Timestamp::from_secs(1),
            started_at: None,
            ended_at: None,
        }
    }

    fn event(generation: u64, state: KernelState, at: u64) -> KernelEvent {
        let session = SessionId::from_bytes([1; 16]);
        KernelEvent {
            seq: 1,
            at: Timestamp::from_secs(at),
            kernel: session.kernel(0),
            session,
            attempt: 1,
            generation,
            state,
        }
    }

    fn ended(code: i32) -> KernelState {
        KernelState::Terminated(Exit {
            reason: ExitReason::SelfTerminated,
            code: Some(code),
            oom: false,
            message: None,
        })
    }

    #[test]
    fn states_only_go_forward_and_the_first_end_wins() {
        let mut facts = facts();
        facts.apply_event(&event(7, KernelState::Running, 5));
        facts.apply_event(&event(7, KernelState::Pulling, 4));
        assert_eq!(facts.state, SessionState::Running);
        assert_eq!(facts.started_at, Some(Timestamp::from_secs(5)));
        facts.apply_event(&event(7, ended(3), 6));
        facts.apply_event(&event(7, ended(4), 9));
        assert_eq!(facts.state.exit().and_then(|e| e.code), Some(3));
        assert_eq!(facts.ended_at, Some(Timestamp::from_secs(6)));
    }

    #[test]
    fn other_placements_say_nothing() {
        let mut facts = facts();
        facts.apply_event(&event(6, ended(0), 5));
        facts.apply_event(&event(8, KernelState::Running, 5));
        assert_eq!(facts.state, SessionState::Scheduled);
    }

    #[test]
    fn a_repeated_stop_is_told_again_only_when_it_differs() {
        let mut facts = facts();
        facts.request_stop(None);
        assert_eq!(facts.state, SessionState::Terminating);
        facts.stop = Some(StopIntent {
            grace: None,
            confirmed: true,
        });
        facts.request_stop(None);
        assert!(facts.stop.unwrap().confirmed);
        facts.request_stop(Some(Duration::ZERO));
        assert!(!facts.stop.unwrap().confirmed);
    }
}
