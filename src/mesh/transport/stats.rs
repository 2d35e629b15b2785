//! What the transport counts. Everything that a stranger can cause is counted here, and logged at
//! `debug` at most.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use meshwork_identity::noise::HandshakeError;

/// A snapshot of an endpoint's counters since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportStats {
    /// First packets that open under none of our pre-shared keys, or are shorter than QUIC allows:
    /// bystanders, other meshes, nodes with a wrong PSK, altered packets. They got no answer.
    pub unknown_initials: u64,
    /// Datagrams that are not of our protocol at all. They got no answer.
    pub foreign_datagrams: u64,
    /// Packets for connection ids that this node never issued. They got no answer.
    pub unknown_connection_ids: u64,
    /// Packets of known connections that did not authenticate. They changed nothing.
    pub forged_packets: u64,
    /// First packets of members that speak another version. They got the list of our versions.
    pub other_versions: u64,
    /// Handshakes that both sides completed.
    pub handshakes_completed: u64,
    /// Handshakes that did not complete, for whatever reason; the counters below say which, where
    /// our side found it.
    pub handshakes_failed: u64,
    /// The peer's first message opened under no PSK (only without keyed Initials).
    pub failed_unknown_psk: u64,
    /// Another node answered than the dialled one.
    pub failed_unexpected_peer: u64,
    /// The peer's node id did not belong to its handshake key.
    pub failed_bad_binding: u64,
    /// The authorization callback refused the peer.
    pub failed_not_authorized: u64,
    /// Nothing in common: protocol or packet cipher.
    pub failed_nothing_in_common: u64,
    /// The peer's messages were malformed, altered, or lacked its parameters.
    pub failed_malformed: u64,
    /// Address validations asked for with a Retry packet.
    pub retries_sent: u64,
    /// Connection attempts refused because too many were pending.
    pub refused_busy: u64,
    /// Key updates executed, by either side's wish.
    pub key_updates: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The living counters behind [`TransportStats`].
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> TransportStats {
                TransportStats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters!(
    unknown_initials,
    foreign_datagrams,
    unknown_connection_ids,
    forged_packets,
    other_versions,
    handshakes_completed,
    handshakes_failed,
    failed_unknown_psk,
    failed_unexpected_peer,
    failed_bad_binding,
    failed_not_authorized,
    failed_nothing_in_common,
    failed_malformed,
    retries_sent,
    refused_busy,
    key_updates,
);

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn count_failure(&self, error: &HandshakeError) {
        Self::add(match error {
            HandshakeError::UnknownPsk => &self.failed_unknown_psk,
            HandshakeError::UnexpectedPeer { .. } => &self.failed_unexpected_peer,
            HandshakeError::BadBinding => &self.failed_bad_binding,
            HandshakeError::NotAuthorized(_) => &self.failed_not_authorized,
            HandshakeError::NoCommonProtocol | HandshakeError::NoCommonAead => {
                &self.failed_nothing_in_common
            }
            _ => &self.failed_malformed,
        });
    }
}
