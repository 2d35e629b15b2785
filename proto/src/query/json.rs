//! The JSON form of queries, of the same power as the text, for callers in other languages.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::ast::{NodeLeaf, Raw, Tree, group};
use super::error::QueryError;
use super::field::{Field, GPU_COUNT, GpuField};
use super::leaf::{Leaf, Part, Written, count};
use super::value::{Literal, Op, Test};
use super::{MAX_DEPTH, MAX_TERMS, Query};

/// A query as JSON. An object has one of these shapes; every other key is refused:
/// - `{"and": [filter, …]}`, `{"or": [filter, …]}`, `{"not": filter}`; the empty `and`, at the top
///   only, is every node;
/// - `{"field": "gpu.vram", "op": ">=", "value": "40GB"}`, with the operators and fields of the
///   text form and an array of values for `in`; sizes and versions are strings;
/// - `{"gpu": filter}`: some one GPU satisfies it;
/// - `{"count": filter, "op": ">=", "value": 2}`: so many GPUs satisfy it (of all GPUs: the field
///   `gpus`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a filter object: and, or, not, field, gpu or count")]
pub struct JsonFilter {
    /// All of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub and: Option<Vec<JsonFilter>>,
    /// One of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub or: Option<Vec<JsonFilter>>,
    /// Not this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<JsonFilter>>,
    /// Some one GPU satisfies this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Box<JsonFilter>>,
    /// Compares how many GPUs satisfy this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<Box<JsonFilter>>,
    /// Compares this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// With this operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// With this value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Json>,
}

const SHAPES: &str = "a filter is one of {and}, {or}, {not}, {gpu}, {field, op, value} and \
    {count, op, value}";

/// Most bytes of a filter in JSON, which is wordier than the text form.
const MAX_JSON: usize = 4 * crate::limits::MAX_QUERY;

/// Reads a query from JSON text.
pub(super) fn parse(text: &str) -> Result<Query, QueryError> {
    if text.len() > MAX_JSON {
        let message = format!(
            "a filter has at most {MAX_JSON} bytes, this one {}",
            text.len()
        );
        return Err(QueryError::in_json("", message));
    }
    let filter: JsonFilter =
        serde_json::from_str(text).map_err(|e| QueryError::in_json("", e.to_string()))?;
    Query::try_from(&filter)
}

impl TryFrom<&JsonFilter> for Query {
    type Error = QueryError;

    fn try_from(filter: &JsonFilter) -> Result<Self, QueryError> {
        let all = JsonFilter {
            and: Some(Vec::new()),
            ..JsonFilter::default()
        };
        if *filter == all {
            return Ok(Self::all());
        }
        let mut reader = Reader { terms: 0 };
        Ok(Self {
            tree: group(reader.tree::<Raw>(filter, "", 0)?),
        })
    }
}

struct Reader {
    terms: usize,
}

impl Reader {
    fn tree<L: Leaf>(
        &mut self,
        filter: &JsonFilter,
        path: &str,
        depth: usize,
    ) -> Result<Tree<L>, QueryError> {
        if depth > MAX_DEPTH {
            return fail(
                path,
                format!("a filter nests at most {MAX_DEPTH} levels deep"),
            );
        }
        let JsonFilter {
            and,
            or,
            not,
            gpu,
            count: counted,
            field,
            op,
            value,
        } = filter;
        match (and, or, not, gpu, counted, field, op, value) {
            (Some(items), None, None, None, None, None, None, None) => {
                self.items(items, &join(path, "and"), depth).map(Tree::and)
            }
            (None, Some(items), None, None, None, None, None, None) => {
                self.items(items, &join(path, "or"), depth).map(Tree::or)
            }
            (None, None, Some(inner), None, None, None, None, None) => {
                let inner = self.tree(inner, &join(path, "not"), depth + 1)?;
                Ok(Tree::Not(Box::new(inner)))
            }
            (None, None, None, Some(inner), None, None, None, None) => {
                let make = of_node::<L>(path, "gpu")?;
                let tree = self.tree(inner, &join(path, "gpu"), depth + 1)?;
                Ok(Tree::Leaf(make(NodeLeaf::Gpu(tree))))
            }
            (None, None, None, None, Some(inner), None, Some(op), Some(value)) => {
                let make = of_node::<L>(path, "count")?;
                let tree = self.tree(inner, &join(path, "count"), depth + 1)?;
                let (op, values) = self.operand(op, value, path)?;
                let number = count(op, &values).map_err(|fault| place(path, fault))?;
                Ok(Tree::Leaf(make(NodeLeaf::Count(Some(tree), op, number))))
            }
            (None, None, None, None, None, Some(field), Some(op), Some(value)) => {
                let (op, values) = self.operand(op, value, path)?;
                let leaf = L::compare(&Written { field, op, values });
                leaf.map(Tree::Leaf).map_err(|fault| place(path, fault))
            }
            _ => fail(path, SHAPES),
        }
    }

