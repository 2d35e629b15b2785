//! What the path layer counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A snapshot of the counters of a node's paths since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Times that the path of a peer changed.
    pub switches: u64,
    /// Times that another socket was opened, before a NAT's mapping expired or on demand.
    pub rotations: u64,
    /// Packets, or batches of them, that went over other ways, too, as the one in use was in doubt.
    pub spread: u64,
    /// Pings sent.
    pub pings: u64,
    /// Pongs received that answered one.
    pub pongs: u64,
    /// Probes under a key that we do not have. They changed nothing and got no answer.
    pub unknown_probes: u64,
    /// Probes whose tag is wrong, and repeats of old ones. They changed nothing and got no answer.
    pub refused_probes: u64,
    /// Packets for relays that were dropped because too many waited.
    pub relay_queue_full: u64,
    /// Packets from relays that were dropped because too many waited.
    pub inbound_queue_full: u64,
    /// Packets of ours for a peer that no path leads to.
    pub unroutable: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The living counters behind [`PathStats`].
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> PathStats {
                PathStats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters!(
    switches,
    rotations,
    spread,
    pings,
    pongs,
    unknown_probes,
    refused_probes,
    relay_queue_full,
    inbound_queue_full,
    unroutable,
);

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}
