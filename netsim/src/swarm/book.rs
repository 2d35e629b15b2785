//! The truth: what was really said. It stands in for signatures, and tells lies apart.

use std::collections::VecDeque;

use meshwork_proto::membership::{BUCKETS, Key};

use super::ledger::bucket;

/// What was really said, by whom and when: the truth that stands in for signatures.
#[derive(Debug)]
pub(super) struct Book {
    spoken: Vec<VecDeque<Statement>>,
    members: Vec<Vec<u32>>,
}

/// One announcement, or a beat upon one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statement {
    pub(super) version: u32,
    /// The announcement that it renews; its own version for an announcement.
    pub(super) base: u32,
    /// By the speaker's clock, in microseconds; may lie before the start.
    pub(super) issued: i64,
    pub(super) ttl: i64,
}

impl Book {
    pub(super) fn new(nodes: u32) -> Self {
        let mut members = vec![Vec::new(); BUCKETS as usize];
        for node in 0..nodes {
            members[bucket(&Key::Node(node)) as usize].push(node);
        }
        Self {
            spoken: vec![VecDeque::new(); nodes as usize],
            members,
        }
    }

    /// A node said something.
    pub(super) fn say(&mut self, node: u32, statement: Statement) {
        let spoken = &mut self.spoken[node as usize];
        spoken.retain(|old| old.version != statement.version);
        spoken.push_back(statement);
        if spoken.len() > REMEMBERED {
            spoken.pop_front();
        }
    }

    /// What a node said under a version, unless that was long ago.
    pub(super) fn statement(&self, node: u32, version: u32) -> Option<&Statement> {
        let spoken = self.spoken[node as usize].iter().rev();
        spoken.into_iter().find(|said| said.version == version)
    }

    /// The largest version that a node ever said.
    pub(super) fn latest(&self, node: u32) -> u32 {
        let spoken = self.spoken[node as usize].iter();
        spoken.map(|said| said.version).max().unwrap_or(0)
    }

    /// The oldest version of a node that is still remembered.
    pub(super) fn oldest(&self, node: u32) -> Option<u32> {
        self.spoken[node as usize].front().map(|said| said.version)
    }

    /// The nodes whose keys fall into a bucket.
    pub(super) fn members(&self, bucket: u8) -> impl Iterator<Item = &u32> {
        self.members.get(bucket as usize).into_iter().flatten()
    }

    /// Whether a node said so much lately that some receiver may refuse to listen.
    pub(super) fn is_noisy(&self, node: u32, now: i64) -> bool {
        let spoken = &self.spoken[node as usize];
        let earlier = spoken.len().checked_sub(AT_ONCE);
        earlier.is_some_and(|n| spoken[n].issued > now - SPELL)
    }
}

/// Statements of one node that are remembered; older ones nobody would take any more.
const REMEMBERED: usize = 128;
/// More statements than this within `SPELL` may be too many for somebody.
const AT_ONCE: usize = 5;
const SPELL: i64 = 10_000_000;
