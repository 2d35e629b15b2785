//! What the benchmark says in the end: one table, the same as JSON, and what moved against the
//! committed ratios.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;
use serde_json::json;

use crate::figures::{Series, Spread};

/// Ratios whose rounds lie further apart than by this factor are noise, and not kept.
const STEADY: f64 = 2.0;
/// What moves by more than this share is told.
const MOVED: f64 = 0.10;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// Names the row in the baseline; never given to another meaning.
    id: &'static str,
    what: &'static str,
    unit: Unit,
    ours: Series,
    peer: Option<Other>,
    limit: Option<Other>,
    bar: Bar,
}

/// What ours is compared with, and its name.
#[derive(Debug)]
struct Other(&'static str, Series);

/// In which unit the figures of a row are.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "µs")]
    Micros,
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    #[serde(rename = "KiB")]
    Kibibytes,
    #[serde(rename = "×")]
    Times,
}

/// What a row must reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    /// No bar is set; the ratio to the peer is shown, or else to the limit.
    None,
    /// Ours is at most so many times this.
    AtMost(f64, Of),
    /// Ours is at least so many times this.
    AtLeast(f64, Of),
}

/// What a bar is a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Peer,
    Limit,
    /// The row's unit.
    One,
}

/// Whether a row reaches its bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// The median does.
    Meets,
    /// No round does.
    Misses,
    /// The median does not, but some round does.
    Unclear,
    /// There is no bar.
    None,
}

impl Row {
    pub(crate) fn new(id: &'static str, what: &'static str, unit: Unit, ours: Series) -> Self {
        Self {
            id,
            what,
            unit,
            ours,
            peer: None,
            limit: None,
            bar: Bar::None,
        }
    }

    /// Another system that does the same.
    pub(crate) fn peer(self, name: &'static str, figures: &Series) -> Self {
        Self {
            peer: Some(Other(name, figures.clone())),
            ..self
        }
    }

    /// What cannot be beaten, or the part of the work that nobody can avoid.
    pub(crate) fn limit(self, name: &'static str, figures: &Series) -> Self {
        Self {
            limit: Some(Other(name, figures.clone())),
            ..self
        }
    }

    pub(crate) fn bar(self, bar: Bar) -> Self {
        Self { bar, ..self }
    }

    /// Ours as a multiple of what the bar speaks of, or else of the peer, or else of the limit.
    fn ratio(&self) -> Option<Spread> {
        let over = |other: &Option<Other>| {
            other
                .as_ref()
                .map(|Other(_, figures)| self.ours.over(figures).spread())
        };
        match self.bar {
            Bar::AtMost(_, Of::Limit) | Bar::AtLeast(_, Of::Limit) => over(&self.limit),
            _ => over(&self.peer).or_else(|| over(&self.limit)),
        }
    }

    fn verdict(&self) -> Verdict {
        let judged = |of| match of {
            Of::One => Some(self.ours.spread()),
            Of::Peer | Of::Limit => self.ratio(),
        };
        let (median, best) = match self.bar {
            Bar::None => return Verdict::None,
            Bar::AtMost(bar, of) => {
                let Some(found) = judged(of) else {
                    return Verdict::None;
                };
                (found.median <= bar, found.min <= bar)
            }
            Bar::AtLeast(bar, of) => {
                let Some(found) = judged(of) else {
                    return Verdict::None;
                };
                (found.median >= bar, found.max >= bar)
            }
        };
        match (median, best) {
            (true, _) => Verdict::Meets,
            (false, true) => Verdict::Unclear,
            (false, false) => Verdict::Misses,
        }
    }

