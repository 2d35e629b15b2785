//! What all parts of a running agent share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use meshwork_identity::NodeId;
use meshwork_proto::KernelId;
use meshwork_proto::agent::{Heartbeat, PullProgress};
use meshwork_proto::announcement::Gpu;
use meshwork_proto::ports::{Trust, WallClock};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accel::{Accelerator, Device, Probe};
use crate::backend::{Backend, Phase};
use crate::config::AgentConfig;
use crate::hardware;
use crate::journal::Journal;
use crate::kernel::{Kernel, actor};
use crate::pulls::Pulls;
use crate::slots::Slots;

/// Progress messages that a slow watcher may be behind before it misses some.
pub(crate) const PROGRESS_BACKLOG: usize = 256;

/// The agent's state.
pub(crate) struct Shared {
    pub node: NodeId,
    pub config: AgentConfig,
    pub clock: Arc<dyn WallClock>,
    pub trust: Arc<dyn Trust>,
    pub backend: Arc<dyn Backend>,
    pub journal: Journal,
    pub slots: Slots,
    pub pulls: Pulls,
    pub progress: broadcast::Sender<(KernelId, PullProgress)>,
    /// Every kernel that the agent remembers.
    pub kernels: Mutex<BTreeMap<KernelId, Arc<Kernel>>>,
    /// Held from the look whether a kernel is known until it is: two creates of one kernel follow
    /// one another. Only ever taken on blocking threads.
    pub admission: Mutex<()>,
    pub accelerator: Option<Arc<dyn Accelerator>>,
    /// What the last good probe found.
    pub seen: Mutex<Probe>,
    /// Set when the agent stops. Kernels go on.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Remembers `kernel` and, unless it is over, starts its actor.
    pub(crate) fn adopt(self: &Arc<Self>, kernel: Arc<Kernel>, phase: Option<Phase>) {
        let record = kernel.record();
        self.kernels().insert(record.kernel, Arc::clone(&kernel));
        if !record.is_over() {
            self.tasks
                .spawn(actor::run(Arc::clone(self), kernel, phase));
        }
    }

    /// The map of kernels. Not to be held across an await.
    pub(crate) fn kernels(&self) -> MutexGuard<'_, BTreeMap<KernelId, Arc<Kernel>>> {
        self.kernels
            .lock()
            .expect("nothing panics under the kernel lock")
    }

    /// One kernel.
    pub(crate) fn kernel(&self, id: &KernelId) -> Option<Arc<Kernel>> {
        self.kernels().get(id).cloned()
    }

    /// Every kernel, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Kernel>> {
        self.kernels().values().cloned().collect()
    }

    /// Folder of a kernel's output.
    pub(crate) fn logs(&self, kernel: &KernelId) -> PathBuf {
        self.config.data_dir.join("logs").join(kernel.to_string())
    }

    /// Whether the accelerators exist and a container must be given theirs.
    pub(crate) fn has_real_gpus(&self) -> bool {
        self.accelerator.as_ref().is_some_and(|a| a.is_real())
    }

    /// Looks at the accelerators once.
    pub(crate) async fn probe(&self) {
        let Some(accelerator) = &self.accelerator else {
            return;
        };
        match accelerator.probe().await {
            Ok(probe) => {
                self.slots
                    .observe(Some(probe.devices.iter().map(Device::status).collect()));
                *self
                    .seen
                    .lock()
                    .expect("nothing panics under the probe lock") = probe;
            }
            Err(error) => {
                tracing::warn!(%error, "accelerators cannot be looked at, none is given out");
                self.slots.observe(None);
            }
        }
    }

    /// The devices of the last good probe.
    pub(crate) fn gpus(&self) -> Vec<Gpu> {
        let seen = self
            .seen
            .lock()
            .expect("nothing panics under the probe lock");
        seen.devices.iter().map(|d| d.gpu.clone()).collect()
    }

    /// The agent's state as a heartbeat tells it; `after` has the kernels that the caller may see.
    pub(crate) fn heartbeat(&self, may_see: impl Fn(&NodeId) -> bool) -> Heartbeat {
        // Read first: whoever then misses an event sees that the number is older than the state.
        let last_seq = *self.journal.last_seq().borrow();
        let kernels = self.all();
        let alive = kernels.iter().filter_map(|kernel| {
            kernel.look(|r| {
                let told = !r.is_over() && may_see(&r.owner);
                told.then(|| (r.kernel, r.generation, r.state.clone()))
            })
        });
        Heartbeat {
            at: self.clock.now(),
            last_seq,
            capacity: self.slots.capacity(),
            load_millis: hardware::load_millis(),
            kernels: alive.collect(),
        }
    }
}
