//! The machine against itself, against tampering, and against the vectors.

use proptest::prelude::*;

use super::*;
use crate::{
    Identity, MeshId,
    noise::{Entropy, PskSet, reference},
};

/// "Random" bytes that are all the same: fixed ephemeral keys.
#[derive(Debug)]
struct Fixed(u8);

impl Entropy for Fixed {
    fn fill(&self, out: &mut [u8]) {
        out.fill(self.0);
    }
}

const INITIATOR: u8 = 1;
const RESPONDER: u8 = 2;
const PSK: [u8; 32] = [3; 32];
const MESH: [u8; 16] = [4; 16];
const VERSION: u32 = 0x4d57_0001;

fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

fn psks(current: u8, previous: Option<u8>) -> PskSet {
    let psk = |byte| Psk::from_bytes([byte; 32]);
    PskSet {
        current: psk(current),
        previous: previous.map(psk),
    }
}

fn config(n: u8) -> HandshakeConfig {
    let entropy = Arc::new(Fixed(n + 0x10));
    HandshakeConfig::new(
        &identity(n),
        &MeshId::from_bytes(MESH),
        VERSION,
        psks(3, None),
        entropy,
    )
}

struct Pair {
    initiator: Handshake,
    responder: Handshake,
}

fn pair(initiator: HandshakeConfig, responder: HandshakeConfig) -> Pair {
    let expected = Some(identity(RESPONDER).node_id());
    Pair {
        initiator: Handshake::initiate(Arc::new(initiator), expected, b"client").unwrap(),
        responder: Handshake::respond(Arc::new(responder), b"server"),
    }
}

fn honest() -> Pair {
    pair(config(INITIATOR), config(RESPONDER))
}

/// Who got stuck on which message, with an error or waiting for the rest of a frame.
type Stuck = (usize, Option<HandshakeError>);

/// The secrets of a run, in the order of their appearance. `alter` may change each message on its
/// way: message 1, message 2, confirm, message 3.
fn run(
    pair: &mut Pair,
    mut alter: impl FnMut(usize, &mut Vec<u8>),
) -> Result<[LevelSecrets; 4], Stuck> {
    let mut secrets = Vec::new();
    let mut pass = |index: usize, from: &mut Handshake, to: &mut Handshake| {
        let mut flight = from.write().ok_or((index.saturating_sub(1), None))?;
        secrets.extend(flight.keys.take());
        alter(index, &mut flight.bytes);
        to.read(&flight.bytes).map_err(|error| (index, Some(error)))
    };
    let Pair {
        initiator,
        responder,
    } = pair;
    pass(0, initiator, responder)?;
    pass(1, responder, initiator)?;
    let initiator_hs = initiator.write().ok_or((1, None))?;
    pass(2, responder, initiator)?;
    pass(3, initiator, responder)?;
    let responder_ap = responder.write().ok_or((3, None))?;
    assert!(initiator.write().is_none() && responder.write().is_none());
    secrets.insert(1, initiator_hs.keys.unwrap());
    secrets.extend(responder_ap.keys);
    Ok(secrets.try_into().unwrap())
}

fn failure(pair: &mut Pair) -> (usize, HandshakeError) {
    let (index, error) = run(pair, |_, _| {}).unwrap_err();
    (index, error.unwrap())
}

fn same(a: &LevelSecrets, b: &LevelSecrets) -> bool {
    let keys = |secret: &Secret| (secret.packet(a.aead).key, secret.header(a.aead));
    a.aead == b.aead
        && keys(&a.initiator) == keys(&b.initiator)
        && keys(&a.responder) == keys(&b.responder)
}

fn export(handshake: &Handshake) -> [u8; 32] {
    let mut key = [0; 32];
    handshake.export(b"label", b"context", &mut key).unwrap();
    key
}

#[test]
fn both_sides_end_with_the_same_secrets_and_know_each_other() {
    let mut pair = honest();
    let [responder_hs, initiator_hs, initiator_ap, responder_ap] =
        run(&mut pair, |_, _| {}).unwrap();
    assert!(same(&initiator_hs, &responder_hs));
    assert!(same(&initiator_ap, &responder_ap));
    assert!(!same(&initiator_hs, &initiator_ap));
    let Pair {
        initiator,
        responder,
    } = pair;
    assert!(initiator.is_complete() && responder.is_complete());
    assert_eq!(initiator.peer(), Some(identity(RESPONDER).node_id()));
    assert_eq!(responder.peer(), Some(identity(INITIATOR).node_id()));
    assert_eq!(initiator.peer_parameters(), Some(&b"server"[..]));
    assert_eq!(responder.peer_parameters(), Some(&b"client"[..]));
    assert_eq!(initiator.protocol(), responder.protocol());
    assert_eq!(export(&initiator), export(&responder));
}

