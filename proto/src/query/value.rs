//! Values of the query language: what a query writes ([`Literal`]), what a node states
//! ([`Value`]), and how the two compare.

use std::cmp::Ordering;
use std::fmt;

use crate::announcement::{Role, Subnet};
use crate::query::field::Field;
use crate::slots::cpus;
use crate::units::ByteSize;

/// How a field compares, and what may be written beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text that people chose: compares exactly.
    Text,
    /// Text that machines report: compares without letter case.
    Folded,
    /// A whole node id.
    Id,
    /// Several texts.
    Set,
    /// Several roles.
    Roles,
    /// Bytes.
    Size,
    /// A plain number.
    Number,
    /// Processor threads, in thousandths.
    Threads,
    /// Numbers with points between.
    Version,
    /// Yes or no.
    Flag,
    /// A place in the subnet tree.
    Subnet,
}

/// An operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Has,
    Like,
    In,
}

/// What a query writes. `Folded` compares without letter case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Literal {
    Text(String),
    Folded(String),
    /// Bytes.
    Size(u64),
    Number(u64),
    /// Thousandths.
    Millis(u64),
    Version(Vec<u64>),
    Flag(bool),
    /// The printed form, as values have it.
    Subnet(String),
    /// Of `in`.
    List(Vec<Literal>),
}

/// What a node states in a field. Sizes are numbers of bytes; versions and subnets are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Missing,
    Text(&'a str),
    Number(u64),
    Flag(bool),
}

/// One comparison of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test<F> {
    pub(crate) field: F,
    pub(crate) op: Op,
    pub(crate) value: Literal,
}

impl<F: Field> Test<F> {
    /// Whether one value of the field satisfies the test.
    pub(crate) fn accepts(&self, value: Value<'_>) -> bool {
        match self.op {
            _ if value == Value::Missing && self.field.is_live() => false,
            Op::Eq | Op::Has | Op::In => self.value.equals(value),
            Op::Ne => !self.value.equals(value),
            Op::Like => self.value.is_in(value),
            Op::Lt | Op::Le | Op::Gt | Op::Ge => self
                .value
                .order(value)
                .is_some_and(|order| self.op.orders(order)),
        }
    }
}

impl Op {
    /// The operator with this sign or word.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "=" | "==" => Self::Eq,
            "!=" => Self::Ne,
            "<" => Self::Lt,
            "<=" => Self::Le,
            ">" => Self::Gt,
            ">=" => Self::Ge,
            "has" => Self::Has,
            "~" => Self::Like,
            "in" => Self::In,
            _ => return None,
        })
    }

    /// Whether an order of "value to literal" satisfies this comparison.
    pub(crate) fn orders(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Ne => order.is_ne(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
            Self::Gt => order.is_gt(),
            Self::Ge => order.is_ge(),
            Self::Has | Self::Like | Self::In => false,
        }
    }
}

impl Kind {
    /// The operators that make sense for the kind.
    pub(super) fn ops(self) -> &'static [Op] {
        match self {
            Self::Text | Self::Folded | Self::Id | Self::Subnet => {
                &[Op::Eq, Op::Ne, Op::Like, Op::In]
            }
            Self::Set => &[Op::Has, Op::Like, Op::In],
            Self::Roles => &[Op::Has, Op::In],
            Self::Size | Self::Number | Self::Threads | Self::Version => {
                &[Op::Eq, Op::Ne, Op::Lt, Op::Le, Op::Gt, Op::Ge, Op::In]
            }
            Self::Flag => &[Op::Eq, Op::Ne],
        }
    }

    /// Reads what stands beside a field of this kind.
    pub(super) fn literal(self, op: Op, text: &str) -> Result<Literal, String> {
        if op == Op::Like && text.is_empty() {
            return Err("everything contains the empty text".into());
        }
        match self {
            Self::Text | Self::Set => Ok(Literal::Text(text.to_owned())),
            Self::Folded => Ok(Literal::Folded(text.to_owned())),
            Self::Id if op == Op::Like => Ok(Literal::Text(text.to_owned())),
            Self::Id => match text.parse::<meshwork_identity::NodeId>() {
                Ok(_) => Ok(Literal::Text(text.to_owned())),
                Err(e) => Err(format!("{e}; for a part of an id use `~`")),
            },
            Self::Roles => text
                .parse::<Role>()
                .map(|role| Literal::Text(role.name().to_owned())),
            Self::Size => size(text),
            Self::Number => match text.parse() {
                Ok(number) => Ok(Literal::Number(number)),
                Err(_) => Err(format!("`{text}` is no whole number")),
            },
            Self::Threads => threads(text),
            Self::Version => version(text),
            Self::Flag => match text {
                "true" | "yes" => Ok(Literal::Flag(true)),
                "false" | "no" => Ok(Literal::Flag(false)),
                _ => Err(format!("`{text}` is neither true nor false")),
            },
            Self::Subnet => text
                .parse::<Subnet>()
                .map(|subnet| Literal::Subnet(subnet.to_string())),
        }
    }
}

/// A bare number of bytes is a slip (`vram >= 40`) that nearly every node satisfies.
fn size(text: &str) -> Result<Literal, String> {
    let bytes = text.parse::<ByteSize>().map_err(|e| e.to_string())?.0;
    if bytes > 0 && text.ends_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`{text}` has no unit: write {text}GB or {text}GiB"));
    }
    Ok(Literal::Size(bytes))
}

/// `2`, `1.5`, `0.125`.
fn threads(text: &str) -> Result<Literal, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let sound = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let millis = whole
        .parse::<u64>()
        .ok()
        .filter(|_| sound)
        .and_then(|whole| {
            let part: u64 = format!("{part:0<3}").parse().ok()?;
            whole.checked_mul(1000)?.checked_add(part)
        });
    let millis = millis.ok_or_else(|| {
        format!("`{text}` is no number of threads: write 4, or 1.5 with at most three decimals")
    })?;
    Ok(Literal::Millis(millis))
}

