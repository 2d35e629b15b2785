//! The index finds exactly what looking at every announcement finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::query::{Asker, Query, ScopeFilter, View};
use meshwork_proto::store::{AnnouncementStore, Received};
use meshwork_proto::{Announcement, Availability};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::arbitrary::{announcement, availability, query};
use crate::fixture::{Mesh, NOW, TTL, beat_with, identity};

/// Enough for values that nearly every node has to be kept as bits, others as lists.
const NODES: u16 = 900;

static STORE: LazyLock<AnnouncementStore> = LazyLock::new(|| {
    let (mesh, mut runner) = (Mesh::new(), TestRunner::deterministic());
    let mut store = AnnouncementStore::new(identity(9999).node_id());
    for seed in 1..=NODES {
        let body = announcement().new_tree(&mut runner).unwrap().current();
        let received = store.receive(mesh.announce(seed, &body), &mesh.trust(NOW));
        assert!(matches!(received, Received::Stored { .. }), "{received:?}");
        // Of every fourth nobody has heard what is free.
        if seed % 4 > 0 {
            let free = availability().new_tree(&mut runner).unwrap().current();
            let beat = beat_with(seed, (1, 2), NOW, Some(free));
            let received = store.receive_beat(beat, &mesh.trust(NOW));
            assert!(matches!(received, Received::Renewed { .. }), "{received:?}");
        }
    }
    store
});

fn view() -> impl Strategy<Value = View> {
    let names = |names: [&str; 2]| names.map(String::from).into_iter().collect::<BTreeSet<_>>();
    let asker = Asker {
        subnet: Some("3.7".parse().unwrap()),
        tenants: names(["acme", "other"]),
        region: Some("eu".into()),
    };
    let filters = prop_oneof![
        Just(ScopeFilter::Everything),
        Just(ScopeFilter::GlobalOnly),
        Just(ScopeFilter::Any),
        Just(ScopeFilter::Own),
        Just(ScopeFilter::SameSubnet),
        Just(ScopeFilter::Tenants(names(["acme", "none"]))),
        Just(ScopeFilter::Regions(names(["eu", "none"]))),
    ];
    (filters, any::<bool>()).prop_map(move |(filter, homeless)| {
        let mut asker = asker.clone();
        asker.subnet = asker.subnet.filter(|_| !homeless);
        View { asker, filter }
    })
}

fn by_looking(store: &AnnouncementStore, query: &Query, view: &View) -> Vec<NodeId> {
    let satisfies = |node: &NodeId, body: &Announcement| {
        query.matches_with(node, body, store.availability(node).as_deref())
    };
    let hits = store
        .iter()
        .filter(|(node, body)| satisfies(node, body) && view.shows(body));
    hits.map(|(node, _)| node).collect()
}

fn by_index(
    store: &AnnouncementStore,
    query: &Query,
    view: &View,
    limit: usize,
) -> (Vec<NodeId>, usize) {
    let (hits, total) = store.find(query, view, limit);
    (hits.into_iter().map(|(node, _)| node).collect(), total)
}

proptest! {
    #![proptest_config(Config::with_cases(1000))]

    #[test]
    fn the_index_agrees_with_looking(text in query(), view in view(), limit in 0usize..1000) {
        let query = Query::parse(&text).unwrap();
        let mut expected = by_looking(&STORE, &query, &view);
        let total = expected.len();
        expected.truncate(limit);
        prop_assert_eq!(by_index(&STORE, &query, &view, limit), (expected, total), "{}", text);
    }
}

