//! The serving side: accepts a connection's streams, checks who calls, runs the handler, answers.
//!
//! What a hostile peer can hold is bounded: streams by QUIC's stream limit, calls and bytes of
//! requests by [`RpcLimits`], and every wait for the peer by a deadline.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use meshwork_identity::NodeId;
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_HEADER;
use meshwork_proto::rpc::{ReplyTag, RequestHeader, RpcError, STREAM_RPC, Status};
use meshwork_proto::service::{
    Access, CallContext, ItemStream, MethodInfo, RawCall, RawReply, Router,
};
use quinn::{Connection, ConnectionError, SendStream, VarInt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::watch;

use super::desk::{catch_panic, catch_panics, dispatch, wrong_kind};
use super::frame::{FrameError, FrameReader, write_frame};
use super::{
    Busy, Desk, FEW_STREAMS, InFlight, LastUse, Share, Standing, stream_code, timeout_error,
    too_large,
};

/// Slowest sender of a request body that is waited for, in bytes a second.
const SLOWEST_BODY: usize = 64 * 1024;
/// A reader that takes nothing of the answer for so long loses the call.
const STALLED_READER: Duration = Duration::from_mins(5);
/// How long the peer may take to make room for the words of a refusal.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Largest request to a method that is open to all, in bytes: a stranger's tokens, with room to
/// spare. Who may be anybody shall not make us hold a member's frames.
const OPEN_BODY: usize = 128 * 1024;

/// Serves one peer over one connection.
pub(crate) struct Server {
    desk: Arc<Desk>,
    serving: Serving,
}

/// A request that was read and let in.
struct Admitted {
    /// Where its method is served.
    router: Arc<Router>,
    call: RawCall,
    cx: CallContext,
    deadline: Option<Instant>,
    /// Bytes of the request that are held.
    held: OwnedSemaphorePermit,
    /// Place in the bound of the method.
    _place: Option<OwnedSemaphorePermit>,
}

/// Why a call ends before its handler does, or without one.
enum Ended {
    /// The caller is told.
    Failed(RpcError),
    /// Nobody is there to be told, or the format is broken: the stream is reset.
    Reset(VarInt),
}

impl From<RpcError> for Ended {
    fn from(error: RpcError) -> Self {
        Self::Failed(error)
    }
}

/// The answer's stream, which knows whether it stands between two frames.
struct Answer {
    send: SendStream,
    share: Arc<Share>,
    amid_frame: bool,
}

/// What a [`Server`] is made of.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) conn: Connection,
    pub(crate) peer: NodeId,
    pub(crate) standing: watch::Receiver<Standing>,
    /// Whether the peer's tokens are on their way in any case, so that a call may wait for them:
    /// where we dialled, they come with the answer to ours.
    pub(crate) expects_tokens: bool,
    /// Calls under way in both directions.
    pub(crate) calls: InFlight,
    pub(crate) last_use: Arc<LastUse>,
    /// What the peer holds of this node, over all of its connections.
    pub(crate) share: Arc<Share>,
    /// Methods of the `mesh` service that are about this connection; they go before those of the node.
    pub(crate) own: Arc<Router>,
}

impl Server {
    pub(crate) fn new(desk: Arc<Desk>, serving: Serving) -> Arc<Self> {
        Arc::new(Self { desk, serving })
    }

    /// Serves until the connection ends; why it ended.
    pub(crate) async fn run(self: Arc<Self>) -> ConnectionError {
        let mut few_streams = true;
        loop {
            tokio::select! {
                biased;
                accepted = self.serving.conn.accept_bi() => match accepted {
                    Ok((send, recv)) => {
                        // Their number is bounded by the stream limit of the connection.
                        self.accept(send, FrameReader::new(recv));
                        if few_streams && self.is_busy() {
                            few_streams = false;
                            let streams = self.desk.limits.streams().into();
                            self.serving.conn.set_max_concurrent_bi_streams(streams);
                        }
                    }
                    Err(error) => return error,
                },
                accepted = self.serving.conn.accept_uni() => match accepted {
                    Ok(mut recv) => drop(recv.stop(stream_code::UNKNOWN_TYPE)),
                    Err(error) => return error,
                },
            }
        }
    }

