//! Doubt in oneself: Lifeguard's local health (arXiv 1707.00788, section IV-A), stalls, isolation.

use std::time::Duration;

use super::{Context, Membership, Moment, Peer};

/// A timer that comes this much late shows that the node was held up.
const LATE: Duration = Duration::from_millis(300);
/// A stall costs one point of health for each of these, and at most [`STALL_COST`].
const STALL_UNIT: Duration = Duration::from_secs(2);
const STALL_COST: u32 = 3;
/// A node in doubt looks at the time this often.
pub(super) const PULSE: Duration = Duration::from_millis(500);

impl<P: Peer> Membership<P> {
    /// How much longer than usual this node waits.
    pub(super) fn stretch(&self, time: Duration) -> Duration {
        time.saturating_mul(1 + self.health)
    }

    /// It did badly: it waits longer.
    pub(super) fn worsen(&mut self, by: u32) {
        self.health = (self.health + by).min(self.config.health_max);
    }

    /// It did well.
    pub(super) fn mend(&mut self) {
        self.health = self.health.saturating_sub(1);
    }

    /// Notices that a timer is overdue. The answers and objections of the lost time are still to
    /// be read, so whatever waits for them gets that time back.
    pub(super) fn notice_stall(&mut self, cx: &mut Context<'_, P>) {
        let late = cx.now.since(self.timer);
        if late < LATE {
            return;
        }
        self.stats.stalls += 1;
        let units = u32::try_from(late.as_millis() / STALL_UNIT.as_millis()).unwrap_or(u32::MAX);
        self.worsen(units.saturating_add(1).min(STALL_COST));
        for check in &mut self.checks {
            check.delay(late);
        }
        for errand in &mut self.errands {
            errand.delay(late);
        }
        for dial in &mut self.dials {
            dial.until = dial.until + late;
        }
        for asked in &mut self.asked {
            asked.1 = asked.1 + late;
        }
        self.suspects.delay(late);
        self.isolated = self.isolated.map(|since| since + late);
        // What is periodic goes on from here; a burst of what was missed helps nobody.
        let due = &mut self.due;
        for at in [&mut due.probe, &mut due.repair, &mut due.survey] {
            *at = *at + late;
        }
        self.set_timer(cx.now);
        // Somebody's probe has failed meanwhile, or nearly.
        if late >= self.config.probe_timeout * 5 / 8 {
            self.object_unasked(cx);
        }
    }

    /// Somebody was heard: this node is not alone.
    pub(super) fn hear_from(&mut self, now: Moment, peer: P) {
        if let Some(neighbour) = self.neighbours.iter_mut().find(|held| held.peer == peer) {
            neighbour.heard = now;
            self.isolated = None;
        }
    }

    /// Nobody is heard: this node doubts itself before it blames all others.
    pub(super) fn doubt(&mut self, cx: &mut Context<'_, P>) {
        if self.isolated.is_none() {
            self.isolated = Some(cx.now);
            self.worsen(1);
            self.avoided.clear();
            self.due.view = cx.now;
        }
    }

    /// Whether what this node did not hear since `start` says anything of `about`: somebody else
    /// was heard since, or there is nobody else, or it has doubted itself long enough.
    pub(super) fn trusts_itself(&self, cx: &Context<'_, P>, start: Moment, about: P) -> bool {
        let others = self.living(cx).saturating_sub(1);
        let heard = |held: &super::Neighbour<P>| held.peer != about && held.heard >= start;
        others == 0 || self.neighbours.iter().any(heard) || self.has_doubted_enough(cx.now)
    }

    /// Whether it is alone, and not for long enough to believe that the others are gone.
    pub(super) fn is_doubting(&self, now: Moment) -> bool {
        self.isolated.is_some() && !self.has_doubted_enough(now)
    }

    fn has_doubted_enough(&self, now: Moment) -> bool {
        let patience = self.config.isolation_patience;
        self.isolated
            .is_some_and(|since| now.since(since) >= patience)
    }
}
