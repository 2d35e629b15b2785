//! The capability index: which slots satisfy a query, mostly without looking at announcements.
//!
//! Every field is a column: its values, each with the set of slots that state it. A test is the
//! union over the values that it accepts; `and`, `or` and `not` work on sets. What columns cannot
//! tell (which of a node's unlike GPUs has which value; fields that are not indexed) makes the
//! answer two sets: [`Answer`]. Only slots between the two are looked at.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use super::bits::{Bits, Posting};
use super::live::{Live, Steps};
use crate::announcement::{Gpu, Role};
use crate::query::scope::{Audience, Group, Shown};
use crate::query::{
    Field, GpuField, Literal, NodeField, NodeLeaf, Op, Subject, Test, Tree, Value, View,
};

/// Where the best part of a query leaves at most this many slots, these are looked at one by one:
/// cheaper than sets over all nodes.
const FEW: usize = 32;

/// A value in a column. Text of fields that ignore letter case is in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Missing,
    Flag(bool),
    Number(u64),
    Text(Box<str>),
}

type Column = BTreeMap<Key, Posting>;

/// Columns over slots.
#[derive(Debug, Default)]
pub(super) struct Index {
    live: Bits,
    node: BTreeMap<NodeField, Column>,
    /// Slots with *some* GPU of this value.
    gpu: BTreeMap<GpuField, Column>,
    gpu_count: BTreeMap<usize, Posting>,
    /// Slots whose GPUs (at least one) are equal in every indexed field.
    alike: Bits,
    groups: BTreeMap<Group, Posting>,
    /// What changes with every beat.
    beats: Live,
}

/// What the columns say of a query: it holds for all of `sure`, and for none outside `maybe`.
pub(super) struct Answer {
    pub(super) maybe: Bits,
    /// Nothing: the same as `maybe`.
    pub(super) sure: Option<Bits>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn insert(&mut self, slot: u32, subject: Subject<'_>) {
        self.live.insert(slot);
        if are_alike(&subject.said.hardware.gpus) {
            self.alike.insert(slot);
        }
        self.update(subject, Change { slot, add: true });
    }

    pub(super) fn remove(&mut self, slot: u32, subject: Subject<'_>) {
        self.live.remove(slot);
        self.alike.remove(slot);
        self.update(subject, Change { slot, add: false });
    }

    /// A node that goes on saying the same has other amounts free.
    pub(super) fn set_free(&mut self, slot: u32, old: Subject<'_>, new: Subject<'_>) {
        let (old, new) = (Steps::of(old), Steps::of(new));
        if old != new {
            self.beats.apply(&old, Change { slot, add: false });
            self.beats.apply(&new, Change { slot, add: true });
        }
    }

    fn update(&mut self, subject: Subject<'_>, change: Change) {
        let body = subject.said;
        self.beats.apply(&Steps::of(subject), change);
        for (field, ..) in NodeField::TABLE.iter().filter(|row| !row.0.is_live()) {
            let column = self.node.entry(*field).or_default();
            field.any(subject, &mut |value| {
                change.apply(column, Key::new(value, field.folds()));
                false
            });
        }
        let gpus = &body.hardware.gpus[..];
        let distinct = if are_alike(gpus) { &gpus[..1] } else { gpus };
        for (field, ..) in GpuField::TABLE.iter().filter(|row| is_indexed(row.0)) {
            let column = self.gpu.entry(*field).or_default();
            for gpu in distinct {
                field.of(gpu, None, &mut |value| {
                    change.apply(column, Key::new(value, field.folds()));
                    false
                });
            }
        }
        change.apply(&mut self.gpu_count, body.hardware.gpus.len());
        for group in Audience::of(body).groups() {
            change.apply(&mut self.groups, group);
        }
    }

    /// The slots of the nodes with a role, in no particular order.
    pub(super) fn with_role(&self, role: Role) -> Vec<u32> {
        let column = self.node.get(&NodeField::Roles);
        let mut slots = Vec::new();
        if let Some(posting) = column.and_then(|column| column.get(&Key::Text(role.name().into())))
        {
            posting.append_to(&mut slots);
        }
        slots
    }

    /// A short list of slots among which all hits are, if a part of the query gives one.
    pub(super) fn few(&self, query: &Tree<NodeLeaf>) -> Option<Vec<u32>> {
        let postings = few(query, &|leaf| match leaf {
            NodeLeaf::Test(test) if test.field.is_live() => self.beats.few_of_node(test, FEW),
            NodeLeaf::Test(test) => few_of(self.node.get(&test.field)?, test),
            NodeLeaf::Gpu(tree) => few(tree, &|test| {
                if test.field.is_live() {
                    self.beats.few_of_gpu(test, FEW)
                } else {
                    few_of(self.gpu.get(&test.field)?, test)
                }
            }),
            NodeLeaf::Count(..) => None,
        })?;
        let mut slots = Vec::with_capacity(FEW);
        for posting in postings {
            posting.append_to(&mut slots);
        }
        slots.sort_unstable();
        slots.dedup();
        Some(slots)
    }

