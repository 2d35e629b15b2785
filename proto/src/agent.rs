//! The agent's RPC service: commands that are acknowledged at once, and the event stream that
//! tells how they went.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{Timestamp, Warrant};
use serde::{Deserialize, Serialize};

use crate::ids::{KernelId, SessionId};
use crate::kernel::{KernelState, KernelView, PullPolicy};
use crate::slots::Capacity;

/// Makes and starts a kernel. What it shall be stands in the order that its owner signed; the
/// caller adds only where it stands in the session's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateKernel {
    /// Must be the order's session's kernel of this index.
    pub kernel: KernelId,
    /// Index of the kernel in its session.
    pub index: u8,
    /// Which try; a repeat with the same number returns what the first returned.
    pub attempt: u32,
    /// Larger than that of every earlier placement of this kernel.
    pub generation: u64,
    /// The owner's token and signed [`crate::session::SessionOrder`].
    pub warrant: Warrant,
}

/// Stops a kernel: its stop signal, then the kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopKernel {
    /// Which.
    pub kernel: KernelId,
    /// Time between signal and kill; none: the kernel's own.
    pub grace: Option<Duration>,
}

/// Names one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRef {
    /// Which.
    pub kernel: KernelId,
}

/// Asks for a kernel's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLogs {
    /// Which.
    pub kernel: KernelId,
    /// Only the last so many lines of what is there; none: all.
    pub tail: Option<u64>,
    /// Whether to go on with what is written from now on, until the kernel ends.
    pub follow: bool,
    /// Skip what was written before this.
    pub since: Option<Timestamp>,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// A piece of output: whole lines where the container wrote whole lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Where it was written.
    pub output: Output,
    /// The bytes.
    pub data: Bytes,
    /// When, by the agent's clock, if known.
    pub at: Option<Timestamp>,
}

/// A command to run inside a running kernel, signed by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOrder {
    /// Where.
    pub kernel: KernelId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the kernel's environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; none: the kernel's.
    pub workdir: Option<String>,
    /// When it was signed: orders older than [`EXEC_ORDER_LIFE`] are refused.
    pub issued_at: Timestamp,
    /// Random; the same order is not carried out twice.
    pub nonce: [u8; 16],
}

/// How long a signed [`ExecOrder`] may be used, clock tolerance aside.
pub const EXEC_ORDER_LIFE: Duration = Duration::from_mins(1);

/// Runs an [`ExecOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecKernel {
    /// The owner's token and signed [`ExecOrder`].
    pub warrant: Warrant,
}

/// What a command run in a kernel says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecItem {
    /// It wrote.
    Output(LogChunk),
    /// It ended, with its exit code. Always the last item.
    Exit(i32),
}

/// Fetches an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullImage {
    /// Image reference.
    pub image: String,
    /// When to fetch it.
    pub policy: PullPolicy,
}

/// Progress of fetching an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullProgress {
    /// It is there and the policy asks for no more.
    Present,
    /// Bytes fetched so far and to fetch in all, over the layers known so far.
    Fetching {
        /// Bytes so far.
        current: u64,
        /// Bytes in all, as far as known.
        total: u64,
    },
    /// It is there now.
    Done,
}

/// Subscribes to an agent's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Starts with the first event after this sequence number; 0: with the oldest kept.
    pub after: u64,
}

/// What an agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventItem {
    /// A durable event, kept until it is acknowledged.
    Event(KernelEvent),
    /// Progress of a kernel's image; not kept.
    Progress {
        /// Whose image.
        kernel: KernelId,
        /// How far.
        progress: PullProgress,
    },
    /// Every [`HEARTBEAT`], and once at the start of the stream.
    Heartbeat(Heartbeat),
}

/// A change in a kernel's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvent {
    /// Position in the agent's log: grows by one, never repeats, survives restarts.
    pub seq: u64,
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// Whose.
    pub kernel: KernelId,
    /// Of which session.
    pub session: SessionId,
    /// Of which try.
    pub attempt: u32,
    /// Of which placement.
    pub generation: u64,
    /// What it is now.
    pub state: KernelState,
}

/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// An agent's state, small and complete: whoever missed events can compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// Last sequence number of its event log.
    pub last_seq: u64,
    /// What it has and what is free.
    pub capacity: Capacity,
    /// One-minute load average in thousandths.
    pub load_millis: u32,
    /// Every kernel that is not terminated: (id, generation, state).
    pub kernels: Vec<(KernelId, u64, KernelState)>,
}

/// Acknowledges events: the agent may forget them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckEvents {
    /// Everything up to and including this sequence number.
    pub up_to: u64,
}

/// An agent's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Container backend and version.
    pub backend: String,
    /// As it would be in the next heartbeat.
    pub heartbeat: Heartbeat,
}

crate::service! {
    "agent";
    /// Makes and starts a kernel; answers once its slots are reserved and the order is on disk.
    unary Create("kernel.create", Call, true): CreateKernel => KernelView;
    /// Stops a kernel; answers once the intent is on disk.
    unary Stop("kernel.stop", Call, true): StopKernel => KernelView;
    /// Forgets a terminated kernel and its logs; stops it first when it still runs.
    unary Remove("kernel.remove", Call, true): KernelRef => ();
    /// One kernel.
    unary Get("kernel.get", Call, true): KernelRef => KernelView;
    /// Every kernel that the agent remembers.
    unary List("kernel.list", Call, true): () => Vec<KernelView>;
    /// A kernel's output, from the past and on.
    stream Logs("kernel.logs", Call, true): KernelLogs => LogChunk;
    /// Runs a command in a kernel.
    stream Exec("kernel.exec", Call, false): ExecKernel => ExecItem;
    /// Fetches an image.
    stream Pull("image.pull", Call, true): PullImage => PullProgress;
    /// Events from a sequence number on, progress and heartbeats.
    stream Watch("events.watch", Admin, true): Events => EventItem;
    /// Acknowledges events.
    unary Ack("events.ack", Admin, true): AckEvents => ();
    /// The agent's state.
    unary Inspect("status", Call, true): () => AgentStatus;
}
