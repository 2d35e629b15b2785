//! The far end of one or more connections: one process of a peer, wherever it is now.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_proto::path::{PeerPaths, Route};

use super::keys::ProbeKeys;
use super::label::ConnId;

/// The far end of connections with one process of a peer. Nodes have one; the clients of a user, who
/// share their identity, one each.
pub(super) struct Remote {
    pub(super) id: u64,
    pub(super) node: NodeId,
    /// The virtual address of it.
    pub(super) label: SocketAddr,
    /// Packets, or batches of them, since it is known.
    sent: AtomicU64,
    received: AtomicU64,
    /// Whether the machine looks at the traffic by itself; if not, it is told of the next packet.
    watched: AtomicBool,
    /// Packets of a dial since the last answer.
    pub(super) unanswered: AtomicU32,
    state: Mutex<RemoteState>,
}

/// What changes about a remote with its paths. Locked before the table, never after it.
pub(super) struct RemoteState {
    pub(super) machine: PeerPaths,
    /// Of its connections, the newest last.
    pub(super) keys: Vec<Arc<ProbeKeys>>,
    /// Where it may be, by what was said before there was a connection.
    pub(super) candidates: Vec<SocketAddr>,
    /// Relays that are linked with both of us.
    pub(super) relays: BTreeSet<NodeId>,
    /// The way that was used last.
    pub(super) route: Option<Route>,
    /// The relay that has named it last, before there was a connection.
    pub(super) called: Option<Route>,
    /// Where it sees us.
    pub(super) observed: Option<SocketAddr>,
    /// Dials under way.
    pub(super) dials: u32,
    /// Connection ids of their handshakes.
    pub(super) ids: Vec<ConnId>,
    /// Whether quinn knows it by its virtual address.
    pub(super) moved: bool,
    /// When it is forgotten, if nothing has come of it until then.
    pub(super) expires: Option<Duration>,
}

impl Remote {
    pub(super) fn new(id: u64, node: NodeId, label: SocketAddr, machine: PeerPaths) -> Self {
        Self {
            id,
            node,
            label,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            state: Mutex::new(RemoteState {
                machine,
                keys: Vec::new(),
                candidates: Vec::new(),
                relays: BTreeSet::new(),
                route: None,
                called: None,
                observed: None,
                dials: 0,
                ids: Vec::new(),
                moved: false,
                expires: None,
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, RemoteState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something was sent. Whether the machine is to be told.
    pub(super) fn note_sent(&self) -> bool {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.is_news()
    }

    /// Notes that something came: over the way in use, or another one. Whether the machine is to be
    /// told.
    pub(super) fn note_received(&self, in_use: bool) -> bool {
        self.received
            .fetch_add(u64::from(in_use), Ordering::Relaxed);
        self.is_news()
    }

    fn is_news(&self) -> bool {
        !self.watched.load(Ordering::Relaxed) && !self.watched.swap(true, Ordering::Relaxed)
    }

    /// From now on the next packet is news, if the machine does not look by itself.
    pub(super) fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// What was sent and received so far.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.sent), of(&self.received))
    }
}

impl RemoteState {
    /// Whether there is a connection with it.
    pub(super) fn is_bound(&self) -> bool {
        !self.keys.is_empty()
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("id", &self.id)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}
