//! Bars: what measured values must satisfy, written `"p99 <= 2 s"`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error};

use super::value;

/// One value over all that was measured under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// The largest for an upper limit, the smallest for a lower one.
    Worst,
    /// The arithmetic mean.
    Mean,
    /// This many thousandths of the values are at most it, for an upper limit; at least it, for a
    /// lower one.
    PerMille(u16),
}

/// On which side of the limit values must lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Written `<=`.
    AtMost,
    /// Written `>=`.
    AtLeast,
}

/// How a limit and its values are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    Count,
    /// Seconds.
    Time,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    Rate,
    /// A share, shown in percent.
    Share,
}

/// A limit for one statistic of the values measured under one name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Of all values of all seeds.
    pub statistic: Statistic,
    /// The side.
    pub relation: Relation,
    /// In base units.
    pub limit: f64,
    /// For showing it.
    pub unit: Unit,
}

/// One bar or several for the same name.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars(pub Vec<Bar>);

impl Bar {
    /// The statistic of `values`; none of no values.
    pub fn value(&self, values: &[f64]) -> Option<f64> {
        self.statistic.of(values, self.relation)
    }

    /// Whether one value lies on the right side.
    pub fn admits(&self, value: f64) -> bool {
        match self.relation {
            Relation::AtMost => value <= self.limit,
            Relation::AtLeast => value >= self.limit,
        }
    }
}

impl Statistic {
    /// Of `values`, for a limit of this side.
    pub fn of(self, values: &[f64], relation: Relation) -> Option<f64> {
        if values.is_empty() {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss)]
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(match (self, relation) {
            (Self::Mean, _) => mean,
            (Self::Worst, Relation::AtMost) => sorted[sorted.len() - 1],
            (Self::Worst, Relation::AtLeast) => sorted[0],
            (Self::PerMille(p), relation) => {
                let rank = (sorted.len() * usize::from(p)).div_ceil(1000);
                let rank = rank.clamp(1, sorted.len());
                match relation {
                    Relation::AtMost => sorted[rank - 1],
                    Relation::AtLeast => sorted[sorted.len() - rank],
                }
            }
        })
    }
}

impl Unit {
    /// A value with its unit, three digits or so.
    pub fn show(self, value: f64) -> String {
        let scaled = |value: f64, steps: &[(f64, &str)]| {
            let step = steps.iter().find(|(factor, _)| value.abs() >= *factor);
            let (factor, unit) = step.unwrap_or(&steps[steps.len() - 1]);
            format!("{} {unit}", digits(value / factor))
        };
        match self {
            Self::Count => digits(value),
            Self::Share => format!("{} %", digits(value * 100.0)),
            Self::Time => scaled(
                value,
                &[(3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us")],
            ),
            Self::Bytes => scaled(value, &[(1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B")]),
            Self::Rate => scaled(value, &[(1e6, "MB/s"), (1e3, "KB/s"), (1.0, "B/s")]),
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worst => f.write_str("worst"),
            Self::Mean => f.write_str("mean"),
            Self::PerMille(p) if p % 10 == 0 => write!(f, "p{}", p / 10),
            Self::PerMille(p) => write!(f, "p{p}"),
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relation = match self.relation {
            Relation::AtMost => "<=",
            Relation::AtLeast => ">=",
        };
        write!(
            f,
            "{} {relation} {}",
            self.statistic,
            self.unit.show(self.limit)
        )
    }
}

impl FromStr for Bar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (statistic, relation, limit) = if let Some((left, right)) = text.split_once("<=") {
            (left, Relation::AtMost, right)
        } else if let Some((left, right)) = text.split_once(">=") {
            (left, Relation::AtLeast, right)
        } else {
            return Err(format!(
                "`{text}` is no bar: write a statistic, <= or >=, and a limit, like \"p99 <= 2 s\""
            ));
        };
        let statistic = match statistic.trim() {
            "worst" => Statistic::Worst,
            "mean" => Statistic::Mean,
            "p50" => Statistic::PerMille(500),
            "p90" => Statistic::PerMille(900),
            "p99" => Statistic::PerMille(990),
            "p999" => Statistic::PerMille(999),
            other => {
                return Err(format!(
                    "`{other}` is no statistic: use worst, mean, p50, p90, p99 or p999"
                ));
            }
        };
        let (number, unit) = value::split(limit)?;
        let (factor, unit) = unit_of(unit)?;
        Ok(Self {
            statistic,
            relation,
            limit: number * factor,
            unit,
        })
    }
}

impl<'de> Deserialize<'de> for Bars {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a bar like \"p99 <= 2 s\", or a list of bars")]
        enum Written {
            One(String),
            Several(Vec<String>),
        }
        let written = match Written::deserialize(from)? {
            Written::One(bar) => vec![bar],
            Written::Several(bars) => bars,
        };
        let bars: Result<Vec<Bar>, String> = written.iter().map(|bar| bar.parse()).collect();
        bars.map(Self).map_err(D::Error::custom)
    }
}

fn unit_of(unit: &str) -> Result<(f64, Unit), String> {
    if unit.is_empty() {
        return Ok((1.0, Unit::Count));
    }
    if unit == "%" {
        return Ok((0.01, Unit::Share));
    }
    if let Some(factor) = value::time_unit(unit) {
        return Ok((factor, Unit::Time));
    }
    if let Some(factor) = unit.strip_suffix("/s").and_then(value::byte_unit) {
        return Ok((factor, Unit::Rate));
    }
    if let Some(factor) = value::byte_unit(unit) {
        return Ok((factor, Unit::Bytes));
    }
    Err(format!(
        "`{unit}` is no unit of a bar: use ms, s, min, h, B, KB, MB, GB, KB/s, % or none"
    ))
}

fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}