    /// Whether the peer, no stranger, has need of more than [`FEW_STREAMS`].
    fn is_busy(&self) -> bool {
        self.serving.calls.count() >= FEW_STREAMS as usize / 2
            && self.serving.standing.borrow().presented
    }

    fn accept(self: &Arc<Self>, mut send: SendStream, mut reader: FrameReader) {
        if let Some(busy) = self.serving.calls.enter() {
            self.desk
                .calls
                .spawn(self.clone().serve(send, reader, busy));
        } else {
            let _ = send.reset(stream_code::NOT_SERVED);
            reader.stop(stream_code::NOT_SERVED);
        }
    }

    /// One stream from its first byte to the peer's acknowledgement of the answer.
    async fn serve(self: Arc<Self>, send: SendStream, mut reader: FrameReader, _busy: Busy) {
        let mut answer = Answer {
            send,
            share: self.serving.share.clone(),
            amid_frame: false,
        };
        let ended = match self.serving.share.call() {
            // Large, and moved several times on its way into a task unless it stays in place.
            Ok(_place) => Box::pin(self.call(&mut answer, &mut reader)).await,
            Err(error) => Err(error.into()),
        };
        let finished = answer.close(ended).await;
        reader.stop(stream_code::ANSWERED);
        // The connection must not be closed as unused before the answer has arrived: the caller
        // would make the call again. However slow it reads, this ends with the connection.
        if finished {
            let _ = answer.send.stopped().await;
        }
    }

    async fn call(&self, answer: &mut Answer, reader: &mut FrameReader) -> Result<(), Ended> {
        let admitted = self.admit(reader).await?;
        let Admitted {
            router,
            call,
            cx,
            deadline,
            held,
            _place,
        } = admitted;
        let method = call.method;
        match dispatch(&router, &call, cx)? {
            RawReply::Unary(work) => {
                let mut work = pin!(catch_panic(method, work));
                // Most handlers are done at once: then there is nothing to guard.
                let item = match poll_once(work.as_mut()).await {
                    Poll::Ready(item) => item?,
                    Poll::Pending => {
                        let stopped = answer.send.stopped();
                        let end = &self.desk.stopping;
                        self.guard(stopped, &method, deadline, end, work).await??
                    }
                };
                answer.item(item, self.desk.limits.frame).await
            }
            RawReply::Stream(work) => {
                let stopped = answer.send.stopped();
                let end = &self.desk.draining;
                let items = self
                    .guard(stopped, &method, deadline, end, catch_panic(method, work))
                    .await??;
                drop((held, call));
                let stopped = answer.send.stopped();
                let pump = answer.pump(catch_panics(method, items), self.desk.limits.frame);
                self.guard(stopped, &method, None, end, pump).await?
            }
        }
    }

    /// Reads the request and decides whether it is served.
    async fn admit(&self, reader: &mut FrameReader) -> Result<Admitted, Ended> {
        let arrived = Instant::now();
        let header = self.header(reader, arrived).await?;
        if self.desk.draining.is_cancelled() {
            return Err(shutting_down().into());
        }
        let (router, method) = self.find(&header.service, &header.method)?;
        if header.kind != method.kind {
            return Err(wrong_kind(&method).into());
        }
        let standing = self.standing_for(&method).await;
        standing.check(
            &method,
            &self.serving.peer,
            &self.desk.local,
            self.desk.clock.now(),
        )?;
        let place = self.desk.method_place(&method)?;
        let deadline = header.deadline().and_then(|left| arrived.checked_add(left));
        let largest = match method.access {
            Access::Open => OPEN_BODY.min(self.desk.limits.frame),
            Access::Member | Access::Call | Access::Admin => self.desk.limits.frame,
        };
        let (body, held) = self.body(reader, largest, deadline).await?;
        if method.service != meshwork_proto::mesh::SERVICE {
            self.serving.last_use.touch();
        }
        let options = meshwork_proto::service::CallOptions {
            deadline: header.deadline().unwrap_or(Duration::MAX),
            idempotency_key: header.idempotency_key,
            trace: header.trace,
        };
        Ok(Admitted {
            router,
            call: RawCall {
                method,
                codec: header.codec,
                body,
                options,
            },
            cx: CallContext {
                peer: self.serving.peer,
                local: self.desk.local,
                grants: standing.grants,
                deadline: header.deadline(),
                idempotency_key: header.idempotency_key,
                trace: header.trace,
            },
            deadline,
            held,
            _place: place,
        })
    }

