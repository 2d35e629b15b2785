//! The handshake machine: bytes of QUIC's CRYPTO stream in, flights and secrets out.

use std::{collections::VecDeque, fmt, sync::Arc};

use snow::{Builder, HandshakeState, params::NoiseParams};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    Aead, HandshakeConfig, HandshakeError, LevelSecrets, Secret,
    payload::{self, Fields},
    resolver::{Resolver, STATIC_KEY_HANDLE},
    schedule,
};
use crate::{NodeId, Psk};

/// Longest frame of the handshake, in bytes, and so the most that a peer makes us buffer.
pub const MAX_FRAME: usize = 4096;

const PATTERN: &str = "Noise_XXpsk0_25519_AESGCM_SHA256";

/// What the machine wants done: send `bytes` in the current packet number space, then move to the
/// next one with `keys`.
#[derive(Debug)]
pub struct Flight {
    /// Bytes for the CRYPTO stream; may be empty.
    pub bytes: Vec<u8>,
    /// Secrets of the next packet number space, if this flight ends the current one.
    pub keys: Option<LevelSecrets>,
}

/// A state is named after what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Responder: message 1.
    Hello,
    /// Initiator: message 2.
    Reply,
    /// Initiator: the empty frame.
    Confirm,
    /// Responder: message 3.
    Proof,
    /// Nothing: the handshake is complete.
    Nothing,
    /// Nothing: it failed.
    Failed,
}

/// One handshake, from either side.
pub struct Handshake {
    config: Arc<HandshakeConfig>,
    noise: HandshakeState,
    state: State,
    expected: Option<NodeId>,
    parameters: Vec<u8>,
    input: Vec<u8>,
    output: VecDeque<Flight>,
    aead: Option<Aead>,
    protocol: Option<Vec<u8>>,
    peer_parameters: Option<Vec<u8>>,
    peer: Option<NodeId>,
    exporter: Option<Secret>,
}

impl Handshake {
    /// Starts as the dialler. `expected` is the node that must answer, `None` for a first contact by
    /// address alone; `parameters` are ours for the peer, opaque here.
    pub fn initiate(
        config: Arc<HandshakeConfig>,
        expected: Option<NodeId>,
        parameters: &[u8],
    ) -> Result<Self, HandshakeError> {
        let mut payload = Vec::new();
        payload::push(&mut payload, payload::PARAMETERS, parameters)?;
        let names = payload::encode_names(config.protocols.iter().map(Vec::as_slice))?;
        payload::push(&mut payload, payload::PROTOCOLS, &names)?;
        let aeads: Vec<u8> = config.aeads.iter().map(|aead| *aead as u8).collect();
        payload::push(&mut payload, payload::AEADS, &aeads)?;

        let mut this = Self::new(config, State::Reply, parameters);
        this.expected = expected;
        let bytes = this.seal(&payload)?;
        this.output.push_back(Flight { bytes, keys: None });
        Ok(this)
    }

    /// Starts as the listener.
    pub fn respond(config: Arc<HandshakeConfig>, parameters: &[u8]) -> Self {
        Self::new(config, State::Hello, parameters)
    }

    fn new(config: Arc<HandshakeConfig>, state: State, parameters: &[u8]) -> Self {
        Self {
            noise: noise_state(&config, state == State::Reply),
            config,
            state,
            expected: None,
            parameters: parameters.to_vec(),
            input: Vec::new(),
            output: VecDeque::new(),
            aead: None,
            protocol: None,
            peer_parameters: None,
            peer: None,
            exporter: None,
        }
    }

