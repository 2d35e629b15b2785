//! How records lie in a segment: a header of 16 bytes, the payload, zeros up to the next multiple
//! of 8. All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | CRC-32C of the rest of header and payload, started from the sequence number |
//! | 4..8 | payload length in the low 30 bits; bit 31: the batch goes on; bit 30: a mark |
//! | 8..16 | Unix milliseconds, never less than the record before |
//!
//! The sequence number is not stored but checked: a record in the wrong place does not verify. A
//! header of zeros is where the data ends, as files are enlarged with zeros.
//!
//! A **mark** is no record and has no number. It tells which records were on disk when it was
//! written, so that recovery can tell damage (lost, though it was on disk) from a torn tail (never
//! got there), and it can be found where records cannot be followed any more.

use bytes::Bytes;
use meshwork_identity::Timestamp;

/// Bytes before the payload.
pub(super) const HEADER: usize = 16;
/// Records start at multiples of this.
const ALIGN: usize = 8;
/// More records of the same batch follow.
const MORE: u32 = 1 << 31;
/// This is a mark.
const MARK: u32 = 1 << 30;
/// Largest payload in bytes. Far above any message of ours, and small enough that a damaged length
/// cannot make a reader take much memory.
pub const MAX_RECORD: usize = 64 << 20;

const MARK_MAGIC: u64 = u64::from_le_bytes(*b"\xA7mwMark\x1B");
/// Bytes that a mark takes: magic, the number of the record that follows, and the first record that
/// was not known to be on disk.
pub(super) const MARK_BYTES: usize = HEADER + 24;

/// A record that was read, and owns its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its sequence number.
    pub seq: u64,
    /// When it was appended; never before the record with a smaller number.
    pub time: Timestamp,
    /// What was appended.
    pub payload: Bytes,
}

/// A record within a [`super::Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its sequence number.
    pub seq: u64,
    /// When it was appended; never before the record with a smaller number.
    pub time: Timestamp,
    /// What was appended.
    pub payload: &'a [u8],
}

/// Bytes that a payload of this length takes in a segment.
pub(super) const fn framed(payload: usize) -> usize {
    (HEADER + payload + ALIGN - 1) & !(ALIGN - 1)
}

/// Writes a record to the end of `out`. `more`: the next record belongs to the same batch.
pub(super) fn encode(out: &mut Vec<u8>, seq: u64, time: u64, payload: &[u8], more: bool) {
    let flags = if more { MORE } else { 0 };
    encode_with(out, seq, time, payload, flags);
}

/// Writes a mark: all records before `stable` are on disk, and `next` is the record that follows.
pub(super) fn encode_mark(out: &mut Vec<u8>, next: u64, time: u64, stable: u64) {
    let mut payload = [0; 24];
    payload[..8].copy_from_slice(&MARK_MAGIC.to_le_bytes());
    payload[8..16].copy_from_slice(&next.to_le_bytes());
    payload[16..].copy_from_slice(&stable.to_le_bytes());
    encode_with(out, next, time, &payload, MARK);
}

fn encode_with(out: &mut Vec<u8>, seq: u64, time: u64, payload: &[u8], flags: u32) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("limited by MAX_RECORD") | flags;
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..].copy_from_slice(&time.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let crc = checksum(seq, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + framed(payload.len()), 0);
}

fn checksum(seq: u64, bytes: &[u8]) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "folds 64 bits to 32")]
    let seed = (seq ^ (seq >> 32)) as u32;
    crc32c::crc32c_append(seed, bytes)
}

/// What lies at a place of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A record that verifies.
    Record {
        time: u64,
        payload: &'a [u8],
        /// More of its batch follows.
        more: bool,
        /// Bytes to the next one.
        size: usize,
    },
    /// A mark that verifies.
    Mark { stable: u64, size: usize },
    /// Zeros, or less than a header: the data ends here.
    End,
    /// Not all of it is there: it takes this many bytes, if the header is right.
    Short { size: usize },
    /// It does not verify.
    Bad,
}

/// Reads what lies at the start of `bytes`, where the record `seq` is expected.
pub(super) fn parse(bytes: &[u8], seq: u64) -> Parsed<'_> {
    let Some(frame) = Frame::read(bytes) else {
        return Parsed::End;
    };
    if frame.is_blank() {
        return Parsed::End;
    }
    let len = frame.len();
    if len > MAX_RECORD {
        return Parsed::Bad;
    }
    let size = framed(len);
    if bytes.len() < size {
        return Parsed::Short { size };
    }
    if checksum(seq, &bytes[4..HEADER + len]) != frame.crc {
        return Parsed::Bad;
    }
    let payload = &bytes[HEADER..HEADER + len];
    if frame.word & MARK != 0 {
        return match mark(payload) {
            Some((_, stable)) => Parsed::Mark { stable, size },
            None => Parsed::Bad,
        };
    }
    Parsed::Record {
        time: frame.time,
        payload,
        more: frame.word & MORE != 0,
        size,
    }
}

