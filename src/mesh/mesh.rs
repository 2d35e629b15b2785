//! [`Mesh`], the face of the crate: a node of the mesh, started, used and shut down.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{Contact, Grant, MeshId, NodeId, Revocation, Ticket, Token, Warrant};
use meshwork_proto::announcement::{Announcement, Role, SignedAnnouncement};
use meshwork_proto::beat::Availability;
use meshwork_proto::facts::Fact;
use meshwork_proto::mesh::{Join, JoinMesh, Joined, MeshStatus, PeerView};
use meshwork_proto::ports::{Directory, Known, Trust};
use meshwork_proto::psk::SignedPskRotation;
use meshwork_proto::query::{Query, ScopeFilter, View};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{BoxFuture, Caller, ItemStream, RawCall, Router};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::config::MeshConfig;
use crate::credentials::Credentials;
use crate::env::Env;
use crate::error::MeshError;
use crate::gossip::{Gossip, GossipStats, MemberEvent};
use crate::node::Node;
use crate::path::Paths;
use crate::peer::{Link, Peers};
use crate::psk::{PskView, Psks};
use crate::rpc::{CallError, Desk, FEW_STREAMS, Outlook, ServeHandle, after, close_code, narrowed};
use crate::service;
use crate::transport::{BindError, Endpoint, TransportConfig};
use crate::traversal::{self, Traversal};

/// How long joining may take with one contact.
const JOINING: Duration = Duration::from_secs(15);
/// Connections that a call is tried on when one after the other closes between calls.
const CONNECTIONS_PER_CALL: usize = 3;
/// Keep-alive packets within the time after which a silent peer is given up.
const KEEP_ALIVES: u32 = 3;

/// A node of the mesh. Cheap to clone; all clones are the same node. It runs until
/// [`Mesh::shutdown`], even when all clones are dropped.
#[derive(Clone)]
pub struct Mesh(Arc<Node>);

impl Mesh {
    /// Starts a node that serves `router` and the `mesh` service. Must be called within a tokio
    /// runtime, which carries the node's tasks.
    pub fn start(config: MeshConfig, env: Env, router: Router) -> Result<Self, MeshError> {
        let credentials = Arc::new(Credentials::load(
            config.identity.clone(),
            config.authority,
            config.clock_tolerance,
            config.tokens.clone(),
            env.clock.clone(),
            env.state.clone(),
        )?);
        let local = config.identity.node_id();
        let psks = Psks::load(&config, &*env.state, credentials.now())?;
        let gossip = Gossip::load(&config, &env, &credentials, &psks)?;
        let admission = Admission::load(&*env.state)?;
        let transport = transport(&config, &env, credentials.clone(), &psks);
        let (bind, addresses) = (env.bind, env.addresses);
        let paths = Paths::new(local, env.socket, bind, addresses, config.path.clone());
        let paths = paths.map_err(BindError::Endpoint)?;
        let node = Arc::new(Node {
            desk: Arc::new(Desk::new(local, config.limits.clone(), env.clock)),
            outlook: Outlook::new(),
            endpoint: Endpoint::bind(&transport, env.runtime, paths.socket())?,
            paths,
            traversal: Traversal::new(&config)?,
            peers: Peers::new(local),
            tasks: TaskTracker::new(),
            started: Instant::now(),
            state: env.state,
            entropy: env.entropy,
            config,
            credentials,
            psks,
            gossip,
            admission,
        });
        node.desk.serve(service::router(&node));
        node.desk.serve(traversal::router(&node));
        node.desk.serve(router);
        node.tasks.spawn(node.clone().accept());
        node.tasks.spawn(node.clone().upkeep());
        node.tasks.spawn(node.clone().traverse());
        let stopping = node.desk.stopping.clone();
        node.tasks.spawn(node.paths.clone().run(stopping));
        node.tasks.spawn(node.clone().run_membership());
        node.tasks.spawn(node.clone().keep_rejoining());
        Ok(Self(node))
    }

    /// Serves these methods, too; they replace others of the same name.
    pub fn serve(&self, router: Router) {
        self.0.desk.serve(router);
    }

    /// Serves these methods as long as the handle lives, and announces their services, once the node
    /// announces anything.
    pub fn offer(&self, router: Router) -> ServeHandle {
        ServeHandle::new(&self.0, router)
    }

