//! Chance from a seed, the same on every machine: integers and correctly rounded operations only.

use std::ops::RangeInclusive;

use meshwork_proto::membership::Chance;

/// `SplitMix64` (Steele, Lea, Flood 2014): eight bytes of state, good enough for simulations.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    /// A generator for one purpose: streams of different purposes are independent.
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        Self(mix(seed ^ mix(purpose.wrapping_add(GOLDEN))))
    }

    /// Uniform in 0 to 1, 1 excluded.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something of this probability happens.
    pub(super) fn hits(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// Uniform below `n`, which is not 0.
    pub(super) fn pick(&mut self, n: usize) -> usize {
        let wide = u128::from(self.next_u64()) * (n as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// Uniform, ends included.
    pub(super) fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        let span = range.end() - range.start();
        let wide = u128::from(self.next_u64()) * (u128::from(span) + 1);
        range.start() + u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Exponentially distributed around `mean`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    pub(super) fn exponential(&mut self, mean: u64) -> u64 {
        (-ln(1.0 - self.unit()) * mean as f64) as u64
    }

    /// Standard normal, by the sum of twelve uniform values.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

impl Chance for Rng {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }
}

/// Scrambles 64 bits, one to one.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The natural logarithm of a positive normal number, by halving to 1..2 and the series of atanh.
pub(super) fn ln(x: f64) -> f64 {
    let (mut mantissa, mut twos) = (x, 0.0);
    while mantissa >= 2.0 {
        mantissa /= 2.0;
        twos += 1.0;
    }
    while mantissa < 1.0 {
        mantissa *= 2.0;
        twos -= 1.0;
    }
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let (mut power, mut sum) = (t, 0.0);
    for odd in (1..40).step_by(2) {
        sum += power / f64::from(odd);
        power *= t * t;
    }
    2.0 * sum + twos * std::f64::consts::LN_2
}

/// e to the `x`, for moderate `x`: the series at x / 1024, squared ten times.
pub(super) fn exp(x: f64) -> f64 {
    let small = x / 1024.0;
    let mut term = 1.0;
    let mut sum = 1.0;
    for n in 1..12 {
        term *= small / f64::from(n);
        sum += term;
    }
    for _ in 0..10 {
        sum *= sum;
    }
    sum
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_exponential_are_right() {
        for x in [0.001, 0.3, 1.0, 2.5, 700.0] {
            assert!((ln(x) - x.ln()).abs() < 1e-9, "{x}");
            assert!((exp(ln(x)) / x - 1.0).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn draws_have_the_promised_means() {
        let mut rng = Rng::new(7, 0);
        let n = 20_000u32;
        let mean = |sum: f64| sum / f64::from(n);
        #[allow(clippy::cast_precision_loss)]
        let exponential = mean((0..n).map(|_| rng.exponential(1_000_000) as f64).sum());
        assert!((exponential / 1e6 - 1.0).abs() < 0.03, "{exponential}");
        let normal = mean((0..n).map(|_| rng.normal()).sum());
        assert!(normal.abs() < 0.03, "{normal}");
        let hits = (0..n).filter(|_| rng.hits(0.3)).count();
        assert!((5_700..6_300).contains(&hits), "{hits}");
        assert!((0..n).all(|_| (3..=5).contains(&rng.within(&(3..=5)))));
    }
}
