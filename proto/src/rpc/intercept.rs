//! Interceptors: code that sees every call on its way in or out, for authorization, metrics, tracing.
//!
//! An interceptor is asked when a call begins, and may change or refuse it. For a call that it lets
//! pass it gives a [`Watch`], which hears how the call ended; one that is dropped unheard saw its call
//! cancelled. Interceptors run on the path of every call: they must not block.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use meshwork_identity::NodeId;

use super::RpcError;
use crate::service::{BoxFuture, CallContext, Caller, ItemStream, MethodInfo, RawCall, RawReply};

/// One call under way, as an interceptor sees it. Dropped without a word when the call is cancelled.
pub trait Watch: Send + 'static {
    /// The call ended: well, or so. A stream ends with its last item.
    fn ended(self: Box<Self>, outcome: Result<(), &RpcError>);
}

/// Watches nothing.
impl Watch for () {
    fn ended(self: Box<Self>, _outcome: Result<(), &RpcError>) {}
}

/// Sees the calls that a node serves. Added with [`Router::intercepted`](crate::service::Router::intercepted).
pub trait ServerInterceptor: Send + Sync + 'static {
    /// A call that the caller's tokens allow is about to reach its handler. An error is its answer.
    fn begin(&self, method: &MethodInfo, cx: &mut CallContext) -> Result<Box<dyn Watch>, RpcError>;
}

/// Sees the calls that a node makes. Added with [`Intercepted::new`].
pub trait ClientInterceptor: Send + Sync + 'static {
    /// A call is about to be made. An error is its answer.
    fn begin(&self, to: &NodeId, call: &mut RawCall) -> Result<Box<dyn Watch>, RpcError>;
}

/// A caller whose calls an interceptor sees.
#[derive(Clone)]
pub struct Intercepted {
    inner: Arc<dyn Caller>,
    interceptor: Arc<dyn ClientInterceptor>,
}

impl Intercepted {
    /// `inner`, whose calls `interceptor` sees first.
    pub fn new(inner: Arc<dyn Caller>, interceptor: Arc<dyn ClientInterceptor>) -> Self {
        Self { inner, interceptor }
    }

    fn begin(&self, to: &NodeId, mut call: RawCall) -> Result<(RawCall, Box<dyn Watch>), RpcError> {
        let watch = self.interceptor.begin(to, &mut call)?;
        Ok((call, watch))
    }
}

impl fmt::Debug for Intercepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intercepted").finish_non_exhaustive()
    }
}

impl Caller for Intercepted {
    fn call_raw(&self, to: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
        match self.begin(&to, call) {
            Ok((call, watch)) => watched_once(self.inner.call_raw(to, call), watch),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn stream_raw(
        &self,
        to: NodeId,
        call: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        match self.begin(&to, call) {
            Ok((call, watch)) => watched_stream(self.inner.stream_raw(to, call), watch),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn duplex_raw(
        &self,
        to: NodeId,
        call: RawCall,
        items: ItemStream<Bytes>,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        match self.begin(&to, call) {
            Ok((call, watch)) => watched_stream(self.inner.duplex_raw(to, call, items), watch),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

/// The same answer, whose end `watch` hears of.
pub(crate) fn watched(reply: RawReply, watch: Box<dyn Watch>) -> RawReply {
    match reply {
        RawReply::Unary(answer) => RawReply::Unary(watched_once(answer, watch)),
        RawReply::Stream(answer) => RawReply::Stream(watched_stream(answer, watch)),
    }
}

fn watched_once<T: Send + 'static>(
    answer: BoxFuture<Result<T, RpcError>>,
    watch: Box<dyn Watch>,
) -> BoxFuture<Result<T, RpcError>> {
    Box::pin(async move {
        let answer = answer.await;
        watch.ended(answer.as_ref().map(|_| ()));
        answer
    })
}

fn watched_stream(
    answer: BoxFuture<Result<ItemStream<Bytes>, RpcError>>,
    watch: Box<dyn Watch>,
) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
    Box::pin(async move {
        match answer.await {
            Ok(items) => {
                let items: ItemStream<Bytes> = Box::pin(Watched {
                    items,
                    watch: Some(watch),
                });
                Ok(items)
            }
            Err(error) => {
                watch.ended(Err(&error));
                Err(error)
            }
        }
    })
}

/// A stream whose end is told.
struct Watched {
    items: ItemStream<Bytes>,
    watch: Option<Box<dyn Watch>>,
}

impl Stream for Watched {
    type Item = Result<Bytes, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = self.items.as_mut().poll_next(cx);
        let outcome = match &item {
            Poll::Ready(None) => Ok(()),
            Poll::Ready(Some(Err(error))) => Err(error),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => return item,
        };
        if let Some(watch) = self.watch.take() {
            watch.ended(outcome);
        }
        item
    }
}
