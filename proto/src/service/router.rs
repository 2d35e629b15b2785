//! What a node serves: methods by name, and their handlers.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;

use super::{BoxFuture, CallContext, ItemStream, Method, MethodInfo, from_body, to_body};
use crate::rpc::intercept::{ServerInterceptor, watched};
use crate::rpc::{Codec, RpcError, Status};

/// What a handler is given.
pub enum RawRequest {
    /// The request.
    One(Bytes),
    /// The items of a method that takes a stream. An error among them is the last.
    Many(ItemStream<Bytes>),
}

impl fmt::Debug for RawRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Many(_) => "Many",
        })
    }
}

/// A served method's answer, still to be awaited.
pub enum RawReply {
    /// Of a method that answers once.
    Unary(BoxFuture<Result<Bytes, RpcError>>),
    /// Of a method that answers with a stream.
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

type Run = dyn Fn(CallContext, Codec, RawRequest) -> RawReply + Send + Sync;

/// A served method. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    info: MethodInfo,
    run: Arc<Run>,
}

impl Handler {
    /// How the method is declared.
    pub fn info(&self) -> MethodInfo {
        self.info
    }

    /// Starts the handler. The caller has checked the method's [`Access`](super::Access) already.
    pub fn start(&self, cx: CallContext, codec: Codec, request: RawRequest) -> RawReply {
        let stream = matches!(request, RawRequest::Many(_));
        if stream == self.info.kind.takes_stream() {
            return (self.run)(cx, codec, request);
        }
        let error = RpcError::invalid(format!(
            "`{}` is a {:?} method",
            self.info.path(),
            self.info.kind
        ));
        self.refuse(error.reason("kind"))
    }

    /// An answer without a run of the handler.
    fn refuse(&self, error: RpcError) -> RawReply {
        if self.info.kind.gives_stream() {
            RawReply::Stream(Box::pin(ready(Err(error))))
        } else {
            RawReply::Unary(Box::pin(ready(Err(error))))
        }
    }

    fn intercepted(self, interceptor: &Arc<dyn ServerInterceptor>) -> Self {
        let (info, interceptor, inner) = (self.info, interceptor.clone(), self);
        let run = move |mut cx, codec, request| match interceptor.begin(&info, &mut cx) {
            Ok(watch) => watched(inner.start(cx, codec, request), watch),
            Err(error) => inner.refuse(error),
        };
        Self {
            info,
            run: Arc::new(run),
        }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handler").field(&self.info.path()).finish()
    }
}

/// The methods that a node serves. Authorization happens before a handler is reached, by the
/// [`Access`](super::Access) of its declaration.
#[derive(Clone, Default)]
pub struct Router {
    methods: BTreeMap<&'static str, BTreeMap<&'static str, Handler>>,
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
            Arc::new(move |cx, codec, request| {
                let (handler, body) = (handler.clone(), one(request));
                RawReply::Unary(Box::pin(async move {
                    let request = from_body::<M::Request>(codec, &body)?;
                    // Small in most cases, and not needed any more.
                    drop(body);
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
            Arc::new(move |cx, codec, request| {
                let (handler, body) = (handler.clone(), one(request));
                RawReply::Stream(Box::pin(async move {
                    let request = from_body::<M::Request>(codec, &body)?;
                    drop(body);
                    Ok(encoded(codec, handler(cx, request).await?))
                }))
            }),
        )
    }

    /// Serves the method `M`, which takes a stream and answers once, with `handler`.
    #[must_use]
    pub fn upload<M, F, Fut>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(CallContext, ItemStream<M::Request>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Response, RpcError>> + Send + 'static,
    {
        self.insert(
            M::INFO,
            Arc::new(move |cx, codec, request| {
                let (handler, items) = (handler.clone(), decoded(codec, many(request)));
                RawReply::Unary(Box::pin(async move {
                    to_body(codec, &handler(cx, items).await?)
                }))
            }),
        )
    }

    /// Serves the method `M`, which takes a stream and gives one, with `handler`.
    #[must_use]
    pub fn duplex<M, F, Fut>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(CallContext, ItemStream<M::Request>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<ItemStream<M::Response>, RpcError>> + Send + 'static,
    {
        self.insert(
            M::INFO,
            Arc::new(move |cx, codec, request| {
                let (handler, items) = (handler.clone(), decoded(codec, many(request)));
                RawReply::Stream(Box::pin(async move {
                    Ok(encoded(codec, handler(cx, items).await?))
                }))
            }),
        )
    }

    fn insert(mut self, info: MethodInfo, run: Arc<Run>) -> Self {
        self.methods
            .entry(info.service)
            .or_default()
            .insert(info.name, Handler { info, run });
        self
    }

    /// The same methods, each call of which `interceptor` sees first. Of several, the one added last
    /// sees a call first.
    #[must_use]
    pub fn intercepted(mut self, interceptor: &Arc<dyn ServerInterceptor>) -> Self {
        for handler in self.methods.values_mut().flat_map(BTreeMap::values_mut) {
            *handler = handler.clone().intercepted(interceptor);
        }
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

    /// The methods of this router that `other` does not have, or has from somewhere else.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        for (service, methods) in &mut self.methods {
            let Some(gone) = other.methods.get(service) else {
                continue;
            };
            methods.retain(|name, handler| {
                !gone
                    .get(name)
                    .is_some_and(|gone| Arc::ptr_eq(&gone.run, &handler.run))
            });
        }
        self.methods.retain(|_, methods| !methods.is_empty());
        self
    }

    /// Declaration of `service/method`, or `not_found` that names what is missing.
    pub fn find(&self, service: &str, method: &str) -> Result<MethodInfo, RpcError> {
        self.handler(service, method).map(Handler::info)
    }

    /// Starts the handler of `service/method`. The caller has checked [`Access`](super::Access) already.
    pub fn dispatch(
        &self,
        service: &str,
        method: &str,
        cx: CallContext,
        codec: Codec,
        body: Bytes,
    ) -> Result<RawReply, RpcError> {
        let handler = self.handler(service, method)?;
        Ok(handler.start(cx, codec, RawRequest::One(body)))
    }

    /// Every served method, by service and name.
    pub fn methods(&self) -> impl Iterator<Item = MethodInfo> + '_ {
        self.methods
            .values()
            .flat_map(BTreeMap::values)
            .map(Handler::info)
    }

    /// The names of the services, in order.
    pub fn services(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.methods.keys().copied()
    }

    /// The handler of `service/method`, or `not_found` that names what is missing.
    pub fn handler(&self, service: &str, method: &str) -> Result<&Handler, RpcError> {
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

/// The request of a method that takes one: [`Handler::start`] has seen to it.
fn one(request: RawRequest) -> Bytes {
    match request {
        RawRequest::One(body) => body,
        RawRequest::Many(_) => Bytes::new(),
    }
}

/// The items of a method that takes a stream.
fn many(request: RawRequest) -> ItemStream<Bytes> {
    match request {
        RawRequest::One(body) => Box::pin(futures_util::stream::once(ready(Ok(body)))),
        RawRequest::Many(items) => items,
    }
}

fn decoded<T>(codec: Codec, items: ItemStream<Bytes>) -> ItemStream<T>
where
    T: serde::de::DeserializeOwned + Send + 'static,
{
    Box::pin(items.map(move |item| from_body(codec, &item?)))
}

fn encoded<T>(codec: Codec, items: ItemStream<T>) -> ItemStream<Bytes>
where
    T: serde::Serialize + Send + 'static,
{
    Box::pin(items.map(move |item| to_body(codec, &item?)))
}
