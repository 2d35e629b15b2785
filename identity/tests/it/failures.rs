//! Every kind of refusal is reached, by the shortest way there is.

use std::{collections::BTreeSet, time::Duration};

use meshwork_identity::{
    CLOCK_TOLERANCE, Exceeded, Limits, MAX_LINKS, MAX_NODE_TAGS, MAX_RESOURCE_PATH, MAX_TAG_CHARS,
    MAX_TOKEN_BYTES, NodeTags, Resource, Revoked, Scope, Scopes, Timestamp, Token, TokenError,
    TokenRequest, VerifyContext,
};

use crate::common::{
    NOW, TTL, chain, forge, id, later, person, request, revoked, root_token, token_of, verify,
};

const TOLERANCE: u64 = CLOCK_TOLERANCE.as_secs();

/// A chain of two links whose second has changed claims but is properly signed.
fn second_link(change: impl FnOnce(&mut meshwork_identity::Claims)) -> Token {
    let token = root_token()
        .delegate(&person(1), narrowed(), NOW, [2; 16])
        .unwrap();
    let first = token.links()[0].claims().clone();
    let mut second = token.claims().clone();
    change(&mut second);
    token_of(&[forge(first, &person(0)), forge(second, &person(1))]).unwrap()
}

fn narrowed() -> TokenRequest {
    TokenRequest {
        depth: 1,
        ..request(id(2))
    }
}

#[test]
fn every_kind_is_reached() {
    let token = root_token();
    let agent = TokenRequest {
        scopes: Scopes::from([Scope::Call]),
        resource: "agent/*".parse().unwrap(),
        depth: 0,
        ..request(id(1))
    };
    let narrow = Token::issue_root(&person(0), agent, NOW, [1; 16]).unwrap();
    let grant = verify(&narrow, NOW).unwrap();
    let by_another = forge(token.claims().clone(), &person(3));
    let hit = revoked(&[Revoked::Node(id(1))]);
    let root = id(0);
    let errors = [
        Token::decode(b"junk").unwrap_err(),
        verify(&token_of(&[by_another]).unwrap(), NOW).unwrap_err(),
        token
            .verify(&VerifyContext::new(
                &id(9),
                NOW,
                &meshwork_identity::Revocations::new(),
            ))
            .unwrap_err(),
        verify(&token, later(TTL.as_secs() + TOLERANCE)).unwrap_err(),
        verify(
            &token,
            NOW.saturating_sub(CLOCK_TOLERANCE + Duration::from_millis(1)),
        )
        .unwrap_err(),
        grant
            .check(&id(2), Scope::Call, "agent/x", &id(5), NOW)
            .unwrap_err(),
        grant
            .check(&id(1), Scope::Call, "manager/x", &id(5), NOW)
            .unwrap_err(),
        grant
            .check(&id(1), Scope::Publish, "agent/x", &id(5), NOW)
            .unwrap_err(),
        narrow
            .delegate(&person(1), request(id(2)), NOW, [2; 16])
            .unwrap_err(),
        token
            .verify(&VerifyContext::new(&root, NOW, &hit))
            .unwrap_err(),
        Token::issue_root(
            &person(0),
            TokenRequest {
                ttl: Duration::ZERO,
                ..request(id(1))
            },
            NOW,
            [1; 16],
        )
        .unwrap_err(),
    ];
    let kinds: Vec<_> = errors.iter().map(TokenError::kind).collect();
    assert_eq!(
        kinds,
        [
            "malformed",
            "invalid_signature",
            "untrusted_root",
            "expired",
            "not_yet_valid",
            "wrong_subject",
            "wrong_resource",
            "scope_exceeded",
            "delegation_exhausted",
            "revoked",
            "zero_ttl",
        ]
    );
    let texts: BTreeSet<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), errors.len(), "each says something of its own");
}

