//! Chance for the membership machine: which neighbour to probe first, whom to dial. A cheap
//! generator with an unpredictable seed; nothing secret hangs on it.

use meshwork_proto::membership::Chance;
use meshwork_proto::ports::Entropy;

/// `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014): passes the usual tests, and needs one word.
#[derive(Debug)]
pub(super) struct SplitMix(u64);

impl SplitMix {
    pub(super) fn seeded(entropy: &(dyn Entropy + 'static)) -> Self {
        Self(u64::from_be_bytes(entropy.array()))
    }
}

impl Chance for SplitMix {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
