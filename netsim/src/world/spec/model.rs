//! What the words of a file stand for: wires and translators.

use super::{BurstSpec, DependenceSpec, NatTable, NormalSpec, ParetoSpec, PortsSpec, WireSpec};
use crate::{
    Bandwidth, Latency, Loss, Wire,
    nat::{Dependence, NatModel, Ports},
};

impl From<&WireSpec> for Wire {
    fn from(spec: &WireSpec) -> Self {
        let default = Self::default();
        let latency = match (&spec.pareto, &spec.normal, &spec.latency) {
            (Some(ParetoSpec { least, shape, most }), ..) => Latency::Pareto {
                least: *least,
                shape: *shape,
                most: *most,
            },
            (_, Some(NormalSpec { mean, deviation }), _) => Latency::Normal {
                mean: *mean,
                deviation: *deviation,
            },
            (.., Some(range)) => Latency::Uniform(*range.start()..*range.end()),
            _ => default.latency.clone(),
        };
        let loss = match &spec.burst {
            Some(BurstSpec { share, length }) => {
                let to_good = 1.0 / length.max(1.0);
                // In the long run bad for `share` of the datagrams.
                let to_bad = (to_good * share / (1.0 - share).max(1e-9)).min(1.0);
                Loss::Bursty {
                    to_bad,
                    to_good,
                    good: spec.loss,
                    bad: 1.0,
                }
            }
            None => Loss::Random(spec.loss),
        };
        Self {
            latency,
            reorders: spec.reorders,
            loss,
            late: spec.late,
            late_by: spec.late_by.unwrap_or(default.late_by),
            duplicate: spec.duplicate,
            bandwidth: spec.rate.map(|rate| Bandwidth {
                rate,
                queue: spec.queue.unwrap_or(64 * 1024),
            }),
            mtu: spec.mtu.unwrap_or(default.mtu),
        }
    }
}

impl NatTable {
    /// The model.
    pub fn model(&self) -> NatModel {
        let mut model = NatModel::home().hairpin(self.hairpin);
        if let Some(mapping) = self.mapping {
            model.mapping = mapping.into();
        }
        if let Some(filtering) = self.filtering {
            model.filtering = filtering.into();
        }
        if let Some(ports) = self.ports {
            model.ports = ports.into();
        }
        if let Some(lifetime) = self.lifetime {
            model.lifetime = lifetime;
        }
        model.hard_lifetime = self.hard_lifetime;
        model
    }
}

impl From<DependenceSpec> for Dependence {
    fn from(spec: DependenceSpec) -> Self {
        match spec {
            DependenceSpec::EndpointIndependent => Self::EndpointIndependent,
            DependenceSpec::AddressDependent => Self::AddressDependent,
            DependenceSpec::AddressPortDependent => Self::AddressPortDependent,
        }
    }
}

impl From<PortsSpec> for Ports {
    fn from(spec: PortsSpec) -> Self {
        match spec {
            PortsSpec::Preserve => Self::Preserve,
            PortsSpec::Random => Self::Random,
            PortsSpec::Sequential => Self::Sequential,
        }
    }
}

/// The pair of translators that a seed picks: all pairs of the nine models and of none, in turn, and
/// ways to give ports by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairOfModels(pub [Option<NatModel>; 2]);

impl PairOfModels {
    /// Pairs there are: ten kinds of sides, order aside.
    pub const COUNT: u64 = 55;

    /// Seeds that follow one another run through all pairs.
    pub fn of(seed: u64) -> Self {
        let kinds: Vec<Option<NatModel>> = std::iter::once(None)
            .chain(NatModel::kinds().map(Some))
            .collect();
        let mut pairs = Vec::new();
        for (index, a) in kinds.iter().enumerate() {
            pairs.extend(kinds[index..].iter().map(|b| [*a, *b]));
        }
        let pick = usize::try_from(seed % Self::COUNT).unwrap_or_default();
        let round = seed / Self::COUNT;
        let ports = [Ports::Random, Ports::Preserve, Ports::Sequential];
        let with = |side: Option<NatModel>, turn: u64| {
            let index = usize::try_from(turn % 3).unwrap_or_default();
            side.map(|model| model.ports(ports[index]))
        };
        let [a, b] = pairs[pick];
        Self([with(a, round), with(b, round / 3)])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_seeds_run_through_all_pairs() {
        let names = |seed| {
            let PairOfModels(pair) = PairOfModels::of(seed);
            pair.map(|side| side.map(|model| model.to_string()))
        };
        let all: BTreeSet<_> = (0..PairOfModels::COUNT).map(names).collect();
        assert_eq!(all.len() as u64, PairOfModels::COUNT);
        assert_eq!(names(0), names(PairOfModels::COUNT));
        assert_ne!(PairOfModels::of(54), PairOfModels::of(54 + 55));
    }
}
