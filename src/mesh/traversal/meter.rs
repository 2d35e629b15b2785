//! How much each peer, and all of them together, may have relayed: token buckets. When the whole is
//! short, each of the peers at work gets an equal share of it, and what some leave goes to the others.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_identity::NodeId;
use tokio::time::Instant;

use super::RelayConfig;
use super::relay::Drop;

/// Peers whose rate is watched before those that have been quiet are forgotten. More than any node
/// has connections by default, and some 200 KB.
const MAX_METERED: usize = 2048;
/// How long after its last frame a peer counts as at work, and how often the shares are found out.
const AT_WORK: Duration = Duration::from_secs(1);
/// Least bytes of its share that a peer may have relayed at once: some full frames, however many peers
/// there are.
const LEAST_BURST: u64 = 16 << 10;
/// Parts of a second in which the whole may be relayed at once after a pause.
const TOTAL_BURST: u64 = 4;

/// The rates of one relay.
#[derive(Debug)]
pub(super) struct Meters {
    own: Limit,
    total: Limit,
    peers: BTreeMap<NodeId, Meter>,
    /// What is left of the whole.
    left: Option<Bucket>,
    shares: Shares,
}

/// How the whole is divided.
#[derive(Debug)]
struct Shares {
    /// Peers at work.
    count: u64,
    /// Bytes a second that each of them gets, if it wants as many.
    level: u64,
    /// When that was found out.
    since: Instant,
}

/// What one peer may still have relayed.
#[derive(Debug)]
struct Meter {
    own: Bucket,
    share: Bucket,
    last: Instant,
    /// Bytes that it wanted relayed since the shares were found out.
    wanted: u64,
}

impl Meters {
    pub(super) fn new(config: &RelayConfig) -> Self {
        Self {
            own: Limit {
                rate: config.rate,
                burst: config.burst,
            },
            total: Limit {
                rate: config.total_rate,
                // Twice what one peer may send at once, as half of it is for those below their share.
                burst: (config.total_rate / TOTAL_BURST).max(config.burst.saturating_mul(2)),
            },
            peers: BTreeMap::new(),
            left: None,
            shares: Shares {
                count: 0,
                level: config.total_rate,
                since: Instant::now(),
            },
        }
    }

    /// Takes `len` bytes from what `peer` may have relayed now, or tells which rate that exceeds.
    pub(super) fn take(&mut self, peer: &NodeId, len: u64, now: Instant) -> Result<(), Drop> {
        if !self.peers.contains_key(peer) && self.peers.len() >= MAX_METERED {
            let own = self.own;
            self.peers.retain(|_, meter| !meter.own.is_full(own, now));
            if self.peers.len() >= MAX_METERED {
                return Err(Drop::OverRate);
            }
        }
        let share = self.share(peer, now);
        let (own, total) = (self.own, self.total);
        let left = self.left.get_or_insert(Bucket::full(total, now));
        let meter = self.peers.entry(*peer).or_insert_with(|| Meter {
            own: Bucket::full(own, now),
            share: Bucket::full(share, now),
            last: now,
            wanted: 0,
        });
        meter.last = now;
        meter.wanted = meter.wanted.saturating_add(len);
        for (bucket, limit) in [
            (&mut meter.own, own),
            (&mut meter.share, share),
            (&mut *left, total),
        ] {
            bucket.fill(limit, now);
        }
        if !meter.own.has(len) {
            return Err(Drop::OverRate);
        }
        // The lower half is for those who take no more than their share, so that those who take all
        // they can leave it to them.
        let within = meter.share.has(len);
        let reserved = if within { 0 } else { total.burst / 2 };
        if !left.has(len.saturating_add(reserved)) {
            return Err(Drop::OverTotal);
        }
        meter.own.take(len);
        left.take(len);
        if within {
            meter.share.take(len);
        }
        Ok(())
    }

