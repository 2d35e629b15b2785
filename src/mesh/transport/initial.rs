//! Keys of Initial packets, and the screening of first packets from unknown senders.
//!
//! quinn asks for keys by the first destination connection id, removes the header protection, and
//! only much later (after a Retry, if it wants one) opens the packet. So the screening happens inside
//! "remove the header protection": a packet that opens under none of our PSKs leaves it with its
//! reserved bits set, which quinn drops without an answer and before it keeps any state.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::BytesMut;
use meshwork_identity::noise::{InitialSalt, LevelSecrets, PskSet};
use quinn::{
    ConnectionId,
    crypto::{CryptoError, HeaderKey, KeyPair, Keys, PacketKey},
};
use quinn_proto::Side;

use super::{
    packet::{Headers, Packets, SAMPLE_LEN, keys, packet_number_len},
    stats::Counters,
};

/// The bits of a long header's first byte that must be zero (RFC 9000 §17.2).
const RESERVED_BITS: u8 = 0x0c;
/// Shortest first destination connection id (RFC 9000 §7.2).
pub(super) const MIN_FIRST_ID_LEN: usize = 8;
/// How many connection attempts under the previous PSK are remembered. An attempt that falls out of
/// this memory before its handshake is done fails by time-out; it takes a flood by members to get
/// there, during a rotation.
const PREVIOUS_MEMORY: usize = 1024;

/// The Initial keys of a node: one salt for each accepted PSK, or the public one.
pub(super) struct InitialKeys {
    salts: Vec<InitialSalt>,
    /// First connection ids of attempts that opened under a salt other than the first.
    previous: Mutex<VecDeque<(ConnectionId, usize)>>,
    counters: Arc<Counters>,
}

impl InitialKeys {
    pub(super) fn new(psks: &PskSet, keyed: bool, counters: Arc<Counters>) -> Self {
        let salts = if keyed {
            psks.accepted()
                .map(|psk| InitialSalt::keyed(psk.as_bytes()))
                .collect()
        } else {
            vec![InitialSalt::open()]
        };
        Self {
            salts,
            previous: Mutex::default(),
            counters,
        }
    }

    /// The salt that we dial with.
    pub(super) fn own(&self) -> &InitialSalt {
        &self.salts[0]
    }

    /// The salt that opened the attempt with this first connection id.
    pub(super) fn of_attempt(&self, id: &ConnectionId) -> &InitialSalt {
        let previous = self.previous.lock().unwrap_or_else(PoisonError::into_inner);
        let index = previous
            .iter()
            .find(|(known, _)| known == id)
            .map_or(0, |(_, index)| *index);
        &self.salts[index]
    }

    /// Keys of the listener for the attempt with this first connection id.
    pub(super) fn for_attempt(&self, id: &ConnectionId) -> Keys {
        keys(
            &self.of_attempt(id).secrets(id),
            Side::Server,
            &self.counters,
        )
    }

    /// Keys for a first packet that is still unscreened.
    pub(super) fn screening(self: &Arc<Self>, id: ConnectionId) -> Keys {
        let screen = Arc::new(Screen {
            initial: self.clone(),
            id,
            accepted: OnceLock::new(),
        });
        let half = |local| Half {
            screen: screen.clone(),
            local,
        };
        Keys {
            header: KeyPair {
                local: Box::new(half(true)),
                remote: Box::new(half(false)),
            },
            packet: KeyPair {
                local: Box::new(half(true)),
                remote: Box::new(half(false)),
            },
        }
    }

    /// Which salt opens this first packet of a client, if any. `packet` is one QUIC packet with its
    /// header still protected. On success its header is unprotected.
    pub(super) fn find(
        &self,
        id: &[u8],
        pn_offset: usize,
        packet: &mut [u8],
    ) -> Option<(usize, LevelSecrets)> {
        self.salts.iter().enumerate().find_map(|(index, salt)| {
            let secrets = salt.secrets(id);
            let mut copy = packet.to_vec();
            Headers::new(secrets.aead, &secrets.initiator).decrypt(pn_offset, &mut copy);
            let header_len = pn_offset + packet_number_len(copy[0]);
            let (header, payload) = copy.split_at_mut(header_len);
            // The packet number of a first packet is what its bytes say (RFC 9000 §A.3).
            let number = header[pn_offset..]
                .iter()
                .fold(0, |n, byte| n << 8 | u64::from(*byte));
            let packets = Packets::new(secrets.aead, &secrets.initiator, &self.counters);
            packets.open(number, header, payload)?;
            packet[..header_len].copy_from_slice(header);
            Some((index, secrets))
        })
    }

