//! What a member who means ill may send: none of it is stored or told to others, and each is counted
//! under a kind of its own.

use std::time::Duration;

use meshwork_identity::{Domain, Envelope, Scope};
use meshwork_proto::limits::{MAX_ANNOUNCEMENT, MAX_HOPS};
use meshwork_proto::{SignedAnnouncement, SignedBeat};

use super::*;
use crate::fixture::{NOW, at, beat, suspicion};

/// Each with the name of its kind.
fn lies(mesh: &Mesh) -> Vec<(&'static str, Fact)> {
    let again = |v: u64, issued_at| Announcement {
        issued_at,
        ..version(v)
    };
    let announce = |body: &Announcement| mesh.announce(2, body);
    let forged = |domain: &Domain, signer: u16, body: &Announcement| SignedAnnouncement {
        envelope: Envelope::seal(&identity(signer), domain, body).unwrap(),
        ..announce(body)
    };
    let huge = Announcement {
        images: vec!["x".repeat(MAX_ANNOUNCEMENT)],
        ..again(9, NOW)
    };
    let scopeless = mesh.token(node(2), Scope::Call, Duration::from_hours(1));
    let control = Announcement {
        name: "\u{1b}[2J".into(),
        ..again(9, NOW)
    };
    let far = SignedBeat {
        hops: MAX_HOPS + 1,
        ..beat(1, 1, 9, NOW)
    };
    vec![
        (
            "bad_signature",
            Fact::Announcement(forged(&Domain::WARRANT, 2, &again(9, NOW))),
        ),
        ("rollback", Fact::Announcement(announce(&again(2, NOW)))),
        ("rollback", Fact::Beat(beat(1, 1, 2, NOW))),
        ("too_large", Fact::Announcement(announce(&huge))),
        (
            "future_issued",
            Fact::Announcement(announce(&again(9, at(3600)))),
        ),
        ("future_issued", Fact::Beat(beat(1, 1, 9, at(3600)))),
        (
            "expired",
            Fact::Announcement(announce(&again(9, Timestamp::from_secs(5)))),
        ),
        ("wrong_base", Fact::Beat(beat(2, 1, 9, NOW))),
        ("hops", Fact::Beat(far)),
        (
            "token",
            Fact::Announcement(
                SignedAnnouncement::sign(&identity(2), scopeless, &again(9, NOW)).unwrap(),
            ),
        ),
        (
            "token",
            // Another's token, as its signer has none.
            Fact::Announcement(forged(&Domain::ANNOUNCEMENT, 7, &again(1, NOW))),
        ),
        ("malformed", Fact::Announcement(announce(&control))),
        ("stranger", suspicion(7, 1, 3, NOW)),
        ("unknown_accused", suspicion(2, 8, 1, NOW)),
        ("rollback", suspicion(2, 1, 1, NOW)),
        ("malformed", suspicion(2, 2, 3, NOW)),
        ("future_issued", suspicion(2, 1, 3, at(3600))),
    ]
}

#[test]
fn lies_are_neither_stored_nor_told() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    assert_eq!(
        tell(&mut facts, &mesh, announcement(&mesh, 2, 3, NOW), NOW),
        NEW
    );
    assert_eq!(
        tell(&mut facts, &mesh, Fact::Beat(beat(1, 1, 3, NOW)), NOW),
        NEW
    );
    let (before, known, agenda) = (told(&facts), facts.nodes(), facts.next_expiry());
    let summary = facts.summary();
    for (kind, lie) in lies(&mesh) {
        let counted = facts.refusals().of(kind);
        let total = facts.refusals().total();
        let why = refusal(&mut facts, &mesh, lie, NOW);
        assert_eq!(why.kind(), kind, "{why}");
        assert_eq!(facts.refusals().of(kind), counted + 1, "{kind}");
        assert_eq!(facts.refusals().total(), total + 1, "{kind}");
        assert_eq!(facts.summary(), summary, "{kind}");
    }
    assert_eq!(told(&facts), before);
    assert_eq!((facts.nodes(), facts.next_expiry()), (known, agenda));
}

/// A storm of lies takes nobody's place: the honest are heard as before.
#[test]
fn the_honest_are_heard_among_lies() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    for _ in 0..50 {
        for (_, lie) in lies(&mesh) {
            // Upon version 1 of an unknown second node some of them are no lies.
            if !matches!(lie, Fact::Announcement(_)) {
                tell(&mut facts, &mesh, lie, NOW);
            }
        }
    }
    let next = Fact::Beat(beat(1, 1, 9, NOW));
    assert_eq!(tell(&mut facts, &mesh, next, NOW), NEW);
    assert_eq!(
        tell(&mut facts, &mesh, announcement(&mesh, 3, 1, NOW), NOW),
        NEW
    );
}

