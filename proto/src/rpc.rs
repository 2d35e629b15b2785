//! The RPC wire format: request header, response frames, status codes, errors.
//!
//! A call is one bidirectional QUIC stream. The caller sends the stream's type byte
//! ([`STREAM_RPC`]), a frame with the [`RequestHeader`], a frame with the body (of a method that takes a
//! stream: any number of frames, one an item), and finishes. The callee answers with frames of one tag
//! byte each ([`ReplyTag`]) and finishes. A frame is a big-endian u32 length and that many bytes.
//! Resetting the stream cancels the call.
//!
//! Small unary calls share a long-lived stream instead: see [`lane`].

pub mod breaker;
pub mod choice;
pub mod intercept;
mod kind;
pub mod lane;
pub mod retry;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use kind::{
    APP_BAD_REQUEST, APP_HANDLER_ERROR, ErrorKind, REASON_ANSWER, REASON_BREAKER, REASON_ENCODE,
};

/// First byte of a stream that carries one RPC call.
pub const STREAM_RPC: u8 = 0x01;
/// First byte of a bidirectional stream that carries many small calls: a [`lane`].
pub const STREAM_LANE: u8 = 0x06;
/// First byte of a unidirectional stream with an answer that is too large for the lane of its call.
pub const STREAM_ANSWER: u8 = 0x07;

/// Encoding of a call's bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// Postcard, between Meshwork's own nodes.
    #[default]
    Postcard,
    /// JSON, for callers in other languages.
    Json,
}

/// Shape of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, any number of response items.
    ServerStream,
    /// Any number of request items, one response.
    ClientStream,
    /// Any number of items both ways, at once.
    Bidi,
}

impl Kind {
    /// Whether the caller sends a stream of items.
    pub fn takes_stream(self) -> bool {
        matches!(self, Self::ClientStream | Self::Bidi)
    }

    /// Whether the callee answers with a stream of items.
    pub fn gives_stream(self) -> bool {
        matches!(self, Self::ServerStream | Self::Bidi)
    }

    /// Name for people: `unary`, `server stream`, `client stream`, `both`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server stream",
            Self::ClientStream => "client stream",
            Self::Bidi => "both",
        }
    }
}

/// W3C trace context (`traceparent`), in binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// `trace-id`.
    pub trace_id: [u8; 16],
    /// `parent-id`.
    pub span_id: [u8; 8],
    /// `trace-flags`.
    pub flags: u8,
}

/// First frame of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHeader {
    /// Chosen by the caller, unique on its connection; for logs and traces.
    pub id: u64,
    /// Service name, for example `agent`.
    pub service: String,
    /// Method name within the service, for example `kernel.create`.
    pub method: String,
    /// Encoding of the request and of every response item.
    pub codec: Codec,
    /// What the caller expects back. A mismatch with the method is refused as `invalid`.
    pub kind: Kind,
    /// Time left for the call in milliseconds when it was sent; never a wall-clock time, so that
    /// clocks need not agree.
    pub deadline_ms: Option<u64>,
    /// Repeats of one logical call carry the same key.
    pub idempotency_key: Option<[u8; 16]>,
    /// Trace that this call belongs to.
    pub trace: Option<TraceContext>,
}

impl RequestHeader {
    /// Time left for the call, if the caller set one.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_ms.map(Duration::from_millis)
    }

    /// `service/method`, the path that tokens speak of.
    pub fn path(&self) -> String {
        format!("{}/{}", self.service, self.method)
    }
}

/// First byte of a response frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyTag {
    /// One response item follows (the only one of a unary call).
    Item = 0,
    /// The call ended well; nothing follows.
    End = 1,
    /// The call failed; an [`RpcError`] in postcard follows.
    Error = 2,
    /// A streaming call was accepted; its items follow when there are any. Sent once, before them,
    /// so that the caller of a quiet stream knows that it stands.
    Started = 3,
}

impl ReplyTag {
    /// The tag of a frame's first byte; unknown ones are refused.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Item),
            1 => Some(Self::End),
            2 => Some(Self::Error),
            3 => Some(Self::Started),
            _ => None,
        }
    }
}

