//! Recorded sessions with fixed ephemeral keys, derived a second time from the specifications.
//!
//! A deliberate change of the protocol changes `vectors/noise-*.txt`: run the test with
//! `BLESS=1` and look at the difference.

use std::fmt::Write;

use super::*;
use crate::noise::{InitialSalt, reference::*};

/// One session as text: `name value` in hex, a line each.
#[derive(Default, PartialEq)]
struct Record(String);

impl Record {
    fn add(&mut self, name: &str, value: &[u8]) {
        let hex = data_encoding::HEXLOWER.encode(value);
        writeln!(self.0, "{name} {hex}").unwrap();
    }
}

/// Names of one direction's keys, in the order of the file.
fn add_first(record: &mut Record, name: &str, secret: &Secret, aead: Aead) {
    let (now, next) = (secret.packet(aead), secret.update().packet(aead));
    record.add(&format!("{name}.key"), &now.key);
    record.add(&format!("{name}.iv"), &now.iv);
    record.add(&format!("{name}.hp"), &secret.header(aead));
    record.add(&format!("{name}.updated.key"), &next.key);
    record.add(&format!("{name}.updated.iv"), &next.iv);
}

fn add_second(record: &mut Record, name: &str, secret: &[u8; 32], key_len: usize) {
    let updated = derive(secret, "quic ku");
    record.add(
        &format!("{name}.key"),
        &expand(secret, "quic key", b"", key_len),
    );
    record.add(&format!("{name}.iv"), &expand(secret, "quic iv", b"", 12));
    record.add(
        &format!("{name}.hp"),
        &expand(secret, "quic hp", b"", key_len),
    );
    record.add(
        &format!("{name}.updated.key"),
        &expand(&updated, "quic key", b"", key_len),
    );
    record.add(
        &format!("{name}.updated.iv"),
        &expand(&updated, "quic iv", b"", 12),
    );
}

const CONNECTION_ID: &[u8] = b"connection";
const RETRY: &[u8] = b"a retry packet";
const NEGOTIATION: &[u8] = b"a version negotiation packet";

/// What the product computes, and the messages.
fn first(aead: Aead) -> (Record, Vec<Vec<u8>>) {
    let with = |n| {
        let mut config = config(n);
        config.aeads = vec![aead];
        config
    };
    let mut pair = pair(with(INITIATOR), with(RESPONDER));
    let mut messages = Vec::new();
    let [hs, _, ap, _] = run(&mut pair, |_, bytes| messages.push(bytes.clone())).unwrap();
    let mut record = Record::default();
    for (name, message) in ["message1", "message2", "confirm", "message3"]
        .iter()
        .zip(&messages)
    {
        record.add(name, message);
    }
    add_first(&mut record, "handshake.initiator", &hs.initiator, aead);
    add_first(&mut record, "handshake.responder", &hs.responder, aead);
    add_first(&mut record, "application.initiator", &ap.initiator, aead);
    add_first(&mut record, "application.responder", &ap.responder, aead);
    record.add("exported", &export(&pair.initiator));
    for (name, salt) in [
        ("keyed", InitialSalt::keyed(&PSK)),
        ("open", InitialSalt::open()),
    ] {
        let initial = salt.secrets(CONNECTION_ID);
        add_first(
            &mut record,
            &format!("{name}.initiator"),
            &initial.initiator,
            initial.aead,
        );
        add_first(
            &mut record,
            &format!("{name}.responder"),
            &initial.responder,
            initial.aead,
        );
        record.add(
            &format!("{name}.retry"),
            &salt.retry_tag(CONNECTION_ID, &[RETRY]),
        );
        record.add(
            &format!("{name}.negotiation"),
            &salt.negotiation_tag(CONNECTION_ID, NEGOTIATION),
        );
    }
    (record, messages)
}

