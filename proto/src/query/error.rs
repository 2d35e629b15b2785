//! Why a query was refused, and where.

use std::fmt;
use std::ops::Range;

use crate::rpc::RpcError;

/// A query that cannot be read. Prints the sentence, and below it the text with carets under the
/// part that is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    message: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A text: the line at fault, and the part of it in characters.
    Text {
        line: String,
        column: usize,
        width: usize,
    },
    /// A JSON filter: the path to the value.
    Json(String),
}

/// Characters of a line that are shown on either side of the fault.
const CONTEXT: usize = 60;

impl QueryError {
    pub(super) fn in_text(text: &str, at: Range<usize>, message: impl Into<String>) -> Self {
        let start = text[..at.start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let end = text[at.start..]
            .find('\n')
            .map_or(text.len(), |newline| at.start + newline);
        let place = Place::Text {
            line: text[start..end]
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
            column: text[start..at.start].chars().count(),
            width: text[at.start..at.end.clamp(at.start, end)]
                .chars()
                .count()
                .max(1),
        };
        Self {
            message: message.into(),
            place,
        }
    }

    pub(super) fn in_json(path: &str, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            place: Place::Json(path.to_owned()),
        }
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where in the line, in characters from 1; none for a JSON filter.
    pub fn column(&self) -> Option<usize> {
        match &self.place {
            Place::Text { column, .. } => Some(column + 1),
            Place::Json(_) => None,
        }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Json(path) if path.is_empty() => f.write_str(&self.message),
            Place::Json(path) => write!(f, "{path}: {}", self.message),
            Place::Text {
                line,
                column,
                width,
            } => {
                let skipped = column.saturating_sub(CONTEXT);
                let shown = column - skipped;
                let width = (*width).min(CONTEXT);
                let part: String = line
                    .chars()
                    .skip(skipped)
                    .take(shown + 2 * CONTEXT)
                    .collect();
                let (indent, carets) = (" ".repeat(shown), "^".repeat(width));
                write!(
                    f,
                    "column {}: {}\n  {part}\n  {indent}{carets}",
                    column + 1,
                    self.message
                )
            }
        }
    }
}

impl std::error::Error for QueryError {}

impl From<QueryError> for RpcError {
    fn from(error: QueryError) -> Self {
        Self::invalid(error.to_string()).reason("query")
    }
}

/// The name nearest to what was written, if it is near enough to be meant.
pub(super) fn nearest<'a>(
    written: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let allowed = (written.chars().count() / 3).clamp(1, 3);
    names
        .into_iter()
        .map(|name| (distance(written, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance: insertions, deletions and replacements that turn one into the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        let names = ["vram", "vendor", "model"];
        assert_eq!(nearest("vrm", names), Some("vram"));
        assert_eq!(nearest("modle", names), None);
        assert_eq!(nearest("models", names), Some("model"));
        assert_eq!(nearest("price", names), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn carets_stand_under_the_part_at_fault() {
        let error = QueryError::in_text("näme = x", 0..5, "no such field");
        assert_eq!(
            error.to_string(),
            "column 1: no such field\n  näme = x\n  ^^^^"
        );
        let error = QueryError::in_text("a\nbcd", 3..4, "bad");
        assert_eq!(error.to_string(), "column 2: bad\n  bcd\n   ^");
        assert_eq!(error.column(), Some(2));
    }
}