#[test]
fn a_good_chain_grants_what_its_last_link_says() {
    let grant = verify(&chain(), NOW).unwrap();
    let may = |path, now| grant.check(&id(3), Scope::Call, path, &id(7), now);
    assert_eq!(may("agent/kernel.stop", NOW), Ok(()));
    assert!(may("agent/other", NOW).is_err());
    assert_eq!(
        grant.limits.gpus,
        Some(2),
        "the limits of the middle link go on"
    );
    assert_eq!(grant.chain.len(), 3);
    assert_eq!(grant.id(), chain().id());
    let last = later(TTL.as_secs() / 2 + TOLERANCE);
    assert_eq!(grant.deadline(), last);
    assert_eq!(
        may("agent/kernel.stop", last),
        Err(TokenError::Expired { at: grant.expires })
    );
}

#[test]
fn the_tolerance_holds_at_both_ends_to_the_millisecond() {
    let millisecond = Duration::from_millis(1);
    let token = root_token();
    let first = NOW.saturating_sub(CLOCK_TOLERANCE);
    let end = later(TTL.as_secs() + TOLERANCE);
    for (now, kind) in [
        (first.saturating_sub(millisecond), Some("not_yet_valid")),
        (first, None),
        (end.saturating_sub(millisecond), None),
        (end, Some("expired")),
    ] {
        assert_eq!(verify(&token, now).err().map(|e| e.kind()), kind, "{now}");
    }
}

#[test]
fn links_that_widen_are_refused() {
    assert!(verify(&second_link(|_| ()), NOW).is_ok());
    let exceeded = |what| Err(TokenError::ScopeExceeded { what });
    let verify = |token: Token| verify(&token, NOW).map(|_| ());

    let token = second_link(|claims| claims.scopes.insert(Scope::Admin));
    assert_eq!(verify(token), exceeded(Exceeded::Scopes));
    let token = second_link(|claims| claims.expires = later(TTL.as_secs() + 1));
    assert_eq!(verify(token), exceeded(Exceeded::Validity));
    let token = second_link(|claims| claims.not_before = Timestamp::from_secs(0));
    assert_eq!(verify(token), exceeded(Exceeded::Validity));
    let token = second_link(|claims| claims.depth = 2);
    assert_eq!(verify(token), Err(TokenError::DelegationExhausted));

    let bound = TokenRequest {
        resource: Resource::any().on(id(5)),
        limits: Limits {
            gpus: Some(1),
            ..Limits::none()
        },
        ..request(id(1))
    };
    let bound = Token::issue_root(&person(0), bound, NOW, [1; 16]).unwrap();
    let wrong = bound.delegate(&person(1), narrowed(), NOW, [2; 16]);
    assert_eq!(wrong.unwrap_err().kind(), "wrong_resource");
    let more = TokenRequest {
        resource: Resource::any().on(id(5)),
        limits: Limits {
            gpus: Some(2),
            ..Limits::none()
        },
        ..narrowed()
    };
    let more = bound.delegate(&person(1), more, NOW, [2; 16]).map(|_| ());
    assert_eq!(more, exceeded(Exceeded::Limits));
}

#[test]
fn links_that_do_not_hang_together_are_malformed() {
    for token in [
        second_link(|claims| claims.issuer = id(3)),
        second_link(|claims| claims.parent = None),
        second_link(|claims| claims.parent = Some(chain().id())),
        second_link(|claims| claims.expires = claims.not_before),
    ] {
        assert_eq!(verify(&token, NOW).unwrap_err().kind(), "malformed");
    }
    // The last link alone begins with another key; the authority's may have no parent.
    let last = chain().claims().clone();
    let alone = token_of(&[forge(last.clone(), &person(2))]).unwrap();
    assert_eq!(verify(&alone, NOW).unwrap_err().kind(), "untrusted_root");
    let orphan = meshwork_identity::Claims {
        issuer: id(0),
        ..last
    };
    let orphan = token_of(&[forge(orphan, &person(0))]).unwrap();
    assert_eq!(verify(&orphan, NOW).unwrap_err().kind(), "malformed");
    assert_eq!(token_of(&[]).unwrap_err().kind(), "malformed");
}

