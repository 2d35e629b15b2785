//! The calling side. Dropping a call's future or its stream of items cancels the call at the peer.

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_FRAME;
use meshwork_proto::rpc::{ReplyTag, RequestHeader, RpcError, STREAM_RPC, Status};
use meshwork_proto::service::{ItemStream, RawCall};
use quinn::{Connection, ConnectionError, ReadError, SendStream, WriteError};
use tokio::time::{Instant, timeout_at};

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
    let items = stream::unfold(Some((request, busy)), |state| async {
        let (mut request, busy) = state?;
        match request.reply().await {
            Ok(Reply::Item(item)) => Some((Ok(item), Some((request, busy)))),
            Ok(Reply::End) => {
                request.finish();
                None
            }
            Ok(Reply::Started) => Some((Err(broken("a streaming call was accepted twice")), None)),
            Err(CallError::Failed(error)) => Some((Err(error), None)),
            Err(CallError::Lost(error)) => Some((Err(lost(&error)), None)),
            Err(CallError::NotServed) => Some((Err(broken("a served call was not served")), None)),
        }
    });
    Ok(Box::pin(items))
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

/// A call that is under way; cancelled when dropped before [`Request::finish`].
struct Request {
    send: SendStream,
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
    async fn send(outgoing: &Outgoing<'_>) -> Result<Self, CallError> {
        let Outgoing {
            conn,
            id,
            call,
            deadline,
            max_frame,
        } = *outgoing;
        if call.body.len() > max_frame {
            return Err(too_large("the request", call.body.len(), max_frame).into());
        }
        let (send, recv) = conn.open_bi().await.map_err(CallError::Lost)?;
        let mut request = Self {
            send,
            reader: FrameReader::new(recv),
            max_item: max_frame,
            finished: false,
        };
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
        let lead = opening(STREAM_RPC, &header);
        match write_frame(&mut request.send, &lead, &[], call.body.clone()).await {
            Ok(()) => {
                // Fails only when the peer has stopped reading; its answer says why.
                let _ = request.send.finish();
                Ok(request)
            }
            // The callee answered before it read everything.
            Err(WriteError::Stopped(_)) => Ok(request),
            Err(WriteError::ConnectionLost(error)) => Err(CallError::Lost(error)),
            Err(WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
                Err(RpcError::internal("the request stream was closed").into())
            }
        }
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
            let _ = self.send.reset(stream_code::CANCELLED);
            self.reader.stop(stream_code::CANCELLED);
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
