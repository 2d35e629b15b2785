//! Membership, and spreading what all nodes shall know: announcements, beats, suspicions, revocations
//! and the rotation of the pre-shared key.
//!
//! What is known lies in the ledger (`meshwork_proto::facts`); who is told what, who is probed and who
//! is dialled, the membership machine decides (`meshwork_proto::membership`). `driver` runs it.
//! `hear` takes what peers tell, `post` delivers each connection's `outbox` to its peer. `own` is what
//! this node says of itself, `revoke` what revocations cut. With `cache` and `rejoin` a node finds
//! back to its mesh.
//!
//! An outbox holds *which* facts the peer lacks, not the facts: it is bounded by their number, a slow
//! peer gets the latest version of each only, and nothing is copied. What a lost message fails to
//! carry, the comparison of digests with a neighbour brings later.

mod answers;
mod cache;
mod chance;
mod counters;
mod driver;
mod hear;
mod intake;
mod outbox;
mod own;
mod post;
mod rejoin;
mod revoke;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meshwork_identity::NodeId;
use meshwork_proto::facts::{Fact, Facts};
use meshwork_proto::membership::{Liveness, Membership, Moment};
use meshwork_proto::mesh::MembershipCounters;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tracing::debug;

use crate::config::MeshConfig;
use crate::credentials::Credentials;
use crate::env::Env;
use crate::error::MeshError;
use crate::psk::Psks;
use answers::Answers;
use cache::PeerCache;
use chance::SplitMix;
use counters::Counters;
pub use counters::GossipStats;
use driver::Machine;
use intake::Intake;
pub(crate) use outbox::Outbox;
use own::Own;

/// Changes of liveness that a slow listener may lag behind before it misses some.
const MEMBER_EVENTS: usize = 1024;
/// Peers whose telling is measured at a time; there are no more connections by default. Others are
/// measured together.
const MAX_INTAKES: usize = 4096;

/// What this node holds of another has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberEvent {
    /// Which.
    pub node: NodeId,
    /// To what.
    pub status: Liveness,
}

/// Membership, and the facts of all nodes.
///
/// Locks are taken in this order: `own` or `machine`, then `facts`.
pub(crate) struct Gossip {
    facts: Mutex<Facts>,
    own: Mutex<Own>,
    machine: Mutex<Machine>,
    intakes: Mutex<BTreeMap<NodeId, Intake>>,
    answers: Mutex<Answers>,
    cache: Mutex<PeerCache>,
    /// The machine's timer is due earlier than it was.
    timer: Notify,
    members: broadcast::Sender<MemberEvent>,
    counters: Counters,
}

impl Gossip {
    /// With what was kept: the peers to come back to, versions, revocations and the rotation.
    pub(crate) fn load(
        config: &MeshConfig,
        env: &Env,
        credentials: &Credentials,
        psks: &Psks,
    ) -> Result<Self, MeshError> {
        let local = config.identity.node_id();
        let cache = PeerCache::load(local, &*env.state)?;
        let mut facts = Facts::with_capacity(local, config.max_announcements);
        rejoin::restore_versions(&mut facts, &*env.state, credentials.now())?;
        recall(&mut facts, credentials, psks);
        let mut chance = SplitMix::seeded(&*env.entropy);
        let membership = Membership::new(
            local,
            config.membership.clone(),
            cache.nodes().collect(),
            Moment::ZERO,
            &mut chance,
        );
        Ok(Self {
            facts: Mutex::new(facts),
            own: Mutex::new(Own::load(&*env.state)?),
            machine: Mutex::new(Machine::new(membership, chance, Instant::now())),
            intakes: Mutex::default(),
            answers: Mutex::default(),
            cache: Mutex::new(cache),
            timer: Notify::new(),
            members: broadcast::Sender::new(MEMBER_EVENTS),
            counters: Counters::default(),
        })
    }

    /// What is known of all nodes.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a node was when it was last seen.
    pub(crate) fn kept_addresses(&self, node: &NodeId) -> Option<Vec<SocketAddr>> {
        self.cache().get(node).map(|peer| peer.addrs.clone())
    }

    /// The relays that it had then.
    pub(crate) fn kept_relays(&self, node: &NodeId) -> Vec<NodeId> {
        let cache = self.cache();
        cache
            .get(node)
            .map_or_else(Vec::new, |peer| peer.relays.clone())
    }

    fn cache(&self) -> MutexGuard<'_, PeerCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures what a peer tells.
    fn intake<T>(&self, peer: NodeId, measure: impl FnOnce(&mut Intake, Instant) -> T) -> T {
        let now = Instant::now();
        let mut intakes = self.intakes.lock().unwrap_or_else(PoisonError::into_inner);
        let crowded = intakes.len() >= MAX_INTAKES && !intakes.contains_key(&peer);
        let first = intakes.keys().next().copied();
        let peer = first.filter(|_| crowded).unwrap_or(peer);
        measure(intakes.entry(peer).or_insert_with(|| Intake::new(now)), now)
    }

    /// Whether a peer may be sent so many bytes of what it lacks.
    fn may_answer(&self, peer: NodeId, bytes: usize) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.spend(peer, bytes, Instant::now())
    }

    fn forget_intake(&self, peer: &NodeId) {
        let mut intakes = self.intakes.lock().unwrap_or_else(PoisonError::into_inner);
        intakes.remove(peer);
    }

    /// Every change of what this node holds of others, from now on.
    pub(crate) fn watch_members(&self) -> broadcast::Receiver<MemberEvent> {
        self.members.subscribe()
    }

    /// What was counted since the start.
    pub(crate) fn stats(&self) -> GossipStats {
        self.counters.snapshot()
    }

    /// How membership stands.
    pub(crate) fn account(&self) -> Account {
        let machine = self.machine();
        let membership = &machine.membership;
        let stats = membership.stats();
        Account {
            health: membership.health(),
            suspects: membership.suspects().collect(),
            dead: membership.dead() as u64,
            neighbours: membership.active().collect(),
            counters: MembershipCounters {
                probes: stats.probes,
                failed: stats.probes_failed,
                raised: stats.accusations,
                refuted: stats.refuted,
                deaths: stats.deaths,
                floods: stats.floods,
                duplicates: stats.duplicates,
                repairs: stats.repairs_differed,
            },
        }
    }
}

/// How membership stands at a time.
pub(crate) struct Account {
    pub(crate) health: u32,
    pub(crate) suspects: Vec<NodeId>,
    pub(crate) dead: u64,
    pub(crate) neighbours: Vec<NodeId>,
    pub(crate) counters: MembershipCounters,
}

/// Puts what was kept elsewhere back into the ledger, so that others hear of it.
fn recall(facts: &mut Facts, credentials: &Credentials, psks: &Psks) {
    facts.restore_revocations(credentials.statements(&credentials.revoked()));
    if let Some(rotation) = psks.statement() {
        let fact = Fact::Psk(rotation);
        let taken = credentials.with_context(|trust| facts.publish(fact, trust));
        if let Err(why) = taken {
            debug!(%why, "the stored rotation is not passed on");
        }
    }
}
