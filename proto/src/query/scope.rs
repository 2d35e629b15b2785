//! Who finds a node: reserved tags that narrow it, and the view of whoever asks.
//!
//! `scope:subnet-local` shows a node to its own subnet, `scope:tenant:<id>` to these tenants,
//! `scope:region:<name>` to these regions. Of several kinds on one node the strictest counts, in
//! this order; several tags of one kind add up. `scope:global`, or no such tag, shows it to all. A
//! `scope:` tag that is none of these hides the node as `scope:subnet-local` does: a misspelt
//! narrowing must not widen.
//!
//! Scopes keep lists tidy; they are no access control. Tokens say who may do what.

mod filter;
mod text;

use std::collections::BTreeSet;

use crate::announcement::{Announcement, Subnet};
pub use filter::{ScopeFilter, ScopeFilterError};

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
    /// The nodes of this subnet; of none, those without one that are not narrowed to it either.
    Of(Option<Subnet>),
}

/// The tags of a node that decide who finds it: those of the strictest kind that it has, in order.
/// None of a node that is not narrowed.
pub fn narrowing_tags(announcement: &Announcement) -> Vec<&str> {
    let tags = announcement.tags.iter().map(String::as_str);
    let narrowing: Vec<_> = tags
        .filter_map(|tag| Some((Narrowing::by(tag)?.rank(), tag)))
        .collect();
    let strictest = narrowing.iter().map(|(rank, _)| *rank).min();
    let of_it = narrowing
        .into_iter()
        .filter(|(rank, _)| Some(*rank) == strictest);
    of_it.map(|(_, tag)| tag).collect()
}

