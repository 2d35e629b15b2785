//! Suspicions: who may accuse whom, how long it counts, and what refutes it.

use std::time::Duration;

use meshwork_identity::{
    CLOCK_TOLERANCE, Domain, Envelope, Revocation, RevocationNotice, Revoked, Scope,
};
use meshwork_proto::SignedSuspicion;
use meshwork_proto::limits::{MAX_HOPS, MAX_SUSPICION};
use meshwork_proto::{SignedAnnouncement, Suspicion};

use super::*;
use crate::fixture::{NOW, at, beat, suspicion};

#[test]
fn a_suspicion_is_kept_until_the_accused_speaks() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let before = facts.summary();
    let taken = facts.accept(suspicion(2, 1, 1, NOW), &mesh.trust(NOW));
    let (accused, accuser) = (node(1), node(2));
    let change = Change::Accused { accused, accuser };
    assert_eq!(taken, (accusation(2, 1), 1, NEW, vec![change]));
    assert_eq!(facts.accusers(&node(1)), [node(2)]);
    assert_ne!(facts.summary(), before);
    // Said again at another time, it is the same.
    let again = suspicion(2, 1, 1, at(1));
    assert_eq!(tell(&mut facts, &mesh, again, NOW), Outcome::Duplicate);
    let Some(Fact::Suspicion(sent)) = facts.fact(&accusation(2, 1)) else {
        panic!("it is sent on")
    };
    assert_eq!(sent.hops, 1);
    assert_eq!(
        tell(&mut facts, &mesh, Fact::Beat(beat(1, 1, 2, NOW)), NOW),
        NEW
    );
    assert!(facts.accusers(&node(1)).is_empty());
    assert_eq!(facts.fact(&accusation(2, 1)), None);
    assert_eq!(facts.suspicions(), 0);
    // What was refuted does not come back.
    let refuted = refusal(&mut facts, &mesh, suspicion(2, 1, 1, NOW), NOW);
    assert_eq!(
        refuted,
        RefusedBy::Rollback {
            version: 1,
            known: 2
        }
    );
    // Who still tells it is to hear the answer.
    let (answer, ..) = facts.accept(suspicion(2, 1, 1, NOW), &mesh.trust(NOW));
    assert_eq!(answer, key(1));
}

/// All nodes keep the same three, whoever they hear first.
#[test]
fn the_three_smallest_accusers_are_kept() {
    let mesh = Mesh::new();
    let mut seeds: Vec<u16> = (2..=6).collect();
    seeds.sort_by_key(|seed| node(*seed));
    let smallest: Vec<NodeId> = seeds[..3].iter().map(|seed| node(*seed)).collect();
    let mut summaries = Vec::new();
    let mut backwards = seeds.clone();
    backwards.reverse();
    for order in [seeds.clone(), backwards] {
        let mut facts = knowing(&mesh, 1..=6, NOW);
        for accuser in order {
            let outcome = tell(&mut facts, &mesh, suspicion(accuser, 1, 1, NOW), NOW);
            let is_kept = facts.accusers(&node(1)).contains(&node(accuser));
            assert_eq!(outcome, if is_kept { NEW } else { Outcome::Old });
        }
        assert_eq!(facts.accusers(&node(1)), smallest);
        assert_eq!(facts.suspicions(), 3);
        summaries.push(facts.summary());
    }
    assert_eq!(summaries[0], summaries[1]);
}

#[test]
fn only_members_accuse_only_known_nodes() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let before = told(&facts);
    for (fact, expected) in [
        (suspicion(3, 1, 1, NOW), RefusedBy::Stranger),
        (suspicion(2, 3, 1, NOW), RefusedBy::UnknownAccused),
        (suspicion(2, 2, 1, NOW), RefusedBy::Malformed("accused")),
        (
            suspicion(2, 1, 1, at(31)),
            RefusedBy::FutureIssued { at: at(31) },
        ),
        (suspicion(2, LOCAL, 1, NOW), RefusedBy::UnknownAccused),
    ] {
        assert_eq!(refusal(&mut facts, &mesh, fact, NOW), expected);
    }
    assert_eq!(told(&facts), before);
}

/// Of a version that this node has not seen, the accuser knows more: it is asked for that.
#[test]
fn a_suspicion_from_ahead_asks_for_the_accused() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let ahead = suspicion(2, 1, 5, NOW);
    let taken = facts.accept(ahead.clone(), &mesh.trust(NOW));
    assert_eq!(taken, (key(1), 5, Outcome::Incomplete, vec![]));
    assert_eq!(facts.suspicions(), 0);
    assert_eq!(
        tell(&mut facts, &mesh, Fact::Beat(beat(1, 1, 5, NOW)), NOW),
        NEW
    );
    assert_eq!(tell(&mut facts, &mesh, ahead, NOW), NEW);
    // This node knows its own version best.
    facts
        .publish(announcement(&mesh, LOCAL, 7, NOW), &mesh.trust(NOW))
        .unwrap();
    let liar = refusal(&mut facts, &mesh, suspicion(2, LOCAL, 8, NOW), NOW);
    assert_eq!(liar, RefusedBy::Malformed("version"));
    assert_eq!(
        tell(&mut facts, &mesh, suspicion(2, LOCAL, 7, NOW), NOW),
        NEW
    );
    assert_eq!(facts.accusers(&node(LOCAL)), [node(2)]);
}

