//! Probes: datagrams outside QUIC that prove a path and tell each end how the other sees it.
//!
//! `[0x01][key id 8][kind 1][transaction 8][observed address 19][tag 16]`. QUIC packets have the
//! fixed bit or the long bit set in their first byte, so that nobody takes one for the other. The tag
//! is an HMAC-SHA256, cut to 16 bytes, of all before it, under a key from the exporter of a connection
//! between the two; key and key id belong to one direction, so that a probe cannot be reflected. Ping
//! and pong are of one size, so that nobody gets more out of us than was put in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::canonical;

/// First byte of a probe.
const FIRST_BYTE: u8 = 0x01;
/// Bytes that name the key of a probe.
pub const KEY_ID_LEN: usize = 8;
/// Bytes of an address: family, IP, port.
const ADDR_LEN: usize = 1 + 16 + 2;
/// Bytes of a probe before its tag.
pub const SIGNED_LEN: usize = 1 + KEY_ID_LEN + 1 + 8 + ADDR_LEN;
/// Bytes of the tag.
pub const TAG_LEN: usize = 16;
/// Bytes of a probe.
pub const PROBE_LEN: usize = SIGNED_LEN + TAG_LEN;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Asks for a pong.
    Ping,
    /// Answers a ping: same transaction, and the address that the ping came from.
    Pong,
    /// A ping that also says: from now on I send on this path, and you had better, too.
    Move,
    /// A ping over the path that the sender uses.
    Used,
}

/// A probe without its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Names the key of the tag.
    pub key: [u8; KEY_ID_LEN],
    /// What it is for.
    pub kind: ProbeKind,
    /// Counts up with each ping under one key.
    pub transaction: u64,
    /// In a pong over a direct path, where the ping came from.
    pub observed: Option<SocketAddr>,
}

impl Probe {
    /// The bytes that the tag covers.
    pub fn encode(&self) -> [u8; SIGNED_LEN] {
        let mut bytes = [0; SIGNED_LEN];
        bytes[0] = FIRST_BYTE;
        bytes[1..9].copy_from_slice(&self.key);
        bytes[9] = match self.kind {
            ProbeKind::Ping => 1,
            ProbeKind::Pong => 2,
            ProbeKind::Move => 3,
            ProbeKind::Used => 4,
        };
        bytes[10..18].copy_from_slice(&self.transaction.to_be_bytes());
        bytes[18..].copy_from_slice(&encode_addr(self.observed));
        bytes
    }

    /// Reads a datagram: the probe and its tag. `None` for all that is no probe.
    pub fn decode(datagram: &[u8]) -> Option<(Self, [u8; TAG_LEN])> {
        let datagram: &[u8; PROBE_LEN] = datagram.try_into().ok()?;
        let (signed, tag) = datagram.split_at(SIGNED_LEN);
        if signed[0] != FIRST_BYTE {
            return None;
        }
        let kind = match signed[9] {
            1 => ProbeKind::Ping,
            2 => ProbeKind::Pong,
            3 => ProbeKind::Move,
            4 => ProbeKind::Used,
            _ => return None,
        };
        let probe = Self {
            key: signed[1..9].try_into().ok()?,
            kind,
            transaction: u64::from_be_bytes(signed[10..18].try_into().ok()?),
            observed: decode_addr(signed[18..].try_into().ok()?).ok()?,
        };
        Some((probe, tag.try_into().ok()?))
    }

    /// Whether a datagram may be a probe, by its first byte and length.
    pub fn looks_like_one(datagram: &[u8]) -> bool {
        datagram.len() == PROBE_LEN && datagram[0] == FIRST_BYTE
    }
}

fn encode_addr(addr: Option<SocketAddr>) -> [u8; ADDR_LEN] {
    let mut bytes = [0; ADDR_LEN];
    let Some(addr) = addr.map(canonical) else {
        return bytes;
    };
    match addr.ip() {
        IpAddr::V4(ip) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&ip.octets());
        }
    }
    bytes[17..].copy_from_slice(&addr.port().to_be_bytes());
    bytes
}

/// Bytes that [`encode_addr`] does not write.
struct Malformed;

/// The address, if there is one.
fn decode_addr(bytes: &[u8; ADDR_LEN]) -> Result<Option<SocketAddr>, Malformed> {
    let [family, ip @ .., high, low] = *bytes;
    let port = u16::from_be_bytes([high, low]);
    let [a, b, c, d, ..] = ip;
    let addr = match family {
        0 => None,
        4 => Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port)),
        6 => Some(SocketAddr::new(Ipv6Addr::from(ip).into(), port)),
        _ => return Err(Malformed),
    };
    if encode_addr(addr) == *bytes {
        Ok(addr)
    } else {
        Err(Malformed)
    }
}

