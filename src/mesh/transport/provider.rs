//! What the endpoint needs from a crypto provider, so that more than one can exist.

use std::sync::{Arc, Mutex, PoisonError};

use meshwork_identity::{
    NodeId,
    noise::{HandshakeError, PskSet},
};
use quinn::crypto;

/// Makes the crypto configurations of one node.
pub(super) trait CryptoProvider: Send + Sync {
    /// For one dial. `outcome` receives the detail of a failure, which the wire must not carry.
    fn dialler(
        &self,
        expected: Option<NodeId>,
        outcome: Arc<Outcome>,
    ) -> Arc<dyn crypto::ClientConfig>;

    /// For all that dial us.
    fn listener(&self) -> Arc<dyn crypto::ServerConfig>;

    /// Uses these PSKs for what begins from now on.
    fn set_psks(&self, psks: PskSet);
}

/// Why a dial failed, in our own words.
#[derive(Debug, Default)]
pub(super) struct Outcome(Mutex<Option<HandshakeError>>);

impl Outcome {
    pub(super) fn set(&self, error: HandshakeError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn take(&self) -> Option<HandshakeError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
