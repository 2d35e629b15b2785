//! Meshes of real processes on loopback, and what to look at them with. Whatever a test starts is
//! gone when its guard is dropped, also by a panic.

pub(crate) mod command;
pub(crate) mod docker;
pub(crate) mod mesh;
pub(crate) mod node;

use std::time::{Duration, Instant};

/// Longest wait for something that must come about. Generous: only failures wait for so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(30);

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
pub(crate) fn so(holds: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("{seen:?}"))
    }
}
