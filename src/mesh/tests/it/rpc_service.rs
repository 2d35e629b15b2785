//! Calls of a service wherever it is offered, and what becomes of failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_identity::NodeId;
use meshwork_mesh::{Mesh, ServeHandle, ServiceOptions};
use meshwork_proto::rpc::breaker::BreakerPolicy;
use meshwork_proto::rpc::choice::Choice;
use meshwork_proto::rpc::retry::{HedgePolicy, RetryPolicy};
use meshwork_proto::rpc::{ErrorKind, RpcError, Status};
use meshwork_proto::service::{CallOptions, Router, call};

use crate::cluster::*;
use crate::probe::patiently;

meshwork_proto::service! {
    "who";
    /// The node that answers.
    unary Name("name", Call, true): () => [u8; 32];
    /// The same, not to be repeated.
    unary Once("once", Call, false): () => [u8; 32];
    /// Counts up to the request.
    stream Up("up", Call, true): u64 => u64;
}

/// How a node behaves.
#[derive(Default)]
struct Mood {
    calls: AtomicUsize,
    /// So many calls fail as unavailable.
    fails: AtomicUsize,
    /// How long an answer takes, in milliseconds.
    takes: AtomicU64,
    /// Calls that were dropped before their end.
    dropped: AtomicUsize,
}

struct Drops(Arc<Mood>, bool);

impl Drop for Drops {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Mood {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn answer(self: Arc<Self>, local: NodeId) -> Result<[u8; 32], RpcError> {
        let mut drops = Drops(self.clone(), false);
        self.calls.fetch_add(1, Ordering::SeqCst);
        let takes = self.takes.load(Ordering::SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        drops.1 = true;
        let fails = |left: usize| left.checked_sub(1);
        match self
            .fails
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails)
        {
            Ok(_) => Err(RpcError::unavailable("in a bad mood")),
            Err(_) => Ok(*local.as_bytes()),
        }
    }
}

fn router(mood: &Arc<Mood>) -> Router {
    let (first, second) = (mood.clone(), mood.clone());
    Router::new()
        .unary::<Name, _, _>(move |cx, ()| first.clone().answer(cx.local))
        .unary::<Once, _, _>(move |cx, ()| second.clone().answer(cx.local))
        .stream::<Up, _, _>(|_, to| async move {
            let items: meshwork_proto::service::ItemStream<u64> =
                Box::pin(futures_util::stream::iter((0..to).map(Ok)));
            Ok(items)
        })
}

/// A client, and nodes that offer the service `who` to it.
struct Offered {
    client: Mesh,
    nodes: Vec<Mesh>,
    moods: Vec<Arc<Mood>>,
    handles: Vec<ServeHandle>,
}

impl Offered {
    async fn by(count: u8) -> Self {
        let cluster = Cluster::new();
        let client = cluster.node(100, Router::new());
        let mut all = Self {
            client,
            nodes: vec![],
            moods: vec![],
            handles: vec![],
        };
        for n in 1..=count {
            let mood = Arc::<Mood>::default();
            let node = cluster.node(n, Router::new());
            let handle = node.offer(router(&mood));
            node.announce(draft(&format!("node {n}"), node.local_addrs()))
                .await
                .unwrap();
            connect(&all.client, &node).await;
            all.nodes.push(node);
            all.moods.push(mood);
            all.handles.push(handle);
        }
        until("all are known", || {
            all.client.service_nodes("who").len() == usize::from(count)
        })
        .await;
        all
    }

    async fn name(&self, options: &ServiceOptions) -> Result<NodeId, RpcError> {
        let name = self.client.call_service::<Name>(&(), options).await?;
        Ok(NodeId::from_bytes(name).unwrap())
    }

    /// How many of `count` calls each node answered.
    async fn spread(&self, options: &ServiceOptions, count: usize) -> BTreeMap<NodeId, usize> {
        let mut spread = BTreeMap::new();
        for _ in 0..count {
            *spread.entry(self.name(options).await.unwrap()).or_default() += 1;
        }
        spread
    }

    fn calls(&self) -> usize {
        self.moods.iter().map(|mood| mood.calls()).sum()
    }

