//! What people who wait are told, on stderr.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshwork_netsim::run::Results;
use meshwork_netsim::scenario::{Outcome, Scenario};

/// Time between two lines about one scenario.
const EVERY: Duration = Duration::from_secs(15);

/// How far one scenario is.
pub(crate) struct Progress<'a> {
    scenario: &'a Scenario,
    seeds: u64,
    start: Instant,
    state: Mutex<State>,
}

struct State {
    ran: u64,
    broken: u64,
    told: Instant,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(scenario: &'a Scenario, seeds: u64) -> Self {
        let start = Instant::now();
        let state = State {
            ran: 0,
            broken: 0,
            told: start,
        };
        Self {
            scenario,
            seeds,
            start,
            state: Mutex::new(state),
        }
    }

    /// A seed has run.
    pub(crate) fn ran(&self, outcome: &Outcome) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ran += 1;
        state.broken += u64::from(!outcome.broken.is_empty());
        if state.told.elapsed() < EVERY || state.ran == self.seeds {
            return;
        }
        state.told = Instant::now();
        let broken = match state.broken {
            0 => String::new(),
            broken => format!(", {broken} broke an invariant"),
        };
        eprintln!(
            "{}: {} of {} seeds in {:.0} s{broken}",
            self.scenario.name,
            state.ran,
            self.seeds,
            self.start.elapsed().as_secs_f64()
        );
    }

    /// All have, or the time was up.
    pub(crate) fn ends(&self, results: &Results, verdict: &str) {
        let events: u64 = results.runs.iter().map(|(_, run)| run.events).sum();
        let seconds = self.start.elapsed().as_secs_f64();
        let (name, ran) = (&self.scenario.name, results.runs.len());
        eprintln!("{name}: {verdict}, {ran} seeds in {seconds:.1} s, {events} events");
    }
}
