//! Small items of a stream, gathered so that those that are there at the same time leave in one write.

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::ItemStream;

use super::frame::{COPY_BELOW, put_head};

/// Bytes of frames from which on no more items are waited for.
const FULL: usize = 16 * 1024;

/// What is written at once.
pub(super) enum Batch {
    /// Whole frames.
    Frames(BytesMut),
    /// An item too large to be copied.
    Large(Bytes),
}

/// Gathers items. Their order stays.
pub(super) struct Batches {
    items: ItemStream<Bytes>,
    /// What each frame begins with.
    prefix: Vec<u8>,
    /// What comes after the batch that is being gathered.
    held: Option<Result<Bytes, RpcError>>,
}

impl Batches {
    /// `items` as frames that begin with `prefix`.
    pub(super) fn new(items: ItemStream<Bytes>, prefix: impl Into<Option<u8>>) -> Self {
        Self {
            items,
            prefix: prefix.into().into_iter().collect(),
            held: None,
        }
    }

    /// The next items that are there, at least one; none at the end. An error is the last.
    ///
    /// # Cancel safety
    /// Items that were taken and not given out are lost.
    pub(super) async fn next(&mut self) -> Option<Result<Batch, RpcError>> {
        let first = match self.held.take() {
            Some(item) => item,
            None => self.items.next().await?,
        };
        let first = match first {
            Ok(item) if item.len() < COPY_BELOW => item,
            Ok(item) => return Some(Ok(Batch::Large(item))),
            Err(error) => return Some(Err(error)),
        };
        let mut frames = BytesMut::new();
        self.put(&mut frames, &first);
        while frames.len() < FULL {
            match self.items.next().now_or_never() {
                Some(Some(Ok(item))) if item.len() < COPY_BELOW => self.put(&mut frames, &item),
                Some(Some(other)) => {
                    self.held = Some(other);
                    break;
                }
                // Asked again, a stream that has ended says so again.
                Some(None) => {
                    self.items = Box::pin(futures_util::stream::empty());
                    break;
                }
                None => break,
            }
        }
        Some(Ok(Batch::Frames(frames)))
    }

    fn put(&self, frames: &mut BytesMut, item: &Bytes) {
        put_head(frames, &self.prefix, item.len());
        frames.extend_from_slice(item);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn gathered(items: Vec<Result<Bytes, RpcError>>) -> Vec<Result<usize, String>> {
        let mut batches = Batches::new(Box::pin(stream::iter(items)), 7);
        let mut sizes = Vec::new();
        while let Some(batch) = batches.next().await {
            sizes.push(match batch {
                Ok(Batch::Frames(frames)) => Ok(frames.len()),
                Ok(Batch::Large(item)) => Ok(item.len()),
                Err(error) => Err(error.message),
            });
        }
        sizes
    }

    #[tokio::test]
    async fn small_items_go_together_and_order_stays() {
        let small = || Ok(Bytes::from_static(b"item"));
        let large = || Ok(Bytes::from(vec![0; COPY_BELOW]));
        let error = || Err(RpcError::invalid("no more"));
        assert_eq!(gathered(vec![]).await, []);
        // Four bytes of length, one of prefix, four of item.
        assert_eq!(
            gathered(vec![small(), small(), large(), small()]).await,
            [Ok(18), Ok(COPY_BELOW), Ok(9)]
        );
        assert_eq!(
            gathered(vec![small(), error()]).await,
            [Ok(9), Err("no more".to_owned())]
        );
        let many = gathered((0..10_000).map(|_| small()).collect()).await;
        let total: usize = many.iter().map(|size| *size.as_ref().unwrap()).sum();
        assert_eq!(total, 90_000);
        assert!(many.len() <= 90_000 / FULL + 1, "{} writes", many.len());
    }
}