    fn items<L: Leaf>(
        &mut self,
        items: &[JsonFilter],
        path: &str,
        depth: usize,
    ) -> Result<Vec<Tree<L>>, QueryError> {
        if items.is_empty() {
            return fail(path, "the list is empty");
        }
        let each = |(i, item)| self.tree(item, &format!("{path}[{i}]"), depth + 1);
        items.iter().enumerate().map(each).collect()
    }

    fn operand(
        &mut self,
        op: &str,
        value: &Json,
        path: &str,
    ) -> Result<(Op, Vec<String>), QueryError> {
        let Some(op) = Op::from_name(op) else {
            let message = format!("there is no operator `{}`", op.escape_debug());
            return fail(&join(path, "op"), message);
        };
        let values = match (op, value) {
            (Op::In, Json::Array(items)) if !items.is_empty() => items.as_slice(),
            (Op::In, _) => return fail(&join(path, "value"), "`in` takes a list of values"),
            (_, one) => std::slice::from_ref(one),
        };
        self.terms += values.len();
        if self.terms > MAX_TERMS {
            return fail(path, format!("at most {MAX_TERMS} values in a query"));
        }
        let values: Option<Vec<String>> = values.iter().map(scalar).collect();
        match values {
            Some(values) => Ok((op, values)),
            None => fail(
                &join(path, "value"),
                "a value is a string, a whole number or a boolean; versions are strings",
            ),
        }
    }
}

/// Fractions are refused: as a version, 12.10 would become 12.1.
fn scalar(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Bool(flag) => Some(flag.to_string()),
        Json::Number(number) => number.as_u64().map(|n| n.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

fn of_node<L: Leaf>(path: &str, key: &str) -> Result<fn(NodeLeaf) -> L, QueryError> {
    match L::OF_NODE {
        Some(make) => Ok(make),
        None => fail(
            &join(path, key),
            "inside `gpu` and `count` only GPU fields are compared",
        ),
    }
}

fn place(path: &str, (part, message): (Part, String)) -> QueryError {
    let key = match part {
        Part::Field => "field",
        Part::Op => "op",
        Part::Value(_) => "value",
    };
    QueryError::in_json(&join(path, key), message)
}

fn fail<T>(path: &str, message: impl Into<String>) -> Result<T, QueryError> {
    Err(QueryError::in_json(path, message))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

impl From<&Query> for JsonFilter {
    fn from(query: &Query) -> Self {
        write(query.tree(), &|leaf| match leaf {
            NodeLeaf::Test(test) => write_test(test),
            NodeLeaf::Gpu(tree) => Self {
                gpu: Some(Box::new(write_gpu(tree))),
                ..Self::default()
            },
            NodeLeaf::Count(filter, op, number) => Self {
                field: filter.is_none().then(|| GPU_COUNT.to_owned()),
                count: filter.as_ref().map(|tree| Box::new(write_gpu(tree))),
                op: Some(op.to_string()),
                value: Some(Json::from(*number)),
                ..Self::default()
            },
        })
    }
}

fn write<L>(tree: &Tree<L>, leaf: &impl Fn(&L) -> JsonFilter) -> JsonFilter {
    let all = |items: &[Tree<L>]| Some(items.iter().map(|t| write(t, leaf)).collect());
    match tree {
        Tree::And(items) => JsonFilter {
            and: all(items),
            ..JsonFilter::default()
        },
        Tree::Or(items) => JsonFilter {
            or: all(items),
            ..JsonFilter::default()
        },
        Tree::Not(tree) => JsonFilter {
            not: Some(Box::new(write(tree, leaf))),
            ..JsonFilter::default()
        },
        Tree::Leaf(test) => leaf(test),
    }
}

fn write_gpu(tree: &Tree<Test<GpuField>>) -> JsonFilter {
    write(tree, &write_test)
}

fn write_test<F: Field>(test: &Test<F>) -> JsonFilter {
    JsonFilter {
        field: Some(test.field.name().to_owned()),
        op: Some(test.op.to_string()),
        value: Some(write_literal(&test.value)),
        ..JsonFilter::default()
    }
}

fn write_literal(literal: &Literal) -> Json {
    match literal {
        Literal::List(items) => items.iter().map(write_literal).collect(),
        Literal::Number(number) => Json::from(*number),
        Literal::Flag(flag) => Json::from(*flag),
        Literal::Text(_)
        | Literal::Folded(_)
        | Literal::Size(_)
        | Literal::Millis(_)
        | Literal::Version(_)
        | Literal::Subnet(_) => Json::from(literal.to_plain()),
    }
}
