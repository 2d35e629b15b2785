//! Admission: what the machine has, who holds what of it, and the one lock under which a kernel
//! gets its slots or hears what is short.
//!
//! What is free is derived from who holds what each time it is asked, never counted up and down:
//! it cannot drift.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use meshwork_identity::{Limits, NodeId};
use meshwork_proto::KernelId;
use meshwork_proto::slots::{
    Allocation, Capacity, GpuGrant, GpuStatus, Health, Resources, Shortage,
};

/// What the machine has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    /// Hardware threads that kernels may run on, by the system's numbers.
    pub cpus: Vec<u32>,
    /// Thousandths of threads that kernels may take together.
    pub cpu_millis: u64,
    /// Bytes that kernels may take together.
    pub mem: u64,
}

/// Why a kernel is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The machine lacks something.
    #[error("{}", list(.0))]
    Short(Vec<Shortage>),
    /// The owner's token does not allow so much.
    #[error("the token allows {allowed} {what} on one node at a time, this would make {wanted}")]
    OverLimit {
        what: &'static str,
        allowed: u64,
        wanted: u64,
    },
    /// The kernel holds slots already.
    #[error("the kernel holds slots already")]
    Held,
}

fn list(shortages: &[Shortage]) -> String {
    let texts: Vec<String> = shortages.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// The slots of this machine. Its lock is never held across an await or a disk write.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    inventory: Inventory,
    /// By index. `kernel` is filled in from `held` when asked.
    gpus: BTreeMap<u32, GpuStatus>,
    held: BTreeMap<KernelId, (NodeId, Allocation)>,
}

impl Slots {
    pub(crate) fn new(inventory: Inventory) -> Self {
        Self {
            state: Mutex::new(State {
                inventory,
                gpus: BTreeMap::new(),
                held: BTreeMap::new(),
            }),
        }
    }

    /// Gives `kernel` what it asks for, all or nothing.
    pub(crate) fn reserve(
        &self,
        kernel: KernelId,
        owner: NodeId,
        request: &Resources,
        limits: &Limits,
    ) -> Result<Allocation, Refusal> {
        let mut state = self.lock();
        if state.held.contains_key(&kernel) {
            return Err(Refusal::Held);
        }
        state.check_limits(&owner, request, limits)?;
        let capacity = state.capacity();
        let shortages = capacity.shortages(request);
        if !shortages.is_empty() {
            return Err(Refusal::Short(shortages));
        }
        let allocation = Allocation {
            cpus: state.choose_cpus(request.cpu_millis),
            cpu_millis: request.cpu_millis,
            mem: request.mem,
            gpus: choose_gpus(&capacity, request),
        };
        state.held.insert(kernel, (owner, allocation.clone()));
        Ok(allocation)
    }

    /// Puts back what a kernel of an earlier life of the agent holds. It is a fact, so it is never
    /// refused; what is overbooked then shows as nothing free.
    pub(crate) fn restore(&self, kernel: KernelId, owner: NodeId, allocation: Allocation) {
        let mut state = self.lock();
        for device in &allocation.gpus {
            state.gpus.entry(device.index).or_insert_with(|| GpuStatus {
                device: device.clone(),
                vendor: String::new(),
                vram_used: 0,
                kernel: None,
                health: Health::Unknown,
            });
        }
        state.held.insert(kernel, (owner, allocation));
    }

    /// Takes back what `kernel` holds. Harmless when it holds nothing.
    pub(crate) fn release(&self, kernel: &KernelId) {
        self.lock().held.remove(kernel);
    }

    /// Who holds slots.
    pub(crate) fn holders(&self) -> Vec<KernelId> {
        self.lock().held.keys().copied().collect()
    }

    /// Takes over what a probe found: devices that it does not name, and all when it failed, are
    /// not given out until a probe finds them again.
    pub(crate) fn observe(&self, found: Option<Vec<GpuStatus>>) {
        let mut state = self.lock();
        for gpu in state.gpus.values_mut() {
            gpu.health = Health::Unknown;
        }
        for gpu in found.into_iter().flatten() {
            // After a reboot the driver may number its devices anew.
            state
                .gpus
                .retain(|_, known| known.device.uuid != gpu.device.uuid);
            state.gpus.insert(gpu.device.index, gpu);
        }
    }

    /// Totals and what is free.
    pub(crate) fn capacity(&self) -> Capacity {
        self.lock().capacity()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics under the slot lock")
    }
}

impl State {
    fn capacity(&self) -> Capacity {
        let taken = |f: fn(&Allocation) -> u64| self.held.values().map(|(_, a)| f(a)).sum::<u64>();
        let (cpu, mem) = (taken(|a| a.cpu_millis), taken(|a| a.mem));
        Capacity {
            cpu_millis: self.inventory.cpu_millis,
            cpu_free: self.inventory.cpu_millis.saturating_sub(cpu),
            mem: self.inventory.mem,
            mem_free: self.inventory.mem.saturating_sub(mem),
            gpus: self
                .gpus
                .values()
                .map(|gpu| self.with_holder(gpu))
                .collect(),
        }
    }

