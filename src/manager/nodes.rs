//! What the manager hears from agents, and how long ago. Nothing here is kept: after a restart it
//! is heard again within seconds.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::agent::Heartbeat;
use meshwork_proto::manager::{LOST_AFTER, NodeState, SUSPECT_AFTER};
use meshwork_sched::release;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::lock;
use crate::record::Record;

/// Every agent heard since the start. As many as the directory holds agents.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    /// Since when each is called.
    expected: Mutex<BTreeMap<NodeId, Instant>>,
    /// Counts changes of any node's state.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    heartbeat: Heartbeat,
    /// As last told to those who watch.
    state: NodeState,
}

/// How one agent stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) state: NodeState,
    /// Time since it was heard and its last heartbeat; none: not heard since the start.
    pub(crate) heard: Option<(Duration, Heartbeat)>,
}

/// How long a node that is called for the first time may take to say something.
const FIRST_WORD: Duration = Duration::from_secs(5);

fn state_after(silence: Duration) -> NodeState {
    if silence < SUSPECT_AFTER {
        NodeState::Ready
    } else if silence < LOST_AFTER {
        NodeState::Suspect
    } else {
        NodeState::Lost
    }
}

impl Nodes {
    /// Notes that a node is being called for the first time.
    pub(crate) fn expect(&self, node: NodeId) {
        lock(&self.expected)
            .entry(node)
            .or_insert_with(Instant::now);
    }

    /// Whether a node has not been called yet, or a moment ago, so that it may still say its first
    /// word.
    pub(crate) fn awaits(&self, node: NodeId) -> bool {
        let since = lock(&self.expected).get(&node).copied();
        let recent = since.is_none_or(|since| since.elapsed() < FIRST_WORD);
        recent && !lock(&self.heard).contains_key(&node)
    }

    /// Notes a sign of life of a node that has sent a heartbeat before.
    pub(crate) fn hear(&self, node: NodeId) {
        let mut heard = lock(&self.heard);
        let Some(known) = heard.get_mut(&node) else {
            return;
        };
        known.at = Instant::now();
        let before = std::mem::replace(&mut known.state, NodeState::Ready);
        drop(heard);
        if before != NodeState::Ready {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Notes a heartbeat.
    pub(crate) fn beat(&self, node: NodeId, heartbeat: Heartbeat) {
        {
            let mut heard = lock(&self.heard);
            let state = heard.get(&node).map_or(NodeState::Suspect, |h| h.state);
            heard.insert(
                node,
                Heard {
                    at: Instant::now(),
                    heartbeat,
                    state,
                },
            );
        }
        self.hear(node);
    }

    /// Takes a kernel that has ended out of what was heard last, before its session and with it the
    /// knowledge of its end is forgotten. The next heartbeat says anew what is free.
    pub(crate) fn release(&self, record: &Record) {
        let (kernel, generation) = (record.kernel(), record.facts.generation);
        let mut heard = lock(&self.heard);
        let Some(Heard { heartbeat, .. }) = heard.get_mut(&record.facts.node) else {
            return;
        };
        let told = heartbeat.kernels.len();
        heartbeat
            .kernels
            .retain(|(k, g, _)| (*k, *g) != (kernel, generation));
        if heartbeat.kernels.len() < told {
            release(&mut heartbeat.capacity, kernel, record.ordered.resources());
        }
    }

    /// Forgets a node that is no agent any more.
    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.heard).remove(&node);
        lock(&self.expected).remove(&node);
    }

    /// Wakes the watchers when time has changed how a node stands.
    pub(crate) fn refresh(&self) {
        let mut changed = false;
        for heard in lock(&self.heard).values_mut() {
            let state = state_after(heard.at.elapsed());
            changed |= state != heard.state;
            heard.state = state;
        }
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Wakes whenever some node's state changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn standing(&self, node: NodeId) -> Standing {
        let heard = lock(&self.heard);
        let heard = heard
            .get(&node)
            .map(|h| (h.at.elapsed(), h.heartbeat.clone()));
        let state = heard
            .as_ref()
            .map_or(NodeState::Suspect, |(silence, _)| state_after(*silence));
        Standing { state, heard }
    }

    pub(crate) fn is_ready(&self, node: NodeId) -> bool {
        let heard = lock(&self.heard);
        let silence = heard.get(&node).map(|h| h.at.elapsed());
        silence.is_some_and(|silence| state_after(silence) == NodeState::Ready)
    }
}
