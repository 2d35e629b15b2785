//! Wires: what happens to a datagram on its way, by chance and by load.

use std::{ops::Range, time::Duration};

use rand::{RngExt, rngs::StdRng};
use tokio::time::Instant;

/// Bytes of an IPv4 and of an IPv6 header, each with the UDP header.
const HEADERS_V4: usize = 28;
/// See [`HEADERS_V4`].
const HEADERS_V6: usize = 48;
/// Uniform draws that add up to about a normal one (Irwin–Hall: twelve have a variance of one).
const DRAWS_OF_NORMAL: u32 = 12;

/// One direction of a wire. What is not said is that of [`Wire::default`].
#[derive(Debug, Clone, PartialEq)]
pub struct Wire {
    /// One-way delay.
    pub latency: Latency,
    /// Whether what took long is overtaken by what was sent later. Else it holds that up, as a
    /// router's queue does. Default: true.
    pub reorders: bool,
    /// What is lost.
    pub loss: Loss,
    /// Share of datagrams, from 0 to 1, that arrive later by [`Wire::late_by`] than their latency
    /// says, so that others overtake them in any case. Default: 0.
    pub late: f64,
    /// See [`Wire::late`]. Default: 30 ms.
    pub late_by: Duration,
    /// Share of datagrams that arrive twice, from 0 to 1. Default: 0.
    pub duplicate: f64,
    /// How much the wire carries. Default: everything at once.
    pub bandwidth: Option<Bandwidth>,
    /// Largest IP packet in bytes, headers included; larger ones are lost, as with the "do not
    /// fragment" bit that QUIC sets. Default: 1,500.
    pub mtu: usize,
}

/// How long datagrams take.
#[derive(Debug, Clone, PartialEq)]
pub enum Latency {
    /// All the same.
    Constant(Duration),
    /// Evenly within a range.
    Uniform(Range<Duration>),
    /// About normal (Irwin–Hall, so never beyond six deviations), and never below zero.
    Normal {
        /// The middle.
        mean: Duration,
        /// Standard deviation.
        deviation: Duration,
    },
    /// Most near `least`, a few far beyond, as on mobile networks.
    Pareto {
        /// None takes less.
        least: Duration,
        /// The tail's exponent: the smaller, the more take long. Above 0.
        shape: f64,
        /// What takes longer is lost.
        most: Duration,
    },
}

/// What a wire loses.
#[derive(Debug, Clone, PartialEq)]
pub enum Loss {
    /// Each datagram with this chance, from 0 to 1.
    Random(f64),
    /// In bursts (Gilbert 1960, Elliott 1963): the wire is good or bad for a while.
    Bursty {
        /// Chance per datagram that a good wire turns bad.
        to_bad: f64,
        /// Chance per datagram that a bad wire turns good; one over it is the mean length of a burst.
        to_good: f64,
        /// Chance of loss while good.
        good: f64,
        /// Chance of loss while bad.
        bad: f64,
    },
}

/// A bottleneck with a queue that drops what does not fit (tail drop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bytes a second, headers included.
    pub rate: u64,
    /// Bytes that may wait.
    pub queue: u64,
}

/// The uniform latency and random loss that most tests want; a short way to write a [`Wire`].
#[derive(Debug, Clone, PartialEq)]
pub struct LinkModel {
    /// One-way delay of a datagram, uniform in this range. A wide range reorders.
    pub latency: Range<Duration>,
    /// Share of datagrams that are lost, from 0 to 1.
    pub loss: f64,
}

/// 10 to 20 ms one way, nothing lost.
impl Default for LinkModel {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10)..Duration::from_millis(20),
            loss: 0.0,
        }
    }
}

/// 10 to 20 ms one way, nothing lost, late or twice, no bottleneck, Ethernet's MTU.
impl Default for Wire {
    fn default() -> Self {
        LinkModel::default().into()
    }
}

impl From<LinkModel> for Wire {
    fn from(link: LinkModel) -> Self {
        Self {
            latency: Latency::Uniform(link.latency),
            reorders: true,
            loss: Loss::Random(link.loss),
            late: 0.0,
            late_by: Duration::from_millis(30),
            duplicate: 0.0,
            bandwidth: None,
            mtu: 1500,
        }
    }
}

impl Wire {
    /// A cable within a house: half a millisecond, nothing lost.
    pub fn cable() -> Self {
        Self {
            latency: Latency::Constant(Duration::from_micros(500)),
            ..Self::default()
        }
    }

    /// A wire that adds nothing to another one: no delay, no loss.
    pub fn none() -> Self {
        Self {
            latency: Latency::Constant(Duration::ZERO),
            ..Self::default()
        }
    }
}

