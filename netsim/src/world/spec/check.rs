//! What a parser cannot see: names that nobody has, numbers that make no sense, and what would never
//! happen. A scenario that says such a thing would hold without showing anything.

use std::{collections::BTreeSet, time::Duration};

use super::{Action, CallsSpec, StreamSpec, WireSpec, World};

/// Most nodes of one group: worlds of real nodes are for tens of them.
const MAX_GROUP: usize = 500;
/// Smallest packet that QUIC must get through, with the headers of IPv6 (RFC 9000 §14).
const MIN_MTU: usize = 1248;

impl World {
    /// What a parser cannot see: names that nobody has, and numbers that make no sense.
    /// `duration`: of the whole run, in which everything must begin.
    pub fn check(&self, duration: Duration) -> Result<(), String> {
        self.check_nodes()?;
        self.wire
            .check()
            .map_err(|problem| format!("world.wire: {problem}"))?;
        for (number, stream) in (1..).zip(&self.stream) {
            stream
                .check(duration)
                .map_err(|problem| format!("world.stream {number}: {problem}"))?;
        }
        for (number, calls) in (1..).zip(&self.calls) {
            calls
                .check(duration)
                .map_err(|problem| format!("world.calls {number}: {problem}"))?;
        }
        for (number, pair) in (1..).zip(&self.pair) {
            within("start", pair.start, duration)
                .map_err(|problem| format!("world.pair {number}: {problem}"))?;
        }
        for (number, agree) in (1..).zip(&self.agree) {
            within("after", agree.after, duration)
                .map_err(|problem| format!("world.agree {number}: {problem}"))?;
        }
        for (number, event) in (1..).zip(&self.event) {
            within("at", *event.at.end(), duration)
                .and_then(|()| self.check_action(&event.action))
                .map_err(|problem| format!("world.event {number}: {problem}"))?;
        }
        Ok(())
    }

    /// Sites and groups, and every name that is used.
    fn check_nodes(&self) -> Result<(), String> {
        let mut sites = BTreeSet::new();
        for site in &self.site {
            let outer = site.inside.as_deref();
            if let Some(unknown) = outer.filter(|outer| !sites.contains(outer)) {
                return Err(format!(
                    "site `{}` is inside `{unknown}`, which is no site above it",
                    site.name
                ));
            }
            if !sites.insert(site.name.as_str()) {
                return Err(format!("two sites are called `{}`", site.name));
            }
        }
        let mut groups = BTreeSet::new();
        for group in &self.node {
            if !groups.insert(group.name.as_str()) {
                return Err(format!("two groups of nodes are called `{}`", group.name));
            }
            if !(1..=MAX_GROUP).contains(&group.count) {
                let (name, count) = (&group.name, group.count);
                return Err(format!(
                    "group `{name}` has {count} nodes: give 1 to {MAX_GROUP}"
                ));
            }
            let at = group.at.as_deref();
            if let Some(unknown) = at.filter(|at| !sites.contains(at)) {
                return Err(format!(
                    "node `{}` is at `{unknown}`, which is no `[[world.site]]`",
                    group.name
                ));
            }
        }
        for name in self.names() {
            self.expand(name)?;
        }
        Ok(())
    }

    /// What an action says beside names of nodes.
    fn check_action(&self, action: &Action) -> Result<(), String> {
        match action {
            Action::Move { to: Some(site), .. } | Action::RestartGateway(site) => {
                self.site_is(site)
            }
            Action::Cut(cut) | Action::Mend(cut) if cut.out.is_some() != cut.well.is_some() => {
                Err("give both `out` and `well`, or neither".to_owned())
            }
            Action::Access { wire, .. } => wire.check(),
            Action::Attack(attack) if attack.rate == 0 || attack.with.is_empty() => {
                Err("an attack needs a `rate` above 0 and something in `with`".to_owned())
            }
            Action::ClockJump { by, .. } if !by.is_finite() => {
                Err(format!("a clock cannot jump by {by} s"))
            }
            _ => Ok(()),
        }
    }

