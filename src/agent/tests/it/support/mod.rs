//! One agent on one Docker daemon, its authority, users and manager; and a look past the agent at
//! what Docker really has.

pub(crate) mod docker;
pub(crate) mod registry;
pub(crate) mod remote;
pub(crate) mod tar;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use meshwork_agent::{Agent, AgentConfig};
use meshwork_identity::{
    Grant, Identity, Limits, NodeId, Resource, Revocations, Scope, Scopes, Timestamp, Token,
    TokenRequest, VerifyContext, Warrant,
};
use meshwork_proto::agent::{
    self, CreateKernel, EventItem, Events, ExecItem, ExecKernel, ExecOrder, KernelEvent,
    KernelLogs, KernelRef, LogChunk, StopKernel,
};
use meshwork_proto::kernel::{Exit, KernelSpec, KernelState, KernelView};
use meshwork_proto::ports::{Trust, WallClock};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{
    self, BoxFuture, CallContext, CallOptions, Caller, ItemStream, RawCall, RawReply, Router,
};
use meshwork_proto::session::{SessionOrder, SessionSpec};
use meshwork_proto::{KernelId, SessionId};
use sha2::{Digest, Sha256};

pub(crate) const IMAGE: &str = "meshwork-test/busybox:1";

/// Longest wait for anything in a test; only a failing one waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Whether tests with containers are left out.
pub(crate) fn skipped() -> bool {
    std::env::var("MESHWORK_SKIP_DOCKER").is_ok_and(|v| v == "1")
}

pub(crate) fn authority() -> Identity {
    Identity::from_seed(&[1; 32])
}

pub(crate) fn manager() -> Identity {
    Identity::from_seed(&[2; 32])
}

pub(crate) fn user(n: u8) -> Identity {
    Identity::from_seed(&[100 + n; 32])
}

/// The system's clock, moved by `.0` milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Clock(pub std::sync::atomic::AtomicI64);

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        let real = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let millis = i64::try_from(real.as_millis()).unwrap();
        let moved = millis + self.0.load(std::sync::atomic::Ordering::Relaxed);
        Timestamp::from_millis(u64::try_from(moved).unwrap())
    }
}

pub(crate) fn now() -> Timestamp {
    Clock::default().now()
}

#[derive(Debug)]
struct RealTrust(Arc<Clock>);

impl Trust for RealTrust {
    fn verify(&self, warrant: &Warrant) -> Result<Grant, RpcError> {
        let (root, none) = (authority().node_id(), Revocations::default());
        let context = VerifyContext::new(&root, self.0.now(), &none);
        let (grant, _) = warrant
            .verify(&context)
            .map_err(|e| RpcError::denied(e.to_string()))?;
        Ok(grant)
    }
}

/// A token of the authority for `subject`.
pub(crate) fn token(subject: NodeId, scopes: Scopes, resource: Resource, limits: Limits) -> Token {
    let request = TokenRequest {
        subject,
        scopes,
        resource,
        not_before: None,
        ttl: Duration::from_hours(1),
        depth: 0,
        limits,
    };
    Token::issue_root(&authority(), request, now(), [7; 16]).unwrap()
}

/// What `subject` may do on this node, as after presenting a token.
pub(crate) fn grants(subject: NodeId, scope: Scope) -> Arc<[Grant]> {
    let token = token(subject, [scope].into(), Resource::any(), Limits::none());
    let (root, none) = (authority().node_id(), Revocations::default());
    let grant = token
        .verify(&VerifyContext::new(&root, now(), &none))
        .unwrap();
    Arc::new([grant])
}

/// A place for one agent: its folder, and with it its name.
pub(crate) struct Place {
    pub dir: tempfile::TempDir,
    pub node: NodeId,
}

impl Place {
    pub(crate) fn new() -> Self {
        docker::ensure_image();
        let dir = tempfile::tempdir().unwrap();
        let node = node_of(dir.path());
        Self { dir, node }
    }

    pub(crate) fn config(&self) -> AgentConfig {
        config(self.dir.path())
    }

    /// Starts an agent in this process.
    pub(crate) async fn agent(&self) -> Local {
        self.agent_with(self.config()).await
    }

    pub(crate) async fn agent_with(&self, config: AgentConfig) -> Local {
        start(config, self.node).await
    }
}

pub(crate) async fn start(config: AgentConfig, node: NodeId) -> Local {
    let clock = Arc::new(Clock::default());
    let trust = Arc::new(RealTrust(Arc::clone(&clock)));
    let agent = Agent::start(config, trust, clock.clone(), node)
        .await
        .unwrap();
    Local {
        router: agent.router(),
        agent,
        node,
        clock,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for id in docker::containers(&self.node) {
            docker::discard(&id);
        }
    }
}

/// The node whose agent has this folder.
pub(crate) fn node_of(dir: &Path) -> NodeId {
    Identity::from_seed(&Sha256::digest(dir.as_os_str().as_encoded_bytes()).into()).node_id()
}

