//! Nothing changed verifies, and nothing at all makes decoding panic.

use meshwork_identity::{
    AdmissionSecret, Contact, Domain, Envelope, Identity, NodeId, Psk, Resource, Revocation,
    Revocations, Revoked, Scopes, Ticket, Timestamp, Token, VerifyContext, Warrant,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::common::{NOW, chain, id, notice, person, verify};

fn envelope() -> Envelope {
    Envelope::seal(&person(1), &Domain::ANNOUNCEMENT, &("eight GPUs", 80u64)).unwrap()
}

fn revocation() -> Revocation {
    Revocation::by_authority(&person(0), &notice(Revoked::Node(id(2)))).unwrap()
}

fn ticket() -> Ticket {
    Ticket {
        mesh: id(0),
        psk: Psk::from_bytes([7; 32]),
        contacts: vec![Contact {
            node: id(1),
            addrs: vec!["192.0.2.1:4500".parse().unwrap()],
        }],
        admission: AdmissionSecret {
            id: [1; 16],
            secret: [2; 16],
        },
        issuer: id(1),
        expires: Timestamp::from_secs(1),
        role: "agent".parse().unwrap(),
    }
}

fn token_holds(bytes: &[u8]) -> bool {
    Token::decode(bytes).is_ok_and(|token| verify(&token, NOW).is_ok())
}

fn envelope_holds(bytes: &[u8]) -> bool {
    let open = |e: Envelope| e.open::<(String, u64)>(&Domain::ANNOUNCEMENT).is_ok();
    Envelope::decode(bytes).is_ok_and(open)
}

fn revocation_holds(bytes: &[u8]) -> bool {
    let (root, nothing) = (id(0), Revocations::new());
    let context = VerifyContext::new(&root, NOW, &nothing);
    Revocation::decode(bytes).is_ok_and(|r| r.verify(&context).is_ok())
}

fn ticket_holds(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<Ticket>().is_ok())
}

fn token_text_holds(bytes: &[u8]) -> bool {
    let parsed = std::str::from_utf8(bytes).map(str::parse::<Token>);
    parsed.is_ok_and(|token| token.is_ok_and(|token| verify(&token, NOW).is_ok()))
}

/// Good bytes, and whether given bytes hold as their like.
type Specimen = (Vec<u8>, fn(&[u8]) -> bool);

/// One of everything that is signed or checksummed.
fn specimens() -> Vec<Specimen> {
    vec![
        (chain().encode(), token_holds),
        (envelope().encode(), envelope_holds),
        (revocation().encode(), revocation_holds),
        (ticket().to_string().into_bytes(), ticket_holds),
        (chain().to_string().into_bytes(), token_text_holds),
    ]
}

#[test]
fn no_flipped_bit_holds() {
    for (bytes, holds) in specimens() {
        assert!(holds(&bytes));
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[position] ^= 1 << bit;
                assert!(!holds(&changed), "bit {bit} of byte {position}");
            }
        }
    }
}

#[test]
fn nothing_cut_off_or_put_on_holds() {
    for (bytes, holds) in specimens() {
        for length in 0..bytes.len() {
            assert!(!holds(&bytes[..length]), "cut to {length}");
            let mut shorter = bytes.clone();
            shorter.remove(length);
            assert!(!holds(&shorter), "without byte {length}");
        }
        for extra in [0, 1, b'a', 0xff] {
            assert!(!holds(&[&bytes[..], &[extra]].concat()), "with {extra}");
        }
    }
}

#[test]
fn each_purpose_is_its_own() {
    for signed_for in Domain::ALL {
        let envelope = Envelope::seal(&person(1), &signed_for, &7u8).unwrap();
        for opened_for in Domain::ALL {
            let opened = envelope.open::<u8>(&opened_for).is_ok();
            assert_eq!(opened, signed_for == opened_for);
        }
    }
}

proptest! {
    #[test]
    fn no_rewritten_bytes_hold(
        which in any::<Index>(),
        edits in vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let specimens = specimens();
        let (bytes, holds) = which.get(&specimens);
        let mut changed = bytes.clone();
        for (position, value) in edits {
            let position = position.index(changed.len());
            changed[position] = value;
        }
        prop_assert_eq!(holds(&changed), changed == *bytes);
    }

    #[test]
    fn decoding_arbitrary_bytes_never_panics(
        bytes in vec(any::<u8>(), 0..600),
        plausible in any::<bool>(),
    ) {
        // Behind a right beginning the decoders come further.
        let start: &[u8] = if plausible { &[1, 2] } else { &[] };
        let bytes = [start, &bytes].concat();
        let _ = Token::decode(&bytes);
        let _ = Envelope::decode(&bytes);
        let _ = Revocation::decode(&bytes);
        let _ = postcard::from_bytes::<Warrant>(&bytes);
        let _ = postcard::from_bytes::<meshwork_identity::AdmissionBook>(&bytes);
        for (_, holds) in specimens() {
            prop_assert!(!holds(&bytes));
        }
    }

    #[test]
    fn parsing_arbitrary_text_never_panics(text in "(mw1|mwt1|mw2)?\\PC{0,80}") {
        let _ = text.parse::<Ticket>();
        let _ = text.parse::<Token>();
        let _ = text.parse::<NodeId>();
        let _ = text.parse::<Scopes>();
        let _ = text.parse::<meshwork_identity::NodeTags>();
        let _ = text.parse::<meshwork_identity::Role>();
        let _ = text.parse::<meshwork_identity::TokenId>();
        if let Ok(resource) = text.parse::<Resource>() {
            prop_assert_eq!(resource.to_string().parse(), Ok(resource));
        }
    }

    #[test]
    fn node_ids_round_trip_in_one_form(seed in any::<[u8; 32]>(), position in 0..52usize) {
        let identity = Identity::from_seed(&seed);
        let id = identity.node_id();
        let text = id.to_string();
        prop_assert_eq!(text.parse::<NodeId>(), Ok(id));
        prop_assert_eq!(NodeId::from_bytes(*id.as_bytes()), Ok(id));
        prop_assert!(id.matches_prefix(&text[..=position]));
        for symbol in "abcdefghijklmnopqrstuvwxyz234567ABCZ0189=".chars() {
            let changed = format!("{}{symbol}{}", &text[..position], &text[position + 1..]);
            prop_assert_eq!(changed.parse::<NodeId>() == Ok(id), changed == text);
        }
    }

    #[test]
    fn the_noise_key_follows_from_the_node_id(seed in any::<[u8; 32]>()) {
        use aws_lc_rs::agreement::{PrivateKey, X25519};
        let identity = Identity::from_seed(&seed);
        let secret = identity.noise_secret();
        let private = PrivateKey::from_private_key(&X25519, secret.as_slice()).unwrap();
        let public = private.compute_public_key().unwrap();
        prop_assert_eq!(public.as_ref(), identity.node_id().noise_public());
    }
}