    /// The slots that satisfy the query and that the view shows. `check` looks at one slot.
    pub(super) fn find(
        &self,
        query: &Tree<NodeLeaf>,
        view: &View,
        check: impl Fn(u32) -> bool,
    ) -> Bits {
        let Answer { mut maybe, sure } = self.answer(query, &|leaf| self.leaf(leaf));
        let of = |group: &Group| self.groups.get(group);
        maybe = match view.shown() {
            Shown::All => maybe,
            Shown::AllBut(hidden) => maybe.minus(&union(of(&hidden).into_iter())),
            Shown::OneOf(groups) => maybe.and(&union(groups.iter().filter_map(of))),
            Shown::Of(Some(subnet)) => {
                let key = Key::Text(subnet.to_string().into());
                maybe.and(&union(self.stating(NodeField::Subnet, &key)))
            }
            Shown::Of(None) => maybe
                .and(&union(self.stating(NodeField::Subnet, &Key::Missing)))
                .minus(&union(of(&Group::Local).into_iter())),
        };
        if let Some(sure) = sure {
            let unsure: Vec<u32> = maybe.clone().minus(&sure).iter().collect();
            for slot in unsure.into_iter().filter(|slot| !check(*slot)) {
                maybe.remove(slot);
            }
        }
        maybe
    }

    /// The slots whose nodes state a value, if there are any.
    fn stating(&self, field: NodeField, key: &Key) -> impl Iterator<Item = &Posting> {
        let column = self.node.get(&field);
        column.and_then(|column| column.get(key)).into_iter()
    }

    fn answer<L>(&self, tree: &Tree<L>, leaf: &dyn Fn(&L) -> Answer) -> Answer {
        let fold = |items: &[Tree<L>], join: fn(Answer, Answer) -> Answer| {
            items
                .iter()
                .map(|item| self.answer(item, leaf))
                .reduce(join)
        };
        match tree {
            Tree::And(items) => {
                fold(items, Answer::and).unwrap_or_else(|| Answer::exact(self.live.clone()))
            }
            Tree::Or(items) => {
                fold(items, Answer::or).unwrap_or_else(|| Answer::exact(Bits::default()))
            }
            Tree::Not(tree) => self.answer(tree, leaf).complement(&self.live),
            Tree::Leaf(test) => leaf(test),
        }
    }

    fn leaf(&self, leaf: &NodeLeaf) -> Answer {
        match leaf {
            NodeLeaf::Test(test) if test.field.is_live() => self.beats.of_node(test),
            NodeLeaf::Test(test) if test.op == Op::Ne => {
                let equal = Test {
                    op: Op::Eq,
                    ..test.clone()
                };
                Answer::exact(
                    self.live
                        .clone()
                        .minus(&select(self.node.get(&test.field), &equal)),
                )
            }
            NodeLeaf::Test(test) => Answer::exact(select(self.node.get(&test.field), test)),
            NodeLeaf::Gpu(tree) => self.some_gpu(tree),
            NodeLeaf::Count(None, op, number) => Answer::exact(self.counted(*op, *number)),
            NodeLeaf::Count(Some(tree), op, number) => self.count(tree, *op, *number),
        }
    }

    /// Slots by the number of all their GPUs.
    fn counted(&self, op: Op, number: u64) -> Bits {
        let fits = |count: usize| op.orders((count as u64).cmp(&number));
        union(
            self.gpu_count
                .iter()
                .filter(|(count, _)| fits(**count))
                .map(|(_, slots)| slots),
        )
    }

    /// "Some one GPU satisfies the tree". Of GPUs that are alike all satisfy what one does, so that
    /// the tree is a question of sets; of others, only `or` is.
    fn some_gpu(&self, tree: &Tree<Test<GpuField>>) -> Answer {
        match tree {
            Tree::Leaf(test) if test.field.is_live() => self.beats.of_gpu(test),
            Tree::Leaf(test) if is_indexed(test.field) => {
                Answer::exact(select(self.gpu.get(&test.field), test))
            }
            Tree::Leaf(_) => Answer {
                maybe: self.counted(Op::Gt, 0),
                sure: Some(Bits::default()),
            },
            Tree::Or(items) => {
                let each = items.iter().map(|item| self.some_gpu(item));
                each.reduce(Answer::or)
                    .unwrap_or_else(|| Answer::exact(Bits::default()))
            }
            Tree::And(items) => {
                let each = items.iter().map(|item| self.some_gpu(item));
                let all = each.reduce(Answer::and);
                let all = all.unwrap_or_else(|| Answer::exact(self.counted(Op::Gt, 0)));
                all.sure_within(&self.alike_for(tree))
            }
            Tree::Not(tree) => {
                let Answer { maybe, sure } = self.some_gpu(tree);
                let alike = self.alike_for(tree);
                let all_satisfy = sure.unwrap_or_else(|| maybe.clone()).and(&alike);
                Answer {
                    maybe: self.counted(Op::Gt, 0).minus(&all_satisfy),
                    sure: Some(alike.minus(&maybe)),
                }
            }
        }
    }

