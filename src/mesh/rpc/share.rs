//! How much of a node one peer may hold at a time, over however many connections.

use std::sync::Arc;

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
