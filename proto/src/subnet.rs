//! The subnet tree, and the rules by which a node's tags give it a place there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Levels of the tree.
pub const LEVELS: usize = 4;

/// 1 to 4 levels of 0–255, written `3.7.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Subnet(Vec<u8>);

impl TryFrom<Vec<u8>> for Subnet {
    type Error = String;

    fn try_from(levels: Vec<u8>) -> Result<Self, String> {
        match levels.len() {
            1..=4 => Ok(Self(levels)),
            n => Err(format!("a subnet has 1 to 4 levels, not {n}")),
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&levels.join("."))
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels: Result<Vec<u8>, _> = text.split('.').map(str::parse).collect();
        match levels {
            Ok(levels) if (1..=4).contains(&levels.len()) => Ok(Self(levels)),
            _ => Err(format!(
                "`{text}` is no subnet: write 1 to 4 levels of 0-255, like 3.7.2"
            )),
        }
    }
}

impl Subnet {
    /// The levels, the outermost first.
    pub fn levels(&self) -> &[u8] {
        &self.0
    }

    /// Whether `other` lies below this subnet. Nothing lies below itself.
    pub fn is_ancestor_of(&self, other: &Self) -> bool {
        self.0.len() < other.0.len() && other.0.starts_with(&self.0)
    }

    /// The subnet around this one; none around the outermost.
    pub fn parent(&self) -> Option<Self> {
        let (_, outer) = self.0.split_last()?;
        (!outer.is_empty()).then(|| Self(outer.to_vec()))
    }
}

/// Gives a node its place by its tags:
/// ```json
/// {"rules": [
///     {"tag_prefix": "region:", "level": 0, "values": {"eu": 1, "us": 2, "apac": 3}},
///     {"tag_prefix": "zone:", "level": 1, "values": {"a": 1, "b": 2, "c": 3}}
/// ]}
/// ```
/// puts a node with the tags `region:us` and `zone:c` into 2.3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetPolicy {
    /// In order: of two that set the same level, the later one counts.
    pub rules: Vec<SubnetRule>,
}

/// Sets one level by the tags that begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRule", into = "RawRule")]
pub struct SubnetRule {
    tag_prefix: String,
    level: u8,
    values: BTreeMap<String, u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    tag_prefix: String,
    level: u8,
    values: BTreeMap<String, u8>,
}

/// Why a rule cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetRuleError {
    /// Every tag begins with nothing.
    #[error("a subnet rule needs a tag prefix, such as `region:`")]
    NoPrefix,
    /// There is no such level.
    #[error("the subnet rule for `{prefix}` sets level {level}; there are levels 0 to 3")]
    Level {
        /// The rule's prefix.
        prefix: String,
        /// The level.
        level: u8,
    },
    /// 0 stands for a level that nothing sets.
    #[error("the subnet rule for `{prefix}` maps `{value}` to 0; use 1 to 255")]
    Zero {
        /// The rule's prefix.
        prefix: String,
        /// What it maps.
        value: String,
    },
}

impl SubnetPolicy {
    /// The place of a node with these tags; none when no rule matches.
    ///
    /// A rule matches a tag when what follows its prefix is exactly one of its values; of several
    /// tags, the smallest counts. Levels that no rule sets are 0 within the levels that are set, and
    /// left out below them.
    pub fn derive(&self, tags: &BTreeSet<String>) -> Option<Subnet> {
        let mut levels = [0; LEVELS];
        for rule in &self.rules {
            if let Some(value) = rule.value(tags) {
                levels[usize::from(rule.level)] = value;
            }
        }
        let deepest = levels.iter().rposition(|level| *level != 0)?;
        Some(Subnet(levels[..=deepest].to_vec()))
    }
}

impl SubnetRule {
    /// A rule that sets `level` (0 to 3) to what `values` (1 to 255) gives for the rest of a tag
    /// behind `tag_prefix`.
    pub fn new(
        tag_prefix: impl Into<String>,
        level: u8,
        values: BTreeMap<String, u8>,
    ) -> Result<Self, SubnetRuleError> {
        let tag_prefix = tag_prefix.into();
        let prefix = || tag_prefix.clone();
        if tag_prefix.is_empty() {
            return Err(SubnetRuleError::NoPrefix);
        }
        if usize::from(level) >= LEVELS {
            let prefix = prefix();
            return Err(SubnetRuleError::Level { prefix, level });
        }
        if let Some((value, _)) = values.iter().find(|(_, number)| **number == 0) {
            return Err(SubnetRuleError::Zero {
                prefix: prefix(),
                value: value.clone(),
            });
        }
        Ok(Self {
            tag_prefix,
            level,
            values,
        })
    }

    fn value(&self, tags: &BTreeSet<String>) -> Option<u8> {
        let behind = tags.range(self.tag_prefix.clone()..);
        let mut rests = behind.map_while(|tag| tag.strip_prefix(&self.tag_prefix));
        rests.find_map(|rest| self.values.get(rest).copied())
    }
}

