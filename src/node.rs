//! A running node: the one place that joins mesh, manager and agent, by role.
//!
//! The mesh listens first, so that a node serves within milliseconds. What may be slow (the
//! container backend, the GPU driver) comes after it and may come late: the agent's part is tried
//! again until it works, and the announcement says at each time what is so.

mod addresses;
mod background;
mod upkeep;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meshwork_agent::{Agent, AgentConfig};
use meshwork_identity::NodeId;
use meshwork_manager::{Manager, ManagerConfig};
use meshwork_mesh::{FileState, Mesh, MeshConfig, MeshError, SystemClock};
use meshwork_proto::announcement::{Gpu, Role};
use meshwork_proto::mesh::PeerView;
use meshwork_proto::path::NatClass;
use meshwork_proto::service::Router;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

pub(crate) use addresses::listen;
use addresses::{reachable_here, reachable_there};
use background::{Background, Facts};

use crate::config::Config;
use crate::home::{Home, HomeError, RunFile, Who};
use crate::metrics::Page;

/// How often a short hold of the folder's lock (by a command that asks whether a node runs) is
/// waited out, and for how long each time.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// Something in its folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The mesh did not start.
    #[error("the mesh does not start: {0}")]
    Mesh(#[from] MeshError),
    /// Its small state could not be opened.
    #[error("{}: {source}", path.display())]
    State {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The page for Prometheus cannot be served.
    #[error("metrics = \"{address}\": {source}")]
    Metrics {
        /// Where it was to be.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manager's part did not start.
    #[error("the manager does not start: {0}")]
    Manager(#[from] meshwork_manager::ManagerError),
}

/// What a starting node has to tell.
#[derive(Debug)]
pub(crate) enum Step {
    /// It listens, and serves its peers.
    Listening(Vec<SocketAddr>),
    /// Numbers for Prometheus are served.
    Metrics(SocketAddr),
    /// A first peer is reached.
    Path(Box<PeerView>),
    /// It is found out what lies between it and the network, and where others see it.
    Nat(NatClass, Option<SocketAddr>),
    /// The agent's part is up.
    Agent {
        /// Container backend and version.
        backend: String,
        /// Devices found.
        gpus: Vec<Gpu>,
    },
    /// The agent's part is not up; it is tried again.
    NoAgent(String),
    /// Its announcement is on its way.
    Announced,
}

/// Hears the steps. Called from the node's tasks: it must not block.
pub(crate) type OnStep = Arc<dyn Fn(Step) + Send + Sync>;

/// A running node.
pub(crate) struct Node {
    mesh: Mesh,
    manager: Option<Manager>,
    background: JoinHandle<Option<Agent>>,
    upkeep: JoinSet<()>,
    stop: watch::Sender<bool>,
    home: Home,
    _lock: File,
}

impl Node {
    /// Starts the node of `home`; returns when it listens and its manager serves. The rest goes on
    /// in the background and is told to `on_step`.
    pub(crate) async fn start(
        home: &Home,
        config: Config,
        on_step: OnStep,
    ) -> Result<Self, NodeError> {
        let lock = lock(home).await?;
        // What an earlier life left there would name a process that is another one by now.
        home.forget_running();
        let file = home.mesh()?;
        let roles = config.roles.clone().unwrap_or(file.roles);
        // Where `init` ran, a node is what it can be.
        let roles = if roles.is_empty() {
            [Role::Agent, Role::Manager].into()
        } else {
            roles
        };
        let facts = Facts {
            name: config.name.clone().unwrap_or(file.name),
            roles,
            config,
        };

        let identity = home.identity(Who::Node)?;
        let state = Arc::new(open_state(home)?);
        let env = listen(facts.config.listen, state)?;
        let bound: Vec<SocketAddr> = env.socket.local_addr().into_iter().collect();
        let mut mesh = MeshConfig::new(identity, file.authority, home.psk()?);
        mesh.tokens = home.token(Who::Node)?.into_iter().collect();
        mesh.name.clone_from(&facts.name);
        mesh.roles.clone_from(&facts.roles);
        mesh.advertise = reachable_there(&facts.config.advertise, &bound);
        mesh.relay = facts.config.relaying(&facts.roles);
        mesh.port_mapping = facts.config.port_mapping;
        mesh.reflex_override = facts.config.reflex_override;
        mesh.tenants.clone_from(&facts.config.tenants);
        let page = page(facts.config.metrics).await?;
        let mesh = Mesh::start(mesh, env, Router::new())?;
        for contact in home.contacts()?.contact {
            mesh.pin(contact);
        }
        let run = RunFile {
            pid: std::process::id(),
            node: mesh.node_id(),
            addrs: reachable_here(&mesh.local_addrs()),
            roles: facts.roles.clone(),
            ready: false,
            metrics: page.as_ref().map(|page| page.address),
        };
        home.write_running(&run)?;
        on_step(Step::Listening(mesh.local_addrs()));

        let manager = if facts.roles.contains(&Role::Manager) {
            Some(start_manager(home, &mesh).await?)
        } else {
            None
        };
        let (stop, stopped) = watch::channel(false);
        let mut upkeep = JoinSet::new();
        upkeep.spawn(upkeep::keep_status(
            mesh.clone(),
            home.clone(),
            stopped.clone(),
        ));
        upkeep.spawn(upkeep::keep_psk(
            mesh.clone(),
            home.clone(),
            stopped.clone(),
        ));
        upkeep.spawn(upkeep::tell_path(
            mesh.clone(),
            on_step.clone(),
            stopped.clone(),
        ));
        if let Some(page) = page {
            on_step(Step::Metrics(page.address));
            let source = mesh.clone();
            upkeep.spawn(page.serve(Arc::new(move || source.status()), stopped.clone()));
        }
        let background = Background {
            mesh: mesh.clone(),
            home: home.clone(),
            facts,
            run,
            on_step,
        };
        let background = tokio::spawn(background.run(stopped));
        Ok(Self {
            mesh,
            manager,
            background,
            upkeep,
            stop,
            home: home.clone(),
            _lock: lock,
        })
    }

    /// This node's id.
    pub(crate) fn id(&self) -> NodeId {
        self.mesh.node_id()
    }

    /// Ends the node: no new calls, running ones finish until the deadline. Kernels go on.
    pub(crate) async fn shutdown(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.stop.send_replace(true);
        let parts = async {
            while self.upkeep.join_next().await.is_some() {}
            if let Ok(Some(agent)) = self.background.await {
                agent.shutdown(deadline).await;
            }
            if let Some(manager) = self.manager {
                manager.shutdown(deadline).await;
            }
        };
        if tokio::time::timeout_at(until, parts).await.is_err() {
            tracing::warn!("not all work ended in time");
        }
        self.mesh
            .shutdown(until.saturating_duration_since(Instant::now()))
            .await;
        // A stale file is recognized by the lock that is gone.
        self.home.forget_running();
    }
}

async fn page(address: Option<SocketAddr>) -> Result<Option<Page>, NodeError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let page = Page::bind(address).await;
    page.map(Some)
        .map_err(|source| NodeError::Metrics { address, source })
}

async fn lock(home: &Home) -> Result<File, HomeError> {
    for _ in 1..LOCK_TRIES {
        match home.lock() {
            Err(HomeError::Running(_)) => tokio::time::sleep(LOCK_PAUSE).await,
            result => return result,
        }
    }
    home.lock()
}

async fn start_manager(home: &Home, mesh: &Mesh) -> Result<Manager, NodeError> {
    let mesh = Arc::new(mesh.clone());
    let config = ManagerConfig {
        data_dir: home.path("manager"),
    };
    let manager = Manager::start(
        config,
        mesh.clone(),
        mesh.clone(),
        mesh.clone(),
        Arc::new(SystemClock),
    )
    .await?;
    mesh.serve(manager.router());
    Ok(manager)
}

/// What a node remembers from one life to the next.
pub(crate) fn open_state(home: &Home) -> Result<FileState, NodeError> {
    let path = home.path("state");
    FileState::open(&path).map_err(|source| NodeError::State { path, source })
}

/// The settings of the agent's part.
pub(crate) fn agent_config(home: &Home, config: &Config) -> AgentConfig {
    let mut agent = AgentConfig::new(home.path("agent"));
    agent.docker_socket.clone_from(&config.agent.docker_socket);
    agent.reserved_cpu_millis = u64::from(config.agent.reserved_cpus) * 1000;
    agent.reserved_mem = config.agent.reserved_memory.0;
    agent
        .mock_accelerators
        .clone_from(&config.agent.mock_accelerators);
    agent.nvml = config.agent.nvml.then(probe_command).flatten();
    agent.node_tags.clone_from(&config.tags);
    agent
}

/// This program again, as the process that asks the GPU driver.
fn probe_command() -> Option<Vec<std::ffi::OsString>> {
    let program: PathBuf = std::env::current_exe().ok()?;
    Some(vec![program.into(), "probe-gpus".into()])
}
