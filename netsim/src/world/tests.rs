//! Worlds of real nodes: small ones for the harness itself, and every scenario file, twice.

use std::{fs, path::Path};

use super::*;

fn parsed(text: &str) -> Scenario {
    Scenario::parse(Path::new("test.toml"), text).unwrap()
}

/// Runs a scenario that is given in place.
fn run_text(seed: u64, text: &str) -> Outcome {
    run(&parsed(text), seed, None).unwrap()
}

fn values<'a>(outcome: &'a Outcome, name: &str) -> &'a [f64] {
    let check = outcome.checks.iter().find(|check| check.name == name);
    check.map_or(&[], |check| &check.values)
}

const HEAD: &str = "name = 'test'\nkind = 'world'\npromises = 'a test'\n";

#[test]
fn nodes_meet_talk_and_stream() {
    let text = format!(
        "{HEAD}duration = '30 s'
        [world]
        wire = {{ loss = 0.02 }}
        [[world.node]]
        name = 'seed'
        [[world.node]]
        name = 'n'
        count = 3
        knows = ['seed']
        [[world.agree]]
        who = ['*']
        after = '0 s'
        [[world.stream]]
        from = 'n-0'
        to = 'seed'
        start = '5 s'
        length = '10 s'
        [[world.calls]]
        from = ['*']
        to = ['*']
        start = '5 s'
        until = '20 s'
        "
    );
    let outcome = run_text(1, &text);
    assert_eq!(outcome.broken, Vec::<String>::new(), "{}", outcome.note);
    assert!(values(&outcome, "agreed")[0] < 10.0, "{outcome:?}");
    assert_eq!(values(&outcome, "lost"), [0.0], "{outcome:?}");
    assert_eq!(values(&outcome, "dropped"), [0.0]);
    assert!(values(&outcome, "stall")[0] < 1.0);
    assert_eq!(values(&outcome, "answered"), [1.0; 4]);
    let again = run_text(1, &text);
    assert!(outcome.same_as(&again), "the same seed, the same world");
    assert_ne!(outcome.trace_hash, run_text(2, &text).trace_hash);
}

#[test]
fn a_crash_is_noticed_and_a_restart_too() {
    let text = |event: &str| {
        format!(
            "{HEAD}duration = '60 s'
            [world]
            [[world.node]]
            name = 'n'
            count = 3
            knows = ['n-0']
            [[world.event]]
            at = '10 s'
            do = {{ crash = ['n-2'] }}
            {event}
            [[world.agree]]
            who = ['n-0', 'n-1']
            after = '10 s'
            "
        )
    };
    let gone = run_text(1, &text(""));
    assert_eq!(gone.broken, Vec::<String>::new());
    assert!(
        values(&gone, "agreed")[0] > 1.0,
        "a crash takes time to notice"
    );
    let back = "[[world.event]]\nat = '11 s'\ndo = { restart = ['n-2'] }\n";
    let back = run_text(1, &text(back));
    assert_eq!(
        back.broken.len(),
        1,
        "it is back, and the two do not stay alone"
    );
}

/// One test for each scenario file: its first seed, as small as CI runs it, twice.
macro_rules! twice {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            repeats($name);
        })*

        #[test]
        fn all_scenario_files_of_this_kind_are_run_twice() {
            let names: Vec<String> = files().into_iter().map(|(_, file)| file.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

twice! {
    cgnat_60s_repeats: "cgnat-60s",
    double_nat_repeats: "double-nat",
    hairpin_repeats: "hairpin",
    ipv6_v4_eyeballs_repeats: "ipv6-v4-eyeballs",
    nat_pairs_repeats: "nat-pairs",
    outsiders_repeats: "outsiders",
    partition_heal_real_repeats: "partition-heal-real",
    psk_rotation_repeats: "psk-rotation",
    relay_dies_repeats: "relay-dies",
    revocation_repeats: "revocation",
    roaming_repeats: "roaming",
    whole_restart_real_repeats: "whole-restart-real",
}

fn repeats(name: &str) {
    let file = files().into_iter().find(|(_, file)| file.name == name);
    let scenario = file.unwrap().1.scaled_for_ci().unwrap();
    let one = run(&scenario, 1, None).unwrap();
    let other = run(&scenario, 1, None).unwrap();
    assert!(one.same_as(&other), "{one:#?}\n{other:#?}");
    assert!(one.events > 1000, "something happens");
}

#[test]
fn all_scenario_files_of_this_kind_can_be_read() {
    let mut read = 0;
    for (path, scenario) in files() {
        check(&scenario).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        read += 1;
    }
    assert!(read > 0, "there are some");
}

/// All scenarios of this kind.
fn files() -> Vec<(std::path::PathBuf, Scenario)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), Scenario::load(&path).unwrap()))
        .filter(|(_, scenario)| scenario.kind == crate::scenario::Kind::World)
        .collect()
}
