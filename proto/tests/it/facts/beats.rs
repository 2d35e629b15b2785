//! Beats: an announcement that holds for longer, and what is free.

use std::sync::Arc;

use meshwork_identity::{Revocation, RevocationNotice, Revoked, TokenError};
use meshwork_proto::announcement::Role;
use meshwork_proto::limits::{MAX_BEAT, MAX_HOPS};
use meshwork_proto::query::{Query, View};
use meshwork_proto::store::MAX_TTL;
use meshwork_proto::{Availability, Beat, SignedBeat};

use super::*;
use crate::fixture::{NOW, TTL, at, beat};

fn sign(seed: u16, beat: &Beat) -> Fact {
    Fact::Beat(SignedBeat::sign(&identity(seed), beat).unwrap())
}

fn plain(version: u64, now: Timestamp) -> Beat {
    beat(1, 1, version, now).open().unwrap()
}

#[test]
fn a_beat_renews_and_tells_what_is_free() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let availability = Availability {
        free: vec![("cpu".into(), 3000)],
        vram_used: vec![7],
        healthy: true,
    };
    let body = Beat {
        availability: Some(availability.clone()),
        ..plain(2, at(100))
    };
    let taken = facts.accept(sign(1, &body), &mesh.trust(at(100)));
    assert_eq!(taken, (key(1), 2, NEW, vec![Change::Renewed(node(1))]));
    assert_eq!(facts.availability(&node(1)), Some(Arc::new(availability)));
    let held = facts.store().get(&node(1)).unwrap();
    let renewed = Announcement {
        version: 2,
        issued_at: at(100),
        ..version(1)
    };
    assert_eq!(*held, renewed);
    assert_eq!(facts.version(&key(1)), Some(2));
    assert_eq!(facts.next_expiry(), Some(at(400)));
    let query = Query::parse("gpus = 1").unwrap();
    let (hits, _) = facts.store().find(&query, &View::everything(), 9);
    assert_eq!(hits, [(node(1), Arc::new(renewed))]);
    // The next one says nothing of what is free: then nothing is known of it.
    let next = tell(&mut facts, &mesh, sign(1, &plain(3, at(101))), at(101));
    assert_eq!(next, NEW);
    assert_eq!(facts.availability(&node(1)), None);
    assert_eq!(facts.expire(at(401)), [node(1)]);
}

/// Floods carry the beat alone, answers the announcement with it.
#[test]
fn what_is_sent_on_has_one_hop_more() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let Some(Fact::Announcement(signed)) = facts.fact(&key(1)) else {
        panic!("an announcement without a beat goes by itself")
    };
    assert_eq!(signed.hops, 1);
    assert_eq!(facts.whole(&key(1)), facts.fact(&key(1)));
    let far = SignedBeat {
        hops: MAX_HOPS,
        ..beat(1, 1, 2, NOW)
    };
    let outcome = tell(&mut facts, &mesh, Fact::Beat(far.clone()), NOW);
    assert_eq!(outcome, Outcome::New { hops: MAX_HOPS });
    // It floods no further, but whoever lacks it may have it.
    assert_eq!(facts.fact(&key(1)), Some(Fact::Beat(far.clone())));
    assert_eq!(facts.whole(&key(1)), Some(Fact::Renewed(signed, far)));
    assert_eq!(facts.fact(&key(2)), None);
    assert_eq!(facts.whole(&key(2)), None);
    // Our own has come over no hop.
    facts
        .publish(announcement(&mesh, LOCAL, 1, NOW), &mesh.trust(NOW))
        .unwrap();
    let published = facts.publish(Fact::Beat(beat(LOCAL, 1, 2, NOW)), &mesh.trust(NOW));
    assert_eq!(published, Ok((key(LOCAL), 2)));
    let own = Fact::Beat(beat(LOCAL, 1, 2, NOW));
    assert_eq!(facts.fact(&key(LOCAL)), Some(own));
    assert_eq!(facts.nodes(), 1);
}

