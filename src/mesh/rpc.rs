//! Calls over QUIC streams: one bidirectional stream a call, in the format of
//! [`meshwork_proto::rpc`].
//!
//! `frame` cuts a stream into length-checked frames, `client` makes calls, `server` accepts and
//! answers them, `access` decides who may. Nothing here knows how connections come to be.

mod access;
mod client;
mod frame;
mod server;

use std::time::Duration;

use quinn::VarInt;

pub(crate) use access::{Refusal, Standing};
pub(crate) use client::{CallError, stream, unary};
pub(crate) use server::{Desk, Server, catch_panic, timeout_error};

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
    /// The rest of the request is of no interest: the answer is given.
    pub(crate) const ANSWERED: VarInt = VarInt::from_u32(0x13);
}

/// What one peer may ask of this node at a time. All bounds are per peer unless they say otherwise.
#[derive(Debug, Clone)]
pub struct RpcLimits {
    /// Calls served at once; more are answered `backpressure`. Default 256.
    pub concurrent_calls: usize,
    /// Bytes of request bodies held at once; more are answered `backpressure`. A peer can make this
    /// node hold so much, and no more, before its handlers see anything. Default 64 MiB.
    pub request_bytes: u32,
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

impl Default for RpcLimits {
    fn default() -> Self {
        Self {
            concurrent_calls: 256,
            request_bytes: 64 << 20,
            frame: meshwork_proto::limits::MAX_FRAME,
            method_calls: std::collections::BTreeMap::new(),
            header_deadline: Duration::from_secs(10),
        }
    }
}
