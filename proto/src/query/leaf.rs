//! From names to checked conditions: what the text form and the JSON form have in common.

use super::MAX_TERMS;
use super::ast::{NodeLeaf, Raw};
use super::error::nearest;
use super::field::{FREE_GPU_MEMORY, Field, GPU_COUNT, GpuField, NodeField, SHORT_GPU_FIELDS};
use super::value::{Kind, Literal, Op, Test};

/// A comparison as it was written.
#[derive(Debug, Clone)]
pub(super) struct Written<'a> {
    pub(super) field: &'a str,
    pub(super) op: Op,
    /// One value, or all of `in`.
    pub(super) values: Vec<String>,
}

/// Which part of a comparison is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Field,
    Op,
    /// The value of this position.
    Value(usize),
}

/// What is wrong with a comparison.
pub(super) type Fault = (Part, String);

/// A condition of the tree's kind: on a node, or on one GPU.
pub(super) trait Leaf: Sized {
    /// Checks names, operator and values.
    fn compare(written: &Written<'_>) -> Result<Self, Fault>;
    /// Whether `gpu[…]` and `count(…)` may stand here; makes the leaf of one that was read.
    const OF_NODE: Option<fn(NodeLeaf) -> Self>;
}

impl Leaf for Raw {
    const OF_NODE: Option<fn(NodeLeaf) -> Self> = Some(Self::Done);

    fn compare(written: &Written<'_>) -> Result<Self, Fault> {
        let name = written.field.to_ascii_lowercase();
        if name == GPU_COUNT {
            let number = count(written.op, &written.values)?;
            return Ok(Self::Done(NodeLeaf::Count(None, written.op, number)));
        }
        let short = SHORT_GPU_FIELDS
            .contains(&name.as_str())
            .then_some(name.as_str());
        if FREE_GPU_MEMORY.contains(&name.as_str()) {
            return test(GpuField::Free, written).map(Self::Bare);
        }
        if let Some(field) = name.strip_prefix("gpu.").or(short).and_then(GpuField::find) {
            return test(field, written).map(Self::Bare);
        }
        match NodeField::find(&name) {
            Some(field) => Ok(Self::Done(NodeLeaf::Test(test(field, written)?))),
            None => Err((Part::Field, unknown(written.field, &node_names()))),
        }
    }
}

impl Leaf for Test<GpuField> {
    const OF_NODE: Option<fn(NodeLeaf) -> Self> = None;

    fn compare(written: &Written<'_>) -> Result<Self, Fault> {
        let name = written.field.to_ascii_lowercase();
        let name = if FREE_GPU_MEMORY.contains(&name.as_str()) {
            GpuField::Free.name().to_owned()
        } else {
            name
        };
        match GpuField::find(name.strip_prefix("gpu.").unwrap_or(&name)) {
            Some(field) => test(field, written),
            None if NodeField::find(&name).is_some() => Err((
                Part::Field,
                format!("`{name}` is a field of the node: write it outside `gpu[…]`"),
            )),
            None => {
                let names: Vec<String> = names::<GpuField>("").collect();
                Err((Part::Field, unknown(written.field, &names)))
            }
        }
    }
}

/// Checks a comparison of a number of GPUs.
pub(super) fn count(op: Op, values: &[String]) -> Result<u64, Fault> {
    if matches!(op, Op::Has | Op::Like | Op::In) {
        return Err((
            Part::Op,
            refuse("the number of GPUs", op, Kind::Flag.ops(), true),
        ));
    }
    let text = values.first().map_or("", String::as_str);
    text.parse()
        .map_err(|_| (Part::Value(0), format!("`{text}` is no number of GPUs")))
}

fn test<F: Field>(field: F, written: &Written<'_>) -> Result<Test<F>, Fault> {
    let (kind, op) = (field.kind(), written.op);
    if !kind.ops().contains(&op) {
        return Err((
            Part::Op,
            refuse(&format!("`{}`", field.name()), op, kind.ops(), false),
        ));
    }
    if written.values.len() > MAX_TERMS {
        return Err((
            Part::Value(MAX_TERMS),
            format!("at most {MAX_TERMS} values in a query"),
        ));
    }
    let literal = |(i, text): (usize, &String)| {
        kind.literal(op, text)
            .map_err(|message| (Part::Value(i), message))
    };
    let mut values = written
        .values
        .iter()
        .enumerate()
        .map(literal)
        .collect::<Result<Vec<_>, _>>()?;
    let value = match op {
        Op::In => Literal::List(values),
        _ => values
            .pop()
            .ok_or((Part::Op, "a value is missing".to_owned()))?,
    };
    Ok(Test { field, op, value })
}

fn refuse(what: &str, op: Op, ops: &[Op], ordered: bool) -> String {
    let mut ops: Vec<String> = ops.iter().map(|op| format!("`{op}`")).collect();
    if ordered {
        ops.extend(["`<`", "`<=`", "`>`", "`>=`"].map(String::from));
    }
    format!(
        "{what} cannot be compared with `{op}`: use {}",
        ops.join(", ")
    )
}

fn names<F: Field>(prefix: &'static str) -> impl Iterator<Item = String> {
    F::TABLE.iter().map(move |row| format!("{prefix}{}", row.1))
}

fn node_names() -> Vec<String> {
    let gpu = names::<GpuField>("gpu.").chain([GPU_COUNT.to_owned()]);
    names::<NodeField>("").chain(gpu).collect()
}

fn unknown(written: &str, names: &[String]) -> String {
    let help = match nearest(
        &written.to_ascii_lowercase(),
        names.iter().map(String::as_str),
    ) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the fields are {}", names.join(", ")),
    };
    format!("there is no field `{}`; {help}", written.escape_debug())
}
