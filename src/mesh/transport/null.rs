//! A provider that protects nothing: the handshake's shape without its cryptography.
//!
//! It measures what Noise costs and lets simulations run thousands of nodes. Both ends state their
//! node id and are believed.

use std::{any::Any, collections::VecDeque, sync::Arc};

use bytes::BytesMut;
use meshwork_identity::{
    NodeId,
    noise::{HandshakeError, PskSet},
};
use quinn::{
    ConnectError, ConnectionId,
    crypto::{
        self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
        UnsupportedVersion,
    },
};
use quinn_proto::{
    Side, TransportError, TransportErrorCode, transport_parameters::TransportParameters,
};

use super::provider::{CryptoProvider, Outcome};

const ID_LEN: usize = 32;
const MAX_FRAME: usize = 4096;

/// Protects nothing.
pub(super) struct NullProvider {
    identity: NodeId,
    version: u32,
}

impl NullProvider {
    pub(super) fn new(identity: NodeId, version: u32) -> Self {
        Self { identity, version }
    }
}

impl CryptoProvider for NullProvider {
    fn dialler(
        &self,
        expected: Option<NodeId>,
        outcome: Arc<Outcome>,
    ) -> Arc<dyn crypto::ClientConfig> {
        let (identity, version) = (self.identity, self.version);
        Arc::new(Dialler {
            identity,
            version,
            expected,
            outcome,
        })
    }

    fn listener(&self) -> Arc<dyn crypto::ServerConfig> {
        Arc::new(Listener {
            identity: self.identity,
            version: self.version,
        })
    }

    /// Nothing is keyed here.
    fn set_psks(&self, _psks: PskSet) {}
}

struct Dialler {
    identity: NodeId,
    version: u32,
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
        if version != self.version {
            return Err(ConnectError::UnsupportedVersion);
        }
        let mut session = Session::new(Side::Client, self.identity, params);
        session.push_hello(false);
        session.dialler = Some(self);
        Ok(Box::new(session))
    }
}

struct Listener {
    identity: NodeId,
    version: u32,
}

impl crypto::ServerConfig for Listener {
    fn initial_keys(&self, version: u32, _: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == self.version {
            Ok(no_keys())
        } else {
            Err(UnsupportedVersion)
        }
    }

    fn retry_tag(&self, _: u32, _: &ConnectionId, _: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        Box::new(Session::new(Side::Server, self.identity, params))
    }
}

/// A state is named after what it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The peer's node id and parameters.
    Hello,
    /// An empty frame under the Handshake keys.
    Confirm,
    /// Nothing more.
    Nothing,
}

struct Session {
    side: Side,
    hello: Vec<u8>,
    state: State,
    dialler: Option<Arc<Dialler>>,
    input: Vec<u8>,
    output: VecDeque<(Vec<u8>, bool)>,
    peer: Option<NodeId>,
    peer_params: Vec<u8>,
}

impl Session {
    fn new(side: Side, identity: NodeId, params: &TransportParameters) -> Self {
        let mut hello = identity.as_bytes().to_vec();
        params.write(&mut hello);
        Self {
            side,
            hello,
            state: State::Hello,
            dialler: None,
            input: Vec::new(),
            output: VecDeque::new(),
            peer: None,
            peer_params: Vec::new(),
        }
    }

    fn push_hello(&mut self, keys: bool) {
        let length = u16::try_from(self.hello.len()).expect("transport parameters are short");
        self.output
            .push_back(([&length.to_be_bytes()[..], &self.hello].concat(), keys));
    }

    fn read(&mut self, buf: &[u8]) -> Result<bool, HandshakeError> {
        self.input.extend_from_slice(buf);
        if self.input.len() > MAX_FRAME || self.state == State::Nothing {
            return Err(HandshakeError::Malformed("too many bytes"));
        }
        let Some((length, message)) = self.input.split_first_chunk() else {
            return Ok(false);
        };
        if message.len() < usize::from(u16::from_be_bytes(*length)) {
            return Ok(false);
        }
        let message = std::mem::take(&mut self.input).split_off(2);
        match self.state {
            State::Hello => self.read_hello(&message).map(|()| true),
            State::Confirm | State::Nothing => {
                let answer = if self.side.is_client() {
                    vec![0, 0]
                } else {
                    Vec::new()
                };
                self.output.push_back((answer, true));
                self.state = State::Nothing;
                Ok(false)
            }
        }
    }

    fn read_hello(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let (id, params) = message
            .split_first_chunk::<ID_LEN>()
            .ok_or(HandshakeError::Malformed("no identity"))?;
        let found = NodeId::from_bytes(*id).map_err(|_| HandshakeError::BadBinding)?;
        let expected = self.dialler.as_ref().and_then(|dialler| dialler.expected);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(HandshakeError::UnexpectedPeer { expected, found });
        }
        self.peer = Some(found);
        self.peer_params = params.to_vec();
        if self.side.is_client() {
            self.output.push_back((Vec::new(), true));
        } else {
            self.push_hello(true);
            self.output.push_back((vec![0, 0], false));
        }
        self.state = State::Confirm;
        Ok(())
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, _: &ConnectionId, _: Side) -> Keys {
        no_keys()
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.peer.map(|_| Box::new(()) as Box<dyn Any>)
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.peer?))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.state != State::Nothing
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.read(buf).map_err(|error| {
            let code = TransportErrorCode::crypto(error.alert());
            if let Some(dialler) = &self.dialler {
                dialler.outcome.set(error);
            }
            TransportError {
                code,
                frame: None,
                reason: String::new(),
            }
        })
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        if self.peer.is_none() {
            return Ok(None);
        }
        Ok(Some(TransportParameters::read(
            self.side,
            &mut &self.peer_params[..],
        )?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let (bytes, keys) = self.output.pop_front()?;
        buf.extend_from_slice(&bytes);
        keys.then(no_keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        Some(no_keys().packet)
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], payload: &[u8]) -> bool {
        payload.ends_with(&[0; 16])
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

fn no_keys() -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(NoKey),
            remote: Box::new(NoKey),
        },
        packet: KeyPair {
            local: Box::new(NoKey),
            remote: Box::new(NoKey),
        },
    }
}

struct NoKey;

impl HeaderKey for NoKey {
    fn decrypt(&self, _: usize, _: &mut [u8]) {}

    fn encrypt(&self, _: usize, _: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        0
    }
}

impl PacketKey for NoKey {
    fn encrypt(&self, _: u64, _: &mut [u8], _: usize) {}

    fn decrypt(&self, _: u64, _: &[u8], _: &mut BytesMut) -> Result<(), CryptoError> {
        Ok(())
    }

    fn tag_len(&self) -> usize {
        0
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}
