//! Calls of a service, wherever it is offered: choosing a node, trying again, hedging, leaving nodes
//! alone that fail.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use meshwork_identity::NodeId;
use meshwork_proto::ports::Directory;
use meshwork_proto::query::Query;
use meshwork_proto::rpc::breaker::BreakerPolicy;
use meshwork_proto::rpc::choice::Choice;
use meshwork_proto::rpc::retry::{HedgePolicy, RetryPolicy};
use meshwork_proto::rpc::{Codec, RpcError, Status};
use meshwork_proto::service::{
    BoxFuture, CallOptions, Caller, ItemStream, Method, RawCall, from_answer,
};
use tokio::time::{Instant, sleep};

use super::{after, narrowed, timeout_error};
use crate::mesh::Mesh;

/// How to call a service.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// Deadline and keys of the call. All tries share the deadline.
    pub call: CallOptions,
    /// Which of the nodes. Default: any.
    pub choice: Choice,
    /// When to try again. Default: [`RetryPolicy::default`].
    pub retry: RetryPolicy,
    /// When to ask a second node. Default: never.
    pub hedge: Option<HedgePolicy>,
    /// When to leave a node alone. Default: [`BreakerPolicy::default`]; none: never.
    pub breaker: Option<BreakerPolicy>,
}

impl ServiceOptions {
    /// Options with this deadline, the default breaker, and else the defaults.
    pub fn within(deadline: Duration) -> Self {
        Self {
            call: CallOptions::within(deadline),
            choice: Choice::default(),
            retry: RetryPolicy::default(),
            hedge: None,
            breaker: Some(BreakerPolicy::default()),
        }
    }

    /// The same with this choice of nodes.
    #[must_use]
    pub fn choice(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// The same with this idempotency key.
    #[must_use]
    pub fn key(mut self, key: [u8; 16]) -> Self {
        self.call.idempotency_key = Some(key);
        self
    }
}

impl Default for ServiceOptions {
    /// [`ServiceOptions::within`] the default deadline of calls.
    fn default() -> Self {
        Self::within(CallOptions::default().deadline)
    }
}

impl Mesh {
    /// The nodes that announce a service and are not believed dead, by node id. This one is among
    /// them if it announces it.
    pub fn service_nodes(&self, service: &str) -> Vec<NodeId> {
        // What has no place in a query is no name of a service either.
        if service.contains(['"', '\\']) {
            return Vec::new();
        }
        let query = Query::parse(&format!("services has \"{service}\""));
        let hits = query.map(|query| Directory::find(self, &query));
        let mut nodes: Vec<NodeId> = hits.into_iter().flatten().map(|(node, _)| node).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Calls a unary method at some node that announces its service.
    ///
    /// A failure that may pass leads to another try, at another node if there is one, as long as the
    /// deadline allows: of methods declared idempotent, of calls with an idempotency key, and of calls
    /// that were never sent.
    ///
    /// # Cancel safety
    /// Dropping the future cancels all calls that it has under way.
    pub async fn call_service<M: Method>(
        &self,
        request: &M::Request,
        options: &ServiceOptions,
    ) -> Result<M::Response, RpcError> {
        let call = typed::<M>(request, options);
        from_answer(&self.call_service_raw(call, options).await?)
    }

    /// [`Mesh::call_service`] at one node: tries again there, and leaves it alone when it fails.
    pub async fn call_node<M: Method>(
        &self,
        to: NodeId,
        request: &M::Request,
        options: &ServiceOptions,
    ) -> Result<M::Response, RpcError> {
        let call = typed::<M>(request, options);
        let nodes = [to].into();
        let mut tries = Tries::new(self.clone(), call, options, nodes, 0);
        from_answer(&tries.run(once).await?)
    }

    /// [`Mesh::call_service`] without types.
    pub async fn call_service_raw(
        &self,
        call: RawCall,
        options: &ServiceOptions,
    ) -> Result<Bytes, RpcError> {
        self.tries(call, options).run(once).await
    }

    /// Calls a method that answers with a stream, at some node that announces its service. Another one
    /// is tried as long as none has accepted the call. Streams are not hedged.
    pub async fn stream_service<M: Method>(
        &self,
        request: &M::Request,
        options: &ServiceOptions,
    ) -> Result<ItemStream<M::Response>, RpcError> {
        let options = ServiceOptions {
            hedge: None,
            ..options.clone()
        };
        let call = typed::<M>(request, &options);
        let items = self.tries(call, &options).run(stream).await?;
        Ok(Box::pin(items.map(|item| from_answer(&item?))))
    }

    fn tries(&self, call: RawCall, options: &ServiceOptions) -> Tries {
        let service = call.method.service;
        let ask = || self.service_nodes(service);
        let (nodes, turn) = self.node().outlook.offers(service, ask);
        Tries::new(self.clone(), call, options, nodes, turn)
    }
}

fn typed<M: Method>(request: &M::Request, options: &ServiceOptions) -> RawCall {
    RawCall {
        method: M::INFO,
        codec: Codec::Postcard,
        body: meshwork_proto::codec::encode(request).into(),
        options: options.call,
    }
}

fn once(mesh: &Mesh, to: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
    mesh.call_raw(to, call)
}

fn stream(
    mesh: &Mesh,
    to: NodeId,
    call: RawCall,
) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
    mesh.stream_raw(to, call)
}

/// How one try is made.
type Attempt<T> = fn(&Mesh, NodeId, RawCall) -> BoxFuture<Result<T, RpcError>>;

/// How a try ended.
struct Tried<T> {
    result: Result<T, RpcError>,
    /// Whether the call certainly reached no handler.
    unsent: bool,
}

/// The tries of one call.
struct Tries {
    mesh: Mesh,
    call: RawCall,
    options: ServiceOptions,
    deadline: Instant,
    /// May be repeated though it may have been served.
    repeatable: bool,
    nodes: Arc<[NodeId]>,
    turn: u64,
    /// Nodes that had their try since all of them had one.
    tried: Vec<NodeId>,
    begun: u32,
}

impl Tries {
    fn new(
        mesh: Mesh,
        mut call: RawCall,
        options: &ServiceOptions,
        nodes: Arc<[NodeId]>,
        turn: u64,
    ) -> Self {
        call.options = narrowed(call.options);
        Self {
            mesh,
            deadline: after(call.options.deadline),
            repeatable: call.method.idempotent || call.options.idempotency_key.is_some(),
            call,
            options: options.clone(),
            nodes,
            turn,
            tried: Vec::new(),
            begun: 0,
        }
    }