/// What all test agents have: enough of everything on any machine, and quick reconciling.
pub(crate) fn config(dir: &Path) -> AgentConfig {
    let mut config = AgentConfig::new(dir.join("agent"));
    config.docker_socket = Some(docker::socket());
    config.reserved_mem = 0;
    config.reconcile_every = Duration::from_millis(300);
    let mock = dir.join("mock.toml");
    config.mock_accelerators = mock.exists().then_some(mock);
    config
}

/// An agent in this process.
pub(crate) struct Local {
    pub agent: Agent,
    pub router: Router,
    pub node: NodeId,
    pub clock: Arc<Clock>,
}

impl Local {
    /// As the manager, which may do everything.
    pub(crate) fn manager(&self) -> Client {
        self.client(&manager(), Scope::Admin)
    }

    /// As somebody who may call what his own orders allow.
    pub(crate) fn user(&self, n: u8) -> Client {
        self.client(&user(n), Scope::Call)
    }

    pub(crate) fn manager_context(&self) -> CallContext {
        self.context(&manager(), Scope::Admin)
    }

    fn context(&self, identity: &Identity, scope: Scope) -> CallContext {
        let peer = identity.node_id();
        CallContext {
            peer,
            local: self.node,
            grants: grants(peer, scope),
            deadline: Some(PATIENCE),
            idempotency_key: None,
            trace: None,
        }
    }

    fn client(&self, identity: &Identity, scope: Scope) -> Client {
        let cx = self.context(identity, scope);
        let direct = Direct {
            router: self.router.clone(),
            cx,
        };
        Client {
            caller: Arc::new(direct),
            node: self.node,
        }
    }
}

/// Calls a router in this process.
#[derive(Clone)]
pub(crate) struct Direct {
    pub router: Router,
    pub cx: CallContext,
}

impl Direct {
    fn dispatch(&self, call: RawCall) -> Result<RawReply, RpcError> {
        let (service, name) = (call.method.service, call.method.name);
        self.router
            .dispatch(service, name, self.cx.clone(), call.codec, call.body)
    }
}

impl Caller for Direct {
    fn call_raw(&self, _: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
        let reply = self.dispatch(call);
        Box::pin(async move {
            match reply? {
                RawReply::Unary(answer) => answer.await,
                RawReply::Stream(_) => panic!("a streaming method"),
            }
        })
    }

    fn stream_raw(
        &self,
        _: NodeId,
        call: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        let reply = self.dispatch(call);
        Box::pin(async move {
            match reply? {
                RawReply::Stream(items) => items.await,
                RawReply::Unary(_) => panic!("a unary method"),
            }
        })
    }
}

/// What a manager or user does with an agent, wherever that runs.
#[derive(Clone)]
pub(crate) struct Client {
    pub caller: Arc<dyn Caller>,
    pub node: NodeId,
}

impl Client {
    pub(crate) async fn call<M: service::Method>(
        &self,
        request: &M::Request,
    ) -> Result<M::Response, RpcError> {
        service::call::<M>(
            &*self.caller,
            self.node,
            request,
            CallOptions::within(PATIENCE),
        )
        .await
    }

    pub(crate) async fn stream<M: service::Method>(
        &self,
        request: &M::Request,
    ) -> Result<ItemStream<M::Response>, RpcError> {
        let options = CallOptions::within(PATIENCE);
        service::stream::<M>(&*self.caller, self.node, request, options).await
    }

    pub(crate) async fn create(&self, order: &CreateKernel) -> Result<KernelView, RpcError> {
        self.call::<agent::Create>(order).await
    }

    pub(crate) async fn stop(
        &self,
        kernel: KernelId,
        grace: Option<Duration>,
    ) -> Result<KernelView, RpcError> {
        self.call::<agent::Stop>(&StopKernel { kernel, grace })
            .await
    }

    pub(crate) async fn get(&self, kernel: KernelId) -> Result<KernelView, RpcError> {
        self.call::<agent::Get>(&KernelRef { kernel }).await
    }

    /// Events from the start until `enough`.
    pub(crate) async fn events_until(
        &self,
        after: u64,
        mut enough: impl FnMut(&KernelEvent) -> bool,
    ) -> Vec<KernelEvent> {
        let mut stream = self
            .stream::<agent::Watch>(&Events { after })
            .await
            .unwrap();
        let mut events = Vec::new();
        let gather = async {
            while let Some(item) = stream.next().await {
                if let EventItem::Event(event) = item.unwrap() {
                    events.push(event);
                    if enough(events.last().unwrap()) {
                        return;
                    }
                }
            }
            panic!("the event stream ended");
        };
        let waited = tokio::time::timeout(PATIENCE, gather).await;
        assert!(
            waited.is_ok(),
            "awaited event did not come; events: {events:#?}"
        );
        events
    }

