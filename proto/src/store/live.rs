//! The columns of what changes with every beat: free amounts, in steps.
//!
//! Exact amounts would give every node a value of its own, and every beat a change of the index. So
//! amounts are put into steps, sixteen for each doubling: a step of a comparison's answer is wholly in
//! it, wholly outside, or to be looked at, which is one step for each value that a query writes.

use std::collections::{BTreeMap, BTreeSet};

use super::bits::{Bits, Posting};
use super::index::{Answer, Change, union};
use crate::query::{Field, GpuField, Literal, NodeField, Op, Subject, Test, Value};

/// The columns.
#[derive(Debug, Default)]
pub(super) struct Live {
    node: BTreeMap<NodeField, Column>,
    /// Slots with *some* GPU of which so much is free.
    gpu: Column,
}

type Column = BTreeMap<u16, Posting>;

/// The steps of one slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    node: Vec<(NodeField, u16)>,
    gpu: BTreeSet<u16>,
}

impl Steps {
    /// None, when nothing is known to be free.
    pub(super) fn of(subject: Subject<'_>) -> Self {
        let mut steps = Self::default();
        if subject.free.is_none() {
            return steps;
        }
        for field in NodeField::TABLE.iter().map(|row| row.0) {
            if field.is_live() {
                field.any(subject, &mut |value| {
                    steps.node.extend(number(value).map(|n| (field, step(n))));
                    false
                });
            }
        }
        steps.gpu = subject
            .gpus()
            .filter_map(|(_, free)| free.map(step))
            .collect();
        steps
    }
}

impl Live {
    pub(super) fn apply(&mut self, steps: &Steps, change: Change) {
        for (field, step) in &steps.node {
            change.apply(self.node.entry(*field).or_default(), *step);
        }
        for step in &steps.gpu {
            change.apply(&mut self.gpu, *step);
        }
    }

    /// The slots that a test on the node accepts.
    pub(super) fn of_node(&self, test: &Test<NodeField>) -> Answer {
        self.node
            .get(&test.field)
            .map_or_else(Answer::nothing, |column| answer(column, test))
    }

    /// The slots with some GPU that a test accepts.
    pub(super) fn of_gpu(&self, test: &Test<GpuField>) -> Answer {
        answer(&self.gpu, test)
    }

    /// Postings that have all that a test on the node accepts, if they are at most `most` slots.
    pub(super) fn few_of_node(&self, test: &Test<NodeField>, most: usize) -> Option<Vec<&Posting>> {
        few(self.node.get(&test.field)?, test, most)
    }

    /// The same of a test on a GPU.
    pub(super) fn few_of_gpu(&self, test: &Test<GpuField>, most: usize) -> Option<Vec<&Posting>> {
        few(&self.gpu, test, most)
    }
}

fn answer<F: Field>(column: &Column, test: &Test<F>) -> Answer {
    let of = |wanted: fn(Verdict) -> bool| -> Bits {
        let steps = column.iter();
        let fit = steps.filter(|(step, _)| wanted(verdict(test, **step)));
        union(fit.map(|(_, posting)| posting))
    };
    Answer {
        maybe: of(|verdict| verdict != Verdict::None),
        sure: Some(of(|verdict| verdict == Verdict::All)),
    }
}

fn few<'a, F: Field>(column: &'a Column, test: &Test<F>, most: usize) -> Option<Vec<&'a Posting>> {
    let mut found = Vec::new();
    let mut left = most;
    for (step, posting) in column {
        if verdict(test, *step) != Verdict::None {
            left = left.checked_sub(posting.len())?;
            found.push(posting);
        }
    }
    Some(found)
}

/// Which values of a step a test accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    None,
    Some,
    All,
}

fn verdict<F: Field>(test: &Test<F>, step: u16) -> Verdict {
    let (low, high) = (first_of(step), last_of(step));
    let accepts = |number: u64| {
        test.accepts(match test.value {
            Literal::Flag(_) => Value::Flag(number == 1),
            _ => Value::Number(number),
        })
    };
    match (accepts(low), accepts(high), test.op) {
        (true, true, Op::Lt | Op::Le | Op::Gt | Op::Ge) => Verdict::All,
        (false, false, Op::Lt | Op::Le | Op::Gt | Op::Ge) => Verdict::None,
        (true, ..) if low == high => Verdict::All,
        (false, ..) if low == high => Verdict::None,
        (.., Op::Eq | Op::In) if !names_one(&test.value, low, high) => Verdict::None,
        (.., Op::Ne) if !names_one(&test.value, low, high) => Verdict::All,
        _ => Verdict::Some,
    }
}

/// Whether a literal is, or lists, a number between the two.
fn names_one(literal: &Literal, low: u64, high: u64) -> bool {
    match literal {
        Literal::Size(number) | Literal::Number(number) | Literal::Millis(number) => {
            (low..=high).contains(number)
        }
        Literal::List(items) => items.iter().any(|item| names_one(item, low, high)),
        _ => false,
    }
}

fn number(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Number(number) => Some(number),
        Value::Flag(flag) => Some(flag.into()),
        Value::Missing | Value::Text(_) => None,
    }
}

/// Binary digits of an amount that its step keeps, besides the first.
const KEPT: u32 = 4;

/// The step of an amount. Small amounts have one each.
fn step(amount: u64) -> u16 {
    let dropped = (u64::BITS - amount.leading_zeros()).saturating_sub(KEPT + 1);
    let kept = amount >> dropped;
    let step = u64::from(dropped << KEPT) + kept;
    u16::try_from(step).expect("60 times 16, and 31 at most")
}

/// The smallest amount of a step.
fn first_of(step: u16) -> u64 {
    let base = 1 << KEPT;
    let dropped = (step >> KEPT).saturating_sub(1);
    u64::from(step - dropped * base) << dropped
}

/// The largest.
fn last_of(step: u16) -> u64 {
    let dropped = (step >> KEPT).saturating_sub(1);
    first_of(step) | ((1 << dropped) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_without_a_gap() {
        let mut next = 0u64;
        for n in 0..=step(u64::MAX) {
            let (first, last) = (first_of(n), last_of(n));
            assert_eq!(first, next, "step {n}");
            assert!(
                last - first <= first / 16,
                "step {n} from {first} to {last}"
            );
            assert_eq!((step(first), step(last)), (n, n));
            next = last.wrapping_add(1);
        }
        assert_eq!(next, 0, "all amounts have a step");
    }
}
