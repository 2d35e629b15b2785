//! Revocations: who may make them, what they cut, and how long they are kept.

use std::time::Duration;

use meshwork_identity::{
    CLOCK_TOLERANCE, Resource, Revocation, RevocationError, RevocationNotice, Revocations, Revoked,
    Scope, Timestamp, Token, TokenError, TokenRequest, VerifyContext,
};

use crate::common::{NOW, TTL, chain, id, later, notice, person, request, revoked};

/// Person 1's admin token on `resource`.
fn admin(resource: Resource) -> Token {
    let request = TokenRequest {
        scopes: [Scope::Admin].into(),
        resource,
        ..request(id(1))
    };
    Token::issue_root(&person(0), request, NOW, [8; 16]).unwrap()
}

fn insert(held: &mut Revocations, statement: Revocation) -> Result<bool, RevocationError> {
    held.insert(statement, &id(0), NOW, CLOCK_TOLERANCE)
}

#[test]
fn each_link_and_each_person_of_a_chain_can_be_cut() {
    let token = chain();
    let root = id(0);
    let mut cuts: Vec<_> = token
        .links()
        .iter()
        .map(|l| Revoked::Token(l.id()))
        .collect();
    cuts.extend([1, 2, 3].map(|n| Revoked::Node(id(n))));
    for what in cuts {
        let held = revoked(&[what]);
        let verdict = token.verify(&VerifyContext::new(&root, NOW, &held));
        assert_eq!(verdict, Err(TokenError::Revoked { what }));
    }
    let held = revoked(&[Revoked::Node(id(4))]);
    let grant = token
        .verify(&VerifyContext::new(&root, NOW, &held))
        .unwrap();
    // A live connection asks its grant.
    assert_eq!(grant.revoked_by(&held), None);
    let later = revoked(&[Revoked::Node(id(2))]);
    assert_eq!(grant.revoked_by(&later), Some(Revoked::Node(id(2))));
}

#[test]
fn only_the_authority_and_admins_revoke() {
    let node = notice(Revoked::Node(id(2)));
    let token = notice(Revoked::Token(chain().id()));
    let mut held = Revocations::new();

    let nobody = Revocation::by_authority(&person(3), &node).unwrap();
    assert!(matches!(
        insert(&mut held, nobody),
        Err(RevocationError::NoProof)
    ));
    let plain = crate::common::root_token();
    let plain = Revocation::by_admin(&person(1), plain, &node).unwrap();
    let verdict = insert(&mut held, plain);
    assert!(
        matches!(&verdict, Err(RevocationError::NotAdmin(e)) if e.kind() == "scope_exceeded"),
        "{verdict:?}"
    );
    let borrowed = Revocation::by_admin(&person(3), admin(Resource::any()), &node).unwrap();
    let verdict = insert(&mut held, borrowed);
    assert!(matches!(&verdict, Err(RevocationError::NotAdmin(e)) if e.kind() == "wrong_subject"));

    // An admin of one node cuts that node, no other, and no token.
    let of_node_2 = admin(Resource::any().on(id(2)));
    let revoke = |notice: &RevocationNotice| {
        Revocation::by_admin(&person(1), of_node_2.clone(), notice).unwrap()
    };
    for foreign in [notice(Revoked::Node(id(3))), token] {
        let verdict = insert(&mut held, revoke(&foreign));
        assert!(
            matches!(&verdict, Err(RevocationError::NotAdmin(e)) if e.kind() == "wrong_resource")
        );
    }
    assert!(held.is_empty());
    assert!(insert(&mut held, revoke(&node)).unwrap());
    assert!(
        !insert(&mut held, revoke(&node)).unwrap(),
        "it is known now"
    );

    let of_all = Revocation::by_admin(&person(1), admin(Resource::any()), &token).unwrap();
    assert!(insert(&mut held, of_all).unwrap());
    assert!(held.contains_node(&id(2)) && held.contains_token(&chain().id()));
    assert_eq!(held.len(), 2);
}

#[test]
fn the_authority_cannot_be_revoked() {
    let notice = notice(Revoked::Node(id(0)));
    for statement in [
        Revocation::by_authority(&person(0), &notice).unwrap(),
        Revocation::by_admin(&person(1), admin(Resource::any()), &notice).unwrap(),
    ] {
        let verdict = insert(&mut Revocations::new(), statement);
        assert!(matches!(verdict, Err(RevocationError::Authority)));
    }
}

#[test]
fn a_revoked_admin_revokes_no_more() {
    let mut held = revoked(&[Revoked::Node(id(1))]);
    let node = notice(Revoked::Node(id(2)));
    let statement = Revocation::by_admin(&person(1), admin(Resource::any()), &node).unwrap();
    let verdict = insert(&mut held, statement);
    assert!(matches!(&verdict, Err(RevocationError::NotAdmin(e)) if e.kind() == "revoked"));
}