    /// Keeps which salt opened an attempt. One entry for each id: an outsider who replays a recorded
    /// first packet must not push the others out.
    pub(super) fn remember(&self, id: ConnectionId, index: usize) {
        if index == 0 {
            return;
        }
        let mut previous = self.previous.lock().unwrap_or_else(PoisonError::into_inner);
        if previous.iter().any(|(known, _)| *known == id) {
            return;
        }
        if previous.len() == PREVIOUS_MEMORY {
            previous.pop_front();
        }
        previous.push_back((id, index));
    }
}

/// A first packet under examination.
struct Screen {
    initial: Arc<InitialKeys>,
    id: ConnectionId,
    /// The keys that opened it.
    accepted: OnceLock<Keys>,
}

impl Screen {
    fn examine(&self, pn_offset: usize, packet: &mut [u8]) {
        let Some((index, secrets)) = self.initial.find(&self.id, pn_offset, packet) else {
            Counters::add(&self.initial.counters.unknown_initials);
            packet[0] |= RESERVED_BITS;
            return;
        };
        self.initial.remember(self.id, index);
        // A second examination would find the same keys.
        let _ = self
            .accepted
            .set(keys(&secrets, Side::Server, &self.initial.counters));
    }

    /// quinn uses no key before it has removed the header protection. Should it ever, the keys of the
    /// current PSK are a safe answer, and a panic at a stranger's packet is none.
    fn keys(&self) -> &Keys {
        self.accepted
            .get_or_init(|| self.initial.for_attempt(&self.id))
    }
}

/// One direction of a [`Screen`], as quinn wants it.
struct Half {
    screen: Arc<Screen>,
    local: bool,
}

impl Half {
    fn header(&self) -> &dyn HeaderKey {
        let pair = &self.screen.keys().header;
        if self.local {
            &*pair.local
        } else {
            &*pair.remote
        }
    }

    fn packet(&self) -> &dyn PacketKey {
        let pair = &self.screen.keys().packet;
        if self.local {
            &*pair.local
        } else {
            &*pair.remote
        }
    }
}

impl HeaderKey for Half {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.screen.examine(pn_offset, packet);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.header().encrypt(pn_offset, packet);
    }

    fn sample_size(&self) -> usize {
        SAMPLE_LEN
    }
}

impl PacketKey for Half {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.packet().encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.packet().decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.packet().tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.packet().confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.packet().integrity_limit()
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Psk;

    use super::*;

    #[test]
    fn a_replayed_first_packet_pushes_no_other_attempt_out() {
        let psk = |n| Psk::from_bytes([n; 32]);
        let psks = PskSet {
            current: psk(1),
            previous: Some(psk(2)),
        };
        let initial = InitialKeys::new(&psks, true, Arc::default());
        let tag = |salt: &InitialSalt| salt.retry_tag(b"", &[]);
        let previous = |id: &_| tag(initial.of_attempt(id)) == tag(&initial.salts[1]);
        let pending = ConnectionId::new(b"pending!");
        initial.remember(pending, 1);
        for _ in 0..2 * PREVIOUS_MEMORY {
            initial.remember(ConnectionId::new(b"replayed"), 1);
        }
        assert!(previous(&pending));
        for n in 0..PREVIOUS_MEMORY {
            initial.remember(ConnectionId::new(&n.to_be_bytes()), 1);
        }
        assert!(!previous(&pending), "the memory is bounded");
        assert_eq!(initial.previous.lock().unwrap().len(), PREVIOUS_MEMORY);
    }
}
