//! A member of the mesh on the path, who can open and seal Initial packets of others because all
//! members share the PSK: connection ids that it rewrites end the handshake. Simulated.
//!
//! QUIC compares the ids of the headers with those in the transport parameters, which travel in the
//! Noise payloads and are bound by the transcript.

use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use meshwork_identity::noise::{Aead, InitialSalt, Secret};
use meshwork_mesh::transport::{ConnectError, VERSION};
use meshwork_netsim::{Datagram, Delivery, LinkModel, Sim};

use crate::common::*;

const TAG_LEN: usize = 16;

/// An opened Initial packet (RFC 9000 §17.2.2).
#[derive(Clone)]
struct Initial {
    destination: Vec<u8>,
    source: Vec<u8>,
    number: u8,
    frames: Vec<u8>,
    /// Further packets of the datagram.
    rest: Vec<u8>,
}

fn nonce(secret: &Secret, number: u8) -> Nonce {
    let mut nonce = secret.packet(Aead::Aes128Gcm).iv;
    nonce[11] ^= number;
    Nonce::assume_unique_for_key(nonce)
}

fn key(secret: &Secret) -> LessSafeKey {
    let key = secret.packet(Aead::Aes128Gcm).key;
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap())
}

/// The mask for a packet whose number starts at `offset`.
fn mask(secret: &Secret, packet: &[u8], offset: usize) -> [u8; 5] {
    let key = secret.header(Aead::Aes128Gcm);
    let key = quic::HeaderProtectionKey::new(&quic::AES_128, &key).unwrap();
    key.new_mask(&packet[offset + 4..offset + 20]).unwrap()
}

impl Initial {
    fn is(datagram: &[u8]) -> bool {
        datagram[0] & 0xb0 == 0x80
    }

    /// `None` if it does not open under this secret.
    fn open(datagram: &[u8], secret: &Secret) -> Option<Self> {
        let take = |at: &mut usize| {
            let start = *at + 1;
            *at = start + usize::from(datagram[*at]);
            datagram[start..*at].to_vec()
        };
        let mut at = 5;
        let destination = take(&mut at);
        let source = take(&mut at);
        assert_eq!(take(&mut at), [0u8; 0], "no tokens in these tests");
        // quinn writes the length in two bytes.
        let length = usize::from(u16::from_be_bytes([datagram[at] & 0x3f, datagram[at + 1]]));
        let offset = at + 2;
        let (packet, rest) = datagram.split_at(offset + length);
        let mut packet = packet.to_vec();
        let mask = mask(secret, &packet, offset);
        packet[0] ^= mask[0] & 0x0f;
        let number_len = usize::from(packet[0] & 3) + 1;
        for (byte, mask) in packet[offset..offset + number_len]
            .iter_mut()
            .zip(&mask[1..])
        {
            *byte ^= mask;
        }
        let (header, body) = packet.split_at_mut(offset + number_len);
        let number = *header.last()?;
        let opened = key(secret).open_in_place(nonce(secret, number), Aad::from(header), body);
        let frames = opened.ok()?.to_vec();
        Some(Self {
            destination,
            source,
            number,
            frames,
            rest: rest.to_vec(),
        })
    }

    fn seal(self, secret: &Secret) -> Vec<u8> {
        let mut packet = vec![0xc0];
        packet.extend_from_slice(&VERSION.to_be_bytes());
        for id in [&self.destination, &self.source] {
            packet.push(u8::try_from(id.len()).unwrap());
            packet.extend_from_slice(id);
        }
        let length = u16::try_from(1 + self.frames.len() + TAG_LEN).unwrap();
        packet.push(0);
        packet.extend_from_slice(&(0x4000 | length).to_be_bytes());
        let offset = packet.len();
        packet.push(self.number);
        let mut body = self.frames;
        let header = Aad::from(&packet[..]);
        key(secret)
            .seal_in_place_append_tag(nonce(secret, self.number), header, &mut body)
            .unwrap();
        packet.extend_from_slice(&body);
        let mask = mask(secret, &packet, offset);
        packet[0] ^= mask[0] & 0x0f;
        packet[offset] ^= mask[1];
        packet.extend_from_slice(&self.rest);
        packet
    }
}

/// Which connection id the attacker rewrites. Another first destination id moves the attempt to other
/// keys, too.
#[derive(Clone, Copy, PartialEq)]
enum Rewrite {
    Nothing,
    FirstDestination,
    DiallersSource,
    ListenersSource,
}

