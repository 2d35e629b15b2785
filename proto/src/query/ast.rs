//! What a query is once read: a tree of `and`, `or` and `not` over tests, in one normal form.

use std::fmt;

use super::field::{Field, GpuField, NodeField, Subject};
use super::value::{Op, Test};
use crate::announcement::Gpu;

/// `and`, `or` and `not` over leaves. In normal form no `And` stands directly in an `And`, no `Or`
/// in an `Or`, and both have two items or more; the empty `And`, at the top only, is "everything".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree<L> {
    And(Vec<Tree<L>>),
    Or(Vec<Tree<L>>),
    Not(Box<Tree<L>>),
    Leaf(L),
}

/// One condition on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeLeaf {
    /// On one of its fields.
    Test(Test<NodeField>),
    /// Some one GPU satisfies the tree.
    Gpu(Tree<Test<GpuField>>),
    /// On the number of GPUs that satisfy the tree (none: of all).
    Count(Option<Tree<Test<GpuField>>>, Op, u64),
}

/// A condition as it was written, before `gpu.…` tests found together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    /// Complete in itself.
    Done(NodeLeaf),
    /// A `gpu.…` test outside brackets.
    Bare(Test<GpuField>),
}

impl<L> Tree<L> {
    /// All of `items`, in normal form.
    pub(super) fn and(items: Vec<Self>) -> Self {
        Self::join(items, Self::And, |tree| match tree {
            Self::And(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// One of `items`, in normal form.
    pub(super) fn or(items: Vec<Self>) -> Self {
        Self::join(items, Self::Or, |tree| match tree {
            Self::Or(inner) => Ok(inner),
            other => Err(other),
        })
    }

    fn join(
        items: Vec<Self>,
        make: fn(Vec<Self>) -> Self,
        open: fn(Self) -> Result<Vec<Self>, Self>,
    ) -> Self {
        let mut flat = Vec::with_capacity(items.len());
        for item in items {
            match open(item) {
                Ok(inner) => flat.extend(inner),
                Err(other) => flat.push(other),
            }
        }
        match flat.pop() {
            Some(only) if flat.is_empty() => only,
            last => {
                flat.extend(last);
                make(flat)
            }
        }
    }

    /// Whether `of` holds for one of the leaves.
    pub(crate) fn has(&self, of: &impl Fn(&L) -> bool) -> bool {
        match self {
            Self::And(items) | Self::Or(items) => items.iter().any(|tree| tree.has(of)),
            Self::Not(tree) => tree.has(of),
            Self::Leaf(leaf) => of(leaf),
        }
    }

    /// Whether it holds, given which leaves do.
    pub(crate) fn holds(&self, leaf: &impl Fn(&L) -> bool) -> bool {
        match self {
            Self::And(items) => items.iter().all(|t| t.holds(leaf)),
            Self::Or(items) => items.iter().any(|t| t.holds(leaf)),
            Self::Not(tree) => !tree.holds(leaf),
            Self::Leaf(test) => leaf(test),
        }
    }
}

impl NodeLeaf {
    /// Whether it asks for what changes with every beat.
    pub(super) fn is_live(&self) -> bool {
        let of_gpu = |tree: &Tree<Test<GpuField>>| tree.has(&|test| test.field.is_live());
        match self {
            Self::Test(test) => test.field.is_live(),
            Self::Gpu(tree) => of_gpu(tree),
            Self::Count(tree, ..) => tree.as_ref().is_some_and(of_gpu),
        }
    }

    /// Whether a node satisfies it.
    pub(super) fn holds(&self, subject: Subject<'_>) -> bool {
        match self {
            Self::Test(test) => test.field.any(subject, &mut |v| test.accepts(v)),
            Self::Gpu(tree) => subject.gpus().any(|gpu| gpu_holds(tree, gpu)),
            Self::Count(filter, op, number) => {
                let fits = |gpu: &(&Gpu, Option<u64>)| {
                    filter.as_ref().is_none_or(|tree| gpu_holds(tree, *gpu))
                };
                let count = subject.gpus().filter(fits).count();
                op.orders(count.cmp(&usize::try_from(*number).unwrap_or(usize::MAX)))
            }
        }
    }
}

fn gpu_holds(tree: &Tree<Test<GpuField>>, (gpu, free): (&Gpu, Option<u64>)) -> bool {
    tree.holds(&|test| test.field.of(gpu, free, &mut |v| test.accepts(v)))
}

/// Half-sorted: either wholly about one GPU, or about the node.
enum Side {
    Gpu(Tree<Test<GpuField>>),
    Node(Tree<NodeLeaf>),
}

impl Side {
    fn close(self) -> Tree<NodeLeaf> {
        match self {
            Self::Gpu(tree) => Tree::Leaf(NodeLeaf::Gpu(tree)),
            Self::Node(tree) => tree,
        }
    }
}

/// Lets `gpu.…` tests that `and` and `or` alone join speak of one GPU.
pub(super) fn group(tree: Tree<Raw>) -> Tree<NodeLeaf> {
    sort(tree).close()
}

fn sort(tree: Tree<Raw>) -> Side {
    match tree {
        Tree::Leaf(Raw::Bare(test)) => Side::Gpu(Tree::Leaf(test)),
        Tree::Leaf(Raw::Done(leaf)) => Side::Node(Tree::Leaf(leaf)),
        Tree::Not(tree) => Side::Node(Tree::Not(Box::new(sort(*tree).close()))),
        Tree::And(items) => {
            let (mut gpu, mut node) = (Vec::new(), Vec::new());
            for item in items {
                match sort(item) {
                    Side::Gpu(tree) => gpu.push(tree),
                    Side::Node(tree) => node.push(tree),
                }
            }
            if node.is_empty() && !gpu.is_empty() {
                return Side::Gpu(Tree::and(gpu));
            }
            if !gpu.is_empty() {
                node.insert(0, Side::Gpu(Tree::and(gpu)).close());
            }
            Side::Node(Tree::and(node))
        }
        Tree::Or(items) => {
            let sides: Vec<Side> = items.into_iter().map(sort).collect();
            if sides.iter().all(|side| matches!(side, Side::Gpu(_))) {
                let trees = sides.into_iter().filter_map(|side| match side {
                    Side::Gpu(tree) => Some(tree),
                    Side::Node(_) => None,
                });
                return Side::Gpu(Tree::or(trees.collect()));
            }
            Side::Node(Tree::or(sides.into_iter().map(Side::close).collect()))
        }
    }
}

impl<L: fmt::Display> fmt::Display for Tree<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(items) => print_joined(f, items, " and "),
            Self::Or(items) => print_joined(f, items, " or "),
            Self::Not(tree) => {
                f.write_str("not ")?;
                print_operand(f, tree)
            }
            Self::Leaf(leaf) => leaf.fmt(f),
        }
    }
}

fn print_joined<L: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: &[Tree<L>],
    word: &str,
) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(word)?;
        }
        print_operand(f, item)?;
    }
    Ok(())
}

fn print_operand<L: fmt::Display>(f: &mut fmt::Formatter<'_>, tree: &Tree<L>) -> fmt::Result {
    match tree {
        Tree::And(_) | Tree::Or(_) => write!(f, "({tree})"),
        Tree::Not(_) | Tree::Leaf(_) => fmt::Display::fmt(tree, f),
    }
}

impl fmt::Display for NodeLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Test(test) => test.fmt(f),
            Self::Gpu(tree) => write!(f, "gpu[{tree}]"),
            Self::Count(None, op, number) => write!(f, "count(gpu) {op} {number}"),
            Self::Count(Some(tree), op, number) => write!(f, "count(gpu[{tree}]) {op} {number}"),
        }
    }
}

impl<F: Field> fmt::Display for Test<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.field.name(), self.op, self.value)
    }
}
