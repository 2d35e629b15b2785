//! What a node serves, whichever peer calls: its methods, its bounds, and its calls to itself.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use meshwork_identity::NodeId;
use meshwork_proto::ports::WallClock;
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{
    BoxFuture, CallContext, ItemStream, MethodInfo, RawCall, RawReply, RawRequest, Router,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::nested::Inherited;
use super::server::start;
use super::{RpcLimits, Standing, after, timeout_error};

/// What a node serves, to whichever peer.
pub(crate) struct Desk {
    pub(crate) local: NodeId,
    pub(crate) limits: RpcLimits,
    pub(super) clock: Arc<dyn WallClock>,
    router: RwLock<Arc<Router>>,
    /// How often that has changed.
    generation: AtomicU64,
    /// Services to be announced, and how often each is offered.
    offered: Mutex<BTreeMap<&'static str, usize>>,
    /// Bounds of single methods, by path.
    methods: BTreeMap<String, Arc<Semaphore>>,
    /// Owns the tasks of the calls that are served.
    pub(crate) calls: TaskTracker,
    /// Set when the node begins to shut down: no new calls, and streams end.
    pub(crate) draining: CancellationToken,
    /// Set when the time to shut down is over: unary calls end, too.
    pub(crate) stopping: CancellationToken,
}

impl Desk {
    pub(crate) fn new(local: NodeId, limits: RpcLimits, clock: Arc<dyn WallClock>) -> Self {
        let bounds = limits.method_calls.iter();
        let methods = bounds
            .map(|(path, most)| (path.clone(), Arc::new(Semaphore::new(*most))))
            .collect();
        Self {
            local,
            limits,
            clock,
            router: RwLock::default(),
            generation: AtomicU64::new(0),
            offered: Mutex::default(),
            methods,
            calls: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Adds the router's methods to those served; they replace others of the same name.
    pub(crate) fn serve(&self, router: Router) {
        self.change(|current| current.merge(router));
    }

    /// Takes the router's methods out of those served, where no others have taken their places.
    pub(crate) fn withdraw(&self, router: &Router) {
        self.change(|current| current.without(router));
        let mut offered = self.offered();
        for service in router.services() {
            if let Some(count) = offered.get_mut(service) {
                *count -= 1;
            }
        }
        offered.retain(|_, count| *count > 0);
    }

    /// The router's services are to be announced, until they are withdrawn.
    pub(crate) fn offer(&self, router: &Router) {
        let mut offered = self.offered();
        for service in router.services() {
            *offered.entry(service).or_default() += 1;
        }
    }

    /// The services that are to be announced beside those that the node's announcement names.
    pub(crate) fn offers(&self) -> Vec<&'static str> {
        self.offered().keys().copied().collect()
    }

    fn offered(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(Router) -> Router) {
        let mut current = self.router.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(change(Router::clone(&current)));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Another number after every change of what is served.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn router(&self) -> Arc<Router> {
        self.router
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A place among the calls of a method whose number is bounded.
    pub(super) fn method_place(
        &self,
        method: &MethodInfo,
    ) -> Result<Option<OwnedSemaphorePermit>, RpcError> {
        if self.methods.is_empty() {
            return Ok(None);
        }
        let path = method.path();
        let Some(places) = self.methods.get(&path) else {
            return Ok(None);
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(_) => Err(backpressure(format!(
                "this node serves no more `{path}` at a time"
            ))),
        }
    }

    /// A unary call of this node to itself, with what its own tokens allow.
    pub(crate) async fn call_self(
        &self,
        call: RawCall,
        standing: Standing,
    ) -> Result<Bytes, RpcError> {
        let request = RawRequest::One(call.body.clone());
        let RawReply::Unary(answer) = self.start_self(&call, request, standing)? else {
            return Err(wrong_kind(&call.method));
        };
        let answer = inherited(&call).within(catch_panic(call.method, answer));
        match timeout(call.options.deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(timeout_error()),
        }
    }

    /// A streaming call of this node to itself.
    pub(crate) async fn stream_self(
        &self,
        call: RawCall,
        standing: Standing,
    ) -> Result<ItemStream<Bytes>, RpcError> {
        let request = RawRequest::One(call.body.clone());
        let RawReply::Stream(answer) = self.start_self(&call, request, standing)? else {
            return Err(wrong_kind(&call.method));
        };
        Self::started(&call, answer).await
    }

    /// A call of this node to itself of a method that takes a stream.
    pub(crate) async fn duplex_self(
        &self,
        call: RawCall,
        items: ItemStream<Bytes>,
        standing: Standing,
    ) -> Result<ItemStream<Bytes>, RpcError> {
        match self.start_self(&call, RawRequest::Many(items), standing)? {
            RawReply::Stream(answer) => Self::started(&call, answer).await,
            RawReply::Unary(answer) => {
                let answer = inherited(&call).within(catch_panic(call.method, answer));
                match timeout(call.options.deadline, answer).await {
                    Ok(answer) => Ok(Box::pin(stream::iter([Ok(answer?)]))),
                    Err(_) => Err(timeout_error()),
                }
            }
        }
    }

    async fn started(
        call: &RawCall,
        answer: BoxFuture<Result<ItemStream<Bytes>, RpcError>>,
    ) -> Result<ItemStream<Bytes>, RpcError> {
        let answer = inherited(call).within(catch_panic(call.method, answer));
        match timeout(call.options.deadline, answer).await {
            Ok(items) => Ok(catch_panics(call.method, items?)),
            Err(_) => Err(timeout_error()),
        }
    }

    fn start_self(
        &self,
        call: &RawCall,
        request: RawRequest,
        standing: Standing,
    ) -> Result<RawReply, RpcError> {
        let method = self.router().find(call.method.service, call.method.name)?;
        standing.check(&method, &self.local, &self.local, self.clock.now())?;
        let cx = CallContext {
            peer: self.local,
            local: self.local,
            grants: standing.grants,
            deadline: Some(call.options.deadline),
            idempotency_key: call.options.idempotency_key,
            trace: call.options.trace,
        };
        let router = self.router();
        let handler = router.handler(call.method.service, call.method.name)?;
        start(handler, cx, call.codec, request, inherited(call))
    }
}

fn inherited(call: &RawCall) -> Inherited {
    Inherited {
        deadline: Some(after(call.options.deadline)),
        trace: call.options.trace,
    }
}

/// When a connection last carried a call of a service (not the upkeep of the mesh itself).
#[derive(Debug)]
pub(crate) struct LastUse {
    start: Instant,
    /// Milliseconds after `start`.
    at: AtomicU64,
}

impl LastUse {
    pub(crate) fn now() -> Self {
        Self {
            start: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    pub(crate) fn touch(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(millis, Ordering::Relaxed);
    }

    /// Time since then.
    pub(crate) fn idle(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(at)
    }

    /// Whether it carried any.
    pub(crate) fn is_used(&self) -> bool {
        self.at.load(Ordering::Relaxed) > 0
    }

    /// Age of the connection.
    pub(crate) fn age(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The answer of a handler, or `internal` when it panicked.
pub(super) async fn catch_panic<T>(
    method: MethodInfo,
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    // What a panicking handler leaves behind is its own; poisoned locks tell.
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(panicked(&method, &*panic)))
}

/// The same items, and an `internal` error as the last one when the stream panics.
pub(super) fn catch_panics(method: MethodInfo, items: ItemStream<Bytes>) -> ItemStream<Bytes> {
    let caught = AssertUnwindSafe(items).catch_unwind();
    Box::pin(caught.map(move |item| item.unwrap_or_else(|panic| Err(panicked(&method, &*panic)))))
}

pub(super) fn panicked(method: &MethodInfo, panic: &(dyn Any + Send)) -> RpcError {
    let literal = panic.downcast_ref::<&str>().copied();
    let text = literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(
        method = method.path(),
        panic = text.unwrap_or("of no text"),
        "a handler panicked"
    );
    RpcError::internal("the method's handler failed; the node's log says more").reason("panic")
}

pub(super) fn backpressure(message: String) -> RpcError {
    RpcError::new(Status::Backpressure, message).fix("call again a little later")
}

pub(super) fn wrong_kind(method: &MethodInfo) -> RpcError {
    RpcError::invalid(format!("`{}` is a {:?} method", method.path(), method.kind)).reason("kind")
}
