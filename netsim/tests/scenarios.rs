//! Every scenario, as small as its table `[ci]` says, with its seeds, each twice: the bars hold, no
//! invariant breaks, and the same seed gives the same events.
//!
//! The full sizes and seeds are for `cargo run --release -p meshwork-netsim -- holds`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use meshwork_netsim::facts::FactsSpec;
use meshwork_netsim::heap::Counting;
use meshwork_netsim::report::{self, Report};
use meshwork_netsim::run::{self, Plan};
use meshwork_netsim::scenario::{Kind, Scenario};
use meshwork_netsim::swarm::SwarmSpec;
use meshwork_netsim::world;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    bad_weather: "bad-weather",
    cgnat_60s: "cgnat-60s",
    churn: "churn",
    clocks: "clocks",
    day_apart: "day-apart",
    death: "death",
    double_nat: "double-nat",
    false_positives: "false-positives",
    far_and_bursty: "far-and-bursty",
    flapping: "flapping",
    hairpin: "hairpin",
    half_half: "half-half",
    ipv6_v4_eyeballs: "ipv6-v4-eyeballs",
    liars_exact: "liars-exact",
    lost_disk: "lost-disk",
    mass_join: "mass-join",
    memory: "memory",
    nat_pairs: "nat-pairs",
    one_way: "one-way",
    outsiders: "outsiders",
    partition_heal_real: "partition-heal-real",
    psk_rotation: "psk-rotation",
    rack: "rack",
    relay_dies: "relay-dies",
    restart_divided: "restart-divided",
    revocation: "revocation",
    roaming: "roaming",
    small: "small",
    stalls: "stalls",
    ten_thousand: "ten-thousand",
    whole_restart: "whole-restart",
    whole_restart_real: "whole-restart-real",
}

#[test]
fn every_scenario_has_a_test_here() {
    let all = Scenario::load_all(&folder()).unwrap();
    let mut all: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
    all.sort_unstable();
    assert_eq!(all, NAMES);
}

#[test]
fn every_scenario_is_named_like_its_file_and_can_be_read_in_both_sizes() {
    for name in NAMES {
        let scenario = load(name);
        assert_eq!(scenario.name, *name);
        for scenario in [&scenario, &scenario.scaled_for_ci().unwrap()] {
            let read = match scenario.kind {
                Kind::Swarm => SwarmSpec::of(scenario).map(drop),
                Kind::World => world::check(scenario),
                Kind::Facts => FactsSpec::of(scenario).map(drop),
            };
            read.unwrap();
        }
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

/// Each row of the promises that the mesh must hold has its scenario, which `holds` runs.
#[test]
fn every_promise_is_run_by_holds() {
    let all = Scenario::load_all(&folder()).unwrap();
    let held = all.iter().filter(|scenario| scenario.holds);
    let mut held: Vec<&str> = held.map(|scenario| scenario.name.as_str()).collect();
    held.sort_unstable();
    let promised = [
        "adversary",
        "announce",
        "announce-loss",
        "cgnat-60s",
        "death",
        "false-positives",
        "half-half",
        "liars-exact",
        "memory",
        "nat-pairs",
        "relay-dies",
        "ten-thousand",
    ];
    assert_eq!(held, promised);
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
    // What depends on the machine's speed is for people to look at.
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
