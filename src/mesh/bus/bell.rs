//! Waking those who wait, at the price of one load for those who do not have to.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::PoisonError;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// Says that something changed behind some lock.
///
/// Nobody is missed: a waiter first leaves its waker, then arms the bell, then looks under the lock.
/// Whoever changes something after that look took the lock later, so it finds the bell armed. And
/// whoever disarms the bell wakes all who had left their wakers by then.
#[derive(Debug, Default)]
pub(super) struct Bell {
    armed: AtomicBool,
    waiters: Mutex<Waiters>,
}

/// Bounded by the tasks that wait, each once.
#[derive(Debug, Default)]
struct Waiters {
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

impl Bell {
    /// Wakes the waiters, if there are any. To be called after the change, in or after the lock.
    #[inline]
    pub(super) fn ring(&self) {
        if self.armed.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let wakers = {
            let mut waiters = self.waiters();
            self.armed.store(false, Ordering::Relaxed);
            std::mem::take(&mut waiters.wakers)
        };
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    /// Waits until `look` finds something. `look` takes the lock that guards what it looks at.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped.
    pub(super) async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let listener = Listener {
            bell: self,
            key: self.enlist(),
        };
        poll_fn(|context| {
            listener.listen(context.waker());
            look().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn enlist(&self) -> u64 {
        let mut waiters = self.waiters();
        waiters.next += 1;
        waiters.next
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One wait. Takes its waker away when it ends.
struct Listener<'a> {
    bell: &'a Bell,
    key: u64,
}

impl Listener<'_> {
    fn listen(&self, waker: &Waker) {
        let mut waiters = self.bell.waiters();
        waiters.wakers.insert(self.key, waker.clone());
        // Under the waiters' lock: nobody disarms it for an older waker and leaves this one behind.
        self.bell.armed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.bell.waiters().wakers.remove(&self.key);
    }
}

/// Runs `future` on this thread, which sleeps between wake-ups; `None` when `patience` is over.
pub(super) fn block_on<T>(patience: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let start = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        let left = patience.checked_sub(start.elapsed());
        std::thread::park_timeout(left.filter(|left| !left.is_zero())?);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn waiting_looks_once_for_each_ring() {
        let bell = Bell::default();
        let looks = Cell::new(0);
        {
            let mut wait = pin!(bell.wait(|| {
                looks.set(looks.get() + 1);
                (looks.get() == 3).then_some(())
            }));
            let mut context = Context::from_waker(Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            bell.ring();
            assert!(!bell.armed.load(Ordering::Relaxed));
            bell.ring();
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert!(wait.as_mut().poll(&mut context).is_ready());
        }
        assert!(
            bell.waiters().wakers.is_empty(),
            "an ended wait leaves nothing behind"
        );
    }
}
