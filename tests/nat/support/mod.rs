//! Networks made of namespaces, and what lives in them. Whatever a test makes is gone when its guard
//! is dropped, also by a panic; what a killed run left is swept by the next one.

pub(crate) mod address;
pub(crate) mod echo;
pub(crate) mod inside;
pub(crate) mod lab;
pub(crate) mod node;
pub(crate) mod shell;
pub(crate) mod upnp;

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub(crate) use lab::{Host, Lab, Nat, Router};

/// Longest wait for something that must come about. Generous: only failures wait for so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Looks until it sees what it should; panics with what it saw last when that does not come about.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(seen) if began.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// `Ok` when it is so, else what is so instead.
pub(crate) fn so(holds: bool, seen: impl Debug) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("{seen:?}"))
    }
}