/// What one tag does to its node.
enum Narrowing<'a> {
    Subnet,
    Tenant(&'a str),
    Region(&'a str),
}

impl<'a> Narrowing<'a> {
    fn by(tag: &'a str) -> Option<Self> {
        let scope = tag.strip_prefix("scope:")?;
        match scope.split_once(':') {
            Some(("tenant", id)) if !id.is_empty() => Some(Self::Tenant(id)),
            Some(("region", name)) if !name.is_empty() => Some(Self::Region(name)),
            None if scope == "global" => None,
            _ => Some(Self::Subnet),
        }
    }

    /// 0 is the strictest.
    fn rank(&self) -> u8 {
        match self {
            Self::Subnet => 0,
            Self::Tenant(_) => 1,
            Self::Region(_) => 2,
        }
    }
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
            Shown::Of(subnet) => {
                let homeless = subnet.is_none() && groups.any(|group| group == Group::Local);
                announcement.subnet == subnet && !homeless
            }
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
            ScopeFilter::SameSubnet => return Shown::Of(asker.subnet.clone()),
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
        for narrowing in announcement
            .tags
            .iter()
            .filter_map(|tag| Narrowing::by(tag))
        {
            match narrowing {
                Narrowing::Subnet => return Self::Subnet(announcement.subnet.clone()),
                Narrowing::Tenant(id) => tenants.insert(id.to_owned()),
                Narrowing::Region(name) => regions.insert(name.to_owned()),
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
            (&[][..], None, "yyy-yy"),
            (&[], Some("4"), "yyy-yy"),
            (&[], Some("3.7"), "yyyyyy"),
            (&["scope:global", "prod"], None, "yyy-yy"),
            (&["scope:subnet-local"], Some("3.7"), "y--y--"),
            (&["scope:subnet-local"], Some("3.7.1"), "------"),
            (&["scope:subnet-local"], None, "------"),
            (&["scope:tenant:acme"], None, "yy--y-"),
            (&["scope:tenant:other"], None, "-y--y-"),
            (&["scope:tenant:other"], Some("3.7"), "-y-yy-"),
            (&["scope:tenant:a", "scope:tenant:acme"], None, "yy--y-"),
            (&["scope:region:eu"], None, "yy---y"),
            (&["scope:region:us"], None, "-y----"),
            (&["scope:region:us"], Some("3.7"), "-y-y--"),
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
    fn the_tags_that_decide_are_named() {
        for (tags, deciding) in [
            (&["prod"][..], &[][..]),
            (&["scope:global"], &[]),
            (
                &["scope:region:eu", "scope:region:us"],
                &["scope:region:eu", "scope:region:us"],
            ),
            (&["scope:region:eu", "scope:tenant:a"], &["scope:tenant:a"]),
            (&["scope:oops", "scope:tenant:a"], &["scope:oops"]),
        ] {
            assert_eq!(narrowing_tags(&node(tags, None)), deciding);
        }
    }

    /// The sentences of the seed's "Scoped discovery", one by one.
    mod seed {
        use super::*;

        fn shows(kind: &str, subnet: Option<&str>, node: &Announcement) -> bool {
            let asker = Asker {
                subnet: subnet.map(|s| s.parse().unwrap()),
                ..Asker::default()
            };
            let filter = serde_json::from_str(kind).unwrap();
            View { asker, filter }.shows(node)
        }

        const ANY: &str = r#"{"kind": "any"}"#;
        const GLOBAL_ONLY: &str = r#"{"kind": "global_only"}"#;
        const SAME_SUBNET: &str = r#"{"kind": "same_subnet"}"#;
        const OEM: &str = r#"{"kind": "tenant", "tenant": "oem-123"}"#;
        const EU: &str = r#"{"kind": "region", "region": "eu"}"#;

        #[test]
        fn a_pool_is_advertised_to_one_tenant_only() {
            let pool = node(&["model:llama3-70b", "scope:tenant:oem-123"], None);
            assert!(shows(OEM, None, &pool));
            let others = r#"{"kind": "tenant", "tenant": "oem-124"}"#;
            assert!(!shows(others, None, &pool) && !shows(EU, None, &pool));
            assert!(!shows(GLOBAL_ONLY, None, &pool));
        }

        #[test]
        fn a_tenants_query_returns_untagged_peers_too() {
            let untagged = node(&["model:llama3-70b"], None);
            for permissive in [ANY, GLOBAL_ONLY, OEM, EU] {
                assert!(shows(permissive, None, &untagged), "{permissive}");
            }
        }

        #[test]
        fn subnet_local_is_visible_only_under_same_subnet() {
            let local = node(&["scope:subnet-local"], Some("3.7"));
            for kind in [ANY, GLOBAL_ONLY, OEM, EU] {
                assert!(!shows(kind, Some("3.7"), &local), "{kind}");
            }
            assert!(shows(SAME_SUBNET, Some("3.7"), &local));
            assert!(!shows(SAME_SUBNET, Some("3"), &local));
            assert!(!shows(SAME_SUBNET, None, &local));
        }

        #[test]
        fn same_subnet_means_nodes_of_that_subnet() {
            let there = node(&["scope:tenant:oem-123"], Some("3.7"));
            assert!(shows(SAME_SUBNET, Some("3.7"), &there));
            let elsewhere = node(&[], Some("4"));
            assert!(!shows(SAME_SUBNET, Some("3.7"), &elsewhere));
            // Without subnets the mesh is one.
            assert!(shows(SAME_SUBNET, None, &node(&[], None)));
            assert!(!shows(
                SAME_SUBNET,
                None,
                &node(&["scope:subnet-local"], None)
            ));
        }

        #[test]
        fn the_plural_kinds_take_lists() {
            let eu = node(&["scope:region:eu"], None);
            let both = r#"{"kind": "regions", "regions": ["us", "eu"]}"#;
            assert!(shows(both, None, &eu) && shows(EU, None, &eu));
            let other = r#"{"kind": "regions", "regions": ["us"]}"#;
            assert!(!shows(other, None, &eu));
            let tenants = r#"{"kind": "tenants", "tenants": ["a", "oem-123"]}"#;
            assert!(shows(tenants, None, &node(&["scope:tenant:oem-123"], None)));
        }

        #[test]
        fn the_strictest_scope_wins() {
            let all = [
                "scope:region:eu",
                "scope:tenant:oem-123",
                "scope:subnet-local",
            ];
            let strictest = node(&all, Some("3.7"));
            assert!(!shows(OEM, None, &strictest) && !shows(EU, None, &strictest));
            assert!(shows(SAME_SUBNET, Some("3.7"), &strictest));
            let tenant = node(&all[..2], None);
            assert!(shows(OEM, None, &tenant) && !shows(EU, None, &tenant));
        }
    }
}
