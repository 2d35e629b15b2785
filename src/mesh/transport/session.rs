//! The Noise handshake behind quinn's `crypto` traits.

use std::{
    any::Any,
    sync::{Arc, PoisonError, RwLock},
};

use meshwork_identity::{
    NodeId,
    noise::{Handshake, HandshakeConfig, HandshakeError, InitialSalt, LevelSecrets, PskSet},
};
use quinn::{
    ConnectError, ConnectionId,
    crypto::{
        self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
    },
};
use quinn_proto::{
    Side, TransportError, TransportErrorCode, transport_parameters::TransportParameters,
};
use tracing::debug;

use super::{
    initial::{InitialKeys, MIN_FIRST_ID_LEN},
    packet::{keys, packet_keys},
    provider::{CryptoProvider, Outcome},
    stats::Counters,
};

/// Goes to the peer, who may be a stranger, in place of the detail.
const WIRE_REASON: &str = "handshake failed";

/// The provider that secures the mesh.
pub(super) struct NoiseProvider {
    shared: Arc<Shared>,
}

struct Shared {
    version: u32,
    /// Replaced when the PSKs change.
    config: RwLock<Arc<HandshakeConfig>>,
    initial: Arc<InitialKeys>,
    counters: Arc<Counters>,
}

impl NoiseProvider {
    pub(super) fn new(
        version: u32,
        config: HandshakeConfig,
        initial: Arc<InitialKeys>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                version,
                config: RwLock::new(Arc::new(config)),
                initial,
                counters,
            }),
        }
    }
}

impl Shared {
    fn config(&self) -> Arc<HandshakeConfig> {
        self.config
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl CryptoProvider for NoiseProvider {
    fn dialler(
        &self,
        expected: Option<NodeId>,
        outcome: Arc<Outcome>,
    ) -> Arc<dyn crypto::ClientConfig> {
        Arc::new(Dialler {
            shared: self.shared.clone(),
            expected,
            outcome,
        })
    }

    fn listener(&self) -> Arc<dyn crypto::ServerConfig> {
        Arc::new(Listener(self.shared.clone()))
    }

    fn set_psks(&self, psks: PskSet) {
        self.shared.initial.set_psks(&psks);
        let mut config = self
            .shared
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *config = Arc::new(config.with_psks(psks));
    }
}

/// One dial: quinn starts one session from it.
struct Dialler {
    shared: Arc<Shared>,
    expected: Option<NodeId>,
    outcome: Arc<Outcome>,
}

impl crypto::ClientConfig for Dialler {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        if version != self.shared.version {
            return Err(ConnectError::UnsupportedVersion);
        }
        let config = self.shared.config();
        let handshake = Handshake::initiate(config, self.expected, &encode(params))
            .expect("our own first message is far below the limit");
        let mut session = Session::new(self.shared.clone(), handshake, Side::Client);
        session.outcome = Some(self.outcome.clone());
        Ok(Box::new(session))
    }
}

struct Listener(Arc<Shared>);

impl crypto::ServerConfig for Listener {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        // quinn would answer a too short connection id with an error packet, before it knows whether
        // the sender belongs to the mesh.
        if version != self.0.version || dst_cid.len() < MIN_FIRST_ID_LEN {
            Counters::add(&self.0.counters.unknown_initials);
            return Err(UnsupportedVersion);
        }
        Ok(self.0.initial.screening(*dst_cid))
    }

    fn retry_tag(&self, _version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0
            .initial
            .of_attempt(orig_dst_cid)
            .retry_tag(orig_dst_cid, &[packet])
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let handshake = Handshake::respond(self.0.config(), &encode(params));
        Box::new(Session::new(self.0.clone(), handshake, Side::Server))
    }
}

fn encode(params: &TransportParameters) -> Vec<u8> {
    let mut bytes = Vec::new();
    params.write(&mut bytes);
    bytes
}

/// One connection's handshake and keys.
struct Session {
    shared: Arc<Shared>,
    handshake: Handshake,
    side: Side,
    announced: bool,
    /// Secrets of the key phase after the next one that quinn has.
    next: Option<LevelSecrets>,
    phases: u64,
    outcome: Option<Arc<Outcome>>,
    /// What a dial is keyed with, from its first packet on.
    salt: Arc<InitialSalt>,
}

impl Session {
    fn new(shared: Arc<Shared>, handshake: Handshake, side: Side) -> Self {
        Self {
            salt: shared.initial.own(),
            shared,
            handshake,
            side,
            announced: false,
            next: None,
            phases: 0,
            outcome: None,
        }
    }

    /// Keeps the detail on our side and gives the peer a number.
    fn fail(&self, error: HandshakeError) -> TransportError {
        self.shared.counters.count_failure(&error);
        debug!(side = ?self.side, %error, "handshake failed");
        let code = TransportErrorCode::crypto(error.alert());
        if let Some(outcome) = &self.outcome {
            outcome.set(error);
        }
        TransportError {
            code,
            frame: None,
            reason: WIRE_REASON.into(),
        }
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        match side {
            Side::Client => keys(&self.salt.secrets(dst_cid), side, &self.shared.counters),
            Side::Server => self.shared.initial.for_attempt(dst_cid),
        }
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let protocol = self.handshake.protocol()?;
        Some(Box::new(protocol.to_vec()))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.handshake.peer()?))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        !self.handshake.is_complete()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.handshake.read(buf).map_err(|error| self.fail(error))?;
        let ready = self.handshake.protocol().is_some();
        Ok(ready && !std::mem::replace(&mut self.announced, ready))
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(mut bytes) = self.handshake.peer_parameters() else {
            return Ok(None);
        };
        Ok(Some(TransportParameters::read(self.side, &mut bytes)?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let flight = self.handshake.write()?;
        buf.extend_from_slice(&flight.bytes);
        let secrets = flight.keys?;
        let keys = keys(&secrets, self.side, &self.shared.counters);
        if self.handshake.is_complete() {
            self.next = Some(updated(&secrets));
        }
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let secrets = self.next.take()?;
        self.next = Some(updated(&secrets));
        // The first call prepares the first update, each later one executes one and prepares another.
        if self.phases > 0 {
            Counters::add(&self.shared.counters.key_updates);
        }
        self.phases += 1;
        Some(packet_keys(&secrets, self.side, &self.shared.counters))
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        let Some((token, tag)) = payload.split_last_chunk::<16>() else {
            return false;
        };
        let expected = self.salt.retry_tag(orig_dst_cid, &[header, token]);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, tag).is_ok()
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.handshake
            .export(label, context, output)
            .ok_or(ExportKeyingMaterialError)
    }
}

