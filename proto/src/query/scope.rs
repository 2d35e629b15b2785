//! Who finds a node: reserved tags that narrow it, and the view of whoever asks.
//!
//! `scope:subnet-local` shows a node to its own subnet, `scope:tenant:<id>` to these tenants,
//! `scope:region:<name>` to these regions. Of several kinds on one node the strictest counts, in
//! this order; several tags of one kind add up. `scope:global`, or no such tag, shows it to all. A
//! `scope:` tag that is none of these hides the node as `scope:subnet-local` does: a misspelt
//! narrowing must not widen.
//!
//! A filter comes from other languages as JSON: `{"kind": "any"}`, `{"kind": "global_only"}`,
//! `{"kind": "same_subnet"}`, `{"kind": "tenant", "tenant": "oem-123"}`,
//! `{"kind": "tenants", "tenants": ["a", "b"]}`, `{"kind": "region", "region": "eu"}`,
//! `{"kind": "regions", "regions": ["eu", "us"]}`; beyond these, `own` and `everything`.
//!
//! Scopes keep lists tidy; they are no access control. Tokens say who may do what.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::announcement::{Announcement, Subnet};

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// Its place in the subnet tree.
    pub subnet: Option<Subnet>,
    /// The tenants that it belongs to.
    pub tenants: BTreeSet<String>,
    /// Its region.
    pub region: Option<String>,
}

/// What the asker wants to see. Every choice shows nodes that are not narrowed, too. Written and read
/// as JSON only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawFilter", into = "RawFilter")]
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
    /// What is narrowed to the asker's subnet.
    SameSubnet,
    /// What is narrowed to one of these tenants.
    Tenants(BTreeSet<String>),
    /// What is narrowed to one of these regions.
    Regions(BTreeSet<String>),
}

/// Most tenants or regions in one filter.
const MAX_NAMES: usize = 256;

/// A filter as it is written.
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

/// Why JSON is no scope filter.
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

impl From<ScopeFilter> for RawFilter {
    fn from(filter: ScopeFilter) -> Self {
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
                tenants: Some(names),
                ..kind("tenants")
            },
            ScopeFilter::Regions(names) => Self {
                regions: Some(names),
                ..kind("regions")
            },
        }
    }
}

/// Who asks, and what they want to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Who asks.
    pub asker: Asker,
    /// What they want to see.
    pub filter: ScopeFilter,
}

/// Whom a node is narrowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Audience {
    Global,
    Subnet(Option<Subnet>),
    Tenants(BTreeSet<String>),
    Regions(BTreeSet<String>),
}

/// One group of nodes by audience: nodes are indexed by these, views are made of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Global,
    /// Narrowed to its subnet, whichever that is.
    Local,
    Subnet(Subnet),
    Tenant(String),
    Region(String),
}

/// What a view shows, by groups.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    All,
    AllBut(Group),
    OneOf(BTreeSet<Group>),
}

impl View {
    /// Every node: the operator's view.
    pub fn everything() -> Self {
        Self {
            asker: Asker::default(),
            filter: ScopeFilter::Everything,
        }
    }

    /// All that `asker` is meant to find.
    pub fn of(asker: Asker) -> Self {
        Self {
            asker,
            filter: ScopeFilter::Own,
        }
    }

    /// Whether this view shows a node.
    pub fn shows(&self, announcement: &Announcement) -> bool {
        let mut groups = Audience::of(announcement).groups();
        match self.shown() {
            Shown::All => true,
            Shown::AllBut(hidden) => groups.all(|group| group != hidden),
            Shown::OneOf(shown) => groups.any(|group| shown.contains(&group)),
        }
    }

    /// What the view shows, by groups.
    pub(crate) fn shown(&self) -> Shown {
        let asker = &self.asker;
        let subnet = asker.subnet.iter().cloned().map(Group::Subnet);
        let tenants = |names: &BTreeSet<String>| -> Vec<Group> {
            names.iter().cloned().map(Group::Tenant).collect()
        };
        let regions = |names: &BTreeSet<String>| -> Vec<Group> {
            names.iter().cloned().map(Group::Region).collect()
        };
        let narrowed: Vec<Group> = match &self.filter {
            ScopeFilter::Everything => return Shown::All,
            ScopeFilter::Any => return Shown::AllBut(Group::Local),
            ScopeFilter::GlobalOnly => Vec::new(),
            ScopeFilter::Own => subnet
                .chain(tenants(&asker.tenants))
                .chain(asker.region.iter().cloned().map(Group::Region))
                .collect(),
            ScopeFilter::SameSubnet => subnet.collect(),
            ScopeFilter::Tenants(names) => tenants(names),
            ScopeFilter::Regions(names) => regions(names),
        };
        Shown::OneOf(narrowed.into_iter().chain([Group::Global]).collect())
    }
}

