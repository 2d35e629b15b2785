//! A part of a file mapped into memory, to append small records with a store instead of a system
//! call (25 ns instead of 1 µs on ext4). The pages belong to the kernel's cache: what was stored is
//! there also when the process is killed at once.
//!
//! A store into a mapping cannot report a failure: the process would get SIGBUS. Hence: the caller
//! maps files of file systems only that reserve blocks, and stores below the reserved length only;
//! pages are made writable by `madvise(MADV_POPULATE_WRITE)` beforehand, which does report failures
//! (Linux 5.14; on older ones, and when it fails, [`Mapped::store`] declines, and the caller writes
//! by system call). What remains is a file system that breaks down between two stores into one page.

#![allow(unsafe_code, reason = "there is no safe way to map a file")]

use std::ffi::c_void;
use std::fs;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::param::page_size;

/// How much is mapped at once. Address space only.
const WINDOW: usize = 4 << 20;
/// Most bytes that are made writable in one go: one system call for many page faults.
const MOST_READY: usize = 64 << 10;

/// A window of a file.
#[derive(Debug)]
pub(super) struct Mapped {
    memory: *mut c_void,
    /// Where in the file the window starts.
    start: u64,
    /// Offsets in the window between which the pages are writable.
    ready: std::ops::Range<usize>,
    /// How much to make ready the next time.
    step: usize,
}

// SAFETY: the memory is only reached through `&mut self`, and belongs to nobody else.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps a window of the file from about `offset` on. None: the system would not.
    pub(super) fn new(file: &fs::File, offset: u64) -> Option<Self> {
        let start = offset - offset % page_size() as u64;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        // Nothing is read through it, and it is written by raw copies only, so that no reference
        // into memory that others (readers by system call) see is ever made.
        let memory = unsafe {
            mmap(
                ptr::null_mut(),
                WINDOW,
                flags,
                MapFlags::SHARED,
                file,
                start,
            )
        };
        let memory = memory.ok()?;
        Some(Self {
            memory,
            start,
            ready: 0..0,
            step: 0,
        })
    }

    /// Whether the window holds all of this.
    pub(super) fn covers(&self, offset: u64, len: usize) -> bool {
        offset >= self.start && offset + len as u64 <= self.start + WINDOW as u64
    }

    /// Copies into the window, which covers it and whose file has `file_len` bytes, more than are
    /// written to. False: the pages could not be made writable, and nothing was done.
    pub(super) fn store(&mut self, bytes: &[u8], offset: u64, file_len: u64) -> bool {
        debug_assert!(self.covers(offset, bytes.len()) && offset + bytes.len() as u64 <= file_len);
        let Ok(at) = usize::try_from(offset - self.start) else {
            return false;
        };
        let end = at + bytes.len();
        if (at < self.ready.start || end > self.ready.end) && !self.make_ready(at, end, file_len) {
            return false;
        }
        // SAFETY: `at..end` lies within the mapped window and below the file's end, and `bytes`
        // cannot overlap it, as no reference into the mapping exists.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.memory.cast::<u8>().add(at),
                bytes.len(),
            );
        };
        true
    }

    /// After a sync the kernel has made the pages read-only again, to see what is written next.
    /// Fewer are made ready at first, as all that are ready count as written.
    pub(super) fn forget_ready(&mut self) {
        self.ready = 0..0;
        self.step = 0;
    }

    fn make_ready(&mut self, at: usize, end: usize, file_len: u64) -> bool {
        let page = page_size();
        let from = at - at % page;
        self.step = (self.step * 2).clamp(page, MOST_READY);
        let to = end.max(from + self.step).next_multiple_of(page).min(WINDOW);
        // Only whole pages within the file exist; the last one may be cut.
        let within = usize::try_from((file_len - self.start).next_multiple_of(page as u64));
        let to = within.map_or(to, |within| to.min(within));
        // SAFETY: `from..to` lies within the mapping; populating changes no contents.
        let done = unsafe {
            madvise(
                self.memory.byte_add(from),
                to - from,
                Advice::LinuxPopulateWrite,
            )
        };
        self.ready = if done.is_ok() { from..to } else { 0..0 };
        done.is_ok()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers into it.
        let _ = unsafe { munmap(self.memory, WINDOW) };
    }
}