#[test]
fn delegation_ends_with_depth_scope_and_length() {
    let deep = TokenRequest {
        depth: 99,
        ..request(id(1))
    };
    let mut token = Token::issue_root(&person(0), deep, NOW, [0; 16]).unwrap();
    for n in 1..MAX_LINKS {
        let n = u8::try_from(n).unwrap();
        let next = TokenRequest {
            depth: 99 - n,
            ..request(id(n + 1))
        };
        token = token.delegate(&person(n), next, NOW, [n; 16]).unwrap();
    }
    assert!(verify(&token, NOW).is_ok());
    let n = u8::try_from(MAX_LINKS).unwrap();
    let over = TokenRequest {
        depth: 0,
        ..request(id(n + 1))
    };
    let over = token.delegate(&person(n), over, NOW, [n; 16]);
    assert_eq!(over, Err(TokenError::DelegationExhausted));

    let scopeless = TokenRequest {
        scopes: [Scope::Call].into(),
        ..request(id(1))
    };
    let token = Token::issue_root(&person(0), scopeless, NOW, [0; 16]).unwrap();
    let child = TokenRequest {
        scopes: [Scope::Call].into(),
        ..narrowed()
    };
    let child = token.delegate(&person(1), child, NOW, [2; 16]);
    assert_eq!(child, Err(TokenError::DelegationExhausted));

    let stolen = root_token().delegate(&person(3), narrowed(), NOW, [2; 16]);
    assert_eq!(stolen.unwrap_err().kind(), "wrong_subject");
}

#[test]
fn a_holder_whose_clock_is_behind_can_delegate() {
    let behind = NOW.saturating_sub(Duration::from_secs(20));
    let request = TokenRequest {
        ttl: TTL / 2,
        ..narrowed()
    };
    let token = root_token()
        .delegate(&person(1), request, behind, [2; 16])
        .unwrap();
    assert!(verify(&token, behind).is_ok());
}

#[test]
fn admin_stands_for_every_scope_within_its_resource() {
    let request = TokenRequest {
        scopes: [Scope::Admin].into(),
        resource: "agent/*".parse().unwrap(),
        ..request(id(1))
    };
    let token = Token::issue_root(&person(0), request, NOW, [1; 16]).unwrap();
    let grant = verify(&token, NOW).unwrap();
    for scope in Scope::ALL {
        assert_eq!(grant.check(&id(1), scope, "agent/x", &id(5), NOW), Ok(()));
        assert!(
            grant
                .check(&id(1), scope, "manager/x", &id(5), NOW)
                .is_err()
        );
    }
}

#[test]
fn the_largest_token_fits() {
    let long = "x".repeat(MAX_TAG_CHARS - 1);
    let tags = (0..MAX_NODE_TAGS).map(|n| format!("{n}{long}"));
    let limits = Limits {
        gpus: Some(u32::MAX),
        cpu_millis: Some(u64::MAX),
        mem_bytes: Some(u64::MAX),
        kernels: Some(u32::MAX),
        node_tags: NodeTags::new(tags).unwrap(),
    };
    let resource: Resource = "p".repeat(MAX_RESOURCE_PATH).parse().unwrap();
    let request = |n: u8| TokenRequest {
        resource: resource.clone().on(id(5)),
        limits: limits.clone(),
        ttl: Duration::MAX,
        not_before: Some(Timestamp::from_millis(u64::MAX - 1)),
        depth: 255 - n,
        ..request(id(n + 1))
    };
    let mut token = Token::issue_root(&person(0), request(0), NOW, [255; 16]).unwrap();
    for n in 1..u8::try_from(MAX_LINKS).unwrap() {
        token = token
            .delegate(&person(n), request(n), NOW, [255; 16])
            .unwrap();
    }
    let encoded = token.encode();
    assert!(encoded.len() <= MAX_TOKEN_BYTES, "{}", encoded.len());
    assert_eq!(Token::decode(&encoded).as_ref(), Ok(&token));
    assert_eq!(token.to_string().parse(), Ok(token));
    let over = Token::decode(&[1; MAX_TOKEN_BYTES + 1]);
    assert_eq!(over.unwrap_err().kind(), "malformed");
}
