//! Figures that were measured, and what is said of them: medians, spreads, quantiles.

use std::time::Duration;

use serde::Serialize;

/// One figure for each round.
#[derive(Debug, Clone)]
pub(crate) struct Series(Vec<f64>);

/// The median of a series, and how far its rounds lie apart.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Durations of single events, in order of length.
#[derive(Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Series {
    pub(crate) fn new(rounds: Vec<f64>) -> Self {
        assert!(!rounds.is_empty(), "a series has at least one round");
        Self(rounds)
    }

    pub(crate) fn spread(&self) -> Spread {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Spread {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        }
    }

    /// This figure as a multiple of `base`'s, round by round: what disturbs a round disturbs both.
    pub(crate) fn over(&self, base: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&base.0)
                .map(|(own, base)| own / base)
                .collect(),
        )
    }
}

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "something was timed");
        times.sort_unstable();
        Self(times)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The duration that a share of `q` does not exceed, in microseconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let last = self.0.len() - 1;
        let at = (q * last as f64).round() as usize;
        self.0[at.min(last)].as_secs_f64() * 1e6
    }

    /// One quantile of each round.
    pub(crate) fn series(rounds: &[Self], q: f64) -> Series {
        Series::new(rounds.iter().map(|times| times.quantile(q)).collect())
    }
}

/// Measures the subjects in turn: A B C, A B C, …, so that what changes on the machine hits all of
/// them. A first round warms up and is not counted.
pub(crate) fn in_turn<T, const N: usize>(
    rounds: usize,
    mut subjects: [&mut dyn FnMut() -> T; N],
) -> [Vec<T>; N] {
    let mut results = std::array::from_fn(|_| Vec::with_capacity(rounds));
    for round in 0..=rounds {
        for (subject, results) in subjects.iter_mut().zip(&mut results) {
            let result = subject();
            if round > 0 {
                results.push(result);
            }
        }
    }
    results
}

/// [`in_turn`] for subjects with one figure a round.
pub(crate) fn series_in_turn<const N: usize>(
    rounds: usize,
    subjects: [&mut dyn FnMut() -> f64; N],
) -> [Series; N] {
    in_turn(rounds, subjects).map(Series::new)
}
