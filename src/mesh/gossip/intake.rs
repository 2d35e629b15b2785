//! How much a peer may tell: bounds on what one member can make this node do.

use std::time::Duration;

use tokio::time::Instant;

/// Membership messages that a peer may send in a second. A neighbour sends two or three, more while
/// facts are compared.
const MESSAGES_PER_SECOND: u32 = 64;
/// Messages that it may send at once.
const MESSAGES_AT_ONCE: u32 = 512;
/// Facts of a peer in a second that may turn out wrong. Each costs signatures to check; an honest
/// peer passes on what it has checked itself, and is wrong at most where clocks differ.
const WRONG_PER_SECOND: u32 = 4;
/// Wrong facts in a row before the others of the peer are not looked at for a while.
const WRONG_AT_ONCE: u32 = 256;

/// What one peer may still tell.
#[derive(Debug)]
pub(super) struct Intake {
    messages: Bucket,
    wrong: Bucket,
}

impl Intake {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            messages: Bucket::full(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, now),
            wrong: Bucket::full(WRONG_PER_SECOND, WRONG_AT_ONCE, now),
        }
    }

    /// How many of `count` messages may be read.
    pub(super) fn messages(&mut self, count: usize, now: Instant) -> usize {
        self.messages.refill(now);
        let allowed = count.min(self.messages.left as usize);
        self.messages.left -= u32::try_from(allowed).unwrap_or(u32::MAX);
        allowed
    }

    /// Whether the peer's next fact is looked at.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        self.wrong.refill(now);
        self.wrong.left > 0
    }

    /// A fact of the peer was wrong.
    pub(super) fn was_wrong(&mut self) {
        self.wrong.left = self.wrong.left.saturating_sub(1);
    }
}

/// Tokens that come back with time.
#[derive(Debug)]
struct Bucket {
    left: u32,
    most: u32,
    per_second: u32,
    filled: Instant,
}

impl Bucket {
    fn full(per_second: u32, most: u32, now: Instant) -> Self {
        Self {
            left: most,
            most,
            per_second,
            filled: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let one = Duration::from_secs(1) / self.per_second;
        let due = now.saturating_duration_since(self.filled).as_nanos() / one.as_nanos();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(due).min(self.most);
        // What is left of the time counts for the next token.
        self.filled = if self.left == self.most {
            now
        } else {
            self.filled + one * due
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_heard_again_after_a_while() {
        let now = Instant::now();
        let mut intake = Intake::new(now);
        assert_eq!(intake.messages(1000, now), MESSAGES_AT_ONCE as usize);
        assert_eq!(intake.messages(1, now), 0);
        let later = now + Duration::from_millis(500);
        assert_eq!(
            intake.messages(1000, later),
            MESSAGES_PER_SECOND as usize / 2
        );
        for _ in 0..WRONG_AT_ONCE {
            assert!(intake.may_tell(now));
            intake.was_wrong();
        }
        assert!(!intake.may_tell(now));
        assert!(intake.may_tell(now + Duration::from_secs(1)));
    }
}