/// Words of 64 transactions that a [`ReplayWindow`] remembers.
const WINDOW_WORDS: usize = 8;
/// Transactions that it remembers: pings of several seconds, even while all paths are probed.
const WINDOW: u64 = 64 * WINDOW_WORDS as u64;

/// Lets each transaction of a key pass once (as RFC 6479): a recorded ping that is sent again, from
/// wherever, changes nothing.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    /// All above this are new. Transactions start at 1.
    highest: u64,
    seen: [u64; WINDOW_WORDS],
}

impl ReplayWindow {
    /// Whether the transaction is new; it is not any more then.
    pub fn admit(&mut self, transaction: u64) -> bool {
        if transaction == 0 || transaction.saturating_add(WINDOW) <= self.highest {
            return false;
        }
        let word = |number: u64| usize::try_from(number / 64).unwrap_or(0) % WINDOW_WORDS;
        if self.highest == 0 {
            // What was sent before we could read it may have been recorded.
            self.seen = [u64::MAX; WINDOW_WORDS];
            self.seen[word(transaction)] = u64::MAX >> (63 - transaction % 64);
            self.highest = transaction;
            return true;
        }
        if transaction > self.highest {
            let ahead = (transaction / 64).saturating_sub(self.highest / 64);
            for step in 1..=ahead.min(WINDOW_WORDS as u64) {
                self.seen[word(self.highest.saturating_add(64 * step))] = 0;
            }
            self.highest = transaction;
        } else if transaction / 64 + WINDOW_WORDS as u64 <= self.highest / 64 {
            // Its word belongs to later ones already.
            return false;
        }
        let bit = 1 << (transaction % 64);
        let seen = &mut self.seen[word(transaction)];
        let new = *seen & bit == 0;
        *seen |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn probe(observed: Option<&str>) -> Probe {
        Probe {
            key: [7; 8],
            kind: ProbeKind::Pong,
            transaction: 0x0102_0304_0506_0708,
            observed: observed.map(|addr| addr.parse().unwrap()),
        }
    }

    #[test]
    fn the_layout_on_the_wire_is_fixed() {
        let bytes = probe(Some("192.0.2.1:258")).encode();
        let mut expected = [0; SIGNED_LEN];
        expected[0] = 1;
        expected[1..9].fill(7);
        expected[9] = 2;
        expected[10..18].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        expected[18..23].copy_from_slice(&[4, 192, 0, 2, 1]);
        expected[35..].copy_from_slice(&[1, 2]);
        assert_eq!(bytes, expected);
        assert_eq!(PROBE_LEN, 53);
    }

    #[test]
    fn probes_survive_the_wire() {
        for observed in [None, Some("192.0.2.1:7"), Some("[2001:db8::1]:65535")] {
            let datagram = [&probe(observed).encode()[..], &[9; TAG_LEN]].concat();
            assert!(Probe::looks_like_one(&datagram));
            assert_eq!(
                Probe::decode(&datagram),
                Some((probe(observed), [9; TAG_LEN]))
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(mut bytes in prop::collection::vec(any::<u8>(), PROBE_LEN)) {
            bytes[0] = FIRST_BYTE;
            bytes[9] %= 6;
            bytes[18] %= 8;
            if let Some((probe, tag)) = Probe::decode(&bytes) {
                prop_assert_eq!([&probe.encode()[..], &tag].concat(), bytes);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Probe::decode(&bytes);
            let _ = Probe::looks_like_one(&bytes);
        }

        /// Against a set of all that was seen: nothing passes twice, and what is near the highest
        /// passes once.
        #[test]
        fn each_transaction_passes_once(
            steps in prop::collection::vec((0u64..1500, any::<bool>()), 1..200),
        ) {
            let mut window = ReplayWindow::default();
            let (mut seen, mut highest, mut first) = (BTreeSet::new(), 0u64, u64::MAX);
            for (step, ahead) in steps {
                let next = if ahead { highest + step } else { highest.saturating_sub(step) };
                let admitted = window.admit(next);
                if admitted {
                    first = first.min(next);
                    prop_assert!(seen.insert(next), "{} passes twice", next);
                } else if next > first && next + (WINDOW - 64) > highest {
                    prop_assert!(seen.contains(&next), "{} of {} does not pass", next, highest);
                }
                highest = highest.max(next);
            }
        }
    }

    #[test]
    fn the_last_transaction_passes() {
        let mut window = ReplayWindow::default();
        assert!(window.admit(u64::MAX - 1));
        assert!(window.admit(u64::MAX));
        assert!(!window.admit(u64::MAX));
        assert!(!window.admit(0));
    }
}
