//! One declaration per RPC method, and the small traits through which parts call each other.
//!
//! `agent` and `manager` are written against [`Caller`] and [`Router`] only. The binary fills them
//! with the mesh, tests with a direct connection or the simulator.

mod router;

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
use crate::rpc::{self, Codec, Kind, RpcError, TraceContext};

pub use router::{Handler, RawReply, RawRequest, Router};

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

impl Access {
    /// Stable name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Member => "member",
            Self::Call => "call",
            Self::Admin => "admin",
        }
    }
}

impl MethodInfo {
    /// What others are told of the method.
    pub fn view(&self) -> rpc::MethodView {
        rpc::MethodView {
            service: self.service.to_owned(),
            method: self.name.to_owned(),
            kind: self.kind,
            idempotent: self.idempotent,
            access: self.access.name().to_owned(),
        }
    }

    /// `service/method`, the path that tokens speak of.
    pub fn path(&self) -> String {
        format!("{}/{}", self.service, self.name)
    }
}

/// A method, declared once with the [`service!`](crate::service!) macro and used by both sides.
pub trait Method: Send + Sync + 'static {
    /// Name, shape and access.
    const INFO: MethodInfo;
    /// What the caller sends: once, or any number of times for an upload.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What it gets back: once, or any number of times for a stream.
    type Response: Serialize + DeserializeOwned + Send + 'static;
}

/// Declares the methods of one service:
/// `unary|stream|upload|duplex Name("wire.name", Access, idempotent?) : Request => Response;`, where the
/// request of an `upload` or a `duplex`, and the response of a `stream` or a `duplex`, is one item of many.
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
    (@kind upload) => { $crate::rpc::Kind::ClientStream };
    (@kind duplex) => { $crate::rpc::Kind::Bidi };
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
    /// Time for the whole call, connection set-up included. For a method that answers with a stream:
    /// time until its first answer frame; the stream itself then lives until either side ends it.
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
    /// Makes a call of a method that takes a stream; `call.body` is not used. Its answers come as a
    /// stream, of exactly one item where the method gives one. An error among `items` cancels the
    /// call. A caller that cannot do this refuses, which is the default.
    fn duplex_raw(
        &self,
        _to: NodeId,
        call: RawCall,
        _items: ItemStream<Bytes>,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        let path = call.method.path();
        let error = RpcError::invalid(format!("`{path}` takes a stream, which goes no way here"));
        Box::pin(std::future::ready(Err(error.reason("kind"))))
    }
}

/// Calls a unary method of `to`.
pub async fn call<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    request: &M::Request,
    options: CallOptions,
) -> Result<M::Response, RpcError> {
    let bytes = caller.call_raw(to, raw::<M>(request, options)).await?;
    from_answer(&bytes)
}

/// Calls a streaming method of `to`.
pub async fn stream<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    request: &M::Request,
    options: CallOptions,
) -> Result<ItemStream<M::Response>, RpcError> {
    let items = caller.stream_raw(to, raw::<M>(request, options)).await?;
    Ok(Box::pin(items.map(|item| from_answer(&item?))))
}

/// Calls a method of `to` that takes a stream and gives one answer.
pub async fn upload<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    items: impl Stream<Item = M::Request> + Send + 'static,
    options: CallOptions,
) -> Result<M::Response, RpcError> {
    let mut answers = duplex::<M>(caller, to, items, options).await?;
    answers.next().await.unwrap_or_else(|| {
        Err(RpcError::internal("the call ended without an answer").reason("format"))
    })
}

/// Calls a method of `to` that takes a stream and gives one.
pub async fn duplex<M: Method>(
    caller: &dyn Caller,
    to: NodeId,
    items: impl Stream<Item = M::Request> + Send + 'static,
    options: CallOptions,
) -> Result<ItemStream<M::Response>, RpcError> {
    let items = items.map(|item| Ok(codec::encode(&item).into()));
    let call = RawCall {
        method: M::INFO,
        codec: Codec::Postcard,
        body: Bytes::new(),
        options,
    };
    let answers = caller.duplex_raw(to, call, Box::pin(items)).await?;
    Ok(Box::pin(answers.map(|item| from_answer(&item?))))
}

/// Decodes what a call was answered with. That it does not decode is the callee's fault, unlike in
/// [`from_body`].
pub fn from_answer<T: DeserializeOwned>(body: &[u8]) -> Result<T, RpcError> {
    codec::decode(body, MAX_FRAME).map_err(|error| {
        RpcError::internal(format!("the answer does not decode: {error}"))
            .reason(rpc::REASON_ANSWER)
    })
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
        Codec::Json => serde_json::to_vec(value).map(Bytes::from).map_err(|e| {
            RpcError::internal(format!("the value has no JSON form: {e}"))
                .reason(rpc::REASON_ENCODE)
        }),
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
