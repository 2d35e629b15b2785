//! The `agent` service: what each method checks, and whom it answers.
//!
//! The mesh has checked that the caller may call the method; those that tell of everybody's kernels
//! are declared for scope `admin`. A kernel is its owner's: others need a
//! grant with scope `admin` on the method, and hear `not_found` without it, so that ids tell
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_identity::{NodeId, Scope};
use meshwork_proto::KernelId;
use meshwork_proto::agent::{
    self, AckEvents, AgentStatus, CreateKernel, Events, ExecItem, ExecKernel, KernelLogs,
    KernelRef, LogChunk, PullImage, PullProgress, StopKernel,
};
use meshwork_proto::kernel::{ExitReason, KernelState, KernelView};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, ItemStream, Method, Router};

use crate::admission;
use crate::backend::{BackendError, ExecPlan};
use crate::events;
use crate::kernel::record::Ending;
use crate::kernel::{Kernel, output};
use crate::orders;
use crate::shared::Shared;

/// How long a call without a deadline may wait for a kernel to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// The service, with every method.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    /// A handler that is a method of [`Service`].
    macro_rules! to {
        ($name:ident) => {{
            let shared = Arc::clone(shared);
            move |cx, request| {
                Service {
                    shared: Arc::clone(&shared),
                    cx,
                }
                .$name(request)
            }
        }};
    }
    Router::new()
        .unary::<agent::Create, _, _>(to!(create))
        .unary::<agent::Stop, _, _>(to!(stop))
        .unary::<agent::Remove, _, _>(to!(remove))
        .unary::<agent::Get, _, _>(to!(get))
        .unary::<agent::List, _, _>(to!(list))
        .stream::<agent::Logs, _, _>(to!(logs))
        .stream::<agent::Exec, _, _>(to!(exec))
        .stream::<agent::Pull, _, _>(to!(pull))
        .stream::<agent::Watch, _, _>(to!(watch))
        .unary::<agent::Ack, _, _>(to!(ack))
        .unary::<agent::Inspect, _, _>(to!(inspect))
}

/// One call.
struct Service {
    shared: Arc<Shared>,
    cx: CallContext,
}

#[expect(clippy::unused_async, reason = "handlers are all of one shape")]
impl Service {
    async fn create(self, request: CreateKernel) -> Result<KernelView, RpcError> {
        let order = orders::session(&self.shared, &request)?;
        // Leaves time for the answer.
        let wait = self
            .cx
            .deadline
            .map_or(PATIENCE, |d| d.min(PATIENCE) * 9 / 10);
        admission::admit(&self.shared, order, wait).await
    }

    async fn stop(self, request: StopKernel) -> Result<KernelView, RpcError> {
        let kernel = self.owned::<agent::Stop>(&request.kernel)?;
        self.end(&kernel, request.grace).await?;
        Ok(kernel.view())
    }

    async fn remove(self, request: KernelRef) -> Result<(), RpcError> {
        let Ok(kernel) = self.owned::<agent::Remove>(&request.kernel) else {
            // Removed already: a repeat.
            return Ok(());
        };
        if !kernel.record().is_over() {
            self.end(&kernel, None).await?;
            let wait = self.cx.deadline.unwrap_or(PATIENCE).min(PATIENCE);
            if tokio::time::timeout(wait, kernel.over()).await.is_err() {
                return Err(RpcError::unavailable("the kernel is still being stopped"));
            }
        }
        let shared = Arc::clone(&self.shared);
        self.shared
            .blocking(move || Ok(shared.forget(&kernel)?))
            .await
    }

    async fn get(self, request: KernelRef) -> Result<KernelView, RpcError> {
        Ok(self.owned::<agent::Get>(&request.kernel)?.view())
    }

    async fn list(self, (): ()) -> Result<Vec<KernelView>, RpcError> {
        let views = self.shared.all().into_iter().map(|k| k.view());
        Ok(views
            .filter(|v| self.may_see::<agent::List>(&v.owner))
            .collect())
    }

    async fn logs(self, request: KernelLogs) -> Result<ItemStream<LogChunk>, RpcError> {
        let kernel = self.owned::<agent::Logs>(&request.kernel)?;
        Ok(output::stream(&self.shared, kernel, request))
    }

