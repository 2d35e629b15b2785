//! Container backends: the few things that the agent asks of whatever runs its containers.

pub(crate) mod docker;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meshwork_proto::KernelId;
use meshwork_proto::agent::{ExecItem, Output, PullProgress};
use meshwork_proto::service::BoxStream;

use crate::kernel::record::Ended;

/// Why a backend did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// It cannot be reached or does not answer in time; what was asked may have happened.
    #[error("{0}")]
    Unavailable(String),
    /// There is no such container or image.
    #[error("{0}")]
    NotFound(String),
    /// It refuses, or what was asked failed.
    #[error("{0}")]
    Failed(String),
}

/// Everything about a container that is to be made. The agent fills it in; nothing of it comes
/// from a user unchecked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Unique per kernel, placement and try.
    pub name: String,
    pub image: String,
    pub entrypoint: Option<Vec<String>>,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub mounts: Vec<Bind>,
    pub cpus: Vec<u32>,
    pub cpu_millis: u64,
    pub mem: u64,
    pub shm: u64,
    pub pids: i64,
    pub log_bytes: u64,
    /// NVIDIA devices by UUID.
    pub nvidia: Vec<String>,
}

/// A folder of the host that the agent itself made, mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

/// A container that carries this node's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub id: String,
    /// From its labels; none when they cannot be read.
    pub kernel: Option<(KernelId, u32, u64)>,
    pub phase: Phase,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made, never started.
    Made,
    /// Runs (or is paused).
    Running,
    /// Ran and ended.
    Ended,
}

/// A piece of a container's output and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub output: Output,
    pub data: Bytes,
    /// Nanoseconds since 1970.
    pub at: u64,
}

/// Which part of a container's output is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogQuery {
    pub follow: bool,
    /// Only the last so many lines of what is there.
    pub tail: Option<u64>,
    /// Nothing before this second since 1970.
    pub since: u64,
}

/// A command to run in a container.
#[derive(Debug, Clone)]
pub(crate) struct ExecPlan {
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
}

/// Runs containers. Every method but the streams ends by a deadline of its own; `wait` ends with
/// the container. Dropping a future or stream gives up the question, not what it started.
#[async_trait]
pub(crate) trait Backend: Debug + Send + Sync {
    /// Name and version, as announced.
    fn describe(&self) -> String;
    /// Names of the images that are there, the newest first.
    async fn images(&self) -> Result<Vec<String>, BackendError>;
    /// Whether the image is there.
    async fn has_image(&self, image: &str) -> Result<bool, BackendError>;
    /// Fetches an image, whatever is there. Ends after the first error.
    fn pull(&self, image: &str) -> BoxStream<Result<PullProgress, BackendError>>;
    /// Makes a container. One of that name that is there already is the one, and the answer is
    /// false.
    async fn create(&self, plan: &Plan) -> Result<bool, BackendError>;
    /// Starts it; harmless when it runs.
    async fn start(&self, id: &str) -> Result<(), BackendError>;
    /// Where it is in its life.
    async fn inspect(&self, id: &str) -> Result<(Phase, Option<Ended>), BackendError>;
    /// Waits until it does not run.
    async fn wait(&self, id: &str) -> Result<(), BackendError>;
    /// Its stop signal and after `grace` the kill; returns when it does not run. Harmless when it
    /// does not run.
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), BackendError>;
    /// Kills it and removes it with what only it used. Harmless when there is none.
    async fn remove(&self, id: &str) -> Result<(), BackendError>;
    /// Every container that carries this node's label, whether it runs or not.
    async fn list(&self) -> Result<Vec<Found>, BackendError>;
    /// Its output.
    fn logs(&self, id: &str, query: LogQuery) -> BoxStream<Result<Line, BackendError>>;
    /// Runs a command in it.
    async fn exec(
        &self,
        id: &str,
        plan: &ExecPlan,
    ) -> Result<BoxStream<Result<ExecItem, BackendError>>, BackendError>;
}
