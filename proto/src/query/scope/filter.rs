//! What the asker of a look-up wants to see, as Rust, JSON and postcard have it.
//!
//! JSON, as other languages write it: `{"kind": "any"}`, `{"kind": "global_only"}`,
//! `{"kind": "same_subnet"}`, `{"kind": "tenant", "tenant": "oem-123"}`,
//! `{"kind": "tenants", "tenants": ["a", "b"]}`, `{"kind": "region", "region": "eu"}`,
//! `{"kind": "regions", "regions": ["eu", "us"]}`; beyond these, `own` and `everything`.

use std::collections::BTreeSet;

use meshwork_identity::bounded_vec;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the asker wants to see. Nodes that are not narrowed are shown by every choice but
/// [`ScopeFilter::SameSubnet`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ScopeFilter {
    /// Every node, narrowed or not: the operator's view.
    Everything,
    /// Every node but those that are narrowed to a subnet, whatever tenants and regions they name.
    Any,
    /// Nodes that are not narrowed, and no others.
    GlobalOnly,
    /// All that is narrowed to the asker's own subnet, tenants or region.
    #[default]
    Own,
    /// Nodes of the asker's own subnet, whatever else they are narrowed to, and no others. Who has no
    /// subnet sees those that have none either.
    SameSubnet,
    /// What is narrowed to one of these tenants.
    Tenants(BTreeSet<String>),
    /// What is narrowed to one of these regions.
    Regions(BTreeSet<String>),
}

/// Most tenants or regions in one filter.
pub(super) const MAX_NAMES: usize = 256;

/// A filter as postcard has it.
#[derive(Serialize, Deserialize)]
enum WireFilter {
    Everything,
    Any,
    GlobalOnly,
    Own,
    SameSubnet,
    Tenants(#[serde(deserialize_with = "bounded_vec::<_, _, MAX_NAMES>")] Vec<String>),
    Regions(#[serde(deserialize_with = "bounded_vec::<_, _, MAX_NAMES>")] Vec<String>),
}

impl Serialize for ScopeFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            RawFilter::from(self).serialize(serializer)
        } else {
            WireFilter::from(self).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ScopeFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let filter = if deserializer.is_human_readable() {
            Self::try_from(RawFilter::deserialize(deserializer)?)
        } else {
            Self::try_from(WireFilter::deserialize(deserializer)?)
        };
        filter.map_err(serde::de::Error::custom)
    }
}

/// A filter as JSON has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a scope object such as {\"kind\": \"tenant\", \"tenant\": \"oem-123\"}")]
struct RawFilter {
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenants: Option<BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regions: Option<BTreeSet<String>>,
}

/// Why what was sent is no scope filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeFilterError {
    /// There is no such kind.
    #[error(
        "`{0}` is no kind of scope: use any, global_only, same_subnet, tenant, tenants, region, \
         regions, own or everything"
    )]
    Kind(String),
    /// The kind needs another key, or does not take one that is there.
    #[error("a scope of kind `{kind}` has {wanted}, and nothing else")]
    Keys {
        /// The kind.
        kind: String,
        /// What it has.
        wanted: &'static str,
    },
    /// A name is empty, or there is none, or there are too many.
    #[error("a scope names 1 to {MAX_NAMES} tenants or regions, none of them empty")]
    Names,
}

impl TryFrom<RawFilter> for ScopeFilter {
    type Error = ScopeFilterError;

    fn try_from(raw: RawFilter) -> Result<Self, ScopeFilterError> {
        let RawFilter {
            kind,
            tenant,
            tenants,
            region,
            regions,
        } = raw;
        let plain = match kind.as_str() {
            "any" => Some(Self::Any),
            "global_only" => Some(Self::GlobalOnly),
            "same_subnet" => Some(Self::SameSubnet),
            "own" => Some(Self::Own),
            "everything" => Some(Self::Everything),
            _ => None,
        };
        let wanted = match kind.as_str() {
            "tenant" => "the key `tenant`",
            "tenants" => "the key `tenants`, a list",
            "region" => "the key `region`",
            "regions" => "the key `regions`, a list",
            _ if plain.is_some() => "no other key",
            _ => return Err(ScopeFilterError::Kind(kind)),
        };
        match (kind.as_str(), tenant, tenants, region, regions) {
            ("tenant", Some(name), None, None, None) => Ok(Self::Tenants(names([name].into())?)),
            ("tenants", None, Some(all), None, None) => Ok(Self::Tenants(names(all)?)),
            ("region", None, None, Some(name), None) => Ok(Self::Regions(names([name].into())?)),
            ("regions", None, None, None, Some(all)) => Ok(Self::Regions(names(all)?)),
            (_, None, None, None, None) if plain.is_some() => Ok(plain.unwrap_or_default()),
            _ => Err(ScopeFilterError::Keys { kind, wanted }),
        }
    }
}

fn names(names: BTreeSet<String>) -> Result<BTreeSet<String>, ScopeFilterError> {
    let fits = (1..=MAX_NAMES).contains(&names.len()) && names.iter().all(|name| !name.is_empty());
    if fits {
        Ok(names)
    } else {
        Err(ScopeFilterError::Names)
    }
}

