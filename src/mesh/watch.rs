//! One value that many wait for to change, woken in the order in which they began to wait.
//!
//! `tokio::sync::watch` wakes them in a random order, which differs from run to run of a simulation.
//! Otherwise this is the same, as far as nodes use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

/// Added to the version by each change; the lowest bit says that the sender is gone.
const STEP: u64 = 2;
/// See [`STEP`].
const CLOSED: u64 = 1;

/// The sender is gone: nothing will change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Changes the value.
#[derive(Debug, Default)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for changes that it has not seen.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

#[derive(Debug, Default)]
struct Shared<T> {
    value: RwLock<T>,
    version: AtomicU64,
    changed: Notify,
}

/// A value and who waits for it. The receiver has seen the value as it is.
pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            changed: Notify::new(),
        }))
    }

    /// A receiver that has seen the value as it is.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        Receiver {
            shared: self.0.clone(),
            seen: self.0.version.load(Ordering::Acquire),
        }
    }

    /// The value. Nobody can change it while this is held.
    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.read()
    }

    /// Puts another value, and tells whoever waits.
    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut held = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *held, value);
        self.0.version.fetch_add(STEP, Ordering::Release);
        drop(held);
        self.0.changed.notify_waiters();
        before
    }

    /// Changes the value, and tells whoever waits if `change` says that it did.
    pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut held = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut held);
        if changed {
            self.0.version.fetch_add(STEP, Ordering::Release);
        }
        drop(held);
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.version.fetch_or(CLOSED, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

impl<T> Receiver<T> {
    /// The value, without taking note of it. Nobody can change it while this is held.
    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.shared.read()
    }

    /// The value, which is seen now.
    pub(crate) fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.read();
        // Changes of the version happen under the lock.
        self.seen = self.shared.version.load(Ordering::Acquire) & !CLOSED;
        value
    }

    /// Whether the value is the one that was seen last.
    pub(crate) fn is_seen(&self) -> bool {
        self.shared.version.load(Ordering::Acquire) & !CLOSED == self.seen & !CLOSED
    }

    /// Takes note of the value as it is.
    pub(crate) fn mark_seen(&mut self) {
        drop(self.borrow_and_update());
    }

    /// Waits until there is a value that was not seen, which then is.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value unseen.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut notified = std::pin::pin!(self.shared.changed.notified());
            notified.as_mut().enable();
            let version = self.shared.version.load(Ordering::Acquire);
            if version & !CLOSED != self.seen & !CLOSED {
                self.seen = version;
                return Ok(());
            }
            if version & CLOSED != 0 {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Waits until the value is as wanted.
    ///
    /// # Cancel safety
    /// As [`Receiver::changed`].
    pub(crate) async fn wait_for(
        &mut self,
        mut wanted: impl FnMut(&T) -> bool,
    ) -> Result<RwLockReadGuard<'_, T>, Closed> {
        loop {
            let fits = wanted(&self.borrow_and_update());
            if fits {
                return Ok(self.shared.read());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            seen: self.seen,
        }
    }
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn waiters_are_woken_in_order() {
        let (sender, receiver) = channel(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..20)
            .map(|number| {
                let (mut receiver, order) = (receiver.clone(), order.clone());
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert!(order.lock().unwrap().is_sorted());
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_an_end_for_ever() {
        let (sender, mut receiver) = channel(1);
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(sender.send_replace(2), 1);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow_and_update(), 2);
        sender.send_replace(3);
        assert_eq!(*receiver.wait_for(|value| *value == 3).await.unwrap(), 3);
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == 4).await.is_err());
        assert_eq!(*receiver.borrow(), 3);
    }
}
