//! What a peer is to hear, until one call carries it: *which* facts it lacks, not the facts. So a
//! slow peer gets the latest version of each only, and nothing is copied.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::membership::{Key, Message};
use tokio::sync::Notify;
use tokio::time::sleep;

/// How long facts are gathered before they are delivered, so that what comes together goes together.
/// Over as many hops as there may be, it adds up to less than a second. Messages do not wait.
const GATHERING: Duration = Duration::from_millis(50);
/// Facts that may wait for one peer: all of a large mesh, some 2 MiB of keys. What does not fit, the
/// digests of neighbours find missing later.
const MAX_KEYS: usize = 32 * 1024;
/// Control messages that may wait for one peer. A neighbour that takes none for so long is given up
/// before there are more; the oldest leave.
const MAX_MESSAGES: usize = 256;
/// Facts of one call.
const KEYS_PER_CALL: usize = meshwork_proto::mesh::MAX_GOSSIP_FACTS;
/// Messages of one call.
const MESSAGES_PER_CALL: usize = meshwork_proto::mesh::MAX_GOSSIP_MESSAGES;

/// What a peer is to hear of.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pending: Mutex<Pending>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// Facts, and whether each is to be told in full, with what it builds upon.
    keys: BTreeMap<Key<NodeId>, bool>,
    messages: VecDeque<Message<NodeId>>,
}

/// What one call carries.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// See [`Outbox::tell`].
    pub(super) keys: Vec<(Key<NodeId>, bool)>,
    pub(super) messages: Vec<Message<NodeId>>,
}

impl Outbox {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fact, `whole` when the peer may lack what it builds upon; false when there are too many
    /// already.
    pub(super) fn tell(&self, key: Key<NodeId>, whole: bool) -> bool {
        let mut pending = self.pending();
        if pending.keys.len() >= MAX_KEYS && !pending.keys.contains_key(&key) {
            return false;
        }
        *pending.keys.entry(key).or_default() |= whole;
        drop(pending);
        self.filled.notify_one();
        true
    }

    /// Adds a message; false when an older one had to leave.
    pub(super) fn send(&self, message: Message<NodeId>) -> bool {
        let mut pending = self.pending();
        let fits = pending.messages.len() < MAX_MESSAGES;
        if !fits {
            pending.messages.pop_front();
        }
        pending.messages.push_back(message);
        drop(pending);
        self.filled.notify_one();
        fits
    }

    /// The peer knows the fact by now.
    pub(super) fn untell(&self, key: &Key<NodeId>) {
        self.pending().keys.remove(key);
    }

    /// Takes over what another connection to the same peer has not delivered.
    pub(super) fn absorb(&self, other: &Self) {
        let keys = std::mem::take(&mut other.pending().keys);
        self.put_back(Batch {
            keys: keys.into_iter().collect(),
            messages: Vec::new(),
        });
    }

    /// Puts back what could not be delivered. Messages go first again; facts join the others.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut pending = self.pending();
        for message in batch.messages.into_iter().rev() {
            if pending.messages.len() < MAX_MESSAGES {
                pending.messages.push_front(message);
            }
        }
        for (key, whole) in batch.keys {
            if pending.keys.len() < MAX_KEYS {
                *pending.keys.entry(key).or_default() |= whole;
            }
        }
        drop(pending);
        self.filled.notify_one();
    }

    /// Waits for something to deliver, and takes as much as fits one call: rotations and revocations
    /// first, as they are few and urgent, then suspicions, then what nodes say.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn take(&self) -> Batch {
        while self.is_empty() {
            self.filled.notified().await;
            if !self.has_messages() {
                // A message on the way takes the facts along.
                tokio::select! {
                    biased;
                    () = sleep(GATHERING) => {}
                    () = self.message() => {}
                }
            }
        }
        let mut pending = self.pending();
        let count = pending.messages.len().min(MESSAGES_PER_CALL);
        let messages = pending.messages.drain(..count).collect();
        // Keys are ordered by kind, the urgent ones last.
        let keys = std::iter::from_fn(|| pending.keys.pop_last());
        Batch {
            keys: keys.take(KEYS_PER_CALL).collect(),
            messages,
        }
    }

    /// Waits for a message.
    async fn message(&self) {
        while !self.has_messages() {
            self.filled.notified().await;
        }
    }

    fn has_messages(&self) -> bool {
        !self.pending().messages.is_empty()
    }

    fn is_empty(&self) -> bool {
        let pending = self.pending();
        pending.keys.is_empty() && pending.messages.is_empty()
    }
}
