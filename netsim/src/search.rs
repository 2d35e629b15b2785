//! Looks for scenarios that break an invariant, and makes them small.
//!
//! Random scenarios within sane ranges: links, slow nodes, liars, faults; then a time without
//! faults, after which all nodes must agree. There are no bars: only what must hold always is
//! checked. What fails is made smaller as long as it still fails: fewer nodes, fewer faults, less
//! trouble, shorter.

use std::fmt::Write;
use std::path::Path;

use crate::run::run_once;
use crate::scenario::Scenario;
use crate::swarm::Draws;

/// A scenario that fails.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// The scenario file.
    pub text: String,
    /// The seed with which it fails.
    pub seed: u64,
    /// What breaks.
    pub problem: String,
}

/// Tries one random scenario for each seed from `first_seed` on, as long as `goes_on` says so;
/// shrinks the first that fails. `tell` is told what happens, for people who wait.
pub fn search(
    first_seed: u64,
    mut goes_on: impl FnMut() -> bool,
    tell: &dyn Fn(&str),
) -> Option<Found> {
    let mut tried = 0u64;
    for seed in first_seed.. {
        if !goes_on() {
            break;
        }
        let draft = Draft::random(seed);
        tried += 1;
        if let Some(problem) = draft.problem() {
            tell(&format!("seed {seed} fails: {problem}; shrinking"));
            let small = draft.shrunk(&Draft::problem, &mut goes_on, tell);
            return Some(small.found(seed));
        }
        if tried.is_multiple_of(20) {
            tell(&format!("{tried} random scenarios held"));
        }
    }
    tell(&format!("{tried} random scenarios held"));
    None
}

/// A scenario that is being made.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools)]
struct Draft {
    /// With which it is run.
    seed: u64,
    nodes: u32,
    /// Seconds until the quiet end.
    active: u32,
    cold: bool,
    latency: (u32, u32),
    loss: u32,
    bursts: bool,
    reorder: bool,
    duplicate: bool,
    slow: Option<u32>,
    skew: u32,
    liars: Vec<&'static str>,
    steps: Vec<Fault>,
}

/// What happens at some second.
#[derive(Debug, Clone, PartialEq)]
struct Fault {
    at: u32,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Crash(u32),
    Restart,
    Reborn,
    Pause(u32, u32),
    Leave(u32),
    Join(u32),
    Partition(u32),
    Mute(u32),
    Deafen(u32),
    Heal,
    RestartAll(u32),
    Clock(u32, u32),
    Publish(u32),
}

impl Draft {
    fn random(seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let nodes = match draws.below(4) {
            0 => 3 + draws.below(8),
            1 => 10 + draws.below(30),
            _ => 30 + draws.below(120),
        };
        let active = 30 + draws.below(240);
        let low = 1 + draws.below(60);
        let mut draft = Self {
            seed,
            nodes,
            active,
            cold: draws.below(3) == 0,
            latency: (low, low + draws.below(100)),
            loss: [0, 0, 1, 5, 10, 20, 30][draws.below(7) as usize],
            bursts: draws.below(4) == 0,
            reorder: draws.below(3) == 0,
            duplicate: draws.below(3) == 0,
            slow: (draws.below(4) == 0).then(|| 1 + draws.below(15)),
            skew: [0, 0, 5, 14][draws.below(4) as usize],
            liars: Vec::new(),
            steps: Vec::new(),
        };
        let mut from = 0;
        if draft.cold {
            let at = draws.below(active / 3);
            draft.steps.push(Fault {
                at,
                what: What::Join(nodes),
            });
            // Whose only contacts die before they have told of others can find nobody.
            from = at + KNOWN;
            draft.active += KNOWN;
        }
        if nodes >= 10 && draws.below(5) == 0 {
            for lie in LIES {
                if draws.below(3) == 0 {
                    draft.liars.push(lie);
                }
            }
        }
        for _ in 0..draws.below(8) {
            let at = from + draws.below(draft.active - from);
            let what = What::random(&mut draws, nodes);
            draft.steps.push(Fault { at, what });
        }
        draft.steps.sort_by_key(|fault| fault.at);
        draft
    }