/// A method as its node describes it to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodView {
    /// Service name.
    pub service: String,
    /// Method name within the service.
    pub method: String,
    /// Shape of the call.
    pub kind: Kind,
    /// Whether a repeat has the same effect as one call.
    pub idempotent: bool,
    /// Who may call it: `open`, `member`, `call` or `admin`.
    pub access: String,
}

/// How a call ended (design §6). Stable: numbers are never given to another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// The peer cannot be reached by any path.
    NoRoute,
    /// The deadline passed.
    Timeout,
    /// The caller gave up, or the callee is shutting down.
    Cancelled,
    /// The caller presented no valid token.
    Unauthenticated,
    /// The caller's tokens do not allow this.
    Denied,
    /// No such service, method or object.
    NotFound,
    /// The request cannot be carried out as it is written.
    Invalid,
    /// Something needed is used up: slots, disk, quota.
    ResourceExhausted,
    /// The request contradicts the state of its object.
    Conflict,
    /// Temporarily not possible; a repeat may succeed.
    Unavailable,
    /// The callee sheds load; repeat later.
    Backpressure,
    /// A fault of the callee.
    Internal,
    /// An application's own code, from 0x8000.
    App(u16),
}

impl Status {
    /// Every status below the application range, in code order.
    pub const ALL: [Self; 12] = [
        Self::NoRoute,
        Self::Timeout,
        Self::Cancelled,
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::Invalid,
        Self::ResourceExhausted,
        Self::Conflict,
        Self::Unavailable,
        Self::Backpressure,
        Self::Internal,
    ];

    /// The code on the wire. 0 is `ok` and never travels in an error.
    pub fn code(self) -> u16 {
        match self {
            Self::NoRoute => 1,
            Self::Timeout => 2,
            Self::Cancelled => 3,
            Self::Unauthenticated => 4,
            Self::Denied => 5,
            Self::NotFound => 6,
            Self::Invalid => 7,
            Self::ResourceExhausted => 8,
            Self::Conflict => 9,
            Self::Unavailable => 10,
            Self::Backpressure => 11,
            Self::Internal => 12,
            Self::App(code) => code,
        }
    }

    /// The status of a wire code. Codes that this version does not know are `internal`.
    pub fn from_code(code: u16) -> Self {
        if code >= crate::limits::APP_STATUS_BASE {
            return Self::App(code);
        }
        Self::ALL
            .into_iter()
            .find(|s| s.code() == code)
            .unwrap_or(Self::Internal)
    }

    /// The stable name (`no_route`, `timeout`, …; `app` for application codes).
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Backpressure => "backpressure",
            Self::Internal => "internal",
            Self::App(_) => "app",
        }
    }

    /// Whether an idempotent call may be repeated after this status.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::NoRoute | Self::Unavailable | Self::Backpressure
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(code) => write!(f, "app 0x{code:04x}"),
            other => f.write_str(other.name()),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.code().serialize(s)
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u16::deserialize(d).map(Self::from_code)
    }
}

/// A failed call: a stable code, a sentence for people and, where it helps, the fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{status}: {message}")]
pub struct RpcError {
    /// How the call ended.
    pub status: Status,
    /// Stable machine-readable reason within the status, for example `token_expired` or
    /// `no_gpu`; empty when the status says it all.
    pub reason: String,
    /// One sentence: the thing and the cause.
    pub message: String,
    /// What the reader can do about it.
    pub fix: Option<String>,
}

impl RpcError {
    /// An error of `status` with its sentence.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            reason: String::new(),
            message: message.into(),
            fix: None,
        }
    }

    /// The same error with a stable reason.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// The same error with what can be done about it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// `invalid`: the request cannot be carried out as written.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::Invalid, message)
    }

    /// `not_found`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Status::NotFound, message)
    }

    /// `denied`.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Status::Denied, message)
    }

    /// `internal`. The message travels: nothing secret in it.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Status::Internal, message)
    }

    /// `unavailable`: a repeat may succeed.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Status::Unavailable, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_are_distinct_and_stable() {
        for (i, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(status.code()), i + 1);
            assert_eq!(Status::from_code(status.code()), status);
        }
        assert_eq!(Status::from_code(0x8001), Status::App(0x8001));
        assert_eq!(Status::from_code(999), Status::Internal);
    }
}