/// The next record in bytes that were verified before, and the bytes after it. Skips marks.
pub(super) fn next_verified(mut bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    loop {
        let frame = Frame::read(bytes)?;
        let len = frame.len();
        let rest = bytes.get(framed(len)..)?;
        if frame.word & MARK == 0 {
            return Some((frame.time, &bytes[HEADER..HEADER + len], rest));
        }
        bytes = rest;
    }
}

/// How many bytes the record at the start of `bytes` says that it takes. Not verified.
pub(super) fn claimed_size(bytes: &[u8]) -> Option<usize> {
    let frame = Frame::read(bytes)?;
    (!frame.is_blank() && frame.len() <= MAX_RECORD).then(|| framed(frame.len()))
}

/// The largest `stable` of all marks in `bytes`, wherever they lie (at multiples of 8).
pub(super) fn find_marks(bytes: &[u8]) -> Option<u64> {
    let at = (0..bytes.len().saturating_sub(MARK_BYTES - 1)).step_by(ALIGN);
    at.filter_map(|at| {
        let bytes = &bytes[at..at + MARK_BYTES];
        let (next, stable) = mark(&bytes[HEADER..])?;
        matches!(parse(bytes, next), Parsed::Mark { .. }).then_some(stable)
    })
    .max()
}

fn mark(payload: &[u8]) -> Option<(u64, u64)> {
    let words = payload.first_chunk::<24>()?;
    let word = |n: usize| u64::from_le_bytes(*words[n * 8..].first_chunk().expect("24 bytes"));
    (word(0) == MARK_MAGIC).then(|| (word(1), word(2)))
}

/// A header as it lies on disk.
struct Frame {
    crc: u32,
    word: u32,
    time: u64,
}

impl Frame {
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let low = u64::from_le_bytes(*header.first_chunk().expect("16 bytes"));
        let time = u64::from_le_bytes(*header.last_chunk().expect("16 bytes"));
        #[expect(clippy::cast_possible_truncation, reason = "two words of 32 bits")]
        Some(Self {
            crc: low as u32,
            word: (low >> 32) as u32,
            time,
        })
    }

    fn is_blank(&self) -> bool {
        self.crc == 0 && self.word == 0 && self.time == 0
    }

    fn len(&self) -> usize {
        (self.word & !(MORE | MARK)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, seq, 77, payload, false);
        out
    }

    #[test]
    fn every_length_comes_back() {
        for len in 0..40 {
            let payload = vec![0xAB; len];
            let bytes = one(9, &payload);
            assert_eq!(bytes.len() % ALIGN, 0);
            let Parsed::Record {
                time,
                payload: got,
                more,
                size,
            } = parse(&bytes, 9)
            else {
                panic!("length {len}: {:?}", parse(&bytes, 9));
            };
            assert_eq!(
                (time, got, more, size),
                (77, &payload[..], false, bytes.len())
            );
        }
    }

    #[test]
    fn a_record_verifies_in_its_own_place_only() {
        assert_eq!(parse(&one(9, b"x"), 10), Parsed::Bad);
    }

    #[test]
    fn every_flipped_bit_of_header_and_payload_is_seen() {
        let good = one(9, b"payload!");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let seen = parse(&bytes, 9);
            assert!(
                !matches!(seen, Parsed::Record { .. } | Parsed::Mark { .. }),
                "bit {bit}: {seen:?}"
            );
        }
    }

    #[test]
    fn a_cut_record_is_short_and_zeros_are_the_end() {
        let bytes = one(9, b"payload");
        assert_eq!(parse(&bytes[..20], 9), Parsed::Short { size: 24 });
        assert_eq!(parse(&bytes[..15], 9), Parsed::End);
        assert_eq!(parse(&[0; 64], 9), Parsed::End);
    }

    #[test]
    fn marks_are_found_behind_damage_and_skipped_when_reading() {
        let mut bytes = vec![0xFF; 24];
        encode_mark(&mut bytes, 5, 1, 3);
        encode(&mut bytes, 5, 2, b"five", false);
        encode_mark(&mut bytes, 6, 2, 6);
        assert_eq!(find_marks(&bytes), Some(6));
        assert_eq!(find_marks(&bytes[..24 + MARK_BYTES]), Some(3));
        assert_eq!(find_marks(&bytes[..24 + MARK_BYTES - 1]), None);
        let (time, payload, rest) = next_verified(&bytes[24..]).unwrap();
        assert_eq!((time, payload), (2, &b"five"[..]));
        assert!(next_verified(rest).is_none());
    }
}