fn updated(secrets: &LevelSecrets) -> LevelSecrets {
    LevelSecrets {
        aead: secrets.aead,
        initiator: secrets.initiator.update(),
        responder: secrets.responder.update(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use meshwork_identity::{Identity, MeshId, Psk, noise::PskSet};

    use super::*;
    use crate::transport::{VERSION, random::SystemEntropy};

    fn provider(n: u8) -> NoiseProvider {
        let psks = PskSet {
            current: Psk::from_bytes([1; 32]),
            previous: None,
        };
        let counters = Arc::<Counters>::default();
        let initial = Arc::new(InitialKeys::new(&psks, true, counters.clone()));
        let (identity, mesh) = (Identity::from_seed(&[n; 32]), MeshId::from_bytes([1; 16]));
        let entropy = Arc::new(SystemEntropy);
        let config = HandshakeConfig::new(&identity, &mesh, VERSION, psks, entropy);
        NoiseProvider::new(VERSION, config, initial, counters)
    }

    /// Two sessions after their handshake, and the keys of the first phase of the dialler.
    fn sessions() -> (Box<dyn crypto::Session>, Box<dyn crypto::Session>, Keys) {
        let params = TransportParameters::read(Side::Server, &mut &[][..]).unwrap();
        let dialler = provider(1).dialler(None, Arc::default());
        let mut client = dialler.start_session(VERSION, "", &params).unwrap();
        let mut server = provider(2).listener().start_session(VERSION, &params);
        let mut pass = |from_client: bool| {
            let (from, to) = if from_client {
                (&mut client, &mut server)
            } else {
                (&mut server, &mut client)
            };
            let mut bytes = Vec::new();
            let keys = from.write_handshake(&mut bytes);
            if !bytes.is_empty() {
                to.read_handshake(&bytes).unwrap();
            }
            keys
        };
        assert!(pass(true).is_none());
        assert!(pass(false).is_some());
        assert!(pass(true).is_some());
        assert!(pass(false).is_none());
        let first = pass(true).unwrap();
        assert!(pass(false).is_some());
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client, server, first)
    }

    fn opens(local: &dyn PacketKey, remote: &dyn PacketKey) -> bool {
        let mut packet = [0; 4 + 20 + 16];
        local.encrypt(1, &mut packet, 4);
        remote
            .decrypt(1, &packet[..4], &mut BytesMut::from(&packet[4..]))
            .is_ok()
    }

    #[test]
    fn each_key_phase_has_keys_of_its_own() {
        let (mut client, mut server, first) = sessions();
        let mut locals = vec![first.packet.local];
        let mut remotes = Vec::new();
        for _ in 0..3 {
            locals.push(client.next_1rtt_keys().unwrap().local);
            remotes.push(server.next_1rtt_keys().unwrap().remote);
        }
        for (phase, local) in locals.iter().enumerate() {
            for (other, remote) in remotes.iter().enumerate() {
                assert_eq!(
                    opens(&**local, &**remote),
                    phase == other + 1,
                    "{phase}, {other}"
                );
            }
        }
    }

    #[test]
    fn a_failure_tells_the_wire_a_number_only() {
        let params = TransportParameters::read(Side::Server, &mut &[][..]).unwrap();
        let other = Identity::from_seed(&[7; 32]).node_id();
        let outcome = Arc::<Outcome>::default();
        let dialler = provider(1).dialler(Some(other), outcome.clone());
        let mut client = dialler.start_session(VERSION, "", &params).unwrap();
        let mut server = provider(2).listener().start_session(VERSION, &params);
        let mut hello = Vec::new();
        client.write_handshake(&mut hello);
        assert!(server.read_handshake(&hello).unwrap());
        let mut reply = Vec::new();
        server.write_handshake(&mut reply);
        let error = client.read_handshake(&reply).unwrap_err();
        assert_eq!(error.code, TransportErrorCode::crypto(42));
        assert_eq!(error.reason, WIRE_REASON);
        let found = Identity::from_seed(&[2; 32]).node_id();
        assert_eq!(
            outcome.take(),
            Some(HandshakeError::UnexpectedPeer {
                expected: other,
                found
            })
        );
    }

    proptest::proptest! {
        #[test]
        fn hostile_parameters_are_an_error_and_no_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100)
        ) {
            let shared = provider(1).shared;
            let mut member = Handshake::initiate(shared.config(), None, &bytes).unwrap();
            let params = TransportParameters::read(Side::Server, &mut &[][..]).unwrap();
            let mut server = provider(2).listener().start_session(VERSION, &params);
            server.read_handshake(&member.write().unwrap().bytes).unwrap();
            let expected = TransportParameters::read(Side::Server, &mut &bytes[..]).is_ok();
            proptest::prop_assert_eq!(server.transport_parameters().is_ok(), expected);
        }
    }
}