    fn site_is(&self, name: &str) -> Result<(), String> {
        if self.site.iter().any(|site| site.name == name) {
            return Ok(());
        }
        let all: Vec<&str> = self.site.iter().map(|site| site.name.as_str()).collect();
        Err(format!(
            "`{name}` is no `[[world.site]]`; there are: {}",
            all.join(", ")
        ))
    }

    /// Whether outsiders attack.
    pub fn attacks(&self) -> bool {
        let mut actions = self.event.iter().map(|event| &event.action);
        actions.any(|action| matches!(action, Action::Attack(_)))
    }

    /// The nodes of a name: a group's, one of a group, or all (`*`). Numbers as in the file.
    pub fn expand(&self, name: &str) -> Result<Vec<usize>, String> {
        let mut found = Vec::new();
        let mut number = 0;
        for group in &self.node {
            for index in 0..group.count {
                if name == "*" || name == group.name || name == group.member(index) {
                    found.push(number);
                }
                number += 1;
            }
        }
        if found.is_empty() {
            return Err(format!(
                "`{name}` names no node: write a group's name, one of its nodes (`NAME-0`), or `*`"
            ));
        }
        Ok(found)
    }

    /// All names of nodes that the file uses.
    fn names(&self) -> impl Iterator<Item = &str> {
        let knows = self.node.iter().flat_map(|group| group.knows.iter());
        let streams = self.stream.iter().flat_map(|s| [&s.from, &s.to]);
        let calls = self.calls.iter().flat_map(|c| c.from.iter().chain(&c.to));
        let pairs = self.pair.iter().flat_map(|p| [&p.a, &p.b]);
        let agree = self.agree.iter().flat_map(|a| a.who.iter());
        let events = self.event.iter().flat_map(|event| event.action.names());
        let all = knows.chain(streams).chain(calls).chain(pairs);
        all.chain(agree).chain(events).map(String::as_str)
    }
}

impl Action {
    fn names(&self) -> Vec<&String> {
        match self {
            Self::Start(who)
            | Self::Crash(who)
            | Self::Restart(who)
            | Self::RestartEmpty(who)
            | Self::RestartUntold(who)
            | Self::Stop(who)
            | Self::Pause { who, .. }
            | Self::ClockJump { who, .. }
            | Self::Access { who, .. } => who.iter().collect(),
            Self::Move { who, .. } => vec![who],
            Self::Cut(cut) | Self::Mend(cut) => cut.from.iter().chain(&cut.to).collect(),
            Self::Revoke { who, at } => vec![who, at],
            Self::RotatePsk { at, .. } => vec![at],
            Self::Attack(attack) => attack.on.iter().collect(),
            Self::BlackholeV6 | Self::RestartGateway(_) => Vec::new(),
        }
    }
}

impl WireSpec {
    fn check(&self) -> Result<(), String> {
        let latencies = [
            self.latency.is_some(),
            self.normal.is_some(),
            self.pareto.is_some(),
        ];
        if latencies.iter().filter(|given| **given).count() > 1 {
            return Err("give one of `latency`, `normal` and `pareto`".to_owned());
        }
        if self
            .pareto
            .as_ref()
            .is_some_and(|p| p.shape.is_nan() || p.shape <= 0.0 || p.most < p.least)
        {
            return Err(
                "`pareto` needs a `shape` above 0, and `most` not below `least`".to_owned(),
            );
        }
        if self
            .burst
            .as_ref()
            .is_some_and(|b| b.share >= 1.0 || b.length.is_nan() || b.length < 1.0)
        {
            return Err(
                "`burst` needs a `share` below 100 % and a `length` of 1 or more".to_owned(),
            );
        }
        if self.rate == Some(0) {
            return Err("with a `rate` of 0 nothing arrives: use a `cut`".to_owned());
        }
        if self.queue.is_some() && self.rate.is_none() {
            return Err("a `queue` needs a `rate`".to_owned());
        }
        if self.late_by.is_some() && self.late == 0.0 {
            return Err("`late_by` needs `late`, the share that is".to_owned());
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU => Err(format!(
                "an `mtu` of {mtu} lets no QUIC through: give {MIN_MTU} or more"
            )),
            _ => Ok(()),
        }
    }
}

