//! Who finds a node: reserved tags that narrow it, and the view of whoever asks.
//!
//! `scope:subnet-local` shows a node to its own subnet, `scope:tenant:<id>` to these tenants,
//! `scope:region:<name>` to these regions. Of several kinds on one node the strictest counts, in
//! this order; several tags of one kind add up. `scope:global`, or no such tag, shows it to all. A
//! `scope:` tag that is none of these hides the node as `scope:subnet-local` does: a misspelt
//! narrowing must not widen.
//!
//! Scopes keep lists tidy; they are no access control. Tokens say who may do what.

use std::collections::BTreeSet;

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

/// What the asker wants to see. Every choice but the first two shows nodes that are not narrowed,
/// too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ScopeFilter {
    /// Every node, narrowed or not: the operator's view.
    Everything,
    /// Nodes that are not narrowed, and no others.
    GlobalOnly,
    /// All that is narrowed to the asker's own subnet, tenants or region.
    #[default]
    Any,
    /// What is narrowed to the asker's subnet.
    SameSubnet,
    /// What is narrowed to one of these tenants.
    Tenants(BTreeSet<String>),
    /// What is narrowed to one of these regions.
    Regions(BTreeSet<String>),
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

/// One group of nodes by audience: nodes are indexed by these, views are unions of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Global,
    Subnet(Subnet),
    Tenant(String),
    Region(String),
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
            filter: ScopeFilter::Any,
        }
    }

    /// Whether this view shows a node.
    pub fn shows(&self, announcement: &Announcement) -> bool {
        match self.groups() {
            None => true,
            Some(groups) => Audience::of(announcement)
                .groups()
                .any(|g| groups.contains(&g)),
        }
    }

    /// The groups that the view shows; nothing when it shows every node.
    pub(crate) fn groups(&self) -> Option<BTreeSet<Group>> {
        let subnet = || self.asker.subnet.iter().cloned().map(Group::Subnet);
        let tenants = |names: &BTreeSet<String>| -> Vec<Group> {
            names.iter().cloned().map(Group::Tenant).collect()
        };
        let mut groups = BTreeSet::from([Group::Global]);
        match &self.filter {
            ScopeFilter::Everything => return None,
            ScopeFilter::GlobalOnly => {}
            ScopeFilter::Any => {
                groups.extend(subnet());
                groups.extend(tenants(&self.asker.tenants));
                groups.extend(self.asker.region.iter().cloned().map(Group::Region));
            }
            ScopeFilter::SameSubnet => groups.extend(subnet()),
            ScopeFilter::Tenants(names) => groups.extend(tenants(names)),
            ScopeFilter::Regions(names) => groups.extend(names.iter().cloned().map(Group::Region)),
        }
        Some(groups)
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

    /// Its groups. A node that is subnet-local without a subnet is in none: nobody finds it.
    pub(crate) fn groups(self) -> Box<dyn Iterator<Item = Group>> {
        match self {
            Self::Global => Box::new([Group::Global].into_iter()),
            Self::Subnet(subnet) => Box::new(subnet.into_iter().map(Group::Subnet)),
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
        let any = view(ScopeFilter::Any);
        let global = view(ScopeFilter::GlobalOnly);
        let same = view(ScopeFilter::SameSubnet);
        let tenants = view(ScopeFilter::Tenants(set(&["acme", "other"])));
        let regions = view(ScopeFilter::Regions(set(&["eu"])));
        for (tags, subnet, shown) in [
            (&[][..], None, [true; 5]),
            (&["scope:global", "prod"], None, [true; 5]),
            (
                &["scope:subnet-local"],
                Some("3.7"),
                [true, false, true, false, false],
            ),
            (&["scope:subnet-local"], Some("3.7.1"), [false; 5]),
            (&["scope:subnet-local"], None, [false; 5]),
            (
                &["scope:tenant:acme"],
                None,
                [true, false, false, true, false],
            ),
            (
                &["scope:tenant:other"],
                None,
                [false, false, false, true, false],
            ),
            (
                &["scope:tenant:a", "scope:tenant:acme"],
                None,
                [true, false, false, true, false],
            ),
            (
                &["scope:region:eu"],
                None,
                [true, false, false, false, true],
            ),
            (&["scope:region:us"], None, [false; 5]),
            (&["scope:tenant:zzz", "scope:region:eu"], None, [false; 5]),
            (
                &["scope:tenant:acme", "scope:subnet-local"],
                Some("1"),
                [false; 5],
            ),
            (&["scope:tenants:acme"], None, [false; 5]),
            (&["scope:tenant:"], None, [false; 5]),
        ] {
            let node = node(tags, subnet);
            let views = [&any, &global, &same, &tenants, &regions];
            assert_eq!(views.map(|v| v.shows(&node)), shown, "{tags:?} {subnet:?}");
            assert!(View::everything().shows(&node));
        }
    }
}