#[test]
fn a_beat_without_its_announcement_is_asked_for() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let taken = facts.accept(Fact::Beat(beat(1, 1, 2, NOW)), &mesh.trust(NOW));
    assert_eq!(taken, (key(1), 2, Outcome::Incomplete, vec![]));
    assert!(told(&facts).is_empty());
    assert_eq!((facts.summary(), facts.refusals().total()), (0, 0));
    let signed = mesh.announce(1, &version(1));
    let whole = Fact::Renewed(signed, beat(1, 1, 2, NOW));
    let (key, version, outcome, changes) = facts.accept(whole.clone(), &mesh.trust(NOW));
    assert_eq!((key, version, outcome), (super::key(1), 2, NEW));
    assert!(matches!(changes[..], [Change::Node(_)]), "{changes:?}");
    assert_eq!(tell(&mut facts, &mesh, whole, NOW), Outcome::Duplicate);
    // A beat upon an announcement that came later than the one held.
    let next = Fact::Beat(beat(1, 5, 6, NOW));
    assert_eq!(tell(&mut facts, &mesh, next, NOW), Outcome::Incomplete);
    assert_eq!(facts.version(&key), Some(2));
}

/// The announcement itself is older than what is remembered, but it was renewed since.
#[test]
fn who_was_forgotten_comes_back_with_a_beat() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let later = Fact::Beat(beat(1, 1, 9, NOW));
    assert_eq!(tell(&mut facts, &mesh, later, NOW), NEW);
    assert_eq!(facts.expire(at(300)), [node(1)]);
    assert_eq!((facts.nodes(), facts.summary()), (0, 0));
    let signed = mesh.announce(1, &version(1));
    let old = Fact::Renewed(signed.clone(), beat(1, 1, 8, at(300)));
    let refused = refusal(&mut facts, &mesh, old, at(300));
    assert_eq!(
        refused,
        RefusedBy::Rollback {
            version: 8,
            known: 9
        }
    );
    let new = beat(1, 1, 10, at(300));
    let alone = tell(&mut facts, &mesh, Fact::Beat(new.clone()), at(300));
    assert_eq!(alone, Outcome::Incomplete);
    let whole = Fact::Renewed(signed, new);
    assert_eq!(tell(&mut facts, &mesh, whole, at(300)), NEW);
    assert_eq!(facts.version(&key(1)), Some(10));
}

#[test]
fn announcements_and_beats_share_one_counter() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let third = Fact::Beat(beat(1, 1, 3, NOW));
    assert_eq!(tell(&mut facts, &mesh, third.clone(), NOW), NEW);
    assert_eq!(tell(&mut facts, &mesh, third, NOW), Outcome::Duplicate);
    for old in [
        Fact::Beat(beat(1, 1, 2, NOW)),
        announcement(&mesh, 1, 2, NOW),
        announcement(&mesh, 1, 3, NOW),
        Fact::Renewed(mesh.announce(1, &version(1)), beat(1, 1, 2, NOW)),
    ] {
        assert_eq!(tell(&mut facts, &mesh, old, NOW), Outcome::Old);
    }
    assert_eq!(facts.refusals().of("rollback"), 4);
    // Who tells the announcement without the beat is to hear that. It is no rollback.
    let base = announcement(&mesh, 1, 1, NOW);
    assert_eq!(tell(&mut facts, &mesh, base, NOW), Outcome::Old);
    assert_eq!(facts.refusals().of("rollback"), 4);
    let anew = announcement(&mesh, 1, 4, NOW);
    assert_eq!(tell(&mut facts, &mesh, anew, NOW), NEW);
    assert!(matches!(
        facts.fact(&key(1)),
        Some(Fact::Announcement(signed)) if signed.open().unwrap().version == 4
    ));
    let stale = Fact::Beat(beat(1, 1, 5, NOW));
    assert_eq!(
        refusal(&mut facts, &mesh, stale, NOW),
        RefusedBy::WrongBase { base: 1, held: 4 }
    );
}

