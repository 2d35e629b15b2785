//! Frames of a lane: a long-lived stream that carries many small unary calls at once.
//!
//! The caller opens a bidirectional stream, sends [`STREAM_LANE`] and then [`ToCallee`] frames; the
//! callee answers with [`ToCaller`] frames in any order. A frame is a big-endian u32 length and that
//! many bytes: a tag, then numbers as LEB128 varints, then whatever the tag says. A method is named once
//! a lane and has a number from then on, so that a call of 64 bytes costs 75 and no look-up by name.
//! An answer above [`LANE_ANSWER`] comes on a unidirectional stream of its own: [`STREAM_ANSWER`], the
//! id of the call as a big-endian u64, then one frame as on the stream of a single call.
//!
//! [`STREAM_LANE`]: super::STREAM_LANE
//! [`STREAM_ANSWER`]: super::STREAM_ANSWER

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Codec, RpcError, TraceContext};
use crate::codec;
use crate::limits::{MAX_FRAME, MAX_HEADER};

/// Largest body of a call on a lane, in bytes. Larger requests have a stream of their own, so that
/// small ones do not wait behind them.
pub const LANE_BODY: usize = 8 * 1024;
/// Largest answer on a lane, in bytes. Larger ones have a stream of their own.
pub const LANE_ANSWER: usize = 16 * 1024;
/// Largest frame of a lane in bytes, without its length.
pub const LANE_FRAME: usize = LANE_ANSWER + MAX_HEADER;
/// Methods that one lane may name. Calls of others have streams of their own.
pub const LANE_METHODS: u16 = 256;
/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Bits of a varint's byte that count.
const VARINT_BITS: u32 = 7;

const DECLARE: u8 = 0;
const CALL: u8 = 1;
const CANCEL: u8 = 2;
const SETTLED: u8 = 3;

const ITEM: u8 = 0;
const FAILED: u8 = 1;
const NOT_SERVED: u8 = 2;
const SETTLE: u8 = 3;

/// Flags of a call: what follows its numbers.
const HAS_DEADLINE: u8 = 1;
const HAS_KEY: u8 = 2;
const HAS_TRACE: u8 = 4;

/// Why a frame cannot be read. The lane is of no use from there on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// It has a tag that this version does not know.
    #[error("a frame of unknown type {0}")]
    Tag(u8),
    /// It ends before it should, or has more than it should.
    #[error("a frame of type {0} has the wrong length")]
    Length(u8),
    /// What it holds does not decode.
    #[error("a frame of type {0} does not decode")]
    Malformed(u8),
}

/// Gives a method a number on this lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declare {
    /// The number: how many there are already; below [`LANE_METHODS`].
    pub index: u16,
    /// Encoding of requests and answers.
    pub codec: Codec,
    /// Service name.
    pub service: String,
    /// Method name within the service.
    pub method: String,
}

/// One call. The body follows it in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneCall {
    /// Chosen by the caller; no two calls under way on a connection share one.
    pub id: u64,
    /// The method's number on this lane.
    pub method: u16,
    /// Time left for the call when it was sent, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Same for repeats of one logical call.
    pub idempotency_key: Option<[u8; 16]>,
    /// Trace that this call belongs to.
    pub trace: Option<TraceContext>,
}

impl LaneCall {
    /// Time left for the call, if the caller set one.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_ms.map(Duration::from_millis)
    }
}

/// What the caller sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToCallee {
    /// See [`Declare`].
    Declare(Declare),
    /// A call and its body.
    Call(LaneCall, Bytes),
    /// The caller is no longer interested in the call of this id.
    Cancel(u64),
    /// The caller has everything that was sent before [`ToCaller::Settle`] with this number.
    Settled(u64),
}

/// What the callee sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToCaller {
    /// The answer to a call.
    Item(u64, Bytes),
    /// A call failed.
    Failed(u64, RpcError),
    /// The call was not looked at, because the connection is about to end.
    NotServed(u64),
    /// Asks for [`ToCallee::Settled`] with this number: the callee wants to know that its answers have
    /// arrived before it closes the connection.
    Settle(u64),
}

impl ToCallee {
    /// Reads a frame without its length.
    pub fn decode(mut frame: Bytes) -> Result<Self, LaneError> {
        let tag = tag(&mut frame)?;
        let short = LaneError::Length(tag);
        match tag {
            DECLARE => codec::decode(&frame, MAX_HEADER)
                .map(Self::Declare)
                .map_err(|_| LaneError::Malformed(tag)),
            CALL => {
                let call = take_call(&mut frame).ok_or(short)?;
                Ok(Self::Call(call, frame))
            }
            CANCEL => whole(&mut frame).map(Self::Cancel).ok_or(short),
            SETTLED => whole(&mut frame).map(Self::Settled).ok_or(short),
            tag => Err(LaneError::Tag(tag)),
        }
    }

