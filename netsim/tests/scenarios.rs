//! Every scenario of kind `swarm`, as small as its table `[ci]` says, with its seeds, each twice:
//! the bars hold, no invariant breaks, and the same seed gives the same events.
//!
//! Worlds of real nodes have tests of their own; the full sizes and seeds are for
//! `cargo run --release -p meshwork-netsim -- holds`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use meshwork_netsim::report::{self, Report};
use meshwork_netsim::run::{self, Plan};
use meshwork_netsim::scenario::{Kind, Scenario};
use meshwork_netsim::swarm::SwarmSpec;

macro_rules! scenarios {
    ($($test:ident: $name:literal),* $(,)?) => {
        const NAMES: &[&str] = &[$($name),*];

        $(
            #[test]
            fn $test() {
                holds($name);
            }
        )*
    };
}

scenarios! {
    adversary: "adversary",
    adversary_stall: "adversary-stall",
    announce: "announce",
    announce_loss: "announce-loss",
    churn: "churn",
    clocks: "clocks",
    day_apart: "day-apart",
    death: "death",
    false_positives: "false-positives",
    far_and_bursty: "far-and-bursty",
    flapping: "flapping",
    half_half: "half-half",
    liars_exact: "liars-exact",
    lost_disk: "lost-disk",
    mass_join: "mass-join",
    one_way: "one-way",
    rack: "rack",
    restart_divided: "restart-divided",
    small: "small",
    ten_thousand: "ten-thousand",
    whole_restart: "whole-restart",
}

#[test]
fn every_swarm_has_a_test_here() {
    let all = Scenario::load_all(&folder()).unwrap();
    let swarms = all.iter().filter(|scenario| scenario.kind == Kind::Swarm);
    let mut swarms: Vec<&str> = swarms.map(|scenario| scenario.name.as_str()).collect();
    swarms.sort_unstable();
    assert_eq!(swarms, NAMES);
}

#[test]
fn every_swarm_is_named_like_its_file_and_can_be_read_in_both_sizes() {
    for name in NAMES {
        let scenario = load(name);
        assert_eq!(scenario.name, *name);
        SwarmSpec::of(&scenario).unwrap();
        SwarmSpec::of(&scenario.scaled_for_ci().unwrap()).unwrap();
        assert!(
            !scenario.promises.is_empty() && !scenario.bars.is_empty(),
            "{name}"
        );
        assert!(
            !scenario.holds || scenario.seeds >= 200,
            "{name} has too few seeds"
        );
    }
}

#[test]
fn another_seed_gives_another_trace() {
    let scenario = load("small").scaled_for_ci().unwrap();
    let hash = |seed| run::run_once(&scenario, seed, None).unwrap().trace_hash;
    assert_ne!(hash(1), hash(2));
}

#[test]
fn a_trace_that_is_written_down_is_the_same_trace() {
    let scenario = load("small").scaled_for_ci().unwrap();
    let mut text = Vec::new();
    let written = run::run_once(&scenario, 1, Some(&mut text)).unwrap();
    assert!(written.same_as(&run::run_once(&scenario, 1, None).unwrap()));
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.lines().count() > 1000 && text.contains("begins"),
        "{}",
        text.len()
    );
}

fn holds(name: &str) {
    let mut scenario = load(name).scaled_for_ci().unwrap();
    // What depends on the machine is for people to look at.
    scenario
        .bars
        .retain(|bar, _| !["wall", "peak_memory"].contains(&bar.as_str()));
    let plan = Plan {
        check_twice: true,
        ..Plan::default()
    };
    let results = run::run(&scenario, &plan, &|_, _| {}).unwrap();
    let report = Report::new(&scenario, &results, true);
    let failures = report.failures.join("\n");
    assert!(
        report.holds(),
        "{}\n{failures}",
        report::table(&report.rows)
    );
}

fn load(name: &str) -> Scenario {
    Scenario::load(&folder().join(format!("{name}.toml"))).unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}
