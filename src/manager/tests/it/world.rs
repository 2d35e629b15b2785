//! A mesh in one process: an authority, users, agents, and a manager that calls them directly.

mod net;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_identity::{
    Grant, Identity, Limits, NodeId, Resource, Revocations, Scope, Scopes, Timestamp, Token,
    TokenRequest, VerifyContext, Warrant,
};
use meshwork_manager::{Manager, ManagerConfig};
use meshwork_proto::SessionId;
use meshwork_proto::agent::LogChunk;
use meshwork_proto::announcement::{Announcement, Hardware, Role, Software};
use meshwork_proto::kernel::KernelSpec;
use meshwork_proto::manager::{
    self as api, CreateSession, CreatedSession, ListNodes, ListSessions, NodeView, SessionLogs,
    SessionRef, StopSession,
};
use meshwork_proto::ports::{Trust, WallClock};
use meshwork_proto::rpc::{Codec, RpcError};
use meshwork_proto::service::{
    CallContext, Caller, ItemStream, Method, RawReply, Router, from_body, to_body,
};
use meshwork_proto::session::{SessionOrder, SessionSpec, SessionUpdate, SessionView};
use meshwork_proto::slots::Resources;
use tokio::time::Instant;

use self::net::{Net, Wire};
use crate::agent::Agent;

/// Wall-clock time at the start of every test.
const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Runs with tokio's clock.
struct Clock(Mutex<(Timestamp, Instant)>);

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        let (start, at) = *self.0.lock().unwrap();
        start.saturating_add(at.elapsed())
    }
}

struct Authority(NodeId, Arc<Clock>);

impl Trust for Authority {
    fn verify(&self, warrant: &Warrant) -> Result<Grant, RpcError> {
        let revocations = Revocations::new();
        let context = VerifyContext::new(&self.0, self.1.now(), &revocations);
        let verified = warrant.verify(&context);
        verified
            .map(|(grant, _)| grant)
            .map_err(|e| RpcError::denied(e.to_string()))
    }
}

fn context(peer: NodeId, local: NodeId, grants: Vec<Grant>) -> CallContext {
    CallContext {
        peer,
        local,
        grants: grants.into(),
        deadline: None,
        idempotency_key: None,
        trace: None,
    }
}

/// Somebody with a key and a token.
pub(crate) struct User {
    pub(crate) identity: Identity,
    pub(crate) token: Token,
    grants: Vec<Grant>,
}

impl User {
    pub(crate) fn id(&self) -> NodeId {
        self.identity.node_id()
    }
}

pub(crate) struct World {
    net: Arc<Net>,
    clock: Arc<Clock>,
    authority: Identity,
    local: NodeId,
    folder: tempfile::TempDir,
    pub(crate) manager: Option<Manager>,
    router: Router,
    pub(crate) user: User,
    orders: Mutex<u32>,
}

impl World {
    /// A mesh with no agent yet, and one user.
    pub(crate) async fn new() -> Self {
        let authority = Identity::from_seed(&[1; 32]);
        let local = Identity::from_seed(&[2; 32]).node_id();
        let net = Arc::new(Net::default());
        *net.local.lock().unwrap() = Some(local);
        let clock = Arc::new(Clock(Mutex::new((START, Instant::now()))));
        let user = make_user(
            &authority,
            3,
            Scopes::from([Scope::Call]),
            Resource::any(),
            Limits::none(),
            &clock,
        );
        let mut world = Self {
            net,
            clock,
            authority,
            local,
            folder: tempfile::tempdir().unwrap(),
            manager: None,
            router: Router::new(),
            user,
            orders: Mutex::new(0),
        };
        world.start().await;
        world
    }

    /// A mesh whose agents have been heard.
    pub(crate) async fn with_agents<const N: usize>(gpus: [u32; N]) -> (Self, [Agent; N]) {
        let world = Self::new().await;
        let mut seed = 99;
        let agents = gpus.map(|gpus| {
            seed += 1;
            world.add_agent(seed, gpus)
        });
        world.settle().await;
        (world, agents)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) async fn try_start(
        &self,
        folder: PathBuf,
    ) -> Result<Manager, meshwork_manager::ManagerError> {
        let config = ManagerConfig { data_dir: folder };
        let wire: Arc<dyn Caller> = Arc::new(Wire(Arc::clone(&self.net)));
        let trust = Arc::new(Authority(self.authority.node_id(), Arc::clone(&self.clock)));
        let (net, clock) = (Arc::clone(&self.net), Arc::clone(&self.clock));
        Manager::start(config, wire, net, trust, clock).await
    }

    /// Starts the manager on what its folder holds.
    pub(crate) async fn start(&mut self) {
        let manager = self.try_start(self.folder().to_owned()).await.unwrap();
        self.router = manager.router();
        self.manager = Some(manager);
    }

