//! What one run of a scenario measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// The values measured under one name in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The name that `[bars]` uses.
    pub name: String,
    /// In base units: seconds, bytes, bytes per second, a share from 0 to 1, or a count.
    pub values: Vec<f64>,
}

/// What one run of a scenario with one seed measured. The runner holds it against the bars.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Measured values, in the order of their first mention.
    pub checks: Vec<Check>,
    /// Invariants that did not hold; each makes the run a failure, whatever the bars say.
    pub broken: Vec<String>,
    /// Hash over everything that happened and when. Same scenario, same seed: same hash.
    pub trace_hash: u64,
    /// Events simulated.
    pub events: u64,
    /// Virtual time that passed.
    pub virtual_time: Duration,
    /// Figures that may differ from run to run (wall time, memory): shown and held against the
    /// bars like the checks, but no part of the comparison of two runs.
    pub machine: BTreeMap<String, f64>,
    /// Anything worth a line in the report.
    pub note: String,
}

impl Outcome {
    /// Adds one measured value.
    pub fn measure(&mut self, name: &str, value: f64) {
        self.measure_all(name, [value]);
    }

    /// Adds a time, as seconds.
    pub fn time(&mut self, name: &str, value: Duration) {
        self.measure(name, value.as_secs_f64());
    }

    /// Adds measured values. With none, the name still counts as measured.
    pub fn measure_all(&mut self, name: &str, values: impl IntoIterator<Item = f64>) {
        if let Some(check) = self.checks.iter_mut().find(|check| check.name == name) {
            check.values.extend(values);
            return;
        }
        self.checks.push(Check {
            name: name.to_owned(),
            values: values.into_iter().collect(),
        });
    }

    /// Notes a broken invariant. Only the first few are kept.
    pub fn broken(&mut self, what: impl Into<String>) {
        if self.broken.len() < MAX_BROKEN {
            self.broken.push(what.into());
        }
    }

    /// Whether two runs did and measured the same, bit for bit.
    pub fn same_as(&self, other: &Self) -> bool {
        let bits = |outcome: &Self| -> Vec<(String, Vec<u64>)> {
            let each = outcome.checks.iter();
            each.map(|check| {
                let values = check.values.iter().map(|value| value.to_bits());
                (check.name.clone(), values.collect())
            })
            .collect()
        };
        self.trace_hash == other.trace_hash
            && self.events == other.events
            && self.broken == other.broken
            && bits(self) == bits(other)
    }
}

/// Broken invariants kept of one run: enough to see the pattern.
const MAX_BROKEN: usize = 20;
