//! Who is kept when there are more nodes than there is room for.

use std::collections::BTreeSet;

use meshwork_identity::{NodeId, Timestamp};
use meshwork_proto::facts::{Fact, Facts};
use meshwork_proto::membership::{Ledger, Outcome};
use meshwork_proto::store::{AnnouncementStore, MAX_TTL, Received, RefusedBy};
use meshwork_proto::{Announcement, SignedAnnouncement};

use crate::fixture::{Mesh, NOW, at, beat, body, identity};

/// The node whose store it is.
const LOCAL: u16 = 999;

fn store(room: usize) -> AnnouncementStore {
    AnnouncementStore::with_capacity(node(LOCAL), room)
}

fn node(seed: u16) -> NodeId {
    identity(seed).node_id()
}

fn version(version: u64, now: Timestamp) -> Announcement {
    Announcement {
        issued_at: now,
        ttl: MAX_TTL,
        ..body(version, Vec::new())
    }
}

fn first(mesh: &Mesh, seed: u16) -> SignedAnnouncement {
    mesh.announce(seed, &version(1, NOW))
}

fn is_stored(received: &Received) -> bool {
    matches!(received, Received::Stored { .. })
}

fn held(store: &AnnouncementStore) -> BTreeSet<NodeId> {
    store.iter().map(|(node, _)| node).collect()
}

/// Seeds by the order of their ids.
fn by_id(seeds: impl IntoIterator<Item = u16>) -> Vec<u16> {
    let mut seeds: Vec<u16> = seeds.into_iter().collect();
    seeds.sort_by_key(|seed| node(*seed));
    seeds
}

#[test]
fn of_siblings_the_smallest_ids_are_kept() {
    let mesh = Mesh::new();
    let mut store = store(3);
    let seeds = by_id(1..=6);
    for seed in &seeds[1..4] {
        assert!(is_stored(
            &store.receive(first(&mesh, *seed), &mesh.trust(NOW))
        ));
    }
    let late = store.receive(first(&mesh, seeds[4]), &mesh.trust(NOW));
    assert_eq!(late, Received::Refused(RefusedBy::StoreFull));
    let unknown = store.receive_beat(beat(seeds[4], 1, 2, NOW), &mesh.trust(NOW));
    assert_eq!(unknown, Received::Refused(RefusedBy::StoreFull));
    let better = store.receive(first(&mesh, seeds[0]), &mesh.trust(NOW));
    assert!(is_stored(&better), "{better:?}");
    assert_eq!(store.take_displaced(), [node(seeds[3])]);
    assert!(store.take_displaced().is_empty());
    assert_eq!(held(&store), seeds[..3].iter().copied().map(node).collect());
    // Who is held may speak on, and what it says of itself has room always.
    let update = mesh.announce(seeds[0], &version(2, NOW));
    assert!(is_stored(&store.receive(update, &mesh.trust(NOW))));
    store.insert_own(first(&mesh, LOCAL), NOW).unwrap();
    assert_eq!(store.len(), 3);
    assert!(held(&store).contains(&node(LOCAL)));
    // The version of who had to leave is remembered.
    let seed = seeds[3];
    let replay = store.receive(first(&mesh, seed), &mesh.trust(NOW));
    assert_eq!(replay, Received::Refused(RefusedBy::StoreFull));
    assert!(store.drop_node(&node(seeds[0])));
    let older = mesh.announce(seed, &version(0, NOW));
    let rollback = RefusedBy::Rollback {
        version: 0,
        known: 1,
    };
    let replay = store.receive(older, &mesh.trust(NOW));
    assert_eq!(replay, Received::Refused(rollback));
    assert!(is_stored(
        &store.receive(first(&mesh, seed), &mesh.trust(NOW))
    ));
}

#[test]
fn its_own_place_is_never_given_away() {
    let mesh = Mesh::new();
    let seeds = by_id(1..=20);
    let last = *seeds.last().unwrap();
    let mut store = AnnouncementStore::with_capacity(node(last), 3);
    store.insert_own(first(&mesh, last), NOW).unwrap();
    for seed in seeds.iter().rev().skip(1) {
        store.receive(first(&mesh, *seed), &mesh.trust(NOW));
    }
    let kept = [seeds[0], seeds[1], last].map(node);
    assert_eq!(held(&store), kept.into_iter().collect());
}

/// A member that may delegate makes up nodes, also through others that it made up. The nodes that its
/// issuer admitted beside it, and those of the authority, stay.
#[test]
fn a_delegate_pushes_out_none_but_its_own() {
    let mesh = Mesh::new();
    let mut store = store(20);
    let mut honest: BTreeSet<NodeId> = BTreeSet::new();
    for chain in [&[1][..], &[2], &[3], &[1, 4], &[1, 5], &[1, 6], &[1, 7]] {
        let signed = mesh.announce_as(chain, &version(1, NOW));
        honest.insert(signed.node());
        assert!(is_stored(&store.receive(signed, &mesh.trust(NOW))));
    }
    for seed in 100..160 {
        let chain = [1, 7, 50 + seed % 3, seed];
        store.receive(mesh.announce_as(&chain, &version(1, NOW)), &mesh.trust(NOW));
    }
    assert_eq!(store.len(), 20);
    assert!(held(&store).is_superset(&honest));
    // There is room for who comes late, too.
    for chain in [&[8][..], &[1, 9]] {
        let late = mesh.announce_as(chain, &version(1, NOW));
        assert!(
            is_stored(&store.receive(late, &mesh.trust(NOW))),
            "{chain:?}"
        );
    }
    assert!(held(&store).is_superset(&honest));
}

