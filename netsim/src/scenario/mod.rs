//! Scenario files: what is simulated, and the bars that it must hold.
//!
//! ```toml
//! name = "half-half"
//! kind = "swarm"                    # membership machines at message level; "world": real nodes;
//!                                   # "facts": one node's ledger
//! promises = "A healed partition is forgotten within 10 s."
//! holds = true                      # one of those that `holds` runs
//! seeds = 200                       # how many, unless the command says otherwise
//! duration = "12 min"               # virtual
//!
//! [bars]                            # statistic, relation, limit; one or a list
//! healed = "p99 <= 10 s"
//!
//! [swarm]                           # or [world], [facts]: what that kind of simulation reads
//! nodes = 1000
//!
//! [ci]                              # laid over the file where time is short
//! seeds = 2
//! swarm.nodes = 100
//! ```

mod bar;
mod outcome;
pub mod value;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use thiserror::Error;

pub use bar::{Bar, Bars, Relation, Statistic, Unit};
pub use outcome::{Check, Outcome};

/// What a scenario simulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Membership machines alone, message by message: 3 to 10,000 of them.
    Swarm,
    /// Real nodes over a simulated network, packet by packet.
    World,
    /// The ledger of one node that knows many others.
    Facts,
}

/// A scenario file, its head read and checked. What the kinds read for themselves is had by
/// [`Scenario::read`].
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The name that commands use: the file's, without `.toml`.
    pub name: String,
    /// What is simulated.
    pub kind: Kind,
    /// One sentence for people: what this shows.
    pub promises: String,
    /// Whether it is one of the mesh's stated promises, which `holds` runs.
    pub holds: bool,
    /// Seeds of a full run.
    pub seeds: u64,
    /// Virtual time that one run simulates.
    pub duration: Duration,
    /// What the measured values must satisfy, by the name of the value.
    pub bars: BTreeMap<String, Bars>,
    /// Where it was read from.
    pub path: PathBuf,
    text: String,
}

/// Why a scenario cannot be run.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{path}: {source}; `list` shows the scenarios there are")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not say what a scenario says.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and what is expected there.
        problem: String,
    },
}

impl Scenario {
    /// Reads a scenario file.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = fs::read_to_string(path).map_err(|source| ScenarioError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Reads every scenario file of a folder, by name.
    pub fn load_all(folder: &Path) -> Result<Vec<Self>, ScenarioError> {
        let unreadable = |source| ScenarioError::Unreadable {
            path: folder.to_owned(),
            source,
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            paths.push(entry.map_err(unreadable)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
        paths.sort_unstable();
        paths.iter().map(|path| Self::load(path)).collect()
    }

    /// Reads the text of a scenario. `path` names it in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ScenarioError> {
        let head: Head = parsed(path, text)?;
        Ok(Self {
            name: head.name,
            kind: head.kind,
            promises: head.promises,
            holds: head.holds,
            seeds: head.seeds.max(1),
            duration: head.duration,
            bars: head.bars,
            path: path.to_owned(),
            text: text.to_owned(),
        })
    }

    /// The part of one kind. `T` has one field, named like the kind's table; errors tell the line.
    ///
    /// ```
    /// # use meshwork_netsim::scenario::Scenario;
    /// #[derive(serde::Deserialize)]
    /// struct File { world: World }
    /// #[derive(serde::Deserialize)]
    /// #[serde(deny_unknown_fields)]
    /// struct World { nodes: u32 }
    ///
    /// let text = "name = 'x'\nkind = 'world'\npromises = ''\nduration = '1 s'\n[world]\nnodes = 3\n";
    /// let scenario = Scenario::parse("x.toml".as_ref(), text).unwrap();
    /// assert_eq!(scenario.read::<File>().unwrap().world.nodes, 3);
    /// ```
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ScenarioError> {
        parsed(&self.path, &self.text)
    }

    /// The same scenario with its table `[ci]` laid over it: smaller and shorter.
    pub fn scaled_for_ci(&self) -> Result<Self, ScenarioError> {
        let mut file: toml::Table = parsed(&self.path, &self.text)?;
        if let Some(toml::Value::Table(over)) = file.remove("ci") {
            lay_over(&mut file, over);
        }
        Self::parse(&self.path, &file.to_string())
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// An error about this scenario, for what only its kind can see.
    pub fn malformed(&self, problem: impl Into<String>) -> ScenarioError {
        ScenarioError::Malformed {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }
}

/// What all kinds share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    kind: Kind,
    promises: String,
    #[serde(default)]
    holds: bool,
    #[serde(default = "few_seeds")]
    seeds: u64,
    #[serde(deserialize_with = "value::duration")]
    duration: Duration,
    #[serde(default)]
    bars: BTreeMap<String, Bars>,
    #[serde(default, rename = "swarm")]
    _swarm: Option<IgnoredAny>,
    #[serde(default, rename = "world")]
    _world: Option<IgnoredAny>,
    #[serde(default, rename = "facts")]
    _facts: Option<IgnoredAny>,
    #[serde(default, rename = "ci")]
    _ci: Option<IgnoredAny>,
}

fn few_seeds() -> u64 {
    20
}

fn parsed<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ScenarioError> {
    toml::from_str(text).map_err(|error| ScenarioError::Malformed {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Tables are merged, everything else is replaced.
fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
