//! The wires between all hosts.

use std::{collections::BTreeMap, time::Duration};

use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{
    HostId,
    wire::{Wire, WireState},
};

/// All wires: a way leads over the uplink of its sender, a wire between the two, and the downlink of
/// the receiver.
pub(super) struct Wires {
    pub(super) between_all: Wire,
    /// Within a network that is not the internet.
    pub(super) local: Wire,
    pub(super) between: BTreeMap<(HostId, HostId), Wire>,
    pub(super) up: BTreeMap<HostId, Wire>,
    pub(super) down: BTreeMap<HostId, Wire>,
    states: BTreeMap<Segment, WireState>,
}

/// Names a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Up(HostId),
    Between(Option<HostId>, Option<HostId>),
    Down(HostId),
}

/// What a wire needs to know of a datagram.
#[derive(Clone, Copy)]
pub(super) struct Trip {
    pub(super) sender: Option<HostId>,
    pub(super) receiver: Option<HostId>,
    pub(super) local: bool,
    pub(super) size: usize,
    pub(super) v6: bool,
}

impl Wires {
    pub(super) fn new(between_all: Wire) -> Self {
        Self {
            between_all,
            local: Wire::cable(),
            between: BTreeMap::new(),
            up: BTreeMap::new(),
            down: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// After which delays a datagram arrives, once or twice; `None`: it is lost.
    pub(super) fn pass(
        &mut self,
        rng: &mut StdRng,
        now: Instant,
        trip: Trip,
    ) -> Option<impl Iterator<Item = Duration> + use<>> {
        let Trip {
            sender,
            receiver,
            local,
            size,
            v6,
        } = trip;
        let pair = sender.zip(receiver);
        let common = if local {
            &self.local
        } else {
            &self.between_all
        };
        let between = pair
            .and_then(|pair| self.between.get(&pair))
            .unwrap_or(common);
        let up = sender.and_then(|host| Some((Segment::Up(host), self.up.get(&host)?)));
        let down = receiver.and_then(|host| Some((Segment::Down(host), self.down.get(&host)?)));
        let middle = (Segment::Between(sender, receiver), between);
        let segments = [up, Some(middle), down];
        let mut delay = Duration::ZERO;
        let mut twin: Option<Duration> = None;
        for (segment, wire) in segments.into_iter().flatten() {
            let state = self.states.entry(segment).or_default();
            // It reaches the next wire when it has passed this one; queues are kept by then.
            let passage = wire.pass(state, rng, now + delay, size, v6)?;
            let later = twin.map(|twin| twin + passage.delay);
            twin = later.or_else(|| passage.twin.map(|twin| delay + twin));
            delay += passage.delay;
        }
        Some([Some(delay), twin].into_iter().flatten())
    }
}
