//! The serving side: accepts a connection's streams, checks who calls, runs the handler, answers.
//!
//! What a hostile peer can hold is bounded: streams by QUIC's stream limit, calls and bytes of
//! requests by [`RpcLimits`], and every wait for the peer by a deadline.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::NodeId;
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_HEADER;
use meshwork_proto::rpc::{
    Codec, ReplyTag, RequestHeader, RpcError, STREAM_LANE, STREAM_RPC, Status,
};
use meshwork_proto::service::{
    Access, CallContext, Handler, ItemStream, MethodInfo, RawReply, RawRequest, Router,
};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::watch;

use super::batch::{Batch, Batches};
use super::desk::{catch_panic, catch_panics, panicked, wrong_kind};
use super::frame::{FrameError, FrameReader, write_frame};
use super::lane::{self, Lanes};
use super::nested::Inherited;
use super::share::Count;
use super::uploaded::uploaded;
use super::{
    Busy, Desk, FEW_STREAMS, InFlight, LastUse, Share, Standing, stream_code, timeout_error,
    too_large,
};

/// Slowest sender of a request body that is waited for, in bytes a second.
pub(super) const SLOWEST_BODY: usize = 64 * 1024;
/// A reader that takes nothing of the answer for so long loses the call.
pub(super) const STALLED_READER: Duration = Duration::from_mins(5);
/// How long the peer may take to make room for the words of a refusal.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Largest request to a method that is open to all, in bytes: a stranger's tokens, with room to
/// spare. Who may be anybody shall not make us hold a member's frames.
const OPEN_BODY: usize = 128 * 1024;

/// Serves one peer over one connection.
pub(crate) struct Server {
    pub(super) desk: Arc<Desk>,
    pub(super) serving: Serving,
    /// Lanes that the peer has opened.
    pub(super) lanes_served: Count,
}

/// A request that was read and let in.
struct Admitted {
    handler: Handler,
    codec: Codec,
    request: RawRequest,
    cx: CallContext,
    deadline: Option<Instant>,
    /// Bytes of the request that are held. Those of a stream hold on to themselves.
    held: Option<OwnedSemaphorePermit>,
    /// Place in the bound of the method.
    _place: Option<OwnedSemaphorePermit>,
}

/// Why a call ends before its handler does, or without one.
pub(super) enum Ended {
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
    /// Lanes that we call over.
    pub(crate) lanes: Arc<Lanes>,
    /// Methods of the `mesh` service that are about this connection; they go before those of the node.
    pub(crate) own: Arc<Router>,
}

