//! Which events a poll wants, said in JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most conditions in one filter.
pub const MAX_CONDITIONS: usize = 64;
/// Most levels of a filter inside of each other.
pub const MAX_DEPTH: usize = 8;

/// A condition on events that are JSON. Other events match no filter, not even a `$not`.
///
/// As JSON: `{"path": "user.name", "value": "ann"}`, `{"$and": […]}`, `{"$or": […]}`, `{"$not": …}`.
/// A path names members of objects, or elements of arrays by number, with dots between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Condition", into = "Condition")]
pub struct Filter {
    root: Condition,
}

/// A filter of another shape than can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Nested too deeply.
    #[error("the filter is nested deeper than {MAX_DEPTH} levels: flatten it")]
    Deep,
    /// Too many conditions.
    #[error("the filter has more than {MAX_CONDITIONS} conditions: split the poll")]
    Large,
}

/// One condition, as it is written. [`Filter`] holds a checked one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Condition {
    /// What is at `path` equals `value`.
    Equals {
        /// Where to look.
        path: String,
        /// What must be there.
        value: Value,
    },
    /// All of them hold.
    And {
        /// The conditions.
        #[serde(rename = "$and")]
        all: Vec<Condition>,
    },
    /// At least one of them holds.
    Or {
        /// The conditions.
        #[serde(rename = "$or")]
        any: Vec<Condition>,
    },
    /// It does not hold.
    Not {
        /// The condition.
        #[serde(rename = "$not")]
        not: Box<Condition>,
    },
}

impl Filter {
    /// Whether an event is wanted.
    pub fn matches(&self, payload: &[u8]) -> bool {
        serde_json::from_slice::<Value>(payload).is_ok_and(|event| self.root.holds(&event))
    }
}

impl TryFrom<Condition> for Filter {
    type Error = FilterError;

    fn try_from(root: Condition) -> Result<Self, FilterError> {
        let mut left = MAX_CONDITIONS;
        root.check(MAX_DEPTH, &mut left)?;
        Ok(Self { root })
    }
}

impl From<Filter> for Condition {
    fn from(filter: Filter) -> Self {
        filter.root
    }
}

impl Condition {
    fn holds(&self, event: &Value) -> bool {
        match self {
            Self::Equals { path, value } => at(event, path) == Some(value),
            Self::And { all } => all.iter().all(|one| one.holds(event)),
            Self::Or { any } => any.iter().any(|one| one.holds(event)),
            Self::Not { not } => !not.holds(event),
        }
    }

    fn check(&self, depth: usize, left: &mut usize) -> Result<(), FilterError> {
        *left = left.checked_sub(1).ok_or(FilterError::Large)?;
        let depth = depth.checked_sub(1).ok_or(FilterError::Deep)?;
        match self {
            Self::Equals { .. } => Ok(()),
            Self::And { all: inner } | Self::Or { any: inner } => {
                inner.iter().try_for_each(|one| one.check(depth, left))
            }
            Self::Not { not } => not.check(depth, left),
        }
    }
}

fn at<'a>(event: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(event, |value, name| match value {
        Value::Object(members) => members.get(name),
        Value::Array(elements) => elements.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn conditions_mean_what_they_say() {
        let event = br#"{"user":{"name":"ann","age":30},"tags":["a","b"]}"#;
        for (text, wanted) in [
            (r#"{"path":"user.name","value":"ann"}"#, true),
            (r#"{"path":"user.name","value":"bob"}"#, false),
            (r#"{"path":"user.age","value":30}"#, true),
            (r#"{"path":"user.age","value":"30"}"#, false),
            (r#"{"path":"tags.1","value":"b"}"#, true),
            (r#"{"path":"tags.2","value":null}"#, false),
            (r#"{"$not":{"path":"x","value":1}}"#, true),
            (
                r#"{"$and":[{"path":"tags.0","value":"a"},{"path":"user.age","value":31}]}"#,
                false,
            ),
            (
                r#"{"$or":[{"path":"tags.0","value":"x"},{"path":"user.age","value":30}]}"#,
                true,
            ),
        ] {
            assert_eq!(filter(text).matches(event), wanted, "{text}");
        }
        let not = filter(r#"{"$not":{"path":"x","value":1}}"#);
        assert!(!not.matches(b"no JSON"), "what is no JSON matches nothing");
    }

    #[test]
    fn filters_are_bounded_and_closed() {
        let deep = format!(
            "{}{{\"path\":\"x\",\"value\":1}}{}",
            "{\"$not\":".repeat(8),
            "}".repeat(8)
        );
        assert!(serde_json::from_str::<Filter>(&deep).is_err());
        let one = r#"{"path":"x","value":1}"#;
        let wide = format!("{{\"$or\":[{}]}}", vec![one; 64].join(","));
        assert!(serde_json::from_str::<Filter>(&wide).is_err());
        assert!(serde_json::from_str::<Filter>(r#"{"path":"x","value":1,"op":"<"}"#).is_err());
    }

    #[test]
    fn filters_survive_being_json() {
        let text = r#"{"$and":[{"path":"a","value":1},{"$not":{"path":"b","value":[2]}}]}"#;
        assert_eq!(serde_json::to_string(&filter(text)).unwrap(), text);
    }
}
