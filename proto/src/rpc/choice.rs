//! Which of the nodes that offer a service gets a call.

use std::time::Duration;

use meshwork_identity::NodeId;

/// One of so many choices of the least latency goes to any node, so that what is known of the others
/// does not grow old.
const EXPLORE: u64 = 32;

/// How a node is chosen among those that announce the service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// Any.
    #[default]
    Random,
    /// One after the other, by node id.
    RoundRobin,
    /// The one that answered fastest of late; first those that nothing is known of.
    LeastLatency,
    /// The one with the fewest calls of ours under way.
    LeastLoad,
    /// The same one for the same key, as long as it is there. When a node comes or goes, only the keys
    /// that it gets or had change their node (rendezvous hashing, Thaler and Ravishankar 1998).
    Sticky(Vec<u8>),
}

/// A node that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// How long its answers took of late; none when there were none.
    pub latency: Option<Duration>,
    /// Calls under way.
    pub load: u32,
}

impl Choice {
    /// The place of the chosen one in `candidates`, which are sorted by node id; none when there are
    /// none. `turn` counts the calls of the service, `chance` is any number.
    pub fn pick(&self, candidates: &[Candidate], turn: u64, chance: u64) -> Option<usize> {
        let count = u64::try_from(candidates.len()).ok().filter(|n| *n > 0)?;
        let place = |of: u64| usize::try_from(of % count).expect("below a length");
        let any = place(chance);
        // Equals take turns by chance.
        let from =
            |start: usize| (0..candidates.len()).map(move |n| (start + n) % candidates.len());
        match self {
            Self::Random => Some(any),
            Self::RoundRobin => Some(place(turn)),
            Self::LeastLatency if (chance >> 32).is_multiple_of(EXPLORE) => Some(any),
            Self::LeastLatency => {
                from(any).min_by_key(|at| candidates[*at].latency.unwrap_or(Duration::ZERO))
            }
            Self::LeastLoad => from(any).min_by_key(|at| candidates[*at].load),
            Self::Sticky(key) => {
                let weight = |at: &usize| rendezvous(key, &candidates[*at].node);
                (0..candidates.len()).max_by_key(weight)
            }
        }
    }
}

/// How much a node wants a key: FNV-1a over both, well mixed (the finalizer of `SplitMix64`).
fn rendezvous(key: &[u8], node: &NodeId) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = node.as_bytes().iter().chain(key);
    let hash = bytes.fold(BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn candidates(count: u8) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = (0..count)
            .map(|n| Candidate {
                node: Identity::from_seed(&[n + 1; 32]).node_id(),
                latency: Some(Duration::from_millis(10)),
                load: 1,
            })
            .collect();
        all.sort_by_key(|candidate| candidate.node);
        all
    }

    /// Numbers that look like chance.
    fn chances() -> impl Iterator<Item = u64> {
        (1u64..).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[test]
    fn nobody_is_chosen_of_none() {
        for choice in [
            Choice::Random,
            Choice::RoundRobin,
            Choice::LeastLatency,
            Choice::LeastLoad,
            Choice::Sticky(vec![1]),
        ] {
            assert_eq!(choice.pick(&[], 3, 5), None);
            assert_eq!(choice.pick(&candidates(1), 3, 5), Some(0));
        }
    }

    #[test]
    fn turns_and_chance_reach_everybody_alike() {
        let all = candidates(5);
        let turns: Vec<_> = (0..10)
            .map(|n| Choice::RoundRobin.pick(&all, n, 9))
            .collect();
        let order = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4].map(Some);
        assert_eq!(turns, order);
        for choice in [Choice::Random, Choice::LeastLoad, Choice::LeastLatency] {
            let mut hits = [0; 5];
            for chance in chances().take(5000) {
                hits[choice.pick(&all, 0, chance).unwrap()] += 1;
            }
            assert!(
                hits.iter().all(|n| (800..1200).contains(n)),
                "{choice:?}: {hits:?}"
            );
        }
    }

    #[test]
    fn the_least_is_chosen() {
        let mut all = candidates(4);
        all[2].load = 0;
        assert_eq!(Choice::LeastLoad.pick(&all, 0, 77), Some(2));
        all[3].latency = Some(Duration::from_millis(2));
        let picks = |all: &[Candidate], wanted: usize| {
            let picks = chances().take(1000);
            let picks = picks.map(|chance| Choice::LeastLatency.pick(all, 0, chance));
            picks.filter(|pick| *pick == Some(wanted)).count()
        };
        let fast = picks(&all, 3);
        assert!((900..1000).contains(&fast), "{fast} of 1,000");
        all[1].latency = None;
        assert!(picks(&all, 1) > 900, "it is not known yet");
    }

    #[test]
    fn a_key_stays_with_its_node() {
        let all = candidates(8);
        let node = |all: &[Candidate], key: u32| {
            let choice = Choice::Sticky(key.to_be_bytes().to_vec());
            all[choice.pick(all, 0, 0).unwrap()].node
        };
        let gone = all[3].node;
        let rest: Vec<Candidate> = all.iter().copied().filter(|c| c.node != gone).collect();
        let mut moved = 0;
        for key in 0..4000 {
            let (before, after) = (node(&all, key), node(&rest, key));
            assert!(
                before == after || before == gone,
                "key {key} moved without need"
            );
            moved += u32::from(before == gone);
        }
        assert!((400..600).contains(&moved), "an eighth of 4,000: {moved}");
    }
}
