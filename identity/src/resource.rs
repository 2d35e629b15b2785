//! What a token's scopes apply to: patterns over paths and nodes.
//!
//! ```text
//! resource = path [ "@" node ]
//! path     = "*" | segment *( "/" segment ) [ "/*" | ".*" ]
//! segment  = 1*( letter | digit | "." | "_" | "-" | ":" ), not of dots only
//! node     = node id | "*"
//! ```
//! `agent/kernel.create` is that one method, `agent/kernel.*` and `agent/*` all whose text goes on
//! after the `.` or `/`, `*` everything. Without a node, or with `@*`, every node is meant. A star
//! stands at the end only, so that "covers" is a comparison of prefixes and needs no matcher.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Most characters in the path of a resource.
pub const MAX_RESOURCE_PATH: usize = 128;

/// A pattern over `path@node`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resource {
    path: PathPattern,
    node: Option<NodeId>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum PathPattern {
    /// This path.
    Exact(String),
    /// Every path that begins with this and goes on: empty, or ending in `/` or `.`.
    Under(String),
}

/// Why a text is no resource pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// The path breaks the grammar.
    #[error(
        "a resource path is `*` or segments of letters, digits and `._-:` with `/` between, at \
         most {MAX_RESOURCE_PATH} characters; a `*` may stand at the end, after `/` or `.`"
    )]
    Path,
    /// What follows the `@` is neither a node id nor `*`.
    #[error("after the `@` of a resource stands a whole node id or `*`")]
    Node,
}

impl Resource {
    /// Everything on every node.
    pub fn any() -> Self {
        Self {
            path: PathPattern::Under(String::new()),
            node: None,
        }
    }

    /// The same path on this node only.
    #[must_use]
    pub fn on(self, node: NodeId) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }

    /// The only node it applies to, or `None` for every node.
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Whether all that `other` matches, this matches too.
    pub fn covers(&self, other: &Self) -> bool {
        let path = match (&self.path, &other.path) {
            (PathPattern::Exact(mine), PathPattern::Exact(theirs)) => mine == theirs,
            (PathPattern::Exact(_), PathPattern::Under(_)) => false,
            (PathPattern::Under(mine), PathPattern::Exact(theirs)) => goes_on(theirs, mine),
            (PathPattern::Under(mine), PathPattern::Under(theirs)) => theirs.starts_with(mine),
        };
        path && (self.node.is_none() || self.node == other.node)
    }

    /// Whether the pattern matches this path on this node. What is no plain path (a pattern, say)
    /// matches nothing.
    pub fn matches(&self, path: &str, node: &NodeId) -> bool {
        let matched = match &self.path {
            PathPattern::Exact(mine) => mine == path,
            PathPattern::Under(mine) => goes_on(path, mine) && is_plain_path(path),
        };
        matched && self.node.is_none_or(|mine| mine == *node)
    }
}

fn goes_on(path: &str, prefix: &str) -> bool {
    path.len() > prefix.len() && path.starts_with(prefix)
}

fn is_plain_path(path: &str) -> bool {
    path.len() <= MAX_RESOURCE_PATH && path.split('/').all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    let in_alphabet = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    segment.chars().all(in_alphabet) && segment.contains(|c| c != '.')
}

impl FromStr for PathPattern {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let Some(prefix) = text.strip_suffix('*') else {
            return is_plain_path(text)
                .then(|| Self::Exact(text.to_owned()))
                .ok_or(ResourceError::Path);
        };
        // `a/` and `a.` are right when the path before the last character is.
        let parent = prefix.strip_suffix(['/', '.']);
        let fits = prefix.is_empty() || parent.is_some_and(is_plain_path);
        if !fits || text.len() > MAX_RESOURCE_PATH {
            return Err(ResourceError::Path);
        }
        Ok(Self::Under(prefix.to_owned()))
    }
}

impl FromStr for Resource {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let (path, node) = match text.split_once('@') {
            None => (text, None),
            Some((path, "*")) => (path, None),
            Some((path, node)) => (path, Some(node.parse().map_err(|_| ResourceError::Node)?)),
        };
        let path = path.parse()?;
        Ok(Self { path, node })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            PathPattern::Exact(path) => f.write_str(path)?,
            PathPattern::Under(prefix) => write!(f, "{prefix}*")?,
        }
        match self.node {
            Some(node) => write!(f, "@{node}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resource({self})")
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> Self {
        resource.to_string()
    }
}