    /// What each of the peers at work, which `peer` is now, may take of the whole.
    fn share(&mut self, peer: &NodeId, now: Instant) -> Limit {
        let passed = now.saturating_duration_since(self.shares.since);
        if passed >= AT_WORK {
            self.divide(passed, now);
        }
        let shares = &mut self.shares;
        let is_at_work = |meter: &Meter| now.duration_since(meter.last) < AT_WORK;
        if !self.peers.get(peer).is_some_and(is_at_work) {
            // What it wants is not known yet.
            shares.count += 1;
            shares.level = shares.level.min(self.total.rate / shares.count);
        }
        Limit {
            rate: shares.level,
            burst: (self.total.burst / 2 / shares.count.max(1)).max(LEAST_BURST),
        }
    }

    /// Divides the whole by what each wanted in the time that has passed.
    fn divide(&mut self, passed: Duration, now: Instant) {
        let mut wanted = Vec::new();
        for meter in self.peers.values_mut() {
            let bytes = u128::from(std::mem::take(&mut meter.wanted));
            if now.duration_since(meter.last) < AT_WORK {
                let a_second = bytes * BILLION / passed.as_nanos().max(1);
                wanted.push(u64::try_from(a_second).unwrap_or(u64::MAX));
            }
        }
        self.shares = Shares {
            count: wanted.len() as u64,
            level: level(self.total.rate, wanted),
            since: now,
        };
    }
}

/// The most that each may have of `whole` so that it is enough for all: who wants less leaves the rest
/// to the others (max-min fairness).
fn level(whole: u64, mut wanted: Vec<u64>) -> u64 {
    wanted.sort_unstable();
    let (mut left, mut others) = (whole, wanted.len() as u64);
    for want in wanted {
        let equal = left / others;
        if want >= equal {
            return equal;
        }
        left -= want;
        others -= 1;
    }
    // All have what they want, and may want more.
    whole
}

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy)]
struct Limit {
    /// Bytes a second.
    rate: u64,
    /// Bytes.
    burst: u64,
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    /// In billionths of a byte, so that no rate loses anything to rounding.
    left: u128,
    since: Instant,
}

/// Billionths of a byte in a byte, and nanoseconds in a second.
const BILLION: u128 = 1_000_000_000;

impl Bucket {
    fn full(limit: Limit, now: Instant) -> Self {
        Self {
            left: u128::from(limit.burst) * BILLION,
            since: now,
        }
    }

    fn is_full(&self, limit: Limit, now: Instant) -> bool {
        self.left_at(limit, now) == u128::from(limit.burst) * BILLION
    }

    fn left_at(&self, limit: Limit, now: Instant) -> u128 {
        let passed = now.saturating_duration_since(self.since).as_nanos();
        let full = u128::from(limit.burst) * BILLION;
        (self.left + passed * u128::from(limit.rate)).min(full)
    }

    /// Adds what has come in until now.
    fn fill(&mut self, limit: Limit, now: Instant) {
        self.left = self.left_at(limit, now);
        self.since = self.since.max(now);
    }

    fn has(&self, len: u64) -> bool {
        self.left >= u128::from(len) * BILLION
    }

