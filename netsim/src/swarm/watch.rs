//! What is measured while a swarm runs: who knows, suspects and declares what, and since when.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_proto::membership::Liveness;

use crate::scenario::Outcome;

/// Everything that is being measured.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// By origin: announcements whose spreading is watched.
    pub(super) spreads: BTreeMap<u32, Spread>,
    /// By subject: deaths whose discovery is watched.
    pub(super) deaths: BTreeMap<u32, Death>,
    pub(super) heal: Option<Heal>,
    /// By subject: honest living nodes that hold it dead.
    pub(super) dead_marks: Vec<u32>,
    /// The same, over the subjects that live.
    pub(super) wrongly_dead: u64,
    /// Living, reachable nodes that an honest node declared dead: who, by whom, when.
    pub(super) false_deaths: u64,
    pub(super) false_suspicions: u64,
    pub(super) done: Done,
}

/// Finished measurements, in seconds.
#[derive(Debug, Default)]
pub(super) struct Done {
    known: Vec<f64>,
    suspected: Vec<f64>,
    suspected_by_all: Vec<f64>,
    declared: Vec<f64>,
    healed: Vec<f64>,
}

/// An announcement on its way to all.
#[derive(Debug)]
pub(super) struct Spread {
    pub(super) version: u32,
    pub(super) since: u64,
    pub(super) count: usize,
    pub(super) needed: usize,
}

/// A node that died, and who found out.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) since: u64,
    pub(super) needed: usize,
    suspect: usize,
    dead: usize,
    first: Option<u64>,
    by_all: Option<u64>,
}

/// A mesh that is to come together again.
#[derive(Debug)]
pub(super) struct Heal {
    pub(super) since: u64,
    /// By node: the version that all are to know; 0 for nodes that do not matter.
    pub(super) wanted: Vec<u32>,
    /// Nodes that are to know them; those that do are taken off.
    pub(super) ignorant: Vec<u32>,
}

impl Watches {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            dead_marks: vec![0; nodes],
            ..Self::default()
        }
    }

    /// An honest node that runs since `began` took a fact: it now holds `version` of `origin`, and before an earlier one.
    pub(super) fn learnt(&mut self, origin: u32, began: u64, before: u32, version: u32, now: u64) {
        if self.spreads.is_empty() {
            return;
        }
        let Some(spread) = self.spreads.get_mut(&origin) else {
            return;
        };
        if began <= spread.since && before < spread.version && version >= spread.version {
            spread.count += 1;
            if spread.count >= spread.needed {
                self.done.known.push(seconds(now - spread.since));
                self.spreads.remove(&origin);
            }
        }
    }

    pub(super) fn died(&mut self, subject: u32, needed: usize, now: u64) {
        let death = Death {
            since: now,
            needed,
            suspect: 0,
            dead: 0,
            first: None,
            by_all: None,
        };
        self.deaths.insert(subject, death);
    }

    /// An honest node that runs since `began` changed its mind about `subject`.
    pub(super) fn judged(
        &mut self,
        subject: u32,
        began: u64,
        before: Liveness,
        after: Liveness,
        now: u64,
    ) {
        let observed = |death: &&mut Death| began <= death.since;
        let Some(death) = self.deaths.get_mut(&subject).filter(observed) else {
            return;
        };
        let doubted = |liveness: Liveness| usize::from(liveness != Liveness::Alive);
        let given_up = |liveness: Liveness| usize::from(liveness == Liveness::Dead);
        death.suspect = death.suspect + doubted(after) - doubted(before).min(death.suspect);
        death.dead = death.dead + given_up(after) - given_up(before).min(death.dead);
        self.settle_death(subject, now);
    }

    /// Notes what has come to pass.
    fn settle_death(&mut self, subject: u32, now: u64) {
        let Some(death) = self.deaths.get_mut(&subject) else {
            return;
        };
        if death.suspect > 0 {
            death.first.get_or_insert(now);
        }
        if death.suspect >= death.needed {
            death.by_all.get_or_insert(now);
        }
        if death.dead >= death.needed {
            let death = self.deaths.remove(&subject).expect("it was just there");
            let after = |at: Option<u64>| seconds(at.unwrap_or(now) - death.since);
            self.done.suspected.push(after(death.first));
            self.done.suspected_by_all.push(after(death.by_all));
            self.done.declared.push(seconds(now - death.since));
        }
    }

    pub(super) fn healed(&mut self, now: u64) {
        if let Some(heal) = self.heal.take() {
            self.done.healed.push(seconds(now - heal.since));
        }
    }

    /// An honest observer is gone, which knew what `knows` says and held of the dead what `held`
    /// says: it is not waited for any more.
    pub(super) fn lost(
        &mut self,
        began: u64,
        now: u64,
        knows: impl Fn(u32) -> u32,
        held: impl Fn(u32) -> Liveness,
    ) {
        self.spreads.retain(|origin, spread| {
            if began <= spread.since {
                spread.needed = spread.needed.saturating_sub(1);
                spread.count -= usize::from(knows(*origin) >= spread.version);
            }
            let done = spread.count >= spread.needed;
            if done {
                self.done.known.push(seconds(now - spread.since));
            }
            !done
        });
        let subjects: Vec<u32> = self.deaths.keys().copied().collect();
        for subject in subjects {
            self.judged(subject, began, held(subject), Liveness::Alive, now);
            let observed = |death: &&mut Death| began <= death.since;
            if let Some(death) = self.deaths.get_mut(&subject).filter(observed) {
                death.needed = death.needed.saturating_sub(1);
                self.settle_death(subject, now);
            }
        }
    }

    /// Writes the measurements. What never came to an end took for ever.
    pub(super) fn report(self, out: &mut Outcome) {
        let Done {
            mut known,
            mut suspected,
            mut suspected_by_all,
            mut declared,
            mut healed,
        } = self.done;
        known.extend(self.spreads.values().map(|_| f64::INFINITY));
        healed.extend(self.heal.iter().map(|_| f64::INFINITY));
        for death in self.deaths.values() {
            let after = |at: Option<u64>| at.map_or(f64::INFINITY, |at| seconds(at - death.since));
            suspected.push(after(death.first));
            suspected_by_all.push(after(death.by_all));
            declared.push(f64::INFINITY);
        }
        for (name, values) in [
            ("known", known),
            ("suspected", suspected),
            ("suspected_by_all", suspected_by_all),
            ("declared", declared),
            ("healed", healed),
        ] {
            if !values.is_empty() {
                out.measure_all(name, values);
            }
        }
        #[allow(clippy::cast_precision_loss)]
        {
            out.measure("false_dead", self.false_deaths as f64);
            out.measure("false_suspect", self.false_suspicions as f64);
        }
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}
