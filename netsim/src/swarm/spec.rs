//! What a scenario of kind `swarm` says, under `[swarm]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::scenario::{Scenario, ScenarioError, value};

/// Fewest and most nodes of a swarm.
pub const NODES: RangeInclusive<u32> = 1..=20_000;
/// Most nodes of a swarm that signs and verifies for real.
pub const MAX_EXACT: u32 = 200;

/// The table `[swarm]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwarmSpec {
    /// Nodes, those included that join later.
    pub nodes: u32,
    /// How the mesh stands at the start. Default: `converged`.
    #[serde(default)]
    pub start: Start,
    /// Facts as numbers in a table (default), or really signed and verified.
    #[serde(default)]
    pub ledger: LedgerKind,
    /// Bytes of an announcement with its token. Default: 1,100.
    #[serde(default = "announcement", deserialize_with = "value::bytes")]
    pub announcement: u64,
    /// When counting bytes begins. Default: 20 s.
    #[serde(default = "warm_up", deserialize_with = "value::duration")]
    pub warm_up: Duration,
    /// The last part of the run, free of faults, after which all nodes must agree: alive, dead and
    /// announced. Without it the end is not judged.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub quiet: Option<Duration>,
    /// The links.
    #[serde(default)]
    pub link: LinkSpec,
    /// Nodes that are slow.
    #[serde(default)]
    pub slow: Option<SlowSpec>,
    /// How far the nodes' clocks lie apart, to either side. Default: 0.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub skew: Option<Duration>,
    /// Members that lie.
    #[serde(default)]
    pub adversary: Option<AdversarySpec>,
    /// What happens, when.
    #[serde(default)]
    pub step: Vec<Step>,
}

/// How the mesh stands at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// All processes begin at once, knowing all announcements and no neighbour.
    #[default]
    Converged,
    /// Only the first node is there; steps let the others join.
    Cold,
}

/// How nodes keep facts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerKind {
    /// Version numbers; what is forged says so.
    #[default]
    Light,
    /// The product's own ledger, with real signatures.
    Exact,
}

/// The links between nodes. All times are one way.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSpec {
    /// Latency of a pair, uniform. Default: 10 to 40 ms.
    #[serde(deserialize_with = "value::duration_range")]
    pub latency: RangeInclusive<Duration>,
    /// Standard deviation of the logarithm of a pair's latency, around the middle of `latency`;
    /// with it the distribution is lognormal, cut at a tenth and at ten times of it.
    pub spread: Option<f64>,
    /// Places, over which nodes are dealt out by number. Default: 1.
    pub regions: u32,
    /// More latency between nodes of different regions.
    #[serde(deserialize_with = "value::maybe_duration_range")]
    pub between: Option<RangeInclusive<Duration>>,
    /// How much later than that a packet may come, as a share of the latency. Default: 30 %.
    #[serde(deserialize_with = "value::share")]
    pub jitter: f64,
    /// Packets lost, independently.
    #[serde(deserialize_with = "value::share")]
    pub loss: f64,
    /// Times in which a link loses much more (Gilbert-Elliott).
    pub bursts: Option<BurstSpec>,
    /// Packets that come up to four latencies late.
    #[serde(deserialize_with = "value::share")]
    pub reorder: f64,
    /// Datagrams that come twice.
    #[serde(deserialize_with = "value::share")]
    pub duplicate: f64,
    /// Bytes that a node can send in a second. Default: 12.5 MB.
    #[serde(deserialize_with = "value::bytes")]
    pub rate: u64,
}

/// Bursts of loss on a link; lengths are exponentially distributed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstSpec {
    /// Packets lost in a burst.
    #[serde(deserialize_with = "value::share")]
    pub loss: f64,
    /// Mean time between bursts.
    #[serde(deserialize_with = "value::duration")]
    pub every: Duration,
    /// Mean length of a burst.
    #[serde(deserialize_with = "value::duration")]
    pub length: Duration,
}

/// Nodes that handle what comes late.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowSpec {
    /// Which nodes.
    pub nodes: Pick,
    /// How late each input is handled, in order.
    #[serde(deserialize_with = "value::duration_range")]
    pub delay: RangeInclusive<Duration>,
    /// Mean time between stalls; none without. Between two lies at least the longest stall, as
    /// two in a row would be one of twice the length.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub stall_every: Option<Duration>,
    /// Length of a stall, in which nothing is handled. Default: 2 to 5 s.
    #[serde(default = "stall", deserialize_with = "value::duration_range")]
    pub stall: RangeInclusive<Duration>,
}