/// The attacker between node 1 and node 2.
struct Attacker {
    rewrite: Rewrite,
    /// The first destination id that the dialler chose.
    chosen: Option<Vec<u8>>,
}

fn altered(id: &[u8]) -> Vec<u8> {
    let mut id = id.to_vec();
    id[0] ^= 0xff;
    id
}

impl Attacker {
    fn pass(&mut self, datagram: Datagram<'_>) -> Vec<Delivery> {
        if !Initial::is(datagram.payload) {
            return vec![Delivery::of(datagram.payload)];
        }
        let id_len = usize::from(datagram.payload[5]);
        let chosen = self
            .chosen
            .get_or_insert_with(|| datagram.payload[6..6 + id_len].to_vec())
            .clone();
        let moved = match self.rewrite {
            Rewrite::FirstDestination => altered(&chosen),
            _ => chosen.clone(),
        };
        let salt = InitialSalt::keyed(psk(1).as_bytes());
        let (diallers, listeners) = (salt.secrets(&chosen), salt.secrets(&moved));
        let from_dialler = datagram.from == sim_addr(1);
        let (opening, sealing) = if from_dialler {
            (&diallers.initiator, &listeners.initiator)
        } else {
            (&listeners.responder, &diallers.responder)
        };
        let mut packet = Initial::open(datagram.payload, opening).expect("a member can open it");
        match self.rewrite {
            Rewrite::FirstDestination if packet.destination == chosen => {
                packet.destination.clone_from(&moved);
            }
            Rewrite::DiallersSource if from_dialler => packet.source = altered(&packet.source),
            Rewrite::ListenersSource if !from_dialler => packet.source = altered(&packet.source),
            _ => {}
        }
        vec![Delivery::of(&packet.seal(sealing))]
    }
}

/// Dials through the attacker: the dialler's error, and whether the listener accepted.
fn dial_through(rewrite: Rewrite) -> (Option<ConnectError>, bool) {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        let mut attacker = Attacker {
            rewrite,
            chosen: None,
        };
        net.set_hook(move |datagram| attacker.pass(datagram));
        let (dialled, accepted) = connect_pair(&a, &b, Some(node_id(2))).await;
        (
            dialled.err(),
            accepted.is_some_and(|accepted| accepted.is_ok()),
        )
    })
}

#[test]
fn the_attacker_opens_and_seals_initial_packets() {
    let (dialled, accepted) = dial_through(Rewrite::Nothing);
    assert!(dialled.is_none() && accepted, "{dialled:?}");
}

#[test]
fn each_rewritten_connection_id_ends_the_handshake() {
    let rewrites = [
        Rewrite::FirstDestination,
        Rewrite::DiallersSource,
        Rewrite::ListenersSource,
    ];
    for (n, rewrite) in rewrites.into_iter().enumerate() {
        let (dialled, accepted) = dial_through(rewrite);
        assert!(dialled.is_some(), "rewrite {n}");
        assert!(!accepted, "rewrite {n}");
    }
}

#[test]
fn the_dialler_finds_the_rewritten_first_destination() {
    let (dialled, _) = dial_through(Rewrite::FirstDestination);
    let Some(ConnectError::Connection { source, .. }) = dialled else {
        panic!("{dialled:?}");
    };
    let quinn::ConnectionError::TransportError(error) = source else {
        panic!("{source}");
    };
    assert_eq!(
        error.code,
        quinn::TransportErrorCode::TRANSPORT_PARAMETER_ERROR
    );
}