    /// Stops it in good order.
    pub(crate) async fn shutdown(&mut self) {
        self.manager
            .take()
            .unwrap()
            .shutdown(Duration::from_secs(5))
            .await;
        self.router = Router::new();
    }

    /// Goes on counting wall-clock time in a new runtime.
    pub(crate) fn reset_clock(&self) {
        let mut clock = self.clock.0.lock().unwrap();
        *clock = (
            clock.0.saturating_add(Duration::from_mins(1)),
            Instant::now(),
        );
    }

    /// Requests that the agent's faults kept back arrive after all.
    pub(crate) async fn deliver_late(&self, agent: &Agent) {
        let lost = std::mem::take(&mut agent.faults().lost);
        for call in lost {
            let RawReply::Unary(answer) = self.net.dispatch(agent, &call) else {
                unreachable!()
            };
            answer.await.unwrap();
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.shutdown().await;
        self.start().await;
        self.settle().await;
    }

    /// Forgets the manager without a word to it: its tasks go with their runtime.
    pub(crate) fn forget(&mut self) {
        self.manager = None;
        self.router = Router::new();
    }

    /// Adds an agent named `n<seed>` with 8 threads, 32 GB and that many 80 GB GPUs.
    pub(crate) fn add_agent(&self, seed: u8, gpus: u32) -> Agent {
        let node = Identity::from_seed(&[seed; 32]).node_id();
        let agent = Agent::new(node, gpus);
        self.net.agents.lock().unwrap().insert(node, agent.clone());
        self.announce(node, &format!("n{seed}"), Role::Agent);
        agent
    }

    /// Gives an announced node these tags instead of its own.
    pub(crate) fn retag(&self, node: NodeId, tags: &[&str]) {
        let mut known = self.net.known.lock().unwrap();
        let said = Arc::make_mut(known.get_mut(&node).unwrap());
        said.tags = tags.iter().map(ToString::to_string).collect();
    }

    pub(crate) fn announce(&self, node: NodeId, name: &str, role: Role) {
        let announcement = Announcement {
            version: 1,
            issued_at: self.clock.now(),
            ttl: Duration::from_hours(1),
            name: name.into(),
            roles: BTreeSet::from([role]),
            addresses: Vec::new(),
            relays: Vec::new(),
            services: BTreeSet::new(),
            hardware: Hardware::default(),
            software: Software::default(),
            images: Vec::new(),
            models: BTreeSet::new(),
            tools: BTreeSet::new(),
            tags: BTreeSet::from([format!("tag-{name}")]),
            subnet: None,
            region: None,
            ..Announcement::default()
        };
        self.net
            .known
            .lock()
            .unwrap()
            .insert(node, Arc::new(announcement));
    }

    pub(crate) fn add_user(&self, seed: u8, scopes: impl Into<Scopes>, limits: Limits) -> User {
        let any = Resource::any();
        make_user(
            &self.authority,
            seed,
            scopes.into(),
            any,
            limits,
            &self.clock,
        )
    }

    /// Somebody who may call what `resource` covers.
    pub(crate) fn add_user_for(&self, seed: u8, resource: &str) -> User {
        let (call, resource) = (Scopes::from([Scope::Call]), resource.parse().unwrap());
        make_user(
            &self.authority,
            seed,
            call,
            resource,
            Limits::none(),
            &self.clock,
        )
    }

    /// Lets less than half a second pass.
    pub(crate) async fn blink(&self) {
        tokio::time::sleep(Duration::from_millis(450)).await;
    }

    pub(crate) async fn node(&self, agent: &Agent) -> NodeView {
        let nodes = self
            .call::<api::Nodes>(&self.user, &ListNodes::default())
            .await
            .unwrap();
        nodes.into_iter().find(|n| n.node == agent.node).unwrap()
    }

    pub(crate) async fn logs(
        &self,
        id: SessionId,
        follow: bool,
    ) -> Result<ItemStream<LogChunk>, RpcError> {
        let request = SessionLogs {
            session: id.to_string(),
            tail: None,
            follow,
            since: None,
        };
        self.stream::<api::Logs>(&self.user, &request).await
    }

    /// Lets everything happen that needs no more than a moment.
    pub(crate) async fn settle(&self) {
        self.pass(2).await;
    }

    pub(crate) async fn pass(&self, seconds: u64) {
        for _ in 0..seconds * 20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An order with a fresh id.
    pub(crate) fn order(&self, spec: SessionSpec) -> SessionOrder {
        let mut count = self.orders.lock().unwrap();
        *count += 1;
        let mut bytes = [0; 16];
        // Printed ids begin with this.
        bytes[..4].copy_from_slice(&count.wrapping_mul(0x9E37_79B9).to_be_bytes());
        let session = SessionId::from_bytes(bytes);
        SessionOrder {
            session,
            spec,
            issued_at: self.clock.now(),
            valid_for: Duration::from_hours(1),
        }
    }

    pub(crate) async fn submit(
        &self,
        user: &User,
        order: &SessionOrder,
    ) -> Result<CreatedSession, RpcError> {
        let request = CreateSession {
            warrant: seal(user, order),
            dry_run: false,
        };
        self.call::<api::Create>(user, &request).await
    }

    /// A session of the default user, as its node took it.
    pub(crate) async fn run(&self, spec: SessionSpec) -> Result<CreatedSession, RpcError> {
        self.submit(&self.user, &self.order(spec)).await
    }

    /// The same, small and without GPUs.
    pub(crate) async fn run_small(&self) -> SessionId {
        self.run(spec(Resources::default()))
            .await
            .unwrap()
            .view
            .session
    }

    pub(crate) async fn call<M: Method>(
        &self,
        user: &User,
        request: &M::Request,
    ) -> Result<M::Response, RpcError> {
        let RawReply::Unary(answer) = self.dispatch::<M>(user, request)? else {
            unreachable!()
        };
        from_body(Codec::Postcard, &answer.await?)
    }

    pub(crate) async fn stream<M: Method>(
        &self,
        user: &User,
        request: &M::Request,
    ) -> Result<ItemStream<M::Response>, RpcError> {
        let RawReply::Stream(items) = self.dispatch::<M>(user, request)? else {
            unreachable!()
        };
        Ok(Box::pin(
            items.await?.map(|item| from_body(Codec::Postcard, &item?)),
        ))
    }

    fn dispatch<M: Method>(&self, user: &User, request: &M::Request) -> Result<RawReply, RpcError> {
        let cx = context(user.id(), self.local, user.grants.clone());
        let body = to_body(Codec::Postcard, request).unwrap();
        self.router
            .dispatch(M::INFO.service, M::INFO.name, cx, Codec::Postcard, body)
    }

    pub(crate) async fn get(&self, text: &str) -> Result<SessionView, RpcError> {
        self.call::<api::Get>(
            &self.user,
            &SessionRef {
                session: text.into(),
            },
        )
        .await
    }

    pub(crate) async fn view(&self, id: SessionId) -> SessionView {
        self.get(&id.to_string()).await.unwrap()
    }

    pub(crate) async fn stop(&self, id: SessionId) -> SessionView {
        let request = StopSession {
            session: id.to_string(),
            grace: None,
        };
        self.call::<api::Stop>(&self.user, &request).await.unwrap()
    }

    pub(crate) async fn remove(&self, id: SessionId) -> Result<(), RpcError> {
        self.call::<api::Remove>(
            &self.user,
            &SessionRef {
                session: id.to_string(),
            },
        )
        .await
    }

    pub(crate) async fn list(&self, user: &User) -> Vec<SessionId> {
        let request = ListSessions {
            ended: true,
            everyone: false,
        };
        let views = self.call::<api::List>(user, &request).await.unwrap();
        views.into_iter().map(|v| v.session).collect()
    }

    pub(crate) async fn watch(&self, id: SessionId) -> ItemStream<SessionUpdate> {
        self.stream::<api::Watch>(
            &self.user,
            &SessionRef {
                session: id.to_string(),
            },
        )
        .await
        .unwrap()
    }
}

/// One small kernel.
pub(crate) fn spec(resources: Resources) -> SessionSpec {
    let kernel = KernelSpec {
        image: "busybox".into(),
        resources,
        ..KernelSpec::default()
    };
    SessionSpec {
        kernel,
        ..SessionSpec::default()
    }
}

/// The same with GPUs.
pub(crate) fn gpu_spec(gpu: &str) -> SessionSpec {
    spec(Resources {
        gpu: Some(gpu.parse().unwrap()),
        ..Resources::default()
    })
}

pub(crate) fn seal(user: &User, order: &SessionOrder) -> Warrant {
    Warrant::seal(&user.identity, user.token.clone(), order).unwrap()
}

fn make_user(
    authority: &Identity,
    seed: u8,
    scopes: Scopes,
    resource: Resource,
    limits: Limits,
    clock: &Clock,
) -> User {
    let identity = Identity::from_seed(&[seed; 32]);
    let request = TokenRequest {
        subject: identity.node_id(),
        scopes,
        resource,
        not_before: None,
        ttl: Duration::from_hours(24),
        depth: 0,
        limits,
    };
    let token = Token::issue_root(authority, request, clock.now(), [seed; 16]).unwrap();
    let (root, revocations) = (authority.node_id(), Revocations::new());
    let grant = token
        .verify(&VerifyContext::new(&root, clock.now(), &revocations))
        .unwrap();
    User {
        identity,
        token,
        grants: vec![grant],
    }
}
