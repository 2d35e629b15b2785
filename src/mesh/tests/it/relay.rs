//! The relay role, seen by peers that write their frames by hand: what is handed on, what is not, and
//! what that costs the relay.

use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{MeshId, NodeId};
use meshwork_mesh::{Mesh, RelayConfig};
use meshwork_netsim::{LinkModel, Sim};
use meshwork_proto::mesh::RelayDrops;
use meshwork_proto::service::Router;
use quinn::Connection;
use tokio::time::{sleep, timeout};

use crate::cluster::*;
use crate::common::{config, node_id, sim_addr, sim_endpoint};
use crate::probe::ByHand;

const SEND: u8 = 2;
const DELIVER: u8 = 3;
/// The only piece of a packet.
const WHOLE: u8 = 1;
/// How long a test waits for something that must not come.
const QUIET: Duration = Duration::from_millis(300);

fn frame(to: NodeId, number: u16, payload: &[u8]) -> Bytes {
    let header = [SEND].into_iter().chain(*to.as_bytes());
    let header = header.chain([WHOLE]).chain(number.to_be_bytes());
    header.chain(payload.iter().copied()).collect()
}

/// A relay on the loopback, and members 1 and 2 of the mesh, linked with it.
struct Bench {
    cluster: Cluster,
    relay: Mesh,
    one: ByHand,
    two: ByHand,
}

impl Bench {
    async fn new(rules: Option<RelayConfig>) -> Self {
        let cluster = Cluster::new();
        let mut config = cluster.config(9, vec![cluster.node_token(9)]);
        config.relay = rules;
        let relay = cluster.start_with(9, config, Router::new());
        let one = ByHand::dial(&cluster, 1, &relay).await;
        let two = ByHand::dial(&cluster, 2, &relay).await;
        until("both are linked", || {
            linked(&relay, node_id(1)) && linked(&relay, node_id(2))
        })
        .await;
        Self {
            cluster,
            relay,
            one,
            two,
        }
    }

    fn drops(&self) -> RelayDrops {
        self.relay.traversal_stats().relay_drops
    }

    /// Waits until the relay has counted as much; nothing else may have been dropped.
    async fn dropped(&self, expected: RelayDrops) {
        until("the drops are counted", || self.drops() == expected).await;
    }
}

/// The next datagram that is no gossip.
async fn next(conn: &Connection) -> Bytes {
    loop {
        let datagram = conn.read_datagram().await.unwrap();
        if datagram[0] != 1 {
            return datagram;
        }
    }
}

