//! Looks at random nodes that are no neighbours: completeness for nodes whose neighbours all
//! died, and the way back from a partition.

use std::time::Duration;

use super::probe::Why;
use super::{Context, Membership, Peer};

/// Surveys quicken until one known node in this many is dead.
const MANY_DEAD: usize = 10;
/// When one known node in this many is dead, or neighbours are missing, most looks go to the dead.
const MOST_DEAD: usize = 4;
/// Of these many looks then one goes to a living node.
const LIVING_SHARE: usize = 8;
/// Tries to draw a living node that is not a neighbour.
const DRAWS: usize = 8;

impl<P: Peer> Membership<P> {
    /// Time to the next look: the more nodes are dead, the shorter.
    pub(super) fn survey_interval(&self, cx: &Context<'_, P>) -> Duration {
        let (longest, shortest) = (self.config.survey_max, self.config.survey_min);
        let known = cx.ledger.nodes().max(1);
        let dead = self.suspects.dead().saturating_mul(MANY_DEAD).min(known);
        let share = u32::try_from(dead * 1024 / known).unwrap_or(1024);
        longest.saturating_sub(longest.saturating_sub(shortest) / 1024 * share)
    }

    /// Looks at a node when it is time.
    pub(super) fn survey(&mut self, cx: &mut Context<'_, P>) {
        if cx.now < self.due.survey {
            return;
        }
        self.due.survey = cx.now + cx.chance.jitter(self.survey_interval(cx));
        let Some(peer) = self.to_survey(cx) else {
            return;
        };
        self.stats.surveys += 1;
        if self.links.contains_key(&peer) {
            self.check(cx, peer, Why::Probe);
            // Neighbours may keep something from this node; one of the others would tell.
            self.start_repair(cx, peer);
        } else if self.dial(cx, peer)
            && let Some(dial) = self.dials.iter_mut().find(|dial| dial.peer == peer)
        {
            dial.survey = true;
        }
    }

    fn to_survey(&self, cx: &mut Context<'_, P>) -> Option<P> {
        let (dead, known) = (self.suspects.dead(), cx.ledger.nodes());
        let few = self.neighbours.len() < self.config.active_wanted;
        let most = few || dead * MOST_DEAD >= known;
        let look_at_dead = if most {
            !cx.chance.one_in(LIVING_SHARE)
        } else {
            cx.chance.one_in(2)
        };
        if dead > 0 && look_at_dead {
            return self.suspects.nth_dead(cx.chance.below(dead));
        }
        if cx.chance.one_in(2)
            && let Some(peer) = self.forgotten(cx)
        {
            return Some(peer);
        }
        let strange = |peer: &P| {
            *peer != self.local && !self.is_neighbour(*peer) && !self.suspects.holds(peer)
        };
        (0..DRAWS)
            .filter_map(|_| cx.ledger.nth(cx.chance.below(known)))
            .find(strange)
    }

    /// One of those met before that the ledger does not know any more.
    fn forgotten(&self, cx: &mut Context<'_, P>) -> Option<P> {
        let start = cx.chance.below(self.passive.len());
        let (end, begin) = self.passive.split_at(start);
        let mut around = begin.iter().chain(end).copied();
        around.find(|peer| cx.version(*peer).is_none() && !self.is_neighbour(*peer))
    }
}
