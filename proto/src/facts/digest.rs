//! Hashes over all that is held, by which two nodes find what one of them lacks.
//!
//! Every (key, version) has a hash of 64 bits; a set's hash is the exclusive or of its members', so
//! that it follows every change at once and does not depend on their order. Keys fall into
//! [`BUCKETS`] by a hash of the key alone. Both ends of a connection must count alike, so the mixing is
//! fixed here. It is no cryptographic hash: who finds two sets with the same one delays a repair,
//! and could as well have kept silent.

use std::collections::BTreeMap;

use meshwork_identity::NodeId;

use crate::membership::{BUCKETS, Key};

/// The versions of all keys, with the hashes over them.
#[derive(Debug)]
pub(super) struct Digest {
    all: u64,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Default)]
struct Bucket {
    hash: u64,
    versions: BTreeMap<Key<NodeId>, u64>,
}

impl Digest {
    pub(super) fn new() -> Self {
        Self {
            all: 0,
            buckets: vec![Bucket::default(); usize::from(BUCKETS)],
        }
    }

    pub(super) fn version(&self, key: &Key<NodeId>) -> Option<u64> {
        self.buckets[bucket_of(key)].versions.get(key).copied()
    }

    /// Now holds `version` of `key`; none of it.
    pub(super) fn set(&mut self, key: Key<NodeId>, version: Option<u64>) {
        let bucket = &mut self.buckets[bucket_of(&key)];
        let before = match version {
            Some(version) => bucket.versions.insert(key, version),
            None => bucket.versions.remove(&key),
        };
        let hash_of = |version: Option<u64>| version.map_or(0, |v| entry_hash(&key, v));
        let change = hash_of(before) ^ hash_of(version);
        bucket.hash ^= change;
        self.all ^= change;
    }

    pub(super) fn summary(&self) -> u64 {
        self.all
    }

    pub(super) fn bucket(&self, index: u8) -> u64 {
        self.buckets.get(usize::from(index)).map_or(0, |b| b.hash)
    }

    /// What a bucket holds, by key.
    pub(super) fn keys(&self, bucket: u8) -> Vec<(Key<NodeId>, u64)> {
        let bucket = self.buckets.get(usize::from(bucket));
        let versions = bucket.iter().flat_map(|bucket| &bucket.versions);
        versions.map(|(key, version)| (*key, *version)).collect()
    }
}

fn bucket_of(key: &Key<NodeId>) -> usize {
    // The high bits: they depend on all others.
    usize::try_from(key_hash(key) >> 32).unwrap_or(0) % usize::from(BUCKETS)
}

fn entry_hash(key: &Key<NodeId>, version: u64) -> u64 {
    mix(key_hash(key), version)
}

fn key_hash(key: &Key<NodeId>) -> u64 {
    match key {
        Key::Node(node) => hash_bytes(1, node.as_bytes()),
        Key::Suspicion { accused, accuser } => {
            hash_bytes(hash_bytes(2, accused.as_bytes()), accuser.as_bytes())
        }
        Key::Revocation(hash) => hash_bytes(3, hash),
        Key::Psk => mix(0, 4),
    }
}

fn hash_bytes(seed: u64, bytes: &[u8; 32]) -> u64 {
    let words = bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes")));
    words.fold(seed, mix)
}

/// One step of `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014) from a state that both depend on.
fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;

    use super::*;

    fn node(seed: u8) -> NodeId {
        Identity::from_seed(&[seed; 32]).node_id()
    }

    /// Both ends must agree for ever: a change here needs a new protocol.
    #[test]
    fn the_hash_is_fixed() {
        assert_eq!(mix(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(key_hash(&Key::Revocation([0; 32])), 0xd638_3c09_7c7c_0f99);
    }

    #[test]
    fn what_is_removed_leaves_no_trace() {
        let mut digest = Digest::new();
        let keys = [
            Key::Node(node(1)),
            Key::Psk,
            Key::Revocation([7; 32]),
            Key::Suspicion {
                accused: node(1),
                accuser: node(2),
            },
        ];
        for key in keys {
            digest.set(key, Some(1));
            digest.set(key, Some(2));
        }
        let hash_of_all = digest.summary();
        let each = (0..BUCKETS).map(|bucket| digest.bucket(bucket));
        assert_eq!(each.fold(0, |all, hash| all ^ hash), hash_of_all);
        for key in keys {
            assert_eq!(digest.version(&key), Some(2));
            digest.set(key, None);
            digest.set(key, None);
        }
        assert_eq!(digest.summary(), 0);
        assert!((0..BUCKETS).all(|bucket| digest.bucket(bucket) == 0));
        assert!((0..BUCKETS).all(|bucket| digest.keys(bucket).is_empty()));
    }

    /// A pair of accuser and accused is not the pair the other way round, and buckets are filled
    /// evenly.
    #[test]
    fn keys_spread() {
        let (a, b) = (node(1), node(2));
        let suspicion = |accused, accuser| Key::Suspicion { accused, accuser };
        assert_ne!(key_hash(&suspicion(a, b)), key_hash(&suspicion(b, a)));
        let mut digest = Digest::new();
        for n in 0..6400u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&n.to_le_bytes());
            digest.set(Key::Revocation(hash), Some(1));
        }
        let sizes = (0..BUCKETS).map(|bucket| digest.keys(bucket).len());
        assert!(
            sizes.clone().all(|size| (50..160).contains(&size)),
            "{sizes:?}"
        );
    }
}