#[test]
fn suspicions_go_with_the_accused_and_the_accuser() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let later = knowing_until_later(&mesh, &mut facts, 3);
    assert_eq!(later, NEW);
    for (accuser, accused) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
        let outcome = tell(&mut facts, &mesh, suspicion(accuser, accused, 1, NOW), NOW);
        assert_eq!(outcome, NEW);
    }
    assert_eq!(facts.suspicions(), 4);
    assert_eq!(facts.expire(at(300)).len(), 2);
    assert_eq!(facts.suspicions(), 0);
    let left = told(&facts);
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].0, left[0].1), (key(3), 1));
}

/// Its announcement outlasts those of the others.
fn knowing_until_later(mesh: &Mesh, facts: &mut Facts, seed: u16) -> Outcome {
    let body = Announcement {
        ttl: Duration::from_hours(1),
        ..version(1)
    };
    tell(
        facts,
        mesh,
        Fact::Announcement(mesh.announce(seed, &body)),
        NOW,
    )
}

#[test]
fn who_was_revoked_accuses_nobody() {
    let mut mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2, 3], NOW);
    assert_eq!(tell(&mut facts, &mesh, suspicion(2, 1, 1, NOW), NOW), NEW);
    let notice = RevocationNotice {
        what: Revoked::Node(node(2)),
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let statement = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let root = mesh.root;
    mesh.revocations
        .insert(statement, &root, NOW, CLOCK_TOLERANCE)
        .unwrap();
    let refused = refusal(&mut facts, &mesh, suspicion(2, 3, 1, NOW), NOW);
    assert_eq!(refused, RefusedBy::Stranger);
    facts.drop_where(|grant| grant.revoked_by(&mesh.revocations).is_some());
    assert_eq!(facts.suspicions(), 0);
}

/// Nor whose token has run out, though its announcement is still held.
#[test]
fn who_may_announce_no_more_accuses_nobody() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let short = mesh.token(node(2), Scope::Announce, Duration::from_secs(10));
    let signed = SignedAnnouncement::sign(&identity(2), short, &version(1)).unwrap();
    assert_eq!(
        tell(&mut facts, &mesh, Fact::Announcement(signed), NOW),
        NEW
    );
    let refused = refusal(&mut facts, &mesh, suspicion(2, 1, 1, NOW), at(40));
    assert_eq!(refused, RefusedBy::Stranger);
}

#[test]
fn an_accuser_has_an_allowance() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, 1..=60, NOW);
    let mut outcomes = Vec::new();
    for accused in 2..=60 {
        outcomes.push(tell(&mut facts, &mesh, suspicion(1, accused, 1, NOW), NOW));
    }
    let refused = outcomes.iter().filter(|o| **o == Outcome::Refused).count();
    assert_eq!((outcomes.len(), refused), (59, 19));
    assert_eq!(facts.refusals().of("rate_limited"), 19);
    assert_eq!(facts.suspicions(), 40);
    // Another has its own.
    assert_eq!(tell(&mut facts, &mesh, suspicion(2, 60, 1, NOW), NOW), NEW);
    // Two more a second.
    let mut late = |accused| tell(&mut facts, &mesh, suspicion(1, accused, 1, at(1)), at(1));
    assert_eq!([58, 59, 60].map(&mut late), [NEW, NEW, Outcome::Refused]);
}

#[test]
fn forged_suspicions_are_refused() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let Fact::Suspicion(good) = suspicion(2, 1, 1, NOW) else {
        unreachable!()
    };
    let body = good.open().unwrap();
    let other_purpose = Envelope::seal(&identity(2), &Domain::BEAT, &body).unwrap();
    let padded = Envelope::seal(&identity(2), &Domain::SUSPICION, &(body, [0u8; 32])).unwrap();
    let trailing = Envelope::seal(&identity(2), &Domain::SUSPICION, &(body, 0u8)).unwrap();
    let fact = |envelope, hops| Fact::Suspicion(SignedSuspicion { envelope, hops });
    let mut refused = |fact| refusal(&mut facts, &mesh, fact, NOW);
    assert_eq!(refused(fact(other_purpose, 0)), RefusedBy::BadSignature);
    assert!(matches!(
        refused(fact(padded, 0)),
        RefusedBy::TooLarge {
            most: MAX_SUSPICION,
            ..
        }
    ));
    assert_eq!(refused(fact(trailing, 0)), RefusedBy::Malformed("body"));
    assert_eq!(
        refused(fact(good.envelope, MAX_HOPS + 1)),
        RefusedBy::Hops { hops: MAX_HOPS + 1 }
    );
    let largest = Suspicion {
        version: u64::MAX,
        at: Timestamp::MAX,
        ..body
    };
    assert!(meshwork_proto::codec::encode(&largest).len() <= MAX_SUSPICION);
    assert_eq!(facts.suspicions(), 0);
}

#[test]
fn this_node_accuses_once_it_is_known_itself() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let trust = mesh.trust(NOW);
    let accuse = || suspicion(LOCAL, 1, 1, NOW);
    assert_eq!(facts.publish(accuse(), &trust), Err(RefusedBy::Stranger));
    facts
        .publish(announcement(&mesh, LOCAL, 1, NOW), &trust)
        .unwrap();
    assert_eq!(
        facts.publish(accuse(), &trust),
        Ok((accusation(LOCAL, 1), 1))
    );
    assert_eq!(facts.fact(&accusation(LOCAL, 1)), Some(accuse()));
    // It may have said so in an earlier run: then it hears it from others.
    assert_eq!(tell(&mut facts, &mesh, accuse(), NOW), Outcome::Duplicate);
}