    /// Takes bytes of the CRYPTO stream, cut anywhere. Afterwards the caller drains
    /// [`Handshake::write`].
    ///
    /// An error ends the handshake. Bytes reach this function only out of authenticated packets, so
    /// an outsider cannot cause one as long as Initial packets are keyed with the PSK.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let result = self.read_frame(bytes);
        if result.is_err() {
            self.state = State::Failed;
            self.input = Vec::new();
        }
        result
    }

    /// Buffers up to one frame. Each of our frames is the last one of its packet number space, so
    /// bytes after it are refused: they would be read under keys that did not protect them.
    fn read_frame(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        if matches!(self.state, State::Nothing | State::Failed) {
            return Err(HandshakeError::Malformed("bytes after the handshake"));
        }
        if self.input.len() + bytes.len() > 2 + MAX_FRAME {
            return Err(HandshakeError::Malformed("frame too long"));
        }
        self.input.extend_from_slice(bytes);
        let Some((length, message)) = self.input.split_first_chunk() else {
            return Ok(());
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_FRAME {
            return Err(HandshakeError::Malformed("frame too long"));
        }
        if message.len() > length {
            return Err(HandshakeError::Malformed("bytes after a frame"));
        }
        if message.len() < length {
            return Ok(());
        }
        let message = std::mem::take(&mut self.input).split_off(2);
        match self.state {
            State::Hello => self.read_hello(&message),
            State::Reply => self.read_reply(&message),
            State::Confirm => self.read_confirm(&message),
            State::Proof => self.read_proof(&message),
            State::Nothing | State::Failed => unreachable!("checked above"),
        }
    }

    /// The next flight to send, if any.
    pub fn write(&mut self) -> Option<Flight> {
        self.output.pop_front()
    }

    /// Responder, message 1: find the PSK, choose, answer. The only work before the peer has proven
    /// to hold the PSK is one hash chain and one AES-GCM open for each accepted key.
    fn read_hello(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let payload = self.open_hello(message)?;
        let fields = Fields::parse(&payload)?;
        let parameters = fields.parameters.ok_or(HandshakeError::MissingParameters)?;
        let offered = fields.protocols.ok_or(HandshakeError::NoCommonProtocol)?;
        let aead = choose_aead(&self.config.aeads, fields.aeads.unwrap_or_default())
            .ok_or(HandshakeError::NoCommonAead)?;
        let protocol = choose_protocol(&self.config.protocols, offered)?;

        let mut reply = Vec::new();
        payload::push(&mut reply, payload::PARAMETERS, &self.parameters)?;
        payload::push(
            &mut reply,
            payload::PROTOCOLS,
            &payload::encode_names([&protocol[..]])?,
        )?;
        payload::push(&mut reply, payload::AEADS, &[aead as u8])?;
        payload::push(
            &mut reply,
            payload::IDENTITY,
            self.config.identity.as_bytes(),
        )?;
        self.peer_parameters = Some(parameters.to_vec());
        self.protocol = Some(protocol);
        self.aead = Some(aead);

        let bytes = self.seal(&reply)?;
        let split = raw_split(&mut self.noise);
        let keys = schedule::handshake_level(aead, self.noise.get_handshake_hash(), &split);
        self.output.push_back(Flight {
            bytes,
            keys: Some(keys),
        });
        self.output.push_back(Flight {
            bytes: vec![0, 0],
            keys: None,
        });
        self.state = State::Proof;
        Ok(())
    }

    /// snow restores its state when a message does not open, so the next key finds a clean one.
    fn open_hello(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
        for psk in self.config.psks.accepted() {
            self.noise
                .set_psk(0, psk.as_bytes())
                .expect("a PSK has 32 bytes and place 0 exists");
            match open(&mut self.noise, message) {
                Err(HandshakeError::Altered) => {}
                result => return result,
            }
        }
        Err(HandshakeError::UnknownPsk)
    }

    /// Initiator, message 2: who answered? Message 3, which tells who we are, waits for this check.
    fn read_reply(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let payload = open(&mut self.noise, message)?;
        let fields = Fields::parse(&payload)?;
        let peer = self.proven_peer(fields.identity)?;
        if let Some(expected) = self.expected.filter(|expected| *expected != peer) {
            return Err(HandshakeError::UnexpectedPeer {
                expected,
                found: peer,
            });
        }
        let parameters = fields.parameters.ok_or(HandshakeError::MissingParameters)?;
        let aead = match fields.aeads {
            Some(&[number]) => Aead::from_number(number),
            _ => None,
        };
        let aead = aead
            .filter(|aead| self.config.aeads.contains(aead))
            .ok_or(HandshakeError::NoCommonAead)?;
        let chosen = payload::decode_names(fields.protocols.unwrap_or_default())?;
        let protocol = match chosen[..] {
            [one] => self.config.protocols.iter().find(|ours| *ours == one),
            _ => None,
        };
        self.protocol = Some(protocol.ok_or(HandshakeError::NoCommonProtocol)?.clone());
        self.peer_parameters = Some(parameters.to_vec());
        self.aead = Some(aead);
        self.peer = Some(peer);

        let split = raw_split(&mut self.noise);
        let keys = schedule::handshake_level(aead, self.noise.get_handshake_hash(), &split);
        self.output.push_back(Flight {
            bytes: Vec::new(),
            keys: Some(keys),
        });
        self.state = State::Confirm;
        Ok(())
    }

    /// Initiator: the responder has the Handshake keys, so message 3 can go.
    fn read_confirm(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        if !message.is_empty() {
            return Err(HandshakeError::Malformed("a confirm frame is empty"));
        }
        let mut proof = Vec::new();
        payload::push(
            &mut proof,
            payload::IDENTITY,
            self.config.identity.as_bytes(),
        )?;
        let bytes = self.seal(&proof)?;
        let keys = self.finish();
        self.output.push_back(Flight {
            bytes,
            keys: Some(keys),
        });
        Ok(())
    }

    /// Responder, message 3: who dialled, and may they?
    fn read_proof(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let payload = open(&mut self.noise, message)?;
        let peer = self.proven_peer(Fields::parse(&payload)?.identity)?;
        if !(self.config.authorize)(&peer) {
            return Err(HandshakeError::NotAuthorized(peer));
        }
        self.peer = Some(peer);
        let keys = self.finish();
        self.output.push_back(Flight {
            bytes: Vec::new(),
            keys: Some(keys),
        });
        Ok(())
    }

    /// The node id that the peer claims, if it is that of the static key which Noise has just
    /// authenticated. The whole ed25519 key is sent because X25519 loses its sign bit.
    fn proven_peer(&self, claimed: Option<&[u8]>) -> Result<NodeId, HandshakeError> {
        let claimed = claimed
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(HandshakeError::Malformed("no identity"))?;
        let (peer, image) =
            NodeId::with_noise_public(claimed).map_err(|_| HandshakeError::BadBinding)?;
        let seen = self
            .noise
            .get_remote_static()
            .ok_or(HandshakeError::BadBinding)?;
        if bool::from(image.ct_eq(seen)) {
            Ok(peer)
        } else {
            Err(HandshakeError::BadBinding)
        }
    }

    /// After the last message: the application keys and the exporter.
    fn finish(&mut self) -> LevelSecrets {
        let aead = self.aead.expect("chosen with message 2");
        let split = raw_split(&mut self.noise);
        let (keys, exporter) =
            schedule::application_level(aead, self.noise.get_handshake_hash(), &split);
        self.exporter = Some(exporter);
        self.state = State::Nothing;
        keys
    }

    /// Makes our next Noise message, framed.
    fn seal(&mut self, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let mut message = vec![0; 2 + MAX_FRAME];
        let length = self
            .noise
            .write_message(payload, &mut message[2..])
            .map_err(|e| match e {
                snow::Error::Dh => HandshakeError::Malformed("a key of small order"),
                _ => HandshakeError::Malformed("our own message is too long"),
            })?;
        let frame = u16::try_from(length).expect("MAX_FRAME fits");
        message[..2].copy_from_slice(&frame.to_be_bytes());
        message.truncate(2 + length);
        Ok(message)
    }

    /// Whether both sides are proven and all keys are handed out.
    pub fn is_complete(&self) -> bool {
        self.state == State::Nothing
    }

    /// The peer, proven. The initiator knows it after message 2, the responder after message 3.
    pub fn peer(&self) -> Option<NodeId> {
        self.peer
    }

    /// The peer's transport parameters. The responder has them after message 1, when the peer is not
    /// authenticated yet; the transcript binds them later.
    pub fn peer_parameters(&self) -> Option<&[u8]> {
        self.peer_parameters.as_deref()
    }

    /// The application protocol that both speak, once chosen.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.protocol.as_deref()
    }

    /// The packet cipher, once chosen.
    pub fn aead(&self) -> Option<Aead> {
        self.aead
    }

    /// Keying material that both ends share and nobody else has. `None` before the handshake is
    /// complete, or for more than 8,160 bytes or a label of more than 200.
    pub fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
        self.exporter.as_ref()?.export(label, context, out)
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("state", &self.state)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