/// What a wire remembers from datagram to datagram.
#[derive(Debug, Default)]
pub(crate) struct WireState {
    /// In a burst of losses.
    bad: bool,
    /// When the queue of the bottleneck will be empty.
    busy_until: Option<Instant>,
    /// When the last one arrives, where none overtakes another.
    last_arrival: Option<Instant>,
}

/// How a datagram comes through: after so long, and perhaps once more after so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) delay: Duration,
    pub(crate) twin: Option<Duration>,
}

impl Wire {
    /// What becomes of a datagram with `payload` bytes; `None`: it is lost.
    pub(crate) fn pass(
        &self,
        state: &mut WireState,
        rng: &mut StdRng,
        now: Instant,
        payload: usize,
        v6: bool,
    ) -> Option<Passage> {
        // All chance is drawn whatever comes of it, so that one datagram's end does not shift the
        // draws of those after it.
        let lost = self.loss.draw(state, rng);
        let latency = self.latency.draw(rng);
        let late = self.late > 0.0 && rng.random_bool(self.late);
        let twin = (self.duplicate > 0.0 && rng.random_bool(self.duplicate))
            .then(|| self.latency.draw(rng));
        let size = payload + if v6 { HEADERS_V6 } else { HEADERS_V4 };
        if size > self.mtu {
            return None;
        }
        // What is lost further on has taken its place in the queue before.
        let queued = self.queue(state, now, size)?;
        if lost {
            return None;
        }
        let mut delay = queued + latency?;
        if !self.reorders {
            let arrival = state
                .last_arrival
                .map_or(now + delay, |last| last.max(now + delay));
            state.last_arrival = Some(arrival);
            delay = arrival - now;
        }
        let late = if late { self.late_by } else { Duration::ZERO };
        Some(Passage {
            delay: delay + late,
            twin: twin.flatten().map(|latency| queued + latency),
        })
    }

    /// How long a packet waits at the bottleneck and takes to pass it; `None`: the queue is full.
    fn queue(&self, state: &mut WireState, now: Instant, size: usize) -> Option<Duration> {
        let Some(Bandwidth { rate, queue }) = self.bandwidth else {
            return Some(Duration::ZERO);
        };
        let rate = rate.max(1);
        let free_at = state.busy_until.unwrap_or(now).max(now);
        let backlog = (free_at - now).as_nanos() * u128::from(rate) / NANOS;
        if backlog + size as u128 > u128::from(queue) && backlog > 0 {
            return None;
        }
        let takes = u64::try_from(size as u128 * NANOS / u128::from(rate)).unwrap_or(u64::MAX);
        let done = free_at + Duration::from_nanos(takes);
        state.busy_until = Some(done);
        Some(done - now)
    }
}

const NANOS: u128 = 1_000_000_000;

