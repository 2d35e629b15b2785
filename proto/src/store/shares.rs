//! Who is kept when there are more nodes than there is room for: every admission gets as much as its
//! siblings.
//!
//! Nodes hang in a tree: below the mesh's authority those that it admitted itself, below each of them
//! those that it delegated a token to, and so on. When somebody has to leave, it is from the largest
//! branch, and of that from its largest, down to a node that admitted nobody; of branches of one size
//! the one with the largest id. So whoever makes up nodes of its own pushes out its own, however deep it
//! nests them. Who is left depends on the nodes alone and not on the order in which they came: all
//! members of a full mesh keep the same ones, and their digests agree.
//!
//! Ids can be chosen small by trying; that decides between siblings, and no more.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_identity::{NodeId, Token};

/// From the authority's own admission down to the node itself.
pub(super) type Path = Box<[NodeId]>;

/// Where a token hangs its subject.
pub(super) fn path_of(token: &Token) -> Path {
    let subjects = token.links().iter().map(|link| link.claims().subject);
    subjects.collect()
}

/// The tree of the nodes that share some room.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// The places that somebody hangs below, by their paths; the authority's is the empty one.
    branches: BTreeMap<Path, Branch>,
}

#[derive(Debug, Default)]
struct Branch {
    /// What hangs directly below, with the number of nodes in it and below.
    below: BTreeSet<(usize, NodeId)>,
    /// Nodes in this place and below.
    size: usize,
}

impl Shares {
    /// Adds a node that is not there.
    pub(super) fn add(&mut self, path: &[NodeId]) {
        self.resize(path, |size| size + 1);
    }

    /// Takes out a node that is there.
    pub(super) fn remove(&mut self, path: &[NodeId]) {
        self.resize(path, |size| size.saturating_sub(1));
    }

    /// Changes the sizes of all places on a path, from the last to the first.
    fn resize(&mut self, path: &[NodeId], change: impl Fn(usize) -> usize) {
        for depth in (0..path.len()).rev() {
            let (above, here, name) = (&path[..depth], &path[..=depth], path[depth]);
            let old = self.size(above, here);
            let new = change(old);
            if let Some(branch) = self.branches.get_mut(here) {
                branch.size = new;
                if branch.below.is_empty() {
                    self.branches.remove(here);
                }
            }
            let below = &mut self.branch(above).below;
            below.remove(&(old, name));
            if new > 0 {
                below.insert((new, name));
            }
        }
    }

    /// The branch of a place; made, if nobody hangs below it yet.
    fn branch(&mut self, path: &[NodeId]) -> &mut Branch {
        let size = path
            .split_last()
            .map_or(0, |(_, above)| self.size(above, path));
        let branch = self.branches.entry(path.into());
        branch.or_insert_with(|| Branch {
            below: BTreeSet::new(),
            size,
        })
    }

    /// The size of the place `here`, directly below `above`.
    fn size(&self, above: &[NodeId], here: &[NodeId]) -> usize {
        if let Some(branch) = self.branches.get(here) {
            return branch.size;
        }
        let name = here.last().expect("a place below another has a name");
        let above = self.branches.get(above);
        usize::from(above.is_some_and(|above| above.below.contains(&(1, *name))))
    }

    /// Who has to leave first.
    pub(super) fn last(&self) -> Option<NodeId> {
        let mut at: Vec<NodeId> = Vec::new();
        while let Some(branch) = self.branches.get(&at[..]) {
            let (_, name) = branch.below.last()?;
            at.push(*name);
        }
        at.pop()
    }

    /// Whether a newcomer would stay, if somebody had to leave for it.
    pub(super) fn keeps(&self, path: &[NodeId]) -> bool {
        for depth in 0..path.len() {
            let (above, name) = (&path[..depth], path[depth]);
            let size = self.size(above, &path[..=depth]) + 1;
            let siblings = self.branches.get(above).map(|branch| &branch.below);
            let others = siblings.into_iter().flatten().rev();
            let largest = others.into_iter().find(|(_, other)| *other != name);
            if largest.is_some_and(|largest| *largest > (size, name)) {
                return true;
            }
        }
        // What it admitted itself leaves before it.
        self.branches.contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn node(seed: u8) -> NodeId {
        Identity::from_seed(&[seed; 32]).node_id()
    }

    fn path(seeds: &[u8]) -> Vec<NodeId> {
        seeds.iter().map(|seed| node(*seed)).collect()
    }

    /// What is left of nodes that come in this order, when there is room for `most`.
    fn left(order: &[Vec<NodeId>], most: usize) -> BTreeSet<NodeId> {
        let mut shares = Shares::default();
        let mut held: BTreeMap<NodeId, &Vec<NodeId>> = BTreeMap::new();
        for path in order {
            let name = *path.last().unwrap();
            let stays = held.len() < most || shares.keeps(path);
            shares.add(path);
            held.insert(name, path);
            if held.len() > most {
                let last = shares.last().unwrap();
                assert_eq!(last != name, stays, "`keeps` and `last` agree");
                shares.remove(held[&last]);
                held.remove(&last);
            }
        }
        for path in held.values() {
            shares.remove(path);
        }
        assert_eq!(shares.last(), None);
        assert!(shares.branches.len() <= 1, "{shares:?}");
        held.into_keys().collect()
    }

    /// Every branch gets as much as its siblings, however large it would like to be.
    #[test]
    fn the_largest_branch_gives_way() {
        let honest: Vec<_> = (1..=6).map(|n| path(&[100, n])).collect();
        let made_up: Vec<_> = (10..=40).map(|n| path(&[101, n])).collect();
        let both = [&[path(&[100])], &honest[..], &made_up].concat();
        let kept = left(&both, 14);
        assert!(
            honest
                .iter()
                .all(|path| kept.contains(path.last().unwrap()))
        );
        // Deep below one of the honest nodes' siblings, they push out each other, too.
        let nested: Vec<_> = (10..=40).map(|n| path(&[100, 7, 8, n])).collect();
        let both = [&[path(&[100])], &honest[..], &nested].concat();
        let kept = left(&both, 10);
        assert!(
            honest
                .iter()
                .all(|path| kept.contains(path.last().unwrap()))
        );
        assert!(kept.contains(&node(100)), "who admits leaves last");
    }

    /// Of siblings those with the smallest ids stay.
    #[test]
    fn ids_decide_between_equals() {
        let nodes: Vec<_> = (1..=20).map(|n| path(&[n])).collect();
        let mut ids: Vec<NodeId> = nodes.iter().map(|path| path[0]).collect();
        ids.sort_unstable();
        assert_eq!(left(&nodes, 5), ids[..5].iter().copied().collect());
    }

    /// In whatever order they come: a small tree of chance, in many orders of chance.
    #[test]
    fn the_order_does_not_matter() {
        let mut state = 7u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % n
        };
        for _ in 0..40 {
            let mut paths: Vec<Vec<NodeId>> = vec![Vec::new()];
            for seed in 1..=24 {
                let mut path = paths[below(paths.len())].clone();
                if path.len() == 4 {
                    path.pop();
                }
                path.push(node(seed));
                paths.push(path);
            }
            paths.remove(0);
            let most = 1 + below(20);
            let expected = left(&paths, most);
            assert_eq!(expected.len(), most);
            for _ in 0..10 {
                for i in (1..paths.len()).rev() {
                    paths.swap(i, below(i + 1));
                }
                assert_eq!(left(&paths, most), expected, "room for {most}");
            }
        }
    }
}