/// A newcomer counts before it is decided who leaves: its own branch may be the largest with it.
#[test]
fn whose_branch_grows_gives_way() {
    let mesh = Mesh::new();
    let branches = by_id([1, 2]);
    // What hangs below each branch, by the order of the ids.
    let below = |branch: u16| -> Vec<[u16; 2]> {
        let leaves = by_id((10..14).map(|leaf| 100 * branch + leaf));
        leaves.into_iter().map(|leaf| [branch, leaf]).collect()
    };
    let (small, large) = (below(branches[0]), below(branches[1]));
    let told = |order: &[&[[u16; 2]]]| {
        let mut store = store(7);
        for chain in order.iter().copied().flatten() {
            store.receive(mesh.announce_as(chain, &version(1, NOW)), &mesh.trust(NOW));
        }
        held(&store)
    };
    // Of four each, the branch with the larger id loses its largest.
    let kept = small.iter().chain(&large[..3]).map(|chain| node(chain[1]));
    let kept: BTreeSet<NodeId> = kept.collect();
    assert_eq!(told(&[&large, &small]), kept);
    assert_eq!(told(&[&small, &large[1..], &large[..1]]), kept);
}

/// What is remembered of nodes that are gone is bounded as well, and shared alike: made-up nodes that
/// come and go forget each other, and lock nobody out.
#[test]
fn remembered_versions_are_bounded_and_shared() {
    let mesh = Mesh::new();
    let mut store = store(2);
    let honest = mesh.announce_as(&[1], &version(2, NOW));
    assert!(is_stored(&store.receive(honest, &mesh.trust(NOW))));
    assert!(store.drop_node(&node(1)));
    for seed in 100..130 {
        let made_up = mesh.announce_as(&[2, seed], &version(2, NOW));
        assert!(is_stored(&store.receive(made_up, &mesh.trust(NOW))));
        assert!(store.drop_node(&node(seed)));
    }
    let replay = mesh.announce_as(&[1], &version(1, NOW));
    let rollback = RefusedBy::Rollback {
        version: 1,
        known: 2,
    };
    let received = store.receive(replay, &mesh.trust(NOW));
    assert_eq!(received, Received::Refused(rollback));
    let forgotten = (100..130).filter(|seed| {
        let replay = mesh.announce_as(&[2, *seed], &version(1, NOW));
        is_stored(&store.receive(replay, &mesh.trust(NOW))) && store.drop_node(&node(*seed))
    });
    assert!(
        forgotten.count() > 30 - 8,
        "eight versions are remembered in all"
    );
    assert!(is_stored(&store.receive(first(&mesh, 3), &mesh.trust(NOW))));
    // After a day and an hour nothing of them can come back.
    let end = 25 * 3600;
    assert_eq!(store.expire(at(end - 3600)), [node(3)]);
    store.expire(at(end));
    assert_eq!(store.next_expiry(), None);
}

/// New words of a full mesh are news to all: ids that go before others' do not come without end.
#[test]
fn places_change_hands_slowly() {
    let mesh = Mesh::new();
    let mut store = store(1);
    let seeds = by_id(1..=1100);
    let mut stored = 0;
    for seed in seeds.iter().rev() {
        stored += usize::from(is_stored(
            &store.receive(first(&mesh, *seed), &mesh.trust(NOW)),
        ));
    }
    assert_eq!(stored, 1 + 1024);
    let best = first(&mesh, seeds[0]);
    let soon = NOW.saturating_add(std::time::Duration::from_millis(49));
    assert!(!is_stored(&store.receive(best.clone(), &mesh.trust(soon))));
    let later = NOW.saturating_add(std::time::Duration::from_millis(50));
    assert!(is_stored(&store.receive(best, &mesh.trust(later))));
}

/// Two full nodes that were told the same in different orders hold the same: their comparison ends.
#[test]
fn full_nodes_agree() {
    let mesh = Mesh::new();
    let chains: Vec<Vec<u16>> = (1..=12)
        .map(|n| vec![n])
        .chain((20..40).map(|n| vec![1, n]))
        .chain((40..60).map(|n| vec![1, 2, n]))
        .collect();
    let told = |order: &mut dyn Iterator<Item = &Vec<u16>>| {
        let mut facts = Facts::with_capacity(node(LOCAL), 24);
        let mut stored = 0;
        for chain in order {
            let fact = Fact::Announcement(mesh.announce_as(chain, &version(1, NOW)));
            let outcome = facts.accept(fact, &mesh.trust(NOW)).2;
            stored += usize::from(matches!(outcome, Outcome::New { .. }));
        }
        assert_eq!(facts.nodes(), 24);
        let displaced = facts.expire(NOW);
        assert_eq!(displaced.len(), stored - 24);
        facts.summary()
    };
    let forward = told(&mut chains.iter());
    assert_eq!(forward, told(&mut chains.iter().rev()));
    let (odd, even): (Vec<_>, Vec<_>) = (0..chains.len()).partition(|n| n % 2 == 1);
    let mixed: Vec<usize> = odd.into_iter().rev().chain(even).collect();
    assert_eq!(forward, told(&mut mixed.iter().map(|n| &chains[*n])));
}
