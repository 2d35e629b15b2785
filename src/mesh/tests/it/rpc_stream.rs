//! Streaming both ways, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use meshwork_mesh::Mesh;
use meshwork_proto::rpc::{Codec, ErrorKind, RpcError, Status};
use meshwork_proto::service::{
    CallOptions, Caller, ItemStream, Method, RawCall, Router, call, duplex, stream as call_stream,
    upload,
};

use crate::cluster::*;
use crate::probe::{Count, Counters, Echo, counted, patiently};

meshwork_proto::service! {
    "flow";
    /// How many there were, and their sum.
    upload Sum("sum", Call, false): u64 => (u64, u64);
    /// Each one doubled.
    duplex Double("double", Call, false): u64 => u64;
    /// Takes one, and answers without the others.
    upload First("first", Call, false): Bytes => Bytes;
    /// Takes nothing, and never answers.
    upload Deaf("deaf", Call, false): u64 => ();
    /// Fails on the third item.
    duplex Fussy("fussy", Call, false): u64 => u64;
    /// The number of bytes.
    upload Weigh("weigh", Call, false): Bytes => u64;
}

pub(crate) fn router() -> Router {
    flow(&Arc::default())
}

fn flow(counters: &Arc<Counters>) -> Router {
    counted(counters)
        .upload::<Sum, _, _>(|_, mut items| async move {
            let (mut count, mut sum) = (0, 0u64);
            while let Some(item) = items.next().await {
                count += 1;
                sum += item?;
                // A reader that is slower than the writer.
                if count % 50_000 == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok((count, sum))
        })
        .duplex::<Double, _, _>(|_, items| async move {
            let doubled: ItemStream<u64> = Box::pin(items.map(|item| Ok(2 * item?)));
            Ok(doubled)
        })
        .upload::<First, _, _>(|_, mut items| async move {
            let first = items.next().await;
            first.unwrap_or_else(|| Err(RpcError::invalid("there is none")))
        })
        .upload::<Deaf, _, _>(|_, items| async move {
            let _items = items;
            std::future::pending().await
        })
        .duplex::<Fussy, _, _>(|_, items| async move {
            let checked = items.map(|item| match item? {
                3 => Err(RpcError::new(Status::App(0x8007), "not three")),
                item => Ok(item),
            });
            let checked: ItemStream<u64> = Box::pin(checked);
            Ok(checked)
        })
        .upload::<Weigh, _, _>(|_, mut items| async move {
            let mut weight = 0;
            while let Some(item) = items.next().await {
                weight += item?.len() as u64;
            }
            Ok(weight)
        })
}

async fn pair() -> (Mesh, Mesh) {
    Cluster::new().pair(router()).await
}

fn long() -> CallOptions {
    CallOptions::within(Duration::from_mins(4))
}

/// Items, and how many were taken.
fn counting(taken: &Arc<AtomicU64>) -> impl Stream<Item = u64> + Send + 'static {
    let taken = taken.clone();
    stream::iter(0..).inspect(move |_| {
        taken.fetch_add(1, Ordering::Relaxed);
    })
}