/// A change of the store.
#[derive(Debug, Clone)]
enum Step {
    Announce(u16, Box<Announcement>),
    Again(u16),
    Beat(u16, Option<Availability>),
    Dead(u16, bool),
    Drop(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u16..60, announcement()).prop_map(|(seed, body)| Step::Announce(seed, Box::new(body))),
        1 => (1u16..60).prop_map(Step::Again),
        3 => (1u16..60, proptest::option::of(availability()))
            .prop_map(|(seed, free)| Step::Beat(seed, free)),
        1 => (1u16..60, any::<bool>()).prop_map(|(seed, dead)| Step::Dead(seed, dead)),
        1 => (1u16..60).prop_map(Step::Drop),
    ]
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn the_index_follows_every_change(
        steps in proptest::collection::vec(step(), 1..120),
        queries in proptest::collection::vec(query(), 8),
    ) {
        let mesh = Mesh::new();
        // So small that only a few announcements are kept decoded.
        let mut store = AnnouncementStore::with_capacity(identity(9999).node_id(), 64);
        let mut model: BTreeMap<NodeId, (Announcement, u64, bool)> = BTreeMap::new();
        let mut free_of: BTreeMap<NodeId, Option<Availability>> = BTreeMap::new();
        for (n, step) in (1u64..).zip(steps) {
            // A second passes at each step, so that no key speaks too often.
            let now = NOW.saturating_add(Duration::from_secs(n));
            let (seed, body) = match step {
                Step::Announce(seed, body) => (seed, Some(*body)),
                Step::Again(seed) => {
                    let known = model.get(&identity(seed).node_id());
                    (seed, known.map(|(body, ..)| body.clone()))
                }
                Step::Beat(seed, free) => {
                    let node = identity(seed).node_id();
                    let known = model.get_mut(&node);
                    let base = known.as_ref().map_or(1, |(_, base, _)| *base);
                    let beat = beat_with(seed, (base, n), now, free.clone());
                    let received = store.receive_beat(beat, &mesh.trust(now));
                    match known {
                        None => prop_assert_eq!(received, Received::Incomplete),
                        Some((body, ..)) => {
                            prop_assert_eq!(received, Received::Renewed { node, forward: Some(1) });
                            (body.version, body.issued_at, body.ttl) = (n, now, TTL);
                            free_of.insert(node, free);
                        }
                    }
                    continue;
                }
                Step::Dead(seed, dead) => {
                    let node = identity(seed).node_id();
                    let known = model.get_mut(&node);
                    let changes = known.as_ref().is_some_and(|(_, _, was)| *was != dead);
                    prop_assert_eq!(store.set_dead(&node, dead), changes);
                    if let Some((_, _, was)) = known {
                        *was = dead;
                    }
                    continue;
                }
                Step::Drop(seed) => {
                    let node = identity(seed).node_id();
                    prop_assert_eq!(store.drop_node(&node), model.remove(&node).is_some());
                    continue;
                }
            };
            let Some(body) = body else { continue };
            let body = Announcement { version: n, issued_at: now, ..body };
            let received = store.receive(mesh.announce(seed, &body), &mesh.trust(now));
            prop_assert!(matches!(received, Received::Stored { .. }), "{:?}", received);
            let node = identity(seed).node_id();
            let dead = model.get(&node).is_some_and(|(_, _, dead)| *dead);
            model.insert(node, (body, n, dead));
            free_of.insert(node, None);
        }
        let others: BTreeSet<NodeId> = (0..).map_while(|n| store.nth_other(n)).collect();
        prop_assert_eq!(others, model.keys().copied().collect());
        prop_assert_eq!(store.others(), model.len());
        for (node, (body, ..)) in &model {
            let held = store.get(node);
            prop_assert_eq!(held.as_deref(), Some(body));
        }
        model.retain(|_, (_, _, dead)| !*dead);
        prop_assert_eq!(store.len(), model.len());
        let held = store.iter().map(|(node, body)| (node, (*body).clone()));
        let living = model.iter().map(|(node, (body, ..))| (*node, body.clone()));
        prop_assert_eq!(held.collect::<Vec<_>>(), living.collect::<Vec<_>>());
        for text in queries {
            let query = Query::parse(&text).unwrap();
            let hits = model.iter().filter(|(node, (body, ..))| {
                query.matches_with(node, body, free_of[*node].as_ref())
            });
            let expected: Vec<NodeId> = hits.map(|(node, _)| *node).collect();
            let total = expected.len();
            let found = by_index(&store, &query, &View::everything(), usize::MAX);
            prop_assert_eq!(found, (expected, total), "{}", text);
        }
    }
}
