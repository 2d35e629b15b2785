//! A circuit breaker: after some failures in a row a node is left alone for a while, then tried with a
//! single call.

use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it. Default: 5. Zero counts as one.
    pub failures: u32,
    /// How long it stays open at first; doubled each time that the trial call fails. Default: 1 s.
    pub cooldown: Duration,
    /// The longest that it stays open. Default: 30 s.
    pub longest: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            failures: 5,
            cooldown: Duration::from_secs(1),
            longest: Duration::from_secs(30),
        }
    }
}

/// The breaker of one node and service. Times are since any start that stays the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaker {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls pass; so many in a row have failed.
    Closed { failed: u32 },
    /// No call passes until then.
    Open { until: Duration, cooldown: Duration },
    /// One call is out to try.
    Trial { cooldown: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failed: 0 }
    }
}

impl Breaker {
    /// Whether a call would pass.
    pub fn is_open(&self, now: Duration) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until, .. } => now < until,
            State::Trial { .. } => true,
        }
    }

    /// Asks to make a call; an error says how long it takes at most until one may pass. Whoever may
    /// make it says how it ended, with [`Breaker::succeeded`], [`Breaker::failed`] or
    /// [`Breaker::abandoned`].
    pub fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        match self.state {
            State::Closed { .. } => Ok(()),
            State::Open { until, .. } if now < until => Err(until.saturating_sub(now)),
            State::Open { cooldown, .. } => {
                self.state = State::Trial { cooldown };
                Ok(())
            }
            State::Trial { cooldown } => Err(cooldown),
        }
    }

    /// A call ended well, or in a way that says that the node works.
    pub fn succeeded(&mut self) {
        self.state = State::default();
    }

    /// A call failed in a way that says that the node does not work.
    pub fn failed(&mut self, now: Duration, policy: &BreakerPolicy) {
        let open = |cooldown: Duration| State::Open {
            until: now.saturating_add(cooldown),
            cooldown,
        };
        self.state = match self.state {
            State::Closed { failed } if failed.saturating_add(1) < policy.failures => {
                State::Closed { failed: failed + 1 }
            }
            State::Closed { .. } => open(policy.cooldown.min(policy.longest)),
            State::Trial { cooldown } => open(cooldown.saturating_mul(2).min(policy.longest)),
            // Of calls from before it opened.
            State::Open { .. } => self.state,
        };
    }

    /// A call was given up before it said anything about the node. If it was the trial, another one may
    /// be made.
    pub fn abandoned(&mut self, now: Duration) {
        if let State::Trial { cooldown } = self.state {
            self.state = State::Open {
                until: now,
                cooldown,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        failures: 3,
        cooldown: Duration::from_secs(1),
        longest: Duration::from_secs(3),
    };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.admit(at(0)).unwrap();
            breaker.failed(at(0), &POLICY);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            breaker.failed(at(0), &POLICY);
            breaker.failed(at(0), &POLICY);
            breaker.succeeded();
        }
        assert!(!breaker.is_open(at(0)));
        let mut breaker = opened();
        assert!(breaker.is_open(at(999)));
        assert_eq!(breaker.admit(at(400)), Err(at(600)));
    }

    #[test]
    fn one_call_tries_it_again() {
        let mut breaker = opened();
        assert_eq!(breaker.admit(at(1000)), Ok(()));
        assert!(breaker.admit(at(1000)).is_err(), "one is out already");
        breaker.succeeded();
        assert_eq!(breaker.admit(at(1000)), Ok(()));
        assert_eq!(breaker.admit(at(1000)), Ok(()));
    }

    #[test]
    fn each_failed_trial_doubles_the_pause_up_to_a_bound() {
        let mut breaker = opened();
        let mut now = at(1000);
        for pause in [2000, 3000, 3000] {
            breaker.admit(now).unwrap();
            breaker.failed(now, &POLICY);
            assert_eq!(breaker.admit(now), Err(at(pause)));
            now += at(pause);
        }
        breaker.admit(now).unwrap();
        breaker.succeeded();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn an_abandoned_trial_leaves_room_for_another() {
        let mut breaker = opened();
        breaker.admit(at(1000)).unwrap();
        breaker.abandoned(at(1100));
        assert_eq!(breaker.admit(at(1100)), Ok(()));
        // An abandoned call that was no trial changes nothing.
        let mut closed = Breaker::default();
        closed.abandoned(at(0));
        assert_eq!(closed, Breaker::default());
    }
}