    /// Appends the frame with its length.
    pub fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Declare(declare) => put_frame(out, DECLARE, |out| {
                out.put_slice(&codec::encode(declare));
            }),
            Self::Call(call, body) => put_call(out, call, body),
            Self::Cancel(id) => put_frame(out, CANCEL, |out| put_varint(out, *id)),
            Self::Settled(mark) => put_frame(out, SETTLED, |out| put_varint(out, *mark)),
        }
    }
}

impl ToCaller {
    /// Reads a frame without its length.
    pub fn decode(mut frame: Bytes) -> Result<Self, LaneError> {
        let tag = tag(&mut frame)?;
        let short = LaneError::Length(tag);
        match tag {
            ITEM => {
                let id = take_varint(&mut frame).ok_or(short)?;
                Ok(Self::Item(id, frame))
            }
            FAILED => {
                let id = take_varint(&mut frame).ok_or(short)?;
                let error =
                    codec::decode(&frame, MAX_FRAME).map_err(|_| LaneError::Malformed(tag))?;
                Ok(Self::Failed(id, error))
            }
            NOT_SERVED => whole(&mut frame).map(Self::NotServed).ok_or(short),
            SETTLE => whole(&mut frame).map(Self::Settle).ok_or(short),
            tag => Err(LaneError::Tag(tag)),
        }
    }

    /// Appends the frame with its length.
    pub fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Item(id, body) => put_item(out, *id, body),
            Self::Failed(id, error) => put_frame(out, FAILED, |out| {
                put_varint(out, *id);
                out.put_slice(&codec::encode(error));
            }),
            Self::NotServed(id) => put_frame(out, NOT_SERVED, |out| put_varint(out, *id)),
            Self::Settle(mark) => put_frame(out, SETTLE, |out| put_varint(out, *mark)),
        }
    }
}

/// Appends the frame of a call, with its length.
pub fn put_call(out: &mut BytesMut, call: &LaneCall, body: &[u8]) {
    put_frame(out, CALL, |out| {
        let mut flags = 0;
        for (has, flag) in [
            (call.deadline_ms.is_some(), HAS_DEADLINE),
            (call.idempotency_key.is_some(), HAS_KEY),
            (call.trace.is_some(), HAS_TRACE),
        ] {
            flags |= if has { flag } else { 0 };
        }
        out.put_u8(flags);
        put_varint(out, call.id);
        put_varint(out, call.method.into());
        if let Some(deadline) = call.deadline_ms {
            put_varint(out, deadline);
        }
        if let Some(key) = call.idempotency_key {
            out.put_slice(&key);
        }
        if let Some(trace) = call.trace {
            out.put_slice(&trace.trace_id);
            out.put_slice(&trace.span_id);
            out.put_u8(trace.flags);
        }
        out.put_slice(body);
    });
}

/// Appends the frame of an answer, with its length.
pub fn put_item(out: &mut BytesMut, id: u64, body: &[u8]) {
    put_frame(out, ITEM, |out| {
        put_varint(out, id);
        out.put_slice(body);
    });
}

fn take_call(frame: &mut Bytes) -> Option<LaneCall> {
    let flags = frame.try_get_u8().ok()?;
    if flags & !(HAS_DEADLINE | HAS_KEY | HAS_TRACE) != 0 {
        return None;
    }
    let id = take_varint(frame)?;
    let method = u16::try_from(take_varint(frame)?).ok()?;
    let deadline_ms = match flags & HAS_DEADLINE {
        0 => None,
        _ => Some(take_varint(frame)?),
    };
    let idempotency_key = match flags & HAS_KEY {
        0 => None,
        _ => Some(take_array(frame)?),
    };
    let trace = match flags & HAS_TRACE {
        0 => None,
        _ => Some(TraceContext {
            trace_id: take_array(frame)?,
            span_id: take_array(frame)?,
            flags: frame.try_get_u8().ok()?,
        }),
    };
    Some(LaneCall {
        id,
        method,
        deadline_ms,
        idempotency_key,
        trace,
    })
}

fn tag(frame: &mut Bytes) -> Result<u8, LaneError> {
    // An empty frame has no tag; it is as wrong as one of a tag that there will never be.
    frame.try_get_u8().map_err(|_| LaneError::Tag(u8::MAX))
}

/// A number, and nothing after it.
fn whole(frame: &mut Bytes) -> Option<u64> {
    take_varint(frame).filter(|_| frame.is_empty())
}

