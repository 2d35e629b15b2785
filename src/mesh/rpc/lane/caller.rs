//! The calling side of lanes.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use meshwork_proto::limits::MAX_FRAME;
use meshwork_proto::rpc::lane::{
    Declare, LANE_BODY, LANE_METHODS, LaneCall, ToCallee, ToCaller, put_call,
};
use meshwork_proto::rpc::{Codec, Kind, ReplyTag, RpcError, STREAM_ANSWER, STREAM_LANE};
use meshwork_proto::service::{MethodInfo, RawCall};
use meshwork_proto::{codec, mesh};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::super::frame::{FrameError, FrameReader};
use super::super::{CallError, RpcLimits, stream_code, timeout_error, too_large};
use super::frames::Frames;
use super::out::Out;
use super::table::{Inserted, Table};

/// Lanes that calls are spread over. Four are as fast as one, and half as fast again where one packet in a
/// hundred is lost (`calls.64.loss` of the benchmark).
const LANES: usize = 4;

/// The lanes that a node has opened on one connection. They are opened by their first calls.
#[derive(Debug)]
pub(crate) struct Lanes {
    conn: Connection,
    /// Owns the tasks that drive the lanes.
    tasks: TaskTracker,
    all: [Lane; LANES],
    table: Mutex<Table>,
    /// A deadline comes before the one that is waited for.
    sooner: Notify,
    /// Set when the first lane is opened.
    timed: AtomicBool,
}

#[derive(Debug, Default)]
struct Lane {
    out: Out<Named>,
    opened: AtomicBool,
    /// It has ended; calls have streams of their own.
    ended: AtomicBool,
}

/// The methods that the callee knows the numbers of.
#[derive(Debug)]
struct Named([bool; LANE_METHODS as usize]);

impl Default for Named {
    fn default() -> Self {
        Self([false; LANE_METHODS as usize])
    }
}

