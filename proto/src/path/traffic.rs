//! What flows to and from a peer, and whether something is missing.

use std::time::Duration;

/// Time between two looks at the traffic while there is some.
const SAMPLE: Duration = Duration::from_millis(100);
/// Without traffic for so long, nobody looks any more.
const QUIET: Duration = Duration::from_secs(1);
/// Two packets that nothing came back for have to do with each other for so long: QUIC's repeats come
/// more and more slowly.
const MEMORY: Duration = Duration::from_secs(3);
/// Samples with packets that nothing came back for: one may have been an acknowledgement, a second
/// one is a repeat.
const REPEATS: u32 = 2;
/// Packets within a sample that make a stream: its end may be a broken path.
const STREAM: u64 = 2;

/// What flows, by samples.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: u64,
    received: u64,
    /// The last sample with any packet.
    last: Option<Duration>,
    /// The last sign of life from the peer.
    last_heard: Option<Duration>,
    /// The last sample in which a stream came in, and in which one flowed either way.
    streaming_in: Option<Duration>,
    busy: Option<Duration>,
    /// The first sample in which we sent and heard nothing since, and how many such there are.
    unanswered: Option<(Duration, u32)>,
    next_sample: Option<Duration>,
}

impl Traffic {
    /// Notes what was sent and received in all. Whether anything came since the last time.
    pub(super) fn sample(&mut self, now: Duration, sent: u64, received: u64) -> bool {
        let more_sent = sent.saturating_sub(self.sent);
        let more_received = received.saturating_sub(self.received);
        (self.sent, self.received) = (sent, received);
        let flows = more_sent + more_received > 0;
        if self.last.is_none_or(|last| last + MEMORY <= now) {
            // What was sent then has nothing to do with what is sent now.
            self.unanswered = None;
        }
        if flows {
            self.last = Some(now);
        }
        if more_received >= STREAM {
            self.streaming_in = Some(now);
        }
        if more_sent + more_received >= STREAM {
            self.busy = Some(now);
        }
        if more_sent > 0 && more_received == 0 {
            let (first, samples) = self.unanswered.unwrap_or((now, 0));
            self.unanswered = Some((first, samples.saturating_add(1)));
        }
        let look = flows || !self.is_quiet(now) && self.may_miss(now);
        self.next_sample = look.then_some(now + SAMPLE);
        more_received > 0
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.last.is_none_or(|last| last + QUIET <= now)
    }

    /// Whether silence would mean something.
    fn may_miss(&self, now: Duration) -> bool {
        let repeated = self
            .unanswered
            .is_some_and(|(_, samples)| samples >= REPEATS);
        repeated || self.streaming_in.is_some_and(|at| at + QUIET > now)
    }

    /// When to look again; never while nothing flows.
    pub(super) fn next_sample(&self) -> Option<Duration> {
        self.next_sample
    }

    /// The peer has given a sign of life.
    pub(super) fn heard(&mut self, now: Duration) {
        self.last_heard = Some(now);
        self.unanswered = None;
    }

    /// The way works, and nothing comes: the stream is over until more does.
    pub(super) fn end_stream(&mut self) {
        self.streaming_in = None;
        self.busy = None;
    }

    /// Nothing is missed any more.
    pub(super) fn give_up(&mut self) {
        self.unanswered = None;
        self.streaming_in = None;
    }

    /// Whether much flows, either way.
    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.busy.is_some_and(|at| at + QUIET > now)
    }

    /// Since when packets are missing that should come, if for `patience`.
    pub(super) fn silence(&self, now: Duration, patience: Duration) -> Option<Duration> {
        let repeated = self.unanswered.filter(|(_, samples)| *samples >= REPEATS);
        let unanswered = repeated.map(|(first, _)| first);
        let streamed = self.streaming_in;
        let streamed = streamed.filter(|at| now.saturating_sub(*at) < QUIET);
        let broken_off = streamed.and(self.last_heard);
        let since = [unanswered, broken_off].into_iter().flatten().min()?;
        (now.saturating_sub(since) >= patience).then_some(since)
    }
}
