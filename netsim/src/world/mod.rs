//! Worlds: meshes of real nodes ([`meshwork_mesh::Mesh`]) in the simulated network, through what a
//! scenario says happens to them.
//!
//! [`spec`] is what scenario files say in their table `[world]`. `stage` builds networks and nodes
//! from it, `actor` is one node on its host with its disk and clock, `timeline` lets things happen,
//! `attack` is what outsiders send, `traffic` is what the mesh is used for, and `measure` looks at
//! what users would see. Everything runs in one thread under virtual time, and all chance comes from
//! the seed, so that a run repeats bit for bit.

mod actor;
mod attack;
mod disk;
mod log;
mod measure;
pub mod spec;
mod stage;
mod timeline;
mod traffic;

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::{
    Net, Sim,
    scenario::{Outcome, Scenario, ScenarioError},
};
use log::LoudLog;
use spec::{File, World};
use stage::Stage;

/// Runs a scenario of kind `world` once. Into `trace` goes one line for each datagram that a node
/// sends and for each thing that happens.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    trace: Option<&mut dyn Write>,
) -> Result<Outcome, ScenarioError> {
    let world = scenario.read::<File>()?.world;
    world
        .check(scenario.duration)
        .map_err(|problem| scenario.malformed(problem))?;
    let sim = Sim::new(seed, &world.wire);
    let net = sim.net();
    if trace.is_some() {
        net.keep_journal();
    }
    let log = LoudLog::default();
    let quiet = log.listen();
    let run = || {
        // Within the simulation's time from the first clock on.
        sim.block_on(async { play(Stage::build(&net, world, seed), scenario, log).await })
    };
    // What led to a panic is what a trace is wanted for.
    let outcome = catch_unwind(AssertUnwindSafe(run));
    drop(quiet);
    let cut_short = trace.and_then(|trace| write_trace(&net, trace).err());
    let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
    let mut outcome = outcome.map_err(|problem| scenario.malformed(problem))?;
    let hash = net.trace_hash();
    outcome.trace_hash = u64::from_be_bytes(std::array::from_fn(|index| hash[index]));
    outcome.events = net.sent();
    if let Some(error) = cut_short {
        // A trace that cannot be written is for whoever asked for it to see; the run holds.
        outcome.note = format!("the trace is cut short: {error}");
    }
    Ok(outcome)
}

fn write_trace(net: &Net, trace: &mut dyn Write) -> std::io::Result<()> {
    let lines = net.take_journal();
    lines.iter().try_for_each(|line| writeln!(trace, "{line}"))
}

/// From the first node's start to the last one's end.
async fn play(stage: Stage, scenario: &Scenario, log: LoudLog) -> Result<Outcome, String> {
    let start = Instant::now();
    let end = start + scenario.duration;
    let stage = Arc::new(stage);
    let tasks = TaskTracker::new();
    stage.start_all()?;
    let measures = measure::begin(&stage, &tasks, &log, end);
    traffic::begin(&stage, &tasks, end);
    timeline::begin(&stage, &tasks, &log, end);
    sleep_until(end).await;
    tasks.close();
    tasks.wait().await;
    let mut outcome = Outcome {
        virtual_time: scenario.duration,
        ..Outcome::default()
    };
    measures.finish(&stage, &mut outcome).await;
    stage.stop_all().await;
    Ok(outcome)
}

/// What the files of this kind may say, for whoever checks them without a run.
pub fn check(scenario: &Scenario) -> Result<(), ScenarioError> {
    let world: World = scenario.read::<File>()?.world;
    world
        .check(scenario.duration)
        .map_err(|problem| scenario.malformed(problem))
}

#[cfg(test)]
mod tests;
