//! A scope as people write it: `any`, `global-only`, `same-subnet`, `own`, `everything`,
//! `tenant:ID` and `region:NAME`, with several names parted by commas, and in quotes where a name has
//! signs of the query language. `_` may stand for `-`, and the plural for the singular.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::filter::{MAX_NAMES, ScopeFilter};
use crate::limits::MAX_QUERY;
use crate::query::error::{QueryError, nearest};
use crate::query::lexer::{Token, What, ends_word, tokens};

/// What stands before the names, or alone.
const KINDS: [&str; 7] = [
    "any",
    "global-only",
    "same-subnet",
    "own",
    "everything",
    "tenant",
    "region",
];

impl FromStr for ScopeFilter {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        if text.len() > MAX_QUERY {
            let message = format!(
                "a scope has at most {MAX_QUERY} bytes, this one {}",
                text.len()
            );
            return Err(QueryError::in_text("", 0..0, message));
        }
        let tokens = tokens(text)?;
        let What::Word(first) = tokens[0].what else {
            let found = tokens[0].what.describe();
            let message = format!("expected a scope ({}), found {found}", all_kinds());
            return Err(QueryError::in_text(text, tokens[0].at.clone(), message));
        };
        let start = tokens[0].at.start;
        let (kind, colon) = match first.find(':') {
            Some(colon) => (&first[..colon], true),
            None => (first, false),
        };
        let plain = match &*kind.to_ascii_lowercase().replace('_', "-") {
            "any" => Self::Any,
            "global-only" => Self::GlobalOnly,
            "same-subnet" => Self::SameSubnet,
            "own" => Self::Own,
            "everything" => Self::Everything,
            "tenant" | "tenants" => {
                return Names::read(text, kind, colon, &tokens).map(Self::Tenants);
            }
            "region" | "regions" => {
                return Names::read(text, kind, colon, &tokens).map(Self::Regions);
            }
            other => {
                let help = match nearest(other, KINDS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("use {}", all_kinds()),
                };
                let message = format!("`{}` is no kind of scope; {help}", kind.escape_debug());
                let at = start..start + kind.len().max(1);
                return Err(QueryError::in_text(text, at, message));
            }
        };
        let rest = if colon {
            start + kind.len()..start + first.len()
        } else {
            tokens[1].at.clone()
        };
        if colon || tokens[1].what != What::End {
            let message = format!("a scope of kind `{kind}` has no names: leave this out");
            return Err(QueryError::in_text(text, rest, message));
        }
        Ok(plain)
    }
}

fn all_kinds() -> String {
    "any, global-only, same-subnet, tenant:ID, region:NAME, own or everything".to_owned()
}

/// Reads `ID{,ID}` behind the colon.
struct Names<'a> {
    text: &'a str,
    kind: &'a str,
    found: BTreeSet<String>,
}

impl<'a> Names<'a> {
    fn read(
        text: &'a str,
        kind: &'a str,
        colon: bool,
        tokens: &[Token<'_>],
    ) -> Result<BTreeSet<String>, QueryError> {
        let mut names = Self {
            text,
            kind,
            found: BTreeSet::new(),
        };
        let word = tokens[0].at.clone();
        if !colon {
            return Err(names.missing(word));
        }
        let behind = word.start + kind.len() + 1..word.end;
        let mut rest = &tokens[1..];
        if behind.is_empty() {
            rest = names.one_of(rest)?;
        } else {
            names.add(&text[behind.clone()], behind)?;
        }
        while rest[0].what == What::Comma {
            rest = names.one_of(&rest[1..])?;
        }
        match &rest[0].what {
            What::End => Ok(names.found),
            what => {
                let message = format!("expected `,` or the end, found {}", what.describe());
                Err(QueryError::in_text(text, rest[0].at.clone(), message))
            }
        }
    }

    /// Takes a name off the tokens.
    fn one_of<'t, 'x>(&mut self, tokens: &'t [Token<'x>]) -> Result<&'t [Token<'x>], QueryError> {
        let at = tokens[0].at.clone();
        match &tokens[0].what {
            What::Word(name) => self.add(name, at)?,
            What::Quoted(name) => self.add(name, at)?,
            _ => return Err(self.missing(at)),
        }
        Ok(&tokens[1..])
    }

    fn add(&mut self, name: &str, at: Range<usize>) -> Result<(), QueryError> {
        if name.is_empty() {
            return Err(self.missing(at));
        }
        self.found.insert(name.to_owned());
        if self.found.len() > MAX_NAMES {
            let message = format!("a scope names at most {MAX_NAMES} tenants or regions");
            return Err(QueryError::in_text(self.text, at, message));
        }
        Ok(())
    }

    fn missing(&self, at: Range<usize>) -> QueryError {
        let kind = self.kind;
        let message =
            format!("a name is missing: write {kind}:NAME, or {kind}:NAME,NAME for several");
        QueryError::in_text(self.text, at, message)
    }
}

