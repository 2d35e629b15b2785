//! The calling side. Dropping a call's future or its stream of items cancels the call at the peer.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_FRAME;
use meshwork_proto::rpc::{ReplyTag, RequestHeader, RpcError, STREAM_RPC, Status};
use meshwork_proto::service::{ItemStream, RawCall};
use quinn::{Connection, ConnectionError, ReadError, SendStream, WriteError};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::batch::{Batch, Batches};
use super::frame::{FrameError, FrameReader, opening, write_frame};
use super::{Busy, close_code, stream_code, timeout_error, too_large};

/// How a call failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The callee answered so, or the call was never fit to be sent.
    Failed(RpcError),
    /// The connection ended under the call.
    Lost(ConnectionError),
    /// The callee did not look at the call, because the connection is about to end.
    NotServed,
}

impl CallError {
    /// Whether the callee certainly did not look at the call, so that repeating it is no second
    /// call.
    pub(crate) fn is_not_served(&self) -> bool {
        match self {
            Self::NotServed => true,
            // A node closes for these reasons between calls only.
            Self::Lost(ConnectionError::ApplicationClosed(close)) => {
                [close_code::DUPLICATE, close_code::IDLE].contains(&close.error_code)
            }
            Self::Lost(_) | Self::Failed(_) => false,
        }
    }
}

/// What the caller is told in the end.
impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Failed(error) => error,
            CallError::Lost(error) => lost(&error),
            CallError::NotServed => {
                Self::unavailable("the connection was about to close").reason("connection_lost")
            }
        }
    }
}

impl From<RpcError> for CallError {
    fn from(error: RpcError) -> Self {
        Self::Failed(error)
    }
}

/// A call and where it goes.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    /// The connection to the callee.
    pub(crate) conn: &'a Connection,
    /// Unique on the connection.
    pub(crate) id: u64,
    /// What is called.
    pub(crate) call: &'a RawCall,
    /// A unary call ends by then, a streaming one is accepted by then.
    pub(crate) deadline: Instant,
    /// Largest body and largest item.
    pub(crate) max_frame: usize,
}

/// Makes a unary call. `busy` lives as long as the call.
///
/// # Cancel safety
/// Dropping the future cancels the call; whether the handler ran is unknown then.
pub(crate) async fn unary(outgoing: Outgoing<'_>, busy: Busy) -> Result<Bytes, CallError> {
    let _busy = busy;
    let answer = async {
        let mut request = Request::send(&outgoing).await?;
        let Reply::Item(item) = request.reply().await? else {
            return Err(broken("a unary call was answered without a value").into());
        };
        request.finish();
        Ok(item)
    };
    within(outgoing.deadline, answer).await
}

/// Makes a streaming call. `busy` lives as long as the stream.
///
/// # Cancel safety
/// Dropping the future or the stream cancels the call.
pub(crate) async fn stream(
    outgoing: Outgoing<'_>,
    busy: Busy,
) -> Result<ItemStream<Bytes>, CallError> {
    let started = async {
        let mut request = Request::send(&outgoing).await?;
        match request.reply().await? {
            Reply::Started => Ok(request),
            Reply::Item(_) | Reply::End => {
                Err(broken("a streaming call was answered before it was accepted").into())
            }
        }
    };
    let request = within(outgoing.deadline, started).await?;
    Ok(answers(request, busy))
}

/// Makes a call of a method that takes a stream: sends `items` in a task of `tasks` as the callee reads
/// them. A single answer is here by the deadline; a stream of them is accepted by then.
///
/// # Cancel safety
/// Dropping the future or the stream cancels the call, and drops `items`.
pub(crate) async fn duplex(
    outgoing: Outgoing<'_>,
    items: ItemStream<Bytes>,
    busy: Busy,
    tasks: &TaskTracker,
) -> Result<ItemStream<Bytes>, CallError> {
    let once = !outgoing.call.method.kind.gives_stream();
    let broke: Arc<OnceLock<RpcError>> = Arc::default();
    let started = async {
        let (mut request, send) = Request::open(&outgoing).await?;
        let stop = CancellationToken::new();
        let upload = Upload {
            send,
            conn: outgoing.conn.clone(),
            max_item: outgoing.max_frame,
            broke: broke.clone(),
        };
        tasks.spawn(upload.run(items, stop.clone()));
        request.upload = Some((stop.drop_guard(), broke.clone()));
        match (request.reply().await?, once) {
            (Reply::Item(item), true) => {
                request.finish();
                Ok((Some(item), request))
            }
            (Reply::Started, false) => Ok((None, request)),
            _ => Err(broken("a call was not answered as its method answers").into()),
        }
    };
    match within(outgoing.deadline, started).await {
        Ok((Some(item), _)) => Ok(Box::pin(stream::iter([Ok(item)]))),
        Ok((None, request)) => Ok(answers(request, busy)),
        // What went wrong here explains what went wrong there.
        Err(error) => Err(broke.get().cloned().map_or(error, CallError::Failed)),
    }
}

