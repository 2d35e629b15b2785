//! What goes on beside the calls of a node: getting the agent's part up, and keeping the announcement
//! and what is told to be free true.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meshwork_agent::{Agent, hardware};
use meshwork_identity::Timestamp;
use meshwork_mesh::{Mesh, SystemClock};
use meshwork_proto::announcement::{Gpu, Role};
use meshwork_proto::beat::Availability;
use meshwork_proto::limits::MAX_ANNOUNCEMENT;
use meshwork_proto::path::NatClass;
use meshwork_proto::slots::{Capacity, GpuStatus, Health};
use meshwork_proto::{Announcement, codec};
use tokio::sync::watch;
use tokio::time::Instant;

use super::addresses::reachable_there;
use super::{OnStep, Step, agent_config, upkeep};
use crate::config::Config;
use crate::home::{Home, RunFile};

/// Pause before the agent's part is tried again when no container backend answered.
const BACKEND_RETRY: Duration = Duration::from_secs(10);
/// Time between two looks at what the announcement says: devices and images change rarely.
const REFRESH: Duration = Duration::from_mins(1);
/// Time between two looks at what is free: a search for free devices finds nothing older than this
/// and the time that news takes.
const AVAILABILITY: Duration = Duration::from_secs(5);
/// What the operator says about the node.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) roles: BTreeSet<Role>,
    pub(super) config: Config,
}

/// What goes on beside the calls: getting the agent's part up, and keeping the announcement true.
pub(super) struct Background {
    pub(super) mesh: Mesh,
    pub(super) home: Home,
    pub(super) facts: Facts,
    pub(super) run: RunFile,
    pub(super) on_step: OnStep,
}

impl Background {
    /// Runs until it is stopped; returns the agent's part, if it came up.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) -> Option<Agent> {
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
            let until = Instant::now() + pause;
            if self
                .tell_what_is_free(agent.as_ref(), until, &mut stopped)
                .await
            {
                return agent;
            }
        }
    }

    /// Keeps telling what is free until `until`; whether the node stops before that.
    async fn tell_what_is_free(
        &self,
        agent: Option<&Agent>,
        until: Instant,
        stopped: &mut watch::Receiver<bool>,
    ) -> bool {
        loop {
            // The mesh passes on what differs from what it told last.
            self.mesh
                .set_availability(agent.map(|agent| availability(&agent.capacity())));
            let now = Instant::now();
            if now >= until {
                return false;
            }
            if upkeep::stops_before(until.min(now + AVAILABILITY), stopped).await {
                return true;
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
        let serving = [Role::Agent, Role::Manager].into_iter();
        services.extend(serving.filter(|r| roles.contains(r)).map(|r| r.to_string()));
        let config = &self.facts.config;
        fitting(Announcement {
            // The mesh numbers and dates it.
            version: 0,
            issued_at: Timestamp::default(),
            ttl: Duration::ZERO,
            name: self.facts.name.clone(),
            roles,
            addresses: reachable_there(&config.advertise, &self.mesh.local_addrs()),
            // The mesh finds these out.
            relays: Vec::new(),
            nat: NatClass::default(),
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
            subnet: config.place(),
            region: config.region.clone(),
        })
    }
}

/// What an agent has free, by the names of slots.
fn availability(capacity: &Capacity) -> Availability {
    let gpus = &capacity.gpus;
    let mut free = vec![
        ("cpu".to_owned(), capacity.cpu_free),
        ("mem".to_owned(), capacity.mem_free),
    ];
    if !gpus.is_empty() {
        let devices = gpus.iter().filter(|gpu| gpu.is_free()).count();
        free.push(("gpu".to_owned(), devices as u64));
    }
    Availability {
        free,
        vram_used: gpus.iter().map(vram_used).collect(),
        healthy: gpus.iter().all(|gpu| gpu.health == Health::Ok),
    }
}

/// Of a GPU that no kernel may be given, nothing is free.
fn vram_used(gpu: &GpuStatus) -> u64 {
    if gpu.is_free() {
        gpu.vram_used
    } else {
        gpu.device.vram
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
