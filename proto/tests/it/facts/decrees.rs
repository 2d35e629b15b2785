//! Revocations and changes of the mesh's key.

use std::time::Duration;

use meshwork_identity::{
    CLOCK_TOLERANCE, Psk, Revocation, RevocationError, RevocationNotice, Revoked, TokenError,
};
use meshwork_proto::limits::MAX_PSK_ROTATION;
use meshwork_proto::psk::{MAX_OVERLAP, PskRotationError};
use meshwork_proto::{PskRotation, SignedPskRotation};

use super::*;
use crate::fixture::{NOW, at};

fn notice(what: Revoked) -> RevocationNotice {
    RevocationNotice {
        what,
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    }
}

fn by_authority(mesh: &Mesh, notice: &RevocationNotice) -> Fact {
    Fact::Revocation(Revocation::by_authority(&mesh.authority, notice).unwrap())
}

fn by_admin(mesh: &Mesh, seed: u16, notice: &RevocationNotice) -> Fact {
    let (admin, token) = admin(mesh, seed);
    Fact::Revocation(Revocation::by_admin(&admin, token, notice).unwrap())
}

fn rotation(epoch: Timestamp, key: u8) -> PskRotation {
    PskRotation {
        epoch: epoch.as_secs(),
        psk: Psk::from_bytes([key; 32]),
        from: epoch,
        until: epoch.saturating_add(Duration::from_hours(1)),
    }
}

fn rotated(mesh: &Mesh, rotation: &PskRotation) -> Fact {
    Fact::Psk(SignedPskRotation::by_authority(&mesh.authority, rotation).unwrap())
}

#[test]
fn a_revocation_is_known_by_what_it_revokes() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let short = RevocationNotice {
        keep_until: at(1000),
        ..notice(Revoked::Node(node(1)))
    };
    let first = by_admin(&mesh, 5, &short);
    let (key, low, outcome, changes) = facts.accept(first.clone(), &mesh.trust(NOW));
    assert_eq!(outcome, NEW);
    assert!(matches!(changes[..], [Change::Revoked(_)]), "{changes:?}");
    assert_eq!(key, Key::Revocation(Revoked::Node(node(1)).digest()));
    assert_eq!(facts.fact(&key), Some(first.clone()));
    assert_eq!(
        tell(&mut facts, &mesh, first.clone(), NOW),
        Outcome::Duplicate
    );
    // The authority's word counts more, and the longer lasting.
    let ranked = [
        by_admin(&mesh, 5, &notice(Revoked::Node(node(1)))),
        by_authority(&mesh, &short),
        by_authority(&mesh, &notice(Revoked::Node(node(1)))),
    ];
    let mut last = low;
    for statement in &ranked {
        let (again, version, outcome, _) = facts.accept(statement.clone(), &mesh.trust(NOW));
        assert_eq!((again, outcome), (key, NEW));
        assert!(version > last);
        last = version;
    }
    for lower in [&first, &ranked[0], &ranked[1]] {
        assert_eq!(tell(&mut facts, &mesh, lower.clone(), NOW), Outcome::Old);
    }
    assert_eq!(facts.version(&key), Some(last));
    assert_eq!(facts.fact(&key).as_ref(), ranked.last());
    assert_eq!(facts.refusals().total(), 0);
    // One that lasts for ever is not forgotten with one that does not.
    facts.expire(at(2000));
    assert_eq!(facts.version(&key), Some(last));
}

#[test]
fn a_revocation_is_forgotten_in_time() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let short = RevocationNotice {
        keep_until: at(100),
        ..notice(Revoked::Node(node(1)))
    };
    let statement = by_authority(&mesh, &short);
    assert_eq!(tell(&mut facts, &mesh, statement.clone(), NOW), NEW);
    assert_eq!(facts.next_expiry(), Some(at(130)));
    facts.expire(at(129));
    assert_eq!(told(&facts).len(), 1);
    facts.expire(at(130));
    assert_eq!((told(&facts).len(), facts.summary()), (0, 0));
    let late = refusal(&mut facts, &mesh, statement, at(130));
    assert_eq!(
        late,
        RefusedBy::Revocation(RevocationError::Obsolete(at(100)))
    );
}

