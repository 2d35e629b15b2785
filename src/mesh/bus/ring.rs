//! The storage of one shard: payload bytes and an index, both rings that grow up to a bound.
//!
//! An event has a sequence number. The ring holds the events `first..next` and gives up the oldest
//! first. It knows nothing of consumers, overflow or locks.

/// Index entries at the start. Small, so that an unused bus costs next to nothing.
const FIRST_SLOTS: usize = 256;
/// Payload bytes at the start.
const FIRST_BYTES: usize = 16 << 10;

/// One event in the index.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Where its payload ends, counted in bytes since the ring began.
    end: u64,
    /// Its place in the order of all shards.
    stamp: u64,
}

/// Events in the order in which they came.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Box<[u8]>,
    slots: Box<[Slot]>,
    first: u64,
    next: u64,
    /// Where the payload of `first` begins.
    begin: u64,
    /// Where the payload of `next` will begin.
    end: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            bytes: Box::default(),
            slots: Box::default(),
            first: 0,
            next: 0,
            begin: 0,
            end: 0,
        }
    }

    /// Sequence number of the oldest event held.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Sequence number that the next event will get.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Events held.
    pub(super) fn len(&self) -> u64 {
        self.next - self.first
    }

    /// Bytes of payload held.
    pub(super) fn payload(&self) -> u64 {
        self.end - self.begin
    }

    /// Bytes of memory in use.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    /// Puts an event at the end. The caller bounds how much is held.
    #[inline]
    pub(super) fn push(&mut self, payload: &[u8], stamp: u64) {
        let held = usize_of(self.end - self.begin);
        if self.bytes.len() - held < payload.len() || usize_of(self.len()) == self.slots.len() {
            self.grow(held + payload.len());
        }
        let mask = self.bytes.len().wrapping_sub(1);
        let at = index(self.end, mask);
        if let Some(room) = self.bytes.get_mut(at..at + payload.len()) {
            room.copy_from_slice(payload);
        } else {
            let (head, tail) = payload.split_at(self.bytes.len() - at);
            self.bytes[at..].copy_from_slice(head);
            self.bytes[..tail.len()].copy_from_slice(tail);
        }
        self.end += payload.len() as u64;
        let slot = index(self.next, self.slots.len() - 1);
        self.slots[slot] = Slot {
            end: self.end,
            stamp,
        };
        self.next += 1;
    }

    /// Gives up all events before `sequence`, which lies in `first..=next`.
    pub(super) fn release(&mut self, sequence: u64) {
        debug_assert!((self.first..=self.next).contains(&sequence));
        self.begin = self.start_of(sequence);
        self.first = sequence;
    }

    /// Place of an event that is held in the order of all shards.
    #[inline]
    pub(super) fn stamp(&self, sequence: u64) -> u64 {
        self.slot(sequence).stamp
    }

    /// Where the payloads of `from..to` end, counted from where that of `from` begins, and stamps.
    pub(super) fn entries(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let start = self.start_of(from);
        (from..to).map(move |sequence| {
            let slot = self.slot(sequence);
            (slot.end - start, slot.stamp)
        })
    }

    /// How far one gets from `from` with so many events and bytes, all older than the stamp
    /// `until`. The first event of `greedy` may have any size.
    pub(super) fn reach(
        &self,
        from: u64,
        events: u64,
        bytes: u64,
        until: u64,
        greedy: bool,
    ) -> u64 {
        let last = self.next.min(from.saturating_add(events));
        let fits = |&(end, stamp): &(u64, u64)| end <= bytes && stamp < until;
        let fitting = self.entries(from, last).take_while(fits).count() as u64;
        let force = greedy && fitting == 0 && from < last && self.stamp(from) < until;
        from + if force { 1 } else { fitting }
    }

    /// Copies the payloads of `from..to`, which are held, one after the other.
    pub(super) fn copy(&self, from: u64, to: u64, into: &mut Vec<u8>) {
        let (start, end) = (self.start_of(from), self.start_of(to));
        if start == end {
            return;
        }
        let mask = self.bytes.len() - 1;
        let (at, len) = (index(start, mask), usize_of(end - start));
        if let Some(whole) = self.bytes.get(at..at + len) {
            into.extend_from_slice(whole);
        } else {
            let head = &self.bytes[at..];
            into.extend_from_slice(head);
            into.extend_from_slice(&self.bytes[..len - head.len()]);
        }
    }

    #[inline]
    fn slot(&self, sequence: u64) -> Slot {
        debug_assert!((self.first..self.next).contains(&sequence));
        self.slots[index(sequence, self.slots.len() - 1)]
    }

    /// Where the payload of `sequence` begins; the end of all for `next`.
    #[inline]
    fn start_of(&self, sequence: u64) -> u64 {
        match sequence.checked_sub(self.first) {
            None | Some(0) => self.begin,
            Some(_) => self.slot(sequence - 1).end,
        }
    }

    /// Makes room for `bytes` of payload in all and one more event.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, bytes: usize) {
        if bytes > self.bytes.len() {
            let size = bytes.next_power_of_two().max(FIRST_BYTES);
            let mut wider = vec![0; size].into_boxed_slice();
            let mut held = Vec::with_capacity(usize_of(self.payload()));
            self.copy(self.first, self.next, &mut held);
            let at = index(self.begin, size - 1);
            let (head, tail) = held.split_at(held.len().min(size - at));
            wider[at..at + head.len()].copy_from_slice(head);
            wider[..tail.len()].copy_from_slice(tail);
            self.bytes = wider;
        }
        if usize_of(self.len()) == self.slots.len() {
            let size = (self.slots.len() * 2).max(FIRST_SLOTS);
            let mut wider = vec![Slot::default(); size].into_boxed_slice();
            for sequence in self.first..self.next {
                wider[index(sequence, size - 1)] = self.slot(sequence);
            }
            self.slots = wider;
        }
    }
}

#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the mask leaves less than a slice's length"
)]
fn index(position: u64, mask: usize) -> usize {
    position as usize & mask
}

#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "distances inside of the ring are bounded by its length"
)]
fn usize_of(distance: u64) -> usize {
    distance as usize
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ring_holds_what_a_queue_would(
            steps in prop::collection::vec((0u8..3, 0usize..5_000), 1..400),
        ) {
            let mut ring = Ring::new();
            let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
            for (number, (step, size)) in steps.into_iter().enumerate() {
                if step == 0 {
                    let gone = (size as u64).min(ring.len());
                    ring.release(ring.first() + gone);
                    model.drain(..usize::try_from(gone).unwrap());
                } else {
                    let byte = u8::try_from(number % 251).unwrap();
                    ring.push(&vec![byte; size], number as u64);
                    model.push_back((number as u64, vec![byte; size]));
                }
                prop_assert_eq!(ring.len(), model.len() as u64);
                prop_assert_eq!(ring.payload(), model.iter().map(|e| e.1.len() as u64).sum::<u64>());
                for (sequence, (stamp, payload)) in (ring.first()..).zip(&model) {
                    prop_assert_eq!(ring.stamp(sequence), *stamp);
                    let size = ring.entries(sequence, sequence + 1).next().unwrap().0;
                    prop_assert_eq!(size, payload.len() as u64);
                }
                let mut all = Vec::new();
                ring.copy(ring.first(), ring.next(), &mut all);
                prop_assert_eq!(all, model.iter().flat_map(|e| e.1.clone()).collect::<Vec<u8>>());
            }
        }
    }
}
