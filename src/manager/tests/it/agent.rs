//! An agent in memory: the contract of `proto::agent` without containers, and a script of faults.

mod feed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream;
use meshwork_identity::{NodeId, Timestamp};
use meshwork_proto::agent::{
    self, AckEvents, AgentStatus, CreateKernel, EventItem, Events, ExecItem, ExecKernel, Heartbeat,
    KernelEvent, KernelLogs, KernelRef, LogChunk, Output, PullProgress, StopKernel,
};
use meshwork_proto::kernel::{Exit, ExitReason, KernelState, KernelView};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, ItemStream, RawCall, Router};
use meshwork_proto::session::SessionOrder;
use meshwork_proto::slots::{Allocation, Capacity, GpuGrant, GpuStatus, Health, Resources};
use meshwork_proto::{KernelId, SessionId};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) const GB: u64 = 1_000_000_000;

/// How far kernels come by themselves after their creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// Stay PREPARING until the test says more.
    Hold,
    /// Run at once.
    Run,
    /// Run at once and end with this code.
    Exit(i32),
}

/// What goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Neither calls nor streams get through.
    pub(crate) unreachable: bool,
    /// New streams get no answer.
    pub(crate) silent: bool,
    /// So many next calls of a method are carried out, and their answers lost.
    pub(crate) lose_answers: BTreeMap<&'static str, u32>,
    /// So many next calls of a method never arrive.
    pub(crate) lose_requests: BTreeMap<&'static str, u32>,
    /// So many next creates are refused for lack of room, whatever is free.
    pub(crate) refuse: u32,
    /// A create of a kernel that is there is refused so, as for a token that has expired since.
    pub(crate) refuse_repeats: Option<Status>,
    /// Every event is sent twice.
    pub(crate) duplicate: bool,
    /// Requests that did not arrive, for [`crate::world::World::deliver_late`].
    pub(crate) lost: Vec<RawCall>,
    /// These events are skipped in the next subscription, once each.
    pub(crate) skip: BTreeSet<u64>,
    /// This event is sent after the one that follows it, once.
    pub(crate) swap: Option<u64>,
    /// Every call takes this long before it arrives.
    pub(crate) delay: Duration,
}

impl Faults {
    fn strikes_refusal(&mut self) -> bool {
        let strikes = self.refuse > 0;
        self.refuse = self.refuse.saturating_sub(1);
        strikes
    }
}

struct Kernel {
    view: KernelView,
    resources: Resources,
}

struct State {
    capacity: Capacity,
    kernels: BTreeMap<KernelId, Kernel>,
    log: Vec<KernelEvent>,
    last_seq: u64,
    script: Script,
    now: u64,
}

/// Shared: clones are the same agent.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) node: NodeId,
    state: Arc<Mutex<State>>,
    faults: Arc<Mutex<Faults>>,
    /// Rung when there is something to send.
    changed: watch::Sender<u64>,
    /// Grows when every open stream breaks.
    epoch: watch::Sender<u64>,
    progress: watch::Sender<Option<(KernelId, PullProgress)>>,
    connected_at: Arc<Mutex<Instant>>,
    /// Calls that arrived, by method.
    pub(crate) calls: Arc<Mutex<BTreeMap<&'static str, u32>>>,
    /// Acknowledged up to.
    pub(crate) acked: Arc<Mutex<u64>>,
}

