//! The calls that a node has under way on the lanes of one connection.

use std::task::Waker;

use bytes::Bytes;
use meshwork_proto::rpc::Codec;
use meshwork_proto::rpc::lane::LANE_METHODS;
use meshwork_proto::service::MethodInfo;
use tokio::time::Instant;

use super::super::CallError;

/// Calls under way at a time; more have streams of their own.
const MAX_CALLS: usize = 1 << SLOT_BITS;
/// Bits of a call's id that say its slot. Those above count the calls that the slot has had.
const SLOT_BITS: u32 = 16;

/// Calls under way on one lane before the next one is used. What is lost on the way holds up the rest of
/// its lane; the others go on, and what they send shows the loss sooner than a timer would.
const CALLS_PER_LANE: usize = 16;

/// A call in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inserted {
    pub(super) id: u64,
    /// On which lane it goes.
    pub(super) lane: usize,
    /// Whether its deadline comes before all others.
    pub(super) first: bool,
}

/// What became of a call.
pub(super) type Outcome = Result<Bytes, CallError>;

/// The calls of one connection.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// No deadline of a call under way comes before this.
    due: Option<Instant>,
    /// Methods with a number, in the order of their first calls.
    methods: Vec<(MethodInfo, Codec)>,
}

#[derive(Debug)]
struct Slot {
    /// How many calls it has had.
    used: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting {
        lane: usize,
        deadline: Instant,
        waker: Option<Waker>,
    },
    Done(Outcome),
}

