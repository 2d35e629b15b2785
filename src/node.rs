//! A running node: the one place that joins mesh, manager and agent, by role.
//!
//! The mesh listens first, so that a node serves within milliseconds. What may be slow (the
//! container backend, the GPU driver) comes after it and may come late: the agent's part is tried
//! again until it works, and the announcement says at each time what is so.

mod addresses;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meshwork_agent::{Agent, AgentConfig, hardware};
use meshwork_identity::{NodeId, Timestamp};
use meshwork_manager::{Manager, ManagerConfig};
use meshwork_mesh::{FileState, Mesh, MeshConfig, MeshError, SystemClock};
use meshwork_proto::announcement::{Gpu, Role};
use meshwork_proto::limits::MAX_ANNOUNCEMENT;
use meshwork_proto::service::Router;
use meshwork_proto::{Announcement, codec};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use addresses::listen;
use addresses::{reachable_here, reachable_there};

use crate::config::Config;
use crate::home::{Home, HomeError, RunFile, Who};

/// Pause before the agent's part is tried again when no container backend answered.
const BACKEND_RETRY: Duration = Duration::from_secs(10);
/// Time between two looks at what the announcement says: devices and images change rarely.
const REFRESH: Duration = Duration::from_mins(1);
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
    /// The manager's part did not start.
    #[error("the manager does not start: {0}")]
    Manager(#[from] meshwork_manager::ManagerError),
}

/// What a starting node has to tell.
#[derive(Debug)]
pub(crate) enum Step {
    /// It listens, and serves its peers.
    Listening(Vec<SocketAddr>),
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
        };
        home.write_running(&run)?;
        on_step(Step::Listening(mesh.local_addrs()));

        let manager = if facts.roles.contains(&Role::Manager) {
            Some(start_manager(home, &mesh).await?)
        } else {
            None
        };
        let (stop, stopped) = watch::channel(false);
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
    pub(crate) async fn shutdown(self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.stop.send_replace(true);
        let parts = async {
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

/// What the operator says about the node.
struct Facts {
    name: String,
    roles: BTreeSet<Role>,
    config: Config,
}

/// What goes on beside the calls: getting the agent's part up, and keeping the announcement true.
struct Background {
    mesh: Mesh,
    home: Home,
    facts: Facts,
    run: RunFile,
    on_step: OnStep,
}

impl Background {
    /// Runs until it is stopped; returns the agent's part, if it came up.
    async fn run(self, mut stopped: watch::Receiver<bool>) -> Option<Agent> {
        let mut agent = None;
        let mut said = None;
        let mut look_again = Instant::now();
        loop {
            let wanted = agent.is_none() && self.facts.roles.contains(&Role::Agent);
            if wanted {
                agent = self.start_agent().await;
            }
            let came_up = wanted && agent.is_some();
            if came_up || Instant::now() >= look_again {
                self.announce(agent.as_ref(), &mut said).await;
                look_again = Instant::now() + REFRESH;
            }
            let pause = if wanted && !came_up {
                BACKEND_RETRY
            } else {
                REFRESH
            };
            let stop = stopped.wait_for(|stop| *stop);
            if tokio::time::timeout(pause, stop).await.is_ok() {
                return agent;
            }
        }
    }

    /// Announces what is so now, if it is not what was `said` last.
    async fn announce(&self, agent: Option<&Agent>, said: &mut Option<Announcement>) {
        let announcement = self.announcement(agent).await;
        if said.as_ref() == Some(&announcement) {
            return;
        }
        match self.mesh.announce(announcement.clone()).await {
            Ok(()) => {
                if said.replace(announcement).is_none() {
                    self.ready();
                }
            }
            Err(error) => tracing::warn!(%error, "the announcement did not go out"),
        }
    }

    fn ready(&self) {
        let run = RunFile {
            ready: true,
            ..self.run.clone()
        };
        if let Err(error) = self.home.write_running(&run) {
            tracing::warn!(%error, "commands of this machine do not learn that the node is ready");
        }
        (self.on_step)(Step::Announced);
    }

    async fn start_agent(&self) -> Option<Agent> {
        let config = agent_config(&self.home, &self.facts.config);
        let trust = Arc::new(self.mesh.clone());
        match Agent::start(config, trust, Arc::new(SystemClock), self.mesh.node_id()).await {
            Ok(agent) => {
                self.mesh.serve(agent.router());
                let (backend, gpus) = (agent.backend(), agent.gpus());
                tracing::info!(%backend, gpus = gpus.len(), "the agent serves");
                (self.on_step)(Step::Agent { backend, gpus });
                Some(agent)
            }
            Err(error) => {
                tracing::info!(%error, "no agent yet");
                (self.on_step)(Step::NoAgent(error.to_string()));
                None
            }
        }
    }

    async fn probe_gpus(&self) -> Vec<Gpu> {
        let config = agent_config(&self.home, &self.facts.config);
        meshwork_agent::probe_gpus(&config)
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "GPUs are not announced");
                Vec::new()
            })
    }

    /// What is so now. A node whose agent's part is not up does not claim to be an agent, but
    /// still says what hardware it has.
    async fn announcement(&self, agent: Option<&Agent>) -> Announcement {
        let gpus = match agent {
            Some(agent) => agent.gpus(),
            None if self.facts.roles.contains(&Role::Agent) => self.probe_gpus().await,
            None => Vec::new(),
        };
        let (hardware, mut software) = hardware::collect(self.home.root(), gpus);
        software.container_backend = agent.map(Agent::backend);
        software.cuda = agent.and_then(Agent::cuda);
        let mut roles = self.facts.roles.clone();
        let mut services = BTreeSet::from(["mesh".to_owned()]);
        if agent.is_none() {
            roles.remove(&Role::Agent);
        }
        services.extend(roles.iter().map(ToString::to_string));
        let config = &self.facts.config;
        fitting(Announcement {
            // The mesh numbers and dates it.
            version: 0,
            issued_at: Timestamp::default(),
            ttl: Duration::ZERO,
            name: self.facts.name.clone(),
            roles,
            addresses: reachable_there(&config.advertise, &self.mesh.local_addrs()),
            relays: Vec::new(),
            services,
            hardware,
            software,
            images: match agent {
                Some(agent) => agent.images().await,
                None => Vec::new(),
            },
            models: BTreeSet::new(),
            tools: BTreeSet::new(),
            tags: config.tags.clone(),
            subnet: config.subnet.clone(),
            region: config.region.clone(),
        })
    }
}

/// The announcement with as many images as fit.
fn fitting(mut announcement: Announcement) -> Announcement {
    /// Bytes that version, time and lifetime take once they are filled in.
    const DATES: usize = 64;
    while codec::encode(&announcement).len() + DATES > MAX_ANNOUNCEMENT
        && announcement.images.pop().is_some()
    {}
    announcement
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