async fn assert_quiet(conn: &Connection) {
    let got = timeout(QUIET, next(conn)).await;
    assert!(got.is_err(), "nothing was to come: {got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_is_handed_on_with_its_true_sender() {
    let bench = Bench::new(Some(RelayConfig::default())).await;
    let sent = frame(node_id(2), 7, b"opaque");
    bench.one.conn.send_datagram(sent.clone()).unwrap();
    let got = next(&bench.two.conn).await;
    assert_eq!(got[0], DELIVER);
    assert_eq!(got[1..33], *node_id(1).as_bytes());
    assert_eq!(got[33..], sent[33..], "what is in it is nobody's business");
    // A sender cannot write another's name: a ready-made delivery is none for anybody else.
    let forged = [&[DELIVER][..], node_id(3).as_bytes(), &[WHOLE, 0, 8], b"x"].concat();
    bench.one.conn.send_datagram(forged.into()).unwrap();
    assert_quiet(&bench.two.conn).await;
    let stats = bench.relay.traversal_stats();
    assert_eq!((stats.relayed_bytes, stats.relay_dropped), (6, 0));
    stop(&[&bench.relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_handed_on_is_counted_and_never_answered() {
    let bench = Bench::new(Some(RelayConfig::default())).await;
    let sender = &bench.one.conn;
    let mut expected = RelayDrops::default();
    // For whom nobody knows, for the relay itself, for the sender itself.
    for to in [node_id(77), bench.relay.node_id()] {
        sender.send_datagram(frame(to, 1, b"x")).unwrap();
        expected.unknown_peer += 1;
        bench.dropped(expected).await;
    }
    let broken = [
        frame(node_id(1), 1, b"x"),
        frame(node_id(2), 1, b""),
        Bytes::from_static(&[SEND]),
        Bytes::from_static(&[SEND, 1, 2, 3]),
    ];
    for datagram in broken {
        sender.send_datagram(datagram).unwrap();
        expected.malformed += 1;
        bench.dropped(expected).await;
    }
    assert_quiet(sender).await;
    assert_quiet(&bench.two.conn).await;
    stop(&[&bench.relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_neither_send_nor_receive() {
    let bench = Bench::new(Some(RelayConfig::default())).await;
    let stranger = ByHand::dial_silently(&bench.cluster, 5, &bench.relay).await;
    let datagram = frame(node_id(2), 1, b"x");
    stranger.conn.send_datagram(datagram).unwrap();
    let mut expected = RelayDrops {
        not_member: 1,
        ..RelayDrops::default()
    };
    bench.dropped(expected).await;
    // It presented nothing, and so is not found; without a token that holds, it is no member.
    let datagram = frame(node_id(5), 1, b"x");
    bench.one.conn.send_datagram(datagram).unwrap();
    expected.unknown_peer += 1;
    bench.dropped(expected).await;
    assert_quiet(&bench.two.conn).await;
    assert_quiet(&stranger.conn).await;
    stop(&[&bench.relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_relayed_no_more() {
    let bench = Bench::new(Some(RelayConfig::default())).await;
    let revocation = bench
        .cluster
        .revocation(meshwork_identity::Revoked::Node(node_id(1)));
    bench.relay.revoke(revocation).await.unwrap();
    // Cut off; whatever it still gets through is not handed on.
    let _ = bench.one.conn.send_datagram(frame(node_id(2), 1, b"x"));
    bench.one.conn.closed().await;
    assert_quiet(&bench.two.conn).await;
    stop(&[&bench.relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_cut_to_its_rate() {
    const BURST: u64 = 50_000;
    let rules = RelayConfig {
        always: true,
        rate: 1_000,
        burst: BURST,
        ..RelayConfig::default()
    };
    let bench = Bench::new(Some(rules)).await;
    let payload = [7; 1000];
    for number in 0..2_000 {
        let datagram = frame(node_id(2), number, &payload);
        bench.one.conn.send_datagram_wait(datagram).await.unwrap();
    }
    until("the flood has arrived", || bench.drops().over_rate > 0).await;
    let mut got = 0;
    while timeout(QUIET, next(&bench.two.conn)).await.is_ok() {
        got += 1;
    }
    // The burst, and what a slow machine lets trickle in after it.
    let stats = bench.relay.traversal_stats();
    assert!(got > 0 && stats.relayed_bytes >= 1000 * got);
    assert!(stats.relayed_bytes < 2 * BURST, "{stats:?}");
    // Who floods hurts itself: another peer's frames pass.
    let datagram = frame(node_id(1), 1, b"still here");
    bench.two.conn.send_datagram(datagram).unwrap();
    assert!(next(&bench.one.conn).await.ends_with(b"still here"));
    stop(&[&bench.relay]).await;
}

#[test]
fn a_receiver_that_reads_nothing_costs_the_relay_no_more_than_its_buffer() {
    /// What a connection buffers of datagrams that are to be sent.
    const BUFFER: u64 = 256 << 10;
    let sim = Sim::new(1, LinkModel::default());
    let net = sim.net();
    sim.block_on(async {
        let cluster = Cluster::simulated(&net);
        let mut rules = cluster.config(9, vec![cluster.node_token(9)]);
        rules.relay = Some(RelayConfig {
            always: true,
            rate: 1 << 30,
            burst: 1 << 30,
            total_rate: 1 << 32,
        });
        let relay = cluster.start_with(9, rules, Router::new());
        let endpoint = |n| {
            let mut settings = config(n);
            settings.mesh = MeshId::of(&cluster.authority.node_id());
            sim_endpoint(&net, n, settings)
        };
        let one = ByHand::dial_from(endpoint(1), &cluster, 1, &relay).await;
        let _two = ByHand::dial_from(endpoint(2), &cluster, 2, &relay).await;
        until("both are linked", || {
            linked(&relay, node_id(1)) && linked(&relay, node_id(2))
        })
        .await;
        net.partition(sim_addr(2), sim_addr(9));
        let payload = [7; 1000];
        for number in 0..4_000 {
            let datagram = frame(node_id(2), number, &payload);
            one.conn.send_datagram_wait(datagram).await.unwrap();
        }
        sleep(Duration::from_secs(5)).await;
        let stats = relay.traversal_stats();
        assert!(stats.relay_drops.congested > 1_000, "{stats:?}");
        assert!(stats.relayed_bytes < 2 * BUFFER, "{stats:?}");
        stop(&[&relay]).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_relay_hands_nothing_on() {
    let bench = Bench::new(None).await;
    let datagram = frame(node_id(2), 1, b"x");
    bench.one.conn.send_datagram(datagram).unwrap();
    let expected = RelayDrops {
        not_serving: 1,
        ..RelayDrops::default()
    };
    bench.dropped(expected).await;
    assert_quiet(&bench.two.conn).await;
    stop(&[&bench.relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_no_known_type_end_the_connection() {
    for unknown in [&[0u8][..], &[9, 1, 2], &[]] {
        let bench = Bench::new(None).await;
        let datagram = Bytes::copy_from_slice(unknown);
        bench.one.conn.send_datagram(datagram).unwrap();
        let closed = timeout(PATIENCE, bench.one.conn.closed()).await.unwrap();
        let quinn::ConnectionError::ApplicationClosed(close) = closed else {
            panic!("closed as {closed}");
        };
        assert_eq!(close.error_code, 8u32.into());
        assert!(bench.two.conn.close_reason().is_none());
        stop(&[&bench.relay]).await;
    }
}
