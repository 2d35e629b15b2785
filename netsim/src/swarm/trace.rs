//! What happened, as a hash to compare and, when asked for, as text to read.

use std::fmt;
use std::io::Write;

use super::rng::mix;

/// Takes note of everything that happens.
pub(super) struct Tracer<'t> {
    hash: u64,
    sink: Option<&'t mut dyn Write>,
}

impl<'t> Tracer<'t> {
    pub(super) fn new(seed: u64, sink: Option<&'t mut dyn Write>) -> Self {
        Self {
            hash: mix(seed),
            sink,
        }
    }

    /// Something happened at `now` to `node`. `words` is only asked for when there is a reader.
    pub(super) fn note(&mut self, now: u64, node: u32, what: u64, words: impl FnOnce() -> String) {
        self.hash = mix(self.hash ^ now).wrapping_add(mix(u64::from(node) << 32 ^ what));
        if let Some(sink) = &mut self.sink {
            let (secs, micros) = (now / 1_000_000, now % 1_000_000);
            // A reader that has gone away ends the text, not the simulation.
            if writeln!(sink, "{secs:6}.{micros:06} {node:>5} {}", words()).is_err() {
                self.sink = None;
            }
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Debug for Tracer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({:016x})", self.hash)
    }
}
