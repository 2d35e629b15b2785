//! Short ways to write clusters.

use meshwork_identity::{Identity, NodeId};
use meshwork_proto::slots::{Capacity, GpuGrant, GpuStatus, Health, Resources};
use meshwork_sched::Candidate;

pub(crate) const GB: u64 = 1_000_000_000;

pub(crate) fn node(seed: u8) -> NodeId {
    Identity::from_seed(&[seed; 32]).node_id()
}

pub(crate) fn gpu(index: u32, model: &str, vram: u64, used: u64) -> GpuStatus {
    GpuStatus {
        device: GpuGrant {
            index,
            uuid: format!("GPU-{index}"),
            model: model.into(),
            vram,
        },
        vendor: "nvidia".into(),
        vram_used: used,
        kernel: None,
        health: Health::Ok,
    }
}

pub(crate) fn candidate(
    seed: u8,
    name: &str,
    cpu_free: u64,
    mem_free: u64,
    gpus: Vec<GpuStatus>,
) -> Candidate {
    Candidate {
        node: node(seed),
        name: name.into(),
        capacity: Capacity {
            cpu_millis: 8_000,
            cpu_free,
            mem: 32 * GB,
            mem_free,
            gpus,
        },
        load_millis: 0,
        barred: None,
    }
}

pub(crate) fn want(cpu_millis: u64, mem: u64, gpu: Option<&str>) -> Resources {
    Resources {
        cpu_millis,
        mem,
        shm: 0,
        gpu: gpu.map(|text| text.parse().unwrap()),
    }
}