    /// Waits until the kernel is over.
    pub(crate) async fn exit(&self, kernel: KernelId) -> Exit {
        let is_end = |e: &KernelEvent| e.kernel == kernel && e.state.exit().is_some();
        let mut events = self.events_until(0, is_end).await;
        events.pop().unwrap().state.exit().unwrap().clone()
    }

    /// Waits until the kernel runs.
    pub(crate) async fn running(&self, kernel: KernelId) {
        let events = self
            .events_until(0, |e| {
                e.kernel == kernel && (e.state == KernelState::Running || e.state.exit().is_some())
            })
            .await;
        assert_eq!(events.last().unwrap().state, KernelState::Running);
    }

    pub(crate) async fn logs(&self, query: &KernelLogs) -> Vec<LogChunk> {
        let stream = self.stream::<agent::Logs>(query).await.unwrap();
        let all = tokio::time::timeout(PATIENCE, stream.map(Result::unwrap).collect());
        all.await.expect("the output ends")
    }

    pub(crate) async fn exec(&self, order: &ExecKernel) -> Result<(String, i32), RpcError> {
        let mut items = self.stream::<agent::Exec>(order).await?;
        let (mut text, mut code) = (Vec::new(), None);
        while let Some(item) = items.next().await {
            assert_eq!(code, None, "nothing follows the exit");
            match item? {
                ExecItem::Output(chunk) => text.extend_from_slice(&chunk.data),
                ExecItem::Exit(exit) => code = Some(exit),
            }
        }
        Ok((
            String::from_utf8(text).unwrap(),
            code.expect("an exit comes last"),
        ))
    }
}

/// All of a kernel's output.
pub(crate) fn all_logs(kernel: KernelId, follow: bool) -> KernelLogs {
    KernelLogs {
        kernel,
        tail: None,
        follow,
        since: None,
    }
}

/// Output as text, both descriptors together.
pub(crate) fn text(chunks: &[LogChunk]) -> String {
    let bytes: Vec<u8> = chunks.iter().flat_map(|c| c.data.to_vec()).collect();
    String::from_utf8(bytes).unwrap()
}

/// A specification that runs `script`.
pub(crate) fn shell(script: &str) -> KernelSpec {
    let mut spec = KernelSpec {
        image: IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        ..KernelSpec::default()
    };
    spec.resources.cpu_millis = 100;
    spec.resources.mem = 64 << 20;
    spec.resources.shm = 1 << 20;
    spec
}

/// What a user signs.
pub(crate) struct Orders {
    pub user: Identity,
    pub token: Token,
}

impl Orders {
    pub(crate) fn of(n: u8) -> Self {
        Self::limited(n, Limits::none())
    }

    pub(crate) fn limited(n: u8, limits: Limits) -> Self {
        let user = user(n);
        let token = token(
            user.node_id(),
            [Scope::Call].into(),
            Resource::any(),
            limits,
        );
        Self { user, token }
    }

    pub(crate) fn order(session: SessionId, kernel: KernelSpec) -> SessionOrder {
        let spec = SessionSpec {
            kernel,
            ..SessionSpec::default()
        };
        SessionOrder {
            session,
            spec,
            issued_at: now(),
            valid_for: Duration::from_mins(10),
        }
    }

    pub(crate) fn sign(&self, order: &SessionOrder) -> CreateKernel {
        CreateKernel {
            kernel: order.session.kernel(0),
            index: 0,
            attempt: 1,
            generation: 1,
            warrant: Warrant::seal(&self.user, self.token.clone(), order).unwrap(),
        }
    }

    /// A signed order for a new kernel.
    pub(crate) fn create(&self, spec: KernelSpec) -> CreateKernel {
        self.sign(&Self::order(new_session(), spec))
    }

    pub(crate) fn exec_order(kernel: KernelId, command: &[&str]) -> ExecOrder {
        ExecOrder {
            kernel,
            command: command.iter().map(ToString::to_string).collect(),
            env: [("ANSWER".to_owned(), "42".to_owned())].into(),
            workdir: None,
            issued_at: now(),
            nonce: *new_session().as_bytes(),
        }
    }

    pub(crate) fn exec(&self, order: &ExecOrder) -> ExecKernel {
        ExecKernel {
            warrant: Warrant::seal(&self.user, self.token.clone(), order).unwrap(),
        }
    }
}

/// An id that no other test has.
pub(crate) fn new_session() -> SessionId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = (
        std::process::id(),
        SystemTime::now(),
        NEXT.fetch_add(1, Ordering::Relaxed),
    );
    let digest = Sha256::digest(format!("{unique:?}"));
    SessionId::from_bytes(digest[..16].try_into().unwrap())
}

/// Where the agent keeps a kernel's output.
pub(crate) fn log_dir(place: &Place, kernel: KernelId) -> PathBuf {
    place.dir.path().join("agent/logs").join(kernel.to_string())
}
