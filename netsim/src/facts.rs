//! What one node holds of all others: the product's own ledger ([`Facts`]), filled with what many
//! nodes really sign, and weighed.
//!
//! ```toml
//! [facts]
//! nodes = 10000
//! renewals = 3        # beats of each, over the scenario's duration
//! lies = 2000         # hostile facts after that
//! ```
//!
//! Measures `held`, the bytes of heap once all is known, `each`, the same for one node, `said`, the
//! bytes of a node's announcement, and `grown`, by how much more lies make the ledger hold. That a
//! lie is taken for news is a broken invariant.

mod people;

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use meshwork_identity::{NodeId, Revocations, Timestamp, VerifyContext};
use meshwork_proto::facts::{Fact, Facts};
use meshwork_proto::membership::{Key, Ledger, Outcome as Fate};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::heap;
use crate::scenario::{Outcome, Scenario, ScenarioError};
use people::{LIES, Town};

/// Most nodes that a ledger is filled with; it holds 16,384.
const MAX_NODES: u32 = 16_000;
/// When nodes begin to speak.
const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The table `[facts]`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactsSpec {
    /// Nodes that are known in the end.
    pub nodes: u32,
    /// Beats that each sends over the duration, after its announcement. Default: 2.
    #[serde(default = "two")]
    pub renewals: u32,
    /// Forged, replayed, rolled back and oversized facts after that. Default: 1,000.
    #[serde(default = "thousand")]
    pub lies: u32,
}

#[derive(Deserialize)]
struct File {
    facts: FactsSpec,
}

impl FactsSpec {
    /// Reads and checks the table of a scenario.
    pub fn of(scenario: &Scenario) -> Result<Self, ScenarioError> {
        let spec = scenario.read::<File>()?.facts;
        let problem = if !(1..=MAX_NODES).contains(&spec.nodes) {
            format!("facts.nodes is {}: give 1 to {MAX_NODES}", spec.nodes)
        } else if !(1..=100).contains(&spec.renewals) {
            let renewals = spec.renewals;
            format!("facts.renewals is {renewals}: give 1 to 100, as lies roll back to before them")
        } else {
            return Ok(spec);
        };
        Err(scenario.malformed(problem))
    }
}

/// Runs a scenario of kind `facts` with one seed. `trace` gets one line for each fact.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<Outcome, ScenarioError> {
    let spec = FactsSpec::of(scenario)?;
    let mut listener = Listener::new(Town::new(seed), trace);
    let before = heap::held();
    listener.facts = Some(Facts::new(listener.town.listener()));
    listener.hear_all(&spec, scenario.duration);
    let full = heap::held();
    listener.hear_lies(&spec, seed, scenario.duration);
    let mut out = std::mem::take(&mut listener.out);
    out.virtual_time = scenario.duration;
    listener.report(&mut out, &spec, [before, full, heap::held()]);
    Ok(out)
}

/// The node that hears all that.
struct Listener<'a> {
    town: Town,
    facts: Option<Facts>,
    revocations: Revocations,
    /// Bytes of all announcements.
    said: usize,
    hash: Sha256,
    trace: Option<&'a mut dyn Write>,
    out: Outcome,
}

impl<'a> Listener<'a> {
    fn new(town: Town, trace: Option<&'a mut dyn Write>) -> Self {
        Self {
            town,
            facts: None,
            revocations: Revocations::new(),
            said: 0,
            hash: Sha256::new(),
            trace,
            out: Outcome::default(),
        }
    }

    /// Every node's announcement, and its beats, evenly over the duration.
    fn hear_all(&mut self, spec: &FactsSpec, duration: Duration) {
        for node in 0..spec.nodes {
            let word = self.town.announcement(node, 1, START);
            self.said += word.envelope.body_len();
            self.hear_news(node, &Fact::Announcement(word), START);
        }
        for turn in 1..=spec.renewals {
            let now = START.saturating_add(duration * turn / spec.renewals);
            for node in 0..spec.nodes {
                let beat = self.town.beat(node, u64::from(turn) + 1, now);
                self.hear_news(node, &Fact::Beat(beat), now);
            }
        }
    }

    fn hear_news(&mut self, node: u32, fact: &Fact, now: Timestamp) {
        let fate = self.hear(fact, now);
        if !matches!(fate, Fate::New { .. }) {
            self.out.broken(format!(
                "what node {node} says at {now} is not taken but {fate:?}"
            ));
        }
    }

    fn hear_lies(&mut self, spec: &FactsSpec, seed: u64, duration: Duration) {
        let now = START.saturating_add(duration);
        let mut chance = StdRng::seed_from_u64(seed);
        for _ in 0..spec.lies {
            let victim = chance.random_range(0..spec.nodes);
            let kind = LIES[chance.random_range(0..LIES.len())];
            let Some(fact) = self.town.lie(kind, victim, now, &mut chance) else {
                continue;
            };
            let key = Key::Node(self.town.node(victim));
            let before = self.version(&key);
            let fate = self.hear(&fact, now);
            if matches!(fate, Fate::New { .. }) || self.version(&key) != before {
                self.out
                    .broken(format!("{kind:?} about node {victim} is taken: {fate:?}"));
            }
        }
    }

    fn version(&self, key: &Key<NodeId>) -> Option<u64> {
        self.facts.as_ref()?.version(key)
    }

    fn hear(&mut self, fact: &Fact, now: Timestamp) -> Fate {
        let bytes = meshwork_proto::codec::encode(fact);
        self.hash.update(&bytes);
        let root = self.town.authority();
        let trust = VerifyContext::new(&root, now, &self.revocations);
        let facts = self.facts.as_mut().expect("it listens");
        let (key, version, fate, _) = facts.accept(fact.clone(), &trust);
        self.hash
            .update([u8::from(matches!(fate, Fate::New { .. }))]);
        self.out.events += 1;
        if let Some(trace) = &mut self.trace {
            let size = bytes.len();
            let line = writeln!(trace, "{now} {key:?} {version} {size} {fate:?}");
            self.out.note = line.err().map(cut_short).unwrap_or_default();
        }
        fate
    }

    /// `heap`: before, with all facts, and after the lies.
    fn report(self, out: &mut Outcome, spec: &FactsSpec, heap: [Option<i64>; 3]) {
        let known = self.facts.as_ref().map_or(0, Ledger::nodes);
        if known != spec.nodes as usize {
            out.broken(format!("{known} of {} nodes are known", spec.nodes));
        }
        let hash = self.hash.finalize();
        out.trace_hash = u64::from_be_bytes(std::array::from_fn(|at| hash[at]));
        #[allow(clippy::cast_precision_loss, reason = "shown with few digits")]
        {
            let nodes = f64::from(spec.nodes);
            out.measure("said", self.said as f64 / nodes);
            // Without a counting allocator nothing is measured, and no bar holds.
            if let [Some(before), Some(full), Some(after)] = heap {
                let held = (full - before) as f64;
                let grown = (after - full) as f64;
                for (name, bytes) in [("held", held), ("each", held / nodes), ("grown", grown)] {
                    out.machine.insert(name.to_owned(), bytes);
                }
            }
        }
    }
}

fn cut_short(error: impl Display) -> String {
    format!("the trace is cut short: {error}")
}

fn two() -> u32 {
    2
}

fn thousand() -> u32 {
    1000
}
