//! How much heap a thread holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

/// The system's allocator, and a count for each thread of the bytes that it spends: what is asked
/// for, a head of 8 bytes, rounded up to 16, at least 32 (as glibc's does on 64 bits).
///
/// A program that weighs things makes it its `#[global_allocator]`. The count of a thread is right as
/// long as it frees itself what it allocates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting;

thread_local! {
    // Without a destructor, so that it can be used at any time of a thread's life.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// What this thread holds, in bytes; none in a program with another allocator.
pub fn held() -> Option<i64> {
    let before = HELD.get();
    let probe = black_box(Vec::<u8>::with_capacity(64));
    let counts = HELD.get() != before;
    drop(probe);
    counts.then_some(before)
}

fn spent(size: usize) -> i64 {
    i64::try_from((size + 8).next_multiple_of(16).max(32)).unwrap_or(i64::MAX)
}

fn note(bytes: i64) {
    HELD.set(HELD.get().wrapping_add(bytes));
}

#[allow(unsafe_code, reason = "an allocator that counts cannot be had without")]
// SAFETY: every call goes to the system's allocator as it came, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(spent(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(-spent(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(spent(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(spent(size) - spent(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