    fn cells(&self) -> [String; 7] {
        let other = |other: &Option<Other>| match other {
            Some(Other(name, figures)) => {
                format!("{} ({name})", self.unit.show(figures.spread().median))
            }
            None => "–".to_owned(),
        };
        let ratio = self.ratio().map_or_else(
            || "–".to_owned(),
            |s| format!("{} [{}–{}]", figure(s.median), figure(s.min), figure(s.max)),
        );
        let verdict = match self.verdict() {
            Verdict::Meets => "meets",
            Verdict::Misses => "MISSES",
            Verdict::Unclear => "unclear",
            Verdict::None => "–",
        };
        let own = self.ours.spread();
        let ours = format!(
            "{} [{}–{}]",
            self.unit.show(own.median),
            figure(own.min),
            figure(own.max)
        );
        [
            self.what.to_owned(),
            ours,
            other(&self.peer),
            other(&self.limit),
            ratio,
            self.bar.show(self.unit),
            verdict.to_owned(),
        ]
    }

    fn json(&self) -> serde_json::Value {
        let other = |other: &Option<Other>| {
            other
                .as_ref()
                .map(|Other(name, f)| json!({ "name": name, "figure": f.spread() }))
        };
        json!({
            "id": self.id,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.spread(),
            "peer": other(&self.peer),
            "limit": other(&self.limit),
            "ratio": self.ratio(),
            "bar": self.bar.show(self.unit),
            "verdict": self.verdict(),
        })
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        let number = figure(value);
        match self {
            Self::Micros => format!("{number} µs"),
            Self::PerSecond => format!("{number}/s"),
            Self::GigabytesPerSecond => format!("{number} GB/s"),
            Self::Kibibytes => format!("{number} KiB"),
            Self::Times => format!("{number} ×"),
        }
    }
}

impl Bar {
    fn show(self, unit: Unit) -> String {
        let of = |of, bar: f64| match of {
            Of::Peer => format!("{bar:.2} × peer"),
            Of::Limit => format!("{bar:.2} × limit"),
            Of::One => unit.show(bar),
        };
        match self {
            Self::None => "–".to_owned(),
            Self::AtMost(bar, base) => format!("≤ {}", of(base, bar)),
            Self::AtLeast(bar, base) => format!("≥ {}", of(base, bar)),
        }
    }
}

/// As many digits as mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => grouped(value.round() as i64),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// With commas between the thousands.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    let head = ["what", "ours", "peer", "limit", "ratio", "bar", "verdict"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head)
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Writes the rows as JSON to `target/bench/mesh.json`; where that is.
pub(crate) fn save(rows: &[Row], quick: bool, rounds: usize) -> io::Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join("mesh.json");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let report = json!({
        "cores": cores,
        "quick": quick,
        "rounds": rounds,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    fs::write(&path, format!("{report:#}\n"))?;
    Ok(path)
}

/// Prints which ratios differ from the committed ones by more than [`MOVED`].
pub(crate) fn compare(rows: &[Row]) -> io::Result<()> {
    let baseline: BTreeMap<String, f64> = match fs::read(baseline_path()) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("no baseline; --bless writes one");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for row in rows {
        let Some(now) = row.ratio() else { continue };
        match baseline.get(row.id) {
            Some(then) if (now.median / then - 1.0).abs() > MOVED => {
                let share = (now.median / then - 1.0) * 100.0;
                let within = (now.min..=now.max).contains(then);
                let note = if within {
                    ", within this run's spread"
                } else {
                    ""
                };
                let (then, now) = (figure(*then), figure(now.median));
                println!("{}: ratio {then} → {now} ({share:+.0} %{note})", row.id);
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// Makes these rows' ratios the committed ones, where they are [`STEADY`]; those of other rows stay.
pub(crate) fn bless(rows: &[Row]) -> io::Result<()> {
    let mut baseline: BTreeMap<String, f64> = match fs::read(baseline_path()) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(_) => BTreeMap::new(),
    };
    for row in rows {
        if let Some(ratio) = row.ratio().filter(|ratio| ratio.max <= ratio.min * STEADY) {
            let digits = format!("{:.3e}", ratio.median);
            let ratio = digits.parse().expect("a printed number is a number");
            baseline.insert(row.id.to_owned(), ratio);
        }
    }
    fs::write(
        baseline_path(),
        serde_json::to_string_pretty(&baseline)? + "\n",
    )
}

fn baseline_path() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.json")
}
