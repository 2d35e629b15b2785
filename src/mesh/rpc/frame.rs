//! Frames on a stream: a big-endian `u32` length and that many bytes. The length is compared with
//! the bound before memory is set aside. The system lends it page by page, as bytes arrive.

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Pieces taken off a stream at a time: a packet each, or less.
const PIECES: usize = 16;
/// Bodies up to this size are copied behind their header, to be written at once.
pub(crate) const COPY_BELOW: usize = 4 * 1024;

/// Why no frame was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer announced more than the bound.
    #[error("a frame of {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Announced.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The stream was reset, or its connection lost.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads frames off a stream.
///
/// # Cancel safety
/// None: a frame whose reading was given up half-way is lost, and the stream with it.
#[derive(Debug)]
pub(crate) struct FrameReader {
    recv: RecvStream,
    /// Arrived and not used yet, in order; behind it the pieces from `next` up to `end`.
    rest: Bytes,
    pieces: [Bytes; PIECES],
    next: usize,
    end: usize,
}

impl FrameReader {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            rest: Bytes::new(),
            pieces: Default::default(),
            next: 0,
            end: 0,
        }
    }

    /// The stream, and what was taken off it and is not used yet.
    pub(crate) fn into_parts(self) -> (RecvStream, Bytes) {
        if self.next == self.end {
            return (self.recv, self.rest);
        }
        let mut rest = BytesMut::from(&self.rest[..]);
        for piece in &self.pieces[self.next..self.end] {
            rest.extend_from_slice(piece);
        }
        (self.recv, rest.freeze())
    }

    /// The first byte of the stream.
    pub(crate) async fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.exact(1).await?[0])
    }

    /// The length of the next frame, or `None` when the stream ends here.
    pub(crate) async fn length(&mut self, max: usize) -> Result<Option<usize>, FrameError> {
        if !self.fill().await? {
            return Ok(None);
        }
        let bytes = self.exact(LENGTH).await?;
        let len = u32::from_be_bytes(bytes[..].try_into().expect("four bytes were asked for"));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(Some(len))
    }

    /// The next frame, or `None` when the stream ends here.
    pub(crate) async fn frame(&mut self, max: usize) -> Result<Option<Bytes>, FrameError> {
        match self.length(max).await? {
            Some(len) => Ok(Some(self.exact(len).await?)),
            None => Ok(None),
        }
    }

    /// Exactly `len` bytes.
    pub(crate) async fn exact(&mut self, len: usize) -> Result<Bytes, FrameError> {
        if self.rest.len() >= len {
            return Ok(self.rest.split_to(len));
        }
        let mut bytes = BytesMut::with_capacity(len);
        while bytes.len() < len {
            if !self.fill().await? {
                return Err(FrameError::Truncated);
            }
            let take = self.rest.len().min(len - bytes.len());
            bytes.put(self.rest.split_to(take));
        }
        Ok(bytes.freeze())
    }

    /// Whether the stream ends here. Waits for the next byte or the end.
    pub(crate) async fn at_end(&mut self) -> Result<bool, FrameError> {
        Ok(!self.fill().await?)
    }

    /// Makes sure of at least one byte in `rest`; false when the stream has ended.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        while self.rest.is_empty() {
            if self.next < self.end {
                self.rest = std::mem::take(&mut self.pieces[self.next]);
                self.next += 1;
                continue;
            }
            match self.recv.read_chunks(&mut self.pieces).await? {
                Some(count) => (self.next, self.end) = (0, count),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Tells the sender that nothing more will be read. Does nothing at the end of the stream.
    pub(crate) fn stop(&mut self, code: VarInt) {
        let _ = self.recv.stop(code);
    }
}

/// Appends the head of a frame to `out`: its length, with that of the `body` to follow, and `prefix`.
pub(crate) fn put_head(out: &mut BytesMut, prefix: &[u8], body: usize) {
    let len = u32::try_from(prefix.len() + body).expect("bodies are bounded far below 4 GiB");
    out.put_u32(len);
    out.put_slice(prefix);
}

/// Writes `lead` and then one frame of `prefix` and `body`.
pub(crate) async fn write_frame(
    send: &mut SendStream,
    lead: &[u8],
    prefix: &[u8],
    body: Bytes,
) -> Result<(), WriteError> {
    let copied = if body.len() < COPY_BELOW {
        body.len()
    } else {
        0
    };
    let mut head = BytesMut::with_capacity(lead.len() + LENGTH + prefix.len() + copied);
    head.put_slice(lead);
    put_head(&mut head, prefix, body.len());
    if copied > 0 || body.is_empty() {
        head.put_slice(&body);
        return send.write_all(&head).await;
    }
    send.write_all_chunks(&mut [head.freeze(), body]).await
}

/// The first byte of a stream and its first frame.
pub(crate) fn opening(kind: u8, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(1 + LENGTH + body.len());
    out.put_u8(kind);
    put_head(&mut out, body, 0);
    out
}