fn noise_state(config: &HandshakeConfig, initiator: bool) -> HandshakeState {
    let params: NoiseParams = PATTERN.parse().expect("snow knows the pattern");
    let resolver = Resolver {
        static_key: config.static_key.clone(),
        entropy: config.entropy.clone(),
    };
    let psk: &Psk = &config.psks.current;
    Builder::with_resolver(params, Box::new(resolver))
        .prologue(&config.prologue)
        .and_then(|builder| builder.psk(0, psk.as_bytes()))
        .and_then(|builder| builder.local_private_key(&STATIC_KEY_HANDLE))
        .and_then(|builder| {
            if initiator {
                builder.build_initiator()
            } else {
                builder.build_responder()
            }
        })
        .expect("the builder has all that the pattern needs")
}

/// Opens the peer's next Noise message.
fn open(noise: &mut HandshakeState, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
    let mut payload = Zeroizing::new(vec![0; message.len()]);
    let length = noise
        .read_message(message, &mut payload)
        .map_err(|e| match e {
            snow::Error::Decrypt => HandshakeError::Altered,
            snow::Error::Dh => HandshakeError::Malformed("a key of small order"),
            _ => HandshakeError::Malformed("a message too short"),
        })?;
    payload.truncate(length);
    Ok(payload)
}

/// Both halves of the split, which the schedule takes as one input.
fn raw_split(noise: &mut HandshakeState) -> Zeroizing<[u8; 64]> {
    let (a, b) = noise.dangerously_get_raw_split();
    let (a, b) = (Zeroizing::new(a), Zeroizing::new(b));
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(a.as_slice());
    both[32..].copy_from_slice(b.as_slice());
    both
}

/// AES where both prefer it, else the other one where both have it, else the peer's best that we have:
/// the slower processor decides, because AES without instructions costs it the most.
fn choose_aead(ours: &[Aead], offered: &[u8]) -> Option<Aead> {
    let offered: Vec<Aead> = offered
        .iter()
        .filter_map(|n| Aead::from_number(*n))
        .collect();
    let both = |aead: &Aead| ours.contains(aead) && offered.contains(aead);
    let same = offered
        .first()
        .copied()
        .filter(|first| ours.first() == Some(first));
    same.or(Some(Aead::ChaCha20Poly1305).filter(both))
        .or(offered.iter().copied().find(both))
}

/// Our most preferred protocol that the peer offers.
fn choose_protocol(ours: &[Vec<u8>], offered: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let offered = payload::decode_names(offered)?;
    ours.iter()
        .find(|name| offered.contains(&name.as_slice()))
        .cloned()
        .ok_or(HandshakeError::NoCommonProtocol)
}

#[cfg(test)]
mod tests;
