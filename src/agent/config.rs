//! What an operator sets on an agent, and the defaults.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of an agent. Everything but `data_dir` has a default.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where the agent keeps its journal, logs and volumes. One agent at a time may use it.
    pub data_dir: PathBuf,
    /// Docker's unix socket. None: that of `DOCKER_HOST`, else `/var/run/docker.sock`.
    pub docker_socket: Option<PathBuf>,
    /// Processor time kept for the machine itself, in thousandths of a hardware thread. Default 0.
    pub reserved_cpu_millis: u64,
    /// Memory kept for the machine itself, in bytes. Default 256 MiB.
    pub reserved_mem: u64,
    /// TOML file that describes pretended accelerators. None by default.
    pub mock_accelerators: Option<PathBuf>,
    /// Program and arguments that probe the real GPUs and print what they find, see
    /// [`crate::probe_main`]. None: real GPUs are not looked for. A probe runs in a process of its
    /// own, because a hung driver cannot be interrupted.
    pub nvml: Option<Vec<OsString>>,
    /// The operator's tags of this node; a token may demand some of them.
    pub node_tags: BTreeSet<String>,
    /// How long each phase of a kernel may take.
    pub deadlines: Deadlines,
    /// Bounds on what a kernel may leave behind or take beside its slots.
    pub bounds: Bounds,
    /// Time between two comparisons of what should be with what the container backend has.
    /// Default 10 s.
    pub reconcile_every: Duration,
    /// Time between two looks at the accelerators. Default 30 s.
    pub probe_every: Duration,
}

impl AgentConfig {
    /// The defaults, with this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            docker_socket: None,
            reserved_cpu_millis: 0,
            reserved_mem: 256 << 20,
            mock_accelerators: None,
            nvml: None,
            node_tags: BTreeSet::new(),
            deadlines: Deadlines::default(),
            bounds: Bounds::default(),
            reconcile_every: Duration::from_secs(10),
            probe_every: Duration::from_secs(30),
        }
    }
}

/// How long things may take before they count as failed.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Fetching an image. Default 2 h.
    pub pull: Duration,
    /// Making a container. Default 2 min.
    pub create: Duration,
    /// Starting it. Default 2 min.
    pub start: Duration,
    /// Time between the stop signal and the kill where the order names none. Default 10 s.
    pub stop_grace: Duration,
    /// Longest such time that an order may ask for. Default 5 min.
    pub max_stop_grace: Duration,
    /// Copying a dead kernel's output. Default 1 min; what is missing then is lost.
    pub logs: Duration,
    /// A look at the accelerators. Default 10 s.
    pub probe: Duration,
    /// Any other question to the container backend. Default 30 s.
    pub ask: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            pull: Duration::from_hours(2),
            create: Duration::from_mins(2),
            start: Duration::from_mins(2),
            stop_grace: Duration::from_secs(10),
            max_stop_grace: Duration::from_mins(5),
            logs: Duration::from_mins(1),
            probe: Duration::from_secs(10),
            ask: Duration::from_secs(30),
        }
    }
}

/// Bounds on one kernel.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of output kept of a kernel, alive or dead; older output goes first. Default 10 MiB.
    pub log_bytes: u64,
    /// Bytes of output kept of all dead kernels together; that of the longest dead goes first.
    /// Default 1 GiB.
    pub dead_log_bytes: u64,
    /// Processes and threads of a kernel. Default 4,096.
    pub pids: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            log_bytes: 10 << 20,
            dead_log_bytes: 1 << 30,
            pids: 4096,
        }
    }
}