impl Lanes {
    pub(crate) fn new(conn: Connection, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            conn,
            tasks,
            all: Default::default(),
            table: Mutex::default(),
            sooner: Notify::new(),
            timed: AtomicBool::new(false),
        })
    }

    /// Begins a call that is fit for a lane, to end by `deadline`. None when it is to have a stream of
    /// its own: it is large or streams, or the lane is backed up. So has the upkeep of the mesh itself,
    /// which must not wait behind anything.
    pub(crate) fn begin(
        self: &Arc<Self>,
        call: &RawCall,
        deadline: Instant,
    ) -> Option<Pending<'_>> {
        let RawCall { method, body, .. } = call;
        if method.kind != Kind::Unary || body.len() > LANE_BODY || method.service == mesh::SERVICE {
            return None;
        }
        let (Inserted { id, lane, first }, index) = {
            let mut table = self.table();
            let index = table.method(method, call.codec)?;
            let inserted = table.insert(LANES, deadline)?;
            let lane = &self.all[inserted.lane];
            // Whoever ends a lane marks it first, and then ends the calls in the table. What is not
            // written yet can go another way.
            if lane.ended.load(Ordering::Acquire) || lane.out.is_full() {
                table.forget(inserted.id);
                return None;
            }
            (inserted, index)
        };
        if !self.all[lane].opened.swap(true, Ordering::AcqRel) {
            self.open(lane);
        }
        let lane = &self.all[lane];
        if first {
            self.sooner.notify_one();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let head = LaneCall {
            id,
            method: index,
            deadline_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            idempotency_key: call.options.idempotency_key,
            trace: call.options.trace,
        };
        lane.out.put(|out, named| {
            if !std::mem::replace(&mut named.0[usize::from(index)], true) {
                declare(index, method, call.codec).put(out);
            }
            put_call(out, &head, body);
        });
        Some(Pending {
            lanes: self,
            lane,
            id,
            ended: false,
        })
    }

    /// Takes a stream that the peer opened: an answer too large for its lane. Tells the peer when it is
    /// none, or nobody's.
    pub(crate) async fn take_answer(&self, recv: RecvStream, limits: &RpcLimits) {
        let mut reader = FrameReader::new(recv);
        let code = match timeout(limits.header_deadline, answer_head(&mut reader)).await {
            Ok(Ok(Some(id))) => {
                self.take_body(&mut reader, id, limits).await;
                stream_code::ANSWERED
            }
            Ok(Ok(None)) => stream_code::UNKNOWN_TYPE,
            Ok(Err(_)) | Err(_) => stream_code::BAD_REQUEST,
        };
        reader.stop(code);
    }

    async fn take_body(&self, reader: &mut FrameReader, id: u64, limits: &RpcLimits) {
        let Some(deadline) = self.table().deadline(id) else {
            return;
        };
        // The tag comes on top of the item.
        let outcome = match timeout_at(deadline, reader.frame(limits.frame + 1)).await {
            Ok(Ok(Some(frame))) => opened(&frame),
            Ok(Ok(None)) => Err(broken("an answer without a value").into()),
            Ok(Err(FrameError::TooLong { len, max })) => {
                Err(too_large("the answer", len, max).into())
            }
            Ok(Err(FrameError::Truncated)) => Err(broken("an answer that ends half-way").into()),
            Ok(Err(FrameError::Read(ReadError::ConnectionLost(error)))) => {
                Err(CallError::Lost(error))
            }
            Ok(Err(FrameError::Read(_))) => Err(RpcError::new(
                meshwork_proto::rpc::Status::Cancelled,
                "the peer gave the call up",
            )
            .into()),
            Err(_) => Err(timeout_error().into()),
        };
        let waker = self.table().end(id, outcome);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn open(self: &Arc<Self>, at: usize) {
        self.tasks.spawn(self.clone().drive(at));
        if !self.timed.swap(true, Ordering::AcqRel) {
            self.tasks.spawn(self.clone().watch_deadlines());
        }
    }

    /// Carries a lane from its opening to its end.
    async fn drive(self: Arc<Self>, at: usize) {
        let end = match self.conn.open_bi().await {
            Ok((send, recv)) => self.carry(at, send, recv).await,
            Err(error) => End::Lost(error),
        };
        let lane = &self.all[at];
        lane.ended.store(true, Ordering::Release);
        let wakers = self.table().end_all(at, || end.error());
        wakers.into_iter().for_each(Waker::wake);
        debug!(?end, "a lane ended");
    }

    async fn carry(&self, at: usize, mut send: SendStream, recv: RecvStream) -> End {
        let lane = &self.all[at];
        if let Err(error) = send.write_all(&[STREAM_LANE]).await {
            return End::of_write(error);
        }
        let write = async {
            match lane.out.write_to(&mut send).await {
                // The callee reads no more. What it says last tells why.
                WriteError::Stopped(_) => std::future::pending().await,
                error => End::of_write(error),
            }
        };
        let end = tokio::select! {
            biased;
            end = self.read(lane, Frames::new(recv, &[])) => end,
            end = write => end,
        };
        let _ = send.reset(stream_code::CANCELLED);
        end
    }

    async fn read(&self, lane: &Lane, mut frames: Frames) -> End {
        let mut wakers = Vec::new();
        loop {
            match frames.more().await {
                Ok(true) => {}
                Ok(false) => return End::Closed,
                Err(ReadError::ConnectionLost(error)) => return End::Lost(error),
                Err(ReadError::Reset(code)) if code == stream_code::NOT_SERVED => {
                    return End::Closed;
                }
                Err(error) => return End::Broken(error.to_string()),
            }
            let heard = self.hear(lane, &mut frames, &mut wakers);
            wakers.drain(..).for_each(Waker::wake);
            if let Err(end) = heard {
                return end;
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Takes the answers that have arrived.
    fn hear(&self, lane: &Lane, frames: &mut Frames, wakers: &mut Vec<Waker>) -> Result<(), End> {
        let mut table = self.table();
        let bad = |error: &dyn std::fmt::Display| End::Broken(error.to_string());
        while let Some(frame) = frames.next().map_err(|error| bad(&error))? {
            let frame = ToCaller::decode(frame).map_err(|error| bad(&error))?;
            let (id, outcome) = match frame {
                ToCaller::Item(id, body) => (id, Ok(body)),
                ToCaller::Failed(id, error) => (id, Err(error.into())),
                ToCaller::NotServed(id) => (id, Err(CallError::NotServed)),
                ToCaller::Settle(_) if lane.out.is_full() => {
                    return Err(bad(&"it asks, and does not listen"));
                }
                ToCaller::Settle(mark) => {
                    lane.out.put(|out, _| ToCallee::Settled(mark).put(out));
                    continue;
                }
            };
            wakers.extend(table.end(id, outcome));
        }
        Ok(())
    }

    /// Ends calls whose deadline passes, as long as the connection lives. One timer for all of them:
    /// most end long before.
    async fn watch_deadlines(self: Arc<Self>) {
        loop {
            let due = self.table().due();
            let passed = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.conn.closed() => return,
                () = self.sooner.notified() => {}
                () = passed => self.end_late(),
            }
        }
    }

    fn end_late(&self) {
        let mut wakers = Vec::new();
        let mut table = self.table();
        for (id, lane) in table.late(Instant::now()) {
            wakers.extend(table.end(id, Err(timeout_error().into())));
            self.all[lane]
                .out
                .put(|out, _| ToCallee::Cancel(id).put(out));
        }
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is under way; cancelled when dropped before its end.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    lanes: &'a Lanes,
    lane: &'a Lane,
    id: u64,
    ended: bool,
}

impl Future for Pending<'_> {
    type Output = Result<Bytes, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.lanes.table().poll(self.id, cx.waker());
        match outcome {
            Some(outcome) => {
                self.ended = true;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let under_way = self.lanes.table().forget(self.id);
        if under_way && !self.lane.ended.load(Ordering::Acquire) {
            self.lane
                .out
                .put(|out, _| ToCallee::Cancel(self.id).put(out));
        }
    }
}

/// Why a lane ended, and what that means to the calls that it leaves unanswered.
#[derive(Debug)]
enum End {
    /// The callee ended it well: it has answered all that it looked at.
    Closed,
    /// The connection ended.
    Lost(ConnectionError),
    /// One end does not understand the other.
    Broken(String),
}

impl End {
    fn of_write(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            error => Self::Broken(error.to_string()),
        }
    }

    fn error(&self) -> CallError {
        match self {
            Self::Closed => CallError::NotServed,
            Self::Lost(error) => CallError::Lost(error.clone()),
            Self::Broken(why) => broken(why).into(),
        }
    }
}

fn declare(index: u16, method: &MethodInfo, codec: Codec) -> ToCallee {
    ToCallee::Declare(Declare {
        index,
        codec,
        service: method.service.to_owned(),
        method: method.name.to_owned(),
    })
}

/// The call that a stream answers; none when it is no such stream.
async fn answer_head(reader: &mut FrameReader) -> Result<Option<u64>, FrameError> {
    if reader.byte().await? != STREAM_ANSWER {
        return Ok(None);
    }
    let id = reader.exact(size_of::<u64>()).await?;
    let id = id[..].try_into().expect("eight bytes were asked for");
    Ok(Some(u64::from_be_bytes(id)))
}

/// What a frame of a single call's stream says.
fn opened(frame: &Bytes) -> Result<Bytes, CallError> {
    match frame.first().copied().and_then(ReplyTag::from_byte) {
        Some(ReplyTag::Item) => Ok(frame.slice(1..)),
        Some(ReplyTag::Error) => Err(codec::decode::<RpcError>(&frame[1..], MAX_FRAME)
            .unwrap_or_else(|_| broken("an error that does not decode"))
            .into()),
        Some(ReplyTag::End | ReplyTag::Started) | None => {
            Err(broken("an answer of unknown type").into())
        }
    }
}

fn broken(what: &str) -> RpcError {
    RpcError::internal(format!("the peer broke the RPC format: {what}")).reason("format")
}
