//! The words of the membership machine: time, chance, facts, messages, inputs and actions.

use std::ops::{Add, Sub};
use std::time::Duration;

use meshwork_identity::bounded_vec;
use serde::{Deserialize, Serialize};

/// Parts into which the facts of a ledger are divided for repair.
pub const BUCKETS: u8 = 64;
/// Accusers of one node that a ledger keeps and a suspicion counts.
pub const MAX_ACCUSERS: usize = 3;
/// The hashes in one [`Message::Buckets`].
const MAX_HASHES: usize = BUCKETS as usize;
/// Most (key, version) pairs in one [`Message::Keys`]; what is longer does not decode.
pub const MAX_KEYS: usize = 1024;
/// Most keys in one [`Message::Want`]; what is longer does not decode.
pub const MAX_WANTED: usize = 256;

/// The name of a node: its id in production, a number in the simulator.
pub trait Peer: Copy + Ord + std::fmt::Debug + 'static {}

impl<T: Copy + Ord + std::fmt::Debug + 'static> Peer for T {}

/// A moment of monotonic time, measured from a start that the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The start.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The moment this long after the start.
    pub const fn from_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long after the start it is.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// How long after `earlier` it is; zero when it is before it.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// The end of time when it lies beyond it.
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    /// The start when it lies before it.
    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }
}

/// Where the machine's random choices come from. A seeded generator in the simulator and in
/// production, so that a run can be repeated.
pub trait Chance {
    /// 64 random bits.
    fn next_u64(&mut self) -> u64;

    /// A number below `bound`; 0 when `bound` is 0.
    fn below(&mut self, bound: usize) -> usize {
        // The high half of the product, after Lemire (arXiv 1805.10941): its bias is below
        // bound / 2^64.
        let wide = u128::from(self.next_u64()) * (bound as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// True once in `n` times; always when `n` is 0 or 1.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Between three quarters and five quarters of `about`, so that nodes do not march in step.
    fn jitter(&mut self, about: Duration) -> Duration {
        let share = u32::try_from(self.below(513)).unwrap_or(0);
        about.saturating_mul(768 + share) / 1024
    }
}

/// Puts `items` into a random order (Fisher-Yates).
pub fn shuffle<T>(items: &mut [T], chance: &mut dyn Chance) {
    for last in (1..items.len()).rev() {
        items.swap(last, chance.below(last + 1));
    }
}

/// Names one fact that floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key<P> {
    /// What a node says of itself: its announcement, or a beat upon it. The version is the node's
    /// own counter.
    Node(P),
    /// `accuser` holds `accused` to be dead as of the version of `accused` that is the fact's
    /// version. A ledger keeps at most [`MAX_ACCUSERS`] of them for a node: of the largest
    /// version those with the smallest accusers, so that all ledgers keep the same ones.
    Suspicion {
        /// Who is held to be dead.
        accused: P,
        /// Who says so, and signs it.
        accuser: P,
    },
    /// A revocation, by a hash of what it revokes. The version is its rank: of two statements about
    /// the same, all keep the one that counts more.
    Revocation([u8; 32]),
    /// The mesh's rotation of its pre-shared key. The version grows with its epoch.
    Psk,
}

/// The facts that a node holds. The machine asks, its driver fills.
pub trait Ledger<P> {
    /// The version held under a key. For the local node the one it published last.
    fn version(&self, key: &Key<P>) -> Option<u64>;
    /// How many nodes are known, dead ones included, the local one not.
    fn nodes(&self) -> usize;
    /// The `n`-th known node in some stable order, for random samples.
    fn nth(&self, n: usize) -> Option<P>;
    /// A hash over all (key, version), kept incrementally.
    fn summary(&self) -> u64;
    /// The same over the keys of one bucket; a key's bucket is the same in all ledgers.
    fn bucket(&self, index: u8) -> u64;
    /// What one bucket holds, in any order.
    fn keys(&self, bucket: u8) -> Vec<(Key<P>, u64)>;
}

/// What became of a fact that the driver verified and offered to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is held now and was not before.
    New {
        /// Links it has travelled to reach this node.
        hops: u8,
    },
    /// The same version is held already.
    Duplicate,
    /// A later version is held.
    Old,
    /// A beat upon an announcement that is not held: the sender is asked for the whole.
    Incomplete,
    /// It is not believed.
    Refused,
}