impl From<&ScopeFilter> for RawFilter {
    fn from(filter: &ScopeFilter) -> Self {
        let kind = |kind: &str| Self {
            kind: kind.to_owned(),
            ..Self::default()
        };
        match filter {
            ScopeFilter::Everything => kind("everything"),
            ScopeFilter::Any => kind("any"),
            ScopeFilter::GlobalOnly => kind("global_only"),
            ScopeFilter::Own => kind("own"),
            ScopeFilter::SameSubnet => kind("same_subnet"),
            ScopeFilter::Tenants(names) => Self {
                tenants: Some(names.clone()),
                ..kind("tenants")
            },
            ScopeFilter::Regions(names) => Self {
                regions: Some(names.clone()),
                ..kind("regions")
            },
        }
    }
}

impl From<&ScopeFilter> for WireFilter {
    fn from(filter: &ScopeFilter) -> Self {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect();
        match filter {
            ScopeFilter::Everything => Self::Everything,
            ScopeFilter::Any => Self::Any,
            ScopeFilter::GlobalOnly => Self::GlobalOnly,
            ScopeFilter::Own => Self::Own,
            ScopeFilter::SameSubnet => Self::SameSubnet,
            ScopeFilter::Tenants(names) => Self::Tenants(list(names)),
            ScopeFilter::Regions(names) => Self::Regions(list(names)),
        }
    }
}

impl TryFrom<WireFilter> for ScopeFilter {
    type Error = ScopeFilterError;

    fn try_from(filter: WireFilter) -> Result<Self, ScopeFilterError> {
        let set = |list: Vec<String>| names(list.into_iter().collect());
        Ok(match filter {
            WireFilter::Everything => Self::Everything,
            WireFilter::Any => Self::Any,
            WireFilter::GlobalOnly => Self::GlobalOnly,
            WireFilter::Own => Self::Own,
            WireFilter::SameSubnet => Self::SameSubnet,
            WireFilter::Tenants(list) => Self::Tenants(set(list)?),
            WireFilter::Regions(list) => Self::Regions(set(list)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn filters_read_from_json() {
        for (json, filter) in [
            (r#"{"kind":"any"}"#, ScopeFilter::Any),
            (r#"{"kind":"global_only"}"#, ScopeFilter::GlobalOnly),
            (r#"{"kind":"same_subnet"}"#, ScopeFilter::SameSubnet),
            (r#"{"kind":"own"}"#, ScopeFilter::Own),
            (r#"{"kind":"everything"}"#, ScopeFilter::Everything),
            (
                r#"{"kind":"tenant","tenant":"oem-123"}"#,
                ScopeFilter::Tenants(set(&["oem-123"])),
            ),
            (
                r#"{"kind":"tenants","tenants":["a","b"]}"#,
                ScopeFilter::Tenants(set(&["a", "b"])),
            ),
            (
                r#"{"kind":"region","region":"eu"}"#,
                ScopeFilter::Regions(set(&["eu"])),
            ),
            (
                r#"{"kind":"regions","regions":["eu","us"]}"#,
                ScopeFilter::Regions(set(&["eu", "us"])),
            ),
        ] {
            assert_eq!(serde_json::from_str::<ScopeFilter>(json).unwrap(), filter);
            let written = serde_json::to_string(&filter).unwrap();
            assert_eq!(
                serde_json::from_str::<ScopeFilter>(&written).unwrap(),
                filter
            );
        }
    }

    #[test]
    fn filters_that_mean_nothing_are_refused() {
        for (json, reason) in [
            (
                r#"{"kind":"tenat","tenant":"a"}"#,
                "`tenat` is no kind of scope",
            ),
            (r#"{"kind":"tenant"}"#, "has the key `tenant`"),
            (
                r#"{"kind":"tenant","tenants":["a"]}"#,
                "has the key `tenant`",
            ),
            (
                r#"{"kind":"tenant","tenant":"a","region":"eu"}"#,
                "and nothing else",
            ),
            (r#"{"kind":"any","tenant":"a"}"#, "has no other key"),
            (r#"{"kind":"tenant","tenant":""}"#, "none of them empty"),
            (r#"{"kind":"tenants","tenants":[]}"#, "1 to 256"),
            (
                r#"{"kind":"tenant","tenant":"a","min_vram":1}"#,
                "unknown field `min_vram`",
            ),
            (r#"{"tenant":"a"}"#, "missing field `kind`"),
            (r#""any""#, "a scope object"),
        ] {
            let error = serde_json::from_str::<ScopeFilter>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn filters_travel_in_both_formats() {
        use crate::codec::{decode, encode};
        for filter in [
            ScopeFilter::Everything,
            ScopeFilter::Own,
            ScopeFilter::Tenants(set(&["a", "b"])),
            ScopeFilter::Regions(set(&["eu"])),
        ] {
            assert_eq!(
                decode::<ScopeFilter>(&encode(&filter), 100).unwrap(),
                filter
            );
        }
        let nobody = encode(&ScopeFilter::Tenants(BTreeSet::new()));
        assert!(decode::<ScopeFilter>(&nobody, 100).is_err());
        let many = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        let many = encode(&ScopeFilter::Regions(many));
        assert!(decode::<ScopeFilter>(&many, 1 << 16).is_err());
    }
}
