//! Events on their way out, and their ids.

use std::fmt;

/// Some events with consecutive numbers, sent together.
#[derive(Clone, PartialEq, Eq)]
pub struct Parcel {
    producer: u64,
    first: u64,
    bytes: Vec<u8>,
    /// Where each event ends in `bytes`.
    ends: Vec<usize>,
}

impl Parcel {
    /// An empty parcel, whose first event will have the number `first`.
    pub(super) fn new(producer: u64, first: u64) -> Self {
        Self {
            producer,
            first,
            bytes: Vec::new(),
            ends: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.ends.push(self.bytes.len());
    }

    /// Events in it.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of payload in it.
    pub fn payload(&self) -> usize {
        self.bytes.len()
    }

    /// Ids and payloads, in order.
    pub fn iter(&self) -> impl Iterator<Item = (String, &[u8])> {
        let mut start = 0;
        (self.first..).zip(&self.ends).map(move |(number, end)| {
            let payload = &self.bytes[start..*end];
            start = *end;
            (format!("{:016x}:{number}", self.producer), payload)
        })
    }

    pub(super) fn producer(&self) -> u64 {
        self.producer
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The number of the event after the last one.
    pub(super) fn next(&self) -> u64 {
        self.first + self.ends.len() as u64
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel")
            .field("producer", &format_args!("{:016x}", self.producer))
            .field("numbers", &(self.first..self.next()))
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}