/// However often a revocation is replaced by one that lasts longer, it has one end.
#[test]
fn a_revocation_that_was_replaced_leaves_nothing_to_do() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let until = |end: u64| RevocationNotice {
        keep_until: at(end),
        ..notice(Revoked::Node(node(1)))
    };
    for end in [100, 200, 300] {
        let statement = by_authority(&mesh, &until(end));
        assert_eq!(tell(&mut facts, &mesh, statement, NOW), NEW);
        assert_eq!(facts.next_expiry(), Some(at(end + 30)));
    }
    let endless = by_authority(&mesh, &notice(Revoked::Node(node(1))));
    assert_eq!(tell(&mut facts, &mesh, endless, NOW), NEW);
    assert_eq!(facts.next_expiry(), None);
    assert_eq!(told(&facts).len(), 1);
}

#[test]
fn who_is_no_admin_revokes_nothing() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let what = notice(Revoked::Node(node(1)));
    let member = mesh.token(
        node(2),
        meshwork_identity::Scope::Announce,
        Duration::from_hours(1),
    );
    let by_member = Revocation::by_admin(&identity(2), member, &what).unwrap();
    let forged = Revocation::by_authority(&identity(2), &what).unwrap();
    let future = RevocationNotice {
        issued_at: at(31),
        ..what
    };
    for statement in [
        Fact::Revocation(by_member),
        Fact::Revocation(forged),
        by_authority(&mesh, &future),
        by_authority(&mesh, &notice(Revoked::Node(mesh.root))),
    ] {
        let refused = refusal(&mut facts, &mesh, statement, NOW);
        assert!(matches!(refused, RefusedBy::Revocation(_)), "{refused:?}");
    }
    assert_eq!(facts.refusals().of("revocation"), 4);
    assert_eq!(facts.summary(), 0);
}

/// What an admin said who is none any more, no newcomer believes: it would be asked for for ever.
#[test]
fn the_word_of_a_revoked_admin_is_not_told_any_more() {
    let mut mesh = Mesh::new();
    let mut facts = facts();
    let by_fifth = by_admin(&mesh, 5, &notice(Revoked::Node(node(1))));
    let by_sixth = by_admin(&mesh, 6, &notice(Revoked::Node(node(2))));
    assert_eq!(tell(&mut facts, &mesh, by_fifth.clone(), NOW), NEW);
    assert_eq!(tell(&mut facts, &mesh, by_sixth.clone(), NOW), NEW);
    let (fifth, token) = admin(&mesh, 5);
    let key = SignedPskRotation::by_admin(&fifth, token, &rotation(NOW, 1)).unwrap();
    assert_eq!(tell(&mut facts, &mesh, Fact::Psk(key.clone()), NOW), NEW);
    let end = notice(Revoked::Node(node(5)));
    let statement = by_authority(&mesh, &end);
    assert_eq!(tell(&mut facts, &mesh, statement.clone(), NOW), NEW);
    let left: Vec<Fact> = told(&facts)
        .into_iter()
        .filter_map(|entry| entry.2)
        .collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&by_sixth) && left.contains(&statement));
    assert_eq!(facts.psk(), None);
    // The key that was heeded is not taken back by one from before.
    let older = rotated(&mesh, &rotation(Timestamp::from_secs(NOW.as_secs() - 1), 2));
    assert_eq!(tell(&mut facts, &mesh, older, NOW), Outcome::Old);
    // A newcomer that heeds the end of the admin comes to the same.
    if let Fact::Revocation(statement) = statement.clone() {
        let root = mesh.root;
        mesh.revocations
            .insert(statement, &root, NOW, CLOCK_TOLERANCE)
            .unwrap();
    }
    let mut newcomer = super::facts();
    for fact in [statement, by_fifth, Fact::Psk(key), by_sixth] {
        tell(&mut newcomer, &mesh, fact, NOW);
    }
    assert_eq!(newcomer.summary(), facts.summary());
    // So does who reads it back from its disk.
    let mut restarted = super::facts();
    restarted.restore_revocations(
        [
            by_admin(&mesh, 5, &notice(Revoked::Node(node(1)))),
            by_admin(&mesh, 6, &notice(Revoked::Node(node(2)))),
            by_authority(&mesh, &end),
        ]
        .into_iter()
        .filter_map(|fact| match fact {
            Fact::Revocation(statement) => Some(statement),
            _ => None,
        }),
    );
    assert_eq!(restarted.summary(), facts.summary());
}

