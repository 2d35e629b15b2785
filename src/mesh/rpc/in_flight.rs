//! Counts the calls under way on a connection, so that it can be closed when there are none, and
//! none begins in the same moment.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default)]
struct State {
    calls: usize,
    /// No call may begin any more.
    closed: bool,
}

/// The calls of one connection, in both directions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<watch::Sender<State>>);

/// One call under way.
#[derive(Debug)]
pub(crate) struct Busy(InFlight);

impl InFlight {
    /// Counts a call, unless the connection is closed to new ones.
    pub(crate) fn enter(&self) -> Option<Busy> {
        let entered = self.0.send_if_modified(|state| {
            state.calls += usize::from(!state.closed);
            !state.closed
        });
        entered.then(|| Busy(self.clone()))
    }

    /// Lets no call begin from now on if none is under way; whether that is so.
    pub(crate) fn close_if_idle(&self) -> bool {
        self.0.send_if_modified(|state| {
            state.closed |= state.calls == 0;
            state.closed
        })
    }

    /// Waits until no call is under way, and lets none begin from then on.
    pub(crate) async fn close_when_idle(&self) {
        let mut changes = self.0.subscribe();
        while !self.close_if_idle() {
            // The sender is `self`.
            let _ = changes.wait_for(|state| state.calls == 0).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.calls -= 1);
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
