//! Judging candidates and choosing the best of those that fit.

use std::cmp::Reverse;
use std::fmt;

use meshwork_identity::NodeId;
use meshwork_proto::ByteSize;
use meshwork_proto::slots::{Capacity, GpuStatus, Resources};

use crate::reserve::choose_gpus;

/// What shall be placed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What the kernel needs.
    pub resources: &'a Resources,
    /// The query that made the candidates, for the refusal's text; none: every agent is one.
    pub filter: Option<&'a str>,
    /// How many agents that query left out.
    pub filtered: usize,
}

/// One node that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// What it has and what is free.
    pub capacity: Capacity,
    /// Its one-minute load average in thousandths.
    pub load_millis: u32,
    /// Why it must not be chosen whatever is free; it then stands in the refusal with this.
    pub barred: Option<String>,
}

/// The chosen node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Which.
    pub node: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// Why, for people: `lab-2 GPU 1 (A100 80GB, 79.1GB free)`. The agent alone decides which of
    /// its fitting devices it gives.
    pub plan: String,
}

/// No candidate fits. Prints one line per cause, as people read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotPlaced {
    /// See [`Request::filter`].
    pub filter: Option<String>,
    /// See [`Request::filtered`].
    pub filtered: usize,
    /// Every candidate, by name and id.
    pub refusals: Vec<Refusal>,
}

/// Why one node was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub node: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// Everything that speaks against it; at least one.
    pub reasons: Vec<String>,
}

/// Chooses the node for a request: of those that fit, the one with most free, then the least
/// loaded, then the smallest node id.
///
/// "Most free" is, for a request with GPUs, most free devices that fit it, then most free memory on
/// these; then, and for every other request, the largest free share of processor or memory,
/// whichever of the two is scarcer on the node.
pub fn place(request: &Request<'_>, candidates: &[Candidate]) -> Result<Placement, NotPlaced> {
    let mut refusals = Vec::new();
    let mut best: Option<(Rank, &Candidate)> = None;
    for candidate in candidates {
        let reasons = objections(request.resources, candidate);
        if !reasons.is_empty() {
            refusals.push(Refusal {
                node: candidate.node,
                name: candidate.name.clone(),
                reasons,
            });
            continue;
        }
        let rank = rank(request.resources, candidate);
        if best.as_ref().is_none_or(|(best, _)| rank < *best) {
            best = Some((rank, candidate));
        }
    }
    if let Some((_, candidate)) = best {
        return Ok(Placement {
            node: candidate.node,
            name: candidate.name.clone(),
            plan: plan(request.resources, candidate),
        });
    }
    refusals.sort_by(|a, b| (&a.name, a.node).cmp(&(&b.name, b.node)));
    Err(NotPlaced {
        filter: request.filter.map(str::to_owned),
        filtered: request.filtered,
        refusals,
    })
}

fn objections(resources: &Resources, candidate: &Candidate) -> Vec<String> {
    if let Some(reason) = &candidate.barred {
        return vec![reason.clone()];
    }
    let shortages = candidate.capacity.shortages(resources);
    shortages.iter().map(ToString::to_string).collect()
}

/// Smaller is better.
type Rank = (Reverse<(usize, u64, u64)>, u32, NodeId);

fn rank(resources: &Resources, candidate: &Candidate) -> Rank {
    let capacity = &candidate.capacity;
    let (mut devices, mut vram) = (0, 0u64);
    for gpu in resources
        .gpu
        .iter()
        .flat_map(|want| capacity.fitting_gpus(want))
    {
        devices += 1;
        vram = vram.saturating_add(free_vram(gpu));
    }
    let free =
        share(capacity.cpu_free, capacity.cpu_millis).min(share(capacity.mem_free, capacity.mem));
    (
        Reverse((devices, vram, free)),
        candidate.load_millis,
        candidate.node,
    )
}

/// `part` of `whole` in millionths.
fn share(part: u64, whole: u64) -> u64 {
    let millionths = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    u64::try_from(millionths).unwrap_or(u64::MAX)
}

pub(crate) fn free_vram(gpu: &GpuStatus) -> u64 {
    gpu.device.vram.saturating_sub(gpu.vram_used)
}

fn plan(resources: &Resources, candidate: &Candidate) -> String {
    let capacity = &candidate.capacity;
    let name = &candidate.name;
    let Some(want) = &resources.gpu else {
        let cpus = |millis: u64| format!("{}.{}", millis / 1000, millis % 1000 / 100);
        return format!(
            "{name} ({} of {} cpu and {} of {} memory free)",
            cpus(capacity.cpu_free),
            cpus(capacity.cpu_millis),
            ByteSize(capacity.mem_free),
            ByteSize(capacity.mem),
        );
    };
    let chosen = choose_gpus(capacity, want)
        .into_iter()
        .map(|at| &capacity.gpus[at]);
    describe(name, chosen)
}

/// A node and devices on it, for people: `lab-2 GPU 1 (A100 80GB, 79.1GB free)`.
pub fn describe<'a>(node: &str, gpus: impl Iterator<Item = &'a GpuStatus>) -> String {
    let device = |gpu: &GpuStatus| {
        let free = ByteSize(free_vram(gpu));
        format!(
            "GPU {} ({}, {free} free)",
            gpu.device.index, gpu.device.model
        )
    };
    format!("{node} {}", gpus.map(device).collect::<Vec<_>>().join(", "))
}

impl fmt::Display for NotPlaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no node fits now")?;
        if self.filtered > 0 {
            let nodes = if self.filtered == 1 { "node" } else { "nodes" };
            write!(f, "\n* {} {nodes} excluded by filter", self.filtered)?;
            if let Some(filter) = &self.filter {
                write!(f, " `{filter}`")?;
            }
        }
        for refusal in &self.refusals {
            let reasons = refusal.reasons.join("; ");
            write!(
                f,
                "\n* {} ({}): {reasons}",
                refusal.name,
                refusal.node.short()
            )?;
        }
        if self.filtered == 0 && self.refusals.is_empty() {
            f.write_str("\n* no agent is known")?;
        }
        Ok(())
    }
}
