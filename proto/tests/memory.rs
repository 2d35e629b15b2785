//! What it costs a node to know ten thousand others. A binary of its own, as it counts every byte
//! that is allocated.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
#![allow(unsafe_code, reason = "an allocator that counts cannot be had without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use meshwork_identity::{
    Identity, Limits, Resource, Revocations, Scope, Scopes, Timestamp, Token, TokenRequest,
    VerifyContext,
};
use meshwork_proto::announcement::{Disk, Gpu, Hardware, Role, Software};
use meshwork_proto::facts::Fact;
use meshwork_proto::facts::Facts;
use meshwork_proto::membership::{Ledger, Outcome};
use meshwork_proto::{Announcement, Availability, Beat, SignedAnnouncement, SignedBeat};

const NODES: u16 = 10_000;
/// What a node may spend on knowing them.
const BAR: i64 = 40 * 1000 * 1000;
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

#[test]
fn ten_thousand_nodes_fit() {
    let authority = Identity::from_seed(&[9; 32]);
    let root = authority.node_id();
    let revocations = Revocations::new();
    let trust = VerifyContext::new(&root, NOW, &revocations);
    let before = HEAP.load(Relaxed);
    let mut facts = Facts::new(Identity::from_seed(&[8; 32]).node_id());
    let mut sent = 0;
    for node in 0..NODES {
        let (announcement, beat) = word(node, &authority);
        sent += announcement.envelope.body_len();
        for fact in [Fact::Announcement(announcement), Fact::Beat(beat)] {
            let (_, _, outcome, changes) = facts.accept(fact, &trust);
            assert_eq!(outcome, Outcome::New { hops: 0 }, "{changes:?}");
        }
    }
    let held = HEAP.load(Relaxed) - before;
    assert_eq!(facts.nodes(), usize::from(NODES));
    let (each, body) = (held / i64::from(NODES), sent / usize::from(NODES));
    eprintln!(
        "{NODES} nodes that announce {body} bytes each: {held} bytes in all, {each} for each"
    );
    assert!(
        body > 900,
        "an announcement of {body} bytes is not realistic"
    );
    assert!(held < BAR, "{held} bytes");
    // What is counted is really theirs.
    drop(facts);
    let left = HEAP.load(Relaxed) - before;
    assert!(left < 64 * 1024, "{left} bytes are left");
}

/// What one node says: that it is a machine with some GPUs, images and labels, and what is free.
fn word(node: u16, authority: &Identity) -> (SignedAnnouncement, SignedBeat) {
    let mut seed = [5; 32];
    seed[..2].copy_from_slice(&node.to_be_bytes());
    let identity = Identity::from_seed(&seed);
    let request = TokenRequest {
        subject: identity.node_id(),
        scopes: Scopes::from([Scope::Join, Scope::Announce, Scope::Call]),
        resource: Resource::any(),
        not_before: None,
        ttl: Duration::from_hours(24 * 365),
        depth: 0,
        limits: Limits::none(),
    };
    let token = Token::issue_root(authority, request, NOW, [7; 16]).unwrap();
    let body = announcement(node);
    let beat = Beat {
        version: 2,
        issued_at: NOW,
        ttl: body.ttl,
        base: 1,
        availability: Some(Availability {
            free: vec![
                ("cpu".into(), 64_000),
                ("mem".into(), 1 << 38),
                ("cuda.device".into(), 2),
            ],
            vram_used: vec![1 << 34; body.hardware.gpus.len()],
            healthy: true,
        }),
    };
    (
        SignedAnnouncement::sign(&identity, token, &body).unwrap(),
        SignedBeat::sign(&identity, &beat).unwrap(),
    )
}

fn announcement(node: u16) -> Announcement {
    let gpu = |index: u32| Gpu {
        index,
        vendor: "nvidia".into(),
        model: "NVIDIA A100-SXM4-80GB".into(),
        vram: 80 << 30,
        compute_capability: Some((8, 0)),
        driver: "550.54.14".into(),
        uuid: format!("GPU-{node:08x}-1b2c-4d5e-8f90-{index:012x}"),
        mig: false,
        numa: Some(index / 2),
    };
    let [high, low] = node.to_be_bytes();
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    let disk = |purpose: &str| Disk {
        purpose: purpose.into(),
        total: 1 << 41,
    };
    Announcement {
        version: 1,
        issued_at: NOW,
        ttl: Duration::from_hours(6),
        name: format!("gpu-{node}"),
        roles: [Role::Agent, Role::Relay].into(),
        addresses: vec![
            ([10, 0, high, low], 4433).into(),
            ([0x2001, 0xdb8, 0, 0, 0, 0, 0, node], 4433).into(),
        ],
        services: texts(&["agent", "mesh"]),
        hardware: Hardware {
            arch: "x86_64".into(),
            cpu_model: "AMD EPYC 7763 64-Core Processor".into(),
            cpu_threads: 128,
            cpu_cores: 64,
            memory: 512 << 30,
            numa_nodes: 2,
            disks: vec![disk("data"), disk("images")],
            gpus: (0..4).map(gpu).collect(),
        },
        software: Software {
            os: "Ubuntu 24.04.1 LTS".into(),
            kernel: "6.8.0-45-generic".into(),
            container_backend: Some("docker 27.3.1".into()),
            cuda: Some("12.4".into()),
            meshwork: "0.1.0".into(),
            ..Software::default()
        },
        images: (0..8)
            .map(|n| format!("registry.example.org/ml/pytorch:2.{n}-cuda12.4"))
            .collect(),
        models: texts(&["llama-3.1-70b", "mixtral-8x22b"]),
        tags: [
            format!("rack-{}", node / 40),
            "prod".into(),
            "zone:b".into(),
        ]
        .into(),
        region: Some("eu".into()),
        ..Announcement::default()
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static HEAP: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, and a count of the bytes that it spends: what is asked for, a head of 8
/// bytes, rounded up to 16, at least 32 (as glibc's does on 64 bits).
struct Counting;

fn spent(size: usize) -> i64 {
    i64::try_from((size + 8).next_multiple_of(16).max(32)).unwrap_or(i64::MAX)
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(spent(layout.size()), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HEAP.fetch_sub(spent(layout.size()), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HEAP.fetch_add(spent(size) - spent(layout.size()), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
