//! What is decided already but not yet in the node's own report, and the other way round.

use std::cmp::Reverse;

use meshwork_proto::KernelId;
use meshwork_proto::slots::{Capacity, GpuRequest, Resources};

use crate::place::free_vram;

/// Takes what `resources` ask for off `capacity`, for a kernel that the node has not reported yet.
/// Which of the fitting devices is a guess: the agent decides.
pub fn reserve(capacity: &mut Capacity, kernel: KernelId, resources: &Resources) {
    capacity.cpu_free = capacity.cpu_free.saturating_sub(resources.cpu_millis);
    capacity.mem_free = capacity.mem_free.saturating_sub(resources.mem);
    for at in resources
        .gpu
        .iter()
        .flat_map(|want| choose_gpus(capacity, want))
        .collect::<Vec<_>>()
    {
        capacity.gpus[at].kernel = Some(kernel);
    }
}

/// Gives back what `kernel` held, after its end and before the node's next report.
pub fn release(capacity: &mut Capacity, kernel: KernelId, resources: &Resources) {
    let back = |free: u64, more: u64, total: u64| free.saturating_add(more).min(total);
    capacity.cpu_free = back(capacity.cpu_free, resources.cpu_millis, capacity.cpu_millis);
    capacity.mem_free = back(capacity.mem_free, resources.mem, capacity.mem);
    for gpu in capacity
        .gpus
        .iter_mut()
        .filter(|g| g.kernel == Some(kernel))
    {
        gpu.kernel = None;
    }
}

/// Positions in `capacity.gpus` of the devices to expect: those with most free memory, then the
/// lowest index. Fewer than asked when fewer fit.
pub(crate) fn choose_gpus(capacity: &Capacity, want: &GpuRequest) -> Vec<usize> {
    let mut fitting: Vec<usize> = (0..capacity.gpus.len())
        .filter(|at| {
            let gpu = &capacity.gpus[*at];
            gpu.is_free() && want.accepts(&gpu.vendor, &gpu.device.model, gpu.device.vram)
        })
        .collect();
    fitting.sort_by_key(|at| {
        let gpu = &capacity.gpus[*at];
        (Reverse(free_vram(gpu)), gpu.device.index)
    });
    fitting.truncate(want.count as usize);
    fitting
}