#[test]
fn the_stream_may_be_cut_anywhere() {
    let mut initiator = honest().initiator;
    let hello = initiator.write().unwrap().bytes;
    for cut in 0..=hello.len() {
        let mut responder = honest().responder;
        responder.read(&hello[..cut]).unwrap();
        assert_eq!(responder.protocol().is_some(), cut == hello.len());
        if cut < hello.len() {
            responder.read(&hello[cut..]).unwrap();
        }
        assert!(responder.write().is_some());
    }
}

#[test]
fn no_altered_byte_completes() {
    let mut lengths = [0; 4];
    run(&mut honest(), |index, bytes| lengths[index] = bytes.len()).unwrap();
    let mut alterations = 0;
    for (message, length) in lengths.into_iter().enumerate() {
        for position in 0..length {
            for mask in [0x01, 0x80, 0xff] {
                let mut pair = honest();
                let result = run(&mut pair, |index, bytes| {
                    if index == message {
                        bytes[position] ^= mask;
                    }
                });
                let (index, _) = result.expect_err("an altered message");
                assert_eq!(index, message, "byte {position}");
                assert!(!pair.responder.is_complete());
                alterations += 1;
            }
        }
    }
    assert!(alterations > 1000, "{alterations}");
}

#[test]
fn no_extended_message_completes() {
    for message in 0..4 {
        for extra in [1, 100, 5000] {
            let mut pair = honest();
            let result = run(&mut pair, |index, bytes| {
                if index == message {
                    bytes.resize(bytes.len() + extra, 0);
                }
            });
            let (index, error) = result.unwrap_err();
            assert_eq!(index, message);
            assert!(
                matches!(error, Some(HandshakeError::Malformed(_))),
                "{error:?}"
            );
        }
    }
}

#[test]
fn a_failed_machine_accepts_nothing_more() {
    let Pair {
        mut initiator,
        mut responder,
    } = honest();
    let hello = initiator.write().unwrap().bytes;
    responder.read(&[0, 0]).unwrap_err();
    responder.read(&hello).unwrap_err();
    assert!(responder.write().is_none());

    let mut pair = honest();
    run(&mut pair, |_, _| {}).unwrap();
    for side in [&mut pair.initiator, &mut pair.responder] {
        assert_eq!(
            side.read(&[0]),
            Err(HandshakeError::Malformed("bytes after the handshake"))
        );
    }
}

#[test]
fn a_frame_above_the_limit_is_refused_before_it_arrives() {
    let mut responder = honest().responder;
    let announced = u16::try_from(MAX_FRAME + 1).unwrap().to_be_bytes();
    assert_eq!(
        responder.read(&announced),
        Err(HandshakeError::Malformed("frame too long"))
    );
}

#[test]
fn other_psks_meshes_and_versions_share_no_transcript() {
    let refused = |config| failure(&mut pair(config, self::config(RESPONDER)));
    let mut other = config(INITIATOR);
    other.psks = psks(9, None);
    assert_eq!(refused(other), (0, HandshakeError::UnknownPsk));
    for (mesh, version) in [([9; 16], VERSION), (MESH, VERSION + 1)] {
        let (mesh, entropy) = (MeshId::from_bytes(mesh), Arc::new(Fixed(0x11)));
        let other =
            HandshakeConfig::new(&identity(INITIATOR), &mesh, version, psks(3, None), entropy);
        assert_eq!(refused(other), (0, HandshakeError::UnknownPsk));
    }
}

#[test]
fn the_previous_psk_is_accepted_but_not_dialled_with() {
    let mut rotating = config(RESPONDER);
    rotating.psks = psks(8, Some(3));
    run(&mut pair(config(INITIATOR), rotating.clone()), |_, _| {}).unwrap();
    let mut newer = config(INITIATOR);
    newer.psks = psks(8, Some(3));
    run(&mut pair(newer.clone(), rotating), |_, _| {}).unwrap();
    let result = failure(&mut pair(newer, config(RESPONDER)));
    assert_eq!(result, (0, HandshakeError::UnknownPsk));
}

#[test]
fn an_unexpected_peer_never_learns_who_dialled() {
    let expected = identity(7).node_id();
    let mut pair = honest();
    pair.initiator =
        Handshake::initiate(Arc::new(config(INITIATOR)), Some(expected), b"client").unwrap();
    let found = identity(RESPONDER).node_id();
    assert_eq!(
        failure(&mut pair),
        (1, HandshakeError::UnexpectedPeer { expected, found })
    );
    assert!(pair.initiator.write().is_none());
}

#[test]
fn nobody_can_claim_another_identity() {
    let victim = identity(7).node_id();
    let mut liar = config(RESPONDER);
    liar.identity = victim;
    let mut lied_to = pair(config(INITIATOR), liar);
    assert_eq!(failure(&mut lied_to), (1, HandshakeError::BadBinding));
    let mut liar = config(INITIATOR);
    liar.identity = victim;
    let mut lied_to = pair(liar, config(RESPONDER));
    assert_eq!(failure(&mut lied_to), (3, HandshakeError::BadBinding));
    assert_eq!(lied_to.responder.peer(), None);
}

