//! Counts the calls under way on a connection, so that it can be closed when there are none, and
//! none begins in the same moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

/// Set when no call may begin any more; the bits below count the calls.
const CLOSED: usize = 1 << (usize::BITS - 1);

#[derive(Debug, Default)]
struct State {
    calls: AtomicUsize,
    /// The last call has ended.
    idle: Notify,
    /// How often somebody wanted to close the connection, and there were calls.
    asked: AtomicU64,
    /// That has changed.
    asking: Notify,
    /// Somebody waits until it can be closed.
    closing: AtomicBool,
}

/// The calls of one connection, in both directions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<State>);

/// One call under way.
#[derive(Debug)]
pub(crate) struct Busy(InFlight);

impl InFlight {
    /// Counts a call, unless the connection is closed to new ones.
    pub(crate) fn enter(&self) -> Option<Busy> {
        let more = |calls| (calls & CLOSED == 0).then_some(calls + 1);
        let entered = self.0.calls.fetch_update(SeqCst, SeqCst, more);
        entered.ok().map(|_| Busy(self.clone()))
    }

    /// Calls under way.
    pub(crate) fn count(&self) -> usize {
        self.0.calls.load(SeqCst) & !CLOSED
    }

    /// Lets no call begin from now on if none is under way; whether that is so.
    pub(crate) fn close_if_idle(&self) -> bool {
        let closed = self.0.calls.compare_exchange(0, CLOSED, SeqCst, SeqCst);
        let is_closed = matches!(closed, Ok(_) | Err(CLOSED));
        if !is_closed {
            self.0.asked.fetch_add(1, SeqCst);
            self.0.asking.notify_waiters();
        }
        is_closed
    }

    /// Whether somebody waits until the connection can be closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.0.closing.load(SeqCst)
    }

    /// How often somebody wanted to close the connection in vain. Whoever counts as a call to be on the
    /// safe side makes sure then.
    pub(crate) fn asked(&self) -> u64 {
        self.0.asked.load(SeqCst)
    }

    /// Waits until that was more often than `heeded`.
    pub(crate) async fn asked_again(&self, heeded: u64) {
        loop {
            let asking = self.0.asking.notified();
            if self.asked() != heeded {
                return;
            }
            asking.await;
        }
    }

    /// Waits until no call is under way, and lets none begin from then on.
    pub(crate) async fn close_when_idle(&self) {
        self.0.closing.store(true, SeqCst);
        loop {
            // Made before the look, so that no end between look and wait is missed.
            let idle = self.0.idle.notified();
            if self.close_if_idle() {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.0.calls.fetch_sub(1, SeqCst) == 1 {
            self.0.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closes_between_calls_only() {
        let calls = InFlight::default();
        let first = calls.enter().unwrap();
        let second = calls.enter().unwrap();
        assert!(!calls.close_if_idle());
        let closing = tokio::spawn({
            let calls = calls.clone();
            async move { calls.close_when_idle().await }
        });
        drop(first);
        assert!(calls.enter().is_some(), "one is still under way");
        drop(second);
        closing.await.unwrap();
        assert!(calls.enter().is_none());
    }
}