#[test]
fn a_beat_must_be_signed_small_in_time_and_sound() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let mut refused = |fact| refusal(&mut facts, &mesh, fact, NOW);
    let mut forged = beat(1, 1, 2, NOW);
    forged.envelope = meshwork_identity::Envelope::seal(
        &identity(1),
        &meshwork_identity::Domain::ANNOUNCEMENT,
        &plain(2, NOW),
    )
    .unwrap();
    assert_eq!(refused(Fact::Beat(forged)), RefusedBy::BadSignature);
    let future = sign(1, &plain(2, at(31)));
    assert_eq!(refused(future), RefusedBy::FutureIssued { at: at(31) });
    let mut odd = plain(2, NOW);
    odd.ttl = MAX_TTL + std::time::Duration::from_millis(1);
    assert_eq!(refused(sign(1, &odd)), RefusedBy::Malformed("ttl"));
    odd.ttl = TTL;
    odd.issued_at = Timestamp::from_millis(5);
    assert!(matches!(refused(sign(1, &odd)), RefusedBy::Expired { .. }));
    odd.issued_at = NOW;
    for name in ["", "a b", "é", "line\n", &"x".repeat(33)] {
        odd.availability = Some(Availability {
            free: vec![(name.into(), 1)],
            ..Availability::default()
        });
        assert_eq!(refused(sign(1, &odd)), RefusedBy::Malformed("slot name"));
    }
    let huge = Availability {
        free: vec![("x".repeat(32), u64::MAX); 16],
        ..Availability::default()
    };
    odd.availability = Some(huge);
    let too_large = refused(sign(1, &odd));
    assert!(
        matches!(
            too_large,
            RefusedBy::TooLarge {
                bytes: 513..,
                most: MAX_BEAT
            }
        ),
        "{too_large:?}"
    );
    odd.availability = None;
    let beyond = SignedBeat {
        hops: MAX_HOPS + 1,
        ..beat(1, 1, 2, NOW)
    };
    assert_eq!(
        refused(Fact::Beat(beyond)),
        RefusedBy::Hops { hops: MAX_HOPS + 1 }
    );
    // An announcement goes with its own node's beat only, and with a later one than itself.
    let signed = mesh.announce(3, &version(4));
    let foreign = Fact::Renewed(signed.clone(), beat(2, 4, 5, NOW));
    assert_eq!(refused(foreign), RefusedBy::BadSignature);
    let other = Fact::Renewed(signed.clone(), beat(3, 3, 5, NOW));
    assert_eq!(refused(other), RefusedBy::WrongBase { base: 3, held: 4 });
    let early = Fact::Renewed(signed, beat(3, 4, 4, NOW));
    assert_eq!(refused(early), RefusedBy::Malformed("version"));
    assert_eq!(facts.version(&key(1)), Some(1));
    assert_eq!(facts.version(&key(3)), None);
}

#[test]
fn a_revoked_node_renews_nothing() {
    let mut mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let notice = RevocationNotice {
        what: Revoked::Node(node(1)),
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let statement = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let tolerance = meshwork_identity::CLOCK_TOLERANCE;
    let root = mesh.root;
    mesh.revocations
        .insert(statement, &root, NOW, tolerance)
        .unwrap();
    let refused = refusal(&mut facts, &mesh, Fact::Beat(beat(1, 1, 2, NOW)), NOW);
    assert!(
        matches!(refused, RefusedBy::Token(TokenError::Revoked { .. })),
        "{refused:?}"
    );
    let gone = facts.drop_where(|grant| grant.revoked_by(&mesh.revocations).is_some());
    assert_eq!(gone, [node(1)]);
    assert_eq!((facts.nodes(), facts.summary()), (0, 0));
}

#[test]
fn beats_and_announcements_share_one_allowance() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    for version in 2..=5 {
        let next = Fact::Beat(beat(1, 1, version, NOW));
        assert_eq!(tell(&mut facts, &mesh, next, NOW), NEW);
    }
    let sixth = || Fact::Beat(beat(1, 1, 6, NOW));
    assert_eq!(
        refusal(&mut facts, &mesh, sixth(), NOW),
        RefusedBy::RateLimited
    );
    assert_eq!(
        refusal(&mut facts, &mesh, announcement(&mesh, 1, 6, NOW), NOW),
        RefusedBy::RateLimited
    );
    assert_eq!(tell(&mut facts, &mesh, sixth(), at(1)), NEW);
}