    /// What breaks, if anything does.
    fn problem(&self) -> Option<String> {
        let text = self.text("search", self.seed);
        let scenario = Scenario::parse(Path::new("search.toml"), &text);
        let outcome = scenario.and_then(|scenario| run_once(&scenario, self.seed, None));
        match outcome {
            Ok(outcome) => outcome.broken.into_iter().next(),
            Err(error) => Some(format!("the searcher wrote a file that is none: {error}")),
        }
    }

    /// The smallest that was found to fail in the same way. `judge` says what breaks.
    fn shrunk(
        mut self,
        judge: &dyn Fn(&Self) -> Option<String>,
        goes_on: &mut dyn FnMut() -> bool,
        tell: &dyn Fn(&str),
    ) -> Self {
        let problem = judge(&self).as_deref().map(kind);
        let mut tries = 0;
        'again: loop {
            for mut smaller in self.smaller() {
                // With fewer nodes the same draws mean something else: others may hit where they miss.
                for seed in self.seed..self.seed.saturating_add(SEEDS_TRIED) {
                    tries += 1;
                    if tries > MAX_SHRINKS || (tries > MIN_SHRINKS && !goes_on()) {
                        return self;
                    }
                    smaller.seed = seed;
                    let same = judge(&smaller).as_deref().map(kind);
                    if same.is_some() && same == problem {
                        let (nodes, steps) = (smaller.nodes, smaller.steps.len());
                        tell(&format!("still fails with {nodes} nodes and {steps} steps"));
                        self = smaller;
                        continue 'again;
                    }
                }
            }
            return self;
        }
    }

    /// Each with something less; the largest cuts first.
    fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        self.with_less_at_all(&mut all);
        self.with_less_trouble(&mut all);
        self.with_less_time(&mut all);
        all
    }

    /// Fewer nodes, fewer faults: at first many less at once.
    fn with_less_at_all(&self, all: &mut Vec<Self>) {
        for nodes in [
            3,
            5,
            self.nodes / 4,
            self.nodes / 2,
            self.nodes * 3 / 4,
            self.nodes - 1,
        ] {
            if (3..self.nodes).contains(&nodes) {
                self.with(all, |draft| draft.nodes = nodes);
            }
        }
        let steps = self.steps.len();
        for size in [steps / 2, steps / 4, 1] {
            for from in (0..steps).step_by(size.max(1)) {
                let to = (from + size).min(steps);
                self.with(all, |draft| drop(draft.steps.drain(from..to)));
            }
        }
        self.with(all, |draft| draft.liars.clear());
        for at in 0..self.liars.len() {
            self.with(all, |draft| {
                draft.liars.remove(at);
            });
        }
    }

    /// Better links and clocks, and faults that concern fewer nodes or last shorter.
    fn with_less_trouble(&self, all: &mut Vec<Self>) {
        self.with(all, |draft| draft.slow = None);
        self.with(all, |draft| draft.bursts = false);
        self.with(all, |draft| draft.loss = 0);
        self.with(all, |draft| draft.reorder = false);
        self.with(all, |draft| draft.duplicate = false);
        self.with(all, |draft| draft.skew = 0);
        self.with(all, |draft| draft.cold = false);
        self.with(all, |draft| draft.latency = (1, 1));
        self.with(all, |draft| draft.latency.1 = draft.latency.0);
        self.with(all, |draft| draft.loss /= 2);
        for at in 0..self.steps.len() {
            for what in self.steps[at].what.smaller() {
                self.with(all, |draft| draft.steps[at].what = what.clone());
            }
        }
    }

    /// Earlier faults, an earlier end.
    fn with_less_time(&self, all: &mut Vec<Self>) {
        let last = self.steps.iter().map(|fault| fault.at).max().unwrap_or(0);
        self.with(all, |draft| draft.active = draft.active.min(last + 5));
        self.with(all, |draft| {
            draft.steps.iter_mut().for_each(|fault| fault.at /= 2);
        });
    }

    /// Adds a changed copy, if the change changes anything.
    fn with(&self, all: &mut Vec<Self>, change: impl FnOnce(&mut Self)) {
        let mut smaller = self.clone();
        change(&mut smaller);
        if smaller != *self && !all.contains(&smaller) {
            all.push(smaller);
        }
    }

    /// `origin`: the seed of the scenario that this was made smaller from.
    fn found(&self, origin: u64) -> Found {
        let name = format!("found-{origin}");
        Found {
            text: self.text(&name, origin),
            name,
            seed: self.seed,
            problem: self.problem().unwrap_or_default(),
        }
    }

    fn text(&self, name: &str, seed: u64) -> String {
        let mut text = format!(
            "name = \"{name}\"\nkind = \"swarm\"\npromises = \"All agree when faults end; found by search with seed {seed}.\"\nseeds = 1\nduration = \"{} s\"\n\n[swarm]\nnodes = {}\nquiet = \"{QUIET} s\"\n",
            self.active + QUIET,
            self.nodes
        );
        if self.cold {
            text.push_str("start = \"cold\"\n");
        }
        if self.skew > 0 {
            let _ = writeln!(text, "skew = \"{} s\"", self.skew);
        }
        let (low, high) = self.latency;
        let _ = writeln!(text, "\n[swarm.link]\nlatency = \"{low} ms..{high} ms\"");
        if self.loss > 0 {
            let _ = writeln!(text, "loss = \"{} %\"", self.loss);
        }
        if self.bursts {
            text.push_str("bursts = { loss = \"80 %\", every = \"10 s\", length = \"500 ms\" }\n");
        }
        if self.reorder {
            text.push_str("reorder = \"5 %\"\n");
        }
        if self.duplicate {
            text.push_str("duplicate = \"5 %\"\n");
        }
        if let Some(share) = self.slow {
            let _ = writeln!(
                text,
                "\n[swarm.slow]\nnodes = \"{share} %\"\ndelay = \"0 ms..200 ms\"\nstall_every = \"60 s\""
            );
        }
        if !self.liars.is_empty() {
            let does = self.liars.join("\", \"");
            let _ = writeln!(text, "\n[swarm.adversary]\nnodes = 1\ndoes = [\"{does}\"]");
        }
        for fault in &self.steps {
            let _ = writeln!(
                text,
                "\n[[swarm.step]]\nat = \"{} s\"\n{}",
                fault.at,
                fault.what.text()
            );
        }
        let cuts = |fault: &Fault| {
            matches!(
                fault.what,
                What::Partition(_) | What::Mute(_) | What::Deafen(_)
            )
        };
        if self.steps.iter().any(cuts) {
            let _ = writeln!(
                text,
                "\n[[swarm.step]]\nat = \"{} s\"\nheal = true",
                self.active
            );
        }
        text
    }
}

