//! A token never allows what one of its links does not: random chains, honest and forged, against a
//! second checker that knows nothing of patterns and subsets. It asks of each possible action
//! whether every link permits it, and compares the sets of actions to see whether a link widens.

use std::{cell::Cell, time::Duration};

use meshwork_identity::{
    Claims, Limits, NodeId, Resource, Revocations, Revoked, Scope, Scopes, Timestamp, Token,
    TokenId, TokenRequest, VerifyContext,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::common::{Forged, forge, id, person, revoked, token_of};

const PEOPLE: u8 = 4;
const PATTERNS: [&str; 7] = ["*", "a/*", "a/k.*", "a/k.x", "a/k.y", "b", "b/*"];
const PATHS: [&str; 6] = ["a/k.x", "a/k.y", "a/z", "b", "b/c", "c"];
const SECONDS: u64 = 4;
/// The largest limit; actions ask for one more.
const MOST_GPUS: u32 = 2;

/// One thing that someone may try.
#[derive(Debug, Clone, Copy)]
struct Action {
    scope: Scope,
    path: &'static str,
    node: NodeId,
    at: Timestamp,
    gpus: u32,
}

fn all_actions() -> Vec<Action> {
    let mut actions = Vec::new();
    for scope in Scope::ALL {
        for path in PATHS {
            for node in [id(1), id(2)] {
                for second in 0..SECONDS {
                    for gpus in 0..=MOST_GPUS + 1 {
                        let at = Timestamp::from_secs(second);
                        actions.push(Action {
                            scope,
                            path,
                            node,
                            at,
                            gpus,
                        });
                    }
                }
            }
        }
    }
    actions
}

/// The second checker.
mod reference {
    use super::*;

    /// A chain as forged, and what is revoked.
    #[derive(Default)]
    pub(super) struct Chain {
        /// Claims, and whether their issuer is the right one and signed them.
        pub(super) links: Vec<(Claims, bool)>,
        pub(super) ids: Vec<TokenId>,
        pub(super) revoked: Vec<Revoked>,
    }

    impl Chain {
        /// Whether the chain holds at all.
        pub(super) fn holds(&self, actions: &[Action]) -> bool {
            let honest = self.links.iter().all(|(_, honest)| *honest);
            let mut narrows = true;
            for pair in self.links.windows(2) {
                let (parent, child) = (&pair[0].0, &pair[1].0);
                let may_pass_on = has(parent, Scope::Delegate) && parent.depth > child.depth;
                let widens = |action| permits(child, action) && !permits(parent, action);
                narrows &= may_pass_on && !actions.iter().any(widens);
            }
            let cut = self.links.iter().zip(&self.ids).any(|((claims, _), id)| {
                let (token, node) = (Revoked::Token(*id), Revoked::Node(claims.subject));
                self.revoked.contains(&token) || self.revoked.contains(&node)
            });
            honest && narrows && !cut && self.links.len() <= 5
        }
    }

    pub(super) fn permits(claims: &Claims, action: &Action) -> bool {
        has(claims, action.scope)
            && (claims.not_before..claims.expires).contains(&action.at)
            && claims.limits.gpus.is_none_or(|most| action.gpus <= most)
            && matches(&claims.resource.to_string(), action)
    }

    fn has(claims: &Claims, scope: Scope) -> bool {
        claims
            .scopes
            .iter()
            .any(|s| s == scope || s == Scope::Admin)
    }

    fn matches(pattern: &str, action: &Action) -> bool {
        let (path, node) = pattern.split_once('@').unwrap_or((pattern, ""));
        let on_node = node.is_empty() || node == action.node.to_string();
        on_node
            && match path.split_once('*') {
                Some((start, _)) => action
                    .path
                    .strip_prefix(start)
                    .is_some_and(|s| !s.is_empty()),
                None => action.path == path,
            }
    }
}

/// One link's raw choices. `keep` says field by field whether to copy the parent's value, so that
/// many chains are honest ones.
#[derive(Debug, Clone)]
struct Choice {
    keep: [bool; 6],
    subject: u8,
    issuer: Option<u8>,
    signed: bool,
    hooked: bool,
    scopes: u16,
    pattern: usize,
    node: Option<u8>,
    start: u64,
    end: u64,
    depth: u8,
    gpus: Option<u32>,
}

fn mostly(yes: f64) -> impl Strategy<Value = bool> {
    proptest::bool::weighted(yes)
}

fn choice() -> impl Strategy<Value = Choice> {
    let keep = [(); 6].map(|()| mostly(0.85));
    let hooks = (
        0..PEOPLE,
        proptest::option::weighted(0.03, 0..PEOPLE),
        mostly(0.97),
        mostly(0.97),
    );
    let node = proptest::option::of(1..3u8);
    let gpus = proptest::option::of(0..=MOST_GPUS);
    let what = (1..0x80u16, 0..PATTERNS.len(), node);
    let amounts = (0..SECONDS, 1..=SECONDS, 0..6u8, gpus);
    (keep, hooks, what, amounts).prop_map(|(keep, hooks, what, amounts)| {
        let (subject, issuer, signed, hooked) = hooks;
        let (scopes, pattern, node) = what;
        let (start, end, depth, gpus) = amounts;
        Choice {
            keep,
            subject,
            issuer,
            signed,
            hooked,
            scopes,
            pattern,
            node,
            start,
            end,
            depth,
            gpus,
        }
    })
}

/// The claims of a choice after `parent`, or after nothing.
fn claims_of(choice: &Choice, index: usize, parent: Option<(&Claims, TokenId)>) -> Claims {
    let mut resource: Resource = PATTERNS[choice.pattern].parse().unwrap();
    if let Some(node) = choice.node {
        resource = resource.on(id(node));
    }
    let gpus = choice.gpus;
    let mut claims = Claims {
        issuer: id(choice.issuer.unwrap_or(0)),
        subject: id(choice.subject),
        scopes: Scopes::try_from(choice.scopes).unwrap(),
        resource,
        not_before: Timestamp::from_secs(choice.start),
        expires: Timestamp::from_secs(choice.end),
        depth: choice.depth,
        nonce: [u8::try_from(index).unwrap(); 16],
        limits: Limits {
            gpus,
            ..Limits::none()
        },
        parent: None,
    };
    let Some((parent, parent_id)) = parent else {
        // Wide, so that there is something to pass on.
        if choice.keep[0] {
            claims.scopes = Scopes::all();
            claims.resource = Resource::any();
            claims.not_before = Timestamp::from_secs(0);
            claims.expires = Timestamp::from_secs(SECONDS);
            claims.depth = 5;
        }
        return claims;
    };
    claims.parent = choice.hooked.then_some(parent_id);
    if choice.issuer.is_none() {
        claims.issuer = parent.subject;
    }
    let [scopes, resource, start, end, depth, gpus] = choice.keep;
    if scopes {
        claims.scopes = parent.scopes;
    }
    if resource {
        claims.resource = parent.resource.clone();
    }
    if start {
        claims.not_before = parent.not_before;
    }
    if end {
        claims.expires = parent.expires;
    }
    if depth {
        claims.depth = parent.depth.saturating_sub(1);
    }
    if gpus {
        claims.limits = parent.limits.clone();
    }
    claims
}

/// The id of a link with these claims, as the crate computes it.
fn id_of(link: &Forged) -> TokenId {
    token_of(std::slice::from_ref(link)).unwrap().id()
}

/// The chain that the choices describe, for the reference and for the wire.
fn build(choices: &[Choice], revoke: Option<(bool, u8)>) -> (reference::Chain, Vec<Forged>) {
    let mut forged: Vec<Forged> = Vec::new();
    let mut chain = reference::Chain::default();
    for (index, choice) in choices.iter().enumerate() {
        let parent = forged.last().map(|link| (&link.0, id_of(link)));
        let claims = claims_of(choice, index, parent);
        let expected_issuer = parent.map_or(id(0), |(parent, _)| parent.subject);
        let follows = claims.issuer == expected_issuer && claims.parent == parent.map(|p| p.1);
        let issuer = (0..PEOPLE).find(|n| id(*n) == claims.issuer).unwrap();
        let signer = if choice.signed { issuer } else { issuer + 1 };
        chain.links.push((claims.clone(), follows && choice.signed));
        forged.push(forge(claims, &person(signer)));
        chain.ids.push(id_of(&forged[index]));
    }
    chain.revoked.extend(revoke.map(|(token, n)| {
        let link = chain.ids[usize::from(n) % chain.ids.len()];
        if token {
            Revoked::Token(link)
        } else {
            Revoked::Node(id(n))
        }
    }));
    (chain, forged)
}

/// What the crate says: whether the chain's last subject may do this.
fn allowed(token: &Token, subject: &NodeId, action: &Action, revocations: &Revocations) -> bool {
    let context = VerifyContext {
        root: &id(0),
        now: action.at,
        tolerance: Duration::ZERO,
        revocations,
    };
    let Ok(grant) = token.verify(&context) else {
        return false;
    };
    let Action {
        scope,
        path,
        node,
        at,
        gpus,
    } = *action;
    grant.check(subject, scope, path, &node, at).is_ok()
        && grant.limits.gpus.is_none_or(|most| gpus <= most)
}

/// The same cases in every run, so that the counts at the end of a test mean something.
fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn random_chains_agree_with_the_reference() {
    let actions = all_actions();
    let (held, refused) = (Cell::new(0), Cell::new(0));
    let revoke = proptest::option::weighted(0.15, (any::<bool>(), 1..PEOPLE));
    // Actions to ask for: a check costs five signatures, so not all of them.
    let asked = vec(0..actions.len(), 24);
    let strategy = (vec(choice(), 1..=6), revoke, asked);
    let outcome = runner(1200).run(&strategy, |(choices, revoke, asked)| {
        let (chain, forged) = build(&choices, revoke);
        let revocations = revoked(&chain.revoked);
        let token = token_of(&forged);
        let leaf = &forged[forged.len() - 1].0;
        let stranger = if leaf.subject == id(1) { id(2) } else { id(1) };
        let holds = chain.holds(&actions);
        for action in asked.iter().map(|index| &actions[*index]) {
            let is_allowed = |who: &NodeId| {
                let allows = |token| allowed(token, who, action, &revocations);
                token.as_ref().is_ok_and(allows)
            };
            let actual = is_allowed(&leaf.subject);
            prop_assert_eq!(
                actual,
                holds && reference::permits(leaf, action),
                "{:?}",
                action
            );
            // Every link permits it, not the last one only; and to its subject only.
            let permitted = forged
                .iter()
                .all(|(claims, _)| reference::permits(claims, action));
            prop_assert!(!actual || permitted);
            prop_assert!(!is_allowed(&stranger));
            let count = if actual { &held } else { &refused };
            count.set(count.get() + usize::from(forged.len() > 1));
        }
        Ok(())
    });
    outcome.unwrap();
    // The test would be worthless if nearly all chains failed for one reason.
    assert!(
        held.get() > 1500 && refused.get() > 1500,
        "{held:?} {refused:?}"
    );
}

#[test]
fn delegate_makes_only_tokens_that_verify() {
    let (made, refused) = (Cell::new(0), Cell::new(0));
    let outcome = runner(500).run(&(choice(), choice()), |(mut first, mut second)| {
        (first.issuer, second.issuer) = (None, None);
        let claims = claims_of(&first, 0, None);
        prop_assume!(claims.not_before < claims.expires);
        let parent = token_of(&[forge(claims, &person(0))]).unwrap();
        let wanted = claims_of(&second, 1, Some((parent.claims(), parent.id())));
        let request = TokenRequest {
            subject: wanted.subject,
            scopes: wanted.scopes,
            resource: wanted.resource.clone(),
            not_before: Some(wanted.not_before),
            ttl: wanted.expires.duration_since(wanted.not_before),
            depth: wanted.depth,
            limits: wanted.limits.clone(),
        };
        let holder = (0..PEOPLE).find(|n| id(*n) == wanted.issuer).unwrap();
        match parent.delegate(&person(holder), request, wanted.not_before, [9; 16]) {
            Ok(token) => {
                made.set(made.get() + 1);
                let now = token.claims().not_before;
                let (root, nothing) = (id(0), Revocations::new());
                let context = VerifyContext::new(&root, now, &nothing);
                prop_assert!(token.verify(&context).is_ok());
            }
            Err(_) => refused.set(refused.get() + 1),
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(
        made.get() > 30 && refused.get() > 30,
        "{made:?} {refused:?}"
    );
}