    fn take(&mut self, len: u64) {
        self.left = self.left.saturating_sub(u128::from(len) * BILLION);
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn peer(n: u16) -> NodeId {
        let mut seed = [1; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        Identity::from_seed(&seed).node_id()
    }

    fn meters(rate: u64, burst: u64, total_rate: u64) -> Meters {
        Meters::new(&RelayConfig {
            rate,
            burst,
            total_rate,
            always: true,
        })
    }

    /// Bytes that each peer has relayed in ten seconds, of which it offers this many in each
    /// millisecond in frames of 1,000 bytes; the first second does not count.
    fn relayed(meters: &mut Meters, offered: &[u64]) -> Vec<u64> {
        let peers: Vec<NodeId> = (0..offered.len())
            .map(|n| peer(u16::try_from(n).unwrap()))
            .collect();
        let mut sums = vec![0; offered.len()];
        let start = Instant::now();
        for step in 0..11_000 {
            let now = start + Duration::from_millis(step);
            for (n, per_step) in offered.iter().enumerate() {
                // Less than a frame a step is a frame every so many steps.
                let frames = (step + 1) * per_step / 1000 - step * per_step / 1000;
                for _ in 0..frames {
                    let taken = meters.take(&peers[n], 1000, now).is_ok();
                    if taken && step >= 1000 {
                        sums[n] += 1000;
                    }
                }
            }
        }
        sums
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_gets_its_rate_and_no_more() {
        let mut meters = meters(100_000, 5_000, u64::MAX);
        let sums = relayed(&mut meters, &[1_000]);
        assert!((999_000..=1_005_000).contains(&sums[0]), "{sums:?} in 10 s");
        // Another peer has a rate of its own.
        let now = Instant::now() + Duration::from_secs(11);
        assert_eq!(meters.take(&peer(9), 5_000, now), Ok(()));
        assert_eq!(meters.take(&peer(9), 1, now), Err(Drop::OverRate));
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_get_the_whole_and_no_more_in_equal_shares() {
        // Each may have all of it, and they want ten times as much.
        let mut meters = meters(1_000_000, 20_000, 1_000_000);
        let sums = relayed(&mut meters, &[4_000, 4_000, 2_000]);
        let total: u64 = sums.iter().sum();
        assert!((9_900_000..=10_300_000).contains(&total), "{sums:?}");
        for sum in &sums {
            assert!((3_000_000..=3_700_000).contains(sum), "{sums:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_little_loses_nothing_to_who_takes_all_and_leaves_the_rest_to_them() {
        let mut meters = meters(1_000_000, 20_000, 1_000_000);
        let sums = relayed(&mut meters, &[100, 9_000, 9_000]);
        assert_eq!(sums[0], 1_000_000, "every frame: {sums:?}");
        let total: u64 = sums.iter().sum();
        assert!((9_900_000..=10_300_000).contains(&total), "{sums:?}");
        assert!(sums[1].abs_diff(sums[2]) < 800_000, "{sums:?}");
    }

    #[test]
    fn what_some_leave_is_divided_among_the_others() {
        assert_eq!(level(100, vec![500, 500, 500]), 33);
        assert_eq!(level(100, vec![500, 10, 500]), 45);
        assert_eq!(level(100, vec![30, 10, 500]), 60);
        assert_eq!(level(100, vec![10, 10]), 100);
        assert_eq!(level(100, vec![]), 100);
        assert_eq!(level(0, vec![5]), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_the_whole_has_no_room_for_costs_its_sender_nothing() {
        let mut meters = meters(1_000, 1_000, 0);
        let now = Instant::now();
        // The first burst is there without any rate.
        assert_eq!(meters.take(&peer(1), 1_000, now), Ok(()));
        assert_eq!(meters.take(&peer(2), 1_000, now), Ok(()));
        assert_eq!(meters.take(&peer(3), 1_000, now), Err(Drop::OverTotal));
        assert!(meters.peers[&peer(3)].own.has(1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_over_rates_is_bounded() {
        let mut meters = meters(1_000, 1_000, u64::MAX);
        let start = Instant::now();
        for n in 0..MAX_METERED {
            let n = u16::try_from(n).unwrap();
            assert_eq!(meters.take(&peer(n), 1_000, start), Ok(()));
        }
        let newcomer = peer(60_000);
        let refused = meters.take(&newcomer, 1, start);
        assert_eq!(refused, Err(Drop::OverRate), "all are busy");
        let later = start + Duration::from_secs(1);
        assert_eq!(
            meters.take(&newcomer, 1, later),
            Ok(()),
            "others are forgotten"
        );
        assert_eq!(meters.peers.len(), 1);
    }
}
