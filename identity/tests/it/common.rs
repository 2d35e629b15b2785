//! Fixed people, times and requests that the tests share, and links forged as an attacker would.

use std::time::Duration;

use meshwork_identity::{
    Claims, Domain, Identity, Limits, NodeId, Resource, Revocation, RevocationNotice, Revocations,
    Revoked, Scope, Scopes, Signature, Timestamp, Token, TokenError, TokenRequest, VerifyContext,
};

/// The time at which tests issue.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// The lifetime of the tests' tokens.
pub(crate) const TTL: Duration = Duration::from_hours(1);

/// Person number `n`; 0 is the authority.
pub(crate) fn person(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

pub(crate) fn id(n: u8) -> NodeId {
    person(n).node_id()
}

pub(crate) fn later(seconds: u64) -> Timestamp {
    NOW.saturating_add(Duration::from_secs(seconds))
}

/// A request with every scope but `admin`, on everything, to be delegated twice.
pub(crate) fn request(subject: NodeId) -> TokenRequest {
    TokenRequest {
        subject,
        scopes: Scope::ALL
            .into_iter()
            .filter(|s| *s != Scope::Admin)
            .collect(),
        resource: Resource::any(),
        not_before: None,
        ttl: TTL,
        depth: 2,
        limits: Limits::none(),
    }
}

/// What the authority grants person 1.
pub(crate) fn root_token() -> Token {
    Token::issue_root(&person(0), request(id(1)), NOW, [1; 16]).unwrap()
}

/// A chain of three links: 0 → 1 → 2 → 3, narrowing on the way.
pub(crate) fn chain() -> Token {
    let second = TokenRequest {
        scopes: Scopes::from([Scope::Call, Scope::Delegate]),
        resource: "agent/*".parse().unwrap(),
        depth: 1,
        limits: Limits {
            gpus: Some(2),
            node_tags: "lab-a".parse().unwrap(),
            ..Limits::none()
        },
        ..request(id(2))
    };
    let third = TokenRequest {
        scopes: Scopes::from([Scope::Call]),
        resource: "agent/kernel.*".parse().unwrap(),
        ttl: TTL / 2,
        depth: 0,
        ..request(id(3))
    };
    let token = root_token()
        .delegate(&person(1), second, NOW, [2; 16])
        .unwrap();
    token.delegate(&person(2), third, NOW, [3; 16]).unwrap()
}

/// Checks under the default tolerance, with the authority 0 and nothing revoked.
pub(crate) fn verify(
    token: &Token,
    now: Timestamp,
) -> Result<meshwork_identity::Grant, TokenError> {
    token.verify(&VerifyContext::new(&id(0), now, &Revocations::new()))
}

/// The authority's revocations of these.
pub(crate) fn revoked(what: &[Revoked]) -> Revocations {
    let mut revocations = Revocations::new();
    for what in what {
        let statement = Revocation::by_authority(&person(0), &notice(*what)).unwrap();
        let new = revocations.insert(statement, &id(0), NOW, Duration::ZERO);
        assert!(new.unwrap());
    }
    revocations
}

pub(crate) fn notice(what: Revoked) -> RevocationNotice {
    RevocationNotice {
        what,
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    }
}

/// A link with any claims, signed by anyone.
pub(crate) type Forged = (Claims, Signature);

pub(crate) fn forge(claims: Claims, signer: &Identity) -> Forged {
    let bytes = postcard::to_allocvec(&claims).unwrap();
    let signature = signer.sign(&Domain::TOKEN, &bytes);
    (claims, signature)
}

/// A token of forged links, made over the wire: there is no other way to make a bad one.
pub(crate) fn token_of(links: &[Forged]) -> Result<Token, TokenError> {
    Token::decode(&postcard::to_allocvec(&(1u8, links)).unwrap())
}
