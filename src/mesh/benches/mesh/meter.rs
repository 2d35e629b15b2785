//! What is read off the process: processor time and memory.

#![allow(unsafe_code, reason = "an allocator that counts cannot be had without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use rustix::time::{ClockId, clock_gettime};

/// Processor time of all threads so far, in microseconds.
pub(crate) fn process_cpu() -> f64 {
    read(ClockId::ProcessCPUTime)
}

/// Processor time of this thread so far, in microseconds.
pub(crate) fn thread_cpu() -> f64 {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Bytes that `work` left allocated, and its result. Nothing else may run meanwhile.
pub(crate) fn heap_growth<T>(work: impl FnOnce() -> T) -> (i64, T) {
    HEAP.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    let result = work();
    COUNTING.store(false, Relaxed);
    (HEAP.load(Relaxed), result)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
/// Off while speed is measured: a shared counter would be what two threads wait for.
static COUNTING: AtomicBool = AtomicBool::new(false);
static HEAP: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, and a count of the bytes asked of it.
struct Counting;

impl Counting {
    fn count(bytes: usize, sign: i64) {
        if COUNTING.load(Relaxed) {
            HEAP.fetch_add(sign * i64::try_from(bytes).unwrap_or(i64::MAX), Relaxed);
        }
    }
}

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        Self::count(layout.size(), -1);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(layout.size(), -1);
        Self::count(new_size, 1);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}