impl StreamSpec {
    fn check(&self, duration: Duration) -> Result<(), String> {
        if self.every.is_zero() || self.length < self.every {
            return Err("`every` must be above 0 and at most `length`".to_owned());
        }
        within("start + length", self.start + self.length, duration)
    }
}

impl CallsSpec {
    fn check(&self, duration: Duration) -> Result<(), String> {
        if self.every.is_zero() || self.until <= self.start {
            return Err("`every` must be above 0, and `until` after `start`".to_owned());
        }
        within("until", self.until, duration)
    }
}

fn within(what: &str, at: Duration, duration: Duration) -> Result<(), String> {
    if at < duration {
        return Ok(());
    }
    Err(format!(
        "`{what}` is {at:?}, but all ends after {duration:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::spec::File;

    #[test]
    fn a_name_that_nobody_has_is_an_error() {
        let text = "[world]\n[[world.node]]\nname = 'a'\ncount = 2\n[[world.event]]\nat = '1 s'\n";
        let parse = |who: &str| {
            let text = format!("{text}do = {{ crash = ['{who}'] }}\n");
            toml::from_str::<File>(&text).unwrap().world
        };
        let minute = Duration::from_mins(1);
        assert_eq!(parse("a").check(minute), Ok(()));
        assert_eq!(parse("a-1").expand("a-1"), Ok(vec![1]));
        assert!(
            parse("a-2")
                .check(minute)
                .unwrap_err()
                .contains("`a-2` names no node")
        );
    }

    #[test]
    fn what_would_never_happen_is_an_error() {
        let text =
            "[world]\n[[world.site]]\nname = 'home'\nnat = 'home'\n[[world.node]]\nname = 'a'\n";
        let check = |more: &str| {
            let world = toml::from_str::<File>(&format!("{text}{more}"))
                .unwrap()
                .world;
            world.check(Duration::from_mins(1)).map_err(|problem| {
                assert!(
                    problem.starts_with("world.") || problem.contains('`'),
                    "{problem}"
                );
            })
        };
        let event = |what: &str| format!("[[world.event]]\nat = '1 s'\ndo = {what}\n");
        for fine in [
            event("{ move = { who = 'a', to = 'home' } }"),
            event("{ restart-gateway = 'home' }"),
            event("{ cut = { from = ['a'], to = ['a'], out = '1 s', well = '1 s' } }"),
            event("{ access = { who = ['a'], wire = { rate = 1000, queue = 5000 } } }"),
        ] {
            assert_eq!(check(&fine), Ok(()), "{fine}");
        }
        for wrong in [
            event("{ move = { who = 'a', to = 'hone' } }"),
            event("{ restart-gateway = 'hone' }"),
            event("{ cut = { from = ['a'], to = ['a'], out = '1 s' } }"),
            event("{ access = { who = ['a'], wire = { queue = 5000 } } }"),
            event("{ access = { who = ['a'], wire = { mtu = 1000 } } }"),
            event("{ attack = { on = ['a'], for = '1 s', rate = 0, with = ['flood'] } }"),
            "[[world.event]]\nat = '61 s'\ndo = 'blackhole-v6'\n".to_owned(),
            "[[world.agree]]\nwho = ['a']\nafter = '60 s'\n".to_owned(),
            "[[world.node]]\nname = 'a'\n".to_owned(),
            "[[world.node]]\nname = 'b'\ncount = 0\n".to_owned(),
            "[[world.stream]]\nfrom = 'a'\nto = 'a'\nstart = '50 s'\nlength = '20 s'\n".to_owned(),
        ] {
            assert_eq!(check(&wrong), Err(()), "{wrong}");
        }
    }
}
