//! Inputs and actions as numbers, for the hash over all that happens.

use meshwork_proto::membership::{Action, Input, Key, Message, Outcome};

use super::rng::mix;

pub(super) fn input_number(input: &Input<u32>) -> u64 {
    let (kind, peer) = match input {
        Input::LinkUp { peer } => (10, *peer),
        Input::LinkDown { peer } => (11, *peer),
        Input::DialFailed { peer } => (12, *peer),
        Input::Message { from, message } => (20 + message_number(message), *from),
        Input::Heard {
            from,
            key,
            version,
            outcome,
        } => {
            let outcome = match outcome {
                Outcome::New { hops } => 1 + u64::from(*hops),
                Outcome::Duplicate => 100,
                Outcome::Old => 101,
                Outcome::Incomplete => 102,
                Outcome::Refused => 103,
            };
            (
                1 << 20 | key_number(key) ^ version << 8 ^ outcome << 50,
                *from,
            )
        }
        Input::Published { key } => (1 << 21 | key_number(key), 0),
        Input::Forgotten { peer } => (13, *peer),
        Input::Leave => (14, 0),
        Input::Timer => (15, 0),
    };
    mix(kind) ^ u64::from(peer)
}

pub(super) fn action_number(action: &Action<u32>) -> u64 {
    let (kind, peer) = match action {
        Action::Send { to, message } => (1000 + message_number(message), *to),
        Action::Tell { to, key } => (1 << 22 | key_number(key), *to),
        Action::Untell { to, key } => (1 << 23 | key_number(key), *to),
        Action::Dial { peer } => (30, *peer),
        Action::Release { peer } => (31, *peer),
        Action::Accuse { accused, version } => (1 << 24 | *version, *accused),
        Action::Refute { above } => (1 << 25 | *above, 0),
        Action::Status { peer, status } => (32 + *status as u64, *peer),
    };
    mix(kind) ^ u64::from(peer)
}

fn key_number(key: &Key<u32>) -> u64 {
    match key {
        Key::Node(node) => u64::from(*node) << 26,
        Key::Suspicion { accused, accuser } => {
            u64::from(*accused) << 26 ^ u64::from(*accuser) << 42 ^ 1 << 63
        }
        Key::Revocation(hash) => u64::from(hash[0]) << 26 ^ 1 << 62,
        Key::Psk => 1 << 61,
    }
}

fn message_number(message: &Message<u32>) -> u64 {
    match message {
        Message::Ping {
            seq,
            version_of_you,
        } => 1 ^ u64::from(*seq) << 8 ^ version_of_you << 40,
        Message::Ack { seq } => 2 ^ u64::from(*seq) << 8,
        Message::PingRequest { seq, target } => 3 ^ u64::from(*seq) << 8 ^ u64::from(*target) << 40,
        Message::IndirectAck { seq, target, alive } => {
            4 ^ u64::from(*seq) << 8 ^ u64::from(*target) << 40 ^ u64::from(*alive) << 62
        }
        Message::Neighbor { urgent } => 5 ^ u64::from(*urgent) << 8,
        Message::Accept => 6,
        Message::Decline => 7,
        Message::Leave => 8,
        Message::Summary { hash, count } => 9 ^ hash << 8 ^ u64::from(*count) << 30,
        Message::Buckets { hashes } => 0x0a ^ hashes.iter().fold(0, |sum, hash| sum ^ hash) << 8,
        Message::Keys { bucket, keys, .. } => {
            0x0b ^ u64::from(*bucket) << 8 ^ (keys.len() as u64) << 16
        }
        Message::Want { keys } => 0x0c ^ (keys.len() as u64) << 8,
    }
}
