//! Connections between nodes, and what packets meet on them.

use std::collections::{BTreeSet, VecDeque};

use meshwork_proto::membership::{Key, Message};

use super::rng::{Rng, exp, mix};
use super::spec::LinkSpec;

/// One connection; its ends are 0 (who dialled) and 1.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ends: [u32; 2],
    /// Distinguishes it from others that had the same place before.
    pub(super) generation: u32,
    /// Whether each end holds it open.
    pub(super) up: [bool; 2],
    /// One way, in microseconds, without jitter.
    pub(super) latency: u64,
    /// When each end last heard anything.
    pub(super) heard: [u64; 2],
    /// When each end last sent anything.
    pub(super) sent: [u64; 2],
    /// When it was last used for more than keeping alive.
    pub(super) used: u64,
    /// Whether each end needs it no more.
    pub(super) released: [bool; 2],
    pub(super) lanes: [Lane; 2],
    bursts: [Burst; 2],
}

/// The reliable lane of one end: one call at a time, what waits is gathered.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) facts: BTreeSet<Key<u32>>,
    /// Those of `facts` that the other end asked for: it lacks the whole.
    pub(super) whole: BTreeSet<Key<u32>>,
    pub(super) messages: VecDeque<Message<u32>>,
    /// A flush is due.
    pub(super) armed: bool,
    /// And due at once.
    pub(super) hurried: bool,
    /// A call is on its way.
    pub(super) busy: bool,
}

/// Whether packets meet a burst of loss, and until when.
#[derive(Debug, Clone, Copy)]
struct Burst {
    until: u64,
    is_bad: bool,
}

/// All connections, by place.
#[derive(Debug, Default)]
pub(super) struct Conns {
    all: Vec<Conn>,
    free: Vec<u32>,
    made: u32,
}

/// A connection and one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) conn: u32,
    pub(super) generation: u32,
    pub(super) side: usize,
}

impl End {
    pub(super) fn other(self) -> Self {
        Self {
            side: 1 - self.side,
            ..self
        }
    }
}

impl Conns {
    /// A connection that both ends hold from `now` on.
    pub(super) fn open(&mut self, ends: [u32; 2], latency: u64, now: u64) -> End {
        self.made += 1;
        let conn = Conn {
            ends,
            generation: self.made,
            up: [true; 2],
            latency,
            heard: [now; 2],
            sent: [now; 2],
            used: now,
            released: [false; 2],
            lanes: [Lane::default(), Lane::default()],
            bursts: [Burst {
                until: now,
                is_bad: true,
            }; 2],
        };
        let place = if let Some(place) = self.free.pop() {
            self.all[place as usize] = conn;
            place
        } else {
            self.all.push(conn);
            u32::try_from(self.all.len() - 1).expect("fewer connections than u32 holds")
        };
        End {
            conn: place,
            generation: self.made,
            side: 0,
        }
    }

    /// The connection, if `end` still holds it open.
    pub(super) fn at(&mut self, end: End) -> Option<&mut Conn> {
        let conn = &mut self.all[end.conn as usize];
        (conn.generation == end.generation && conn.up[end.side]).then_some(conn)
    }

    /// The connection, if either end holds it open.
    pub(super) fn any(&self, end: End) -> Option<&Conn> {
        let conn = &self.all[end.conn as usize];
        (conn.generation == end.generation && conn.up != [false; 2]).then_some(conn)
    }

    /// One end gives it up. Frees the place with the second.
    pub(super) fn drop_end(&mut self, end: End) {
        let conn = &mut self.all[end.conn as usize];
        if conn.generation != end.generation || !conn.up[end.side] {
            return;
        }
        conn.up[end.side] = false;
        conn.lanes[end.side] = Lane::default();
        if !conn.up[1 - end.side] {
            self.free.push(end.conn);
        }
    }
}

impl Conn {
    /// Whether a packet from `side` is lost on the way, by chance.
    pub(super) fn loses(&mut self, side: usize, spec: &Wire, now: u64, rng: &mut Rng) -> bool {
        let mut loss = spec.loss;
        if let Some((bad, every, length)) = spec.bursts {
            let burst = &mut self.bursts[side];
            while burst.until <= now {
                burst.is_bad = !burst.is_bad;
                let mean = if burst.is_bad { length } else { every };
                burst.until += 1 + rng.exponential(mean);
            }
            if burst.is_bad {
                loss = loss.max(bad);
            }
        }
        rng.hits(loss)
    }
}

/// A [`LinkSpec`] in microseconds.
#[derive(Debug)]
pub(super) struct Wire {
    seed: u64,
    low: u64,
    high: u64,
    spread: Option<f64>,
    regions: u32,
    between: Option<(u64, u64)>,
    jitter: f64,
    pub(super) loss: f64,
    /// Loss, mean time between, mean length.
    bursts: Option<(f64, u64, u64)>,
    reorder: f64,
    pub(super) duplicate: f64,
    pub(super) rate: u64,
}

impl Wire {
    pub(super) fn new(spec: &LinkSpec, seed: u64) -> Self {
        let between = spec.between.as_ref();
        let bursts = spec.bursts.as_ref();
        Self {
            seed: mix(seed ^ 0x11),
            low: micros(*spec.latency.start()),
            high: micros(*spec.latency.end()),
            spread: spec.spread,
            regions: spec.regions.max(1),
            between: between.map(|range| (micros(*range.start()), micros(*range.end()))),
            jitter: spec.jitter,
            loss: spec.loss,
            bursts: bursts.map(|b| (b.loss, micros(b.every), micros(b.length))),
            reorder: spec.reorder,
            duplicate: spec.duplicate,
            rate: spec.rate.max(1),
        }
    }

    /// The latency between two nodes, the same in both directions and for ever.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    pub(super) fn latency(&self, a: u32, b: u32) -> u64 {
        let pair = u64::from(a.min(b)) << 32 | u64::from(a.max(b));
        let mut rng = Rng::new(self.seed, pair);
        let middle = u64::midpoint(self.low, self.high);
        let base = match self.spread {
            Some(spread) => {
                let factor = exp(rng.normal() * spread).clamp(0.1, 10.0);
                (middle as f64 * factor) as u64
            }
            None => rng.within(&(self.low..=self.high)),
        };
        let far = self
            .between
            .filter(|_| a % self.regions != b % self.regions);
        let far = far.map_or(0, |(low, high)| rng.within(&(low..=high)));
        (base + far).max(1)
    }

    /// How long one packet takes over a connection of this latency.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    pub(super) fn travel(&self, latency: u64, rng: &mut Rng) -> u64 {
        let late = (latency as f64 * self.jitter * rng.unit()) as u64;
        let overtaken = if rng.hits(self.reorder) {
            rng.within(&(0..=4 * latency))
        } else {
            0
        };
        latency + late + overtaken
    }
}

/// Microseconds of a duration.
pub(super) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
