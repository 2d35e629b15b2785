//! Cuts the bytes of a lane into frames, without a wait for each.

use bytes::{Buf, Bytes, BytesMut};
use meshwork_proto::rpc::lane::LANE_FRAME;
use quinn::{ReadError, RecvStream};

/// Pieces taken off the stream at a time: a packet each.
const PIECES: usize = 32;
/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// A frame is longer than any may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes; at most {LANE_FRAME} are allowed on a lane")]
pub(super) struct TooLong(usize);

/// What has arrived on a lane.
#[derive(Debug)]
pub(super) struct Frames {
    recv: RecvStream,
    arrived: Arrived,
}

/// Bytes in the order of their arrival.
#[derive(Debug, Default)]
struct Arrived {
    pieces: [Bytes; PIECES],
    /// The first piece that is not used up, and the first that there is not.
    at: usize,
    end: usize,
    /// The beginning of a frame that goes on in the next piece.
    begun: BytesMut,
}

impl Frames {
    /// `begun` is what was read off the stream already.
    pub(super) fn new(recv: RecvStream, begun: &[u8]) -> Self {
        let arrived = Arrived {
            begun: BytesMut::from(begun),
            ..Arrived::default()
        };
        Self { recv, arrived }
    }

    /// Waits for more bytes; false when the stream has ended. Whatever there was before is used up.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn more(&mut self) -> Result<bool, ReadError> {
        let count = self.recv.read_chunks(&mut self.arrived.pieces).await?;
        (self.arrived.at, self.arrived.end) = (0, count.unwrap_or(0));
        Ok(count.is_some())
    }

    /// The next whole frame of those that have arrived.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        self.arrived.next()
    }
}

impl Arrived {
    fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        if !self.begun.is_empty() {
            return self.next_begun();
        }
        while self.at < self.end {
            let piece = &mut self.pieces[self.at];
            if piece.is_empty() {
                self.at += 1;
                continue;
            }
            if let Some(len) = length(piece)?
                && piece.len() >= LENGTH + len
            {
                piece.advance(LENGTH);
                return Ok(Some(piece.split_to(len)));
            }
            // It goes on in the next piece, whenever that comes.
            self.begun.extend_from_slice(piece);
            self.at += 1;
            return self.next_begun();
        }
        Ok(None)
    }

    /// The rest of the frame whose beginning is known.
    fn next_begun(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let need = match length(&self.begun)? {
                Some(len) if self.begun.len() >= LENGTH + len => {
                    self.begun.advance(LENGTH);
                    return Ok(Some(self.begun.split_to(len).freeze()));
                }
                Some(len) => LENGTH + len - self.begun.len(),
                None => LENGTH - self.begun.len(),
            };
            if self.at == self.end {
                return Ok(None);
            }
            let piece = &mut self.pieces[self.at];
            let take = need.min(piece.len());
            self.begun.extend_from_slice(&piece[..take]);
            piece.advance(take);
            if piece.is_empty() {
                self.at += 1;
            }
        }
    }
}

/// The length of the frame that begins with these bytes, if they say so yet.
fn length(bytes: &[u8]) -> Result<Option<usize>, TooLong> {
    let Some(len) = bytes.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
    if len > LANE_FRAME {
        return Err(TooLong(len));
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        bytes.extend((0..len).map(|n| u8::try_from(n % 251).unwrap()));
        bytes
    }

    /// The frames of `bytes` when these arrive in pieces of `size`, some pieces at a time.
    fn cut(bytes: &[u8], size: usize) -> Vec<Bytes> {
        let mut arrived = Arrived::default();
        let mut frames = Vec::new();
        let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
        for some in pieces.chunks(3) {
            for (place, piece) in arrived.pieces.iter_mut().zip(some) {
                *place = Bytes::copy_from_slice(piece);
            }
            (arrived.at, arrived.end) = (0, some.len());
            while let Some(frame) = arrived.next().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let lens = [0, 1, 3, 64, 1000, 0, 0, 7, LANE_FRAME, 5];
        let bytes = lens.map(frame).concat();
        for size in [1, 2, 3, 5, 7, 68, 69, 1200, 1452, bytes.len()] {
            let frames = cut(&bytes, size);
            let expected: Vec<Vec<u8>> = lens.map(|len| frame(len)[4..].to_vec()).to_vec();
            assert_eq!(frames, expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_length() {
        let mut arrived = Arrived::default();
        let len = u32::try_from(LANE_FRAME + 1).unwrap();
        arrived.pieces[0] = Bytes::copy_from_slice(&len.to_be_bytes());
        arrived.end = 1;
        assert_eq!(arrived.next(), Err(TooLong(LANE_FRAME + 1)));
    }
}