    fn find(&self, service: &str, name: &str) -> Result<(Arc<Router>, MethodInfo), RpcError> {
        if service == meshwork_proto::mesh::SERVICE
            && let Ok(method) = self.serving.own.find(service, name)
        {
            return Ok((self.serving.own.clone(), method));
        }
        let router = self.desk.router();
        let method = router.find(service, name)?;
        Ok((router, method))
    }

    async fn header(
        &self,
        reader: &mut FrameReader,
        arrived: Instant,
    ) -> Result<RequestHeader, Ended> {
        let read = async {
            if reader.byte().await? != STREAM_RPC {
                return Ok(Err(Ended::Reset(stream_code::UNKNOWN_TYPE)));
            }
            let frame = reader
                .frame(MAX_HEADER)
                .await?
                .ok_or(FrameError::Truncated)?;
            let header = codec::decode::<RequestHeader>(&frame, MAX_HEADER);
            Ok(header.map_err(|error| Ended::Failed(malformed(&error))))
        };
        match timeout_at(arrived + self.desk.limits.header_deadline, read).await {
            Ok(Ok(header)) => header,
            Ok(Err(error)) => Err(unreadable(&error)),
            Err(_) => Err(Ended::Reset(stream_code::BAD_REQUEST)),
        }
    }

    /// The request's body, to the end of the stream, and the hold on its bytes.
    async fn body(
        &self,
        reader: &mut FrameReader,
        largest: usize,
        deadline: Option<Instant>,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Ended> {
        let patience = self.desk.limits.header_deadline;
        let late = |_| Ended::Failed(timeout_error());
        let now = Instant::now();
        let length = timeout_at(now + patience, reader.length(largest))
            .await
            .map_err(late)?;
        let length = length
            .map_err(|error| unreadable(&error))?
            .ok_or_else(|| malformed(&"it has no body"))?;
        let held = self.serving.share.request(length)?;
        let slowest = Duration::from_secs((length / SLOWEST_BODY) as u64);
        let by = now + patience + slowest;
        let by = deadline.map_or(by, |deadline| deadline.min(by));
        let read = async {
            let body = reader.exact(length).await?;
            Ok(if reader.at_end().await? {
                Some(body)
            } else {
                None
            })
        };
        let body = timeout_at(by, read)
            .await
            .map_err(late)?
            .map_err(|error| unreadable(&error))?;
        let body = body.ok_or_else(|| malformed(&"bytes follow its body"))?;
        Ok((body, held))
    }

    /// How the caller stands, waited for where its tokens are still on their way.
    async fn standing_for(&self, method: &MethodInfo) -> Standing {
        let mut standing = self.serving.standing.clone();
        if self.serving.expects_tokens && method.access != Access::Open {
            let presented = standing.wait_for(|standing| standing.presented);
            let _ = timeout(self.desk.limits.header_deadline, presented).await;
        }
        standing.borrow().clone()
    }

    /// Runs `work` until it is done, or the caller has gone, or may no longer, or time is up.
    async fn guard<T>(
        &self,
        gone: impl Future,
        method: &MethodInfo,
        deadline: Option<Instant>,
        end: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = gone => Err(Ended::Reset(stream_code::CANCELLED)),
            () = end.cancelled() => Err(shutting_down().into()),
            error = self.authority_ends(method) => Err(error.into()),
            done = work => Ok(done),
            () = late => Err(timeout_error().into()),
        }
    }

