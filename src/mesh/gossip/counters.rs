//! What the spreading of news counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a node told and was told since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipStats {
    /// Calls that carried news to a peer, repeated ones included.
    pub batches: u64,
    /// Facts in them.
    pub facts: u64,
    /// Membership messages in them.
    pub messages: u64,
    /// Membership messages sent as datagrams.
    pub datagrams: u64,
    /// Facts and messages not sent, because too many waited for the peer.
    pub dropped: u64,
    /// Facts that peers asked for and were not sent, because they had been sent too many bytes.
    pub withheld: u64,
    /// Facts and messages of peers not looked at, because they could not be read or were too many.
    pub refused: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    batches: AtomicU64,
    facts: AtomicU64,
    messages: AtomicU64,
    datagrams: AtomicU64,
    dropped: AtomicU64,
    withheld: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) fn batch(&self, facts: usize, messages: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.facts.fetch_add(facts as u64, Relaxed);
        self.messages.fetch_add(messages as u64, Relaxed);
    }

    pub(super) fn datagram(&self) {
        self.datagrams.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn withheld(&self, facts: usize) {
        self.withheld.fetch_add(facts as u64, Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self) -> GossipStats {
        GossipStats {
            batches: self.batches.load(Relaxed),
            facts: self.facts.load(Relaxed),
            messages: self.messages.load(Relaxed),
            datagrams: self.datagrams.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            withheld: self.withheld.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}
