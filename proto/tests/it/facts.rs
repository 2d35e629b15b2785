//! What a node believes of all that it is told, and what it tells others.

mod adversary;
mod beats;
mod decrees;
mod property;
mod suspicions;

use meshwork_identity::{Identity, NodeId, Scope, Timestamp, Token};
use meshwork_proto::Announcement;
use meshwork_proto::facts::{Change, Fact, Facts};
use meshwork_proto::membership::{Key, Ledger, Outcome};
use meshwork_proto::store::RefusedBy;

use crate::fixture::{Mesh, body, gpu, identity};

/// The node whose facts the tests look at.
const LOCAL: u16 = 999;

const NEW: Outcome = Outcome::New { hops: 0 };

fn facts() -> Facts {
    Facts::new(node(LOCAL))
}

fn node(seed: u16) -> NodeId {
    identity(seed).node_id()
}

fn key(seed: u16) -> Key<NodeId> {
    Key::Node(node(seed))
}

fn accusation(accuser: u16, accused: u16) -> Key<NodeId> {
    Key::Suspicion {
        accused: node(accused),
        accuser: node(accuser),
    }
}

fn version(version: u64) -> Announcement {
    body(version, vec![gpu("A100 80GB", 80_000_000_000)])
}

fn announcement(mesh: &Mesh, seed: u16, v: u64, now: Timestamp) -> Fact {
    let body = Announcement {
        issued_at: now,
        ..version(v)
    };
    Fact::Announcement(mesh.announce(seed, &body))
}

/// Facts that know these nodes by the first version of each.
fn knowing(mesh: &Mesh, seeds: impl IntoIterator<Item = u16>, now: Timestamp) -> Facts {
    let mut facts = facts();
    for seed in seeds {
        let (_, _, outcome, changes) =
            facts.accept(announcement(mesh, seed, 1, now), &mesh.trust(now));
        assert_eq!(outcome, NEW, "{changes:?}");
    }
    facts
}

/// The outcome alone.
fn tell(facts: &mut Facts, mesh: &Mesh, fact: Fact, now: Timestamp) -> Outcome {
    facts.accept(fact, &mesh.trust(now)).2
}

/// Why a fact is refused.
fn refusal(facts: &mut Facts, mesh: &Mesh, fact: Fact, now: Timestamp) -> RefusedBy {
    let (_, _, outcome, changes) = facts.accept(fact, &mesh.trust(now));
    assert!(!matches!(outcome, Outcome::New { .. }), "{changes:?}");
    match <[Change; 1]>::try_from(changes) {
        Ok([Change::Refused(refusal)]) => refusal,
        other => panic!("not refused: {outcome:?} {other:?}"),
    }
}

fn admin(mesh: &Mesh, seed: u16) -> (Identity, Token) {
    let admin = identity(seed);
    let day = std::time::Duration::from_hours(24);
    let token = mesh.token(admin.node_id(), Scope::Admin, day);
    (admin, token)
}

/// A key with its version, and what is sent for it in the small and in the full form.
type Told = (Key<NodeId>, u64, Option<Fact>, Option<Fact>);

/// Everything that others could learn: all keys with their versions, and what is sent for each.
fn told(facts: &Facts) -> Vec<Told> {
    let keys = (0..meshwork_proto::membership::BUCKETS).flat_map(|bucket| facts.keys(bucket));
    let told = keys.map(|(key, version)| (key, version, facts.fact(&key), facts.whole(&key)));
    told.collect()
}
