//! What a scenario of real nodes says.
//!
//! ```toml
//! [world]
//! wire = { latency = "10 ms..30 ms", loss = 0.01 }   # between all hosts, if not said otherwise
//!
//! [[world.site]]                  # a network behind a gateway
//! name = "home"
//! nat = "home"                    # home, symmetric, carrier, firewall, or a table
//!
//! [[world.node]]                  # a group of like nodes: `relay-0`, `relay-1`
//! name = "relay"
//! count = 2
//! relay = true
//!
//! [[world.node]]
//! name = "a"
//! at = "home"
//! knows = ["relay"]               # whom it is told of at its start
//!
//! [[world.stream]]                # items from `to` to `from`
//! from = "a"
//! to = "relay-0"
//! start = "10 s"
//! length = "1 min"
//!
//! [[world.event]]
//! at = "30 s"
//! do = { crash = ["relay-1"] }
//! ```

mod check;
mod model;

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use crate::scenario::value;
pub use model::PairOfModels;

/// The part of a scenario file that is ours.
#[derive(Debug, Clone, Deserialize)]
pub struct File {
    /// See [`World`].
    pub world: World,
}

/// The table `[world]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Between all hosts. Default: 10 to 20 ms, nothing lost.
    #[serde(default)]
    pub wire: WireSpec,
    /// Networks behind gateways. A site comes after the one that it is inside of.
    #[serde(default)]
    pub site: Vec<Site>,
    /// Groups of nodes.
    pub node: Vec<Group>,
    /// Streams of items.
    #[serde(default)]
    pub stream: Vec<StreamSpec>,
    /// Calls from time to time.
    #[serde(default)]
    pub calls: Vec<CallsSpec>,
    /// Two nodes whose path to each other is looked at.
    #[serde(default)]
    pub pair: Vec<PairSpec>,
    /// Moments at which all nodes shall agree.
    #[serde(default)]
    pub agree: Vec<AgreeSpec>,
    /// What happens.
    #[serde(default)]
    pub event: Vec<Event>,
}

/// A wire between hosts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireSpec {
    /// Evenly in this range, in order unless [`WireSpec::reorders`]. Default: 10 to 20 ms.
    #[serde(default, deserialize_with = "value::maybe_duration_range")]
    pub latency: Option<RangeInclusive<Duration>>,
    /// Instead of `latency`: about normal.
    pub normal: Option<NormalSpec>,
    /// Instead of `latency`: with a long tail.
    pub pareto: Option<ParetoSpec>,
    /// Whether what took long is overtaken by what was sent later.
    #[serde(default)]
    pub reorders: bool,
    /// Share lost at random.
    #[serde(default, deserialize_with = "value::share")]
    pub loss: f64,
    /// Share lost in bursts of this mean length, all within lost.
    pub burst: Option<BurstSpec>,
    /// Share that comes later by `late_by`.
    #[serde(default, deserialize_with = "value::share")]
    pub late: f64,
    /// Default: 30 ms.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub late_by: Option<Duration>,
    /// Share that comes twice.
    #[serde(default, deserialize_with = "value::share")]
    pub duplicate: f64,
    /// Bytes a second. Default: no bottleneck.
    pub rate: Option<u64>,
    /// Bytes that wait at the bottleneck. Default: 64 KiB.
    pub queue: Option<u64>,
    /// Largest IP packet in bytes. Default: 1,500.
    pub mtu: Option<usize>,
}

/// About normally distributed latencies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormalSpec {
    #[serde(deserialize_with = "value::duration")]
    mean: Duration,
    #[serde(deserialize_with = "value::duration")]
    deviation: Duration,
}

/// Latencies with a long tail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParetoSpec {
    #[serde(deserialize_with = "value::duration")]
    least: Duration,
    shape: f64,
    #[serde(deserialize_with = "value::duration")]
    most: Duration,
}

/// Losses in bursts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstSpec {
    /// Of all datagrams.
    #[serde(deserialize_with = "value::share")]
    share: f64,
    /// Mean length in datagrams, at least 1.
    length: f64,
}

