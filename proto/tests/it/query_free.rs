//! Queries about what nodes have free.

use std::time::Duration;

use meshwork_identity::Timestamp;
use meshwork_proto::query::{Query, View};
use meshwork_proto::store::{AnnouncementStore, Received};
use meshwork_proto::{Announcement, Availability};

use crate::fixture::{Mesh, NOW, at, beat_with, body, gpu, identity};

const GB: u64 = 1_000_000_000;

/// A machine with two GPUs of 80 GB.
fn machine() -> Announcement {
    body(1, vec![gpu("A100", 80 * GB), gpu("A100", 80 * GB)])
}

/// 1.5 threads, 64 GB and one GPU are free; 10 GB of one GPU are.
fn some() -> Availability {
    Availability {
        free: vec![
            ("cpu".into(), 1500),
            ("mem".into(), 64 * GB),
            ("gpu".into(), 1),
        ],
        vram_used: vec![80 * GB, 70 * GB],
        healthy: true,
    }
}

fn holds(text: &str, free: Option<&Availability>) -> bool {
    let query = Query::parse(text).unwrap();
    query.matches_with(&identity(1).node_id(), &machine(), free)
}

#[test]
fn free_amounts_compare_like_any_number() {
    let free = some();
    for (text, expected) in [
        ("free.cpu >= 1.5", true),
        ("free.cpu > 1.5", false),
        ("free.cpu >= 2", false),
        ("free.cpu = 1.500", true),
        ("free.mem >= 64GB and free.memory < 65GB", true),
        ("free.mem != 64GB", false),
        ("free.gpus >= 1 and free.gpu < 2", true),
        ("healthy = true", true),
        ("healthy != yes", false),
        ("gpu.free >= 10GB", true),
        ("free.gpu.vram >= 10GB", true),
        ("free.vram > 10GB", false),
        ("gpu.free = 0 and gpu.vendor = nvidia", true),
        ("gpu[free >= 10GB and vram >= 80GB]", true),
        ("gpu[free.gpu.vram >= 10GB]", true),
        ("count(gpu[free >= 10GB]) = 1", true),
        ("count(gpu[free < 1TB]) = 2", true),
        ("not gpu.free >= 40GB", true),
    ] {
        assert_eq!(holds(text, Some(&free)), expected, "{text}");
    }
}

#[test]
fn what_is_unknown_satisfies_no_comparison() {
    for text in [
        "free.cpu >= 0",
        "free.cpu < 1000",
        "free.mem = 0",
        "free.mem != 0",
        "free.gpus in (0, 1)",
        "free.gpus != 0",
        "healthy = true",
        "healthy = false",
        "healthy != true",
        "gpu.free >= 0",
        "gpu.free != 1GB",
        "count(gpu[free >= 0]) > 0",
    ] {
        assert!(!holds(text, None), "{text}");
        // `not` is the opposite, as ever.
        assert!(holds(&format!("not {text}"), None), "{text}");
    }
    // A beat that does not speak of a slot, or of a GPU.
    let short = Availability {
        vram_used: vec![0],
        ..Availability::default()
    };
    assert!(!holds("free.mem >= 0", Some(&short)));
    assert!(holds("count(gpu[free >= 0]) = 1", Some(&short)));
    // More in use than there is: nothing is free.
    let over = Availability {
        vram_used: vec![u64::MAX],
        ..Availability::default()
    };
    assert!(holds("gpu.free = 0", Some(&over)));
}

#[test]
fn devices_of_every_kind_count() {
    let free = Availability {
        free: vec![
            ("cuda.device".into(), 2),
            ("rocm.device".into(), 1),
            ("cuda.shares".into(), 9),
        ],
        ..Availability::default()
    };
    assert!(holds("free.gpus = 3", Some(&free)));
    let none = Availability::default();
    assert!(holds("free.gpus = 0", Some(&none)));
}

#[test]
fn free_queries_print_and_read_back() {
    for (text, printed) in [
        ("free.cpu>=1.50", "free.cpu >= 1.5"),
        ("free.cpu in (1, 0.125)", "free.cpu in (1, 0.125)"),
        ("free.gpu.vram >= 40GB", "gpu[free >= 40GB]"),
        ("healthy = yes", "healthy = true"),
    ] {
        let query = Query::parse(text).unwrap();
        assert!(query.asks_free());
        assert_eq!(query.to_string(), printed);
        assert_eq!(Query::parse(printed).unwrap(), query);
        let json = serde_json::to_string(&query.to_json()).unwrap();
        assert_eq!(Query::from_json(&json).unwrap(), query, "{json}");
    }
    assert!(!Query::parse("gpu.vram >= 40GB").unwrap().asks_free());
    for (text, reason) in [
        ("free.cpu >= 1.2345", "at most three decimals"),
        ("free.cpu >= two", "no number of threads"),
        ("free.cpu >= 99999999999999999999", "no number of threads"),
        ("free.mem >= 40", "has no unit"),
        ("free.gpu.vrm >= 40GB", "there is no field"),
        ("gpu[free.mem >= 1GB]", "is a field of the node"),
    ] {
        let error = Query::parse(text).unwrap_err();
        assert!(error.message().contains(reason), "{text}: {error}");
    }
}

fn found(store: &AnnouncementStore, text: &str) -> usize {
    let query = Query::parse(text).unwrap();
    store.find(&query, &View::everything(), usize::MAX).1
}

fn beat(store: &mut AnnouncementStore, mesh: &Mesh, version: u64, now: Timestamp, gb: u64) {
    let free = Availability {
        free: vec![("mem".into(), gb * GB)],
        ..Availability::default()
    };
    let beat = beat_with(1, (1, version), now, Some(free));
    let received = store.receive_beat(beat, &mesh.trust(now));
    assert!(matches!(received, Received::Renewed { .. }), "{received:?}");
}

/// Each beat counts from then on, and nothing of it is left when the node announces itself anew, is
/// believed dead, or is forgotten.
#[test]
fn the_latest_beat_counts() {
    let mesh = Mesh::new();
    let mut store = AnnouncementStore::new(identity(999).node_id());
    store.receive(mesh.announce(1, &machine()), &mesh.trust(NOW));
    assert_eq!(found(&store, "free.mem >= 0"), 0);
    beat(&mut store, &mesh, 2, at(1), 64);
    assert_eq!(found(&store, "free.mem >= 64GB"), 1);
    assert_eq!(found(&store, "free.mem > 64GB"), 0);
    beat(&mut store, &mesh, 3, at(2), 65);
    assert_eq!(
        found(&store, "free.mem > 64GB"),
        1,
        "in the same step of the index"
    );
    beat(&mut store, &mesh, 4, at(3), 1);
    assert_eq!(found(&store, "free.mem >= 2GB"), 0);
    let node = identity(1).node_id();
    store.set_dead(&node, true);
    let query = Query::parse("free.mem >= 0").unwrap();
    assert!(store.find_dead(&query, &View::everything()).is_empty());
    store.set_dead(&node, false);
    assert_eq!(found(&store, "free.mem = 1GB"), 1);
    let again = Announcement {
        version: 5,
        issued_at: at(4),
        ..machine()
    };
    store.receive(mesh.announce(1, &again), &mesh.trust(at(4)));
    assert_eq!(
        found(&store, "free.mem >= 0"),
        0,
        "no beat since the announcement"
    );
    assert_eq!(
        store.expire(at(4).saturating_add(Duration::from_hours(1))),
        [node]
    );
    assert_eq!(found(&store, "not free.mem >= 0"), 0);
}
