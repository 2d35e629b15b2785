//! The two threads that everything runs on: one for the dialler, one for the listener, each with a
//! current-thread runtime of its own, as in production.

use std::future::Future;
use std::sync::mpsc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A thread with a runtime. Ends when dropped.
pub(crate) struct Lane {
    pub(crate) runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Both lanes.
pub(crate) struct Lanes {
    pub(crate) client: Lane,
    pub(crate) server: Lane,
}

impl Lanes {
    pub(crate) fn start() -> Self {
        Self {
            client: Lane::start("client"),
            server: Lane::start("server"),
        }
    }
}

impl Lane {
    fn start(name: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
            })
            .unwrap();
        Self {
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Runs `work` on the lane and waits for it, without using the processor meanwhile.
    pub(crate) fn run<F>(&self, work: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (result, done) = mpsc::channel();
        self.runtime.spawn(async move {
            let _ = result.send(work.await);
        });
        done.recv().expect("the work on the lane ended in a panic")
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
