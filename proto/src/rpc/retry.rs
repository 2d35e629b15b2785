//! When a failed call is made again, and when a slow one is made twice.

use std::time::Duration;

/// How often and after which pauses a call is made again. Only calls that may be repeated are: of a
/// method declared idempotent, with an idempotency key, or never sent at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first one included. Default: 4. Zero counts as one.
    pub tries: u32,
    /// Longest pause before the second try; doubled for each further one. Default: 50 ms.
    pub first: Duration,
    /// The longest pause. Default: 1 s.
    pub longest: Duration,
    /// Time for one try. Default: none, so that a try may take all that the call has left.
    pub patience: Option<Duration>,
}

impl RetryPolicy {
    /// No second try.
    pub const NEVER: Self = Self {
        tries: 1,
        first: Duration::ZERO,
        longest: Duration::ZERO,
        patience: None,
    };

    /// The pause after the `tried`th try: between half of it and all of it, by `chance`, so that many
    /// callers do not come back at once.
    pub fn pause(&self, tried: u32, chance: u32) -> Duration {
        let doubled = 1u32 << tried.saturating_sub(1).min(16);
        let most = self.first.saturating_mul(doubled).min(self.longest);
        most / 2 + (most / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries: 4,
            first: Duration::from_millis(50),
            longest: Duration::from_secs(1),
            patience: None,
        }
    }
}

/// When a call that is still under way is made at another node, too. The first answer counts, and the
/// other calls are cancelled. Only calls that may be repeated are hedged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgePolicy {
    /// How long an answer is waited for before the next call is made.
    pub after: Duration,
    /// Further calls under way at a time. Default: 1.
    pub most: u32,
}

impl HedgePolicy {
    /// One more call after this time.
    pub const fn after(after: Duration) -> Self {
        Self { after, most: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_never_vanish() {
        let policy = RetryPolicy {
            first: Duration::from_millis(100),
            longest: Duration::from_millis(300),
            ..RetryPolicy::default()
        };
        for (tried, most) in [(1, 100), (2, 200), (3, 300), (4, 300), (90, 300)] {
            let most = Duration::from_millis(most);
            assert_eq!(policy.pause(tried, 0), most / 2);
            assert_eq!(policy.pause(tried, u32::MAX), most);
            let middle = policy.pause(tried, u32::MAX / 2);
            assert!(most / 2 < middle && middle < most);
        }
        assert_eq!(RetryPolicy::NEVER.pause(1, 7), Duration::ZERO);
    }
}
