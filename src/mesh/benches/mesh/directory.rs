//! What a node knows of 100,000 others: how fast it learns it, and how fast it answers questions.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Instant;

use meshwork_identity::{Domain, Identity, NodeId, Revocations, Timestamp, VerifyContext};
use meshwork_proto::announcement::{Announcement, SignedAnnouncement};
use meshwork_proto::query::{Asker, Query, View};
use meshwork_proto::store::{AnnouncementStore, Received};

use crate::Scale;
use crate::figures::{Series, Times, in_turn, series_in_turn};
use crate::meter::thread_cpu;
use crate::report::{Bar, Of, Row, Unit};
use crate::synthetic::{self, RACK, TENANT};

const NODES: usize = 100_000;
/// Hits that a question asks for.
const HITS: usize = 100;
/// Renewals in a round.
const RENEWALS: usize = 2_000;

/// The store, and the context in which it believes what it is told.
struct World {
    store: AnnouncementStore,
    authority: NodeId,
    revocations: Revocations,
    now: Timestamp,
}

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let nodes = scale.of(NODES);
    let mut world = World::new(nodes);
    let mut rows = learning(scale, &mut world, nodes);
    for (id, text, view, bar) in questions() {
        rows.extend(asking(scale, &world, id, &text, &view, bar));
    }
    rows
}

impl World {
    fn new(nodes: usize) -> Self {
        Self {
            store: AnnouncementStore::with_capacity(Identity::from_seed(&[8; 32]).node_id(), nodes),
            authority: synthetic::authority().node_id(),
            revocations: Revocations::new(),
            now: synthetic::NOW,
        }
    }

    /// Microseconds of this thread for each announcement.
    fn learn(&mut self, announcements: Vec<SignedAnnouncement>) -> f64 {
        let count = announcements.len();
        let start = thread_cpu();
        for announcement in announcements {
            let trust = VerifyContext::new(&self.authority, self.now, &self.revocations);
            let received = self.store.receive(announcement, &trust);
            assert!(matches!(received, Received::Stored { .. }), "{received:?}");
        }
        (thread_cpu() - start) / count as f64
    }
}

/// Announcements of nodes never heard of (two signatures: the token's and their own), and renewals
/// (one signature, as the token is known), against as many bare signatures.
fn learning(scale: &Scale, world: &mut World, nodes: usize) -> Vec<Row> {
    let rounds = scale.rounds + 1;
    let renewals = scale.of(RENEWALS);
    let per_round = nodes.div_ceil(rounds);
    let (mut fresh, mut renewed, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let first = round * per_round;
        let new = synthetic::announcements(first..nodes.min(first + per_round), 1);
        let again = synthetic::announcements(first..first + renewals.min(new.len()), 2);
        let figures = (verify(&again), world.learn(new), world.learn(again));
        // The first round warms up.
        if round > 0 {
            bare.push(figures.0);
            fresh.push(figures.1);
            renewed.push(figures.2);
        }
    }
    let rate = |micros: &[f64], signatures: f64| {
        Series::new(
            micros
                .iter()
                .map(|micros| 1e6 / (micros * signatures))
                .collect(),
        )
    };
    vec![
        Row::new(
            "announcements.new",
            "new announcements learned (2 signatures each)",
            Unit::PerSecond,
            rate(&fresh, 1.0),
        )
        .limit("verify_strict, twice", &rate(&bare, 2.0))
        .bar(Bar::AtLeast(0.8, Of::Limit)),
        Row::new(
            "announcements.renewed",
            "renewed announcements learned",
            Unit::PerSecond,
            rate(&renewed, 1.0),
        )
        .limit("verify_strict", &rate(&bare, 1.0))
        .bar(Bar::AtLeast(0.8, Of::Limit)),
    ]
}

/// Microseconds for one bare signature of these announcements.
fn verify(announcements: &[SignedAnnouncement]) -> f64 {
    let start = thread_cpu();
    for announcement in announcements {
        black_box(
            announcement
                .envelope
                .verified_body(&Domain::ANNOUNCEMENT)
                .unwrap(),
        );
    }
    (thread_cpu() - start) / announcements.len() as f64
}

/// Name, query, view, and the bar in microseconds.
fn questions() -> Vec<(Names, String, View, f64)> {
    let asker = Asker {
        tenants: BTreeSet::from([TENANT.to_owned()]),
        ..Asker::default()
    };
    let broad = "gpu.vram >= 40GB".to_owned();
    vec![
        (
            SELECTIVE,
            format!("tags has {RACK} and gpu.model = H200"),
            View::everything(),
            5.0,
        ),
        (BROAD, broad.clone(), View::everything(), 200.0),
        (SCOPED, broad, View::of(asker), 200.0),
    ]
}

/// Ids and descriptions of a question's median and tail.
type Names = [(&'static str, &'static str); 2];

const SELECTIVE: Names = [
    ("index.selective.p50", "index: selective query, p50"),
    ("index.selective.tail", "index: selective query, p99 / p50"),
];
const BROAD: Names = [
    (
        "index.broad.p50",
        "index: ≥ 40 GB VRAM, half match, 100 hits and count, p50",
    ),
    ("index.broad.tail", "index: ≥ 40 GB VRAM, p99 / p50"),
];
const SCOPED: Names = [
    (
        "index.scoped.p50",
        "index: ≥ 40 GB VRAM within a tenant's view, p50",
    ),
    (
        "index.scoped.tail",
        "index: ≥ 40 GB VRAM within a tenant's view, p99 / p50",
    ),
];

fn asking(
    scale: &Scale,
    world: &World,
    names: Names,
    text: &str,
    view: &View,
    bar: f64,
) -> [Row; 2] {
    let query = Query::parse(text).unwrap();
    let count = scale.of(2000).max(500);
    let [asked] = in_turn(
        scale.rounds,
        [&mut || ask(&world.store, &query, view, count)],
    );
    let [scan] = series_in_turn(scale.rounds, [&mut || scan(&world.store, &query, view)]);
    let middle = Times::series(&asked, 0.5);
    let tail = Times::series(&asked, 0.99).over(&middle);
    let [(median_id, median), (tail_id, tail_name)] = names;
    [
        Row::new(median_id, median, Unit::Micros, middle)
            .peer("scan of all", &scan)
            .bar(Bar::AtMost(bar, Of::One)),
        Row::new(tail_id, tail_name, Unit::Times, tail).bar(Bar::AtMost(3.0, Of::One)),
    ]
}

fn ask(store: &AnnouncementStore, query: &Query, view: &View, count: usize) -> Times {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        black_box(store.find(query, view, HITS));
        times.push(start.elapsed());
    }
    Times::new(times)
}

/// Microseconds of the same answer without the index.
fn scan(store: &AnnouncementStore, query: &Query, view: &View) -> f64 {
    let start = Instant::now();
    let shown = |node: &NodeId, body: &Announcement| query.matches(node, body) && view.shows(body);
    let mut hits = Vec::with_capacity(HITS);
    let mut total = 0;
    for known in store.iter().filter(|(node, body)| shown(node, body)) {
        total += 1;
        if hits.len() < HITS {
            hits.push(known);
        }
    }
    let took = start.elapsed();
    let indexed = store.find(query, view, HITS);
    assert_eq!(
        (hits.len(), total),
        (indexed.0.len(), indexed.1),
        "index and scan agree"
    );
    took.as_secs_f64() * 1e6
}
