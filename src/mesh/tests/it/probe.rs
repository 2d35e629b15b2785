//! The service that tests call, and a peer that speaks the wire format by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use meshwork_mesh::Mesh;
use meshwork_mesh::transport::Endpoint;
use meshwork_proto::codec;
use meshwork_proto::mesh::{Present, PresentTokens};
use meshwork_proto::rpc::{Codec, Kind, ReplyTag, RequestHeader, RpcError, STREAM_RPC};
use meshwork_proto::service::{ItemStream, Method, Router};
use quinn::{Connection, RecvStream, SendStream};

use crate::cluster::Cluster;
use crate::common::*;

meshwork_proto::service! {
    "probe";
    /// Gives back what it gets.
    unary Echo("echo", Call, true): Bytes => Bytes;
    /// Counts up to the request.
    stream Count("count", Call, true): u64 => u64;
    /// Never answers.
    unary Hang("hang", Call, true): () => ();
    /// Accepts, and never says anything.
    stream Quiet("quiet", Call, true): () => ();
    /// Panics before it answers.
    unary Panic("panic", Call, true): () => ();
    /// Panics after two items.
    stream PanicLater("panic.later", Call, true): () => u64;
    /// Answers with so many bytes.
    unary Bulk("bulk", Call, true): u64 => Bytes;
    /// Only for admins.
    unary Rule("rule", Admin, true): () => ();
}

/// Counts what became of [`Hang`] and [`Quiet`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) started: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
}

struct Running(Arc<Counters>);

impl Running {
    fn new(counters: &Arc<Counters>) -> Self {
        counters.started.fetch_add(1, Ordering::SeqCst);
        Self(counters.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counters {
    pub(crate) fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }
}

pub(crate) fn router() -> Router {
    counted(&Arc::default())
}

pub(crate) fn counted(counters: &Arc<Counters>) -> Router {
    let (hanging, quiet) = (counters.clone(), counters.clone());
    Router::new()
        .unary::<Echo, _, _>(|_, bytes| async move { Ok(bytes) })
        .stream::<Count, _, _>(|_, to| async move {
            let items: ItemStream<u64> = Box::pin(stream::iter((0..to).map(Ok)));
            Ok(items)
        })
        .unary::<Hang, _, _>(move |_, ()| {
            let running = Running::new(&hanging);
            async move {
                let _running = running;
                std::future::pending().await
            }
        })
        .stream::<Quiet, _, _>(move |_, ()| {
            let running = Running::new(&quiet);
            async move {
                let items: ItemStream<()> = Box::pin(stream::pending().map(move |()| {
                    let _ = &running;
                    Ok(())
                }));
                Ok(items)
            }
        })
        .unary::<Panic, _, _>(|_, ()| async move { panic!("as the test wants it") })
        .stream::<PanicLater, _, _>(|_, ()| async move {
            let items: ItemStream<u64> = Box::pin(stream::iter(0..).map(|n| {
                assert!(n < 2, "as the test wants it");
                Ok(n)
            }));
            Ok(items)
        })
        .unary::<Bulk, _, _>(
            |_, len| async move { Ok(vec![7; usize::try_from(len).unwrap()].into()) },
        )
        .unary::<Rule, _, _>(|_, ()| async move { Ok(()) })
}

/// A peer that writes its frames by hand.
pub(crate) struct ByHand {
    pub(crate) conn: Connection,
    /// Lives as long as the connection.
    _endpoint: Endpoint,
}

impl ByHand {
    /// Dials `to` as node `n`, and presents a token with which it may call everything.
    pub(crate) async fn dial(cluster: &Cluster, n: u8, to: &Mesh) -> Self {
        let by_hand = Self::dial_silently(cluster, n, to).await;
        by_hand.present(cluster, n).await;
        by_hand
    }

    /// Dials `to` from `endpoint`, and presents as [`ByHand::dial`] does.
    pub(crate) async fn dial_from(endpoint: Endpoint, cluster: &Cluster, n: u8, to: &Mesh) -> Self {
        let addr = to.local_addrs()[0];
        let conn = endpoint.connect(addr, Some(to.node_id())).await.unwrap();
        let by_hand = Self {
            conn,
            _endpoint: endpoint,
        };
        by_hand.present(cluster, n).await;
        by_hand
    }

    async fn present(&self, cluster: &Cluster, n: u8) {
        let present = Present {
            tokens: vec![cluster.node_token(n)],
            version: "test".into(),
            addresses: vec![],
            accepts: false,
        };
        let (_, mut recv) = self
            .request(&header::<PresentTokens>(), &codec::encode(&present))
            .await;
        assert_eq!(reply(&mut recv).await.unwrap().0, ReplyTag::Item);
    }

    /// Dials `to` as node `n`, and says nothing.
    pub(crate) async fn dial_silently(cluster: &Cluster, n: u8, to: &Mesh) -> Self {
        let mut config = config(n);
        config.mesh = meshwork_identity::MeshId::of(&cluster.authority.node_id());
        let endpoint = Endpoint::bind_udp(&config, LOOPBACK).unwrap();
        let conn = endpoint
            .connect(to.local_addrs()[0], Some(to.node_id()))
            .await
            .unwrap();
        Self {
            conn,
            _endpoint: endpoint,
        }
    }

    /// Sends a whole request.
    pub(crate) async fn request(
        &self,
        header: &RequestHeader,
        body: &[u8],
    ) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.open(header).await;
        send.write_all(&frame(body)).await.unwrap();
        send.finish().unwrap();
        (send, recv)
    }

    /// Sends a request up to its header.
    pub(crate) async fn open(&self, header: &RequestHeader) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.conn.open_bi().await.unwrap();
        send.write_all(&[STREAM_RPC]).await.unwrap();
        send.write_all(&frame(&codec::encode(header)))
            .await
            .unwrap();
        (send, recv)
    }
}

pub(crate) fn header<M: Method>() -> RequestHeader {
    RequestHeader {
        id: 1,
        service: M::INFO.service.into(),
        method: M::INFO.name.into(),
        codec: Codec::Postcard,
        kind: M::INFO.kind,
        deadline_ms: None,
        idempotency_key: None,
        trace: None,
    }
}

pub(crate) fn header_named(service: &str, method: &str) -> RequestHeader {
    RequestHeader {
        service: service.into(),
        method: method.into(),
        kind: Kind::Unary,
        ..header::<Echo>()
    }
}

pub(crate) fn frame(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// The next frame of an answer; `None` at the end of the stream.
pub(crate) async fn reply(recv: &mut RecvStream) -> Option<(ReplyTag, Vec<u8>)> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.ok()?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    recv.read_exact(&mut bytes).await.unwrap();
    Some((ReplyTag::from_byte(bytes[0]).unwrap(), bytes[1..].to_vec()))
}

/// The error that an answer consists of.
pub(crate) async fn refusal(recv: &mut RecvStream) -> RpcError {
    let (tag, bytes) = reply(recv).await.expect("an answer");
    assert_eq!(tag, ReplyTag::Error);
    codec::decode(&bytes, 4096).unwrap()
}

/// Settings of a call that a test expects to end long before.
pub(crate) fn patiently() -> meshwork_proto::service::CallOptions {
    meshwork_proto::service::CallOptions::within(Duration::from_secs(20))
}
