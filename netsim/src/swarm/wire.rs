//! What things cost on the wire, in bytes of IP packets: names are 32 bytes there, not 4.

use meshwork_proto::membership::{Key, Message};

use super::ledger::Fact;

/// Headers and seal of one packet: IPv4 20, UDP 8, QUIC 1 + 8 + 2, tag 16.
const PACKET: u64 = 55;
/// Payload of a full packet.
const PAYLOAD: u64 = 1180;
/// Stream frame, request header and length prefixes of one `gossip` call.
const CALL: u64 = 40;
/// A packet with nothing but an acknowledgement.
pub(super) const ACK: u64 = PACKET + 6;
/// The answer to a `gossip` call.
pub(super) const RESPONSE: u64 = PACKET + 16;
/// The close of a connection.
pub(super) const CLOSE: u64 = PACKET + 12;
/// Packets of a handshake by flight: two padded Initials, the proof, and tokens both ways.
pub(super) const FLIGHTS: [u64; 4] = [1228, 1228 + 300, 500 + 1200, 1200];

/// A datagram that carries `message`.
pub(super) fn datagram(message: &Message<u32>) -> u64 {
    PACKET + 3 + size(message)
}

/// Payload of a `gossip` call.
pub(super) fn batch(messages: &[Message<u32>], facts: &[Fact], announcement: u64) -> u64 {
    let messages: u64 = messages.iter().map(size).sum();
    let facts: u64 = facts
        .iter()
        .map(|fact| self::fact(fact, announcement))
        .sum();
    CALL + messages + facts
}

/// Packets that carry so much payload.
pub(super) fn packets(payload: u64) -> u64 {
    payload.div_ceil(PAYLOAD).max(1)
}

/// So much payload in so many packets.
pub(super) fn framed(payload: u64, packets: u64) -> u64 {
    payload + packets * PACKET
}

/// A fact: signer 32, signature 64, body.
fn fact(fact: &Fact, announcement: u64) -> u64 {
    match fact.key {
        Key::Node(_) if fact.whole => announcement,
        Key::Node(_) => 32 + 64 + 32,
        Key::Suspicion { .. } => 32 + 64 + 32 + 20,
        Key::Revocation(_) => 200,
        Key::Psk => 180,
    }
}

fn key(key: &Key<u32>) -> u64 {
    match key {
        Key::Node(_) | Key::Revocation(_) => 33,
        Key::Suspicion { .. } => 65,
        Key::Psk => 1,
    }
}

/// Versions are milliseconds or counters; seven bytes hold either.
const VERSION: u64 = 7;

fn size(message: &Message<u32>) -> u64 {
    match message {
        Message::Ping { .. } => 1 + 5 + VERSION,
        Message::Ack { .. } => 1 + 5,
        Message::PingRequest { .. } => 1 + 5 + 32,
        Message::IndirectAck { .. } => 1 + 5 + 32 + 1,
        Message::Neighbor { .. } => 2,
        Message::Accept | Message::Decline | Message::Leave => 1,
        Message::Summary { .. } => 1 + 10 + 3,
        Message::Buckets { hashes } => 2 + 10 * hashes.len() as u64,
        Message::Keys { keys, .. } => 5 + keys.iter().map(|(k, _)| key(k) + VERSION).sum::<u64>(),
        Message::Want { keys } => 3 + keys.iter().map(key).sum::<u64>(),
    }
}
