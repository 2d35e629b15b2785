//! How much a token lets its subject take. Agents enforce these themselves.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Most node tags in one [`Limits`].
pub const MAX_NODE_TAGS: usize = 8;
/// Most characters of a node tag.
pub const MAX_TAG_CHARS: usize = 32;

/// Upper bounds, and conditions on the node. `None` and the empty set limit nothing.
///
/// Amounts are totals over all that one subject holds on one node at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// GPU devices.
    pub gpus: Option<u32>,
    /// Thousandths of a CPU core.
    pub cpu_millis: Option<u64>,
    /// Main memory in bytes.
    pub mem_bytes: Option<u64>,
    /// Kernels.
    pub kernels: Option<u32>,
    /// Only nodes that carry all of these tags.
    pub node_tags: NodeTags,
}

impl Limits {
    /// No limit.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether these limits allow nothing that `parent` does not.
    pub fn is_within(&self, parent: &Self) -> bool {
        at_most(self.gpus, parent.gpus)
            && at_most(self.cpu_millis, parent.cpu_millis)
            && at_most(self.mem_bytes, parent.mem_bytes)
            && at_most(self.kernels, parent.kernels)
            && self.node_tags.0.is_superset(&parent.node_tags.0)
    }

    /// Whether a node with these tags may be used.
    pub fn allow_node<'a>(&self, tags: impl IntoIterator<Item = &'a str>) -> bool {
        let carried: BTreeSet<_> = tags.into_iter().collect();
        self.node_tags.iter().all(|tag| carried.contains(tag))
    }

    /// These limits, with the parent's where they name none themselves. Amounts above the parent's
    /// stay, for [`Limits::is_within`] to refuse: a wish is not quietly cut. Fails when the tags of
    /// both together are too many.
    pub fn inheriting(&self, parent: &Self) -> Result<Self, NodeTagsError> {
        let tags = self.node_tags.iter().chain(parent.node_tags.iter());
        Ok(Self {
            gpus: self.gpus.or(parent.gpus),
            cpu_millis: self.cpu_millis.or(parent.cpu_millis),
            mem_bytes: self.mem_bytes.or(parent.mem_bytes),
            kernels: self.kernels.or(parent.kernels),
            node_tags: NodeTags::new(tags)?,
        })
    }
}

/// Whether a bound is as tight as its parent, where `None` is no bound.
fn at_most<T: Ord>(child: Option<T>, parent: Option<T>) -> bool {
    match (child, parent) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(child), Some(parent)) => child <= parent,
    }
}

/// Tags that a node must carry: at most [`MAX_NODE_TAGS`], each of 1 to [`MAX_TAG_CHARS`] visible
/// ASCII characters without commas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "WireTags")]
pub struct NodeTags(BTreeSet<String>);

/// Decoded as a list, so that its length is checked before memory is set aside.
#[derive(Deserialize)]
#[serde(transparent)]
struct WireTags(
    #[serde(deserialize_with = "crate::codec::bounded_vec::<_, _, MAX_NODE_TAGS>")] Vec<String>,
);

/// The tags are too many, or one has no valid form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "at most {MAX_NODE_TAGS} node tags of 1 to {MAX_TAG_CHARS} visible ASCII characters without commas"
)]
pub struct NodeTagsError;

impl NodeTags {
    /// Checks number and form.
    pub fn new<T: Into<String>>(tags: impl IntoIterator<Item = T>) -> Result<Self, NodeTagsError> {
        let mut set = BTreeSet::new();
        for tag in tags {
            let tag = tag.into();
            let visible = tag.chars().all(|c| c.is_ascii_graphic() && c != ',');
            if !visible || tag.is_empty() || tag.len() > MAX_TAG_CHARS {
                return Err(NodeTagsError);
            }
            set.insert(tag);
            if set.len() > MAX_NODE_TAGS {
                return Err(NodeTagsError);
            }
        }
        Ok(Self(set))
    }

    /// The tags in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Number of tags.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every node will do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<WireTags> for NodeTags {
    type Error = NodeTagsError;

    fn try_from(wire: WireTags) -> Result<Self, NodeTagsError> {
        Self::new(wire.0)
    }
}

/// Tags with commas between; nothing for none.
impl fmt::Display for NodeTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.iter().collect::<Vec<_>>().join(","))
    }
}

impl FromStr for NodeTags {
    type Err = NodeTagsError;

    fn from_str(text: &str) -> Result<Self, NodeTagsError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        Self::new(text.split(',').map(str::trim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(n: u32) -> Limits {
        Limits {
            gpus: Some(n),
            ..Limits::none()
        }
    }

    #[test]
    fn only_narrower_is_within() {
        assert!(gpus(2).is_within(&Limits::none()));
        assert!(gpus(2).is_within(&gpus(2)));
        assert!(!gpus(3).is_within(&gpus(2)));
        assert!(!Limits::none().is_within(&gpus(2)));
        let tagged = |tags: &str| Limits {
            node_tags: tags.parse().unwrap(),
            ..Limits::none()
        };
        assert!(tagged("a,b").is_within(&tagged("a")));
        assert!(!tagged("a").is_within(&tagged("a,b")));
        assert!(tagged("a").allow_node(["a", "c"]));
        assert!(!tagged("a,b").allow_node(["a", "c"]));
    }

    #[test]
    fn inheriting_fills_gaps_and_keeps_wishes() {
        let parent = Limits {
            kernels: Some(4),
            ..gpus(2)
        };
        let child = gpus(1).inheriting(&parent).unwrap();
        assert_eq!((child.gpus, child.kernels), (Some(1), Some(4)));
        assert!(child.is_within(&parent));
        assert!(!gpus(3).inheriting(&parent).unwrap().is_within(&parent));
    }

    #[test]
    fn tags_are_bounded_everywhere() {
        for bad in [
            "a b",
            "a,,b",
            "ä",
            &"x".repeat(MAX_TAG_CHARS + 1),
            "1,2,3,4,5,6,7,8,9",
        ] {
            assert_eq!(bad.parse::<NodeTags>(), Err(NodeTagsError), "{bad}");
        }
        let many: Vec<_> = (0..=MAX_NODE_TAGS).map(|n| n.to_string()).collect();
        let encoded = postcard::to_allocvec(&many).unwrap();
        assert!(postcard::from_bytes::<NodeTags>(&encoded).is_err());
        let encoded = postcard::to_allocvec(&many[1..]).unwrap();
        assert!(postcard::from_bytes::<NodeTags>(&encoded).is_ok());
    }
}