#[test]
fn the_latest_key_counts() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let first = rotated(&mesh, &rotation(NOW, 1));
    let (key, low, outcome, changes) = facts.accept(first.clone(), &mesh.trust(NOW));
    assert_eq!((key, outcome), (Key::Psk, NEW));
    assert_eq!(changes, [Change::Psk(NOW.as_secs())]);
    assert_eq!(facts.psk(), Some(&rotation(NOW, 1)));
    assert_eq!(
        tell(&mut facts, &mesh, first.clone(), NOW),
        Outcome::Duplicate
    );
    let (sixth, token) = admin(&mesh, 6);
    let next = SignedPskRotation::by_admin(&sixth, token, &rotation(at(5), 2)).unwrap();
    let taken = facts.accept(Fact::Psk(next.clone()), &mesh.trust(at(5)));
    assert_eq!(taken.2, NEW);
    assert!(taken.1 > low);
    assert_eq!(facts.fact(&Key::Psk), Some(Fact::Psk(next)));
    assert_eq!(tell(&mut facts, &mesh, first, at(5)), Outcome::Old);
    assert_eq!(facts.psk(), Some(&rotation(at(5), 2)));
}

/// Two admins change the key in the same second: all nodes come to the same one.
#[test]
fn of_two_keys_at_once_one_wins_everywhere() {
    let mesh = Mesh::new();
    let both = [1, 2].map(|key| rotated(&mesh, &rotation(NOW, key)));
    let mut winners = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut facts = facts();
        for n in order {
            tell(&mut facts, &mesh, both[n].clone(), NOW);
        }
        winners.push((facts.psk().cloned(), facts.summary()));
    }
    assert_eq!(winners[0], winners[1]);
}

#[test]
fn who_may_not_changes_no_key() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let good = rotation(NOW, 1);
    let long = Duration::from_hours(1);
    let sign = |rotation: &PskRotation| rotated(&mesh, rotation);
    let by_member = {
        let token = mesh.token(node(2), meshwork_identity::Scope::Announce, long);
        SignedPskRotation::by_admin(&identity(2), token, &good).unwrap()
    };
    let forged = SignedPskRotation::by_authority(&identity(2), &good).unwrap();
    let borrowed = {
        let (_, token) = admin(&mesh, 6);
        SignedPskRotation::by_admin(&identity(2), token, &good).unwrap()
    };
    let future = rotation(at(31), 1);
    let mut backwards = rotation(NOW, 1);
    backwards.until = Timestamp::from_millis(NOW.as_millis() - 1);
    let mut endless = rotation(NOW, 1);
    endless.until = NOW.saturating_add(MAX_OVERLAP + Duration::from_millis(1));
    let mut refused = |fact| match refusal(&mut facts, &mesh, fact, NOW) {
        RefusedBy::Psk(error) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        refused(Fact::Psk(by_member)),
        PskRotationError::NotAdmin(TokenError::ScopeExceeded { .. })
    ));
    assert_eq!(refused(Fact::Psk(forged)), PskRotationError::NoProof);
    assert!(matches!(
        refused(Fact::Psk(borrowed)),
        PskRotationError::NotAdmin(TokenError::WrongSubject { .. })
    ));
    assert_eq!(refused(sign(&future)), PskRotationError::FromFuture(at(31)));
    assert!(matches!(
        refused(sign(&backwards)),
        PskRotationError::Times { .. }
    ));
    assert!(matches!(
        refused(sign(&endless)),
        PskRotationError::Times { .. }
    ));
    let mut last = rotation(NOW, 1);
    last.epoch = u64::MAX;
    assert!(matches!(
        refused(sign(&last)),
        PskRotationError::FromFuture(_)
    ));
    assert_eq!(facts.refusals().of("psk"), 7);
    assert_eq!((facts.summary(), facts.psk()), (0, None));
    assert!(meshwork_proto::codec::encode(&last).len() <= MAX_PSK_ROTATION);
}

#[test]
fn the_key_is_not_shown() {
    let mesh = Mesh::new();
    let fact = rotated(&mesh, &rotation(NOW, 0x41));
    let mut facts = facts();
    tell(&mut facts, &mesh, fact.clone(), NOW);
    for text in [
        format!("{fact:?}"),
        format!("{:?}", rotation(NOW, 0x41)),
        format!("{facts:?}"),
    ] {
        assert!(!text.contains("65, 65") && !text.contains("4141"), "{text}");
    }
}