impl What {
    fn random(draws: &mut Draws, nodes: u32) -> Self {
        let few = 1 + draws.below(nodes.div_ceil(10));
        let half = 1 + draws.below(nodes.div_ceil(2));
        match draws.below(14) {
            0 | 1 => Self::Crash(few),
            2 => Self::Restart,
            3 => Self::Reborn,
            4 => Self::Pause(few, 1 + draws.below(40)),
            5 => Self::Leave(few),
            6 => Self::Join(half),
            7 | 8 => Self::Partition(half),
            9 => Self::Mute(few),
            10 => Self::Deafen(few),
            11 => Self::Heal,
            12 if draws.below(3) == 0 => Self::RestartAll(1 + draws.below(20)),
            12 => Self::Clock(few, 1 + draws.below(10)),
            _ => Self::Publish(few),
        }
    }

    /// The same with fewer nodes, or shorter.
    fn smaller(&self) -> Vec<Self> {
        let less = |n: u32| {
            let mut less = vec![1, n / 2];
            less.retain(|less| (1..n).contains(less));
            less
        };
        let fewer = |n: u32, what: &dyn Fn(u32) -> Self| less(n).into_iter().map(what).collect();
        match *self {
            Self::Crash(n) => fewer(n, &Self::Crash),
            Self::Leave(n) => fewer(n, &Self::Leave),
            Self::Join(n) => fewer(n, &Self::Join),
            Self::Partition(n) => fewer(n, &Self::Partition),
            Self::Mute(n) => fewer(n, &Self::Mute),
            Self::Deafen(n) => fewer(n, &Self::Deafen),
            Self::Publish(n) => fewer(n, &Self::Publish),
            Self::RestartAll(secs) => fewer(secs, &Self::RestartAll),
            Self::Pause(n, secs) => {
                let mut all: Vec<Self> = fewer(n, &|n| Self::Pause(n, secs));
                all.extend(less(secs).into_iter().map(|secs| Self::Pause(n, secs)));
                all
            }
            Self::Clock(n, secs) => {
                let mut all: Vec<Self> = fewer(n, &|n| Self::Clock(n, secs));
                all.extend(less(secs).into_iter().map(|secs| Self::Clock(n, secs)));
                all
            }
            Self::Restart | Self::Reborn | Self::Heal => Vec::new(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Crash(n) => format!("crash = {n}"),
            Self::Restart => "restart = \"all\"".to_owned(),
            Self::Reborn => "reborn = \"all\"".to_owned(),
            Self::Pause(n, secs) => format!("pause = {{ nodes = {n}, for = \"{secs} s\" }}"),
            Self::Leave(n) => format!("leave = {n}"),
            Self::Join(n) => format!("join = {n}"),
            Self::Partition(n) => format!("partition = \"first {n}\""),
            Self::Mute(n) => format!("mute = {n}"),
            Self::Deafen(n) => format!("deafen = {n}"),
            Self::Heal => "heal = true".to_owned(),
            Self::RestartAll(secs) => format!("restart_all = \"0 s..{secs} s\""),
            Self::Clock(n, secs) => format!("clock = {{ nodes = {n}, forward = \"{secs} s\" }}"),
            Self::Publish(n) => format!("publish = {n}"),
        }
    }
}

/// What kind of problem it is: its words without the numbers.
fn kind(problem: &str) -> String {
    problem.chars().filter(char::is_ascii_alphabetic).collect()
}

/// Lies that a random scenario may hold.
const LIES: [&str; 9] = [
    "accuse",
    "accuse-ahead",
    "replay",
    "forge",
    "oversize",
    "flood",
    "babble",
    "stall",
    "vouch",
];
/// Seconds after which those that joined know each other.
const KNOWN: u32 = 20;
/// Seconds without faults after which all must agree.
const QUIET: u32 = 90;
/// Smaller scenarios tried at most, and tried in any case, however late it is.
const MAX_SHRINKS: u32 = 2000;
/// Seeds that a smaller scenario is tried with.
const SEEDS_TRIED: u64 = 4;
const MIN_SHRINKS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_random_scenario_is_a_scenario() {
        for seed in 0..300 {
            let text = Draft::random(seed).text("x", seed);
            let scenario = Scenario::parse(Path::new("x.toml"), &text).unwrap();
            crate::swarm::SwarmSpec::of(&scenario).unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
    }

    #[test]
    fn shrinking_ends() {
        let mut draft = Draft::random(5);
        let mut rounds = 0;
        while let Some(smaller) = draft.smaller().into_iter().next() {
            draft = smaller;
            rounds += 1;
            assert!(rounds < 1000, "shrinking does not end");
        }
        assert_eq!((draft.nodes, draft.steps.len(), draft.loss), (3, 0, 0));
    }

    /// A fault that is in the judge: two pauses, the second after a crash, in lossy networks of 7 or
    /// more. What has nothing to do with it goes.
    #[test]
    fn what_a_failure_needs_is_left_and_nothing_else() {
        let judge = |draft: &Draft| {
            let pauses = |fault: &&Fault| matches!(fault.what, What::Pause(_, secs) if secs >= 3);
            let crash = draft
                .steps
                .iter()
                .position(|f| matches!(f.what, What::Crash(_)));
            let last = draft.steps.iter().rposition(|fault| pauses(&fault));
            let enough = draft.steps.iter().filter(pauses).count() >= 2;
            let fails =
                enough && crash < last && crash.is_some() && draft.loss >= 5 && draft.nodes >= 7;
            fails.then(|| format!("node {} is lost", draft.nodes))
        };
        let mut shrunk = 0;
        for seed in 0..3000 {
            let draft = Draft::random(seed);
            if judge(&draft).is_none() {
                continue;
            }
            let draft = draft.shrunk(&judge, &mut || true, &|_| {});
            assert!(judge(&draft).is_some(), "{draft:?}");
            assert_eq!((draft.nodes, draft.steps.len()), (7, 3), "{draft:?}");
            assert!((5..10).contains(&draft.loss), "{draft:?}");
            let simple = !draft.bursts && !draft.reorder && !draft.duplicate && draft.skew == 0;
            assert!(
                simple && draft.slow.is_none() && draft.liars.is_empty(),
                "{draft:?}"
            );
            assert_eq!(draft.latency, (1, 1));
            shrunk += 1;
        }
        assert!(
            shrunk > 3,
            "only {shrunk} of the random scenarios show the fault"
        );
    }
}
