//! What is to be written to a lane, gathered from all who have something to say.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use quinn::{SendStream, WriteError};

use super::BACKLOG;

/// Frames that wait to be written, and what their writers agree on (`T`).
#[derive(Debug, Default)]
pub(super) struct Out<T = ()> {
    waiting: Mutex<(BytesMut, T)>,
    /// Whoever writes.
    writer: AtomicWaker,
    /// Whoever waits for room.
    room: AtomicWaker,
}

impl<T> Out<T> {
    /// Appends frames.
    pub(super) fn put<R>(&self, frames: impl FnOnce(&mut BytesMut, &mut T) -> R) -> R {
        let mut waiting = self.lock();
        let (bytes, shared) = &mut *waiting;
        let was_empty = bytes.is_empty();
        let result = frames(bytes, shared);
        let wake = was_empty && !bytes.is_empty();
        drop(waiting);
        if wake {
            self.writer.wake();
        }
        result
    }

    /// Whether more waits than should.
    pub(super) fn is_full(&self) -> bool {
        self.lock().0.len() > BACKLOG
    }

    /// Waits until there is room. One task at a time.
    pub(super) async fn room(&self) {
        poll_fn(|cx| {
            self.room.register(cx.waker());
            if self.is_full() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// Writes what comes, all that waits at once, until the stream fails. One task at a time.
    pub(super) async fn write_to(&self, send: &mut SendStream) -> WriteError {
        loop {
            let bytes = self.next().await;
            if let Err(error) = send.write_chunk(bytes).await {
                return error;
            }
        }
    }

    /// All that waits, once something does.
    async fn next(&self) -> Bytes {
        let bytes = poll_fn(|cx| {
            self.writer.register(cx.waker());
            let bytes = std::mem::take(&mut self.lock().0);
            if bytes.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(bytes)
            }
        });
        let bytes = bytes.await.freeze();
        self.room.wake();
        bytes
    }

    /// What waits and is not taken by the writer yet.
    pub(super) fn rest(&self) -> Bytes {
        std::mem::take(&mut self.lock().0).freeze()
    }

    fn lock(&self) -> MutexGuard<'_, (BytesMut, T)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