/// Prints what reads back to an equal filter.
impl fmt::Display for ScopeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, names) = match self {
            Self::Everything => return f.write_str("everything"),
            Self::Any => return f.write_str("any"),
            Self::GlobalOnly => return f.write_str("global-only"),
            Self::Own => return f.write_str("own"),
            Self::SameSubnet => return f.write_str("same-subnet"),
            Self::Tenants(names) => ("tenant", names),
            Self::Regions(names) => ("region", names),
        };
        let quoted = |name: &String| {
            if name.contains(ends_word) || name.is_empty() {
                format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                name.clone()
            }
        };
        let names: Vec<String> = names.iter().map(quoted).collect();
        write!(f, "{kind}:{}", names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn filters_read_from_text_and_print_to_it() {
        for (text, filter, printed) in [
            ("any", ScopeFilter::Any, "any"),
            ("Global_Only", ScopeFilter::GlobalOnly, "global-only"),
            (" same-subnet ", ScopeFilter::SameSubnet, "same-subnet"),
            ("own", ScopeFilter::Own, "own"),
            ("everything", ScopeFilter::Everything, "everything"),
            (
                "tenant:oem-123",
                ScopeFilter::Tenants(set(&["oem-123"])),
                "tenant:oem-123",
            ),
            (
                "tenants:b, a",
                ScopeFilter::Tenants(set(&["a", "b"])),
                "tenant:a,b",
            ),
            (
                "region:eu,us",
                ScopeFilter::Regions(set(&["eu", "us"])),
                "region:eu,us",
            ),
            (
                "region:a:b",
                ScopeFilter::Regions(set(&["a:b"])),
                "region:a:b",
            ),
            (
                "tenant:'a,b'",
                ScopeFilter::Tenants(set(&["a,b"])),
                "tenant:\"a,b\"",
            ),
            (
                r#"tenant:x,"q\"\\ q""#,
                ScopeFilter::Tenants(set(&["q\"\\ q", "x"])),
                r#"tenant:"q\"\\ q",x"#,
            ),
        ] {
            assert_eq!(text.parse::<ScopeFilter>().unwrap(), filter, "{text}");
            assert_eq!(filter.to_string(), printed);
            assert_eq!(printed.parse::<ScopeFilter>().unwrap(), filter);
        }
    }

    #[test]
    fn wrong_text_is_shown_where_it_is_wrong() {
        for (text, column, reason) in [
            ("", 1, "expected a scope (any, global-only"),
            ("  tenat:acme", 3, "did you mean `tenant`?"),
            ("price", 1, "use any, global-only, same-subnet"),
            (":acme", 1, "is no kind of scope"),
            ("tenant", 1, "write tenant:NAME"),
            ("tenant:", 8, "a name is missing"),
            ("tenant:\"\"", 8, "a name is missing"),
            ("region:eu,", 11, "a name is missing"),
            ("region:eu,,us", 11, "write region:NAME"),
            ("region:eu us", 11, "expected `,` or the end, found `us`"),
            ("any:x", 4, "has no names"),
            ("any x", 5, "has no names"),
            ("tenant:\"a", 8, "not closed"),
            ("(any)", 1, "found `(`"),
        ] {
            let error = text.parse::<ScopeFilter>().unwrap_err();
            assert_eq!(error.column(), Some(column), "{text}: {error}");
            assert!(error.message().contains(reason), "{text}: {error}");
        }
        let many = vec!["a"; MAX_NAMES + 1];
        let many: Vec<String> = many
            .iter()
            .enumerate()
            .map(|(i, a)| format!("{a}{i}"))
            .collect();
        let error = format!("tenant:{}", many.join(","));
        let error = error.parse::<ScopeFilter>().unwrap_err();
        assert!(error.message().contains("at most 256"), "{error}");
        let long = "x"
            .repeat(MAX_QUERY + 1)
            .parse::<ScopeFilter>()
            .unwrap_err();
        assert!(long.message().contains("at most 4096 bytes"), "{long}");
    }
}
