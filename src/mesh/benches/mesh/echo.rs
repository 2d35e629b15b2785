//! A call as bare as it can be: the wire format of our RPC on a stream of its own, without deadline,
//! permission, cancellation, bounds or router. What the peer and the limit do for a call.

use bytes::Bytes;
use meshwork_proto::codec;
use meshwork_proto::limits::{MAX_FRAME, MAX_HEADER};
use meshwork_proto::rpc::{Codec, Kind, ReplyTag, RequestHeader, STREAM_RPC};
use quinn::{Connection, RecvStream, SendStream};

/// Largest request or answer, with what surrounds the body.
const MAX_STREAM: usize = MAX_FRAME + MAX_HEADER;
/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// Sends `body` and returns what comes back.
pub(crate) async fn call(connection: &Connection, body: &[u8]) -> Bytes {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let header = codec::encode(&RequestHeader {
        id: 1,
        service: "bench".to_owned(),
        method: "echo".to_owned(),
        codec: Codec::Postcard,
        kind: Kind::Unary,
        deadline_ms: Some(10_000),
        idempotency_key: None,
        trace: None,
    });
    let mut request = vec![STREAM_RPC];
    push_frame(&mut request, &[], &header);
    push_frame(&mut request, &[], body);
    send.write_all(&request).await.unwrap();
    send.finish().unwrap();
    let answer = Bytes::from(recv.read_to_end(MAX_STREAM).await.unwrap());
    assert_eq!(
        answer.get(LENGTH),
        Some(&(ReplyTag::Item as u8)),
        "the call failed"
    );
    answer.slice(LENGTH + 1..)
}

/// Answers every call on the connection with its own body.
pub(crate) async fn serve(connection: Connection) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        tokio::spawn(answer(send, recv));
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream) {
    let Ok(request) = recv.read_to_end(MAX_STREAM).await else {
        return;
    };
    let request = Bytes::from(request);
    assert_eq!(request[0], STREAM_RPC);
    let (header, rest) = take_frame(&request[1..]);
    let header: RequestHeader = codec::decode(header, MAX_HEADER).unwrap();
    assert_eq!(header.method, "echo");
    let (body, _) = take_frame(rest);
    let mut answer = Vec::with_capacity(body.len() + LENGTH + 1);
    push_frame(&mut answer, &[ReplyTag::Item as u8], body);
    let _ = send.write_all(&answer).await;
    let _ = send.finish();
}

fn push_frame(out: &mut Vec<u8>, tag: &[u8], body: &[u8]) {
    let length = u32::try_from(tag.len() + body.len()).unwrap();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(tag);
    out.extend_from_slice(body);
}

fn take_frame(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().unwrap();
    rest.split_at(u32::from_be_bytes(*length) as usize)
}
