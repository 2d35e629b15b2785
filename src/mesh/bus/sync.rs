//! The locks and atomics of the bus: the standard library's, or in a permutation test, under
//! the feature `shuttle`, those that try every order.

#[cfg(feature = "shuttle")]
pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(feature = "shuttle")]
pub(super) use shuttle::sync::{Mutex, MutexGuard};

#[cfg(not(feature = "shuttle"))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(feature = "shuttle"))]
pub(super) use std::sync::{Mutex, MutexGuard};
