//! Places where a test may have the agent die. Not in release builds.

/// Ends the process with `kill -9` when `MESHWORK_FAILPOINT` names this place.
#[cfg(debug_assertions)]
pub(crate) fn hit(place: &str) {
    use std::sync::LazyLock;
    static WANTED: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("MESHWORK_FAILPOINT").ok());
    if WANTED.as_deref() == Some(place) {
        use rustix::process::{Signal, getpid, kill_process};
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn hit(_place: &str) {}