    /// Tries until one answer counts.
    async fn run<T: Send + 'static>(&mut self, attempt: Attempt<T>) -> Result<T, RpcError> {
        let mut under_way = FuturesUnordered::new();
        under_way.push(self.begin(attempt)?);
        loop {
            let hedge = self.hedge(under_way.len());
            let tried = tokio::select! {
                biased;
                Some(tried) = under_way.next() => tried,
                () = hedge => {
                    let another = self.begin(attempt);
                    under_way.extend(another);
                    continue;
                }
            };
            let Tried { result, unsent } = tried;
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !under_way.is_empty() {
                // Another one is on its way, and may do better.
                continue;
            }
            self.pause(&error, unsent).await?;
            under_way.push(self.begin(attempt).map_err(|_| error)?);
        }
    }

    /// Waits before the next try; the error, if there is to be none.
    async fn pause(&self, error: &RpcError, unsent: bool) -> Result<(), RpcError> {
        let may = unsent || self.repeatable && error.status.is_transient();
        if !may || self.begun >= self.options.retry.tries {
            return Err(error.clone());
        }
        // Where there is another node, what was not sent need not wait.
        if unsent && self.tried.len() < self.nodes.len() {
            return Ok(());
        }
        let chance = u32::from_be_bytes(self.mesh.node().entropy.array());
        let pause = self.options.retry.pause(self.begun, chance);
        if Instant::now() + pause >= self.deadline {
            return Err(error.clone());
        }
        sleep(pause).await;
        Ok(())
    }

    /// Waits until it is time for another call beside those under way.
    fn hedge(&self, under_way: usize) -> impl Future<Output = ()> + use<> {
        let policy = self.options.hedge.filter(|policy| {
            self.repeatable
                && under_way <= policy.most as usize
                && self.tried.len() < self.nodes.len()
        });
        async move {
            match policy {
                Some(policy) => sleep(policy.after).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Begins a try at the next node.
    fn begin<T: Send + 'static>(
        &mut self,
        attempt: Attempt<T>,
    ) -> Result<BoxFuture<Tried<T>>, RpcError> {
        let node = self.choose()?;
        self.begun += 1;
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timeout_error());
        }
        let mut call = self.call.clone();
        call.options.deadline = left.min(self.options.retry.patience.unwrap_or(left));
        let (mesh, policy) = (self.mesh.clone(), self.options.breaker);
        let outlook = mesh.node().outlook.clone();
        Ok(Box::pin(async move {
            let under_way = match outlook.begin(node, call.method.service, policy) {
                Ok(under_way) => under_way,
                Err(error) => {
                    return Tried {
                        result: Err(error),
                        unsent: true,
                    };
                }
            };
            let by = after(call.options.deadline);
            // A node that is not reached was not called, whatever its errors look like.
            if let Err(error) = mesh.way_to(node, by).await {
                let result = Err(error);
                under_way.ended(&result);
                return Tried {
                    result,
                    unsent: true,
                };
            }
            let result = attempt(&mesh, node, call).await;
            under_way.ended(&result);
            Tried {
                result,
                unsent: false,
            }
        }))
    }

    /// The node for the next try: one that had none yet, while there are such.
    fn choose(&mut self) -> Result<NodeId, RpcError> {
        let service = self.call.method.service;
        if self.tried.len() >= self.nodes.len() {
            self.tried.clear();
        }
        let fresh = self.nodes.iter().filter(|node| !self.tried.contains(node));
        let fresh: Vec<NodeId> = fresh.copied().collect();
        let candidates = self.mesh.node().outlook.candidates(service, &fresh);
        let chance = u64::from_be_bytes(self.mesh.node().entropy.array());
        let place = self.options.choice.pick(&candidates, self.turn, chance);
        let Some(place) = place else {
            return Err(nobody(service));
        };
        let node = candidates[place].node;
        self.tried.push(node);
        Ok(node)
    }
}

/// The error for a service that nobody offers.
fn nobody(service: &str) -> RpcError {
    RpcError::new(
        Status::NoRoute,
        format!("no living node announces the service `{service}`"),
    )
    .reason("no_node")
    .fix(format!(
        "see who announces it: meshwork node find 'services has \"{service}\"'"
    ))
}
