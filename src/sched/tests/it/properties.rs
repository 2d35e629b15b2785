//! Properties that hold for every cluster and request.

use std::collections::BTreeSet;

use meshwork_proto::SessionId;
use meshwork_proto::slots::{Capacity, GpuRequest, Health, Resources};
use meshwork_sched::{Candidate, Request, place, release, reserve};
use proptest::prelude::*;

use crate::build::{GB, candidate, gpu};

/// Processors, memory, devices (size, used, held, sick), load, barred.
type Node = (u64, u64, Vec<(u64, u64, bool, bool)>, u32, Option<String>);

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let device = (0..3u64, 0..3u64, any::<bool>(), any::<bool>());
    let one = (
        0..=8u64,
        0..=8u64,
        prop::collection::vec(device, 0..4),
        0..3u32,
        prop::option::weighted(0.1, Just("not heard".to_owned())),
    );
    prop::collection::vec(one, 0..8).prop_map(|nodes| {
        let build = |(at, (cpu, mem, devices, load, barred)): (usize, Node)| {
            let gpus = devices
                .into_iter()
                .zip(0..)
                .map(|((size, used, held, sick), index)| {
                    let mut gpu = gpu(index, "A100", 24 * GB * (size + 1), used * GB);
                    gpu.kernel = held.then(|| SessionId::from_bytes([9; 16]).kernel(0));
                    gpu.health = if sick { Health::Unknown } else { Health::Ok };
                    gpu
                });
            let seed = u8::try_from(at).unwrap();
            let built = candidate(
                seed,
                &format!("n{at}"),
                cpu * 1_000,
                mem * 4 * GB,
                gpus.collect(),
            );
            Candidate {
                load_millis: load,
                barred,
                ..built
            }
        };
        nodes.into_iter().enumerate().map(build).collect()
    })
}

fn resources() -> impl Strategy<Value = Resources> {
    let gpu = (
        1..3u32,
        prop::option::of((1..4u64).prop_map(|n| n * 24 * GB)),
    );
    let gpu = gpu.prop_map(|(count, min_vram)| GpuRequest {
        count,
        min_vram,
        ..GpuRequest::default()
    });
    (1..9u64, 1..9u64, prop::option::of(gpu)).prop_map(|(cpu, mem, gpu)| Resources {
        cpu_millis: cpu * 1_000,
        mem: mem * 4 * GB,
        shm: 0,
        gpu,
    })
}

fn request(resources: &Resources) -> Request<'_> {
    Request {
        resources,
        filter: None,
        filtered: 0,
    }
}

fn fits(candidate: &Candidate, resources: &Resources) -> bool {
    candidate.barred.is_none() && candidate.capacity.shortages(resources).is_empty()
}

proptest! {
    #[test]
    fn the_chosen_node_fits_and_a_refusal_names_every_node(
        nodes in candidates(),
        want in resources(),
    ) {
        match place(&request(&want), &nodes) {
            Ok(placement) => {
                let chosen = nodes.iter().find(|c| c.node == placement.node).unwrap();
                prop_assert!(fits(chosen, &want));
                prop_assert!(placement.plan.starts_with(&chosen.name));
            }
            Err(error) => {
                prop_assert!(!nodes.iter().any(|c| fits(c, &want)));
                let named: BTreeSet<_> = error.refusals.iter().map(|r| r.node).collect();
                prop_assert_eq!(named, nodes.iter().map(|c| c.node).collect());
                prop_assert!(error.refusals.iter().all(|r| !r.reasons.is_empty()));
                let text = error.to_string();
                prop_assert!(nodes.iter().all(|c| text.contains(&c.name)));
            }
        }
    }

    #[test]
    fn the_order_of_candidates_does_not_matter(
        (nodes, shuffled) in candidates()
            .prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle())),
        want in resources(),
    ) {
        prop_assert_eq!(place(&request(&want), &nodes), place(&request(&want), &shuffled));
    }

    #[test]
    fn no_fitting_node_has_more_fitting_devices(nodes in candidates(), want in resources()) {
        let devices = |c: &Capacity| want.gpu.as_ref().map_or(0, |g| c.fitting_gpus(g).count());
        if let Ok(placement) = place(&request(&want), &nodes) {
            let chosen = nodes.iter().find(|c| c.node == placement.node).unwrap();
            for other in nodes.iter().filter(|c| fits(c, &want)) {
                prop_assert!(devices(&chosen.capacity) >= devices(&other.capacity));
            }
        }
    }

    #[test]
    fn what_is_reserved_comes_back(nodes in candidates(), want in resources()) {
        let kernel = SessionId::from_bytes([1; 16]).kernel(0);
        for before in nodes.iter().filter(|c| fits(c, &want)).map(|c| &c.capacity) {
            let mut after = before.clone();
            reserve(&mut after, kernel, &want);
            let held = after.gpus.iter().filter(|g| g.kernel == Some(kernel)).count();
            prop_assert_eq!(held, want.gpu.as_ref().map_or(0, |g| g.count as usize));
            prop_assert_eq!(after.cpu_free + want.cpu_millis, before.cpu_free);
            release(&mut after, kernel, &want);
            prop_assert_eq!(&after, before);
        }
    }
}
