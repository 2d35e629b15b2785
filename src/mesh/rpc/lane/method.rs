//! A method with a number on a lane: whether the caller may call it, and how its handler is begun.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{Grant, Timestamp};
use meshwork_proto::rpc::{Codec, RpcError};
use meshwork_proto::service::{
    Access, BoxFuture, CallContext, Handler, MethodInfo, RawReply, RawRequest,
};
use tokio::time::Instant;

use super::super::Standing;
use super::super::desk::{panicked, wrong_kind};
use super::super::nested::Inherited;
use super::super::server::Server;

/// A method with a number.
pub(super) struct Method {
    pub(super) service: Box<str>,
    pub(super) name: Box<str>,
    pub(super) codec: Codec,
    /// Found in the router.
    pub(super) handler: Result<Handler, RpcError>,
    /// Until when the caller may call it without another check.
    pub(super) allowed: Option<Timestamp>,
    /// Grows when a handler kept the lane busy, and wanes with each call.
    pub(super) strikes: u32,
}

impl Method {
    /// Whether the caller may call this method now. What was found is kept until a token expires; it is
    /// forgotten when the caller's standing changes.
    pub(super) fn check(
        &mut self,
        info: &MethodInfo,
        server: &Server,
        standing: &crate::watch::Receiver<Standing>,
        now: Timestamp,
    ) -> Result<(), RpcError> {
        if self.allowed.is_some_and(|until| now < until) {
            return Ok(());
        }
        let standing = standing.borrow();
        standing.check(info, &server.serving.peer, &server.desk.local, now)?;
        let until = match info.access {
            Access::Open => None,
            _ => standing.grants.iter().map(Grant::deadline).min(),
        };
        self.allowed = Some(until.unwrap_or(Timestamp::MAX));
        Ok(())
    }

    /// Runs the handler up to where it waits: its outcome, or what is left of it.
    pub(super) fn begin(
        &mut self,
        cx: CallContext,
        body: Bytes,
        inherited: Inherited,
    ) -> Result<Result<Bytes, RpcError>, BoxFuture<Result<Bytes, RpcError>>> {
        let Ok(handler) = &self.handler else {
            return Ok(Err(RpcError::internal("the method has no handler")));
        };
        let info = handler.info();
        let codec = self.codec;
        let polled_here = self.strikes < MAX_STRIKES;
        let started = Instant::now();
        let run = || match handler.start(cx, codec, RawRequest::One(body)) {
            RawReply::Unary(mut work) if polled_here => {
                // Polled again where it goes on, which then is woken.
                match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(outcome) => Ok(outcome),
                    Poll::Pending => Err(work),
                }
            }
            RawReply::Unary(work) => Err(work),
            RawReply::Stream(_) => Ok(Err(wrong_kind(&info))),
        };
        // What a panicking handler leaves behind is its own; poisoned locks tell.
        let begun = catch_unwind(AssertUnwindSafe(|| inherited.within_sync(run)));
        self.strikes = if started.elapsed() > LONG {
            self.strikes.saturating_add(STRIKE)
        } else {
            self.strikes.saturating_sub(1)
        };
        begun.unwrap_or_else(|panic| Ok(Err(panicked(&info, &*panic))))
    }

    /// Runs the handler once the caller's tokens are here, which are on their way.
    pub(super) fn begin_later(
        &self,
        server: Arc<Server>,
        mut cx: CallContext,
        body: Bytes,
    ) -> BoxFuture<Result<Bytes, RpcError>> {
        let (handler, codec) = (self.handler.clone(), self.codec);
        Box::pin(async move {
            let handler = handler?;
            let info = handler.info();
            let standing = server.standing_for(&info).await;
            standing.check(
                &info,
                &server.serving.peer,
                &server.desk.local,
                server.desk.clock.now(),
            )?;
            cx.grants = standing.grants;
            match handler.start(cx, codec, RawRequest::One(body)) {
                RawReply::Unary(work) => work.await,
                RawReply::Stream(_) => Err(wrong_kind(&info)),
            }
        })
    }
}

/// A handler that takes longer than this until it waits for the first time is no neighbour for others.
const LONG: Duration = Duration::from_micros(250);
/// What that costs a method, in calls that must not do so, and how much of it gives its handlers tasks
/// of their own. A single one may be the operating system's doing.
const STRIKE: u32 = 64;
const MAX_STRIKES: u32 = 3 * STRIKE;