impl Table {
    /// Takes note of a call. None when there are too many.
    pub(super) fn insert(&mut self, lanes: usize, deadline: Instant) -> Option<Inserted> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.slots.len() < MAX_CALLS => {
                self.slots.push(Slot {
                    used: 0,
                    state: State::Free,
                });
                self.slots.len() - 1
            }
            None => return None,
        };
        let lane = at / CALLS_PER_LANE % lanes;
        let slot = &mut self.slots[at];
        slot.state = State::Waiting {
            lane,
            deadline,
            waker: None,
        };
        let first = self.due.is_none_or(|due| deadline < due);
        if first {
            self.due = Some(deadline);
        }
        Some(Inserted {
            id: slot.used << SLOT_BITS | at as u64,
            lane,
            first,
        })
    }

    /// The number of a method; none when there are too many.
    pub(super) fn method(&mut self, method: &MethodInfo, codec: Codec) -> Option<u16> {
        let known = self.methods.iter().position(|(known, with)| {
            // The names of one declaration are the same strings, which is seen faster.
            let same = |a: &str, b: &str| std::ptr::eq(a, b) || a == b;
            same(known.name, method.name) && same(known.service, method.service) && *with == codec
        });
        let index = match known {
            Some(index) => index,
            None if self.methods.len() < usize::from(LANE_METHODS) => {
                self.methods.push((*method, codec));
                self.methods.len() - 1
            }
            None => return None,
        };
        u16::try_from(index).ok()
    }

    /// The outcome of a call, or none as long as it is under way; then `waker` will be woken.
    pub(super) fn poll(&mut self, id: u64, waker: &Waker) -> Option<Outcome> {
        let at = Self::place(id);
        match &mut self.slots[at].state {
            State::Waiting { waker: held, .. } => {
                if !held.as_ref().is_some_and(|held| held.will_wake(waker)) {
                    *held = Some(waker.clone());
                }
                None
            }
            State::Done(_) | State::Free => match self.release(at) {
                State::Done(outcome) => Some(outcome),
                State::Free | State::Waiting { .. } => Some(Err(CallError::NotServed)),
            },
        }
    }

    /// Forgets a call; whether it was still under way.
    pub(super) fn forget(&mut self, id: u64) -> bool {
        matches!(self.release(Self::place(id)), State::Waiting { .. })
    }

    /// A call has ended so; who waits for it. None when nobody does.
    pub(super) fn end(&mut self, id: u64, outcome: Outcome) -> Option<Waker> {
        let slot = self.slots.get_mut(Self::place(id))?;
        if slot.used != id >> SLOT_BITS {
            return None;
        }
        let State::Waiting { waker, .. } = &mut slot.state else {
            return None;
        };
        let waker = waker.take();
        slot.state = State::Done(outcome);
        waker
    }

    /// When the call of this id must have ended, if it is under way.
    pub(super) fn deadline(&self, id: u64) -> Option<Instant> {
        let slot = self.slots.get(Self::place(id))?;
        match slot.state {
            State::Waiting { deadline, .. } if slot.used == id >> SLOT_BITS => Some(deadline),
            _ => None,
        }
    }

    /// Ends every call of a lane; who waits for them.
    pub(super) fn end_all(&mut self, of: usize, outcome: impl Fn() -> CallError) -> Vec<Waker> {
        let ids = self.waiting(|lane, _| lane == of);
        let ended = ids.into_iter();
        ended
            .filter_map(|id| self.end(id, Err(outcome())))
            .collect()
    }

    /// The calls whose deadline has passed, with their lanes.
    pub(super) fn late(&mut self, now: Instant) -> Vec<(u64, usize)> {
        let late = self.waiting(|_, deadline| deadline <= now);
        let deadlines = self.slots.iter().filter_map(|slot| match slot.state {
            State::Waiting { deadline, .. } if deadline > now => Some(deadline),
            _ => None,
        });
        self.due = deadlines.min();
        let lane = |id: u64| match self.slots[Self::place(id)].state {
            State::Waiting { lane, .. } => lane,
            State::Free | State::Done(_) => 0,
        };
        late.into_iter().map(|id| (id, lane(id))).collect()
    }

    /// When a deadline may pass next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn waiting(&self, which: impl Fn(usize, Instant) -> bool) -> Vec<u64> {
        let slots = self.slots.iter().enumerate();
        let ids = slots.filter_map(|(at, slot)| match slot.state {
            State::Waiting { lane, deadline, .. } if which(lane, deadline) => {
                Some(slot.used << SLOT_BITS | at as u64)
            }
            _ => None,
        });
        ids.collect()
    }

    /// Empties a slot for the next call.
    fn release(&mut self, at: usize) -> State {
        let slot = &mut self.slots[at];
        slot.used += 1;
        self.free.push(at);
        std::mem::replace(&mut slot.state, State::Free)
    }

    fn place(id: u64) -> usize {
        let mask = (1u64 << SLOT_BITS) - 1;
        usize::try_from(id & mask).expect("16 bits")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_reaches_its_call_and_no_later_one() {
        let mut table = Table::default();
        let deadline = Instant::now() + Duration::from_secs(1);
        let first = table.insert(1, deadline).unwrap().id;
        assert!(table.forget(first), "it was under way");
        let second = table.insert(1, deadline).unwrap().id;
        assert_ne!(first, second);
        // The answer to the forgotten call comes late, and is nobody's.
        let _ = table.end(first, Ok(Bytes::from_static(b"first")));
        assert!(table.poll(second, Waker::noop()).is_none());
        let _ = table.end(second, Ok(Bytes::from_static(b"second")));
        let outcome = table.poll(second, Waker::noop()).unwrap();
        assert_eq!(outcome.unwrap(), "second");
        // Ids that were never given are no one's either.
        assert!(table.end(u64::MAX, Ok(Bytes::new())).is_none());
    }

    #[test]
    fn deadlines_are_found_in_order() {
        let mut table = Table::default();
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let late = table.insert(2, after(5)).unwrap();
        assert!(late.first);
        let soon = table.insert(2, after(2)).unwrap();
        assert!(soon.first, "it comes before the other");
        assert!(!table.insert(2, after(9)).unwrap().first);
        let (late, soon) = (late.id, soon.id);
        assert_eq!(table.due(), Some(after(2)));
        assert_eq!(table.late(after(3)), [(soon, 0)]);
        assert_eq!(table.due(), Some(after(5)));
        assert!(table.forget(soon));
        assert_eq!(table.late(after(5)), [(late, 0)]);
    }

    #[test]
    fn the_end_of_a_lane_is_the_end_of_its_calls_only() {
        let mut table = Table::default();
        let deadline = Instant::now() + Duration::from_secs(1);
        let calls = (0..2 * CALLS_PER_LANE).map(|_| table.insert(2, deadline).unwrap());
        let calls: Vec<Inserted> = calls.collect();
        let (one, other) = (calls[0], calls[CALLS_PER_LANE]);
        assert_eq!((one.lane, other.lane), (0, 1));
        table.end_all(0, || CallError::NotServed);
        assert!(table.poll(one.id, Waker::noop()).unwrap().is_err());
        assert!(table.poll(other.id, Waker::noop()).is_none());
    }
}
