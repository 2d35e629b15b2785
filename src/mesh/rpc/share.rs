//! How much of a node one peer may hold at a time, over however many connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use meshwork_proto::rpc::RpcError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::RpcLimits;
use super::desk::backpressure;

/// Answers below this size are not counted: their number is bounded, and so is what they hold.
const SMALL_ANSWER: usize = 64 * 1024;

/// One peer's share of a node. All that is over it is refused at once.
#[derive(Debug)]
pub(crate) struct Share {
    calls: Semaphore,
    requests: Arc<Semaphore>,
    answers: Semaphore,
    /// How many there are of each.
    total: (usize, u32, u32),
}

impl Share {
    pub(crate) fn new(limits: &RpcLimits) -> Self {
        Self {
            calls: Semaphore::new(limits.concurrent_calls),
            requests: Arc::new(Semaphore::new(limits.request_bytes as usize)),
            answers: Semaphore::new(limits.answer_bytes as usize),
            total: (
                limits.concurrent_calls,
                limits.request_bytes,
                limits.answer_bytes,
            ),
        }
    }

    /// A place among the calls, for whoever goes on elsewhere.
    pub(super) fn place(self: &Arc<Self>) -> Result<Place, RpcError> {
        self.call()?.forget();
        Ok(Place(self.clone()))
    }

    /// A place among the calls.
    pub(super) fn call(&self) -> Result<SemaphorePermit<'_>, RpcError> {
        self.calls.try_acquire().map_err(|_| {
            backpressure(format!(
                "this node serves {} calls of a peer at a time",
                self.total.0
            ))
        })
    }

    /// Room for a request's body.
    pub(super) fn request(&self, bytes: usize) -> Result<OwnedSemaphorePermit, RpcError> {
        let requests = self.requests.clone();
        requests
            .try_acquire_many_owned(permits(bytes))
            .map_err(|_| {
                backpressure(format!(
                    "this node holds {} bytes of a peer's requests at a time",
                    self.total.1
                ))
            })
    }

    /// Room for an item of a stream, waited for: the caller has other ways to feel that it is fast.
    pub(super) async fn request_in_turn(
        &self,
        bytes: usize,
    ) -> Result<OwnedSemaphorePermit, RpcError> {
        if bytes > self.total.1 as usize {
            return self.request(bytes);
        }
        let room = self.requests.clone().acquire_many_owned(permits(bytes));
        Ok(room.await.expect("the semaphore is never closed"))
    }

    /// Room for an answer that waits until the peer reads it.
    pub(super) fn answer(&self, item: &Bytes) -> Result<Option<SemaphorePermit<'_>>, RpcError> {
        if item.len() < SMALL_ANSWER {
            return Ok(None);
        }
        let room = self.answers.try_acquire_many(permits(item.len()));
        room.map(Some).map_err(|_| {
            backpressure(format!(
                "{} bytes of answers wait for this peer to read them",
                self.total.2
            ))
        })
    }
}

/// Counts what there may only be few of.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicUsize);

/// One of a [`Count`].
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a Count);

impl Count {
    /// One more, unless there are `most`.
    pub(super) fn enter(&self, most: usize) -> Option<Counted<'_>> {
        let more = |count| (count < most).then_some(count + 1);
        let entered = self.0.fetch_update(SeqCst, SeqCst, more);
        entered.ok().map(|_| Counted(self))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// A place among the calls of a peer.
#[derive(Debug)]
pub(super) struct Place(Arc<Share>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.add_permits(1);
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("frames are bounded far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_reads_are_bounded() {
        let share = Share::new(&RpcLimits {
            answer_bytes: 1 << 20,
            ..RpcLimits::default()
        });
        let half = Bytes::from(vec![0; 1 << 19]);
        let waiting = [share.answer(&half).unwrap(), share.answer(&half).unwrap()];
        assert!(waiting.iter().all(Option::is_some));
        assert!(share.answer(&half).is_err());
        assert!(share.answer(&Bytes::from_static(b"small")).is_ok());
        drop(waiting);
        assert!(share.answer(&half).is_ok());
    }
}
