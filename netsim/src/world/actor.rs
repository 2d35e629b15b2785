//! One node of a world: its host, its disk, its clock, and the process that runs or does not.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use meshwork_identity::{Contact, Identity, NodeId, Timestamp};
use meshwork_mesh::Mesh;
use meshwork_proto::ports::WallClock;
use tokio::{task::JoinHandle, time::Instant};

use super::disk::Disk;
use crate::{Host, nat::NatModel};

/// The port of every node.
pub(super) const PORT: u16 = 7000;
/// When the clocks of worlds start: some day in 2026.
const EPOCH: Timestamp = Timestamp::from_secs(1_780_000_000);
/// How long a node that is stopped in order may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// A node of a world, whether it runs or not.
pub(super) struct Actor {
    pub(super) name: String,
    /// Index of its group.
    pub(super) group: usize,
    pub(super) identity: Identity,
    pub(super) host: Host,
    pub(super) clock: Arc<Clock>,
    /// The translators between it and the internet, from it outwards.
    chain: Mutex<Vec<NatModel>>,
    process: Mutex<Process>,
}

#[derive(Default)]
struct Process {
    mesh: Option<Mesh>,
    disk: Arc<Disk>,
    is_dead: Arc<AtomicBool>,
    /// What is left of those that died: tasks that talk to nobody until they notice.
    remains: Vec<JoinHandle<()>>,
}

impl Actor {
    pub(super) fn new(name: String, group: usize, identity: Identity, host: Host) -> Self {
        Self {
            name,
            group,
            identity,
            host,
            clock: Arc::new(Clock::new()),
            chain: Mutex::default(),
            process: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.identity.node_id()
    }

    pub(super) fn set_chain(&self, chain: Vec<NatModel>) {
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    /// See [`Actor::set_chain`].
    pub(super) fn chain(&self) -> Vec<NatModel> {
        self.chain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Where it can be dialled, as far as addresses go.
    pub(super) fn addrs(&self) -> Vec<SocketAddr> {
        self.host.addrs(PORT)
    }

    pub(super) fn contact(&self) -> Contact {
        Contact {
            node: self.id(),
            addrs: self.addrs(),
        }
    }

    /// The node, if it runs.
    pub(super) fn mesh(&self) -> Option<Mesh> {
        self.process().mesh.clone()
    }

    pub(super) fn disk(&self) -> Arc<Disk> {
        self.process().disk.clone()
    }

    /// Throws away what it has kept.
    pub(super) fn empty_disk(&self) {
        self.process().disk = Arc::default();
    }

    pub(super) fn runs(&self, mesh: Mesh) {
        self.process().mesh = Some(mesh);
    }

    /// A process begins. Whether it is dead by now, so that its last tasks open no sockets.
    pub(super) fn born(&self) -> Arc<AtomicBool> {
        let is_dead = Arc::new(AtomicBool::new(false));
        self.process().is_dead = is_dead.clone();
        is_dead
    }

    /// The machine dies: nobody hears another word, and nothing more gets to its disk.
    pub(super) fn crash(&self) {
        let mut process = self.process();
        let Some(mesh) = process.mesh.take() else {
            return;
        };
        process.is_dead.store(true, Ordering::Relaxed);
        self.host.crash();
        let disk = process.disk.pull();
        process.disk = Arc::new(disk);
        let remains = tokio::spawn(async move { mesh.shutdown(Duration::ZERO).await });
        process.remains.push(remains);
    }

    /// Shuts the node down in order.
    pub(super) async fn stop(&self) {
        let mesh = self.process().mesh.take();
        if let Some(mesh) = mesh {
            mesh.shutdown(GOODBYE).await;
        }
        // Whoever holds the mesh still holds its socket.
        self.process().is_dead.store(true, Ordering::Relaxed);
        self.host.crash();
    }

    /// Waits for all that ever ran. Returns how many did not end.
    pub(super) async fn bury(&self) -> usize {
        let remains = std::mem::take(&mut self.process().remains);
        let mut left = 0;
        for task in remains {
            let ended = tokio::time::timeout(Duration::from_mins(5), task).await;
            left += usize::from(!matches!(ended, Ok(Ok(()))));
        }
        left
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A node's wall clock, which may be wrong.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    /// Milliseconds that it is ahead of the true time.
    ahead: AtomicI64,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            ahead: AtomicI64::new(0),
        }
    }

    /// The time that a right clock shows.
    pub(super) fn true_now(&self) -> Timestamp {
        EPOCH.saturating_add(self.start.elapsed())
    }

    /// Sets it forward, or back, by so many seconds.
    pub(super) fn jump(&self, seconds: f64) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "scenarios jump by days at most"
        )]
        let millis = (seconds * 1000.0) as i64;
        self.ahead.fetch_add(millis, Ordering::Relaxed);
    }
}

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        let since = passed.saturating_add(self.ahead.load(Ordering::Relaxed));
        let epoch = EPOCH.as_millis();
        Timestamp::from_millis(epoch.saturating_add_signed(since))
    }
}
