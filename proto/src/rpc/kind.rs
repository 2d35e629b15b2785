//! The few kinds that callers in every language tell failed calls apart by.

use std::fmt;

use super::{RpcError, Status};

/// Reason of an answer that the caller cannot decode.
pub const REASON_ANSWER: &str = "decode_answer";
/// Reason of a value that has no encoding.
pub const REASON_ENCODE: &str = "encode";
/// Reason of a call that was not made because its circuit breaker is open.
pub const REASON_BREAKER: &str = "breaker_open";
/// Application status: a typed handler could not decode the body of its request.
pub const APP_BAD_REQUEST: u16 = 0x8000;
/// Application status: a typed handler ran, and failed.
pub const APP_HANDLER_ERROR: u16 = 0x8001;

/// Reasons by which a failure of the connection is known.
const TRANSPORT: [&str; 6] = [
    "connection_lost",
    "format",
    "greeting",
    "refused",
    "stream_type",
    "too_large",
];

/// What a failed call comes down to. The names are a contract with bindings of other languages, and
/// never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// Nobody to call, or no way there.
    NoRoute,
    /// The deadline passed.
    Timeout,
    /// The callee answered with an error: its own or the application's.
    ServerError,
    /// The connection failed under the call, or one of its ends broke the format.
    Transport,
    /// The request, or one item of it, has no encoding. Nothing was sent.
    CodecEncode,
    /// The answer does not decode.
    CodecDecode,
    /// The call was not made, because earlier ones to this node and service failed.
    BreakerOpen,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::NoRoute,
        Self::Timeout,
        Self::ServerError,
        Self::Transport,
        Self::CodecEncode,
        Self::CodecDecode,
        Self::BreakerOpen,
    ];

    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Timeout => "timeout",
            Self::ServerError => "server_error",
            Self::Transport => "transport",
            Self::CodecEncode => "codec_encode",
            Self::CodecDecode => "codec_decode",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl RpcError {
    /// What the failure comes down to.
    pub fn kind(&self) -> ErrorKind {
        match (self.status, self.reason.as_str()) {
            (_, REASON_BREAKER) => ErrorKind::BreakerOpen,
            (_, REASON_ANSWER) => ErrorKind::CodecDecode,
            (_, REASON_ENCODE) => ErrorKind::CodecEncode,
            (Status::NoRoute, _) => ErrorKind::NoRoute,
            (Status::Timeout, _) => ErrorKind::Timeout,
            (_, reason) if TRANSPORT.contains(&reason) => ErrorKind::Transport,
            _ => ErrorKind::ServerError,
        }
    }

    /// The line by which bindings of other languages classify a failure: `nrpc:<kind>: <detail>`. An
    /// error of the callee gives its code: `status=0x8001 message=…`.
    pub fn canonical(&self) -> String {
        let kind = self.kind();
        match kind {
            ErrorKind::ServerError => format!(
                "nrpc:{kind}: status=0x{:04x} message={}",
                self.status.code(),
                self.message
            ),
            _ => format!("nrpc:{kind}: {}", self.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_kind() {
        for (status, kind) in [
            (Status::NoRoute, ErrorKind::NoRoute),
            (Status::Timeout, ErrorKind::Timeout),
            (Status::Cancelled, ErrorKind::ServerError),
            (Status::Unauthenticated, ErrorKind::ServerError),
            (Status::Denied, ErrorKind::ServerError),
            (Status::NotFound, ErrorKind::ServerError),
            (Status::Invalid, ErrorKind::ServerError),
            (Status::ResourceExhausted, ErrorKind::ServerError),
            (Status::Conflict, ErrorKind::ServerError),
            (Status::Unavailable, ErrorKind::ServerError),
            (Status::Backpressure, ErrorKind::ServerError),
            (Status::Internal, ErrorKind::ServerError),
            (Status::App(APP_BAD_REQUEST), ErrorKind::ServerError),
        ] {
            assert_eq!(RpcError::new(status, "why").kind(), kind, "{status}");
        }
        for (reason, kind) in [
            ("connection_lost", ErrorKind::Transport),
            ("format", ErrorKind::Transport),
            (REASON_ENCODE, ErrorKind::CodecEncode),
            (REASON_ANSWER, ErrorKind::CodecDecode),
            (REASON_BREAKER, ErrorKind::BreakerOpen),
        ] {
            let error = RpcError::unavailable("why").reason(reason);
            assert_eq!(error.kind(), kind, "{reason}");
        }
    }

    #[test]
    fn the_line_is_the_one_of_the_contract() {
        let app = RpcError::new(Status::App(APP_HANDLER_ERROR), "no such key");
        assert_eq!(
            app.canonical(),
            "nrpc:server_error: status=0x8001 message=no such key"
        );
        let late = RpcError::new(Status::Timeout, "too late");
        assert_eq!(late.canonical(), "nrpc:timeout: too late");
        let names = ErrorKind::ALL.map(ErrorKind::name).join(" ");
        assert_eq!(
            names,
            "no_route timeout server_error transport codec_encode codec_decode breaker_open"
        );
    }
}