/// Members that lie: beside what they do, they follow the protocol.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversarySpec {
    /// Which nodes.
    pub nodes: Pick,
    /// What they do, all of it.
    pub does: Vec<Lie>,
    /// Time between two acts of one kind. Default: 1 s.
    #[serde(default = "a_second", deserialize_with = "value::duration")]
    pub every: Duration,
    /// Lies in one act. Default: 10.
    #[serde(default = "ten")]
    pub size: u32,
    /// When they begin. Default: 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "value::duration")]
    pub from: Duration,
}

/// What a lying member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Accuses others, whom it reaches well, as of their latest version.
    Accuse,
    /// Accuses others as of versions that they have not reached.
    AccuseAhead,
    /// Tells announcements of others of versions that they have long replaced.
    Replay,
    /// Tells announcements of others that they never signed.
    Forge,
    /// Tells announcements that are larger than allowed.
    Oversize,
    /// Sends all kinds of messages, as fast as it can.
    Flood,
    /// Tells its own announcement in ever new versions.
    Babble,
    /// Forwards nothing, answers nothing but pings.
    Stall,
    /// Vouches for the dead: says that it reaches whomever it is asked to try.
    Vouch,
}

/// Some of the nodes: a number of them, a share, the first, or one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pick {
    /// So many, at random.
    Count(u32),
    /// This share, at random.
    Share(f64),
    /// Those with the smallest numbers: `"first 500"`, `"first 50 %"`.
    First(u32),
    /// The first ones, as a share.
    FirstShare(f64),
    /// One after another from a random one on: `"rack of 40"`.
    Rack(u32),
    /// All.
    All,
}

/// One thing that happens at some time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// When.
    #[serde(deserialize_with = "value::duration")]
    pub at: Duration,
    /// Again and again in this interval, until `until` or the quiet end.
    #[serde(deserialize_with = "value::maybe_duration")]
    pub every: Option<Duration>,
    /// When repeating ends.
    #[serde(deserialize_with = "value::maybe_duration")]
    pub until: Option<Duration>,
    /// Nodes announce something new; measured as `known`: until 99.9 % of the honest living ones
    /// hold it.
    pub publish: Option<Pick>,
    /// Processes die; measured as `suspected`, `suspected_by_all`, `declared`.
    pub crash: Option<Pick>,
    /// Dead processes begin again, with their disk: counter and peer cache.
    pub restart: Option<Pick>,
    /// Dead processes begin again, with an old disk image: identity and contacts, nothing else.
    pub reborn: Option<Pick>,
    /// Processes do nothing for a while.
    pub pause: Option<PauseStep>,
    /// Processes shut down in order.
    pub leave: Option<Pick>,
    /// New nodes come, within a second.
    pub join: Option<Pick>,
    /// These and the others do not hear each other.
    pub partition: Option<Pick>,
    /// The others do not hear these; these hear the others.
    pub mute: Option<Pick>,
    /// These do not hear the others; the others hear these.
    pub deafen: Option<Pick>,
    /// All partitions end; measured as `healed`: until all living honest nodes hold each other
    /// alive and know what each had said.
    pub heal: bool,
    /// All processes die at once and begin again, with their disks, within this time; measured as
    /// `healed`, from the last beginning.
    #[serde(deserialize_with = "value::maybe_duration_range")]
    pub restart_all: Option<RangeInclusive<Duration>>,
    /// Clocks of nodes jump.
    pub clock: Option<ClockStep>,
    /// Time passes on all clocks in which nobody hears anything new: everything that is not
    /// renewed expires.
    #[serde(deserialize_with = "value::maybe_duration")]
    pub age: Option<Duration>,
    /// From now on links lose this share.
    #[serde(deserialize_with = "maybe_share")]
    pub loss: Option<f64>,
}

/// Nodes that do nothing for a while.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseStep {
    /// Which.
    pub nodes: Pick,
    /// How long.
    #[serde(rename = "for", deserialize_with = "value::duration")]
    pub length: Duration,
}

/// Clocks that jump.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockStep {
    /// Which nodes.
    pub nodes: Pick,
    /// Forward by this.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub forward: Option<Duration>,
    /// Back by this.
    #[serde(default, deserialize_with = "value::maybe_duration")]
    pub back: Option<Duration>,
}