    async fn exec(self, request: ExecKernel) -> Result<ItemStream<ExecItem>, RpcError> {
        let (order, grant, ends) = orders::exec(&self.shared, &request.warrant)?;
        let kernel = self.shared.kernel(&order.kernel);
        let now = self.shared.clock.now();
        let record = kernel
            .map(|k| k.record())
            .filter(|r| {
                let path = agent::Exec::INFO.path();
                r.owner == grant.subject || orders::is_admin(&grant, &path, &self.shared.node, now)
            })
            .ok_or_else(|| unknown(&order.kernel))?;
        if record.state != KernelState::Running {
            let text = format!("the kernel is {}, not RUNNING", record.state.name());
            return Err(RpcError::new(Status::Conflict, text).reason("not_running"));
        }
        let shared = Arc::clone(&self.shared);
        let (signer, nonce) = (grant.subject, order.nonce);
        let fresh = self
            .shared
            .blocking(move || Ok(shared.journal.use_nonce(&signer, &nonce, ends, now)?));
        if !fresh.await? {
            let text = "this order was carried out before";
            return Err(RpcError::new(Status::Conflict, text).reason("replay"));
        }
        let plan = ExecPlan {
            command: order.command,
            env: order.env,
            workdir: order.workdir,
        };
        let container = record.container(&self.shared.node);
        let items = self
            .shared
            .backend
            .exec(&container, &plan)
            .await
            .map_err(blame)?;
        Ok(Box::pin(items.map(|item| item.map_err(blame))))
    }

    async fn pull(self, request: PullImage) -> Result<ItemStream<PullProgress>, RpcError> {
        let spec = meshwork_proto::kernel::KernelSpec {
            image: request.image,
            ..Default::default()
        };
        spec.check()?;
        let items = self
            .shared
            .pull(&spec.image, request.policy)
            .await
            .map_err(blame)?;
        Ok(Box::pin(items.map(|item| item.map_err(blame))))
    }

    async fn watch(self, request: Events) -> Result<ItemStream<agent::EventItem>, RpcError> {
        Ok(events::watch(&self.shared, request.after))
    }

    async fn ack(self, request: AckEvents) -> Result<(), RpcError> {
        let shared = Arc::clone(&self.shared);
        self.shared
            .blocking(move || Ok(shared.journal.ack(request.up_to)?))
            .await
    }

    async fn inspect(self, (): ()) -> Result<AgentStatus, RpcError> {
        Ok(AgentStatus {
            backend: self.shared.backend.describe(),
            heartbeat: self
                .shared
                .heartbeat(|owner| self.may_see::<agent::Inspect>(owner)),
        })
    }

    /// Writes down that the kernel ends on request. A second request that leaves it no time ends
    /// the wait of the first.
    async fn end(&self, kernel: &Arc<Kernel>, grace: Option<Duration>) -> Result<(), RpcError> {
        let record = kernel.record();
        let grace = self.shared.grace(&record, grace);
        let ending = Ending {
            reason: ExitReason::UserRequested,
            message: None,
            grace,
        };
        let (shared, ended) = (Arc::clone(&self.shared), Arc::clone(kernel));
        self.shared
            .blocking(move || Ok(ended.end(&shared, ending, None)?))
            .await?;
        if record.ending.is_some() && grace.is_zero() {
            kernel.kill_now.cancel();
        }
        Ok(())
    }

    /// The kernel, if the caller may use `M` on it.
    fn owned<M: Method>(&self, id: &KernelId) -> Result<Arc<Kernel>, RpcError> {
        let kernel = self.shared.kernel(id);
        kernel
            .filter(|k| self.may_see::<M>(&k.record().owner))
            .ok_or_else(|| unknown(id))
    }

    fn may_see<M: Method>(&self, owner: &NodeId) -> bool {
        *owner == self.cx.peer || self.is_admin::<M>()
    }

    fn is_admin<M: Method>(&self) -> bool {
        let (path, now) = (M::INFO.path(), self.shared.clock.now());
        self.cx.grants.iter().any(|grant| {
            grant
                .check(&self.cx.peer, Scope::Admin, &path, &self.shared.node, now)
                .is_ok()
        })
    }
}

fn unknown(id: &KernelId) -> RpcError {
    RpcError::not_found(format!("there is no kernel {id} here")).reason("no_kernel")
}

fn blame(error: BackendError) -> RpcError {
    match error {
        BackendError::Unavailable(text) => RpcError::unavailable(text),
        BackendError::NotFound(text) => RpcError::not_found(text),
        BackendError::Failed(text) => RpcError::invalid(text),
    }
    .reason("backend")
}
