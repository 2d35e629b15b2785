//! What people read: a table of the bars and the values, and how to see a failure again.

use std::fmt::Write;

use crate::run::Results;
use crate::scenario::{Bar, Outcome, Relation, Scenario, Statistic, Unit};

/// The verdict on one scenario.
#[derive(Debug)]
pub struct Report {
    /// Lines of the table.
    pub rows: Vec<Row>,
    /// Sentences about what failed, each with how to see it again.
    pub failures: Vec<String>,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// Seeds that ran, and of how many where that is not all.
    pub seeds: String,
    /// What was measured.
    pub check: String,
    /// The bar; empty for values that are only shown.
    pub bar: String,
    /// Median, 99th percentile and worst value.
    pub values: [String; 3],
    /// `ok`, `FAILED`, or `-` without a bar.
    pub verdict: &'static str,
}

impl Report {
    /// Holds what was measured against the bars.
    pub fn new(scenario: &Scenario, results: &Results, is_ci: bool) -> Self {
        let mut report = Self {
            rows: Vec::new(),
            failures: Vec::new(),
        };
        report.judge_invariants(scenario, results, is_ci);
        for (name, bars) in &scenario.bars {
            for bar in &bars.0 {
                report.judge_bar(scenario, results, name, bar, is_ci);
            }
        }
        report.show_rest(scenario, results);
        report
    }

    /// Whether everything holds.
    pub fn holds(&self) -> bool {
        self.failures.is_empty()
    }

    fn judge_invariants(&mut self, scenario: &Scenario, results: &Results, is_ci: bool) {
        let broken = results
            .runs
            .iter()
            .filter(|(_, run)| !run.broken.is_empty());
        let broken: Vec<_> = broken.collect();
        for (seed, run) in broken.iter().take(MAX_TOLD) {
            for what in run.broken.iter().take(MAX_TOLD) {
                let again = noted(run, replay(scenario, *seed, is_ci));
                let name = &scenario.name;
                self.failures
                    .push(format!("{name}, seed {seed}: {what}\n    {again}"));
            }
        }
        let failed = broken.len();
        let share = format!("{failed} of {}", results.runs.len());
        self.rows.push(Row {
            scenario: scenario.name.clone(),
            seeds: seeds(results),
            check: "invariants".to_owned(),
            bar: "none broken".to_owned(),
            values: [String::new(), String::new(), share],
            verdict: if failed == 0 { "ok" } else { "FAILED" },
        });
    }

    fn judge_bar(
        &mut self,
        scenario: &Scenario,
        results: &Results,
        name: &str,
        bar: &Bar,
        is_ci: bool,
    ) {
        let (values, worst_seed) = gather(results, name, bar.relation);
        let value = bar.value(&values);
        let ok = value.is_some_and(|value| bar.admits(value));
        if !ok {
            let was = value.map_or("was never measured".to_owned(), |value| {
                format!("is {}", bar.unit.show(value))
            });
            let again = replay(scenario, worst_seed.unwrap_or(1), is_ci);
            let worst = results
                .runs
                .iter()
                .find(|(seed, _)| Some(*seed) == worst_seed);
            let again = worst.map_or(again.clone(), |(_, run)| noted(run, again));
            let (scenario, statistic) = (&scenario.name, bar.statistic);
            self.failures.push(format!(
                "{scenario}: {name} must have {bar}, but its {statistic} {was}; worst with seed {}\n    {again}",
                worst_seed.unwrap_or(1)
            ));
        }
        self.rows.push(Row {
            scenario: scenario.name.clone(),
            seeds: seeds(results),
            check: name.to_owned(),
            bar: bar.to_string(),
            values: shown(&values, bar.unit, bar.relation),
            verdict: if ok { "ok" } else { "FAILED" },
        });
    }

