//! One declaration per RPC method, and the small traits through which parts call each other.
//!
//! `agent` and `manager` are written against [`Caller`] and [`Router`] only. The binary fills them
//! with the mesh, tests with a direct connection or the simulator.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt;
use meshwork_identity::{Grant, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::limits::MAX_FRAME;
use crate::rpc::{Codec, Kind, RpcError, Status, TraceContext};

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;
/// A boxed stream.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send + 'static>>;
/// Items of a streaming call: each an item, or the error that ends the stream.
pub type ItemStream<T> = BoxStream<Result<T, RpcError>>;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any peer that passed the handshake (knows the PSK), joined or not.
    Open,
    /// A peer that presented a valid token of this mesh with scope `announce` or `call`.
    Member,
    /// A peer whose token grants scope `call` on `service/method` at this node.
    Call,
    /// A peer whose token grants scope `admin` on `service/method` at this node.
    Admin,
}

/// What is known of a method without its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodInfo {
    /// Service name.
    pub service: &'static str,
    /// Method name within the service.
    pub name: &'static str,
    /// Shape of the call.
    pub kind: Kind,
    /// Whether a repeat has the same effect as one call.
    pub idempotent: bool,
    /// Who may call it.
    pub access: Access,
}

impl MethodInfo {
    /// `service/method`, the path that tokens speak of.
    pub fn path(&self) -> String {
        format!("{}/{}", self.service, self.name)
    }
}

/// A method, declared once with the [`service!`](crate::service!) macro and used by both sides.
pub trait Method: Send + Sync + 'static {
    /// Name, shape and access.
    const INFO: MethodInfo;
    /// What the caller sends.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What it gets back: once, or any number of times for a stream.
    type Response: Serialize + DeserializeOwned + Send + 'static;
}

/// Declares the methods of one service:
/// `unary|stream Name("wire.name", Access, idempotent?) : Request => Response;`
#[macro_export]
macro_rules! service {
    (
        $service:literal;
        $( $(#[$doc:meta])* $kind:ident $name:ident($wire:literal, $access:ident, $idem:literal): $req:ty => $resp:ty; )*
    ) => {
        /// Name of this service on the wire.
        pub const SERVICE: &str = $service;
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl $crate::service::Method for $name {
                const INFO: $crate::service::MethodInfo = $crate::service::MethodInfo {
                    service: $service,
                    name: $wire,
                    kind: $crate::service!(@kind $kind),
                    idempotent: $idem,
                    access: $crate::service::Access::$access,
                };
                type Request = $req;
                type Response = $resp;
            }
        )*
        /// Every method of this service, in declaration order.
        pub const METHODS: &[$crate::service::MethodInfo] =
            &[$(<$name as $crate::service::Method>::INFO),*];
    };
    (@kind unary) => { $crate::rpc::Kind::Unary };
    (@kind stream) => { $crate::rpc::Kind::ServerStream };
}

/// What a handler knows about the call it serves.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// The caller, as the handshake proved it.
    pub peer: NodeId,
    /// This node.
    pub local: NodeId,
    /// What the caller's tokens allow, as verified when it presented them.
    pub grants: Arc<[Grant]>,
    /// Time left when the call arrived.
    pub deadline: Option<Duration>,
    /// Same for repeats of one logical call.
    pub idempotency_key: Option<[u8; 16]>,
    /// Trace that the call belongs to.
    pub trace: Option<TraceContext>,
}

/// How to make a call.
#[derive(Debug, Clone, Copy)]
pub struct CallOptions {
    /// Time for the whole call, connection set-up included. For a stream: time until its first
    /// answer frame; the stream itself then lives until either side ends it.
    pub deadline: Duration,
    /// Set when the call may be repeated.
    pub idempotency_key: Option<[u8; 16]>,
    /// Trace that the call belongs to.
    pub trace: Option<TraceContext>,
}

impl CallOptions {
    /// Options with this deadline and nothing else.
    pub const fn within(deadline: Duration) -> Self {
        Self {
            deadline,
            idempotency_key: None,
            trace: None,
        }
    }
}

impl Default for CallOptions {
    /// 10 seconds.
    fn default() -> Self {
        Self::within(Duration::from_secs(10))
    }
}

/// A call before its types are erased.
#[derive(Debug, Clone)]
pub struct RawCall {
    /// What is called.
    pub method: MethodInfo,
    /// Encoding of `body` and of the answers.
    pub codec: Codec,
    /// The encoded request.
    pub body: Bytes,
    /// Deadline and keys.
    pub options: CallOptions,
}

/// Can call methods on other nodes. Dropping a returned future or stream cancels the call.
pub trait Caller: Send + Sync + 'static {
    /// Makes a unary call.
    fn call_raw(&self, to: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>>;
    /// Makes a streaming call.
    fn stream_raw(
        &self,
        to: NodeId,
        call: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>>;
}

/// Calls a unary method of `to`.
pub async fn call<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    request: &M::Request,
    options: CallOptions,
) -> Result<M::Response, RpcError> {
    let bytes = caller.call_raw(to, raw::<M>(request, options)).await?;
    from_body(Codec::Postcard, &bytes)
}