    /// Makes sure that `to` can be called: connects if there is no connection.
    pub(crate) async fn way_to(&self, to: NodeId, deadline: Instant) -> Result<(), RpcError> {
        if to != self.node_id() {
            self.route(to, deadline).await?;
        }
        Ok(())
    }

    /// The inside.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.0
    }

    /// Who this node is.
    pub fn node_id(&self) -> NodeId {
        self.0.credentials.node_id()
    }

    /// Where it listens.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.0.paths.local_addr().into_iter().collect()
    }

    /// Connects to the contact, unless that is done already: all its addresses are tried, each with
    /// a short head start before the next, and both sides have presented their tokens in the end.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a dial that was begun to itself.
    pub async fn dial(&self, contact: &Contact, deadline: Duration) -> Result<NodeId, MeshError> {
        let link = self.0.reach(contact, after(deadline)).await?;
        Ok(link.peer)
    }

    /// Stays connected with the contact until shutdown: dials again and again, with pauses that
    /// grow to 30 s. Addresses given later replace those given before.
    pub fn pin(&self, contact: Contact) {
        let peer = contact.node;
        if peer != self.node_id() && self.0.peers.pin(contact) {
            self.0.tasks.spawn(self.0.clone().keep_connected(peer));
        }
    }

    /// Announces `draft` to the mesh, and renews it until shutdown or the next announcement.
    /// Version, time and lifetime are filled in; the version is reserved durably before it is used.
    /// What is announced already is not announced again.
    #[allow(
        clippy::unused_async,
        reason = "announcing may come to wait for the disk"
    )]
    pub async fn announce(&self, draft: Announcement) -> Result<(), MeshError> {
        self.0.announce(draft)
    }

    /// What of this node is free from now on. It goes out with the next beat, within 5 s; of what
    /// changes in the meantime, others see the last.
    pub fn set_availability(&self, available: Option<Availability>) {
        self.0.gossip.set_availability(available);
    }

    /// What a node has free, by its last beat.
    pub fn availability(&self, node: &NodeId) -> Option<Arc<Availability>> {
        self.0.gossip.facts().availability(node)
    }

    /// Takes announcements that were fetched from another node, without passing them on: a client
    /// learns in this way where a node is and over which relays. Those that do not hold are left out.
    pub fn learn(&self, announcements: Vec<SignedAnnouncement>) {
        for signed in announcements {
            self.0.credentials.with_context(|trust| {
                self.0
                    .gossip
                    .facts()
                    .accept(Fact::Announcement(signed), trust);
            });
        }
    }

    /// Every change of what this node holds of others: alive, suspect or dead. Who lags behind by
    /// more than 1,024 of them misses the oldest.
    pub fn watch_members(&self) -> broadcast::Receiver<MemberEvent> {
        self.0.gossip.watch_members()
    }

    /// The pre-shared keys in use, and every change of them. A rotation is kept in the node's state
    /// before it is in force; who keeps the key elsewhere, too, writes it there when it changes.
    pub fn psk(&self) -> watch::Receiver<PskView> {
        self.0.psks.watch()
    }

    /// Follows the rotation of the pre-shared key, durably, and spreads it. That it is followed
    /// already is no error.
    pub fn rotate_psk(&self, rotation: SignedPskRotation) -> Result<(), MeshError> {
        self.0.rotate_psk(rotation)
    }

    /// What the spreading of news counted.
    pub fn gossip_stats(&self) -> GossipStats {
        self.0.gossip.stats()
    }

    /// Redeems a ticket at the node that issued it. This node must have been started with the
    /// ticket's mesh and PSK. The token that it gets is presented to all peers at once; keeping it
    /// beyond this run is the caller's.
    pub async fn join(&self, ticket: &Ticket, name: &str) -> Result<Joined, MeshError> {
        ticket.check_expiry(self.0.credentials.now())?;
        let contact = ticket
            .contacts
            .iter()
            .find(|contact| contact.node == ticket.issuer);
        let contact = contact.ok_or(MeshError::NoAddress {
            node: ticket.issuer,
        })?;
        let request = Join {
            id: ticket.admission.id,
            secret: ticket.admission.secret,
            name: name.to_owned(),
        };
        let by = after(JOINING);
        let link = self.0.reach(contact, by).await?;
        let joined = link
            .ask::<JoinMesh>(&request, JOINING)
            .await
            .map_err(RpcError::from)?;
        self.0
            .heed(Some(link.peer), joined.revocations.clone())
            .await?;
        self.add_token(joined.token.clone()).await;
        Ok(joined)
    }

    /// Adds a token of this node, and presents it to all peers.
    pub async fn add_token(&self, token: Token) {
        self.0.credentials.add_token(token);
        self.0.present_again().await;
    }

    /// Heeds the revocation from now on, durably, and spreads it. What it cuts ends at once here,
    /// and elsewhere when it arrives. When it cannot be stored, that is the error; it is in force
    /// nonetheless until this node ends, and storing it is tried again.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), MeshError> {
        self.0.heed(None, vec![revocation]).await
    }

    /// This node's account of itself.
    pub fn status(&self) -> MeshStatus {
        self.0.status()
    }

    /// Connections in use, by node id.
    pub fn peers(&self) -> Vec<PeerView> {
        self.0.peer_views(&self.0.gossip.account().neighbours)
    }

    /// Connections that there are at all: in use, on their way up and on their way out.
    pub fn open_connections(&self) -> usize {
        self.0.endpoint.open_connections()
    }

    /// Nodes that satisfy `query` and whose announcements hold: the first `limit` of them by node
    /// id, and how many there are.
    pub fn find(&self, query: &Query, limit: usize) -> (Vec<Known>, usize) {
        self.0
            .gossip
            .facts()
            .store()
            .find(query, &View::everything(), limit)
    }

    /// As [`Mesh::find`], of those nodes that `filter` shows to this node: by its announced subnet
    /// and region, and the tenants of its configuration.
    pub fn find_scoped(
        &self,
        query: &Query,
        filter: ScopeFilter,
        limit: usize,
    ) -> (Vec<Known>, usize) {
        let view = self.0.view(filter);
        self.0.gossip.facts().store().find(query, &view, limit)
    }

    /// Shuts the node down: no new calls are taken, streams end, unary calls have until `deadline`
    /// to end, then everything stops. Returns when all tasks of the node have ended.
    pub async fn shutdown(&self, deadline: Duration) {
        let by = after(deadline);
        let node = &self.0;
        node.leave().await;
        node.desk.draining.cancel();
        node.desk.calls.close();
        let _ = timeout_at(by, node.desk.calls.wait()).await;
        // As long as there are relays to say it over.
        node.close_relayed().await;
        node.desk.stopping.cancel();
        node.endpoint
            .close(close_code::SHUTDOWN_CODE, b"the node shuts down");
        // Those that accept calls end before the last call does.
        node.tasks.close();
        node.tasks.wait().await;
        node.desk.calls.wait().await;
        let _ = timeout_at(by, node.endpoint.wait_idle()).await;
    }

    /// The connection for a call to `to`.
    async fn route(&self, to: NodeId, deadline: Instant) -> Result<Arc<Link>, RpcError> {
        // Calls under way may need others to end.
        if self.0.desk.stopping.is_cancelled() {
            return Err(MeshError::ShuttingDown.into());
        }
        if let Some(link) = self.0.peers.get(&to) {
            return Ok(link);
        }
        let contact = self.0.contact(to);
        Ok(self.0.reach(&contact, deadline).await?)
    }

    /// Makes a call on the connection to `to`. When that ends under the call, it is made again on
    /// another one, if it was not looked at or if a repeat does no harm.
    async fn on_link<T, Fut>(
        &self,
        to: NodeId,
        call: RawCall,
        attempt: impl Fn(Arc<Link>, Arc<RawCall>, Instant) -> Fut,
    ) -> Result<T, RpcError>
    where
        Fut: Future<Output = Result<T, CallError>>,
    {
        let deadline = after(call.options.deadline);
        let repeatable = call.method.idempotent || call.options.idempotency_key.is_some();
        let call = Arc::new(call);
        let mut link = self.route(to, deadline).await?;
        let mut tried = 1;
        loop {
            let error = match attempt(link.clone(), call.clone(), deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let lost = matches!(error, CallError::Lost(_));
            let again = error.is_not_served() || lost && repeatable;
            if !again || tried == CONNECTIONS_PER_CALL {
                return Err(error.into());
            }
            self.0.peers.forget(&link);
            link = match self.route(to, deadline).await {
                Ok(other) => other,
                Err(_) => return Err(error.into()),
            };
            tried += 1;
        }
    }

    async fn call(self, to: NodeId, mut call: RawCall) -> Result<Bytes, RpcError> {
        call.options = narrowed(call.options);
        if to == self.node_id() {
            let standing = self.0.credentials.own_standing();
            return self.0.desk.call_self(call, standing).await;
        }
        let attempt = |link: Arc<Link>, call: Arc<RawCall>, deadline| async move {
            link.unary(&call, deadline).await
        };
        self.on_link(to, call, attempt).await
    }

    async fn stream(self, to: NodeId, mut call: RawCall) -> Result<ItemStream<Bytes>, RpcError> {
        call.options = narrowed(call.options);
        if to == self.node_id() {
            let standing = self.0.credentials.own_standing();
            return self.0.desk.stream_self(call, standing).await;
        }
        let attempt = |link: Arc<Link>, call: Arc<RawCall>, deadline| async move {
            link.stream(&call, deadline).await
        };
        self.on_link(to, call, attempt).await
    }

    /// What was sent of a stream cannot be sent again: a call that fails under way is not repeated.
    async fn duplex(
        self,
        to: NodeId,
        mut call: RawCall,
        mut items: ItemStream<Bytes>,
    ) -> Result<ItemStream<Bytes>, RpcError> {
        call.options = narrowed(call.options);
        if to == self.node_id() {
            let standing = self.0.credentials.own_standing();
            return self.0.desk.duplex_self(call, items, standing).await;
        }
        let deadline = after(call.options.deadline);
        for _ in 0..CONNECTIONS_PER_CALL {
            let link = self.route(to, deadline).await?;
            match link.duplex(&call, deadline, items, &self.0.tasks).await {
                Ok(result) => return Ok(result?),
                Err(unsent) => items = unsent,
            }
            self.0.peers.forget(&link);
        }
        Err(CallError::NotServed.into())
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mesh").field(&self.node_id()).finish()
    }
}

