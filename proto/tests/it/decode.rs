//! Bytes from outside decode or are refused; they never panic and never make us hold much.

use std::sync::LazyLock;

use meshwork_identity::{NodeId, Revocation, RevocationNotice, Revoked, Scope, Timestamp};
use meshwork_proto::Announcement;
use meshwork_proto::codec::{DecodeError, decode, encode};
use meshwork_proto::facts::Fact;
use meshwork_proto::kernel::KernelView;
use meshwork_proto::limits::{MAX_ANNOUNCEMENTS_PER_CALL, MAX_FRAME, MAX_TOKENS_PER_PEER};
use meshwork_proto::membership::{BUCKETS, Key, MAX_KEYS, MAX_WANTED, Message};
use meshwork_proto::mesh::{
    GossipBatch, MAX_ADDRESSES, MAX_CANDIDATES, MAX_GOSSIP_FACTS, MAX_GOSSIP_MESSAGES,
    MAX_NEIGHBOURS, NeighbourView, PathOffer, Present, Revoke,
};
use meshwork_proto::path::NatClass;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fixture::{Mesh, NOW, TTL, identity};
use crate::samples::{self, MAX, Sample};

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(samples::all);

/// What decodes encodes to something that decodes to the same.
fn check(sample: &Sample, bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(again) = (sample.reread)(bytes) {
        prop_assert_eq!(
            (sample.reread)(&again),
            Ok(again.clone()),
            "{}",
            &sample.name
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for sample in SAMPLES.iter() {
            check(sample, &bytes)?;
        }
    }

    #[test]
    fn damaged_values_never_panic(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let sample = which.get(&SAMPLES);
        let mut bytes = sample.bytes.clone();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = byte;
            }
        }
        check(sample, &bytes)?;
    }
}

#[test]
fn nothing_is_left_over_or_missing() {
    for sample in SAMPLES.iter() {
        let mut longer = sample.bytes.clone();
        longer.push(0);
        assert_eq!(
            (sample.reread)(&longer),
            Err(DecodeError::Trailing(1)),
            "{}",
            sample.name
        );
        for end in 0..sample.bytes.len().min(300) {
            assert!(
                (sample.reread)(&sample.bytes[..end]).is_err(),
                "{} {end}",
                sample.name
            );
        }
    }
}

#[test]
fn size_is_checked_before_decoding() {
    let bytes = [0; 9];
    assert_eq!(
        decode::<()>(&bytes, 8),
        Err(DecodeError::TooLong { len: 9, max: 8 })
    );
    for sample in SAMPLES.iter() {
        let error = (sample.reread)(&vec![0; MAX + 1]);
        assert_eq!(
            error,
            Err(DecodeError::TooLong {
                len: MAX + 1,
                max: MAX
            })
        );
    }
}

/// Whoever passed the handshake may send these; each item costs us points of the curve, so that a
/// longer list is refused at its length.
#[test]
fn lists_from_peers_are_bounded() {
    let mesh = Mesh::new();
    let token = mesh.token(identity(1).node_id(), Scope::Announce, TTL);
    let announced = mesh.announce(1, &Announcement::default());
    let notice = RevocationNotice {
        what: Revoked::Node(identity(1).node_id()),
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let revoked = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    bounded(MAX_TOKENS_PER_PEER, |n| Present {
        tokens: vec![token.clone(); n],
        version: String::new(),
        addresses: Vec::new(),
        accepts: false,
    });
    let addr = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    bounded(MAX_ADDRESSES, |n| Present {
        tokens: Vec::new(),
        version: String::new(),
        addresses: vec![addr; n],
        accepts: true,
    });
    bounded(MAX_CANDIDATES, |n| PathOffer {
        candidates: vec![addr; n],
        nat: NatClass::Cone,
        id: 1,
    });
    bounded(MAX_NEIGHBOURS, |n| NeighbourView {
        node: identity(1).node_id(),
        neighbours: Vec::new(),
        known: 1,
        suspects: vec![identity(2).node_id(); n],
    });
    bounded(MAX_GOSSIP_FACTS, |n| GossipBatch {
        messages: Vec::new(),
        facts: vec![Fact::Announcement(announced.clone()); n],
    });
    bounded(MAX_GOSSIP_MESSAGES, |n| GossipBatch {
        messages: vec![Message::Leave; n],
        facts: Vec::new(),
    });
    // A key may take one byte on the wire and eighty in memory.
    bounded(usize::from(BUCKETS), |n| Message::<NodeId>::Buckets {
        hashes: vec![0; n],
    });
    bounded(MAX_KEYS, |n| Message::<NodeId>::Keys {
        bucket: 0,
        keys: vec![(Key::Psk, 0); n],
        whole: true,
    });
    bounded(MAX_WANTED, |n| Message::<NodeId>::Want {
        keys: vec![Key::Psk; n],
    });
    bounded(MAX_ANNOUNCEMENTS_PER_CALL, |n| Revoke {
        items: vec![revoked.clone(); n],
    });
}

fn bounded<T: Serialize + DeserializeOwned>(max: usize, make: impl Fn(usize) -> T) {
    let decoded = |n| decode::<T>(&encode(&make(n)), MAX_FRAME).map(|_| ());
    assert_eq!(decoded(max), Ok(()));
    assert!(matches!(decoded(max + 1), Err(DecodeError::Malformed(_))));
}

/// A list that claims 2⁶⁴−1 items in ten bytes: refused for its missing content; setting memory
/// aside for it would abort.
#[test]
fn claimed_lengths_allocate_nothing() {
    let mut claim = vec![0xff; 9];
    claim.push(0x01);
    assert!(decode::<Vec<KernelView>>(&claim, MAX).is_err());
    assert!(decode::<String>(&claim, MAX).is_err());
    assert!(decode::<bytes::Bytes>(&claim, MAX).is_err());
    for sample in SAMPLES.iter() {
        for at in 0..sample.bytes.len().min(64) {
            let mut bytes = sample.bytes[..at].to_vec();
            bytes.extend(&claim);
            check(sample, &bytes).unwrap();
        }
    }
}
