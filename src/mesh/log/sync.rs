//! Waiting: for news of the log, and together for one sync of the disk.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A leader waits at most this part of the last sync's time for those to join who shared the last
/// one with it. They have just been woken by it, and are about to append.
const GATHER_PART: u32 = 4;

/// Locks; a panic elsewhere does not spread, as what the locks guard is whole between statements.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes all who wait for a change. Costs an atomic load where nobody waits.
#[derive(Debug, Default)]
pub(super) struct Bell {
    waiting: AtomicUsize,
    notify: Notify,
}

impl Bell {
    /// To be called after the change is visible.
    pub(super) fn ring(&self) {
        // Pairs with the one in `wait`: either we see who waits, or they see the change.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.notify.notify_waiters();
        }
    }

    /// Waits until `ready` gives something, asking at each ring.
    ///
    /// # Cancel safety
    /// Nothing is lost when this is dropped.
    pub(super) async fn wait<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        let _counted = Counted::new(&self.waiting);
        loop {
            let mut rung = pin!(self.notify.notified());
            rung.as_mut().enable();
            fence(Ordering::SeqCst);
            if let Some(value) = ready() {
                return value;
            }
            rung.await;
        }
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs a future on this thread, until `deadline` at most. For futures that need no runtime.
pub(super) fn block_on<T>(future: impl Future<Output = T>, deadline: Option<Instant>) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Group commit: of the threads that wait for the disk, one syncs for all. Who comes meanwhile
/// waits for the next sync, which serves all of them.
#[derive(Debug, Default)]
pub(super) struct GroupCommit {
    state: Mutex<GroupState>,
    done: Condvar,
    /// Appends that wait, or waited, for a sync.
    arrived: AtomicU64,
}

#[derive(Debug, Default)]
struct GroupState {
    leading: bool,
    /// `arrived` when the last sync began, and how many that sync served.
    served: u64,
    group: u64,
    took: Duration,
}

impl GroupCommit {
    /// Counts an append that waits for the disk.
    pub(super) fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what `done` gives. Until it gives something, one of the callers runs `sync`.
    pub(super) fn wait<T>(&self, done: impl Fn() -> Option<T>, sync: impl Fn()) -> T {
        let mut state = lock(&self.state);
        loop {
            if let Some(value) = done() {
                return value;
            }
            if state.leading {
                state = self
                    .done
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.leading = true;
            let (served, group, took) = (state.served, state.group, state.took);
            drop(state);
            self.gather(served + group, took / GATHER_PART);
            let begun = self.arrived.load(Ordering::Relaxed);
            let at = Instant::now();
            sync();
            state = lock(&self.state);
            *state = GroupState {
                leading: false,
                group: begun - served,
                served: begun,
                took: at.elapsed(),
            };
            self.done.notify_all();
        }
    }

    /// Lets others run until as many have arrived. Alone, nobody is waited for.
    fn gather(&self, arrived: u64, limit: Duration) {
        let until = Instant::now() + limit;
        while self.arrived.load(Ordering::Relaxed) < arrived && Instant::now() < until {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sync_serves_all_who_wait() {
        let group = GroupCommit::default();
        let (written, durable, syncs) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let append = || {
            let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
            group.arrive();
            group.wait(
                || (durable.load(Ordering::SeqCst) >= mine).then_some(()),
                || {
                    let all = written.load(Ordering::SeqCst);
                    thread::yield_now();
                    syncs.fetch_add(1, Ordering::SeqCst);
                    durable.fetch_max(all, Ordering::SeqCst);
                },
            );
            assert!(durable.load(Ordering::SeqCst) >= mine);
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| append()));
            }
        });
        assert_eq!(durable.load(Ordering::SeqCst), 1600);
        assert!(syncs.load(Ordering::SeqCst) <= 1600);
    }

    #[test]
    fn a_bell_wakes_a_parked_thread_and_a_deadline_ends_the_wait() {
        let (bell, value) = (Bell::default(), AtomicU64::new(0));
        let ready = || Some(value.load(Ordering::SeqCst)).filter(|value| *value > 0);
        assert_eq!(block_on(bell.wait(ready), Some(Instant::now())), None);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| block_on(bell.wait(ready), None));
            while bell.waiting.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            value.store(7, Ordering::SeqCst);
            bell.ring();
            assert_eq!(waiter.join().unwrap(), Some(7));
        });
    }
}
