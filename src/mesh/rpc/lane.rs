//! Lanes: small unary calls as frames of a few long-lived streams, in the format of
//! [`meshwork_proto::rpc::lane`].
//!
//! A stream for each call costs more than the call: opening, ending and forgetting it at both ends. On a
//! lane, calls of many callers leave in one write and are read in one go, and a handler that is done at
//! once is answered without a task. What is large or streams has a stream of its own, so that nothing
//! small waits behind it.
//!
//! `caller` is the side that calls, `table` its calls under way. `callee` is the side that answers,
//! `method` what it calls, `running` what goes on in tasks, `answer` how answers leave. On both, `out` is
//! what is to be written, and `frames` cuts what arrives.

mod answer;
mod callee;
mod caller;
mod frames;
mod method;
mod out;
mod running;
mod table;

pub(super) use callee::serve;
pub(crate) use caller::Lanes;

/// Bytes that may wait to be written to a lane. With more, new calls have streams of their own, and the
/// callee reads no further requests.
const BACKLOG: usize = 256 * 1024;
/// Frames that are handled before others get their turn.
const BATCH: usize = 64;
/// Lanes that one connection may carry each way; callers of this version use half of them.
pub(super) const MAX_LANES: usize = 8;
