//! One connection to a peer, and what is known about it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{NodeId, Scope};
use meshwork_proto::codec;
use meshwork_proto::mesh::PeerView;
use meshwork_proto::rpc::Codec;
use meshwork_proto::service::{CallOptions, ItemStream, Method, RawCall};
use quinn::{Connection, VarInt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gossip::Outbox;
use crate::path::Bound;
use crate::rpc::{self, Busy, CallError, InFlight, Lanes, LastUse, Outgoing, Standing, after};
use crate::watch;

/// A connection whose peer is proven.
pub(crate) struct Link {
    pub(crate) conn: Connection,
    /// Where the peer is, below the connection.
    path: Bound,
    pub(crate) peer: NodeId,
    /// Whether we dialled it.
    pub(crate) dialled: bool,
    /// How the peer stands with us.
    pub(crate) standing: watch::Sender<Standing>,
    /// Calls under way in both directions.
    pub(crate) calls: InFlight,
    pub(crate) last_use: Arc<LastUse>,
    /// Set when another connection to the peer has taken this one's place.
    pub(crate) retired: CancellationToken,
    /// What the peer is to hear of.
    pub(crate) outbox: Outbox,
    /// Set when the peer says that it is a client: nobody dials it. Several clients
    /// may share one identity, as the command lines of one user do.
    is_client: AtomicBool,
    /// When the minute began, and how often the peer has presented tokens in it.
    presentations: Mutex<(Instant, u32)>,
    next_call: AtomicU64,
    max_frame: usize,
    /// What small calls share.
    pub(crate) lanes: Arc<Lanes>,
}

/// How often a peer may present tokens in a minute: each time costs us signatures to check.
const PRESENTATIONS: u32 = 30;
/// See [`PRESENTATIONS`].
const MINUTE: Duration = Duration::from_mins(1);

impl Link {
    /// A new connection; `tasks` owns what it spawns.
    pub(crate) fn new(
        conn: Connection,
        path: Bound,
        dialled: bool,
        max_frame: usize,
        tasks: &TaskTracker,
    ) -> Self {
        Self {
            lanes: Lanes::new(conn.clone(), tasks.clone()),
            peer: crate::transport::peer_id(&conn),
            conn,
            path,
            dialled,
            standing: watch::Sender::default(),
            calls: InFlight::default(),
            last_use: Arc::new(LastUse::now()),
            retired: CancellationToken::new(),
            outbox: Outbox::default(),
            is_client: AtomicBool::new(false),
            presentations: Mutex::new((Instant::now(), 0)),
            next_call: AtomicU64::new(1),
            max_frame,
        }
    }

    /// Makes a unary call by `deadline`.
    pub(crate) async fn unary(
        &self,
        call: &RawCall,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let (outgoing, busy) = self.begin(call, deadline)?;
        let fits = call.body.len() <= self.max_frame;
        match fits.then(|| self.lanes.begin(call, deadline)).flatten() {
            Some(pending) => pending.await,
            None => Box::pin(rpc::unary(outgoing, busy)).await,
        }
    }

    /// Makes a streaming call, to be accepted by `deadline`.
    pub(crate) async fn stream(
        &self,
        call: &RawCall,
        deadline: Instant,
    ) -> Result<ItemStream<Bytes>, CallError> {
        let (outgoing, busy) = self.begin(call, deadline)?;
        rpc::stream(outgoing, busy).await
    }

    /// Makes a call of a method that takes a stream; see [`rpc::duplex`]. Gives the items back when the
    /// connection takes no more calls.
    pub(crate) async fn duplex(
        &self,
        call: &RawCall,
        deadline: Instant,
        items: ItemStream<Bytes>,
        tasks: &TaskTracker,
    ) -> Result<Result<ItemStream<Bytes>, CallError>, ItemStream<Bytes>> {
        match self.begin(call, deadline) {
            Ok((outgoing, busy)) => Ok(rpc::duplex(outgoing, items, busy, tasks).await),
            Err(_) => Err(items),
        }
    }

    /// Makes a typed unary call within `patience`.
    pub(crate) async fn ask<M: Method>(
        &self,
        request: &M::Request,
        patience: Duration,
    ) -> Result<M::Response, CallError> {
        let call = RawCall {
            method: M::INFO,
            codec: Codec::Postcard,
            body: codec::encode(request).into(),
            options: CallOptions::within(patience),
        };
        let answer = self.unary(&call, after(patience)).await?;
        Ok(meshwork_proto::service::from_body(
            Codec::Postcard,
            &answer,
        )?)
    }

    fn begin<'a>(
        &'a self,
        call: &'a RawCall,
        deadline: Instant,
    ) -> Result<(Outgoing<'a>, Busy), CallError> {
        let busy = self.calls.enter().ok_or(CallError::NotServed)?;
        if call.method.service != meshwork_proto::mesh::SERVICE {
            self.last_use.touch();
        }
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let outgoing = Outgoing {
            conn: &self.conn,
            id,
            call,
            deadline,
            max_frame: self.max_frame,
        };
        Ok((outgoing, busy))
    }

    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        self.conn.close(code, reason.as_bytes());
    }

    /// Notes whether the peer says that it is a client. We dial no clients.
    pub(crate) fn note_client(&self, is_client: bool) {
        self.is_client
            .store(is_client && !self.dialled, Ordering::Relaxed);
    }

    /// Whether the peer is a client, of which there may be more with its identity.
    pub(crate) fn is_client(&self) -> bool {
        self.is_client.load(Ordering::Relaxed)
    }

    /// Whether the peer speaks for itself in the mesh: it holds scope `announce`. Only such peers
    /// are sent what others announce; a user's client asks instead.
    pub(crate) fn is_node(&self) -> bool {
        self.standing
            .borrow()
            .grants
            .iter()
            .any(|grant| grant.scopes.allows(Scope::Announce))
    }

    /// The peer stands so with us from now on.
    pub(crate) fn stands(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// Whether the peer may present tokens once more.
    pub(crate) fn may_present(&self) -> bool {
        let mut minute = self
            .presentations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if minute.0.elapsed() >= MINUTE {
            *minute = (Instant::now(), 0);
        }
        minute.1 = minute.1.saturating_add(1);
        minute.1 <= PRESENTATIONS
    }

    pub(crate) fn view(&self) -> PeerView {
        let stats = self.conn.stats();
        let (path, address) = self.path.view(self.conn.remote_address());
        PeerView {
            node: self.peer,
            path,
            address,
            rtt: self.conn.rtt(),
            lost: stats.path.lost_packets,
            sent: stats.path.sent_packets,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            age: self.last_use.age(),
            neighbour: false,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .field("dialled", &self.dialled)
            .finish_non_exhaustive()
    }
}