#[test]
fn the_callback_decides_about_proven_peers() {
    let mut strict = config(RESPONDER);
    let refused = identity(INITIATOR).node_id();
    strict.authorize = Arc::new(move |peer| *peer != refused);
    let mut pair = pair(config(INITIATOR), strict);
    assert_eq!(
        failure(&mut pair),
        (3, HandshakeError::NotAuthorized(refused))
    );
    assert!(pair.responder.write().is_none(), "no application keys");
}

#[test]
fn nothing_in_common_is_refused() {
    let mut other = config(INITIATOR);
    other.protocols = vec![b"meshwork/9".to_vec()];
    let result = failure(&mut pair(other, config(RESPONDER)));
    assert_eq!(result, (0, HandshakeError::NoCommonProtocol));
    let mut other = config(INITIATOR);
    other.aeads = vec![];
    let result = failure(&mut pair(other, config(RESPONDER)));
    assert_eq!(result, (0, HandshakeError::NoCommonAead));
}

#[test]
fn a_responder_cannot_choose_what_was_not_offered() {
    let mut offers_one = config(INITIATOR);
    offers_one.aeads = vec![Aead::ChaCha20Poly1305];
    let Pair {
        mut initiator,
        mut responder,
    } = pair(offers_one, config(RESPONDER));
    let payload = open_hello(&mut responder, &mut initiator);
    assert_eq!(Fields::parse(&payload).unwrap().aeads, Some(&[2u8][..]));
    let mut reply = Vec::new();
    payload::push(&mut reply, payload::PARAMETERS, b"server").unwrap();
    payload::push(&mut reply, payload::PROTOCOLS, b"\x0ameshwork/1").unwrap();
    payload::push(&mut reply, payload::AEADS, &[Aead::Aes128Gcm as u8]).unwrap();
    payload::push(
        &mut reply,
        payload::IDENTITY,
        responder.config.identity.as_bytes(),
    )
    .unwrap();
    let reply = responder.seal(&reply).unwrap();
    assert_eq!(initiator.read(&reply), Err(HandshakeError::NoCommonAead));
}

/// Reads message 1 without answering it.
fn open_hello(responder: &mut Handshake, initiator: &mut Handshake) -> Vec<u8> {
    responder
        .open_hello(&initiator.write().unwrap().bytes[2..])
        .unwrap()
        .to_vec()
}

#[test]
fn missing_parameters_have_their_own_alert() {
    let mut responder = honest().responder;
    let mut initiator = Handshake::new(Arc::new(config(INITIATOR)), State::Reply, b"");
    let hello = initiator.seal(&[]).unwrap();
    let error = responder.read(&hello).unwrap_err();
    assert_eq!(
        (error.alert(), error),
        (109, HandshakeError::MissingParameters)
    );
}

#[test]
fn a_point_of_small_order_is_refused() {
    // 0 and 1 are points of small order; the one who sends them knows the PSK.
    for first in [0, 1] {
        let mut point = [0; 32];
        point[0] = first;
        let mut state = reference::Symmetric::new(&config(RESPONDER).prologue);
        state.hello(&PSK, &point);
        let mut payload = Vec::new();
        payload::push(&mut payload, payload::PARAMETERS, b"client").unwrap();
        payload::push(&mut payload, payload::PROTOCOLS, b"\x0ameshwork/1").unwrap();
        payload::push(&mut payload, payload::AEADS, &[1]).unwrap();
        let message = [&point[..], &state.seal(&payload)].concat();
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        let mut responder = honest().responder;
        let error = responder
            .read(&[&length[..], &message].concat())
            .unwrap_err();
        assert_eq!(error, HandshakeError::Malformed("a key of small order"));
        assert!(responder.write().is_none());
    }
}

#[test]
fn the_slower_processor_chooses_the_cipher() {
    use Aead::{Aes128Gcm as Aes, ChaCha20Poly1305 as ChaCha};
    let choose = |ours: &[Aead], offered: &[Aead]| {
        let numbers: Vec<u8> = offered.iter().map(|aead| *aead as u8).collect();
        choose_aead(ours, &numbers)
    };
    assert_eq!(choose(&[Aes, ChaCha], &[Aes, ChaCha]), Some(Aes));
    assert_eq!(choose(&[Aes, ChaCha], &[ChaCha, Aes]), Some(ChaCha));
    assert_eq!(choose(&[ChaCha, Aes], &[Aes, ChaCha]), Some(ChaCha));
    assert_eq!(choose(&[ChaCha, Aes], &[Aes]), Some(Aes));
    assert_eq!(choose(&[Aes], &[ChaCha]), None);
    assert_eq!(
        choose_aead(&[Aes], &[99, 1]),
        Some(Aes),
        "unknown numbers are skipped"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(chunks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..200), 1..4))
    {
        for mut side in [honest().initiator, honest().responder] {
            for chunk in &chunks {
                if side.read(chunk).is_err() {
                    break;
                }
            }
            prop_assert!(!side.is_complete());
        }
    }
}

mod vectors;
