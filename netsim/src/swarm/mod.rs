//! Thousands of membership machines in one thread, message by message.
//!
//! The machine is the product's own ([`meshwork_proto::membership`]); what it is told and what it
//! wants goes through a driver that behaves as the product's does: facts are gathered for 50 ms
//! and sent in calls, one at a time over a link; connections need a handshake, are kept alive,
//! time out and are closed when nobody needs them. The wires delay, lose, repeat and reorder.
//! Facts are version numbers with the truth beside them (`ledger`), so that ten thousand nodes that
//! know ten thousand fit into one gigabyte; or, in small swarms, the product's own, really signed
//! (`exact`).

mod book;
mod exact;
mod judge;
mod ledger;
mod liar;
mod link;
mod node;
mod number;
mod process;
mod queue;
mod rng;
mod script;
mod sim;
mod slab;
mod spec;
mod speech;
mod start;
mod store;
mod trace;
mod traffic;
mod watch;
mod wire;

use std::io::Write;

pub use spec::{
    AdversarySpec, BurstSpec, ClockStep, LedgerKind, Lie, LinkSpec, MAX_EXACT, NODES, PauseStep,
    Pick, SlowSpec, Start, Step, SwarmSpec,
};

use crate::scenario::{Outcome, Scenario, ScenarioError};
use sim::Sim;

/// Runs a scenario of kind `swarm` with one seed. Everything that happens is written to `trace`,
/// one line each.
///
/// Measures, where there is something to measure: `known`, `suspected` (by the first),
/// `suspected_by_all`, `declared`, `healed` in seconds; `false_dead`, `false_suspect`,
/// `wrongly_dead_at_end` as counts; `bytes` and `bytes_worst`, sent a second by an average node and
/// by the busiest one.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<Outcome, ScenarioError> {
    let spec = SwarmSpec::of(scenario)?;
    let mut sim = Sim::new(spec, scenario.duration, seed, trace);
    sim.run();
    Ok(sim.finish())
}

/// Draws for who makes scenarios at random.
#[derive(Debug)]
pub struct Draws(rng::Rng);

impl Draws {
    /// The same seed gives the same draws, and other ones than the simulation with this seed.
    pub fn new(seed: u64) -> Self {
        Self(rng::Rng::new(seed, 3))
    }

    /// Uniform below `n`; 0 for 0.
    pub fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.0.within(&(0..=u64::from(n.saturating_sub(1))))).unwrap_or(0)
    }
}

impl Sim<'_> {
    fn finish(mut self) -> Outcome {
        let mut out = Outcome::default();
        self.judge(&mut out);
        self.report_bytes(&mut out);
        out.events = self.events;
        out.trace_hash = self.trace.hash();
        out.virtual_time = std::time::Duration::from_micros(self.end);
        let broken = std::mem::take(&mut self.broken);
        for what in broken {
            out.broken(what);
        }
        self.watches.report(&mut out);
        out
    }

    #[allow(clippy::cast_precision_loss)]
    fn report_bytes(&self, out: &mut Outcome) {
        let length = self.end.saturating_sub(link::micros(self.spec.warm_up));
        let seconds = length as f64 / 1e6;
        let running = self
            .nodes
            .iter()
            .filter(|node| node.runs() && node.is_honest());
        let rates = running.map(|node| (node.bytes - node.bytes_before) as f64 / seconds);
        let rates: Vec<f64> = rates.collect();
        if seconds <= 0.0 || rates.is_empty() {
            return;
        }
        out.measure("bytes", rates.iter().sum::<f64>() / rates.len() as f64);
        out.measure("bytes_worst", rates.iter().copied().fold(0.0, f64::max));
    }
}
