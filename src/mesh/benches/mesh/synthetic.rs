//! Announcements of nodes that do not exist: half of them with large GPUs, in racks of forty, a
//! quarter of them narrowed to one of a hundred tenants. The same ones in every run.

use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use meshwork_identity::{Identity, Timestamp};
use meshwork_proto::announcement::{
    Announcement, Disk, Gpu, Hardware, Role, SignedAnnouncement, Software,
};

use crate::nodes;

/// When all this happens.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// One of the racks.
pub(crate) const RACK: &str = "rack-123";
/// One of the tenants.
pub(crate) const TENANT: &str = "tenant-7";

const RACK_SIZE: usize = 40;
const TENANTS: usize = 100;
const REGIONS: usize = 12;
/// Model and gigabytes of memory. Every second node has one of the large ones.
const LARGE: [(&str, u64); 4] = [("A100 80GB", 80), ("H100", 80), ("H200", 141), ("L40S", 48)];
const SMALL: [(&str, u64); 4] = [("T4", 16), ("L4", 24), ("A10", 24), ("V100", 32)];

/// Whose word every token is.
pub(crate) fn authority() -> Identity {
    Identity::from_seed(&[9; 32])
}

/// The announcements of these nodes, signed, with their tokens; on two threads.
pub(crate) fn announcements(nodes: Range<usize>, version: u64) -> Vec<SignedAnnouncement> {
    let middle = usize::midpoint(nodes.start, nodes.end);
    let sign = |nodes: Range<usize>| -> Vec<SignedAnnouncement> {
        nodes.map(|node| announcement(node, version)).collect()
    };
    thread::scope(|scope| {
        let rest = scope.spawn(|| sign(middle..nodes.end));
        let mut all = sign(nodes.start..middle);
        all.extend(rest.join().unwrap());
        all
    })
}

fn announcement(node: usize, version: u64) -> SignedAnnouncement {
    let mut seed = [5; 32];
    seed[..8].copy_from_slice(&(node as u64).to_be_bytes());
    let identity = Identity::from_seed(&seed);
    let token = nodes::token(&authority(), identity.node_id(), NOW);
    SignedAnnouncement::sign(&identity, token, &body(node, version)).unwrap()
}

fn body(node: usize, version: u64) -> Announcement {
    let mut tags = BTreeSet::from([format!("rack-{}", node / RACK_SIZE)]);
    if node.is_multiple_of(3) {
        tags.insert("prod".to_owned());
    }
    if node % 4 == 1 {
        tags.insert(format!("scope:tenant:tenant-{}", node % TENANTS));
    }
    Announcement {
        version,
        issued_at: NOW,
        ttl: Duration::from_mins(1),
        name: format!("node-{node}"),
        roles: BTreeSet::from([Role::Agent]),
        addresses: vec![
            (
                [10, (node >> 16) as u8, (node >> 8) as u8, node as u8],
                7946,
            )
                .into(),
        ],
        services: ["agent", "mesh"].map(str::to_owned).into(),
        hardware: hardware(node),
        software: Software {
            os: "Debian GNU/Linux 13".to_owned(),
            kernel: "6.12.48".to_owned(),
            container_backend: Some("docker 28.5.1".to_owned()),
            cuda: Some("12.8".to_owned()),
            rocm: None,
            meshwork: "0.1.0".to_owned(),
        },
        images: vec![format!("registry.example/app-{}:{}", node % 200, node % 7)],
        tags,
        region: Some(format!("region-{}", node % REGIONS)),
        ..Announcement::default()
    }
}

fn hardware(node: usize) -> Hardware {
    let models = if node.is_multiple_of(2) { LARGE } else { SMALL };
    let (model, gigabytes) = models[node / 2 % models.len()];
    let gpus = (0..=node as u32 / 8 % 4).map(|index| Gpu {
        index,
        vendor: "nvidia".to_owned(),
        model: model.to_owned(),
        vram: gigabytes * 1_000_000_000,
        compute_capability: Some((9, 0)),
        driver: "570.86.15".to_owned(),
        uuid: format!("GPU-{node:08x}-{index}"),
        mig: false,
        numa: None,
    });
    Hardware {
        arch: "x86_64".to_owned(),
        cpu_model: "AMD EPYC 9654".to_owned(),
        cpu_threads: 192,
        cpu_cores: 96,
        memory: 768 << 30,
        numa_nodes: 2,
        disks: vec![Disk {
            purpose: "data".to_owned(),
            total: 4_000_000_000_000,
        }],
        gpus: gpus.collect(),
    }
}
