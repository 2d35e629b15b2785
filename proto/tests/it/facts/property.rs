//! What must hold whatever is told, in whatever order.

use std::collections::BTreeMap;

use meshwork_identity::{Psk, Revocation, RevocationNotice, Revoked};
use meshwork_proto::codec::{decode, encode};
use meshwork_proto::membership::BUCKETS;
use meshwork_proto::{PskRotation, SignedPskRotation};
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::fixture::{NOW, TTL, at, beat, suspicion};

/// What a small mesh says in its first minutes: of each node two announcements, beats upon both, who
/// accuses whom, some revocations, two keys.
fn words(mesh: &Mesh) -> Vec<Fact> {
    let mut words = Vec::new();
    for seed in 1..=5 {
        for (base, beats) in [(1, 2..=3), (10, 11..=12)] {
            let signed = mesh.announce(seed, &version(base));
            words.push(Fact::Announcement(signed.clone()));
            for version in beats {
                words.push(Fact::Beat(beat(seed, base, version, NOW)));
                words.push(Fact::Renewed(
                    signed.clone(),
                    beat(seed, base, version, NOW),
                ));
            }
        }
    }
    for accuser in 1..=5 {
        for version in [3, 12] {
            words.push(suspicion(accuser, accuser % 5 + 1, version, NOW));
            words.push(suspicion(accuser, 1, version, NOW));
        }
    }
    for (seed, keep) in [(21, Timestamp::MAX), (21, at(900)), (22, at(900))] {
        let notice = RevocationNotice {
            what: Revoked::Node(node(seed)),
            issued_at: NOW,
            keep_until: keep,
        };
        let statement = Revocation::by_authority(&mesh.authority, &notice).unwrap();
        words.push(Fact::Revocation(statement));
    }
    for key in [1, 2] {
        let rotation = PskRotation {
            epoch: NOW.as_secs(),
            psk: Psk::from_bytes([key; 32]),
            from: NOW,
            until: NOW.saturating_add(TTL),
        };
        let signed = SignedPskRotation::by_authority(&mesh.authority, &rotation).unwrap();
        words.push(Fact::Psk(signed));
    }
    words
}

/// Tells everything again and again, as repair does, until there is no news; a second passes between
/// two facts, so that nobody speaks too often.
fn tell_all(facts: &mut Facts, mesh: &Mesh, words: &[Fact]) {
    let mut now = NOW;
    let mut news = true;
    while news {
        news = false;
        for word in words {
            now = now.saturating_add(std::time::Duration::from_millis(500));
            let trust = mesh.trust(now);
            let (_, _, outcome, _) = facts.accept(word.clone(), &trust);
            news |= matches!(outcome, Outcome::New { .. });
        }
        assert!(now < at(280), "it does not end before the announcements do");
    }
}

fn versions(facts: &Facts) -> BTreeMap<Key<NodeId>, u64> {
    (0..BUCKETS).flat_map(|bucket| facts.keys(bucket)).collect()
}

