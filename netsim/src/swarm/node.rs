//! One simulated node: its machine, its ledger, its links and its troubles.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use meshwork_proto::membership::{Liveness, Membership};

use super::link::End;
use super::rng::Rng;
use super::spec::Lie;
use super::store::Store;

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    /// None while the process does not run.
    pub(super) machine: Option<Membership<u32>>,
    /// Counts beginnings and ends of the process: what was meant for another life is dropped.
    pub(super) life: u32,
    pub(super) ledger: Store,
    pub(super) rng: Rng,
    /// Open links by peer, sorted.
    pub(super) links: Vec<(u32, End)>,
    /// Whom it is dialling.
    pub(super) dialling: Vec<u32>,
    /// Whose addresses it has besides those announced: from its ticket or peer cache.
    pub(super) contacts: Vec<u32>,
    /// Its own counter, and the announcement that beats renew.
    pub(super) version: u32,
    pub(super) base: u32,
    /// The renewal of its announcement that it minds.
    pub(super) renewal: u64,
    /// When its timer is set for.
    pub(super) timer: u64,
    /// Nothing is handled before.
    pub(super) stalled_until: u64,
    /// Inputs of slow nodes are handled in order.
    pub(super) ready: u64,
    pub(super) delay: Option<RangeInclusive<u64>>,
    /// How far its clock is ahead, in microseconds.
    pub(super) skew: i64,
    /// What it holds of others, as far as they are not alive.
    pub(super) view: BTreeMap<u32, Liveness>,
    /// When its uplink is free.
    pub(super) uplink: u64,
    pub(super) bytes: u64,
    /// Bytes at the end of the warm-up.
    pub(super) bytes_before: u64,
    pub(super) lies: Vec<Lie>,
    /// Whether a death of it would be false: it runs, and was reachable long enough.
    pub(super) excused_until: u64,
    /// Whether it ever ran.
    pub(super) was_there: bool,
    /// When its process last began or ended.
    pub(super) changed: u64,
}

impl Node {
    pub(super) fn new(me: u32, ledger: Store, seed: u64) -> Self {
        Self {
            machine: None,
            life: 0,
            ledger,
            rng: Rng::new(seed, 0x1_0000 + u64::from(me)),
            links: Vec::new(),
            dialling: Vec::new(),
            contacts: Vec::new(),
            version: 0,
            base: 0,
            renewal: 0,
            timer: u64::MAX,
            stalled_until: 0,
            ready: 0,
            delay: None,
            skew: 0,
            view: BTreeMap::new(),
            uplink: 0,
            bytes: 0,
            bytes_before: 0,
            lies: Vec::new(),
            excused_until: 0,
            was_there: false,
            changed: 0,
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.machine.is_some()
    }

    pub(super) fn is_honest(&self) -> bool {
        self.lies.is_empty()
    }

    pub(super) fn link(&self, peer: u32) -> Option<End> {
        let at = self.links.binary_search_by_key(&peer, |link| link.0).ok()?;
        Some(self.links[at].1)
    }

    /// Takes `end` for the link with `peer`; the one that it replaces.
    pub(super) fn set_link(&mut self, peer: u32, end: End) -> Option<End> {
        match self.links.binary_search_by_key(&peer, |link| link.0) {
            Ok(at) => Some(std::mem::replace(&mut self.links[at].1, end)),
            Err(at) => {
                self.links.insert(at, (peer, end));
                None
            }
        }
    }

    /// Forgets the link with `peer` if it is `end`.
    pub(super) fn drop_link(&mut self, peer: u32, end: End) -> bool {
        match self.links.binary_search_by_key(&peer, |link| link.0) {
            Ok(at) if self.links[at].1 == end => {
                self.links.remove(at);
                true
            }
            _ => false,
        }
    }

    pub(super) fn liveness(&self, peer: u32) -> Liveness {
        self.view.get(&peer).copied().unwrap_or(Liveness::Alive)
    }

    /// Whether it could dial that node.
    pub(super) fn has_address(&self, peer: u32) -> bool {
        self.ledger.version_of(peer) > 0 || self.contacts.contains(&peer)
    }

    /// The time by its own clock.
    pub(super) fn clock(&self, now: u64) -> i64 {
        i64::try_from(now)
            .unwrap_or(i64::MAX)
            .saturating_add(self.skew)
    }
}
