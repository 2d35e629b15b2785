//! Golden vectors: what other versions of this program have written must stay readable, so an
//! encoding that changes is a decision. `BLESS=1` writes the files anew.

use std::{env, fs, path::Path};

use data_encoding::HEXLOWER;
use meshwork_identity::{
    AdmissionSecret, Contact, Domain, Envelope, MeshId, Psk, Revocation, Revocations, Revoked,
    Ticket, Token, VerifyContext, Warrant, fingerprint,
};

use crate::common::{NOW, chain, id, notice, person, root_token, verify};

/// Compares with `vectors/NAME.hex`, and returns what is written there.
fn golden(name: &str, actual: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("vectors/{name}.hex"));
    let mut lines: Vec<_> = HEXLOWER.encode(actual).into_bytes();
    lines = lines
        .chunks(96)
        .flat_map(|line| [line, b"\n"].concat())
        .collect();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &lines).unwrap();
    }
    let expected = fs::read(&path).unwrap();
    assert!(
        lines == expected,
        "the encoding of {name} changed: is that meant? Then it needs a new version, and BLESS=1"
    );
    let hex: Vec<_> = expected.into_iter().filter(|b| *b != b'\n').collect();
    HEXLOWER.decode(&hex).unwrap()
}

fn ticket() -> Ticket {
    Ticket {
        mesh: id(0),
        psk: Psk::from_bytes([7; 32]),
        contacts: vec![Contact {
            node: id(1),
            addrs: vec![
                "192.0.2.1:4500".parse().unwrap(),
                "[2001:db8::1]:4500".parse().unwrap(),
            ],
        }],
        admission: AdmissionSecret {
            id: [1; 16],
            secret: [2; 16],
        },
        issuer: id(1),
        expires: NOW,
        role: "agent".parse().unwrap(),
    }
}

#[test]
fn tokens() {
    for (name, token) in [("token-root", root_token()), ("token-chain", chain())] {
        let written = golden(name, &token.encode());
        let read = Token::decode(&written).unwrap();
        assert_eq!(read, token);
        assert!(verify(&read, NOW).is_ok());
        golden(&format!("{name}-text"), token.to_string().as_bytes());
        golden(&format!("{name}-id"), token.id().as_bytes());
    }
}

#[test]
fn tickets() {
    let written = golden("ticket-text", ticket().to_string().as_bytes());
    let text = String::from_utf8(written).unwrap();
    assert_eq!(text.parse(), Ok(ticket()));
}

#[test]
fn envelopes_and_warrants() {
    let content = ("eight GPUs".to_owned(), 80u64);
    let envelope = Envelope::seal(&person(1), &Domain::ANNOUNCEMENT, &content).unwrap();
    let written = golden("envelope", &envelope.encode());
    let read = Envelope::decode(&written).unwrap();
    assert_eq!(read.open(&Domain::ANNOUNCEMENT), Ok(content.clone()));

    let warrant = Warrant::seal(&person(3), chain(), &content).unwrap();
    let written = golden("warrant", &postcard::to_allocvec(&warrant).unwrap());
    let read: Warrant = postcard::from_bytes(&written).unwrap();
    assert_eq!(read.open(), Ok(content));
}

#[test]
fn revocations() {
    let (root, nothing) = (id(0), Revocations::new());
    let context = VerifyContext::new(&root, NOW, &nothing);
    for (name, what) in [
        ("revocation-node", Revoked::Node(id(2))),
        ("revocation-token", Revoked::Token(chain().id())),
    ] {
        let revocation = Revocation::by_authority(&person(0), &notice(what)).unwrap();
        let written = golden(name, &revocation.encode());
        let read = Revocation::decode(&written).unwrap();
        assert_eq!(read.verify(&context).unwrap().what, what);
    }
}

#[test]
fn names() {
    golden("node-id", id(0).to_string().as_bytes());
    golden("mesh-id", MeshId::of(&id(0)).as_bytes());
    golden("fingerprint", fingerprint(&id(0)).as_bytes());
    golden("noise-public", &id(0).noise_public());
}
