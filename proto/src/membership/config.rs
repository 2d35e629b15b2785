//! The figures of the membership machine, and why they are what they are.

use std::time::Duration;

use super::types::MAX_ACCUSERS;

/// Figures of the membership machine. All nodes of a mesh should use the same ones: who waits
/// less than others takes slow nodes for dead.
///
/// The defaults are for 3 to 10,000 nodes and follow from four demands at 1,000 nodes: a dead
/// node is suspected within 5 s and declared within 15 s; a node that stalls for up to 5 s, on
/// links that lose 30 %, is never declared dead; halves that were apart agree 10 s after they
/// meet; a node sends less than 2 KB/s when nothing happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipConfig {
    /// Neighbours that a node looks for. Default 5, at least 1, at most `active_max`. In a mesh
    /// of no more than `active_max` nodes all are neighbours. More spread faster and cost more:
    /// every fact crosses every such link.
    pub active_wanted: usize,
    /// Neighbours that a node has at most. Default 8. A peer can make a node hold this many links,
    /// no more.
    pub active_max: usize,
    /// Nodes kept in mind for dialling besides the ledger's. Default 64.
    pub passive_max: usize,
    /// Time between two probes, each of another neighbour. Default 500 ms: with 5 to 8
    /// neighbours, each probing on its own, 99 of 100 dead nodes are asked within 1.6 s of their
    /// death. Times (1 + health).
    pub probe_period: Duration,
    /// How long a probe asks directly before it asks others as well. Default 800 ms, times
    /// (1 + health).
    pub direct_timeout: Duration,
    /// How long a probe lasts in all before its target is accused. Default 2 s, times
    /// (1 + health). Larger than `direct_timeout`.
    pub probe_timeout: Duration,
    /// Time before a ping is repeated, until the round trip is known; then 1.5 round trips
    /// between 100 and 400 ms. Default 200 ms. Ten tries within a probe keep a loss of 30 % from
    /// raising more than one suspicion in ten thousand probes.
    pub ping_repeat: Duration,
    /// Others that are asked to try a target. Default 3, at most 8.
    pub indirect: usize,
    /// Time that a suspect has to object when [`MAX_ACCUSERS`] nodes accuse it, in a mesh of 1,000;
    /// it grows with the logarithm of the mesh. Default 9 s. The neighbours of a suspect look for
    /// themselves after two fifths of it, so that a node that stalls for up to 5 s is accused by
    /// one node and has the longer time, while a dead one is declared 11.5 s after its death. A
    /// node that says something between two stalls of 5 s survives any number of them; when it
    /// cannot, mostly two.
    pub suspicion_min: Duration,
    /// The same when only one node accuses it. Default 15 s.
    pub suspicion_max: Duration,
    /// Time between two repairs, each with a random neighbour. Default 10 s.
    pub repair_period: Duration,
    /// Time between two looks at a random node that is no neighbour, when hardly any is dead.
    /// Default 30 s: a look costs a handshake, about 5 KB.
    pub survey_max: Duration,
    /// The same when a tenth or more are dead, as in a partition. Default 5 s: halves of 500
    /// nodes then try each other 170 times a second.
    pub survey_min: Duration,
    /// Time after which one neighbour is replaced by a random node. Default 5 min.
    pub replace_period: Duration,
    /// How long a node that heard from nobody doubts itself before it accuses the others.
    /// Default 30 s.
    pub isolation_patience: Duration,
    /// How long a link that was dialled for a look is kept. Default 10 s.
    pub linger: Duration,
    /// Largest local health. Default 8: a node in doubt waits up to nine times as long.
    pub health_max: u32,
    /// Links that a fact travels at most. Default 16.
    pub max_hops: u8,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            active_wanted: 5,
            active_max: 8,
            passive_max: 64,
            probe_period: Duration::from_millis(500),
            direct_timeout: Duration::from_millis(800),
            probe_timeout: Duration::from_secs(2),
            ping_repeat: Duration::from_millis(200),
            indirect: 3,
            suspicion_min: Duration::from_secs(9),
            suspicion_max: Duration::from_secs(15),
            repair_period: Duration::from_secs(10),
            survey_max: Duration::from_secs(30),
            survey_min: Duration::from_secs(5),
            replace_period: Duration::from_mins(5),
            isolation_patience: Duration::from_secs(30),
            linger: Duration::from_secs(10),
            health_max: 8,
            max_hops: crate::limits::MAX_HOPS,
        }
    }
}

/// No period is shorter, as a timer must get on, or longer, as a multiple of it must be a time.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_hours(24);

impl MembershipConfig {
    /// The same with every figure within its bounds.
    pub(super) fn bounded(mut self) -> Self {
        self.active_max = self.active_max.clamp(1, 64);
        self.active_wanted = self.active_wanted.clamp(1, self.active_max);
        self.passive_max = self.passive_max.clamp(1, 1024);
        self.indirect = self.indirect.min(8);
        self.health_max = self.health_max.min(64);
        for period in [
            &mut self.probe_period,
            &mut self.direct_timeout,
            &mut self.probe_timeout,
            &mut self.ping_repeat,
            &mut self.suspicion_min,
            &mut self.suspicion_max,
            &mut self.repair_period,
            &mut self.survey_max,
            &mut self.survey_min,
            &mut self.replace_period,
            &mut self.linger,
        ] {
            *period = (*period).clamp(SHORTEST, LONGEST);
        }
        self
    }

    /// Neighbours to look for among this many living others.
    pub(super) fn wanted(&self, living: usize) -> usize {
        if living < self.active_max {
            living
        } else {
            self.active_wanted.min(self.active_max)
        }
    }

    /// How long a suspect has to object, when `accusers` of at most `possible` nodes accuse it in
    /// a mesh of `nodes`: from the longest to the shortest time by the logarithm of the
    /// independent accusers (Lifeguard, arXiv 1707.00788, section IV-B).
    pub(super) fn suspicion(&self, accusers: usize, possible: usize, nodes: usize) -> Duration {
        let scale = scale(nodes);
        let needed = MAX_ACCUSERS.min(possible.max(1));
        let confirmed = logarithm(accusers.clamp(1, needed)) / logarithm(needed).max(1e-9);
        let confirmed = if needed == 1 { 1.0 } else { confirmed };
        let (min, max) = (
            self.suspicion_min.as_secs_f64(),
            self.suspicion_max.as_secs_f64(),
        );
        Duration::from_secs_f64((max - (max - min).max(0.0) * confirmed).max(0.0) * scale)
    }
}

/// How much longer than in a mesh of 1,000 a fact may take, by the logarithm of the mesh. Not
/// below four fifths: a stall is as long in a small mesh.
fn scale(nodes: usize) -> f64 {
    let nodes = u32::try_from(nodes.max(1)).unwrap_or(u32::MAX);
    (f64::from(nodes).log10() / 3.0).clamp(0.8, 1.5)
}

fn logarithm(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)).ln()
}

/// Shortest and longest life of an announcement.
const TTL: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(24));
/// Life of an announcement for each known node.
const TTL_PER_NODE: Duration = Duration::from_secs(3);

/// How long the local node's announcement should live when it knows this many others. It is
/// renewed after a third of that, so that a mesh of any size renews about one of them a second:
/// that flood is most of what an idle node sends.
pub fn renewal_ttl(known: usize) -> Duration {
    let known = u32::try_from(known).unwrap_or(u32::MAX);
    TTL_PER_NODE.saturating_mul(known).clamp(TTL.0, TTL.1)
}
