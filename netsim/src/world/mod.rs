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

use std::{io::Write, sync::Arc};

use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::{
    Sim,
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
        .check()
        .map_err(|problem| scenario.malformed(problem))?;
    let sim = Sim::new(seed, &world.wire);
    let net = sim.net();
    if trace.is_some() {
        net.keep_journal();
    }
    let log = LoudLog::default();
    let quiet = log.listen();
    // Within the simulation's time from the first clock on.
    let outcome =
        sim.block_on(async { play(Stage::build(&net, world, seed), scenario, log).await });
    drop(quiet);
    let mut outcome = outcome.map_err(|problem| scenario.malformed(problem))?;
    let hash = net.trace_hash();
    outcome.trace_hash = u64::from_be_bytes(std::array::from_fn(|index| hash[index]));
    outcome.events = net.sent();
    if let Some(trace) = trace {
        // A trace that cannot be written is for whoever asked for it to see; the run holds.
        for line in net.take_journal() {
            if let Err(error) = writeln!(trace, "{line}") {
                outcome.note = format!("the trace is cut short: {error}");
                break;
            }
        }
    }
    Ok(outcome)
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
    world.check().map_err(|problem| scenario.malformed(problem))
}

#[cfg(test)]
mod tests;