fn take_array<const N: usize>(frame: &mut Bytes) -> Option<[u8; N]> {
    let array = *frame.first_chunk::<N>()?;
    frame.advance(N);
    Some(array)
}

fn take_varint(frame: &mut Bytes) -> Option<u64> {
    let mut value = 0u64;
    for (place, byte) in frame.iter().enumerate() {
        let shift = u32::try_from(place).ok()? * VARINT_BITS;
        let bits = u64::from(byte & 0x7f);
        if shift >= u64::BITS || bits.leading_zeros() < shift {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            frame.advance(place + 1);
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= VARINT_BITS;
    }
    out.put_u8(u8::try_from(value).expect("below 128"));
}

fn put_frame(out: &mut BytesMut, tag: u8, rest: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(tag);
    rest(out);
    let len = out.len() - start - LENGTH;
    let len = u32::try_from(len).expect("frames are bounded far below 4 GiB");
    out[start..start + LENGTH].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> LaneCall {
        LaneCall {
            id: u64::MAX,
            method: 255,
            deadline_ms: Some(10_000),
            idempotency_key: Some([9; 16]),
            trace: Some(TraceContext {
                trace_id: [1; 16],
                span_id: [2; 8],
                flags: 1,
            }),
        }
    }

    fn bare() -> LaneCall {
        LaneCall {
            id: 1,
            method: 0,
            deadline_ms: None,
            idempotency_key: None,
            trace: None,
        }
    }

    fn frames_to_callee() -> Vec<ToCallee> {
        vec![
            ToCallee::Declare(Declare {
                index: 3,
                codec: Codec::Json,
                service: "agent".into(),
                method: "kernel.list".into(),
            }),
            ToCallee::Call(full(), Bytes::from_static(b"body")),
            ToCallee::Call(bare(), Bytes::new()),
            ToCallee::Cancel(127),
            ToCallee::Settled(128),
        ]
    }

    fn without_length(out: &BytesMut) -> Bytes {
        let len = u32::from_be_bytes(out[..LENGTH].try_into().unwrap()) as usize;
        assert_eq!(out.len(), LENGTH + len);
        Bytes::copy_from_slice(&out[LENGTH..])
    }

    #[test]
    fn frames_survive() {
        for frame in frames_to_callee() {
            let mut out = BytesMut::new();
            frame.put(&mut out);
            assert_eq!(ToCallee::decode(without_length(&out)), Ok(frame));
        }
        for frame in [
            ToCaller::Item(300, Bytes::from_static(b"answer")),
            ToCaller::Failed(1 << 40, RpcError::denied("no").reason("scope")),
            ToCaller::NotServed(0),
            ToCaller::Settle(u64::MAX),
        ] {
            let mut out = BytesMut::new();
            frame.put(&mut out);
            assert_eq!(ToCaller::decode(without_length(&out)), Ok(frame));
        }
    }

    #[test]
    fn a_small_call_costs_few_bytes() {
        let mut out = BytesMut::new();
        let call = LaneCall {
            id: 1000,
            deadline_ms: Some(10_000),
            ..bare()
        };
        put_call(&mut out, &call, &[7; 64]);
        assert_eq!(out.len(), 75);
    }

    #[test]
    fn frames_that_are_cut_off_are_refused() {
        for frame in frames_to_callee() {
            let mut out = BytesMut::new();
            frame.put(&mut out);
            let whole = without_length(&out);
            let body = match &frame {
                ToCallee::Call(_, body) => body.len(),
                _ => 0,
            };
            for len in 0..whole.len() - body {
                assert!(
                    ToCallee::decode(whole.slice(..len)).is_err(),
                    "{frame:?} cut to {len} bytes"
                );
            }
        }
    }

    #[test]
    fn numbers_that_are_too_large_are_refused() {
        let eleven = Bytes::from_static(&[
            CANCEL, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
        ]);
        assert_eq!(ToCallee::decode(eleven), Err(LaneError::Length(CANCEL)));
        let bits_65 = Bytes::from_static(&[
            CANCEL, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03,
        ]);
        assert_eq!(ToCallee::decode(bits_65), Err(LaneError::Length(CANCEL)));
        let trailing = Bytes::from_static(&[CANCEL, 1, 1]);
        assert_eq!(ToCallee::decode(trailing), Err(LaneError::Length(CANCEL)));
        let tag = Bytes::from_static(&[9]);
        assert_eq!(ToCallee::decode(tag.clone()), Err(LaneError::Tag(9)));
        assert_eq!(ToCaller::decode(tag), Err(LaneError::Tag(9)));
    }
}