/// Most parts of a version that a query may write.
const MAX_VERSION_PARTS: usize = 8;

fn version(text: &str) -> Result<Literal, String> {
    let parts: Result<Vec<u64>, _> = text.split('.').map(str::parse).collect();
    match parts {
        Ok(parts) if parts.len() <= MAX_VERSION_PARTS => Ok(Literal::Version(parts)),
        _ => Err(format!(
            "`{text}` is no version: write numbers with points, like 550.54"
        )),
    }
}

impl Literal {
    fn equals(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(mine) | Self::Subnet(mine), Value::Text(theirs)) => mine == theirs,
            (Self::Folded(mine), Value::Text(theirs)) => mine.eq_ignore_ascii_case(theirs),
            (Self::Flag(mine), Value::Flag(theirs)) => *mine == theirs,
            (Self::List(items), value) => items.iter().any(|item| item.equals(value)),
            _ => self.order(value) == Some(Ordering::Equal),
        }
    }

    /// How the value stands to this literal, where the two have an order.
    fn order(&self, value: Value<'_>) -> Option<Ordering> {
        match (self, value) {
            (Self::Size(mine) | Self::Number(mine) | Self::Millis(mine), Value::Number(theirs)) => {
                Some(theirs.cmp(mine))
            }
            (Self::Version(mine), Value::Text(theirs)) => version_order(theirs, mine),
            _ => None,
        }
    }

    /// Whether the value contains this literal.
    fn is_in(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(part) | Self::Folded(part), Value::Text(whole)) => {
                contains_folded(whole.as_bytes(), part.as_bytes())
            }
            (Self::Subnet(top), Value::Text(place)) => place
                .strip_prefix(top.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
            _ => false,
        }
    }
}

fn contains_folded(whole: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first().map(u8::to_ascii_lowercase) else {
        return true;
    };
    let begins = |window: &[u8]| window[0].to_ascii_lowercase() == first;
    let mut windows = whole.windows(part.len());
    windows.any(|window| begins(window) && window.eq_ignore_ascii_case(part))
}

/// Compares as many leading numbers of a stated version as the query writes; missing ones are 0.
/// Nothing when the stated version does not begin with a number.
fn version_order(stated: &str, wanted: &[u64]) -> Option<Ordering> {
    let mut parts = leading_numbers(stated).peekable();
    parts.peek()?;
    Some(
        wanted
            .iter()
            .map(|want| parts.next().unwrap_or(0).cmp(want))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal),
    )
}

/// `6.8.0-45-generic` → 6, 8, 0.
fn leading_numbers(version: &str) -> impl Iterator<Item = u64> {
    let mut ended = false;
    version.split('.').map_while(move |part| {
        if ended {
            return None;
        }
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        ended = digits < part.len();
        part[..digits].parse().ok()
    })
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eq => "=",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Has => "has",
            Self::Like => "~",
            Self::In => "in",
        })
    }
}

impl Literal {
    /// The text that reads back to this literal, without quotes.
    pub(super) fn to_plain(&self) -> String {
        match self {
            Self::Text(text) | Self::Folded(text) | Self::Subnet(text) => text.clone(),
            Self::Size(bytes) => exact_size(*bytes),
            Self::Number(number) => number.to_string(),
            Self::Millis(millis) => cpus(*millis),
            Self::Version(parts) => {
                let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
                parts.join(".")
            }
            Self::Flag(flag) => flag.to_string(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                format!("({})", items.join(", "))
            }
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Folded(text) => {
                write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
            other => f.write_str(&other.to_plain()),
        }
    }
}

/// Bytes in the largest unit that divides them: `40GB`, `512MiB`, `7B`.
fn exact_size(bytes: u64) -> String {
    const NAMES: [&str; 10] = [
        "PB", "TB", "GB", "MB", "kB", "PiB", "TiB", "GiB", "MiB", "KiB",
    ];
    NAMES
        .into_iter()
        .filter_map(|name| ByteSize::unit(name).map(|factor| (factor, name)))
        .filter(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor))
        .max()
        .map_or_else(
            || format!("{bytes}B"),
            |(factor, name)| format!("{}{name}", bytes / factor),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_and_by_what_is_written() {
        for (stated, wanted, order) in [
            ("550.54.14", &[550][..], Some(Ordering::Equal)),
            ("550.54.14", &[550, 100], Some(Ordering::Less)),
            ("550.9", &[550, 54], Some(Ordering::Less)),
            ("12", &[12, 0, 0], Some(Ordering::Equal)),
            ("12.10", &[12, 9], Some(Ordering::Greater)),
            ("6.8.0-45-generic", &[6, 8, 0, 0], Some(Ordering::Equal)),
            ("1.x.9", &[1, 0, 0], Some(Ordering::Equal)),
            ("amdgpu", &[0], None),
            ("", &[0], None),
            ("99999999999999999999.1", &[1], None),
        ] {
            assert_eq!(version_order(stated, wanted), order, "{stated} {wanted:?}");
        }
    }

    #[test]
    fn sizes_print_exactly() {
        for (bytes, text) in [
            (40_000_000_000, "40GB"),
            (40 << 30, "40GiB"),
            (1_500_000_000_000, "1500GB"),
            (0, "0B"),
            (7, "7B"),
            (1 << 20, "1MiB"),
        ] {
            assert_eq!(exact_size(bytes), text);
            assert_eq!(size(text), Ok(Literal::Size(bytes)));
        }
    }
}
