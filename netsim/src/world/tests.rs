//! Worlds of real nodes: small ones for the harness itself.

use std::path::Path;

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
