//! Runs every program of `examples/`. They are compiled in, so that no stale build is run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../../examples/bus.rs"]
mod bus;
#[path = "../../examples/log.rs"]
mod log;

#[test]
fn bus_buffers_reads_and_exports() {
    bus::main().unwrap();
}

#[test]
fn log_is_appended_to_followed_and_opened_again() {
    log::main().unwrap();
}

#[test]
fn no_example_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let names: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let run = BTreeSet::from(["bus.rs", "log.rs"].map(str::to_owned));
    assert_eq!(names, run, "run it above");
}