#[test]
fn newcomers_heed_what_an_admin_said_in_its_time() {
    let node = notice(Revoked::Node(id(2)));
    let statement = Revocation::by_admin(&person(1), admin(Resource::any()), &node).unwrap();
    let much_later = later(10 * TTL.as_secs());
    let mut held = Revocations::new();
    assert!(
        held.insert(statement, &id(0), much_later, CLOCK_TOLERANCE)
            .unwrap()
    );

    let after = RevocationNotice {
        issued_at: much_later,
        ..node
    };
    let statement = Revocation::by_admin(&person(1), admin(Resource::any()), &after).unwrap();
    let verdict = held.insert(statement, &id(0), much_later, CLOCK_TOLERANCE);
    assert!(matches!(&verdict, Err(RevocationError::NotAdmin(e)) if e.kind() == "expired"));
}

#[test]
fn the_future_is_refused_and_the_past_forgotten() {
    let early = RevocationNotice {
        issued_at: later(31),
        ..notice(Revoked::Node(id(2)))
    };
    let statement = Revocation::by_authority(&person(0), &early).unwrap();
    let verdict = insert(&mut Revocations::new(), statement);
    assert!(matches!(verdict, Err(RevocationError::FromFuture(at)) if at == later(31)));

    let short = RevocationNotice {
        keep_until: later(60),
        ..notice(Revoked::Token(chain().id()))
    };
    let statement = Revocation::by_authority(&person(0), &short).unwrap();
    let mut held = Revocations::new();
    assert!(insert(&mut held, statement.clone()).unwrap());
    held.purge(later(89), CLOCK_TOLERANCE);
    assert_eq!(
        held.len(),
        1,
        "kept as long as a tolerant check could accept the token"
    );
    held.purge(later(90), CLOCK_TOLERANCE);
    assert!(held.is_empty());
    let again = held.insert(statement, &id(0), later(90), CLOCK_TOLERANCE);
    assert!(matches!(again, Err(RevocationError::Obsolete(_))));
    held.purge(Timestamp::MAX, Duration::MAX);
}

#[test]
fn a_longer_revocation_replaces_a_shorter_one() {
    let what = Revoked::Token(chain().id());
    let short = RevocationNotice {
        keep_until: later(60),
        ..notice(what)
    };
    let [short, long] =
        [short, notice(what)].map(|n| Revocation::by_authority(&person(0), &n).unwrap());
    let mut held = Revocations::new();
    assert!(insert(&mut held, short.clone()).unwrap());
    assert!(insert(&mut held, long).unwrap());
    assert!(!insert(&mut held, short).unwrap());
    held.purge(later(1_000_000), CLOCK_TOLERANCE);
    let kept: Vec<_> = held.iter().map(|(notice, _)| notice.what).collect();
    assert_eq!(kept, [what]);
    held.purge(Timestamp::MAX, Duration::ZERO);
    assert_eq!(held.len(), 1, "no end means no end");
}

/// Newcomers refuse what a revoked admin said, so the authority's word must take its place, and
/// stay there.
#[test]
fn the_authority_repeats_what_an_admin_said() {
    let node = notice(Revoked::Node(id(2)));
    let short = RevocationNotice {
        keep_until: later(60),
        ..node
    };
    let admin = Revocation::by_admin(&person(1), admin(Resource::any()), &node).unwrap();
    let [own, own_short] = [node, short].map(|n| Revocation::by_authority(&person(0), &n).unwrap());

    let mut held = Revocations::new();
    assert!(insert(&mut held, admin.clone()).unwrap());
    assert!(insert(&mut held, own.clone()).unwrap());
    assert!(held.iter().eq([(&node, &own)]));

    let mut held = Revocations::new();
    assert!(insert(&mut held, own_short.clone()).unwrap());
    assert!(!insert(&mut held, admin).unwrap());
    assert!(held.iter().eq([(&short, &own_short)]));
}

/// Admin 1 revokes somebody, and is then revoked itself, with an earlier date: what it said was
/// heeded, and still is after a restart.
#[test]
fn a_stored_set_is_restored_whole() {
    let said = RevocationNotice {
        issued_at: later(10),
        ..notice(Revoked::Node(id(2)))
    };
    let by_admin = Revocation::by_admin(&person(1), admin(Resource::any()), &said).unwrap();
    let end = Revocation::by_authority(&person(0), &notice(Revoked::Node(id(1)))).unwrap();
    let mut held = revoked(&[Revoked::Token(chain().id())]);
    assert!(insert(&mut held, by_admin.clone()).unwrap());
    assert!(insert(&mut held, end).unwrap());
    assert!(held.holds(&by_admin));
    assert_eq!(held.get(&said.what), Some((&said, &by_admin)));

    let stored = held.iter().map(|(_, statement)| statement.encode());
    let stored = stored.map(|bytes| Revocation::decode(&bytes).unwrap());
    let restored = Revocations::restore(stored, NOW, CLOCK_TOLERANCE).unwrap();
    assert!(restored.iter().eq(held.iter()));
    let other = Revocation::by_authority(&person(0), &said).unwrap();
    assert!(!restored.holds(&other), "it says the same, and is another");
}