    fn with_holder(&self, gpu: &GpuStatus) -> GpuStatus {
        let holds = |a: &Allocation| a.gpus.iter().any(|g| g.uuid == gpu.device.uuid);
        let kernel = self
            .held
            .iter()
            .find(|(_, (_, a))| holds(a))
            .map(|(k, _)| *k);
        GpuStatus {
            kernel,
            ..gpu.clone()
        }
    }

    fn check_limits(
        &self,
        owner: &NodeId,
        request: &Resources,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let own = || {
            self.held
                .values()
                .filter(|(o, _)| o == owner)
                .map(|(_, a)| a)
        };
        let gpus = own().map(|a| a.gpus.len() as u64).sum::<u64>()
            + request.gpu.as_ref().map_or(0, |g| u64::from(g.count));
        let cpu = own()
            .map(|a| a.cpu_millis)
            .sum::<u64>()
            .saturating_add(request.cpu_millis);
        let mem = own()
            .map(|a| a.mem)
            .sum::<u64>()
            .saturating_add(request.mem);
        let kernels = own().count() as u64 + 1;
        for (what, allowed, wanted) in [
            ("GPUs", limits.gpus.map(u64::from), gpus),
            ("thousandths of a CPU", limits.cpu_millis, cpu),
            ("bytes of memory", limits.mem_bytes, mem),
            ("kernels", limits.kernels.map(u64::from), kernels),
        ] {
            if let Some(allowed) = allowed
                && wanted > allowed
            {
                return Err(Refusal::OverLimit {
                    what,
                    allowed,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// The least loaded threads, as many as `millis` needs: the quota spreads over them.
    fn choose_cpus(&self, millis: u64) -> Vec<u32> {
        let mut load: BTreeMap<u32, u64> = self.inventory.cpus.iter().map(|c| (*c, 0)).collect();
        for (_, allocation) in self.held.values() {
            let share = allocation.cpu_millis / (allocation.cpus.len() as u64).max(1);
            for cpu in &allocation.cpus {
                load.entry(*cpu).and_modify(|l| *l += share);
            }
        }
        let mut threads: Vec<(u64, u32)> = load.into_iter().map(|(cpu, l)| (l, cpu)).collect();
        threads.sort_unstable();
        let count = usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX);
        let mut cpus: Vec<u32> = threads
            .into_iter()
            .take(count)
            .map(|(_, cpu)| cpu)
            .collect();
        cpus.sort_unstable();
        cpus
    }
}

/// The smallest devices that do, so that large ones stay for those who need them.
fn choose_gpus(capacity: &Capacity, request: &Resources) -> Vec<GpuGrant> {
    let Some(want) = &request.gpu else {
        return Vec::new();
    };
    let mut fitting: Vec<&GpuStatus> = capacity.fitting_gpus(want).collect();
    fitting.sort_by_key(|g| (g.device.vram, g.device.index));
    let mut chosen: Vec<GpuGrant> = fitting
        .into_iter()
        .take(want.count as usize)
        .map(|g| g.device.clone())
        .collect();
    chosen.sort_by_key(|g| g.index);
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use meshwork_identity::Identity;
    use meshwork_proto::slots::GpuRequest;
    use proptest::prelude::*;

    use super::*;

    fn owner(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    fn kernel(n: u8) -> KernelId {
        KernelId::from_bytes([n; 16])
    }

    fn gpu(index: u32, vram: u64) -> GpuStatus {
        GpuStatus {
            device: GpuGrant {
                index,
                uuid: format!("GPU-{index}"),
                model: "Test".into(),
                vram,
            },
            vendor: "mock".into(),
            vram_used: 0,
            kernel: None,
            health: Health::Ok,
        }
    }

    fn machine() -> Slots {
        let slots = Slots::new(Inventory {
            cpus: vec![0, 1, 2, 3],
            cpu_millis: 4000,
            mem: 8 << 30,
        });
        slots.observe(Some(vec![gpu(0, 80), gpu(1, 40), gpu(2, 40)]));
        slots
    }

    fn want(cpu_millis: u64, mem: u64, gpus: u32) -> Resources {
        Resources {
            cpu_millis,
            mem,
            shm: 0,
            gpu: (gpus > 0).then(|| GpuRequest {
                count: gpus,
                ..GpuRequest::default()
            }),
        }
    }

    #[test]
    fn a_refusal_says_what_is_short_and_takes_nothing() {
        let slots = machine();
        let before = slots.capacity();
        let refusal = slots.reserve(
            kernel(1),
            owner(1),
            &want(5000, 9 << 30, 4),
            &Limits::none(),
        );
        let Err(Refusal::Short(short)) = refusal else {
            panic!("{refusal:?}")
        };
        let slots_named: Vec<&str> = short.iter().map(|s| s.slot.as_str()).collect();
        assert_eq!(slots_named, ["cpu", "mem", "gpu"]);
        assert_eq!(slots.capacity(), before);
    }

    #[test]
    fn threads_are_spread_and_small_gpus_go_first() {
        let slots = machine();
        let a = slots
            .reserve(kernel(1), owner(1), &want(1500, 1, 1), &Limits::none())
            .unwrap();
        let b = slots
            .reserve(kernel(2), owner(1), &want(2000, 1, 1), &Limits::none())
            .unwrap();
        assert_eq!(a.cpus, [0, 1]);
        assert_eq!(b.cpus, [2, 3]);
        assert_eq!((a.gpus[0].index, b.gpus[0].index), (1, 2));
    }

    #[test]
    fn limits_count_all_that_one_owner_holds() {
        let slots = machine();
        let limits = Limits {
            gpus: Some(2),
            kernels: Some(3),
            ..Limits::default()
        };
        slots
            .reserve(kernel(1), owner(1), &want(1, 1, 2), &limits)
            .unwrap();
        assert_eq!(
            slots.reserve(kernel(2), owner(1), &want(1, 1, 1), &limits),
            Err(Refusal::OverLimit {
                what: "GPUs",
                allowed: 2,
                wanted: 3
            })
        );
        slots
            .reserve(kernel(2), owner(2), &want(1, 1, 1), &limits)
            .unwrap();
        slots
            .reserve(kernel(3), owner(1), &want(1, 1, 0), &limits)
            .unwrap();
        slots
            .reserve(kernel(4), owner(1), &want(1, 1, 0), &limits)
            .unwrap();
        assert!(
            slots
                .reserve(kernel(5), owner(1), &want(1, 1, 0), &limits)
                .is_err()
        );
        slots.release(&kernel(3));
        slots
            .reserve(kernel(5), owner(1), &want(1, 1, 0), &limits)
            .unwrap();
    }

    #[test]
    fn an_unseen_device_is_not_given_out() {
        let slots = machine();
        slots.observe(None);
        assert!(
            slots
                .reserve(kernel(1), owner(1), &want(1, 1, 1), &Limits::none())
                .is_err()
        );
        slots.observe(Some(vec![gpu(2, 40)]));
        let a = slots
            .reserve(kernel(1), owner(1), &want(1, 1, 1), &Limits::none())
            .unwrap();
        assert_eq!(a.gpus[0].index, 2);
    }

    /// What must be so after any sequence of steps.
    fn check(slots: &Slots) {
        let state = slots.lock();
        let allocations: Vec<&Allocation> = state.held.values().map(|(_, a)| a).collect();
        assert!(allocations.iter().map(|a| a.cpu_millis).sum::<u64>() <= 4000);
        assert!(allocations.iter().map(|a| a.mem).sum::<u64>() <= 8 << 30);
        let devices: Vec<&str> = allocations
            .iter()
            .flat_map(|a| &a.gpus)
            .map(|g| g.uuid.as_str())
            .collect();
        assert_eq!(devices.iter().collect::<BTreeSet<_>>().len(), devices.len());
        for a in allocations {
            assert_eq!(a.cpus.len() as u64, a.cpu_millis.div_ceil(1000));
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Reserve(u8, u64, u64, u32),
        Release(u8),
        Probe(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..12, 1u64..3000, 0u64..5, 0u32..3)
                .prop_map(|(k, c, m, g)| Step::Reserve(k, c, m << 30, g)),
            3 => (0u8..12).prop_map(Step::Release),
            1 => any::<bool>().prop_map(Step::Probe),
        ]
    }

    fn apply(slots: &Slots, step: &Step) {
        match step {
            Step::Reserve(k, cpu, mem, gpus) => {
                drop(slots.reserve(
                    kernel(*k),
                    owner(1),
                    &want(*cpu, *mem, *gpus),
                    &Limits::none(),
                ));
            }
            Step::Release(k) => slots.release(&kernel(*k)),
            Step::Probe(ok) => slots.observe(ok.then(|| vec![gpu(0, 80), gpu(1, 40), gpu(2, 40)])),
        }
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(steps in prop::collection::vec(step(), 1..60)) {
            let slots = machine();
            for step in &steps {
                apply(&slots, step);
                check(&slots);
            }
            for k in slots.holders() {
                slots.release(&k);
            }
            let all = slots.capacity();
            prop_assert_eq!((all.cpu_free, all.mem_free), (4000, 8 << 30));
            prop_assert!(all.gpus.iter().all(|g| g.kernel.is_none()));
        }

        #[test]
        fn nor_from_several_threads(
            scripts in prop::collection::vec(prop::collection::vec(step(), 1..40), 4)
        ) {
            let slots = Arc::new(machine());
            std::thread::scope(|scope| {
                for script in &scripts {
                    let slots = Arc::clone(&slots);
                    scope.spawn(move || {
                        for step in script {
                            apply(&slots, step);
                            check(&slots);
                        }
                    });
                }
            });
            check(&slots);
        }
    }
}