impl Agent {
    pub(crate) fn new(node: NodeId, gpus: u32) -> Self {
        let gpu = |index| GpuStatus {
            device: GpuGrant {
                index,
                uuid: format!("GPU-{index}"),
                model: "A100 80GB".into(),
                vram: 80 * GB,
            },
            vendor: "mock".into(),
            vram_used: GB,
            kernel: None,
            health: Health::Ok,
        };
        let capacity = Capacity {
            cpu_millis: 8_000,
            cpu_free: 8_000,
            mem: 32 * GB,
            mem_free: 32 * GB,
            gpus: (0..gpus).map(gpu).collect(),
        };
        let state = State {
            capacity,
            kernels: BTreeMap::new(),
            log: Vec::new(),
            last_seq: 0,
            script: Script::Run,
            now: 1_000_000,
        };
        Self {
            node,
            state: Arc::new(Mutex::new(state)),
            faults: Arc::default(),
            changed: watch::Sender::new(0),
            epoch: watch::Sender::new(0),
            progress: watch::Sender::new(None),
            connected_at: Arc::new(Mutex::new(Instant::now())),
            calls: Arc::default(),
            acked: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    pub(crate) fn script(&self, script: Script) {
        self.state().script = script;
    }

    pub(crate) fn called(&self, method: &str) -> u32 {
        self.calls.lock().unwrap().get(method).copied().unwrap_or(0)
    }

    /// Kernels that have not ended.
    pub(crate) fn living(&self) -> Vec<KernelId> {
        let state = self.state();
        let living = state
            .kernels
            .values()
            .filter(|k| k.view.state.exit().is_none());
        living.map(|k| k.view.kernel).collect()
    }

    /// Every kernel that it remembers.
    pub(crate) fn remembered(&self) -> Vec<KernelId> {
        self.state().kernels.keys().copied().collect()
    }

    /// Moves a kernel on.
    pub(crate) fn advance(&self, session: SessionId, to: KernelState) {
        self.state().advance(session.kernel(0), to);
        self.ring();
    }

    pub(crate) fn exit(&self, session: SessionId, code: i32) {
        self.advance(session, exited(code));
    }

    pub(crate) fn tell_progress(&self, session: SessionId, progress: PullProgress) {
        self.progress
            .send_replace(Some((session.kernel(0), progress)));
        self.ring();
    }

    /// Its process restarts: streams break, everything on disk stays.
    pub(crate) fn restart(&self) {
        self.epoch.send_modify(|n| *n += 1);
    }

    /// Its disk is lost: kernels, log and numbering.
    pub(crate) fn wipe(&self) {
        {
            let mut state = self.state();
            let kernels: Vec<_> = state.kernels.keys().copied().collect();
            for kernel in kernels {
                state.free(kernel);
            }
            state.kernels.clear();
            state.log.clear();
            state.last_seq = 0;
        }
        self.restart();
    }

    /// Cuts it off, or brings it back.
    pub(crate) fn set_unreachable(&self, unreachable: bool) {
        self.faults().unreachable = unreachable;
        if !unreachable {
            *self.connected_at.lock().unwrap() = Instant::now();
        }
        self.restart();
    }

    pub(crate) fn connected_for(&self) -> Duration {
        self.connected_at.lock().unwrap().elapsed()
    }

    /// Forgets one kernel without a word.
    pub(crate) fn lose(&self, session: SessionId) {
        let mut state = self.state();
        state.free(session.kernel(0));
        state.kernels.remove(&session.kernel(0));
    }

    fn ring(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        self.faults().unreachable
    }

    pub(crate) fn router(&self) -> Router {
        let with = |agent: &Self| agent.clone();
        let (create, stop, remove) = (with(self), with(self), with(self));
        let (get, list, logs, exec) = (with(self), with(self), with(self), with(self));
        let (events, ack, inspect) = (with(self), with(self), with(self));
        Router::new()
            .unary::<agent::Create, _, _>(move |_, r| ready(create.create(&r)))
            .unary::<agent::Stop, _, _>(move |_, r| ready(stop.stop(&r)))
            .unary::<agent::Remove, _, _>(move |_, r| ready(remove.remove(&r)))
            .unary::<agent::Get, _, _>(move |_, r| ready(get.get(&r)))
            .unary::<agent::List, _, _>(move |_, ()| ready(Ok(list.views())))
            .unary::<agent::Ack, _, _>(move |_, r| {
                ack.ack(r);
                ready(Ok(()))
            })
            .unary::<agent::Inspect, _, _>(move |_, ()| ready(Ok(inspect.status())))
            .stream::<agent::Logs, _, _>(move |_, r| ready(logs.logs(&r)))
            .stream::<agent::Exec, _, _>(move |cx, r| ready(exec.exec(&cx, &r)))
            .stream::<agent::Watch, _, _>(move |_, r| ready(Ok(events.watch(r))))
    }

    fn create(&self, request: &CreateKernel) -> Result<KernelView, RpcError> {
        if self.faults().strikes_refusal() {
            return Err(RpcError::new(
                Status::ResourceExhausted,
                "another process took the memory",
            ));
        }
        let order: SessionOrder = request.warrant.open().unwrap();
        assert_eq!(order.session.kernel(request.index), request.kernel);
        let mut state = self.state();
        if let Some(known) = state.kernels.get(&request.kernel) {
            if let Some(status) = self.faults().refuse_repeats {
                return Err(RpcError::new(status, "not now"));
            }
            return match known.view.generation.cmp(&request.generation) {
                std::cmp::Ordering::Equal => Ok(known.view.clone()),
                _ => Err(RpcError::new(
                    Status::Conflict,
                    "another generation is here",
                )),
            };
        }
        let resources = order.spec.kernel.resources.clone();
        let short = state.capacity.shortages(&resources);
        if let Some(short) = short.first() {
            return Err(RpcError::new(Status::ResourceExhausted, short.to_string()));
        }
        let allocation = state.take(request.kernel, &resources);
        let view = KernelView {
            kernel: request.kernel,
            session: order.session,
            attempt: request.attempt,
            generation: request.generation,
            owner: request.warrant.order.signer(),
            image: order.spec.kernel.image,
            state: KernelState::Preparing,
            allocation,
            created_at: Timestamp::from_secs(state.now),
            started_at: None,
            ended_at: None,
        };
        state.kernels.insert(
            request.kernel,
            Kernel {
                view: view.clone(),
                resources,
            },
        );
        state.event(request.kernel);
        match state.script {
            Script::Hold => {}
            Script::Run => state.advance(request.kernel, KernelState::Running),
            Script::Exit(code) => {
                state.advance(request.kernel, KernelState::Running);
                state.advance(request.kernel, exited(code));
            }
        }
        drop(state);
        self.ring();
        Ok(view)
    }

    fn stop(&self, request: &StopKernel) -> Result<KernelView, RpcError> {
        {
            let mut state = self.state();
            let known = state.kernels.get(&request.kernel).ok_or_else(unknown)?;
            if known.view.state.exit().is_none() {
                state.advance(request.kernel, KernelState::Terminating);
                if state.script != Script::Hold {
                    let exit = Exit {
                        reason: ExitReason::UserRequested,
                        code: Some(143),
                        oom: false,
                        message: None,
                    };
                    state.advance(request.kernel, KernelState::Terminated(exit));
                }
            }
        }
        self.ring();
        self.get(&KernelRef {
            kernel: request.kernel,
        })
    }

    fn remove(&self, request: &KernelRef) -> Result<(), RpcError> {
        let mut state = self.state();
        let known = state.kernels.get(&request.kernel).ok_or_else(unknown)?;
        if known.view.state.exit().is_none() {
            let exit = Exit {
                reason: ExitReason::Superseded,
                code: None,
                oom: false,
                message: None,
            };
            state.advance(request.kernel, KernelState::Terminated(exit));
        }
        state.kernels.remove(&request.kernel);
        Ok(())
    }

    fn get(&self, request: &KernelRef) -> Result<KernelView, RpcError> {
        self.state()
            .kernels
            .get(&request.kernel)
            .map(|k| k.view.clone())
            .ok_or_else(unknown)
    }

    fn views(&self) -> Vec<KernelView> {
        self.state()
            .kernels
            .values()
            .map(|k| k.view.clone())
            .collect()
    }

    fn ack(&self, request: AckEvents) {
        self.state().log.retain(|event| event.seq > request.up_to);
        *self.acked.lock().unwrap() = request.up_to;
    }

    fn status(&self) -> AgentStatus {
        AgentStatus {
            backend: "memory".into(),
            heartbeat: self.state().heartbeat(),
        }
    }

    fn logs(&self, request: &KernelLogs) -> Result<ItemStream<LogChunk>, RpcError> {
        self.get(&KernelRef {
            kernel: request.kernel,
        })?;
        let chunk = LogChunk {
            output: Output::Stdout,
            data: "hello\n".into(),
            at: None,
        };
        Ok(Box::pin(stream::iter([Ok(chunk)])))
    }

    fn exec(
        &self,
        _: &CallContext,
        request: &ExecKernel,
    ) -> Result<ItemStream<ExecItem>, RpcError> {
        let order: agent::ExecOrder = request.warrant.open().unwrap();
        let view = self.get(&KernelRef {
            kernel: order.kernel,
        })?;
        if view.state != KernelState::Running {
            let text = format!("the kernel is {}, not RUNNING", view.state.name());
            return Err(RpcError::new(Status::Conflict, text).reason("not_running"));
        }
        Ok(Box::pin(stream::iter([Ok(ExecItem::Exit(7))])))
    }

    fn watch(&self, request: Events) -> ItemStream<EventItem> {
        let feed = feed::Feed::new(self, request);
        Box::pin(stream::unfold(Some(feed), |feed| async move {
            feed?.next().await
        }))
    }
}

fn ready<T: Send + 'static>(value: T) -> std::future::Ready<T> {
    std::future::ready(value)
}

fn unknown() -> RpcError {
    RpcError::not_found("no such kernel").reason("no_kernel")
}

fn exited(code: i32) -> KernelState {
    KernelState::Terminated(Exit {
        reason: ExitReason::SelfTerminated,
        code: Some(code),
        oom: false,
        message: None,
    })
}

impl State {
    fn take(&mut self, kernel: KernelId, resources: &Resources) -> Allocation {
        let gpus: Vec<u32> = resources
            .gpu
            .iter()
            .flat_map(|want| {
                self.capacity
                    .fitting_gpus(want)
                    .take(want.count as usize)
                    .map(|g| g.device.index)
            })
            .collect();
        self.capacity.cpu_free -= resources.cpu_millis;
        self.capacity.mem_free -= resources.mem;
        let mut grants = Vec::new();
        for gpu in self
            .capacity
            .gpus
            .iter_mut()
            .filter(|g| gpus.contains(&g.device.index))
        {
            gpu.kernel = Some(kernel);
            grants.push(gpu.device.clone());
        }
        Allocation {
            cpus: Vec::new(),
            cpu_millis: resources.cpu_millis,
            mem: resources.mem,
            gpus: grants,
        }
    }