const MILLION: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_items_go_up_to_a_slow_reader() {
    let (client, server) = pair().await;
    let answer = upload::<Sum>(&client, server.node_id(), stream::iter(0..MILLION), long()).await;
    assert_eq!(answer, Ok((MILLION, MILLION * (MILLION - 1) / 2)));
    stop(&[&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_items_come_down_to_a_slow_reader() {
    let (client, server) = pair().await;
    let items = call_stream::<Count>(&client, server.node_id(), &MILLION, long()).await;
    let mut items = items.unwrap();
    let mut expected = 0;
    while let Some(item) = items.next().await {
        assert_eq!(item.unwrap(), expected);
        expected += 1;
        if expected % 50_000 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(expected, MILLION);
    stop(&[&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_items_go_both_ways_at_once() {
    let (client, server) = pair().await;
    let up = stream::iter(0..MILLION);
    let mut down = duplex::<Double>(&client, server.node_id(), up, long())
        .await
        .unwrap();
    let mut expected = 0;
    while let Some(item) = down.next().await {
        assert_eq!(item.unwrap(), 2 * expected);
        expected += 1;
    }
    assert_eq!(expected, MILLION);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_node_streams_to_itself() {
    let cluster = Cluster::new();
    let node = cluster.node(1, router());
    let to = node.node_id();
    let sum = upload::<Sum>(&node, to, stream::iter(0..10), patiently()).await;
    assert_eq!(sum, Ok((10, 45)));
    let down = duplex::<Double>(&node, to, stream::iter(0..3), patiently()).await;
    let down: Vec<_> = down.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(down, [0, 2, 4]);
    stop(&[&node]).await;
}

#[tokio::test]
async fn nothing_at_all_can_be_sent_and_answered() {
    let (client, server) = pair().await;
    let to = server.node_id();
    let sum = upload::<Sum>(&client, to, stream::empty(), patiently()).await;
    assert_eq!(sum, Ok((0, 0)));
    let down = duplex::<Double>(&client, to, stream::empty(), patiently()).await;
    assert_eq!(down.unwrap().count().await, 0);
    stop(&[&client, &server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_size_goes_through_in_items() {
    let (client, server) = pair().await;
    // Five times the largest frame, in items of a megabyte.
    let item = Bytes::from(vec![7; 1 << 20]);
    let items = stream::iter(std::iter::repeat_n(item, 80));
    let weight = upload::<Weigh>(&client, server.node_id(), items, long()).await;
    assert_eq!(weight, Ok(80 << 20));
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_caller_waits_for_a_slow_reader_instead_of_buffering() {
    let (client, server) = pair().await;
    let taken = Arc::<AtomicU64>::default();
    let items = counting(&taken);
    let to = server.node_id();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { upload::<Deaf>(&client, to, items, patiently()).await }
    });
    until("something is sent", || taken.load(Ordering::Relaxed) > 0).await;
    let mut last = 0;
    // Until nothing more is taken from the source.
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = taken.load(Ordering::Relaxed);
        if now == last {
            break;
        }
        last = now;
    }
    // Windows and buffers hold a few MiB of frames of five bytes and more.
    assert!(last < 4 << 20, "{last} items were taken");
    waiting.abort();
    until("the items are dropped", || Arc::strong_count(&taken) == 1).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn an_answer_before_the_end_stops_the_upload() {
    let (client, server) = pair().await;
    let first = Bytes::from_static(b"first");
    let items = stream::iter([first.clone()]).chain(stream::iter(std::iter::repeat(
        Bytes::from_static(b"more and more"),
    )));
    let answer = upload::<First>(&client, server.node_id(), items, patiently()).await;
    assert_eq!(answer, Ok(first));
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn an_error_amid_the_stream_ends_it_with_its_code() {
    let (client, server) = pair().await;
    let items = stream::iter(0..).then(|item| async move {
        tokio::task::yield_now().await;
        item
    });
    let down = duplex::<Fussy>(&client, server.node_id(), items, patiently()).await;
    let down: Vec<_> = down.unwrap().collect().await;
    assert_eq!(down[..3], [Ok(0), Ok(1), Ok(2)]);
    let error = down[3].as_ref().unwrap_err();
    assert_eq!((error.status, down.len()), (Status::App(0x8007), 4));
    assert_eq!(error.kind(), ErrorKind::ServerError);
    assert_eq!(
        error.canonical(),
        "nrpc:server_error: status=0x8007 message=not three"
    );
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn dropping_the_answers_cancels_the_handler_and_the_items() {
    let counters = Arc::<Counters>::default();
    let (client, server) = Cluster::new().pair(flow(&counters)).await;
    let taken = Arc::<AtomicU64>::default();
    let mut down = duplex::<Double>(&client, server.node_id(), counting(&taken), patiently())
        .await
        .unwrap();
    assert_eq!(down.next().await, Some(Ok(0)));
    drop(down);
    until("the items are dropped", || Arc::strong_count(&taken) == 1).await;
    let echo = call::<Echo>(&client, server.node_id(), &Bytes::new(), patiently()).await;
    assert_eq!(echo, Ok(Bytes::new()));
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn an_upload_ends_by_its_deadline() {
    let (client, server) = pair().await;
    let brief = CallOptions::within(Duration::from_millis(200));
    let taken = Arc::<AtomicU64>::default();
    let answer = upload::<Deaf>(&client, server.node_id(), counting(&taken), brief).await;
    assert_eq!(answer.unwrap_err().status, Status::Timeout);
    until("the items are dropped", || Arc::strong_count(&taken) == 1).await;
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn an_item_without_an_encoding_cancels_the_call_and_is_the_error() {
    let (client, server) = pair().await;
    let raw = RawCall {
        method: Sum::INFO,
        codec: Codec::Postcard,
        body: Bytes::new(),
        options: patiently(),
    };
    let broken = RpcError::internal("no form").reason(meshwork_proto::rpc::REASON_ENCODE);
    let items = stream::iter([Ok(Bytes::from_static(&[1])), Err(broken.clone())]);
    let answer = client
        .duplex_raw(server.node_id(), raw, Box::pin(items))
        .await;
    let error = answer.err().unwrap();
    assert_eq!(error, broken);
    assert_eq!(error.kind(), ErrorKind::CodecEncode);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn json_streams_as_well() {
    let (client, server) = pair().await;
    let raw = RawCall {
        method: Double::INFO,
        codec: Codec::Json,
        body: Bytes::new(),
        options: patiently(),
    };
    let items =
        stream::iter(["1", "20", "300"]).map(|item| Ok(Bytes::from_static(item.as_bytes())));
    let down = client
        .duplex_raw(server.node_id(), raw, Box::pin(items))
        .await;
    let down: Vec<Bytes> = down.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(down, ["2", "40", "600"]);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_kind_that_is_not_the_methods_is_refused() {
    let (client, server) = pair().await;
    let raw = |method| RawCall {
        method,
        codec: Codec::Json,
        body: "1".into(),
        options: patiently(),
    };
    let to = server.node_id();
    let mut unary = Sum::INFO;
    unary.kind = meshwork_proto::rpc::Kind::Unary;
    let error = client.call_raw(to, raw(unary)).await.unwrap_err();
    assert_eq!((error.status, &*error.reason), (Status::Invalid, "kind"));
    let mut bidi = Echo::INFO;
    bidi.kind = meshwork_proto::rpc::Kind::Bidi;
    let items = Box::pin(stream::empty());
    let error = client.duplex_raw(to, raw(bidi), items).await.err().unwrap();
    assert_eq!((error.status, &*error.reason), (Status::Invalid, "kind"));
    stop(&[&client, &server]).await;
}