/// A network behind a gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Within which site. Default: the internet.
    pub inside: Option<String>,
    /// What the gateway does for IPv4.
    pub nat: NatSpec,
    /// Whether there is a stateful firewall for IPv6, too, behind which nodes have addresses of the
    /// internet.
    #[serde(default)]
    pub v6: bool,
}

/// A gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "home, symmetric, carrier, firewall, one-of-pair, or a table"
)]
pub enum NatSpec {
    /// A well-known model.
    Named(NamedNat),
    /// A model in all detail.
    Table(NatTable),
}

/// Gateways with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedNat {
    /// [`crate::nat::NatModel::home`].
    Home,
    /// [`crate::nat::NatModel::symmetric`].
    Symmetric,
    /// [`crate::nat::NatModel::carrier`].
    Carrier,
    /// No translation, only a stateful firewall.
    Firewall,
    /// One side of the pair that the seed picks; see [`PairOfModels`].
    OneOfPair,
}

/// A translator in detail. What is left out is as in [`crate::nat::NatModel::home`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatTable {
    mapping: Option<DependenceSpec>,
    filtering: Option<DependenceSpec>,
    ports: Option<PortsSpec>,
    #[serde(default, deserialize_with = "value::maybe_duration")]
    lifetime: Option<Duration>,
    #[serde(default, deserialize_with = "value::maybe_duration")]
    hard_lifetime: Option<Duration>,
    #[serde(default)]
    hairpin: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DependenceSpec {
    EndpointIndependent,
    AddressDependent,
    AddressPortDependent,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PortsSpec {
    Preserve,
    Random,
    Sequential,
}

/// A group of like nodes.
#[derive(Debug, Clone, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a line that a file may have"
)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The node's name, if it is one; with more, they are `NAME-0`, `NAME-1`, …
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// At which site. Default: on the internet.
    pub at: Option<String>,
    /// Whether each is at a site of its own that is like that one.
    #[serde(default)]
    pub apart: bool,
    /// Whether they relay.
    #[serde(default)]
    pub relay: bool,
    /// With an IPv6 address besides the IPv4 one.
    #[serde(default)]
    pub v6: bool,
    /// Whom they are told of when they start. Default: nobody.
    #[serde(default)]
    pub knows: Vec<String>,
    /// They are started by an event, not at once.
    #[serde(default)]
    pub later: bool,
    /// How far their clocks are off, each by chance within this, either way.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub skew: Option<Duration>,
}

/// A stream of items from `to`, who serves, to `from`, who calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSpec {
    /// The caller.
    pub from: String,
    /// The server.
    pub to: String,
    /// When it is called.
    #[serde(deserialize_with = "value::duration")]
    pub start: Duration,
    /// How long items come.
    #[serde(deserialize_with = "value::duration")]
    pub length: Duration,
    /// An item each so often. Default: 50 ms.
    #[serde(default = "often", deserialize_with = "value::duration")]
    pub every: Duration,
    /// Bytes an item. Default: 1,000.
    #[serde(default = "kilobyte")]
    pub size: usize,
}

/// Each of `from` calls one of `to`, picked by chance, time and again.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallsSpec {
    /// Callers.
    pub from: Vec<String>,
    /// Who is called.
    pub to: Vec<String>,
    /// When they begin.
    #[serde(deserialize_with = "value::duration")]
    pub start: Duration,
    /// When they end.
    #[serde(deserialize_with = "value::duration")]
    pub until: Duration,
    /// Pause between two calls. Default: 1 s.
    #[serde(default = "second", deserialize_with = "value::duration")]
    pub every: Duration,
    /// The call's deadline. Default: 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "value::duration")]
    pub within: Duration,
}

/// Two nodes, from a moment on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSpec {
    /// One.
    pub a: String,
    /// The other.
    pub b: String,
    /// When `a` calls `b` for the first time.
    #[serde(deserialize_with = "value::duration")]
    pub start: Duration,
    /// How long the first try may take, from the start on.
    #[serde(deserialize_with = "value::duration")]
    pub first_try: Duration,
    /// Whether they must get to a direct path.
    pub direct: Expected,
}

/// What is expected of a pair's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// Direct.
    Always,
    /// Over a relay.
    Never,
    /// Direct if and only if [`crate::nat::theory::direct_possible`] says so.
    AsTheory,
    /// Whatever it is.
    Either,
}