    fn free(&mut self, kernel: KernelId) {
        let Some(known) = self.kernels.get(&kernel) else {
            return;
        };
        if known.view.state.exit().is_some() {
            return;
        }
        self.capacity.cpu_free += known.resources.cpu_millis;
        self.capacity.mem_free += known.resources.mem;
        for gpu in self
            .capacity
            .gpus
            .iter_mut()
            .filter(|g| g.kernel == Some(kernel))
        {
            gpu.kernel = None;
        }
    }

    fn advance(&mut self, kernel: KernelId, to: KernelState) {
        self.now += 1;
        let now = Timestamp::from_secs(self.now);
        if to.exit().is_some() {
            self.free(kernel);
        }
        let view = &mut self
            .kernels
            .get_mut(&kernel)
            .expect("the test created it")
            .view;
        if to == KernelState::Running {
            view.started_at = Some(now);
        }
        if to.exit().is_some() {
            view.ended_at = Some(now);
        }
        view.state = to;
        self.event(kernel);
    }

    fn event(&mut self, kernel: KernelId) {
        self.last_seq += 1;
        let view = &self.kernels[&kernel].view;
        self.log.push(KernelEvent {
            seq: self.last_seq,
            at: Timestamp::from_secs(self.now),
            kernel,
            session: view.session,
            attempt: view.attempt,
            generation: view.generation,
            state: view.state.clone(),
        });
    }

    fn heartbeat(&self) -> Heartbeat {
        let living = self
            .kernels
            .values()
            .filter(|k| k.view.state.exit().is_none());
        Heartbeat {
            at: Timestamp::from_secs(self.now),
            last_seq: self.last_seq,
            capacity: self.capacity.clone(),
            load_millis: 0,
            kernels: living
                .map(|k| (k.view.kernel, k.view.generation, k.view.state.clone()))
                .collect(),
        }
    }
}