/// Calls a streaming method of `to`.
pub async fn stream<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    request: &M::Request,
    options: CallOptions,
) -> Result<ItemStream<M::Response>, RpcError> {
    let items = caller.stream_raw(to, raw::<M>(request, options)).await?;
    Ok(Box::pin(
        items.map(|item| from_body(Codec::Postcard, &item?)),
    ))
}

fn raw<M: Method>(request: &M::Request, options: CallOptions) -> RawCall {
    RawCall {
        method: M::INFO,
        codec: Codec::Postcard,
        body: codec::encode(request).into(),
        options,
    }
}

/// Encodes a body for `codec`.
pub fn to_body<T: Serialize>(codec: Codec, value: &T) -> Result<Bytes, RpcError> {
    match codec {
        Codec::Postcard => Ok(codec::encode(value).into()),
        Codec::Json => serde_json::to_vec(value)
            .map(Bytes::from)
            .map_err(|e| RpcError::internal(format!("the answer has no JSON form: {e}"))),
    }
}

/// Decodes a body of `codec`.
pub fn from_body<T: DeserializeOwned>(codec: Codec, body: &[u8]) -> Result<T, RpcError> {
    match codec {
        Codec::Postcard => codec::decode(body, MAX_FRAME).map_err(|e| e.to_string()),
        Codec::Json => serde_json::from_slice(body).map_err(|e| e.to_string()),
    }
    .map_err(|e| RpcError::invalid(format!("body does not decode: {e}")).reason("decode"))
}

/// A served method's answer, still to be awaited.
pub enum RawReply {
    /// Of a unary method.
    Unary(BoxFuture<Result<Bytes, RpcError>>),
    /// Of a streaming method.
    Stream(BoxFuture<Result<ItemStream<Bytes>, RpcError>>),
}

impl fmt::Debug for RawReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unary(_) => "Unary",
            Self::Stream(_) => "Stream",
        })
    }
}

type RawHandler = Arc<dyn Fn(CallContext, Codec, Bytes) -> RawReply + Send + Sync>;

/// The methods that a node serves. Authorization happens before a handler is reached, by the
/// [`Access`] of its declaration.
#[derive(Clone, Default)]
pub struct Router {
    methods: BTreeMap<&'static str, BTreeMap<&'static str, (MethodInfo, RawHandler)>>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.methods().map(|m| m.path()))
            .finish()
    }
}

impl Router {
    /// A router that serves nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the unary method `M` with `handler`. A method served twice keeps the last handler.
    #[must_use]
    pub fn unary<M, F, Fut>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(CallContext, M::Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Response, RpcError>> + Send + 'static,
    {
        self.insert(
            M::INFO,
            Arc::new(move |cx, codec, body: Bytes| {
                let handler = handler.clone();
                RawReply::Unary(Box::pin(async move {
                    let request = from_body::<M::Request>(codec, &body)?;
                    to_body(codec, &handler(cx, request).await?)
                }))
            }),
        )
    }

    /// Serves the streaming method `M` with `handler`.
    #[must_use]
    pub fn stream<M, F, Fut>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(CallContext, M::Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<ItemStream<M::Response>, RpcError>> + Send + 'static,
    {
        self.insert(
            M::INFO,
            Arc::new(move |cx, codec, body: Bytes| {
                let handler = handler.clone();
                RawReply::Stream(Box::pin(async move {
                    let request = from_body::<M::Request>(codec, &body)?;
                    let items = handler(cx, request).await?;
                    let raw: ItemStream<Bytes> =
                        Box::pin(items.map(move |item| to_body(codec, &item?)));
                    Ok(raw)
                }))
            }),
        )
    }

    fn insert(mut self, info: MethodInfo, handler: RawHandler) -> Self {
        self.methods
            .entry(info.service)
            .or_default()
            .insert(info.name, (info, handler));
        self
    }

    /// All methods of both routers; on a clash `other` wins.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (service, methods) in other.methods {
            self.methods.entry(service).or_default().extend(methods);
        }
        self
    }

    /// Declaration of `service/method`, or `not_found` that names what is missing.
    pub fn find(&self, service: &str, method: &str) -> Result<MethodInfo, RpcError> {
        self.lookup(service, method).map(|(info, _)| *info)
    }

    /// Starts the handler of `service/method`. The caller has checked [`Access`] already.
    pub fn dispatch(
        &self,
        service: &str,
        method: &str,
        cx: CallContext,
        codec: Codec,
        body: Bytes,
    ) -> Result<RawReply, RpcError> {
        let (_, handler) = self.lookup(service, method)?;
        Ok(handler(cx, codec, body))
    }

    /// Every served method, by service and name.
    pub fn methods(&self) -> impl Iterator<Item = MethodInfo> + '_ {
        self.methods
            .values()
            .flat_map(BTreeMap::values)
            .map(|(info, _)| *info)
    }

    fn lookup(&self, service: &str, method: &str) -> Result<&(MethodInfo, RawHandler), RpcError> {
        let Some(methods) = self.methods.get(service) else {
            return Err(RpcError::new(
                Status::NotFound,
                format!("this node does not serve `{service}`"),
            )
            .reason("no_service"));
        };
        methods.get(method).ok_or_else(|| {
            RpcError::not_found(format!("`{service}` has no method `{method}`")).reason("no_method")
        })
    }
}
