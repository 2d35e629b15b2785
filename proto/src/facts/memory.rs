//! What is remembered over a restart, so that nothing old is believed after it.

use meshwork_identity::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Facts;
use crate::codec::{self, DecodeError};

/// Most bytes that one remembered version takes: an id, a version, a time.
const ENTRY: usize = 32 + 10 + 10;
/// Most bytes of the rest.
const FRAME: usize = 32;

#[derive(Serialize, Deserialize)]
struct Saved {
    /// For changes of this format.
    format: u8,
    psk_version: u64,
    /// Version of each node, and until when an older one might hold.
    versions: Vec<(NodeId, u64, Timestamp)>,
}

const FORMAT: u8 = 1;

impl Facts {
    /// The versions that are remembered of others, to be given to [`Facts::restore`] after a restart.
    /// Some 45 bytes a node.
    pub fn save(&self) -> Vec<u8> {
        codec::encode(&Saved {
            format: FORMAT,
            psk_version: self.decrees.psk_version(),
            versions: self.store.remembered().collect(),
        })
    }

    /// Remembers again what an earlier run saved. What is held already stays; a larger version that
    /// was remembered still counts.
    pub fn restore(&mut self, saved: &[u8], now: Timestamp) -> Result<(), DecodeError> {
        let most = self.store.max_records().saturating_mul(ENTRY);
        let saved: Saved = codec::decode(saved, most.saturating_add(FRAME))?;
        if saved.format != FORMAT {
            let message = format!("format {} is not known, {FORMAT} is", saved.format);
            return Err(DecodeError::Malformed(message));
        }
        self.decrees.recall_psk(saved.psk_version);
        for (node, version, ends) in saved.versions {
            self.store.recall(node, version, ends, now);
        }
        Ok(())
    }
}