impl TryFrom<RawRule> for SubnetRule {
    type Error = SubnetRuleError;

    fn try_from(raw: RawRule) -> Result<Self, SubnetRuleError> {
        Self::new(raw.tag_prefix, raw.level, raw.values)
    }
}

impl From<SubnetRule> for RawRule {
    fn from(rule: SubnetRule) -> Self {
        Self {
            tag_prefix: rule.tag_prefix,
            level: rule.level,
            values: rule.values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(policy: &str, tags: &[&str]) -> Option<String> {
        let policy: SubnetPolicy = serde_json::from_str(policy).unwrap();
        let tags = tags.iter().map(ToString::to_string).collect();
        policy.derive(&tags).map(|subnet| subnet.to_string())
    }

    /// The policy in the description of what users ask for.
    const POLICY: &str = r#"{"rules": [
        {"tag_prefix": "region:", "level": 0, "values": {"eu": 1, "us": 2, "apac": 3}},
        {"tag_prefix": "zone:", "level": 1, "values": {"a": 1, "b": 2, "c": 3}}
    ]}"#;

    #[test]
    fn tags_give_a_place() {
        for (tags, expected) in [
            (&["region:us", "zone:c"][..], Some("2.3")),
            (&["region:eu"], Some("1")),
            (&["zone:b"], Some("0.2")),
            (&["prod", "region:eu", "rack:7"], Some("1")),
            (&["region:moon"], None),
            (&["region:eu:extra"], None),
            (&["region:e"], None),
            (&["region"], None),
            (&[], None),
            // Of two tags the smaller, and one without a value counts for nothing.
            (&["region:us", "region:eu"], Some("1")),
            (&["region:au", "region:us"], Some("2")),
        ] {
            assert_eq!(place(POLICY, tags).as_deref(), expected, "{tags:?}");
        }
    }

    #[test]
    fn of_two_rules_for_one_level_the_later_that_matches_counts() {
        let policy = r#"{"rules": [
            {"tag_prefix": "region:", "level": 0, "values": {"eu": 1}},
            {"tag_prefix": "site:", "level": 0, "values": {"x": 9}},
            {"tag_prefix": "region:", "level": 2, "values": {"eu": 5}}
        ]}"#;
        assert_eq!(place(policy, &["region:eu"]).as_deref(), Some("1.0.5"));
        let both = place(policy, &["region:eu", "site:x"]);
        assert_eq!(both.as_deref(), Some("9.0.5"));
        assert_eq!(place(policy, &["site:x"]).as_deref(), Some("9"));
        assert_eq!(place(r#"{"rules": []}"#, &["region:eu"]), None);
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let rule = |rule: &str| format!(r#"{{"rules": [{rule}]}}"#);
        for (json, reason) in [
            (
                rule(r#"{"tag_prefix": "", "level": 0, "values": {}}"#),
                "needs a tag prefix",
            ),
            (
                rule(r#"{"tag_prefix": "a:", "level": 4, "values": {}}"#),
                "levels 0 to 3",
            ),
            (
                rule(r#"{"tag_prefix": "a:", "level": 0, "values": {"x": 0}}"#),
                "use 1 to 255",
            ),
            (
                rule(r#"{"tag_prefix": "a:", "level": 0, "values": {"x": 256}}"#),
                "256",
            ),
            (
                rule(r#"{"tag_prefix": "a:", "level": 0}"#),
                "missing field `values`",
            ),
            (
                rule(r#"{"tag_prefix": "a:", "level": 0, "values": {}, "prio": 1}"#),
                "unknown field `prio`",
            ),
            (r#"{"rule": []}"#.to_owned(), "unknown field `rule`"),
        ] {
            let error = serde_json::from_str::<SubnetPolicy>(&json).unwrap_err();
            assert!(error.to_string().contains(reason), "{json}: {error}");
        }
        let policy: SubnetPolicy = serde_json::from_str(POLICY).unwrap();
        let written = serde_json::to_string(&policy).unwrap();
        assert_eq!(
            serde_json::from_str::<SubnetPolicy>(&written).unwrap(),
            policy
        );
    }

    #[test]
    fn subnets_lie_within_each_other() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        assert!(subnet("3").is_ancestor_of(&subnet("3.7.2")));
        assert!(!subnet("3.7").is_ancestor_of(&subnet("3.7")));
        assert!(!subnet("3.7.2").is_ancestor_of(&subnet("3.7")));
        assert!(!subnet("3").is_ancestor_of(&subnet("4.3")));
        assert_eq!(subnet("3.7.2").parent(), Some(subnet("3.7")));
        assert_eq!(subnet("3").parent(), None);
        assert_eq!(subnet("3.7").levels(), [3, 7]);
        for text in ["", "3.", "256", "1.2.3.4.5", "a"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