    /// Values without a bar.
    fn show_rest(&mut self, scenario: &Scenario, results: &Results) {
        let mut names: Vec<(&str, bool)> = Vec::new();
        for (_, run) in &results.runs {
            let checks = run.checks.iter().map(|check| (check.name.as_str(), false));
            let machine = run.machine.keys().map(|name| (name.as_str(), true));
            for name in checks.chain(machine) {
                if !names.contains(&name) && !scenario.bars.contains_key(name.0) {
                    names.push(name);
                }
            }
        }
        for (name, _) in names {
            let (values, _) = gather(results, name, Relation::AtMost);
            self.rows.push(Row {
                scenario: scenario.name.clone(),
                seeds: seeds(results),
                check: name.to_owned(),
                bar: String::new(),
                values: shown(&values, usual_unit(name), Relation::AtMost),
                verdict: "-",
            });
        }
    }
}

/// The rows as text, in columns.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "scenario", "seeds", "check", "bar", "p50", "p99", "worst", "verdict",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        let [median, p99, worst] = row.values.clone();
        lines.push([
            row.scenario.clone(),
            row.seeds.clone(),
            row.check.clone(),
            row.bar.clone(),
            median,
            p99,
            worst,
            row.verdict.to_owned(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
    }
    text
}

/// The command that runs one seed again and writes down everything that happens.
pub fn replay(scenario: &Scenario, seed: u64, is_ci: bool) -> String {
    let ci = if is_ci { " --ci" } else { "" };
    let name = scenario.path.display();
    format!(
        "cargo run --release -p meshwork-netsim -- run {name} --seeds 1 --first-seed {seed}{ci} --trace trace.txt"
    )
}

/// How to see it again, after what the run had to say about itself.
fn noted(run: &Outcome, again: String) -> String {
    if run.note.is_empty() {
        again
    } else {
        format!("{}\n    {again}", run.note)
    }
}

/// For a scenario whose time was up before its seeds were: the command that goes on.
pub fn go_on(scenario: &Scenario, results: &Results, is_ci: bool) -> Option<String> {
    let (next, left) = results.left()?;
    let ci = if is_ci { " --ci" } else { "" };
    let (name, path) = (&scenario.name, scenario.path.display());
    let (ran, asked) = (results.runs.len(), results.asked);
    Some(format!(
        "{name}: the time was up after {ran} of {asked} seeds; go on with\n    cargo run --release -p meshwork-netsim -- run {path} --first-seed {next} --seeds {left}{ci}"
    ))
}

fn seeds(results: &Results) -> String {
    let ran = results.runs.len();
    match results.left() {
        Some(_) => format!("{ran} of {}", results.asked),
        None => ran.to_string(),
    }
}

/// All values of one name, and the seed of the worst.
fn gather(results: &Results, name: &str, relation: Relation) -> (Vec<f64>, Option<u64>) {
    let mut all = Vec::new();
    let mut worst: Option<(f64, u64)> = None;
    for (seed, run) in &results.runs {
        let check = run.checks.iter().find(|check| check.name == name);
        let values = check.map_or(&[][..], |check| &check.values);
        let machine = run.machine.get(name);
        for value in values.iter().chain(machine) {
            all.push(*value);
            let is_worse = worst.is_none_or(|(worst, _)| match relation {
                Relation::AtMost => *value > worst,
                Relation::AtLeast => *value < worst,
            });
            if is_worse {
                worst = Some((*value, *seed));
            }
        }
    }
    (all, worst.map(|(_, seed)| seed))
}

fn shown(values: &[f64], unit: Unit, relation: Relation) -> [String; 3] {
    let statistics = [
        Statistic::PerMille(500),
        Statistic::PerMille(990),
        Statistic::Worst,
    ];
    statistics.map(|statistic| {
        let value = statistic.of(values, relation);
        value.map_or(String::new(), |value| unit.show(value))
    })
}

/// How values without a bar are shown.
fn usual_unit(name: &str) -> Unit {
    match name {
        "bytes" | "bytes_worst" => Unit::Rate,
        "peak_memory" | "said" | "held" | "each" | "grown" => Unit::Bytes,
        "known" | "suspected" | "suspected_by_all" | "declared" | "healed" | "wall" | "stall"
        | "agreed" => Unit::Time,
        name if name.ends_with(" time") => Unit::Time,
        _ => Unit::Count,
    }
}

/// Failures of one kind that are told in full.
const MAX_TOLD: usize = 5;
