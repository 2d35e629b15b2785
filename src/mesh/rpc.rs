//! Calls over QUIC streams: one bidirectional stream a call, in the format of
//! [`meshwork_proto::rpc`].
//!
//! `frame` cuts a stream into length-checked frames, `client` makes calls, `server` accepts and
//! answers those of one connection, `desk` is what all of them are served from, `access` decides who
//! may, `share` bounds what one peer holds of a node. Nothing here knows how connections come to be.

mod access;
mod batch;
mod client;
mod desk;
mod frame;
mod in_flight;
mod lane;
mod nested;
mod offer;
mod outlook;
mod server;
mod services;
mod share;
mod uploaded;

use std::time::Duration;

use meshwork_proto::rpc::{RpcError, Status};
use quinn::VarInt;
use tokio::time::Instant;

pub(crate) use access::{Refusal, Standing};
pub(crate) use client::{CallError, Outgoing, duplex, stream, unary};
pub(crate) use desk::{Desk, LastUse};
pub(crate) use in_flight::{Busy, InFlight};
pub(crate) use lane::Lanes;
pub(crate) use nested::narrowed;
pub use offer::ServeHandle;
pub(crate) use outlook::Outlook;
pub(crate) use server::{Server, Serving};
pub use services::ServiceOptions;
pub(crate) use share::Share;

/// Codes of connections: why one was closed.
pub(crate) mod close_code {
    use super::VarInt;

    /// The node shuts down.
    pub(crate) const SHUTDOWN: VarInt = VarInt::from_u32(SHUTDOWN_CODE);
    /// See [`SHUTDOWN`].
    pub(crate) const SHUTDOWN_CODE: u32 = 1;
    /// There is another connection between the two nodes. Whatever the closed one carried and was
    /// not answered was not served.
    pub(crate) const DUPLICATE: VarInt = VarInt::from_u32(2);
    /// It was not used for long. What it carried and was not answered was not served.
    pub(crate) const IDLE: VarInt = VarInt::from_u32(3);
    /// The peer is revoked.
    pub(crate) const REVOKED: VarInt = VarInt::from_u32(4);
    /// The node has as many connections as it may.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(5);
    /// The dialler did not present its tokens in time.
    pub(crate) const NO_GREETING: VarInt = VarInt::from_u32(6);
    /// Another connection has proved alive where this one did not answer.
    pub(crate) const STALE: VarInt = VarInt::from_u32(7);
    /// The peer sent what no version of the protocol knows.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(8);
}

/// Codes of streams: why one was reset, or is not read any further.
pub(crate) mod stream_code {
    use super::VarInt;

    /// The caller gave the call up.
    pub(crate) const CANCELLED: VarInt = VarInt::from_u32(0x10);
    /// The stream's first byte names no type of stream that this node knows, or there is no
    /// such kind of stream at all (unidirectional ones).
    pub(crate) const UNKNOWN_TYPE: VarInt = VarInt::from_u32(0x11);
    /// The request did not arrive in time, or broke the format before it could be answered.
    pub(crate) const BAD_REQUEST: VarInt = VarInt::from_u32(0x12);
    /// The token that allowed the call expired or was revoked, amid an item.
    pub(crate) const AUTHORITY_ENDED: VarInt = VarInt::from_u32(0x14);
    /// The connection is about to close; the call was not looked at.
    pub(crate) const NOT_SERVED: VarInt = VarInt::from_u32(0x15);
    /// The rest of the request is of no interest: the answer is given.
    pub(crate) const ANSWERED: VarInt = VarInt::from_u32(0x13);
}

/// What one peer may ask of this node at a time. All bounds are per peer, over all of its connections,
/// unless they say otherwise.
#[derive(Debug, Clone)]
pub struct RpcLimits {
    /// Calls served at once; more are answered `backpressure`. Default 256.
    pub concurrent_calls: usize,
    /// Bytes of request bodies held at once; more are answered `backpressure`. A peer can make this
    /// node hold so much, and no more, before its handlers see anything. Default 64 MiB.
    pub request_bytes: u32,
    /// Bytes of large answers (64 KiB and more) that may wait for the peer to read them; a call whose
    /// answer goes beyond it ends as `backpressure`. Default 64 MiB.
    pub answer_bytes: u32,
    /// Largest request body and largest response item in bytes, both ways. Default 16 MiB
    /// ([`meshwork_proto::limits::MAX_FRAME`]), which is also the most.
    pub frame: usize,
    /// Calls of one method (`service/method`) served at once over all peers. Default: no bound of
    /// its own for any method.
    pub method_calls: std::collections::BTreeMap<String, usize>,
    /// Time for the header of a call to arrive, and for its end after the body. A peer that opens
    /// streams and stays silent holds each for this long. Default 10 s.
    pub header_deadline: Duration,
}

/// Streams that a peer may have open on a connection that is little used: each costs memory even
/// while there is none.
pub(crate) const FEW_STREAMS: u32 = 16;

impl RpcLimits {
    /// Streams that a peer may have open: more than it may have calls served, so that it is told
    /// `backpressure` in so many words.
    pub(crate) fn streams(&self) -> u32 {
        const PER_CALL: usize = 2;
        // Lanes have theirs beside.
        let streams = self.concurrent_calls.saturating_mul(PER_CALL);
        let streams = streams.saturating_add(lane::MAX_LANES);
        u32::try_from(streams).unwrap_or(u32::MAX)
    }
}

/// The time after `wait`, or one so far off that it makes no difference.
pub(crate) fn after(wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(24 * 365 * 30);
    Instant::now() + wait.min(FAR)
}

/// The error for a deadline that passed.
pub(crate) fn timeout_error() -> RpcError {
    RpcError::new(Status::Timeout, "the call did not end by its deadline")
}

/// The error for a body above the bound.
pub(crate) fn too_large(what: &str, len: usize, max: usize) -> RpcError {
    RpcError::invalid(format!("{what} has {len} bytes; at most {max} are allowed"))
        .reason("too_large")
}

impl Default for RpcLimits {
    fn default() -> Self {
        Self {
            concurrent_calls: 256,
            request_bytes: 64 << 20,
            answer_bytes: 64 << 20,
            frame: meshwork_proto::limits::MAX_FRAME,
            method_calls: std::collections::BTreeMap::new(),
            header_deadline: Duration::from_secs(10),
        }
    }
}
