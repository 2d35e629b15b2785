//! The running agent: start, what it tells about itself, stop.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::announcement::Gpu;
use meshwork_proto::ports::{Trust, WallClock};
use meshwork_proto::service::Router;
use meshwork_proto::slots::Capacity;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::accel::mock::Mock;
use crate::accel::nvml::NvmlProbe;
use crate::accel::{AccelError, Accelerator, Probe};
use crate::backend::BackendError;
use crate::backend::docker::DockerBackend;
use crate::config::AgentConfig;
use crate::hardware;
use crate::journal::{Journal, JournalError};
use crate::pulls::Pulls;
use crate::recovery;
use crate::service;
use crate::shared::{PROGRESS_BACKLOG, Shared};
use crate::slots::{Inventory, Slots};

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its folder cannot be used.
    #[error("the agent's folder {path}: {source}")]
    Folder {
        /// Which.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its journal cannot be used; another agent may have it open.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The container backend does not work.
    #[error("the container backend: {0}")]
    Backend(#[source] BackendError),
    /// The accelerators are not described well.
    #[error(transparent)]
    Accelerators(#[from] AccelError),
}

/// A running agent. Dropping it without [`Agent::shutdown`] leaves its tasks to the runtime.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    /// Starts an agent: connects to its backend, takes over the kernels of its earlier life and
    /// removes what is left of others. `trust` decides whose orders hold, `node` is this node.
    pub async fn start(
        mut config: AgentConfig,
        trust: Arc<dyn Trust>,
        clock: Arc<dyn WallClock>,
        node: NodeId,
    ) -> Result<Self, AgentError> {
        // Mounts need whole paths.
        config.data_dir =
            std::path::absolute(&config.data_dir).map_err(|source| AgentError::Folder {
                path: config.data_dir.display().to_string(),
                source,
            })?;
        let accelerator = accelerator(&config)?;
        let socket = config.docker_socket.as_deref();
        let docker = DockerBackend::connect(socket, node, config.deadlines)
            .await
            .map_err(AgentError::Backend)?;
        let path = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            folders(&path)?;
            let journal = Journal::open(&path.join("journal.redb"))?;
            let loaded = journal.load()?;
            Ok::<_, AgentError>((journal, loaded))
        });
        let (journal, loaded) = opened.await.map_err(|e| AgentError::Folder {
            path: config.data_dir.display().to_string(),
            source: io::Error::other(e),
        })??;
        let shared = Arc::new(Shared {
            node,
            slots: Slots::new(inventory(&config)),
            config,
            clock,
            trust,
            backend: Arc::new(docker),
            journal,
            pulls: Pulls::default(),
            progress: broadcast::Sender::new(PROGRESS_BACKLOG),
            kernels: Mutex::new(BTreeMap::new()),
            admission: Mutex::new(()),
            accelerator,
            seen: Mutex::new(Probe::default()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let ((), recovered) = tokio::join!(shared.probe(), recovery::recover(&shared, loaded));
        recovered?;
        shared.tasks.spawn(recovery::run(Arc::clone(&shared)));
        shared.tasks.spawn(watch_accelerators(Arc::clone(&shared)));
        info!(backend = %shared.backend.describe(), "agent started");
        Ok(Self { shared })
    }

    /// The service `agent`.
    pub fn router(&self) -> Router {
        service::router(&self.shared)
    }

    /// The accelerators as last found.
    pub fn gpus(&self) -> Vec<Gpu> {
        self.shared.gpus()
    }

    /// Totals, and what of them is free now.
    pub fn capacity(&self) -> Capacity {
        self.shared.slots.capacity()
    }

    /// The CUDA version that the driver supports, if there is one.
    pub fn cuda(&self) -> Option<String> {
        let seen = self
            .shared
            .seen
            .lock()
            .expect("nothing panics under the probe lock");
        seen.cuda.clone()
    }

    /// Container backend and version, for example `docker 27.3.1`.
    pub fn backend(&self) -> String {
        self.shared.backend.describe()
    }

    /// Names of the images that are on this machine, the newest first; none when the backend does
    /// not answer.
    pub async fn images(&self) -> Vec<String> {
        self.shared.backend.images().await.unwrap_or_else(|error| {
            warn!(%error, "images cannot be listed");
            Vec::new()
        })
    }

    /// Stops the agent within `deadline`. Kernels go on, and are taken over at the next start.
    pub async fn shutdown(&self, deadline: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(deadline, self.shared.tasks.wait())
            .await
            .is_err()
        {
            warn!(
                tasks = self.shared.tasks.len(),
                "agent's tasks did not end in time"
            );
        }
    }
}

fn accelerator(config: &AgentConfig) -> Result<Option<Arc<dyn Accelerator>>, AccelError> {
    Ok(match (&config.mock_accelerators, &config.nvml) {
        (Some(path), _) => Some(Arc::new(Mock::load(path)?)),
        (None, Some(command)) => Some(Arc::new(NvmlProbe::new(
            command.clone(),
            config.deadlines.probe,
        ))),
        (None, None) => None,
    })
}

/// Looks once at the accelerators that `config` names, without an agent: for a node whose container
/// backend is not there yet, and for diagnosis.
pub async fn probe_gpus(config: &AgentConfig) -> Result<Vec<Gpu>, AccelError> {
    match accelerator(config)? {
        Some(accelerator) => {
            let found = accelerator.probe().await?.devices;
            Ok(found.into_iter().map(|device| device.gpu).collect())
        }
        None => Ok(Vec::new()),
    }
}

fn inventory(config: &AgentConfig) -> Inventory {
    let machine = hardware::machine(Path::new("/"));
    Inventory {
        cpu_millis: machine
            .cpu_millis
            .saturating_sub(config.reserved_cpu_millis),
        mem: machine.memory.saturating_sub(config.reserved_mem),
        cpus: machine.cpus,
    }
}

/// The agent's folders, closed to others.
fn folders(data_dir: &Path) -> Result<(), AgentError> {
    for dir in [
        data_dir.to_owned(),
        data_dir.join("logs"),
        data_dir.join("volumes"),
    ] {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        made.map_err(|source| AgentError::Folder {
            path: dir.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

async fn watch_accelerators(shared: Arc<Shared>) {
    let mut tick = interval(shared.config.probe_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first look was at the start.
    tick.tick().await;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            _ = tick.tick() => shared.probe().await,
        }
    }
}
