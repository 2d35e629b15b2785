//! How an answer leaves: on the lane, or on a stream of its own.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use meshwork_proto::codec;
use meshwork_proto::rpc::lane::{LANE_ANSWER, ToCaller, put_item};
use meshwork_proto::rpc::{ReplyTag, RpcError, STREAM_ANSWER};
use tokio::time::timeout;

use super::super::frame::write_frame;
use super::super::server::{STALLED_READER, Server};
use super::super::too_large;
use super::out::Out;

/// Writes an answer to the lane, or gives back what is too large for it.
pub(super) fn deliver(
    out: &Out,
    id: u64,
    outcome: Result<Bytes, RpcError>,
    largest: usize,
) -> Option<Large> {
    match outcome {
        Ok(body) if body.len() <= LANE_ANSWER.min(largest) => {
            out.put(|out, ()| put_item(out, id, &body));
            None
        }
        Ok(body) => Some(Large {
            id,
            tag: ReplyTag::Item,
            body,
        }),
        Err(mut error) => {
            // Words for people, cut to a length that people read and a lane carries.
            shorten(&mut error.message);
            error.fix.iter_mut().for_each(shorten);
            shorten(&mut error.reason);
            out.put(|out, ()| ToCaller::Failed(id, error).put(out));
            None
        }
    }
}

fn shorten(words: &mut String) {
    const MOST: usize = LANE_ANSWER / 4;
    if words.len() > MOST {
        let end = (0..=MOST).rev().find(|end| words.is_char_boundary(*end));
        words.truncate(end.unwrap_or(0));
    }
}

/// An answer that needs a stream of its own.
pub(super) struct Large {
    id: u64,
    tag: ReplyTag,
    body: Bytes,
}

impl Large {
    pub(super) async fn send(mut self, server: Arc<Server>) {
        let share = server.serving.share.clone();
        let max = server.desk.limits.frame;
        let room = match self.body.len() {
            len if len > max => Err(too_large("the answer", len, max)),
            _ => share.answer(&self.body),
        };
        let _room = room.unwrap_or_else(|error| {
            self.tag = ReplyTag::Error;
            self.body = codec::encode(&error).into();
            None
        });
        let mut head = BytesMut::with_capacity(1 + size_of::<u64>());
        head.put_u8(STREAM_ANSWER);
        head.put_u64(self.id);
        let write = async {
            let mut send = server.serving.conn.open_uni().await.ok()?;
            let tag = [self.tag as u8];
            write_frame(&mut send, &head, &tag, self.body).await.ok()?;
            send.finish().ok()?;
            // The connection must not be closed as unused before the answer has arrived.
            send.stopped().await.ok()
        };
        // A reader that takes nothing for so long loses the answer.
        let _ = timeout(STALLED_READER, write).await;
    }
}