impl Caller for Mesh {
    fn call_raw(&self, to: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
        Box::pin(self.clone().call(to, call))
    }

    fn stream_raw(
        &self,
        to: NodeId,
        call: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        Box::pin(self.clone().stream(to, call))
    }

    fn duplex_raw(
        &self,
        to: NodeId,
        call: RawCall,
        items: ItemStream<Bytes>,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        Box::pin(self.clone().duplex(to, call, items))
    }
}

impl Directory for Mesh {
    fn local(&self) -> NodeId {
        self.node_id()
    }

    fn nodes(&self) -> Vec<Known> {
        self.0.gossip.facts().store().iter().collect()
    }

    fn find_scoped(&self, query: &Query, scope: &ScopeFilter) -> Vec<Known> {
        self.find_scoped(query, scope.clone(), usize::MAX).0
    }

    fn lost(&self, query: &Query, scope: &ScopeFilter) -> Vec<Known> {
        let view = self.0.view(scope.clone());
        self.0.gossip.facts().store().find_dead(query, &view)
    }

    fn with_role(&self, role: Role) -> Vec<(NodeId, u64)> {
        self.0.gossip.facts().store().with_role(role)
    }

    fn knows(&self, node: &NodeId) -> bool {
        self.0.gossip.facts().store().version(node).is_some()
    }

    fn peer(&self, node: &NodeId) -> Option<PeerView> {
        self.0.peers.get(node).map(|link| link.view())
    }
}

impl Trust for Mesh {
    fn verify(&self, warrant: &Warrant) -> Result<Grant, RpcError> {
        self.0.credentials.verify_warrant(warrant)
    }
}

/// The transport's settings of a node.
fn transport(
    config: &MeshConfig,
    env: &Env,
    credentials: Arc<Credentials>,
    psks: &Psks,
) -> TransportConfig {
    let mesh = MeshId::of(&config.authority);
    let mut transport = TransportConfig::new(config.identity.clone(), mesh, psks.set());
    transport.entropy = env.entropy.clone();
    transport.authorize = Arc::new(move |peer| !credentials.is_revoked(peer));
    transport.idle_timeout = config.dead_after;
    transport.keep_alive = Some(config.dead_after / KEEP_ALIVES);
    transport.max_bidi_streams = FEW_STREAMS.min(config.limits.streams());
    transport.max_uni_streams = FEW_STREAMS;
    transport
}