/// The items of an answer.
fn answers(request: Request, busy: Busy) -> ItemStream<Bytes> {
    let items = stream::unfold(Some((request, busy)), |state| async {
        let (mut request, busy) = state?;
        let error = match request.reply().await {
            Ok(Reply::Item(item)) => return Some((Ok(item), Some((request, busy)))),
            Ok(Reply::End) => {
                request.finish();
                return None;
            }
            Ok(Reply::Started) => broken("a streaming call was accepted twice"),
            Err(CallError::Failed(error)) => error,
            Err(CallError::Lost(error)) => lost(&error),
            Err(CallError::NotServed) => broken("a served call was not served"),
        };
        let broke = request.upload.as_ref().and_then(|(_, broke)| broke.get());
        Some((Err(broke.cloned().unwrap_or(error)), None))
    });
    Box::pin(items)
}

/// What a connection's end means to the caller of a call under way.
pub(crate) fn lost(error: &ConnectionError) -> RpcError {
    RpcError::unavailable(format!("the connection was lost during the call: {error}"))
        .reason("connection_lost")
}

async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(CallError::Failed(timeout_error())),
    }
}

fn broken(what: &str) -> RpcError {
    RpcError::internal(format!("the peer broke the RPC format: {what}")).reason("format")
}

/// The items of a call on their way to the callee.
struct Upload {
    send: SendStream,
    conn: Connection,
    max_item: usize,
    /// The error that ended the items, if one did.
    broke: Arc<OnceLock<RpcError>>,
}