/// All of these nodes shall know and find one another, and nobody else of the scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgreeSpec {
    /// Under which name it is measured how long that takes. Default: `agreed`.
    #[serde(default = "agreed")]
    pub name: String,
    /// Who.
    pub who: Vec<String>,
    /// From when on that is looked at.
    #[serde(deserialize_with = "value::duration")]
    pub after: Duration,
}

/// Something that happens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When; within a range, when the seed says.
    #[serde(deserialize_with = "value::duration_range")]
    pub at: RangeInclusive<Duration>,
    /// What.
    #[serde(rename = "do")]
    pub action: Action,
}

/// What happens.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nodes that were to come later start.
    Start(Vec<String>),
    /// Nodes die without a word.
    Crash(Vec<String>),
    /// They start again with what was on their disk.
    Restart(Vec<String>),
    /// They start again with an empty disk.
    RestartEmpty(Vec<String>),
    /// They start again with their disk, and without being told of anybody.
    RestartUntold(Vec<String>),
    /// They shut down in order.
    Stop(Vec<String>),
    /// They neither send nor get anything for a while.
    Pause {
        /// Who.
        who: Vec<String>,
        /// How long.
        #[serde(rename = "for", deserialize_with = "value::duration")]
        length: Duration,
    },
    /// Their wall clocks jump by so many seconds.
    ClockJump {
        /// Who.
        who: Vec<String>,
        /// Seconds, forward or back.
        by: f64,
    },
    /// A node's host is at another site from now on, under another address.
    Move {
        /// Who.
        who: String,
        /// Where; none: the internet.
        to: Option<String>,
    },
    /// Nothing arrives from any of these at any of those.
    Cut(CutSpec),
    /// Ends a cut with the same ends.
    Mend(CutSpec),
    /// What these send and get goes over this wire besides the others.
    Access {
        /// Who.
        who: Vec<String>,
        /// The wire, both ways.
        wire: WireSpec,
    },
    /// IPv6 leads nowhere from now on.
    BlackholeV6,
    /// A gateway forgets what it knows.
    RestartGateway(String),
    /// The authority revokes a node, and tells another.
    Revoke {
        /// Who is revoked.
        who: String,
        /// Who is told first.
        at: String,
    },
    /// The authority changes the mesh's PSK, and tells a node.
    RotatePsk {
        /// Who is told first.
        at: String,
        /// How long both keys are accepted.
        #[serde(deserialize_with = "value::duration")]
        overlap: Duration,
    },
    /// Outsiders attack a node.
    Attack(AttackSpec),
}

/// Two sides of a cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutSpec {
    /// Who is not heard.
    pub from: Vec<String>,
    /// By whom.
    pub to: Vec<String>,
    /// Whether those are not heard by these, either. Default: true.
    #[serde(default = "yes")]
    pub both: bool,
    /// Out for so long each time; with `well`.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub out: Option<Duration>,
    /// Well for so long each time.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub well: Option<Duration>,
}

/// What outsiders do.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackSpec {
    /// Whom they attack.
    pub on: Vec<String>,
    /// How long.
    #[serde(rename = "for", deserialize_with = "value::duration")]
    pub length: Duration,
    /// Datagrams a second against each, of each kind.
    pub rate: u32,
    /// Kinds of datagrams.
    pub with: BTreeSet<Weapon>,
}

/// Kinds of hostile datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weapon {
    /// First packets under made-up keys, from made-up addresses.
    Flood,
    /// What was seen on the wire, from where it came and from elsewhere.
    Replay,
    /// What was seen on the wire, cut off somewhere.
    Truncate,
    /// What was seen on the wire, with some bits turned.
    Flip,
    /// Random bytes.
    Garbage,
}

impl Group {
    /// The name of one of the group.
    pub fn member(&self, index: usize) -> String {
        if self.count == 1 {
            self.name.clone()
        } else {
            format!("{}-{index}", self.name)
        }
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn agreed() -> String {
    "agreed".to_owned()
}

fn often() -> Duration {
    Duration::from_millis(50)
}

fn kilobyte() -> usize {
    1000
}

fn second() -> Duration {
    Duration::from_secs(1)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