/// What was believed before a restart is not news after it, and nothing older is.
#[test]
fn replays_over_a_restart_are_refused() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1, 2], NOW);
    let old = [
        announcement(&mesh, 1, 1, NOW),
        Fact::Beat(beat(1, 1, 2, NOW)),
        Fact::Renewed(mesh.announce(1, &version(1)), beat(1, 1, 2, NOW)),
    ];
    for n in 2..=4 {
        assert_eq!(
            tell(&mut facts, &mesh, Fact::Beat(beat(1, 1, n, NOW)), NOW),
            NEW
        );
    }
    let mut restarted = super::facts();
    restarted.restore(&facts.save(), NOW).unwrap();
    assert_eq!((restarted.nodes(), restarted.summary()), (0, 0));
    for fact in old {
        let why = refusal(&mut restarted, &mesh, fact, NOW);
        assert!(matches!(why, RefusedBy::Rollback { known: 4, .. }), "{why}");
    }
    // The latest itself still holds: nobody has to wait for the next beat to be known again.
    let latest = facts.whole(&key(1)).unwrap();
    let hops = Outcome::New { hops: 1 };
    assert_eq!(tell(&mut restarted, &mesh, latest, at(1)), hops);
    assert_eq!(restarted.version(&key(1)), Some(4));
    // What is saved again says as much, also of who has not come back meanwhile.
    let mut twice = super::facts();
    twice.restore(&restarted.save(), at(2)).unwrap();
    let replay = Fact::Renewed(mesh.announce(1, &version(1)), beat(1, 1, 3, NOW));
    let why = refusal(&mut twice, &mesh, replay, at(2));
    assert!(matches!(why, RefusedBy::Rollback { known: 4, .. }), "{why}");
    assert_eq!(
        tell(&mut twice, &mesh, announcement(&mesh, 2, 1, NOW), at(2)),
        NEW
    );
    // A day and an hour later no announcement of then can hold: it is forgotten.
    let mut late = super::facts();
    late.restore(&facts.save(), at(25 * 3600)).unwrap();
    assert_eq!(late.next_expiry(), None);
    assert_eq!(late.save().len(), super::facts().save().len());
}

/// Who signs two statements of one version divides the mesh in two. The halves must not tell each other
/// theirs again and again for it.
#[test]
fn two_statements_of_one_version_set_off_no_storm() {
    let mesh = Mesh::new();
    let other = Announcement {
        name: "the other".into(),
        ..version(1)
    };
    let words = [
        announcement(&mesh, 1, 1, NOW),
        Fact::Announcement(mesh.announce(1, &other)),
    ];
    let mut ledgers = [facts(), facts()];
    for (ledger, word) in ledgers.iter_mut().zip(&words) {
        assert_eq!(tell(ledger, &mesh, word.clone(), NOW), NEW);
    }
    let [one, two] = &mut ledgers;
    for fact in [Facts::fact, Facts::whole] {
        let told = fact(one, &key(1)).unwrap();
        assert_eq!(tell(two, &mesh, told, NOW), Outcome::Duplicate);
        let told = fact(two, &key(1)).unwrap();
        assert_eq!(tell(one, &mesh, told, NOW), Outcome::Duplicate);
    }
    assert_eq!(one.refusals().of("rollback"), 2);
    // The signer itself is answered: a node that lost its counter learns so that it was lost.
    assert_eq!(tell(one, &mesh, words[1].clone(), NOW), Outcome::Old);
}

#[test]
fn who_passes_on_what_it_checked_is_not_to_blame() {
    let mesh = Mesh::new();
    let mut full = Facts::with_capacity(node(LOCAL), 2);
    for seed in [1, 2] {
        let outcome = tell(&mut full, &mesh, announcement(&mesh, seed, 1, NOW), NOW);
        assert_eq!(outcome, NEW);
    }
    for version in 2..=5 {
        let next = Fact::Beat(beat(1, 1, version, NOW));
        assert_eq!(tell(&mut full, &mesh, next, NOW), NEW);
    }
    for (fact, kind) in [
        (announcement(&mesh, 3, 1, NOW), "store_full"),
        (Fact::Beat(beat(1, 1, 6, NOW)), "rate_limited"),
        (Fact::Beat(beat(2, 1, 6, at(31))), "future_issued"),
        (suspicion(3, 1, 5, NOW), "stranger"),
        (suspicion(1, 3, 1, NOW), "unknown_accused"),
    ] {
        let why = refusal(&mut full, &mesh, fact, NOW);
        assert_eq!((why.kind(), why.blames_teller()), (kind, false));
    }
    let lies = lies(&mesh).into_iter();
    for (kind, lie) in lies.filter(|(kind, _)| ["bad_signature", "token", "hops"].contains(kind)) {
        let why = refusal(&mut knowing(&mesh, [1, 2], NOW), &mesh, lie, NOW);
        assert_eq!((why.kind(), why.blames_teller()), (kind, true));
    }
}

#[test]
fn what_was_saved_must_be_whole() {
    let mesh = Mesh::new();
    let mut facts = knowing(&mesh, [1], NOW);
    let saved = facts.save();
    assert!(facts.restore(&saved[..saved.len() - 1], NOW).is_err());
    assert!(facts.restore(&[&saved[..], &[0]].concat(), NOW).is_err());
    let mut other = saved.clone();
    other[0] = 9;
    let error = facts.restore(&other, NOW).unwrap_err().to_string();
    assert!(error.contains("format 9"), "{error}");
    assert!(facts.restore(&vec![0; 16 << 20], NOW).is_err());
    facts.restore(&saved, NOW).unwrap();
    assert_eq!(facts.nodes(), 1);
}