    /// Waits until the caller may not make this call any more.
    async fn authority_ends(&self, method: &MethodInfo) -> RpcError {
        let mut standing = self.serving.standing.clone();
        while method.access != Access::Open && standing.changed().await.is_ok() {
            let now = standing.borrow_and_update().clone();
            let checked = now.check(
                method,
                &self.serving.peer,
                &self.desk.local,
                self.desk.clock.now(),
            );
            if let Err(error) = checked {
                return error;
            }
        }
        std::future::pending().await
    }
}

impl Answer {
    async fn frame(&mut self, tag: ReplyTag, body: Bytes) -> Result<(), Ended> {
        self.amid_frame = true;
        let tag = [tag as u8];
        let mut write = pin!(write_frame(&mut self.send, &[], &tag, body));
        // Most answers are taken at once: then there is nobody to wait for.
        let written = match poll_once(write.as_mut()).await {
            Poll::Ready(written) => Some(written),
            Poll::Pending => timeout(STALLED_READER, write).await.ok(),
        };
        match written {
            Some(Ok(())) => {
                self.amid_frame = false;
                Ok(())
            }
            Some(Err(_)) | None => Err(Ended::Reset(stream_code::CANCELLED)),
        }
    }

    async fn item(&mut self, item: Bytes, max: usize) -> Result<(), Ended> {
        if item.len() > max {
            return Err(too_large("the answer", item.len(), max).into());
        }
        let share = self.share.clone();
        let _room = share.answer(&item)?;
        self.frame(ReplyTag::Item, item).await
    }

    /// Passes items on at the pace of the caller, to the end of the stream.
    async fn pump(&mut self, mut items: ItemStream<Bytes>, max: usize) -> Result<(), Ended> {
        self.frame(ReplyTag::Started, Bytes::new()).await?;
        while let Some(item) = items.next().await {
            self.item(item?, max).await?;
        }
        self.frame(ReplyTag::End, Bytes::new()).await
    }

    /// Says how the call ended, where that is not said yet, and finishes the stream or, where there
    /// is nothing to be said any more, resets it. Whether it was finished.
    async fn close(&mut self, ended: Result<(), Ended>) -> bool {
        let reset = match ended {
            Ok(()) => None,
            Err(Ended::Reset(code)) => Some(code),
            // Amid an item there is no room for words.
            Err(Ended::Failed(error)) if self.amid_frame => Some(match error.status {
                Status::Denied | Status::Unauthenticated => stream_code::AUTHORITY_ENDED,
                _ => stream_code::CANCELLED,
            }),
            Err(Ended::Failed(error)) => {
                let body = codec::encode(&error).into();
                let told = timeout(LAST_WORDS, self.frame(ReplyTag::Error, body)).await;
                (!matches!(told, Ok(Ok(())))).then_some(stream_code::CANCELLED)
            }
        };
        // Both fail only when the stream has ended already.
        match reset {
            Some(code) => {
                let _ = self.send.reset(code);
                false
            }
            None => self.send.finish().is_ok(),
        }
    }
}

/// Polls `work` a single time.
async fn poll_once<F: Future>(mut work: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await
}

fn shutting_down() -> RpcError {
    RpcError::new(Status::Cancelled, "the node is shutting down").reason("shutting_down")
}

fn malformed(why: &dyn std::fmt::Display) -> RpcError {
    RpcError::invalid(format!("the request breaks the RPC format: {why}")).reason("format")
}

/// What a request that cannot be read comes to.
fn unreadable(error: &FrameError) -> Ended {
    match *error {
        FrameError::TooLong { len, max } => too_large("the request", len, max).into(),
        FrameError::Truncated => malformed(error).into(),
        FrameError::Read(_) => Ended::Reset(stream_code::CANCELLED),
    }
}