proptest! {
    #![proptest_config(Config::with_cases(24))]

    /// All nodes come to hold the same, whatever comes first.
    #[test]
    fn the_order_does_not_matter(shuffled in Just(words(&Mesh::new())).prop_shuffle()) {
        let mesh = Mesh::new();
        let (mut one, mut other) = (facts(), facts());
        tell_all(&mut one, &mesh, &words(&mesh));
        tell_all(&mut other, &mesh, &shuffled);
        prop_assert_eq!(one.summary(), other.summary());
        let of = |facts: &Facts| told(facts).into_iter().map(|(key, version, _, whole)| {
            (key, version, whole)
        }).collect::<Vec<_>>();
        prop_assert_eq!(of(&one), of(&other));
        for seed in 1..=5 {
            prop_assert_eq!(one.version(&key(seed)), Some(12));
            prop_assert_eq!(one.store().get(&node(seed)), other.store().get(&node(seed)));
        }
        prop_assert_eq!(one.accusers(&node(1)).len(), 3);
        prop_assert_eq!(one.suspicions(), 7);
    }

    /// Hashes are equal if and only if all versions are: over all, and in each bucket.
    #[test]
    fn hashes_tell_what_differs(
        some in proptest::sample::subsequence(words(&Mesh::new()), 0..40),
        more in proptest::sample::subsequence(words(&Mesh::new()), 0..40),
    ) {
        let mesh = Mesh::new();
        let (mut one, mut other) = (facts(), facts());
        for (facts, words) in [(&mut one, &some), (&mut other, &more)] {
            for (n, word) in (0..).zip(words) {
                facts.accept(word.clone(), &mesh.trust(at(n)));
            }
        }
        let (mine, theirs) = (versions(&one), versions(&other));
        prop_assert_eq!(one.summary() == other.summary(), mine == theirs);
        let mut all = 0;
        for bucket in 0..BUCKETS {
            let equal = one.keys(bucket) == other.keys(bucket);
            prop_assert_eq!(one.bucket(bucket) == other.bucket(bucket), equal);
            all ^= one.bucket(bucket);
        }
        prop_assert_eq!(one.summary(), all);
        // A bucket is the same in all ledgers, and its versions are those that single keys have.
        for (key, version) in &mine {
            prop_assert_eq!(one.version(key), Some(*version));
        }
        // Whoever takes in all that the other tells, whole, has nothing left to ask.
        for (key, version, _, whole) in told(&other) {
            if mine.get(&key).is_none_or(|held| *held < version) {
                one.accept(whole.unwrap(), &mesh.trust(at(100)));
            }
        }
        for (key, version) in theirs {
            if !matches!(key, Key::Suspicion { .. }) {
                prop_assert!(one.version(&key) >= Some(version), "{:?}", key);
            }
        }
    }
}

proptest! {
    #![proptest_config(Config::with_cases(2000))]

    /// Whatever is done to a fact on its way, it is either what it was, or changes nothing.
    #[test]
    fn a_mangled_fact_changes_nothing(
        pick in any::<proptest::sample::Index>(),
        places in proptest::collection::vec((any::<proptest::sample::Index>(), 1u8..), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mesh = Mesh::new();
        let words = WORDS.get_or_init(|| super::property::words(&mesh));
        let word = pick.get(words);
        let mut bytes = encode(word);
        for (place, flip) in &places {
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let Ok(fact) = decode::<Fact>(&bytes, 1 << 16) else {
            return Ok(());
        };
        // Hops are not signed; a proof may be cut off, or another token put in its place, if what
        // is left holds as well.
        let signed = |fact: &Fact| match fact {
            Fact::Announcement(signed) => vec![signed.envelope.clone()],
            Fact::Beat(beat) => vec![beat.envelope.clone()],
            Fact::Renewed(signed, beat) => vec![signed.envelope.clone(), beat.envelope.clone()],
            Fact::Suspicion(signed) => vec![signed.envelope.clone()],
            Fact::Psk(signed) => vec![signed.envelope.clone()],
            Fact::Revocation(_) => vec![],
        };
        let same = signed(&fact) == signed(word);
        let mut facts = knowing(&mesh, [2, 3], NOW);
        let before = (told(&facts), facts.nodes(), facts.next_expiry());
        let (key, _, outcome, _) = facts.accept(fact, &mesh.trust(NOW));
        if let Outcome::New { .. } = outcome {
            let is_revocation = matches!(key, Key::Revocation(_));
            prop_assert!(same || is_revocation, "{:?}", key);
        } else {
            prop_assert_eq!(before, (told(&facts), facts.nodes(), facts.next_expiry()));
        }
    }

    #[test]
    fn random_bytes_are_no_fact_that_counts(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(fact) = decode::<Fact>(&bytes, 1 << 16) {
            let mesh = Mesh::new();
            let mut facts = facts();
            facts.accept(fact, &mesh.trust(NOW));
            prop_assert_eq!((facts.nodes(), facts.summary()), (0, 0));
        }
        let mut facts = facts();
        if facts.restore(&bytes, NOW).is_ok() {
            prop_assert_eq!((facts.nodes(), facts.summary()), (0, 0));
        }
    }
}

static WORDS: std::sync::OnceLock<Vec<Fact>> = std::sync::OnceLock::new();
