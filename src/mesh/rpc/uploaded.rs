//! The items that a caller sends, as the stream that a handler reads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::ItemStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::frame::{FrameError, FrameReader};
use super::server::{Ended, SLOWEST_BODY, unreadable};
use super::{Share, stream_code, timeout_error};

/// The items that a caller sends, at the pace of the handler. Each holds its bytes against the peer's
/// share until the next one is asked for. Dropping the stream tells the caller that no more are wanted.
pub(super) fn uploaded(
    reader: FrameReader,
    share: Arc<Share>,
    largest: usize,
    patience: Duration,
) -> ItemStream<Bytes> {
    let next = move |state: Option<(FrameReader, Option<OwnedSemaphorePermit>)>| {
        let share = share.clone();
        async move {
            let (mut reader, held) = state?;
            drop(held);
            match next_uploaded(&mut reader, &share, largest, patience).await {
                Ok(Some((item, held))) => Some((Ok(item), Some((reader, Some(held))))),
                Ok(None) => None,
                Err(error) => {
                    reader.stop(stream_code::ANSWERED);
                    Some((Err(error), None))
                }
            }
        }
    };
    Box::pin(stream::unfold(Some((reader, None)), next))
}

async fn next_uploaded(
    reader: &mut FrameReader,
    share: &Share,
    largest: usize,
    patience: Duration,
) -> Result<Option<(Bytes, OwnedSemaphorePermit)>, RpcError> {
    let told = |error: FrameError| match unreadable(&error) {
        Ended::Failed(error) => error,
        Ended::Reset(_) => RpcError::new(Status::Cancelled, "the caller gave the call up"),
    };
    // Between items a caller may be quiet for as long as it likes.
    let Some(length) = reader.length(largest).await.map_err(told)? else {
        return Ok(None);
    };
    let slowest = Duration::from_secs((length / SLOWEST_BODY) as u64);
    let read = async {
        let held = share.request_in_turn(length).await?;
        let item = reader.exact(length).await.map_err(told)?;
        Ok(Some((item, held)))
    };
    let item = timeout(patience + slowest, read).await;
    item.unwrap_or_else(|_| Err(timeout_error()))
}
