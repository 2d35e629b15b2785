//! What the store believes, what it refuses, and what it forgets.

use std::time::Duration;

use meshwork_identity::{Revocation, RevocationNotice, Revoked, Scope, Timestamp, TokenError};
use meshwork_proto::announcement::{Gpu, Role};
use meshwork_proto::limits::{MAX_ANNOUNCEMENT, MAX_HOPS};
use meshwork_proto::query::{Query, View};
use meshwork_proto::store::{AnnouncementStore, MAX_TTL, Received, RefusedBy};
use meshwork_proto::{Announcement, SignedAnnouncement};

use crate::fixture::{Mesh, NOW, TTL, at, body, gpu, identity};

fn store() -> AnnouncementStore {
    AnnouncementStore::new(identity(999).node_id())
}

fn version(version: u64) -> Announcement {
    body(version, vec![gpu("A100 80GB", 80_000_000_000)])
}

fn refusal(received: Received) -> RefusedBy {
    match received {
        Received::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_is_new_is_stored_and_forwarded_once() {
    let (mesh, mut store) = (Mesh::new(), store());
    let signed = mesh.announce(1, &version(1));
    let received = store.receive(signed.clone(), &mesh.trust(NOW));
    let known = (identity(1).node_id(), std::sync::Arc::new(version(1)));
    assert_eq!(
        received,
        Received::Stored {
            known,
            forward: Some(1)
        }
    );
    // Again from another neighbour, by a longer way.
    let echo = SignedAnnouncement {
        hops: 5,
        ..signed.clone()
    };
    assert_eq!(store.receive(echo, &mesh.trust(NOW)), Received::Duplicate);
    assert_eq!(store.len(), 1);
    assert_eq!(
        store.signed(&identity(1).node_id()).as_deref(),
        Some(&signed)
    );
    assert_eq!(store.refusals().total(), 0);
}

#[test]
fn hops_end() {
    let (mesh, mut store) = (Mesh::new(), store());
    let last = SignedAnnouncement {
        hops: MAX_HOPS,
        ..mesh.announce(1, &version(1))
    };
    let received = store.receive(last, &mesh.trust(NOW));
    assert!(
        matches!(received, Received::Stored { forward: None, .. }),
        "{received:?}"
    );
    let beyond = SignedAnnouncement {
        hops: MAX_HOPS + 1,
        ..mesh.announce(2, &version(1))
    };
    let refused = refusal(store.receive(beyond, &mesh.trust(NOW)));
    assert_eq!(refused, RefusedBy::Hops { hops: MAX_HOPS + 1 });
}

#[test]
fn only_the_node_itself_speaks_for_it() {
    let (mesh, mut store) = (Mesh::new(), store());
    let good = mesh.announce(1, &version(1));
    let mut bytes = meshwork_proto::codec::encode(&good);
    // The signed body stands after the signer's 32 bytes and its own length, its name after the head.
    for position in [50, 60, 100] {
        bytes[position] ^= 1;
        let forged = meshwork_proto::codec::decode(&bytes, 1 << 16).unwrap();
        let refused = refusal(store.receive(forged, &mesh.trust(NOW)));
        assert_eq!(refused, RefusedBy::BadSignature);
        bytes[position] ^= 1;
    }
    assert_eq!(store.refusals().of("bad_signature"), 3);
    assert!(store.is_empty());
}

#[test]
fn the_token_must_let_its_subject_announce() {
    let (mut mesh, mut store) = (Mesh::new(), store());
    let (node, long) = (identity(1), Duration::from_hours(1));
    let sign = |token| SignedAnnouncement::sign(&node, token, &version(1)).unwrap();
    let kind = |store: &mut AnnouncementStore, mesh: &Mesh, signed| match refusal(
        store.receive(signed, &mesh.trust(at(61))),
    ) {
        RefusedBy::Token(error) => error.kind(),
        other => panic!("{other:?}"),
    };
    let call = sign(mesh.token(node.node_id(), Scope::Call, long));
    assert_eq!(kind(&mut store, &mesh, call), "scope_exceeded");
    let other = sign(mesh.token(identity(2).node_id(), Scope::Announce, long));
    assert_eq!(kind(&mut store, &mesh, other), "wrong_subject");
    let stale = sign(mesh.token(node.node_id(), Scope::Announce, Duration::from_secs(30)));
    assert_eq!(kind(&mut store, &mesh, stale), "expired");
    let stranger = Mesh {
        authority: identity(7),
        ..Mesh::new()
    };
    let foreign = sign(stranger.token(node.node_id(), Scope::Announce, long));
    assert_eq!(kind(&mut store, &mesh, foreign), "untrusted_root");
    let token = mesh.token(node.node_id(), Scope::Announce, long);
    revoke(&mut mesh, Revoked::Token(token.id()));
    assert_eq!(kind(&mut store, &mesh, sign(token)), "revoked");
    assert_eq!(store.refusals().of("token"), 5);
}

fn revoke(mesh: &mut Mesh, what: Revoked) {
    let notice = RevocationNotice {
        what,
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let revocation = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let tolerance = Duration::from_secs(30);
    assert!(
        mesh.revocations
            .insert(revocation, &mesh.root, NOW, tolerance)
            .unwrap()
    );
}

#[test]
fn a_known_token_is_asked_again_for_time_and_revocation() {
    let (mut mesh, mut store) = (Mesh::new(), store());
    let node = identity(1);
    let token = mesh.token(node.node_id(), Scope::Announce, Duration::from_secs(100));
    let sign = |version_: u64, issued| {
        let body = Announcement {
            issued_at: issued,
            ..version(version_)
        };
        SignedAnnouncement::sign(&node, token.clone(), &body).unwrap()
    };
    assert!(matches!(
        store.receive(sign(1, NOW), &mesh.trust(NOW)),
        Received::Stored { .. }
    ));
    // The announcement would hold for 300 s, its token does for 100 s and the tolerance of 30 s.
    assert_eq!(store.next_expiry(), Some(at(130)));
    let late = refusal(store.receive(sign(2, at(130)), &mesh.trust(at(130))));
    assert!(
        matches!(late, RefusedBy::Token(TokenError::Expired { .. })),
        "{late:?}"
    );
    revoke(&mut mesh, Revoked::Node(node.node_id()));
    let cut = refusal(store.receive(sign(2, at(1)), &mesh.trust(at(1))));
    assert!(
        matches!(cut, RefusedBy::Token(TokenError::Revoked { .. })),
        "{cut:?}"
    );
    let gone = store.drop_where(|grant| grant.revoked_by(&mesh.revocations).is_some());
    assert_eq!(gone, [node.node_id()]);
    assert!(store.is_empty());
}

#[test]
fn versions_only_grow_even_after_expiry() {
    let (mesh, mut store) = (Mesh::new(), store());
    let long = |v: u64| Announcement {
        ttl: MAX_TTL,
        ..version(v)
    };
    store.receive(mesh.announce(1, &long(4)), &mesh.trust(NOW));
    store.receive(mesh.announce(1, &version(5)), &mesh.trust(NOW));
    let twin = Announcement {
        name: "twin".into(),
        ..version(5)
    };
    for older in [long(4), twin] {
        let refused = refusal(store.receive(mesh.announce(1, &older), &mesh.trust(NOW)));
        assert_eq!(
            refused,
            RefusedBy::Rollback {
                version: older.version,
                known: 5
            }
        );
    }
    assert_eq!(store.expire(at(300)), [identity(1).node_id()]);
    // Version 4 would still hold: it must not come back.
    let refused = refusal(store.receive(mesh.announce(1, &long(4)), &mesh.trust(at(300))));
    assert_eq!(
        refused,
        RefusedBy::Rollback {
            version: 4,
            known: 5
        }
    );
    let next = Announcement {
        issued_at: at(300),
        ..version(6)
    };
    let received = store.receive(mesh.announce(1, &next), &mesh.trust(at(300)));
    assert!(matches!(received, Received::Stored { .. }), "{received:?}");
}

#[test]
fn times_must_make_sense() {
    let (mesh, mut store) = (Mesh::new(), store());
    let mut refused =
        |body: Announcement, now| refusal(store.receive(mesh.announce(1, &body), &mesh.trust(now)));
    let future = Announcement {
        issued_at: at(31),
        ..version(1)
    };
    assert_eq!(refused(future, NOW), RefusedBy::FutureIssued { at: at(31) });
    assert_eq!(
        refused(version(1), at(300)),
        RefusedBy::Expired { at: at(300) }
    );
    for ttl in [
        Duration::ZERO,
        MAX_TTL + Duration::from_millis(1),
        Duration::MAX,
    ] {
        let body = Announcement { ttl, ..version(1) };
        assert_eq!(refused(body, NOW), RefusedBy::Malformed("ttl"));
    }
    let ahead = Announcement {
        issued_at: at(30),
        ..version(1)
    };
    let received = store.receive(mesh.announce(1, &ahead), &mesh.trust(NOW));
    assert!(matches!(received, Received::Stored { .. }), "{received:?}");
}

#[test]
fn sizes_and_names_are_bounded() {
    let (mesh, mut store) = (Mesh::new(), store());
    let mut refused =
        |body: Announcement| refusal(store.receive(mesh.announce(1, &body), &mesh.trust(NOW)));
    let big = Announcement {
        images: vec!["x".repeat(MAX_ANNOUNCEMENT)],
        ..version(1)
    };
    assert!(matches!(refused(big), RefusedBy::TooLarge { .. }));
    for name in ["x".repeat(65), "a\nb".into(), "\u{1b}[31m".into()] {
        let body = Announcement { name, ..version(1) };
        assert_eq!(refused(body), RefusedBy::Malformed("name"));
    }
}

#[test]
fn a_key_may_speak_once_a_second_after_a_burst() {
    let (mesh, mut store) = (Mesh::new(), store());
    let mut stored = |v: u64, now: Timestamp| {
        let body = Announcement {
            issued_at: now,
            ..version(v)
        };
        match store.receive(mesh.announce(1, &body), &mesh.trust(now)) {
            Received::Stored { .. } => true,
            Received::Refused(RefusedBy::RateLimited) => false,
            other => panic!("{other:?}"),
        }
    };
    assert!((1..=5).all(|v| stored(v, NOW)));
    assert!(!stored(6, NOW));
    assert!(!stored(6, NOW.saturating_add(Duration::from_millis(999))));
    assert!(stored(6, at(1)));
    assert!(!stored(7, at(1)));
    assert!((7..=11).all(|v| stored(v, at(100))));
    assert!(!stored(12, at(100)));
    assert!(!stored(
        12,
        Timestamp::from_millis(at(100).as_millis() - 999)
    ));
    // A clock that was set back makes nobody mute until it has caught up.
    assert!((12..=16).all(|v| stored(v, NOW)));
    assert!(!stored(17, NOW));
}

#[test]
fn expiry_comes_in_order_of_time() {
    let (mesh, mut store) = (Mesh::new(), store());
    for (seed, ttl) in [(1, 60), (2, 30), (3, 90)] {
        let body = Announcement {
            ttl: Duration::from_secs(ttl),
            ..version(1)
        };
        store.receive(mesh.announce(seed, &body), &mesh.trust(NOW));
    }
    assert_eq!(store.next_expiry(), Some(at(30)));
    assert!(store.expire(at(29)).is_empty());
    assert_eq!(
        store.expire(at(60)),
        [identity(2).node_id(), identity(1).node_id()]
    );
    assert_eq!(store.next_expiry(), Some(at(90)));
    assert_eq!(
        store.iter().map(|(node, _)| node).collect::<Vec<_>>(),
        [identity(3).node_id()]
    );
    assert_eq!(store.expire(at(90)), [identity(3).node_id()]);
    assert!(store.expire(at(25 * 3600)).is_empty());
    assert_eq!(store.next_expiry(), None);
    // What expired is found no more.
    assert_eq!(
        store.find(&Query::all(), &View::everything(), 9),
        (Vec::new(), 0)
    );
    assert_eq!(
        store
            .find(&Query::parse("gpus = 1").unwrap(), &View::everything(), 9)
            .1,
        0
    );
}

#[test]
fn the_own_announcement_comes_from_here_only() {
    let (mesh, mut store) = (Mesh::new(), store());
    let mine = |v: u64| mesh.announce(999, &version(v));
    assert_eq!(
        store.insert_own(mesh.announce(1, &version(1)), NOW),
        Err(RefusedBy::BadSignature)
    );
    store.insert_own(mine(3), NOW).unwrap();
    assert_eq!(
        store.insert_own(mine(3), NOW),
        Err(RefusedBy::Rollback {
            version: 3,
            known: 3
        })
    );
    assert_eq!(
        store.receive(mine(3), &mesh.trust(NOW)),
        Received::Duplicate
    );
    assert_eq!(
        store.receive(mine(2), &mesh.trust(NOW)),
        Received::Duplicate
    );
    // Others know a later one: this node's state was lost.
    assert_eq!(
        store.receive(mine(9), &mesh.trust(NOW)),
        Received::OwnAhead { version: 9 }
    );
    store.insert_own(mine(10), NOW).unwrap();
    let held = store.get(&identity(999).node_id()).unwrap();
    assert_eq!(held.version, 10);
    // Or other words of the same version, when the counter was lost.
    let other = Announcement {
        name: "before".into(),
        ..version(10)
    };
    assert_eq!(
        store.receive(mesh.announce(999, &other), &mesh.trust(NOW)),
        Received::OwnAhead { version: 10 }
    );
}

/// A machine's GPUs differ in index and UUID at least.
#[test]
fn gpus_of_one_model_are_counted_one_by_one() {
    let (mesh, mut store) = (Mesh::new(), store());
    let gpus = (0..8).map(|index| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        ..gpu("H100", 80_000_000_000)
    });
    store.receive(mesh.announce(1, &body(1, gpus.collect())), &mesh.trust(NOW));
    for (query, expected) in [
        ("count(gpu[index < 4]) = 4", 1),
        ("count(gpu[index < 4]) = 8", 0),
        ("count(gpu[not index < 4 and model = h100]) >= 4", 1),
        ("count(gpu[uuid = GPU-7]) = 1", 1),
        ("count(gpu[uuid = GPU-8]) = 0", 1),
        ("gpu[index = 7 and vram = 80GB] and not gpu[index = 8]", 1),
    ] {
        let query = Query::parse(query).unwrap();
        let (_, total) = store.find(&query, &View::everything(), 9);
        assert_eq!(total, expected, "{query}");
    }
}

#[test]
fn hits_come_by_node_id_with_their_total() {
    let (mesh, mut store) = (Mesh::new(), store());
    for seed in 1..=100 {
        let mut node = version(1);
        node.name = format!("n{seed}");
        if seed % 10 == 0 {
            node.roles.insert(Role::Manager);
        }
        store.receive(mesh.announce(seed, &node), &mesh.trust(NOW));
    }
    for (query, total) in [
        ("gpu.vram >= 40GB", 100),
        ("roles has manager", 10),
        ("name = n7", 1),
    ] {
        let query = Query::parse(query).unwrap();
        let (all, count) = store.find(&query, &View::everything(), usize::MAX);
        assert_eq!((all.len(), count), (total, total), "{query}");
        assert!(all.is_sorted_by_key(|(node, _)| *node));
        for limit in [0, 1, 7, 99] {
            let (some, count) = store.find(&query, &View::everything(), limit);
            assert_eq!(count, total);
            assert_eq!(some[..], all[..limit.min(total)], "{query} {limit}");
        }
    }
    assert!(TTL < MAX_TTL);
}

/// A replay or a stranger's invention is refused before a signature is looked at.
#[test]
fn what_cannot_matter_costs_no_signature() {
    let (mesh, mut store) = (Mesh::new(), store());
    store.receive(mesh.announce(1, &version(5)), &mesh.trust(NOW));
    let forged = |seed: u16, body: &Announcement| {
        let mut bytes = meshwork_proto::codec::encode(&mesh.announce(seed, body));
        let last = bytes.len() - 1;
        // The name, behind the signed head.
        bytes[50] ^= 1;
        assert_eq!(bytes[last], 0, "hops come last");
        meshwork_proto::codec::decode(&bytes, 1 << 16).unwrap()
    };
    let old = refusal(store.receive(forged(1, &version(4)), &mesh.trust(NOW)));
    assert!(matches!(old, RefusedBy::Rollback { .. }), "{old:?}");
    let late = refusal(store.receive(forged(2, &version(1)), &mesh.trust(at(300))));
    assert!(matches!(late, RefusedBy::Expired { .. }), "{late:?}");
    let new = refusal(store.receive(forged(1, &version(6)), &mesh.trust(NOW)));
    assert_eq!(new, RefusedBy::BadSignature);
    // Of our own, what is not ahead is no news; what claims to be must be ours.
    let own = mesh.announce(999, &version(3));
    store.insert_own(own, NOW).unwrap();
    let echo = store.receive(forged(999, &version(2)), &mesh.trust(NOW));
    assert_eq!(echo, Received::Duplicate);
    let other = refusal(store.receive(forged(999, &version(3)), &mesh.trust(NOW)));
    assert_eq!(other, RefusedBy::BadSignature);
    let ahead = refusal(store.receive(forged(999, &version(4)), &mesh.trust(NOW)));
    assert_eq!(ahead, RefusedBy::BadSignature);
}

/// A renewal that says the same replaces only the head, and not under a reader's eyes.
#[test]
fn renewals_carry_the_new_head() {
    let (mesh, mut store) = (Mesh::new(), store());
    let node = identity(1).node_id();
    store.receive(mesh.announce(1, &version(1)), &mesh.trust(NOW));
    let before = store.get(&node).unwrap();
    let renewal = Announcement {
        issued_at: at(60),
        ttl: TTL * 2,
        ..version(2)
    };
    let received = store.receive(mesh.announce(1, &renewal), &mesh.trust(at(60)));
    let known = (node, std::sync::Arc::new(renewal.clone()));
    assert_eq!(
        received,
        Received::Stored {
            known: known.clone(),
            forward: Some(1)
        }
    );
    assert_eq!(*before, version(1));
    assert_eq!(store.get(&node).as_deref(), Some(&renewal));
    assert_eq!(store.signed(&node).unwrap().open(), Ok(renewal));
    assert_eq!(store.next_expiry(), Some(at(660)));
    let (hits, _) = store.find(&Query::parse("gpus = 1").unwrap(), &View::everything(), 9);
    assert_eq!(hits, [known]);
    // The same bytes under another's signature are not believed.
    let mut bytes = meshwork_proto::codec::encode(&mesh.announce(1, &version(3)));
    bytes[34] = 4;
    let forged = meshwork_proto::codec::decode(&bytes, 1 << 16).unwrap();
    let refused = refusal(store.receive(forged, &mesh.trust(at(61))));
    assert_eq!(refused, RefusedBy::BadSignature);
}