/// The same from the messages, the secret keys and the specifications.
fn second(aead: Aead, messages: &[Vec<u8>]) -> Record {
    let key_len = if aead == Aead::Aes128Gcm { 16 } else { 32 };
    let (ei, er) = ([INITIATOR + 0x10; 32], [RESPONDER + 0x10; 32]);
    let (si, sr) = (
        identity(INITIATOR).noise_secret(),
        identity(RESPONDER).noise_secret(),
    );
    let [m1, m2, _, m3] = [0, 1, 2, 3].map(|n: usize| &messages[n][2..]);
    let prologue = [&b"meshwork noise"[..], &VERSION.to_be_bytes(), &MESH].concat();

    let mut state = Symmetric::new(&prologue);
    let (e, payload) = m1.split_at(32);
    assert_eq!(e, public(&ei));
    state.hello(&PSK, &public(&ei));
    let offer = state.open(payload);
    // The initiator reveals no identity in message 1.
    assert!(
        !offer
            .windows(32)
            .any(|w| w == identity(INITIATOR).node_id().as_bytes())
    );

    let (e, rest) = m2.split_at(32);
    let (s, payload) = rest.split_at(48);
    assert_eq!(e, public(&er));
    state.mix_hash(e);
    state.mix_key(e);
    state.mix_key(&dh(&er, &public(&ei)));
    assert_eq!(state.open(s), public(&sr));
    state.mix_key(&dh(&sr, &public(&ei)));
    let answer = state.open(payload);
    assert!(answer.ends_with(identity(RESPONDER).node_id().as_bytes()));
    let hs = state.prk();

    let (s, payload) = m3.split_at(48);
    assert_eq!(state.open(s), public(&si));
    state.mix_key(&dh(&si, &public(&er)));
    let proof = state.open(payload);
    assert!(proof.ends_with(identity(INITIATOR).node_id().as_bytes()));
    let ap = state.prk();

    let mut record = Record::default();
    for (name, message) in ["message1", "message2", "confirm", "message3"]
        .iter()
        .zip(messages)
    {
        record.add(name, message);
    }
    add_second(
        &mut record,
        "handshake.initiator",
        &derive(&hs, "c hs"),
        key_len,
    );
    add_second(
        &mut record,
        "handshake.responder",
        &derive(&hs, "s hs"),
        key_len,
    );
    add_second(
        &mut record,
        "application.initiator",
        &derive(&ap, "c ap"),
        key_len,
    );
    add_second(
        &mut record,
        "application.responder",
        &derive(&ap, "s ap"),
        key_len,
    );
    let exporter = derive(&derive(&ap, "exp"), "label");
    record.add(
        "exported",
        &expand(&exporter, "exporter", &hash(&[b"context"]), 32),
    );
    for (name, psk) in [("keyed", &PSK[..]), ("open", b"")] {
        let salt = hmac(b"meshwork1 initial", &[psk]);
        let initial = hmac(&salt, &[CONNECTION_ID]);
        add_second(
            &mut record,
            &format!("{name}.initiator"),
            &derive(&initial, "c in"),
            16,
        );
        add_second(
            &mut record,
            &format!("{name}.responder"),
            &derive(&initial, "s in"),
            16,
        );
        let length = u8::try_from(CONNECTION_ID.len()).unwrap();
        for (purpose, packet) in [("retry", RETRY), ("negotiation", NEGOTIATION)] {
            let key = derive(&salt, purpose);
            let tag = hmac(&key, &[&[length], CONNECTION_ID, packet]);
            record.add(&format!("{name}.{purpose}"), &tag[..16]);
        }
    }
    record
}

fn check(aead: Aead, file: &str) {
    let (first, messages) = first(aead);
    let second = second(aead, &messages);
    for (a, b) in first.0.lines().zip(second.0.lines()) {
        assert_eq!(a, b);
    }
    assert!(first == second, "one record is longer");
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &first.0).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        first.0, committed,
        "the protocol changed; see the top of this file"
    );
}

#[test]
fn a_session_with_aes_matches_its_vectors() {
    check(Aead::Aes128Gcm, "noise-aes128gcm.txt");
}

#[test]
fn a_session_with_chacha_matches_its_vectors() {
    check(Aead::ChaCha20Poly1305, "noise-chacha20poly1305.txt");
}
