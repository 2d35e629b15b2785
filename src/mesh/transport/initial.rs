//! Keys of Initial packets, and the screening of first packets from unknown senders.
//!
//! quinn asks for keys by the first destination connection id, removes the header protection, and
//! only much later (after a Retry, if it wants one) opens the packet. So the screening happens inside
//! "remove the header protection": a packet that opens under none of our PSKs leaves it with its
//! reserved bits set, which quinn drops without an answer and before it keeps any state.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
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
/// How many connection attempts are remembered while two PSKs are accepted. An attempt that falls out
/// of this memory before its handshake is done fails by time-out; it takes a flood by members to get
/// there, during a rotation.
const ATTEMPTS_REMEMBERED: usize = 1024;

/// The Initial keys of a node: one salt for each accepted PSK, or the public one.
pub(super) struct InitialKeys {
    /// Whether the salts follow the PSKs.
    keyed: bool,
    /// The first is the one to dial with. Replaced as a whole when the PSKs change.
    salts: RwLock<Arc<[Arc<InitialSalt>]>>,
    /// First connection ids of attempts, with the salt that opened each: those that came while more
    /// than one salt was accepted, so that a change of the salts leaves them as they are.
    attempts: Mutex<VecDeque<(ConnectionId, Arc<InitialSalt>)>>,
    counters: Arc<Counters>,
}

impl InitialKeys {
    pub(super) fn new(psks: &PskSet, keyed: bool, counters: Arc<Counters>) -> Self {
        Self {
            keyed,
            salts: RwLock::new(salts(psks, keyed)),
            attempts: Mutex::default(),
            counters,
        }
    }

    /// Follows a change of the PSKs. Attempts and connections under way keep what they began with.
    pub(super) fn set_psks(&self, psks: &PskSet) {
        *self.salts.write().unwrap_or_else(PoisonError::into_inner) = salts(psks, self.keyed);
    }

    fn salts(&self) -> Arc<[Arc<InitialSalt>]> {
        self.salts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The salt that we dial with.
    pub(super) fn own(&self) -> Arc<InitialSalt> {
        self.salts()[0].clone()
    }

    /// The salt that opened the attempt with this first connection id.
    pub(super) fn of_attempt(&self, id: &ConnectionId) -> Arc<InitialSalt> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = attempts.iter().find(|(known, _)| known == id);
        known.map_or_else(|| self.own(), |(_, salt)| salt.clone())
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
    ) -> Option<(Arc<InitialSalt>, LevelSecrets)> {
        self.salts().iter().find_map(|salt| {
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
            Some((salt.clone(), secrets))
        })
    }

    /// Keeps which salt opened an attempt. One entry for each id: an outsider who replays a recorded
    /// first packet must not push the others out.
    pub(super) fn remember(&self, id: ConnectionId, salt: Arc<InitialSalt>) {
        if self.salts().len() == 1 {
            return;
        }
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.iter().any(|(known, _)| *known == id) {
            return;
        }
        if attempts.len() == ATTEMPTS_REMEMBERED {
            attempts.pop_front();
        }
        attempts.push_back((id, salt));
    }
}

fn salts(psks: &PskSet, keyed: bool) -> Arc<[Arc<InitialSalt>]> {
    if !keyed {
        return Arc::new([Arc::new(InitialSalt::open())]);
    }
    psks.accepted()
        .map(|psk| Arc::new(InitialSalt::keyed(psk.as_bytes())))
        .collect()
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
        let Some((salt, secrets)) = self.initial.find(&self.id, pn_offset, packet) else {
            Counters::add(&self.initial.counters.unknown_initials);
            packet[0] |= RESERVED_BITS;
            return;
        };
        self.initial.remember(self.id, salt);
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

    fn psk(n: u8) -> Psk {
        Psk::from_bytes([n; 32])
    }

    fn tag(salt: &InitialSalt) -> [u8; 16] {
        salt.retry_tag(b"", &[])
    }

    #[test]
    fn a_replayed_first_packet_pushes_no_other_attempt_out() {
        let psks = PskSet {
            current: psk(1),
            previous: Some(psk(2)),
        };
        let initial = InitialKeys::new(&psks, true, Arc::default());
        let second = initial.salts()[1].clone();
        let previous = |id: &_| tag(&initial.of_attempt(id)) == tag(&second);
        let pending = ConnectionId::new(b"pending!");
        initial.remember(pending, second.clone());
        for _ in 0..2 * ATTEMPTS_REMEMBERED {
            initial.remember(ConnectionId::new(b"replayed"), second.clone());
        }
        assert!(previous(&pending));
        for n in 0..ATTEMPTS_REMEMBERED {
            initial.remember(ConnectionId::new(&n.to_be_bytes()), second.clone());
        }
        assert!(!previous(&pending), "the memory is bounded");
        assert_eq!(initial.attempts.lock().unwrap().len(), ATTEMPTS_REMEMBERED);
    }

    #[test]
    fn an_attempt_keeps_its_salt_while_the_psks_change() {
        let set = |current, previous: Option<u8>| PskSet {
            current: psk(current),
            previous: previous.map(psk),
        };
        let initial = InitialKeys::new(&set(1, Some(2)), true, Arc::default());
        let attempts = [b"attempt1", b"attempt2"].map(|id| ConnectionId::new(id));
        let began = initial.salts();
        for (id, salt) in attempts.iter().zip(began.iter()) {
            initial.remember(*id, salt.clone());
        }
        for step in [set(2, Some(1)), set(2, None)] {
            initial.set_psks(&step);
            assert_eq!(tag(&initial.own()), tag(&began[1]));
            for (id, salt) in attempts.iter().zip(began.iter()) {
                assert_eq!(tag(&initial.of_attempt(id)), tag(salt));
            }
        }
        assert_eq!(initial.salts().len(), 1);
    }
}