impl Upload {
    /// Sends all items, until the callee wants no more, or the call is over.
    async fn run(mut self, items: ItemStream<Bytes>, stop: CancellationToken) {
        let conn = self.conn.clone();
        let sent = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            _ = conn.closed() => false,
            sent = self.pump(items) => sent,
        };
        // Both fail only when the stream has ended already.
        if sent {
            let _ = self.send.finish();
            // Its last bytes may be lost on their way as long as nobody says that they arrived; to
            // give the stream up now would take them back.
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = self.send.stopped() => {}
            }
        } else {
            let _ = self.send.reset(stream_code::CANCELLED);
        }
    }

    /// Whether all items were sent, or as many as the callee wanted.
    async fn pump(&mut self, items: ItemStream<Bytes>) -> bool {
        let mut batches = Batches::new(items, None);
        while let Some(batch) = batches.next().await {
            let written = match batch {
                Ok(Batch::Frames(frames)) => self.send.write_all(&frames).await,
                Ok(Batch::Large(item)) if item.len() > self.max_item => {
                    let _ = self
                        .broke
                        .set(too_large("an item", item.len(), self.max_item));
                    return false;
                }
                Ok(Batch::Large(item)) => write_frame(&mut self.send, &[], &[], item).await,
                Err(error) => {
                    let _ = self.broke.set(error);
                    return false;
                }
            };
            match written {
                Ok(()) => {}
                Err(WriteError::Stopped(_)) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// A call that is under way; cancelled when dropped before [`Request::finish`].
struct Request {
    /// Where the request was sent, if it was sent from here.
    send: Option<SendStream>,
    /// Ends the sending of items when dropped; why they ended.
    upload: Option<(DropGuard, Arc<OnceLock<RpcError>>)>,
    reader: FrameReader,
    max_item: usize,
    finished: bool,
}

enum Reply {
    Started,
    Item(Bytes),
    End,
}

impl Request {
    /// Sends a whole request.
    async fn send(outgoing: &Outgoing<'_>) -> Result<Self, CallError> {
        let (call, max_frame) = (outgoing.call, outgoing.max_frame);
        if call.body.len() > max_frame {
            return Err(too_large("the request", call.body.len(), max_frame).into());
        }
        let (mut request, mut send) = Self::begin(outgoing).await?;
        let lead = outgoing.lead();
        let written = write_frame(&mut send, &lead, &[], call.body.clone()).await;
        if written.is_ok() {
            // Fails only when the peer has stopped reading; its answer says why.
            let _ = send.finish();
        }
        request.send = Some(send);
        answered_early(written)?;
        Ok(request)
    }

    /// Sends what comes before the items of a stream, and the stream to send these on.
    async fn open(outgoing: &Outgoing<'_>) -> Result<(Self, SendStream), CallError> {
        let (request, mut send) = Self::begin(outgoing).await?;
        answered_early(send.write_all(&outgoing.lead()).await)?;
        Ok((request, send))
    }

    async fn begin(outgoing: &Outgoing<'_>) -> Result<(Self, SendStream), CallError> {
        let (send, recv) = outgoing.conn.open_bi().await.map_err(CallError::Lost)?;
        let request = Self {
            send: None,
            upload: None,
            reader: FrameReader::new(recv),
            max_item: outgoing.max_frame,
            finished: false,
        };
        Ok((request, send))
    }

    /// The next frame of the answer. Failures of the call are errors.
    async fn reply(&mut self) -> Result<Reply, CallError> {
        // The tag comes on top of the item.
        let frame = match self.reader.frame(self.max_item + 1).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(broken("the answer ended without an end").into()),
            Err(error) => return Err(read_error(error)),
        };
        let Some(tag) = frame.first().copied().and_then(ReplyTag::from_byte) else {
            return Err(broken("an answer of unknown type").into());
        };
        match tag {
            ReplyTag::Started => Ok(Reply::Started),
            ReplyTag::Item => Ok(Reply::Item(frame.slice(1..))),
            ReplyTag::End => Ok(Reply::End),
            ReplyTag::Error => {
                self.finish();
                let error = codec::decode::<RpcError>(&frame[1..], MAX_FRAME)
                    .unwrap_or_else(|_| broken("an error that does not decode"));
                Err(CallError::Failed(error))
            }
        }
    }

    /// The call has ended by itself: nothing is left to cancel.
    fn finish(&mut self) {
        self.finished = true;
        // Takes note of the end of the stream if it is here, which it mostly is; else dropping the
        // stream tells the peer that we are not interested in what follows.
        let _ = self.reader.at_end().now_or_never();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.finished {
            if let Some(send) = &mut self.send {
                let _ = send.reset(stream_code::CANCELLED);
            }
            self.reader.stop(stream_code::CANCELLED);
        }
    }
}

impl Outgoing<'_> {
    /// The first bytes of the call's stream.
    fn lead(&self) -> BytesMut {
        let Self {
            id, call, deadline, ..
        } = *self;
        let left = deadline.saturating_duration_since(Instant::now());
        let header = codec::encode(&RequestHeader {
            id,
            service: call.method.service.to_owned(),
            method: call.method.name.to_owned(),
            codec: call.codec,
            kind: call.method.kind,
            deadline_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            idempotency_key: call.options.idempotency_key,
            trace: call.options.trace,
        });
        opening(STREAM_RPC, &header)
    }
}

/// A callee that stops to read has answered, or will.
fn answered_early(written: Result<(), WriteError>) -> Result<(), CallError> {
    match written {
        Ok(()) | Err(WriteError::Stopped(_)) => Ok(()),
        Err(WriteError::ConnectionLost(error)) => Err(CallError::Lost(error)),
        Err(WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
            Err(RpcError::internal("the request stream was closed").into())
        }
    }
}

fn read_error(error: FrameError) -> CallError {
    match error {
        FrameError::Read(ReadError::ConnectionLost(error)) => CallError::Lost(error),
        FrameError::Read(ReadError::Reset(code)) if code == stream_code::NOT_SERVED => {
            CallError::NotServed
        }
        FrameError::Read(ReadError::Reset(code)) if code == stream_code::UNKNOWN_TYPE => {
            RpcError::not_found("the peer does not know RPC streams")
                .reason("stream_type")
                .into()
        }
        FrameError::Read(ReadError::Reset(code)) if code == stream_code::AUTHORITY_ENDED => {
            RpcError::denied("the authority for this call ended, and the call with it")
                .reason("authority_ended")
                .into()
        }
        FrameError::Read(ReadError::Reset(code)) => RpcError::new(
            Status::Cancelled,
            format!("the peer gave the call up (code {code})"),
        )
        .into(),
        FrameError::TooLong { len, max } => too_large("the answer", len, max).into(),
        other => broken(&other.to_string()).into(),
    }
}