impl Audience {
    /// The strictest audience that a node's tags name.
    pub(crate) fn of(announcement: &Announcement) -> Self {
        let (mut tenants, mut regions) = (BTreeSet::new(), BTreeSet::new());
        for tag in &announcement.tags {
            let Some(scope) = tag.strip_prefix("scope:") else {
                continue;
            };
            match scope.split_once(':') {
                Some(("tenant", id)) if !id.is_empty() => tenants.insert(id.to_owned()),
                Some(("region", name)) if !name.is_empty() => regions.insert(name.to_owned()),
                None if scope == "global" => false,
                _ => return Self::Subnet(announcement.subnet.clone()),
            };
        }
        if !tenants.is_empty() {
            Self::Tenants(tenants)
        } else if !regions.is_empty() {
            Self::Regions(regions)
        } else {
            Self::Global
        }
    }

    /// Its groups. A node that is subnet-local without a subnet is in no group that a filter names:
    /// only the operator finds it.
    pub(crate) fn groups(self) -> Box<dyn Iterator<Item = Group>> {
        match self {
            Self::Global => Box::new([Group::Global].into_iter()),
            Self::Subnet(subnet) => {
                let subnet = subnet.into_iter().map(Group::Subnet);
                Box::new(subnet.chain([Group::Local]))
            }
            Self::Tenants(names) => Box::new(names.into_iter().map(Group::Tenant)),
            Self::Regions(names) => Box::new(names.into_iter().map(Group::Region)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(tags: &[&str], subnet: Option<&str>) -> Announcement {
        Announcement {
            tags: tags.iter().map(ToString::to_string).collect(),
            subnet: subnet.map(|s| s.parse().unwrap()),
            ..crate::announcement::Announcement::default()
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_strictest_scope_decides_who_finds_a_node() {
        let asker = Asker {
            subnet: Some("3.7".parse().unwrap()),
            tenants: set(&["acme"]),
            region: Some("eu".into()),
        };
        let view = |filter| View {
            asker: asker.clone(),
            filter,
        };
        let own = view(ScopeFilter::Own);
        let any = view(ScopeFilter::Any);
        let global = view(ScopeFilter::GlobalOnly);
        let same = view(ScopeFilter::SameSubnet);
        let tenants = view(ScopeFilter::Tenants(set(&["acme", "other"])));
        let regions = view(ScopeFilter::Regions(set(&["eu"])));
        // As seen by: own, any, global_only, same_subnet, tenants, regions.
        for (tags, subnet, shown) in [
            (&[][..], None, "yyyyyy"),
            (&[], Some("4"), "yyyyyy"),
            (&["scope:global", "prod"], None, "yyyyyy"),
            (&["scope:subnet-local"], Some("3.7"), "y--y--"),
            (&["scope:subnet-local"], Some("3.7.1"), "------"),
            (&["scope:subnet-local"], None, "------"),
            (&["scope:tenant:acme"], None, "yy--y-"),
            (&["scope:tenant:other"], None, "-y--y-"),
            (&["scope:tenant:a", "scope:tenant:acme"], None, "yy--y-"),
            (&["scope:region:eu"], None, "yy---y"),
            (&["scope:region:us"], None, "-y----"),
            (&["scope:tenant:zzz", "scope:region:eu"], None, "-y----"),
            (
                &["scope:tenant:acme", "scope:subnet-local"],
                Some("1"),
                "------",
            ),
            (
                &["scope:tenant:acme", "scope:subnet-local"],
                Some("3.7"),
                "y--y--",
            ),
            (&["scope:tenants:acme"], None, "------"),
            (&["scope:tenant:"], None, "------"),
        ] {
            let node = node(tags, subnet);
            let views = [&own, &any, &global, &same, &tenants, &regions];
            let seen: String = views
                .map(|v| if v.shows(&node) { 'y' } else { '-' })
                .iter()
                .collect();
            assert_eq!(seen, shown, "{tags:?} {subnet:?}");
            assert!(View::everything().shows(&node));
        }
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
}