impl Server {
    pub(crate) fn new(desk: Arc<Desk>, serving: Serving) -> Arc<Self> {
        Arc::new(Self {
            desk,
            serving,
            lanes_served: Count::default(),
        })
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
                    Ok(recv) => self.take_answer(recv),
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

    /// Takes a stream that only comes in: it can be nothing but an answer that is too large for a lane.
    fn take_answer(self: &Arc<Self>, recv: RecvStream) {
        let (lanes, desk) = (self.serving.lanes.clone(), self.desk.clone());
        // Their number is bounded by the stream limit of the connection.
        self.desk
            .calls
            .spawn(async move { lanes.take_answer(recv, &desk.limits).await });
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

    /// One stream from its first byte on.
    async fn serve(self: Arc<Self>, mut send: SendStream, mut reader: FrameReader, busy: Busy) {
        let arrived = Instant::now();
        let first = timeout(self.desk.limits.header_deadline, reader.byte());
        match first.await {
            Ok(Ok(STREAM_RPC)) => self.serve_call(send, reader, arrived, busy).await,
            Ok(Ok(STREAM_LANE)) => {
                let (recv, begun) = reader.into_parts();
                // It counts as a call as long as it carries any.
                drop(busy);
                Box::pin(lane::serve(self, send, recv, &begun)).await;
            }
            Ok(Ok(_)) => {
                let _ = send.reset(stream_code::UNKNOWN_TYPE);
                reader.stop(stream_code::UNKNOWN_TYPE);
            }
            Ok(Err(_)) => drop(send.reset(stream_code::CANCELLED)),
            Err(_) => drop(send.reset(stream_code::BAD_REQUEST)),
        }
    }

    /// A stream with a single call, to the peer's acknowledgement of the answer.
    async fn serve_call(
        &self,
        send: SendStream,
        reader: FrameReader,
        arrived: Instant,
        _busy: Busy,
    ) {
        let mut answer = Answer {
            send,
            share: self.serving.share.clone(),
            amid_frame: false,
        };
        let mut reader = Some(reader);
        let ended = match self.serving.share.call() {
            // Large, and moved several times on its way into a task unless it stays in place.
            Ok(_place) => Box::pin(self.call(&mut answer, &mut reader, arrived)).await,
            Err(error) => Err(error.into()),
        };
        let finished = answer.close(ended).await;
        if let Some(mut reader) = reader {
            reader.stop(stream_code::ANSWERED);
        }
        // The connection must not be closed as unused before the answer has arrived: the caller
        // would make the call again. However slow it reads, this ends with the connection.
        if finished {
            let _ = answer.send.stopped().await;
        }
    }

    async fn call(
        &self,
        answer: &mut Answer,
        reader: &mut Option<FrameReader>,
        arrived: Instant,
    ) -> Result<(), Ended> {
        let admitted = self.admit(reader, arrived).await?;
        let Admitted {
            handler,
            codec,
            request,
            cx,
            deadline,
            held,
            _place,
        } = admitted;
        let method = handler.info();
        let inherited = Inherited {
            deadline,
            trace: cx.trace,
        };
        match start(&handler, cx, codec, request, inherited)? {
            RawReply::Unary(work) => {
                let mut work = pin!(inherited.within(catch_panic(method, work)));
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
                let work = inherited.within(catch_panic(method, work));
                let items = self.guard(stopped, &method, deadline, end, work).await??;
                drop(held);
                let stopped = answer.send.stopped();
                let pump = answer.pump(catch_panics(method, items), self.desk.limits.frame);
                self.guard(stopped, &method, None, end, pump).await?
            }
        }
    }

    /// Reads the request and decides whether it is served. A stream of items takes the reader with it.
    async fn admit(
        &self,
        stream: &mut Option<FrameReader>,
        arrived: Instant,
    ) -> Result<Admitted, Ended> {
        let Some(reader) = stream else {
            return Err(Ended::Reset(stream_code::BAD_REQUEST));
        };
        let header = self.header(reader, arrived).await?;
        if self.desk.draining.is_cancelled() {
            return Err(shutting_down().into());
        }
        let handler = self.handler(&header.service, &header.method)?;
        let method = handler.info();
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
        let (request, held) = if method.kind.takes_stream() {
            let patience = self.desk.limits.header_deadline;
            let share = self.serving.share.clone();
            let reader = stream.take().expect("it was there all along");
            let items = uploaded(reader, share, largest, patience);
            (RawRequest::Many(items), None)
        } else {
            let (body, held) = self.body(reader, largest, deadline).await?;
            (RawRequest::One(body), Some(held))
        };
        if method.service != meshwork_proto::mesh::SERVICE {
            self.serving.last_use.touch();
        }
        Ok(Admitted {
            handler,
            codec: header.codec,
            request,
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

    /// The handler of a method, for this connection.
    pub(super) fn handler(&self, service: &str, name: &str) -> Result<Handler, RpcError> {
        if service == meshwork_proto::mesh::SERVICE
            && let Ok(handler) = self.serving.own.handler(service, name)
        {
            return Ok(handler.clone());
        }
        self.desk.router().handler(service, name).cloned()
    }

    async fn header(
        &self,
        reader: &mut FrameReader,
        arrived: Instant,
    ) -> Result<RequestHeader, Ended> {
        let read = async {
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
    pub(super) async fn standing_for(&self, method: &MethodInfo) -> Standing {
        let mut standing = self.serving.standing.clone();
        if self.serving.expects_tokens && method.access != Access::Open {
            let presented = standing.wait_for(|standing| standing.presented);
            let _ = timeout(self.desk.limits.header_deadline, presented).await;
        }
        standing.borrow().clone()
    }

    /// Runs `work` until it is done, or the caller has gone, or may no longer, or time is up.
    pub(super) async fn guard<T>(
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

    /// Passes items on at the pace of the caller, to the end of the stream. Small ones that are there at
    /// the same time leave in one write.
    async fn pump(&mut self, items: ItemStream<Bytes>, max: usize) -> Result<(), Ended> {
        self.frame(ReplyTag::Started, Bytes::new()).await?;
        let mut batches = Batches::new(items, ReplyTag::Item as u8);
        while let Some(batch) = batches.next().await {
            match batch? {
                Batch::Frames(frames) => self.write(&frames).await?,
                Batch::Large(item) => self.item(item, max).await?,
            }
        }
        self.frame(ReplyTag::End, Bytes::new()).await
    }

    /// Writes whole frames.
    async fn write(&mut self, frames: &[u8]) -> Result<(), Ended> {
        self.amid_frame = true;
        let written = timeout(STALLED_READER, self.send.write_all(frames)).await;
        if let Ok(Ok(())) = written {
            self.amid_frame = false;
            return Ok(());
        }
        Err(Ended::Reset(stream_code::CANCELLED))
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

/// Starts a handler for a caller that was let in.
pub(super) fn start(
    handler: &Handler,
    cx: CallContext,
    codec: Codec,
    request: RawRequest,
    inherited: Inherited,
) -> Result<RawReply, RpcError> {
    let start = || inherited.within_sync(|| handler.start(cx, codec, request));
    std::panic::catch_unwind(AssertUnwindSafe(start))
        .map_err(|panic| panicked(&handler.info(), &*panic))
}

/// Polls `work` a single time.
async fn poll_once<F: Future>(mut work: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await
}

pub(super) fn shutting_down() -> RpcError {
    RpcError::new(Status::Cancelled, "the node is shutting down").reason("shutting_down")
}

fn malformed(why: &dyn std::fmt::Display) -> RpcError {
    RpcError::invalid(format!("the request breaks the RPC format: {why}")).reason("format")
}

/// What a request that cannot be read comes to.
pub(super) fn unreadable(error: &FrameError) -> Ended {
    match *error {
        FrameError::TooLong { len, max } => too_large("the request", len, max).into(),
        FrameError::Truncated => malformed(error).into(),
        FrameError::Read(_) => Ended::Reset(stream_code::CANCELLED),
    }
}