impl Latency {
    /// `None`: it takes for ever.
    fn draw(&self, rng: &mut StdRng) -> Option<Duration> {
        match self {
            Self::Constant(latency) => Some(*latency),
            Self::Uniform(range) if range.is_empty() => Some(range.start),
            Self::Uniform(range) => Some(rng.random_range(range.clone())),
            Self::Normal { mean, deviation } => {
                let sum: f64 = (0..DRAWS_OF_NORMAL).map(|_| rng.random::<f64>()).sum();
                let off = sum - f64::from(DRAWS_OF_NORMAL) / 2.0;
                let seconds = mean.as_secs_f64() + off * deviation.as_secs_f64();
                Some(Duration::from_secs_f64(seconds.max(0.0)))
            }
            Self::Pareto { least, shape, most } => {
                // In (0, 1], so that the quotient is finite.
                let chance = 1.0 - rng.random::<f64>();
                let factor = chance.powf(-1.0 / shape);
                let seconds = least.as_secs_f64() * factor;
                (seconds <= most.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
            }
        }
    }
}

impl Loss {
    fn draw(&self, state: &mut WireState, rng: &mut StdRng) -> bool {
        match *self {
            Self::Random(share) => rng.random_bool(share),
            Self::Bursty {
                to_bad,
                to_good,
                good,
                bad,
            } => {
                let turns = rng.random_bool(if state.bad { to_good } else { to_bad });
                state.bad ^= turns;
                rng.random_bool(if state.bad { bad } else { good })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// What becomes of `count` datagrams of 100 bytes, sent `every` so often.
    fn send(wire: &Wire, count: u32, every: Duration) -> Vec<Option<Passage>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let (mut state, mut rng) = (WireState::default(), StdRng::seed_from_u64(1));
        let start = Instant::now();
        (0..count)
            .map(|n| wire.pass(&mut state, &mut rng, start + every * n, 100, false))
            .collect()
    }

    fn delays(wire: &Wire, count: u32) -> Vec<Duration> {
        let passed = send(wire, count, Duration::from_millis(1));
        passed.into_iter().flatten().map(|p| p.delay).collect()
    }

    fn with(latency: Latency) -> Wire {
        Wire {
            latency,
            ..Wire::default()
        }
    }

    #[test]
    fn latencies_follow_their_distribution() {
        let ms = Duration::from_millis;
        assert_eq!(delays(&with(Latency::Constant(ms(7))), 3), [ms(7); 3]);

        let uniform = delays(&with(Latency::Uniform(ms(5)..ms(9))), 1000);
        assert!(uniform.iter().all(|d| (ms(5)..ms(9)).contains(d)));

        let normal = delays(
            &with(Latency::Normal {
                mean: ms(50),
                deviation: ms(10),
            }),
            10_000,
        );
        let near = normal
            .iter()
            .filter(|d| (ms(40)..ms(60)).contains::<Duration>(d));
        let near = near.count();
        assert!((6_500..7_200).contains(&near), "{near} within a deviation");

        let pareto = delays(
            &with(Latency::Pareto {
                least: ms(20),
                shape: 2.0,
                most: ms(2000),
            }),
            10_000,
        );
        assert!(pareto.iter().all(|d| (ms(20)..=ms(2000)).contains(d)));
        // P(X > 2 least) = 2^-shape.
        let far = pareto.iter().filter(|d| **d > ms(40)).count();
        assert!((2_300..2_700).contains(&far), "{far} above twice the least");
    }

    #[test]
    fn bursts_are_as_long_and_as_many_as_asked() {
        let wire = Wire {
            loss: Loss::Bursty {
                to_bad: 0.01,
                to_good: 0.1,
                good: 0.0,
                bad: 1.0,
            },
            ..Wire::default()
        };
        let fates = send(&wire, 100_000, Duration::from_millis(1));
        let lost = fates.iter().filter(|fate| fate.is_none()).count();
        // Bad for 1/0.1 datagrams after good for 1/0.01.
        assert!((7_500..10_800).contains(&lost), "{lost} of 100,000 lost");
        let bursts = fates
            .windows(2)
            .filter(|w| w[0].is_some() && w[1].is_none());
        let mean = lost * 10 / bursts.count();
        assert!((85..115).contains(&mean), "bursts of {mean} tenths");
    }

    #[test]
    fn a_bottleneck_delays_what_waits_and_drops_what_does_not_fit() {
        let wire = Wire {
            latency: Latency::Constant(Duration::ZERO),
            bandwidth: Some(Bandwidth {
                rate: 128_000,
                queue: 1_280,
            }),
            ..Wire::default()
        };
        // 128 bytes each on the wire: one a millisecond. Sent at once, ten fit.
        let fates = send(&wire, 20, Duration::ZERO);
        let passed: Vec<_> = fates
            .iter()
            .flatten()
            .map(|p| p.delay.as_millis())
            .collect();
        assert_eq!(passed, (1..=10).collect::<Vec<_>>());
        // At the rate of the wire, none waits for another.
        assert!(delays(&wire, 50).iter().all(|d| d.as_millis() == 1));
    }

    #[test]
    fn some_come_twice_and_some_late() {
        let wire = Wire {
            latency: Latency::Constant(Duration::from_millis(10)),
            duplicate: 0.5,
            late: 0.25,
            ..Wire::default()
        };
        let fates = send(&wire, 10_000, Duration::from_millis(1));
        let twice = fates.iter().flatten().filter(|p| p.twin.is_some()).count();
        let late = |p: &&Passage| p.delay == Duration::from_millis(40);
        let late = fates.iter().flatten().filter(late).count();
        assert!((4_800..5_200).contains(&twice), "{twice} twice");
        assert!((2_300..2_700).contains(&late), "{late} late");
    }

    #[test]
    fn a_wire_that_does_not_reorder_lets_none_overtake() {
        let wire = |reorders| Wire {
            latency: Latency::Uniform(Duration::from_millis(5)..Duration::from_millis(50)),
            reorders,
            ..Wire::default()
        };
        let arrivals = |reorders| -> Vec<Duration> {
            let sent = (0..).map(Duration::from_millis);
            let delays = delays(&wire(reorders), 500);
            sent.zip(delays).map(|(at, delay)| at + delay).collect()
        };
        assert!(arrivals(false).is_sorted());
        assert!(!arrivals(true).is_sorted());
    }

    #[test]
    fn the_mtu_counts_headers() {
        let mut rng = StdRng::seed_from_u64(1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let wire = Wire {
            mtu: 1280,
            ..Wire::default()
        };
        let mut passes = |payload, v6| {
            let mut state = WireState::default();
            wire.pass(&mut state, &mut rng, Instant::now(), payload, v6)
                .is_some()
        };
        assert!(passes(1252, false) && !passes(1253, false));
        assert!(passes(1232, true) && !passes(1233, true));
    }
}