#[test]
fn own_beats_come_from_here_only() {
    let mesh = Mesh::new();
    let mut facts = facts();
    let trust = mesh.trust(NOW);
    let mine = |version| Fact::Beat(beat(LOCAL, 3, version, NOW));
    assert_eq!(
        facts.publish(mine(4), &trust),
        Err(RefusedBy::WrongBase { base: 3, held: 0 })
    );
    facts
        .publish(announcement(&mesh, LOCAL, 3, NOW), &trust)
        .unwrap();
    assert_eq!(
        facts.publish(Fact::Beat(beat(1, 3, 4, NOW)), &trust),
        Err(RefusedBy::BadSignature)
    );
    assert_eq!(facts.publish(mine(4), &trust), Ok((key(LOCAL), 4)));
    assert_eq!(tell(&mut facts, &mesh, mine(4), NOW), Outcome::Duplicate);
    // Whoever tells what it said before has not heard the latest.
    let before = announcement(&mesh, LOCAL, 3, NOW);
    assert_eq!(tell(&mut facts, &mesh, before, NOW), Outcome::Old);
    assert_eq!(tell(&mut facts, &mesh, mine(2), NOW), Outcome::Old);
    let ahead = facts.accept(mine(9), &trust);
    let lost = vec![Change::OwnAhead { version: 9 }];
    assert_eq!(ahead, (key(LOCAL), 9, Outcome::Duplicate, lost));
    let whole = Fact::Renewed(mesh.announce(LOCAL, &version(3)), beat(LOCAL, 3, 9, NOW));
    let ahead = facts.accept(whole, &trust).3;
    assert_eq!(ahead, [Change::OwnAhead { version: 9 }]);
    assert_eq!(facts.version(&key(LOCAL)), Some(4));
}

#[test]
fn the_dead_are_known_but_not_found() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let found = |facts: &Facts| {
        let hits = facts
            .store()
            .find(&Query::all(), &View::everything(), 9)
            .0
            .into_iter();
        hits.map(|(node, _)| node).collect::<Vec<_>>()
    };
    let summary = facts.summary();
    assert!(facts.set_dead(&node(1), true));
    assert!(!facts.set_dead(&node(1), true));
    assert!(facts.is_dead(&node(1)));
    assert_eq!(found(&facts), [node(2)]);
    assert_eq!(facts.store().with_role(Role::Agent), [(node(2), 1)]);
    assert!(facts.store().with_role(Role::Relay).is_empty());
    assert_eq!((facts.store().len(), facts.nodes()), (1, 2));
    assert_eq!(facts.summary(), summary);
    assert!(facts.fact(&key(1)).is_some());
    // What it says meanwhile is taken, and does not raise it: that is for the membership to decide.
    assert_eq!(
        tell(&mut facts, &mesh, Fact::Beat(beat(1, 1, 2, NOW)), NOW),
        NEW
    );
    assert_eq!(
        tell(&mut facts, &mesh, announcement(&mesh, 1, 3, NOW), NOW),
        NEW
    );
    assert_eq!(found(&facts), [node(2)]);
    assert!(facts.set_dead(&node(1), false));
    assert_eq!(found(&facts).len(), 2);
    let mut agents = vec![(node(1), 3), (node(2), 1)];
    agents.sort_unstable();
    assert_eq!(facts.store().with_role(Role::Agent), agents);
    assert_eq!(facts.store().get(&node(1)).unwrap().version, 3);
    // Who is forgotten, dead or not, is nowhere.
    facts.set_dead(&node(1), true);
    assert_eq!(facts.expire(at(300)).len(), 2);
    assert_eq!((facts.store().len(), facts.nodes()), (0, 0));
    assert!(!facts.set_dead(&node(1), false));
    assert!(!facts.set_dead(&node(LOCAL), true));
}
