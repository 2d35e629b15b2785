//! Random bytes that repeat.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use meshwork_identity::noise::Entropy;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Random bytes from a seed, for nodes in a simulation. Keys made of them protect nothing.
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// The same seed gives the same bytes.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill_bytes(out);
    }
}

impl fmt::Debug for SeededEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededEntropy")
    }
}