/// For decoding: only the text that [`Resource`] itself prints, as it is part of signed bytes.
impl TryFrom<String> for Resource {
    type Error = ResourceError;

    fn try_from(text: String) -> Result<Self, ResourceError> {
        let resource: Self = text.parse()?;
        if resource.to_string() == text {
            Ok(resource)
        } else {
            Err(ResourceError::Node)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn parse(text: &str) -> Resource {
        text.parse().unwrap()
    }

    #[test]
    fn texts_round_trip() {
        let node = Identity::from_seed(&[1; 32]).node_id();
        for text in [
            "*",
            "agent/*",
            "agent/kernel.create",
            "agent/kernel.*",
            "chan/a:1/b-c_d",
        ] {
            assert_eq!(parse(text).to_string(), text);
            assert_eq!(parse(&format!("{text}@*")), parse(text));
            let bound = format!("{text}@{node}");
            assert_eq!(parse(&bound).to_string(), bound);
            assert_eq!(parse(text).on(node), parse(&bound));
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        let long = "a".repeat(MAX_RESOURCE_PATH + 1);
        for text in [
            "", "/", "a/", "/a", "a//b", "a*", "a/*/b", "**", "*/*", "a b", "a/..", ".", ".*",
            "/*", "a/.*", "@*", "ä", &long,
        ] {
            assert_eq!(
                text.parse::<Resource>(),
                Err(ResourceError::Path),
                "{text:?}"
            );
        }
        for text in ["a@", "a@b", "a@*b", "a@*@*"] {
            assert_eq!(
                text.parse::<Resource>(),
                Err(ResourceError::Node),
                "{text:?}"
            );
        }
    }

    #[test]
    fn matching() {
        let [one, two] = [1, 2].map(|n| Identity::from_seed(&[n; 32]).node_id());
        for (pattern, path, expected) in [
            ("*", "agent/kernel.create", true),
            ("agent/*", "agent/kernel.create", true),
            ("agent/*", "agent", false),
            ("agent/*", "agents/x", false),
            ("agent/kernel.*", "agent/kernel.create", true),
            ("agent/kernel.*", "agent/kernels", false),
            ("agent/kernel.create", "agent/kernel.create", true),
            ("agent/kernel.create", "agent/kernel.creat", false),
            ("agent/*", "agent/*", false),
            ("agent/*", "agent/../manager/x", false),
            ("*", "", false),
        ] {
            assert_eq!(
                parse(pattern).matches(path, &one),
                expected,
                "{pattern} {path}"
            );
            let bound = parse(pattern).on(one);
            assert_eq!(bound.matches(path, &one), expected);
            assert!(!bound.matches(path, &two));
        }
    }

    #[test]
    fn covering() {
        for (wide, narrow, expected) in [
            ("*", "*", true),
            ("*", "agent/*", true),
            ("agent/*", "*", false),
            ("agent/*", "agent/kernel.*", true),
            ("agent/*", "agent", false),
            ("agent/kernel.*", "agent/*", false),
            ("agent/kernel.*", "agent/kernel.stop", true),
            ("agent/kernel.stop", "agent/kernel.stop", true),
            ("agent/kernel.stop", "agent/kernel.*", false),
        ] {
            assert_eq!(
                parse(wide).covers(&parse(narrow)),
                expected,
                "{wide} {narrow}"
            );
        }
        let [one, two] = [1, 2].map(|n| Identity::from_seed(&[n; 32]).node_id());
        let any = Resource::any();
        assert!(any.covers(&any.clone().on(one)));
        assert!(any.clone().on(one).covers(&any.clone().on(one)));
        assert!(!any.clone().on(one).covers(&any.clone().on(two)));
        assert!(!any.clone().on(one).covers(&any));
    }

    #[test]
    fn only_the_printed_form_decodes() {
        let encoded = |text: &str| postcard::to_allocvec(text).unwrap();
        assert!(postcard::from_bytes::<Resource>(&encoded("agent/*")).is_ok());
        assert!(postcard::from_bytes::<Resource>(&encoded("agent/*@*")).is_err());
    }
}