    async fn stop(&self) {
        stop(&[&self.client]).await;
        stop(&self.nodes.iter().collect::<Vec<_>>()).await;
    }
}

fn patient() -> ServiceOptions {
    ServiceOptions::within(PATIENCE)
}

#[tokio::test]
async fn each_choice_chooses_its_way() {
    let all = Offered::by(3).await;
    let round = all.spread(&patient().choice(Choice::RoundRobin), 30).await;
    let counts: Vec<usize> = round.values().copied().collect();
    assert_eq!(counts, [10, 10, 10]);
    let random = all.spread(&patient().choice(Choice::Random), 90).await;
    assert_eq!(random.len(), 3, "{random:?}");
    let sticky = patient().choice(Choice::Sticky(b"a user".to_vec()));
    assert_eq!(all.spread(&sticky, 20).await.len(), 1);
    let slow = all.nodes[0].node_id();
    all.moods[0].takes.store(60, Ordering::SeqCst);
    let fastest = patient().choice(Choice::LeastLatency);
    let spread = all.spread(&fastest, 60).await;
    let of_slow = spread.get(&slow).copied().unwrap_or(0);
    assert!(of_slow < 12, "the slow one answered {of_slow} of 60");
    all.stop().await;
}

#[tokio::test]
async fn the_least_loaded_node_is_the_one_with_the_fewest_calls_under_way() {
    let all = Offered::by(2).await;
    for mood in &all.moods {
        mood.takes.store(100, Ordering::SeqCst);
    }
    let options = patient().choice(Choice::LeastLoad);
    let calls = (0..20).map(|_| all.name(&options));
    let names = futures_util::future::join_all(calls).await;
    assert!(names.iter().all(Result::is_ok));
    assert_eq!(
        all.moods.iter().map(|m| m.calls()).collect::<Vec<_>>(),
        [10, 10]
    );
    all.stop().await;
}

#[tokio::test]
async fn dropping_the_handle_unregisters_and_announces_so() {
    let mut all = Offered::by(2).await;
    let gone = all.nodes[0].node_id();
    let to_gone = call::<Name>(&all.client, gone, &(), patiently()).await;
    assert_eq!(to_gone, Ok(*gone.as_bytes()));
    drop(all.handles.remove(0));
    let error = call::<Name>(&all.client, gone, &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::NotFound, "no_service")
    );
    until("it is not announced any more", || {
        all.client.service_nodes("who").len() == 1
    })
    .await;
    all.handles.clear();
    until("nobody offers it", || {
        all.client.service_nodes("who").is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = all.name(&patient()).await.unwrap_err();
    assert_eq!((error.status, &*error.reason), (Status::NoRoute, "no_node"));
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    all.stop().await;
}

#[tokio::test]
async fn a_handle_unregisters_its_own_methods_only() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(Router::new()).await;
    let mood = Arc::<Mood>::default();
    let first = server.offer(router(&mood));
    let second = server.offer(router(&mood));
    drop(first);
    call::<Name>(&client, server.node_id(), &(), patiently())
        .await
        .unwrap();
    drop(second);
    let error = call::<Name>(&client, server.node_id(), &(), patiently()).await;
    assert_eq!(error.unwrap_err().status, Status::NotFound);
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn failures_that_pass_are_tried_again_where_that_does_no_harm() {
    let all = Offered::by(2).await;
    for mood in &all.moods {
        mood.fails.store(1, Ordering::SeqCst);
    }
    all.name(&patient()).await.unwrap();
    assert_eq!(all.calls(), 3, "one at each failed");
    for mood in &all.moods {
        mood.fails.store(1, Ordering::SeqCst);
    }
    let error = all.client.call_service::<Once>(&(), &patient()).await;
    assert_eq!(error.unwrap_err().message, "in a bad mood");
    assert_eq!(all.calls(), 4, "it may not be repeated");
    for mood in &all.moods {
        mood.fails.store(0, Ordering::SeqCst);
    }
    all.moods[0].fails.store(1, Ordering::SeqCst);
    all.moods[1].fails.store(1, Ordering::SeqCst);
    let keyed = patient().key([1; 16]);
    all.client.call_service::<Once>(&(), &keyed).await.unwrap();
    assert_eq!(all.calls(), 7, "with a key it may");
    all.stop().await;
}

#[tokio::test]
async fn tries_are_bounded_by_number_and_deadline() {
    let all = Offered::by(1).await;
    all.moods[0].fails.store(1000, Ordering::SeqCst);
    let mut options = patient();
    options.breaker = None;
    options.retry = RetryPolicy {
        tries: 3,
        first: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let error = all.name(&options).await.unwrap_err();
    assert_eq!((error.status, all.calls()), (Status::Unavailable, 3));
    // The pause would be longer than what is left: the failure is told at once.
    options.call = CallOptions::within(Duration::from_secs(5));
    options.retry.first = Duration::from_mins(1);
    options.retry.longest = Duration::from_mins(1);
    let error = all.name(&options).await.unwrap_err();
    assert_eq!((error.status, all.calls()), (Status::Unavailable, 4));
    all.stop().await;
}

#[tokio::test]
async fn a_node_that_dies_is_replaced_by_another_even_where_repeats_are_harmful() {
    let all = Offered::by(2).await;
    // It says goodbye to nobody.
    all.nodes[0].shutdown(Duration::ZERO).await;
    until("the client notices", || {
        !linked(&all.client, all.nodes[0].node_id())
    })
    .await;
    let mut options = patient().choice(Choice::RoundRobin);
    options.breaker = None;
    for _ in 0..4 {
        let name = all
            .client
            .call_service::<Once>(&(), &options)
            .await
            .unwrap();
        assert_eq!(name, *all.nodes[1].node_id().as_bytes());
    }
    all.stop().await;
}

#[tokio::test]
async fn a_hedged_call_takes_the_first_answer_and_cancels_the_other() {
    let all = Offered::by(2).await;
    all.moods[0].takes.store(15_000, Ordering::SeqCst);
    let mut options = patient();
    options.hedge = Some(HedgePolicy::after(Duration::from_millis(50)));
    let mut by_slow = 0;
    while by_slow == 0 {
        let name = all.name(&options).await.unwrap();
        assert_eq!(name, all.nodes[1].node_id());
        by_slow = all.moods[0].calls();
    }
    let slow = &all.moods[0];
    until("the slow one is cancelled", || {
        slow.dropped.load(Ordering::SeqCst) == slow.calls()
    })
    .await;
    // What may not be repeated is not hedged.
    options.call.deadline = Duration::from_millis(300);
    let before = all.calls();
    let _ = all.client.call_service::<Once>(&(), &options).await;
    assert_eq!(all.calls(), before + 1);
    all.stop().await;
}

#[tokio::test]
async fn a_breaker_leaves_a_failing_node_alone_and_tries_it_again() {
    let all = Offered::by(1).await;
    let to = all.nodes[0].node_id();
    let mut options = patient();
    options.retry = RetryPolicy::NEVER;
    options.breaker = Some(BreakerPolicy {
        failures: 3,
        cooldown: Duration::from_millis(400),
        longest: Duration::from_secs(1),
    });
    all.moods[0].fails.store(3, Ordering::SeqCst);
    for _ in 0..3 {
        let error = all.client.call_node::<Name>(to, &(), &options).await;
        assert_eq!(error.unwrap_err().message, "in a bad mood");
    }
    let error = all
        .client
        .call_node::<Name>(to, &(), &options)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BreakerOpen);
    assert!(error.canonical().starts_with("nrpc:breaker_open: "));
    assert_eq!(all.calls(), 3, "it was not called");
    until_ok(|| all.client.call_node::<Name>(to, &(), &options)).await;
    assert_eq!(all.calls(), 4);
    all.stop().await;
}

#[tokio::test]
async fn calls_go_round_a_node_whose_breaker_is_open() {
    let all = Offered::by(2).await;
    all.moods[0].fails.store(1_000_000, Ordering::SeqCst);
    let mut options = patient().choice(Choice::RoundRobin);
    options.breaker = Some(BreakerPolicy {
        failures: 2,
        cooldown: Duration::from_mins(1),
        longest: Duration::from_mins(1),
    });
    for _ in 0..40 {
        assert_eq!(all.name(&options).await, Ok(all.nodes[1].node_id()));
    }
    assert_eq!(all.moods[0].calls(), 2);
    all.stop().await;
}

async fn until_ok<T, Fut>(mut attempt: impl FnMut() -> Fut) -> T
where
    Fut: Future<Output = Result<T, RpcError>>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn streams_of_a_service_are_found_as_well() {
    let all = Offered::by(2).await;
    let items = all
        .client
        .stream_service::<Up>(&5, &patient())
        .await
        .unwrap();
    let items: Vec<_> = futures_util::StreamExt::collect(items).await;
    assert_eq!(items, (0..5).map(Ok).collect::<Vec<_>>());
    all.stop().await;
}