    /// Slots of whose GPUs a tree holds for all or none. What is free differs even among equal ones.
    fn alike_for(&self, tree: &Tree<Test<GpuField>>) -> Bits {
        if tree.has(&|test| test.field.is_live()) {
            self.counted(Op::Eq, 1)
        } else {
            self.alike.clone()
        }
    }

    /// "So many GPUs satisfy the tree". Of GPUs that are alike, all or none do, as long as the tree
    /// asks for nothing in which even those differ.
    fn count(&self, tree: &Tree<Test<GpuField>>, op: Op, number: u64) -> Answer {
        if !all_indexed(tree) {
            return Answer {
                maybe: self.live.clone(),
                sure: Some(Bits::default()),
            };
        }
        let Answer { maybe, sure } = self.some_gpu(tree);
        let sure = sure.unwrap_or_else(|| maybe.clone());
        let if_all = self.counted(op, number);
        let none_fits = op.orders(0.cmp(&number));
        let alike = self.alike_for(tree);
        let alike_or_none = alike.clone().or(&self.counted(Op::Eq, 0));
        let sure_of_alike = sure.and(&alike);
        let mut yes = sure_of_alike.clone().and(&if_all);
        let mut perhaps = maybe.clone().and(&if_all);
        if none_fits {
            yes = yes.or(&alike_or_none.clone().minus(&maybe));
            perhaps = perhaps.or(&self.live.clone().minus(&sure_of_alike));
        }
        let mut mixed = self.live.clone().minus(&alike_or_none);
        if !none_fits {
            mixed = mixed.and(&maybe);
        }
        Answer {
            maybe: perhaps.or(&mixed),
            sure: Some(yes),
        }
    }
}

/// Puts a slot into postings or takes it out of them.
#[derive(Clone, Copy)]
pub(super) struct Change {
    slot: u32,
    add: bool,
}

impl Change {
    pub(super) fn apply<K: Ord>(self, postings: &mut BTreeMap<K, Posting>, key: K) {
        match postings.entry(key) {
            Entry::Occupied(mut entry) if self.add => entry.get_mut().insert(self.slot),
            Entry::Occupied(mut entry) => {
                entry.get_mut().remove(self.slot);
                if entry.get().len() == 0 {
                    entry.remove();
                }
            }
            Entry::Vacant(entry) if self.add => entry.insert(Posting::default()).insert(self.slot),
            Entry::Vacant(_) => {}
        }
    }
}

impl Answer {
    pub(super) fn nothing() -> Self {
        Self::exact(Bits::default())
    }

    fn exact(slots: Bits) -> Self {
        Self {
            maybe: slots,
            sure: None,
        }
    }

    fn and(self, other: Self) -> Self {
        self.join(other, Bits::and)
    }

    fn or(self, other: Self) -> Self {
        self.join(other, Bits::or)
    }

    fn join(self, other: Self, op: fn(Bits, &Bits) -> Bits) -> Self {
        let sure = match (self.sure, other.sure) {
            (None, None) => None,
            (Some(mine), None) => Some(op(mine, &other.maybe)),
            (None, Some(theirs)) => Some(op(self.maybe.clone(), &theirs)),
            (Some(mine), Some(theirs)) => Some(op(mine, &theirs)),
        };
        Self {
            maybe: op(self.maybe, &other.maybe),
            sure,
        }
    }

    fn complement(self, all: &Bits) -> Self {
        Self {
            sure: self.sure.as_ref().map(|_| all.clone().minus(&self.maybe)),
            maybe: all.clone().minus(self.sure.as_ref().unwrap_or(&self.maybe)),
        }
    }

    /// The same, but sure only of slots in `known`.
    fn sure_within(self, known: &Bits) -> Self {
        let sure = self.sure.unwrap_or_else(|| self.maybe.clone()).and(known);
        Self {
            maybe: self.maybe,
            sure: Some(sure),
        }
    }
}

impl Key {
    fn new(value: Value<'_>, folds: bool) -> Self {
        match value {
            Value::Missing => Self::Missing,
            Value::Flag(flag) => Self::Flag(flag),
            Value::Number(number) => Self::Number(number),
            Value::Text(text) if folds => Self::Text(text.to_ascii_lowercase().into()),
            Value::Text(text) => Self::Text(text.into()),
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Missing => Value::Missing,
            Self::Flag(flag) => Value::Flag(*flag),
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(text),
        }
    }

