//! The mesh's pre-shared key as this node uses it, and its change without a gap.
//!
//! A rotation is a signed fact: a new key, the time from which nodes dial with it, and the time until
//! which they accept the old one. A node that learns of it accepts both at once, so that it is ready
//! whenever its peers change over. It keeps the rotation before it heeds it: a node that has dialled
//! with the new key never falls back to the old one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use meshwork_identity::{Domain, Psk, Timestamp};
use meshwork_proto::codec;
use meshwork_proto::facts::Fact;
use meshwork_proto::psk::{PskRotation, SignedPskRotation};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::MeshConfig;
use crate::error::MeshError;
use crate::state::{StateStore, durably};
use crate::transport::PskSet;

/// Where the last rotation is kept.
const STATE_KEY: &str = "psk";
/// Most bytes of it: a statement with its token, and a key.
const MAX_STATE: usize = 64 << 10;

/// The mesh's pre-shared keys, as a node uses them at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PskView {
    /// The one to dial with, and to put into tickets.
    pub current: Psk,
    /// Another one that the node answers to: before a rotation's turn the new one, after it the old.
    pub other: Option<Psk>,
    /// The rotation that the node follows; 0 when it knows of none.
    pub epoch: u64,
}

/// The keys in use.
pub(crate) struct Psks {
    held: Mutex<Held>,
    in_use: watch::Sender<PskView>,
}

struct Held {
    /// The keys without a rotation: those of the configuration.
    configured: PskView,
    rotation: Option<Rotation>,
}

struct Rotation {
    /// The key before it, unless this node has only ever had the new one.
    old: Option<Psk>,
    /// Under which the ledger holds it: later ones have larger ones.
    version: u64,
    body: PskRotation,
    statement: SignedPskRotation,
}

/// What is kept of a rotation.
#[derive(Serialize, Deserialize)]
struct Kept {
    old: Option<[u8; 32]>,
    statement: SignedPskRotation,
}

impl Psks {
    /// The configured keys, with the rotation that was kept, if it is one of these keys.
    pub(crate) fn load(
        config: &MeshConfig,
        state: &dyn StateStore,
        now: Timestamp,
    ) -> Result<Self, MeshError> {
        let configured = PskView {
            current: config.psk.clone(),
            other: config.previous_psk.clone(),
            epoch: 0,
        };
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let kept = stored.map(|bytes| read(&bytes)).transpose()?;
        // Who was invited anew got a key of its own accord: what was before is of no use.
        let rotation = kept.filter(|rotation| rotation.concerns(&configured.current));
        let in_use = in_use(&configured, rotation.as_ref(), now);
        Ok(Self {
            held: Mutex::new(Held {
                configured,
                rotation,
            }),
            in_use: watch::Sender::new(in_use),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys as they are now, for the handshake.
    pub(crate) fn set(&self) -> PskSet {
        let view = self.in_use.borrow();
        PskSet {
            current: view.current.clone(),
            previous: view.other.clone(),
        }
    }

    /// The keys, and every change of them.
    pub(crate) fn watch(&self) -> watch::Receiver<PskView> {
        self.in_use.subscribe()
    }

    /// The rotation that this node follows, as it is told to others.
    pub(crate) fn statement(&self) -> Option<SignedPskRotation> {
        let held = self.held();
        held.rotation
            .as_ref()
            .map(|rotation| rotation.statement.clone())
    }

    /// Follows a rotation that was verified, unless this node follows a later one. It is kept before it
    /// is in force. Whether the keys have changed.
    pub(crate) fn follow(
        &self,
        statement: &SignedPskRotation,
        state: &dyn StateStore,
        now: Timestamp,
    ) -> Result<bool, MeshError> {
        let mut held = self.held();
        let (version, body) = open(statement)?;
        if held
            .rotation
            .as_ref()
            .is_some_and(|known| version <= known.version)
        {
            return Ok(false);
        }
        // Of a rotation within the overlap of another, the key that is dialled with stays.
        let current = in_use(&held.configured, held.rotation.as_ref(), now).current;
        let rotation = Rotation {
            old: (current != body.psk).then_some(current),
            version,
            body,
            statement: statement.clone(),
        };
        durably(|| state.put(STATE_KEY, &rotation.kept())).map_err(MeshError::state(STATE_KEY))?;
        held.rotation = Some(rotation);
        drop(held);
        Ok(self.advance(now))
    }

    /// Brings the keys up to date with the time; whether they have changed.
    pub(crate) fn advance(&self, now: Timestamp) -> bool {
        let held = self.held();
        let due = in_use(&held.configured, held.rotation.as_ref(), now);
        self.in_use.send_if_modified(|view| {
            let changed = *view != due;
            *view = due;
            changed
        })
    }
}

impl Rotation {
    /// Whether it leads from this key or to it.
    fn concerns(&self, psk: &Psk) -> bool {
        self.old.as_ref() == Some(psk) || self.body.psk == *psk
    }

    fn kept(&self) -> Vec<u8> {
        codec::encode(&Kept {
            old: self.old.as_ref().map(|psk| *psk.as_bytes()),
            statement: self.statement.clone(),
        })
    }
}

fn read(bytes: &[u8]) -> Result<Rotation, MeshError> {
    let kept: Kept = codec::decode(bytes, MAX_STATE).map_err(unusable)?;
    // Whether it may be heeded was decided when it came; the token may have expired since.
    let (version, body) = open(&kept.statement)?;
    Ok(Rotation {
        old: kept.old.map(Psk::from_bytes),
        version,
        body,
        statement: kept.statement,
    })
}

/// What a rotation says, and under which version the ledger holds it.
fn open(statement: &SignedPskRotation) -> Result<(u64, PskRotation), MeshError> {
    let body = statement
        .envelope
        .open(&Domain::PSK_ROTATION)
        .map_err(unusable)?;
    let claim = Fact::Psk(statement.clone()).claim();
    let (_, version) = claim.ok_or_else(|| unusable("it makes no sense"))?;
    Ok((version, body))
}

fn unusable(why: impl std::fmt::Display) -> MeshError {
    MeshError::state(STATE_KEY)(std::io::Error::other(format!("{why}")))
}

/// The keys that are due at a time.
fn in_use(configured: &PskView, rotation: Option<&Rotation>, now: Timestamp) -> PskView {
    let Some(Rotation { old, body, .. }) = rotation else {
        return configured.clone();
    };
    let new = body.psk.clone();
    let (current, other) = match old {
        Some(old) if now < body.from => (old.clone(), Some(new)),
        Some(old) if now < body.until => (new, Some(old.clone())),
        _ => (new, None),
    };
    PskView {
        current,
        other,
        epoch: body.epoch,
    }
}
