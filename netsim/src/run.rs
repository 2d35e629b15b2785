//! Runs scenarios with many seeds, on several threads, and gathers what they measured.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::scenario::{Kind, Outcome, Scenario, ScenarioError};

/// Which seeds, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first seed.
    pub first_seed: u64,
    /// How many; the scenario's own number when none.
    pub seeds: Option<u64>,
    /// Threads, at least 1.
    pub jobs: usize,
    /// No seed but the first begins later than this after the start, in wall time; none: all do.
    pub budget: Option<Duration>,
    /// Runs every seed twice and compares.
    pub check_twice: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            first_seed: 1,
            seeds: None,
            jobs: 1,
            budget: None,
            check_twice: false,
        }
    }
}

/// What all seeds of one scenario measured.
#[derive(Debug)]
pub struct Results {
    /// In the order of the seeds, which follow one another.
    pub runs: Vec<(u64, Outcome)>,
    /// Seeds that were asked for; more than there are runs when the time was up.
    pub asked: u64,
}

impl Results {
    /// What was not run because the time was up: the next seed, and how many are left.
    pub fn left(&self) -> Option<(u64, u64)> {
        let left = self.asked.saturating_sub(self.runs.len() as u64);
        let (last, _) = self.runs.last()?;
        (left > 0).then(|| (last.wrapping_add(1), left))
    }
}

/// Runs one scenario with the seeds of `plan`. `done` is called after each run, from any thread.
///
/// A run that panics, or that differs when it is repeated, is an outcome with a broken invariant.
pub fn run(
    scenario: &Scenario,
    plan: &Plan,
    done: &(dyn Fn(u64, &Outcome) + Sync),
) -> Result<Results, ScenarioError> {
    let seeds = plan.seeds.unwrap_or(scenario.seeds).max(1);
    let start = Instant::now();
    let is_late = || plan.budget.is_some_and(|budget| start.elapsed() >= budget);
    let next = AtomicU64::new(0);
    let runs = Mutex::new(Vec::new());
    let work = || {
        loop {
            if next.load(Ordering::Relaxed) > 0 && is_late() {
                return Ok(());
            }
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seeds {
                return Ok(());
            }
            let seed = plan.first_seed.wrapping_add(n);
            let outcome = run_checked(scenario, seed, plan.check_twice)?;
            done(seed, &outcome);
            let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
            runs.push((seed, outcome));
        }
    };
    let threads: Vec<Result<(), ScenarioError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ends = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ends.map(|end| end.expect("runs catch their panics"))
            .collect()
    });
    threads.into_iter().collect::<Result<(), _>>()?;
    let mut runs = runs.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_unstable_by_key(|(seed, _)| *seed);
    Ok(Results { runs, asked: seeds })
}

fn run_checked(scenario: &Scenario, seed: u64, twice: bool) -> Result<Outcome, ScenarioError> {
    let mut outcome = run_once(scenario, seed, None)?;
    if twice && !run_once(scenario, seed, None)?.same_as(&outcome) {
        outcome.broken("the same seed gave another trace when it was run again");
    }
    Ok(outcome)
}

/// Whether this build can run scenarios of this kind.
pub fn is_built_in(kind: Kind) -> bool {
    kind != Kind::World || cfg!(feature = "world")
}

/// Runs one scenario with one seed, and writes everything that happens to `trace`. A panic becomes
/// a broken invariant.
pub fn run_once(
    scenario: &Scenario,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<Outcome, ScenarioError> {
    let start = Instant::now();
    let run = || match scenario.kind {
        Kind::Swarm => crate::swarm::run(scenario, seed, trace),
        Kind::Facts => crate::facts::run(scenario, seed, trace),
        #[cfg(feature = "world")]
        Kind::World => crate::world::run(scenario, seed, trace),
        #[cfg(not(feature = "world"))]
        Kind::World => Err(scenario
            .malformed("this build knows no kind \"world\"; build it with `--features world`")),
    };
    let outcome = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let mut outcome = Outcome::default();
            outcome.broken(format!("panicked: {}", message(&*panic)));
            Ok(outcome)
        }
    };
    let mut outcome = outcome?;
    let wall = start.elapsed().as_secs_f64();
    outcome.machine.insert("wall".to_owned(), wall);
    if let Some(bytes) = peak_memory() {
        outcome.machine.insert("peak_memory".to_owned(), bytes);
    }
    Ok(outcome)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a word").to_owned()
}

/// The most memory that this process ever had resident, in bytes; Linux only.
#[allow(clippy::cast_precision_loss)]
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib as f64 * 1024.0)
}