/// A control message between two linked nodes. Facts themselves travel by [`Action::Tell`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message<P> {
    /// Are you there?
    Ping {
        /// Names the question; the answer repeats it.
        seq: u32,
        /// The version that the sender holds of the receiver, 0 for none: who reads a smaller
        /// one than its own tells the newer, who reads a larger one has lost its counter.
        version_of_you: u64,
    },
    /// The answer to a ping.
    Ack {
        /// As in the question.
        seq: u32,
    },
    /// Ask that node for me, I do not reach it.
    PingRequest {
        /// Names the request; the answer repeats it.
        seq: u32,
        /// Whom to ask.
        target: P,
    },
    /// The answer to a request.
    IndirectAck {
        /// As in the request.
        seq: u32,
        /// Who was asked.
        target: P,
        /// Whether it answered. When not, the answer still shows that the way between the asker
        /// and the asked works (Lifeguard's "nack").
        alive: bool,
    },
    /// Wants to be the receiver's neighbour. Repeated now and then between neighbours.
    Neighbor {
        /// The sender has none: it is taken in even when that costs another its place.
        urgent: bool,
    },
    /// We are neighbours.
    Accept,
    /// We are not, or no longer, neighbours.
    Decline,
    /// The sender shuts down.
    Leave,
    /// First step of repair: the hash of all that the sender holds.
    Summary {
        /// Of [`Ledger::summary`].
        hash: u64,
        /// Nodes that it knows, itself included.
        count: u32,
    },
    /// Second step, when the hashes differ: the hash of each bucket.
    Buckets {
        /// [`BUCKETS`] of them.
        #[serde(deserialize_with = "bounded_vec::<_, _, MAX_HASHES>")]
        hashes: Vec<u64>,
    },
    /// Third step: what the sender holds in a bucket that differs.
    Keys {
        /// Which bucket.
        bucket: u8,
        /// Sorted by key; at most [`MAX_KEYS`].
        #[serde(deserialize_with = "bounded_vec::<_, _, MAX_KEYS>")]
        keys: Vec<(Key<P>, u64)>,
        /// Whether this is the whole bucket, or only what lies between its first and last key.
        whole: bool,
    },
    /// Tell me what you hold under these keys.
    Want {
        /// At most [`MAX_WANTED`].
        #[serde(deserialize_with = "bounded_vec::<_, _, MAX_WANTED>")]
        keys: Vec<Key<P>>,
    },
}

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// May be lost, repeated and overtaken; never waits for another.
    Datagram,
    /// Reliable and in order while the link lives.
    Stream,
}

impl<P> Message<P> {
    /// How it travels.
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Ping { .. }
            | Self::Ack { .. }
            | Self::PingRequest { .. }
            | Self::IndirectAck { .. } => Lane::Datagram,
            _ => Lane::Stream,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<P> {
    /// An authenticated connection with a node is in use. Given again when another connection
    /// with the same node takes its place.
    LinkUp {
        /// With whom.
        peer: P,
    },
    /// The connection has ended.
    LinkDown {
        /// With whom.
        peer: P,
    },
    /// An [`Action::Dial`] has failed.
    DialFailed {
        /// Who was dialled.
        peer: P,
    },
    /// A message came.
    Message {
        /// From a linked node.
        from: P,
        /// What it says.
        message: Message<P>,
    },
    /// A fact came, was verified and offered to the ledger.
    Heard {
        /// The linked node that told it.
        from: P,
        /// Which fact.
        key: Key<P>,
        /// The version that was told. Of the local node's own key, unless refused, a larger one
        /// than its own shows that its counter was lost.
        version: u64,
        /// What the ledger made of it.
        outcome: Outcome,
    },
    /// The local node put a new fact of its own into the ledger.
    Published {
        /// Which.
        key: Key<P>,
    },
    /// A node's announcement expired or was revoked: nothing of it is kept.
    Forgotten {
        /// Which.
        peer: P,
    },
    /// Orderly shutdown.
    Leave,
    /// [`Membership::next_timer`](super::Membership::next_timer) has come.
    Timer,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P> {
    /// Send a message to a linked node; dropped when the link is gone.
    Send {
        /// To whom.
        to: P,
        /// What.
        message: Message<P>,
    },
    /// Send what the ledger holds under `key` when it is sent, reliably; several under one key
    /// are one. Nothing when the ledger holds nothing.
    Tell {
        /// To whom.
        to: P,
        /// Which fact.
        key: Key<P>,
    },
    /// `to` has shown that it holds the same version: a [`Tell`](Self::Tell) that still waits
    /// need not be sent.
    Untell {
        /// To whom.
        to: P,
        /// Which fact.
        key: Key<P>,
    },
    /// Connect with a node. Answered by [`Input::LinkUp`] (also when linked already) or
    /// [`Input::DialFailed`] within 10 s.
    Dial {
        /// With whom.
        peer: P,
    },
    /// Membership does not need the link any more; it may be closed when nothing else does.
    Release {
        /// With whom.
        peer: P,
    },
    /// Sign that `accused` is held to be dead as of `version`, put it into the ledger, give back
    /// [`Input::Published`].
    Accuse {
        /// Who.
        accused: P,
        /// As of which version.
        version: u64,
    },
    /// Publish a beat, or announcement, of the local node with a version above this one.
    Refute {
        /// The largest version that others hold or accuse.
        above: u64,
    },
    /// What the local node holds of another has changed.
    Status {
        /// Which.
        peer: P,
        /// To what.
        status: Liveness,
    },
}

/// What the local node holds of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Nobody doubts it.
    Alive,
    /// Somebody did not reach it; it has time to object.
    Suspect,
    /// It did not object.
    Dead,
}
