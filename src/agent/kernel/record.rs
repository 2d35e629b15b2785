//! What the journal holds of one kernel: enough to go on with it after any crash.

use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp, TokenId};
use meshwork_proto::agent::KernelEvent;
use meshwork_proto::kernel::{Exit, ExitReason, KernelSpec, KernelState, KernelView};
use meshwork_proto::slots::Allocation;
use meshwork_proto::{KernelId, SessionId};
use serde::{Deserialize, Serialize};

/// One kernel as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub kernel: KernelId,
    pub session: SessionId,
    pub attempt: u32,
    pub generation: u64,
    pub owner: NodeId,
    /// The token under which it was admitted.
    pub token: [u8; 32],
    /// When its order can no longer be used, for the tombstone of a removed kernel.
    pub order_ends: Timestamp,
    pub spec: KernelSpec,
    pub allocation: Allocation,
    pub state: KernelState,
    /// Set once, when it is decided that the kernel ends; the first reason stays.
    pub ending: Option<Ending>,
    /// How its process ended, from before its container is removed.
    pub ended: Option<Ended>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// That a kernel ends, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub reason: ExitReason,
    pub message: Option<String>,
    /// Time between the stop signal and the kill.
    pub grace: Duration,
}

/// A verified order for one kernel.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub kernel: KernelId,
    pub session: SessionId,
    pub attempt: u32,
    pub generation: u64,
    pub owner: NodeId,
    pub token: TokenId,
    pub limits: meshwork_identity::Limits,
    /// When it was signed.
    pub starts: Timestamp,
    /// When it can no longer be used.
    pub ends: Timestamp,
    pub spec: KernelSpec,
}

impl Record {
    /// A kernel that was just admitted.
    pub(crate) fn new(order: Order, allocation: Allocation, now: Timestamp) -> Self {
        Self {
            kernel: order.kernel,
            session: order.session,
            attempt: order.attempt,
            generation: order.generation,
            owner: order.owner,
            token: *order.token.as_bytes(),
            order_ends: order.ends,
            spec: order.spec,
            allocation,
            state: KernelState::Preparing,
            ending: None,
            ended: None,
            created_at: now,
            started_at: None,
            ended_at: None,
        }
    }

    /// Whether nothing is left of it but this record and its output.
    pub(crate) fn is_over(&self) -> bool {
        self.state.exit().is_some()
    }

    /// The container's name: this try's alone, known before the container is.
    pub(crate) fn container(&self, node: &NodeId) -> String {
        format!(
            "{}-{}-g{}-a{}",
            node.short(),
            self.kernel,
            self.generation,
            self.attempt
        )
    }

    /// What it came to, once its container is gone. No code when it never ran.
    pub(crate) fn exit(&self) -> Exit {
        let ended = self.ended;
        let ending = self.ending.clone().unwrap_or(Ending {
            reason: ExitReason::SelfTerminated,
            message: None,
            grace: Duration::ZERO,
        });
        let oom = ended.is_some_and(|e| e.oom);
        // A kernel may lose a helper process to the killer and end well all the same.
        let killed = oom && ended.is_some_and(|e| e.code != 0);
        let reason = match ending.reason {
            ExitReason::SelfTerminated if killed => ExitReason::OutOfMemory,
            // Somebody took the container before it could be looked at.
            ExitReason::SelfTerminated if ended.is_none() => ExitReason::ContainerLost,
            reason => reason,
        };
        Exit {
            reason,
            code: ended.map(|e| e.code),
            oom,
            message: ending.message,
        }
    }

    pub(crate) fn view(&self) -> KernelView {
        KernelView {
            kernel: self.kernel,
            session: self.session,
            attempt: self.attempt,
            generation: self.generation,
            owner: self.owner,
            image: self.spec.image.clone(),
            state: self.state.clone(),
            allocation: self.allocation.clone(),
            created_at: self.created_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }

    pub(crate) fn event(&self, seq: u64, at: Timestamp) -> KernelEvent {
        KernelEvent {
            seq,
            at,
            kernel: self.kernel,
            session: self.session,
            attempt: self.attempt,
            generation: self.generation,
            state: self.state.clone(),
        }
    }
}

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// Whether the out-of-memory killer struck in the container.
    pub oom: bool,
}

#[cfg(test)]
pub(crate) mod tests {
    use meshwork_identity::Identity;

    use super::*;

    /// A kernel that was just admitted; everything in it follows from `n`.
    pub(crate) fn record(n: u8) -> Record {
        Record {
            kernel: KernelId::from_bytes([n; 16]),
            session: SessionId::from_bytes([n; 16]),
            attempt: 1,
            generation: 1,
            owner: Identity::from_seed(&[1; 32]).node_id(),
            token: [0; 32],
            order_ends: Timestamp::from_secs(100),
            spec: KernelSpec::default(),
            allocation: Allocation::default(),
            state: KernelState::Preparing,
            ending: None,
            ended: None,
            created_at: Timestamp::from_secs(1),
            started_at: None,
            ended_at: None,
        }
    }

    #[test]
    fn exits_tell_what_happened() {
        let exit = |reason, code, oom| {
            let mut record = record(1);
            record.ending = Some(Ending {
                reason,
                message: None,
                grace: Duration::ZERO,
            });
            record.ended = Some(Ended { code, oom });
            let exit = record.exit();
            (exit.reason, exit.code, exit.oom)
        };
        use ExitReason::{OutOfMemory, SelfTerminated, UserRequested};
        assert_eq!(
            exit(SelfTerminated, 3, false),
            (SelfTerminated, Some(3), false)
        );
        assert_eq!(
            exit(SelfTerminated, 137, true),
            (OutOfMemory, Some(137), true)
        );
        assert_eq!(
            exit(SelfTerminated, 0, true),
            (SelfTerminated, Some(0), true)
        );
        assert_eq!(
            exit(UserRequested, 137, true),
            (UserRequested, Some(137), true)
        );
        assert_eq!(record(1).exit().code, None, "it never ran");
    }
}
