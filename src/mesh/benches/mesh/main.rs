//! How fast the mesh is, against quinn with TLS, bare sockets and other limits, all in one run.
//!
//! ```text
//! cargo bench -p meshwork-mesh                      everything, under three minutes
//! cargo bench -p meshwork-mesh -- --quick           an eighth of each round
//! cargo bench -p meshwork-mesh -- handshake bulk    groups by name
//! cargo bench -p meshwork-mesh -- --bless           commit the ratios to benches/baseline.json
//! ```
//! Prints one table and writes `target/bench/mesh.json`. A figure never fails the run. What is
//! measured, and what is not equal in it, says `docs/benchmarks.md`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a benchmark prints, stops where it cannot measure, and rounds what it measured"
)]

mod bulk;
mod bus;
mod call;
mod directory;
mod echo;
mod figures;
mod handshake;
mod idle;
mod lane;
mod log;
mod lossy;
mod meter;
mod nodes;
mod report;
mod stack;
mod stranger;
mod synthetic;
mod tls;

use std::time::Instant;

use report::Row;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Rounds that count. Medians are taken over these.
    rounds: usize,
    /// What full counts and durations are divided by.
    shrink: usize,
}

/// Rows that are measured together.
type Group = (&'static str, fn(&Scale) -> Vec<Row>);

const GROUPS: [Group; 8] = [
    ("handshake", handshake::rows),
    ("stranger", stranger::rows),
    ("bulk", bulk::rows),
    ("call", call::rows),
    ("idle", idle::rows),
    ("directory", directory::rows),
    ("bus", bus::rows),
    ("log", log::rows),
];

fn main() {
    let options: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| options.iter().any(|option| option == name);
    let quick = has("--quick");
    let scale = Scale {
        rounds: 5,
        shrink: if quick { 8 } else { 1 },
    };
    let names: Vec<&String> = options.iter().filter(|o| !o.starts_with("--")).collect();
    let wanted = |group: &str| names.is_empty() || names.iter().any(|name| group.contains(*name));

    let mut rows = Vec::new();
    for (group, measure) in GROUPS.into_iter().filter(|(group, _)| wanted(group)) {
        let start = Instant::now();
        rows.extend(measure(&scale));
        eprintln!(
            "{group}: measured in {:.1} s",
            start.elapsed().as_secs_f64()
        );
    }
    report::print(&rows);
    let saved = report::save(&rows, quick, scale.rounds).unwrap();
    println!("written to {}", saved.display());
    report::compare(&rows).unwrap();
    if has("--bless") {
        report::bless(&rows).unwrap();
    }
}

impl Scale {
    /// A count or a number of bytes, in full or shrunk.
    fn of(&self, full: usize) -> usize {
        (full / self.shrink).max(1)
    }
}