/// A scenario's text, as far as the swarm reads it.
#[derive(Deserialize)]
struct File {
    swarm: SwarmSpec,
}

impl SwarmSpec {
    /// Reads and checks the table of a scenario.
    pub fn of(scenario: &Scenario) -> Result<Self, ScenarioError> {
        let spec = scenario.read::<File>()?.swarm;
        if !NODES.contains(&spec.nodes) {
            let problem = format!(
                "swarm.nodes is {}: a swarm has {} to {} nodes",
                spec.nodes,
                NODES.start(),
                NODES.end()
            );
            return Err(scenario.malformed(problem));
        }
        if spec.ledger == LedgerKind::Exact && spec.nodes > MAX_EXACT {
            let problem = format!(
                "swarm.ledger = \"exact\" signs for real: give at most {MAX_EXACT} nodes, not {}",
                spec.nodes
            );
            return Err(scenario.malformed(problem));
        }
        for (n, step) in spec.step.iter().enumerate() {
            step.check().map_err(|problem| {
                scenario.malformed(format!("swarm.step {}: {problem}", n + 1))
            })?;
        }
        Ok(spec)
    }
}

impl Step {
    fn check(&self) -> Result<(), String> {
        let acts = [
            self.publish.is_some(),
            self.crash.is_some(),
            self.restart.is_some(),
            self.reborn.is_some(),
            self.pause.is_some(),
            self.leave.is_some(),
            self.join.is_some(),
            self.partition.is_some(),
            self.mute.is_some(),
            self.deafen.is_some(),
            self.heal,
            self.restart_all.is_some(),
            self.clock.is_some(),
            self.age.is_some(),
            self.loss.is_some(),
        ];
        match acts.iter().filter(|act| **act).count() {
            1 => Ok(()),
            n => Err(format!(
                "a step does one thing, this one {n}: give one of publish, crash, restart, reborn, \
                 pause, leave, join, partition, mute, deafen, heal, restart_all, clock, age, loss"
            )),
        }
    }
}

impl Default for LinkSpec {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10)..=Duration::from_millis(40),
            spread: None,
            regions: 1,
            between: None,
            jitter: 0.3,
            loss: 0.0,
            bursts: None,
            reorder: 0.0,
            duplicate: 0.0,
            rate: 12_500_000,
        }
    }
}

impl Pick {
    /// The text that is read as this.
    pub fn text(self) -> String {
        match self {
            Self::Count(n) => n.to_string(),
            Self::Share(share) => format!("{} %", share * 100.0),
            Self::First(n) => format!("first {n}"),
            Self::FirstShare(share) => format!("first {} %", share * 100.0),
            Self::Rack(n) => format!("rack of {n}"),
            Self::All => "all".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Pick {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a number of nodes, or text like \"10 %\", \"first 500\", \"first 50 %\", \"rack of 40\", \"all\""
        )]
        enum Written {
            Count(u32),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Count(n) => Ok(Self::Count(n)),
            Written::Text(text) => parse_pick(text.trim()).ok_or_else(|| {
                D::Error::custom(format!(
                    "`{text}` names no nodes: write a number, \"10 %\", \"first 500\", \
                     \"first 50 %\", \"rack of 40\" or \"all\""
                ))
            }),
        }
    }
}

fn parse_pick(text: &str) -> Option<Pick> {
    let share = |text: &str| -> Option<f64> {
        let number: f64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
        (0.0..=100.0).contains(&number).then_some(number / 100.0)
    };
    if text == "all" {
        return Some(Pick::All);
    }
    if let Some(first) = text.strip_prefix("first ") {
        let count = first.trim().parse().ok().map(Pick::First);
        return count.or_else(|| share(first).map(Pick::FirstShare));
    }
    if let Some(rack) = text.strip_prefix("rack of ") {
        return rack.trim().parse().ok().map(Pick::Rack);
    }
    let count = text.parse().ok().map(Pick::Count);
    count.or_else(|| share(text).map(Pick::Share))
}

fn maybe_share<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    value::share(from).map(Some)
}

fn announcement() -> u64 {
    1100
}

fn warm_up() -> Duration {
    Duration::from_secs(20)
}

fn stall() -> RangeInclusive<Duration> {
    Duration::from_secs(2)..=Duration::from_secs(5)
}

fn a_second() -> Duration {
    Duration::from_secs(1)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn ten() -> u32 {
    10
}
