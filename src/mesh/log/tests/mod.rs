//! Tests of the whole log: on a disk that fails, and on the real one.

mod behaviour;
mod concurrent;
mod crash;
mod damage;
mod fault;
mod kill;
mod reader;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_identity::Timestamp;
use meshwork_proto::ports::WallClock;

use super::*;

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    pub(super) fn at(millis: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(millis)))
    }

    pub(super) fn set(&self, millis: u64) {
        self.0.store(millis, Ordering::SeqCst);
    }
}

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Splitmix64: the same numbers for the same seed.
#[derive(Debug, Clone)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A payload that tells its number, of a length that depends on it.
pub(super) fn payload(seq: u64) -> Vec<u8> {
    let mut bytes = seq.to_le_bytes().to_vec();
    bytes.resize(8 + usize::try_from(seq * 7 % 90).unwrap(), 0x5A);
    bytes
}

/// Small segments, nothing dropped.
pub(super) fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        ..LogConfig::default()
    }
}

/// All records from `from` on.
pub(super) fn read_all(log: &Log, from: u64) -> Vec<Record> {
    log.read_range(from..u64::MAX)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}