#[test]
fn a_flood_by_a_member_from_spoofed_addresses_is_bounded() {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b.clone());
        let (send, mut first) = tokio::sync::mpsc::unbounded_channel();
        net.set_hook(move |datagram| {
            let _ = send.send(datagram.payload.to_vec());
            vec![Delivery::of(datagram.payload)]
        });
        let _friend = a.connect(sim_addr(2), Some(node_id(2))).await.unwrap();
        net.clear_hook();
        let first = first.recv().await.unwrap();
        let salt = InitialSalt::keyed(psk(1).as_bytes());
        let opened = Initial::open(&first, &salt.secrets(&first[6..22]).initiator).unwrap();
        for n in 0..2_000u16 {
            let mut spoofed = opened.clone();
            spoofed.destination[..2].copy_from_slice(&n.to_be_bytes());
            let packet = spoofed
                .clone()
                .seal(&salt.secrets(&spoofed.destination).initiator);
            net.inject(([10, 2, 0, 1], n + 1).into(), sim_addr(2), &packet);
            if n % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let late_friend = sim_endpoint(&net, 3, config(3));
        let connection = late_friend
            .connect(sim_addr(2), Some(node_id(2)))
            .await
            .unwrap();
        round_trip(&connection, b"served").await.unwrap();
        // 64 spoofed attempts are pending, the rest were asked to prove their address.
        assert!(b.stats().retries_sent >= 1_900, "{:?}", b.stats());
        assert!(b.open_connections() <= 70, "{}", b.open_connections());
    });
}

/// Dials while somebody on the path is faster than the listener with a datagram of its own, made by
/// `forge` from the first destination id and the dialler's source id.
fn dial_with_forgery(forge: impl Fn(&[u8], &[u8]) -> Vec<u8>) -> Option<ConnectError> {
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async move {
        let (a, b) = (
            sim_endpoint(&net, 1, config(1)),
            sim_endpoint(&net, 2, config(2)),
        );
        serve_echo(b);
        let (send, mut first) = tokio::sync::mpsc::unbounded_channel();
        net.set_hook(move |datagram| {
            let _ = send.send(datagram.payload.to_vec());
            let delay = Duration::from_millis(50);
            vec![Delivery {
                payload: datagram.payload.to_vec(),
                delay,
            }]
        });
        let dial = tokio::spawn(async move { a.connect(sim_addr(2), Some(node_id(2))).await });
        let first = first.recv().await.unwrap();
        assert_eq!((first[5], first[22]), (16, 8), "the ids' lengths");
        net.inject(
            sim_addr(2),
            sim_addr(1),
            &forge(&first[6..22], &first[23..31]),
        );
        dial.await.unwrap().err()
    })
}

/// A Retry packet. `tag` makes its last 16 bytes from the first destination id and the packet.
fn dial_with_forged_retry(tag: impl Fn(&[u8], &[u8]) -> [u8; TAG_LEN]) -> Option<ConnectError> {
    dial_with_forgery(|destination, source| {
        let mut retry = vec![0xf0];
        retry.extend_from_slice(&VERSION.to_be_bytes());
        for id in [source, b"attacker"] {
            retry.push(8);
            retry.extend_from_slice(id);
        }
        retry.extend_from_slice(b"a token");
        retry.extend_from_slice(&tag(destination, &retry));
        retry
    })
}

#[test]
fn an_outsiders_retry_is_ignored() {
    let foreign = InitialSalt::keyed(psk(9).as_bytes());
    let error = dial_with_forged_retry(|id, packet| foreign.retry_tag(id, &[packet]));
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn a_members_retry_ends_the_handshake() {
    let ours = InitialSalt::keyed(psk(1).as_bytes());
    let error = dial_with_forged_retry(|id, packet| ours.retry_tag(id, &[packet]));
    assert!(
        matches!(error, Some(ConnectError::Connection { .. })),
        "{error:?}"
    );
}

/// A version negotiation packet that offers another version only.
fn dial_with_forged_negotiation(salt: Option<&InitialSalt>) -> Option<ConnectError> {
    dial_with_forgery(|destination, source| {
        let mut packet = vec![0xc0, 0, 0, 0, 0, 8];
        packet.extend_from_slice(source);
        packet.push(16);
        packet.extend_from_slice(destination);
        packet.extend_from_slice(&(VERSION + 1).to_be_bytes());
        if let Some(salt) = salt {
            let tag = salt.negotiation_tag(destination, &packet);
            packet.extend_from_slice(&tag);
        }
        packet
    })
}

#[test]
fn an_outsiders_version_negotiation_is_ignored() {
    let foreign = InitialSalt::keyed(psk(9).as_bytes());
    for salt in [None, Some(&foreign)] {
        let error = dial_with_forged_negotiation(salt);
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn a_members_version_negotiation_ends_the_dial() {
    let ours = InitialSalt::keyed(psk(1).as_bytes());
    let error = dial_with_forged_negotiation(Some(&ours));
    assert!(
        matches!(error, Some(ConnectError::VersionMismatch)),
        "{error:?}"
    );
}