    /// The only keys that equal a literal; nothing when they are not known without a search.
    fn of(literal: &Literal) -> Option<Vec<Self>> {
        Some(vec![match literal {
            Literal::Text(text) | Literal::Subnet(text) => Self::Text(text.as_str().into()),
            Literal::Folded(text) => Self::Text(text.to_ascii_lowercase().into()),
            Literal::Size(number) | Literal::Number(number) | Literal::Millis(number) => {
                Self::Number(*number)
            }
            Literal::Flag(flag) => Self::Flag(*flag),
            Literal::Version(_) => return None,
            Literal::List(items) => {
                let keys: Option<Vec<Vec<Self>>> = items.iter().map(Self::of).collect();
                return Some(keys?.into_iter().flatten().collect());
            }
        }])
    }
}

/// The postings of the values that a test accepts, if a look-up finds them; else nothing.
fn look_up<'a, F: Field>(
    column: &'a Column,
    test: &Test<F>,
) -> Option<Box<dyn Iterator<Item = &'a Posting> + 'a>> {
    let number = match test.value {
        Literal::Size(number) | Literal::Number(number) => Key::Number(number),
        _ => Key::Missing,
    };
    // Numbers stand after flags and before text.
    let (first, last) = (
        Bound::Included(Key::Number(0)),
        Bound::Included(Key::Number(u64::MAX)),
    );
    let (low, high) = match test.op {
        Op::Eq | Op::Has | Op::In => {
            let keys = Key::of(&test.value)?;
            return Some(Box::new(
                keys.into_iter().filter_map(|key| column.get(&key)),
            ));
        }
        Op::Ne | Op::Like => return None,
        _ if number == Key::Missing => return None,
        Op::Lt => (first, Bound::Excluded(number)),
        Op::Le => (first, Bound::Included(number)),
        Op::Gt => (Bound::Excluded(number), last),
        Op::Ge => (Bound::Included(number), last),
    };
    Some(Box::new(
        column.range((low, high)).map(|(_, posting)| posting),
    ))
}

/// The slots that a test accepts.
fn select<F: Field>(column: Option<&Column>, test: &Test<F>) -> Bits {
    let Some(column) = column else {
        return Bits::default();
    };
    if let Some(postings) = look_up(column, test) {
        return union(postings);
    }
    let accepted = column.iter().filter(|(key, _)| test.accepts(key.value()));
    union(accepted.map(|(_, posting)| posting))
}

pub(super) fn union<'a>(postings: impl Iterator<Item = &'a Posting>) -> Bits {
    let mut slots = Bits::default();
    for posting in postings {
        posting.add_to(&mut slots);
    }
    slots
}

/// The shortest postings among which all hits of a tree are, if any are short.
fn few<'a, L>(
    tree: &Tree<L>,
    leaf: &dyn Fn(&L) -> Option<Vec<&'a Posting>>,
) -> Option<Vec<&'a Posting>> {
    let size = |postings: &Vec<&Posting>| postings.iter().map(|p| p.len()).sum::<usize>();
    match tree {
        Tree::And(items) => items
            .iter()
            .filter_map(|item| few(item, leaf))
            .min_by_key(size),
        Tree::Or(items) => {
            let each: Option<Vec<_>> = items.iter().map(|item| few(item, leaf)).collect();
            Some(each?.into_iter().flatten().collect()).filter(|all| size(all) <= FEW)
        }
        Tree::Not(_) => None,
        Tree::Leaf(test) => leaf(test),
    }
}

/// The postings of a test, if they are short.
fn few_of<'a, F: Field>(column: &'a Column, test: &Test<F>) -> Option<Vec<&'a Posting>> {
    let mut found = Vec::new();
    let mut left = FEW;
    for posting in look_up(column, test)? {
        left = left.checked_sub(posting.len())?;
        found.push(posting);
    }
    Some(found)
}

fn is_indexed(field: GpuField) -> bool {
    !matches!(field, GpuField::Uuid | GpuField::Index | GpuField::Free)
}

fn all_indexed(tree: &Tree<Test<GpuField>>) -> bool {
    match tree {
        Tree::And(items) | Tree::Or(items) => items.iter().all(all_indexed),
        Tree::Not(tree) => all_indexed(tree),
        Tree::Leaf(test) => is_indexed(test.field) || test.field.is_live(),
    }
}

fn are_alike(gpus: &[Gpu]) -> bool {
    let same = |a: &Gpu, b: &Gpu| {
        a.vendor == b.vendor
            && a.model == b.model
            && a.vram == b.vram
            && a.compute_capability == b.compute_capability
            && a.driver == b.driver
            && a.mig == b.mig
    };
    gpus.split_first()
        .is_some_and(|(first, rest)| rest.iter().all(|gpu| same(first, gpu)))
}
