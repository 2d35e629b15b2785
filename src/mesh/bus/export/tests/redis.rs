//! A real Redis: what is exported through lost answers and a death is read once and in order.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::server::{Lossy, PATIENCE, Server, skipped};
use crate::bus::export::{
    ExportConfig, Exporter, RedisConfig, RedisSink, RedisUrlError, SinkError,
};
use crate::bus::{Bus, BusConfig, RedisStreamDedup};

pub(super) const STREAM: &str = "meshwork:test";

pub(super) fn sink(addr: std::net::SocketAddr) -> RedisSink {
    let config = RedisConfig {
        url: format!("redis://{addr}/"),
        stream: STREAM.to_owned(),
        max_len: None,
    };
    RedisSink::new(config).unwrap()
}

fn config(outbox: &Path) -> ExportConfig {
    ExportConfig {
        outbox: Some(outbox.to_owned()),
        events: 100,
        least_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        ..ExportConfig::default()
    }
}

fn events(range: std::ops::Range<u32>) -> Vec<String> {
    range
        .map(|event| format!("{{\"event\":{event}}}"))
        .collect()
}

/// The stream from end to end, page by page as a consumer would: all entries, and those that a
/// [`RedisStreamDedup`] lets through.
pub(super) async fn read(server: &Server) -> (usize, Vec<String>) {
    let client = redis::Client::open(format!("redis://{}/", server.addr)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut dedup = RedisStreamDedup::new(100_000);
    let (mut entries, mut fresh) = (0, Vec::new());
    let mut from = "-".to_owned();
    loop {
        let page: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(STREAM)
            .arg(&from)
            .arg("+")
            .arg("COUNT")
            .arg(1_000)
            .query_async(&mut connection)
            .await
            .unwrap();
        let Some(last) = page.ids.last() else {
            return (entries, fresh);
        };
        // Without the bracket the last entry would be read again for ever.
        from = format!("({}", last.id);
        entries += page.ids.len();
        for entry in &page.ids {
            let id: String = entry.get("dedup_id").unwrap();
            if !dedup.is_duplicate(&id) {
                fresh.push(entry.get("d").unwrap());
            }
        }
    }
}

#[tokio::test]
async fn lost_answers_repeat_entries_that_readers_can_tell() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::redis(folder.path()).await;
    // Greeting and a few parcels, then an answer is lost; at the fifth connection all is well.
    let lossy = Lossy::start(server.addr, |number| match number {
        0..4 => 4_000,
        _ => usize::MAX,
    })
    .await;
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let config = config(&folder.path().join("outbox"));
    let exporter = Exporter::new(consumer, sink(lossy.addr), config).unwrap();
    let stats = exporter.stats();
    let all = events(0..2_000);
    bus.ingest_batch(&all).unwrap();
    bus.close();
    let run = tokio::time::timeout(PATIENCE, exporter.run(CancellationToken::new()));
    run.await.expect("the export ends").unwrap();
    let (entries, fresh) = read(&server).await;
    assert_eq!(fresh, all);
    assert_eq!(lossy.broken(), 4);
    assert!(
        entries > 2_000,
        "the lost answers were to transactions that happened"
    );
    assert_eq!(stats.sent(), 2_000);
    assert!(stats.failures() >= 4);
}

#[tokio::test]
async fn a_parcel_under_way_at_death_is_sent_under_the_same_ids() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::redis(folder.path()).await;
    let outbox = folder.path().join("outbox");
    let all = events(0..300);
    // The first life ends after its parcel arrived and before the answer came.
    let deaf = Lossy::start(server.addr, |_| 2_000).await;
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let mut slow = config(&outbox);
    slow.least_pause = PATIENCE;
    slow.longest_pause = PATIENCE;
    let exporter = Exporter::new(consumer, sink(deaf.addr), slow).unwrap();
    let stats = exporter.stats();
    let death = CancellationToken::new();
    let running = tokio::spawn(exporter.run(death.clone()));
    bus.ingest_batch(&all).unwrap();
    let failed = async {
        while stats.failures() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed)
        .await
        .expect("an answer gets lost");
    death.cancel();
    running.await.unwrap().unwrap();
    let (before, arrived) = read(&server).await;
    assert!(!arrived.is_empty() && arrived.len() < all.len());
    assert_eq!(before, arrived.len());

    // The second one sends what is in the outbox, and then what its producer has left.
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let exporter = Exporter::new(consumer, sink(server.addr), config(&outbox)).unwrap();
    let stats = exporter.stats();
    bus.ingest_batch(&all[arrived.len()..]).unwrap();
    bus.close();
    let run = tokio::time::timeout(PATIENCE, exporter.run(CancellationToken::new()));
    run.await.expect("the export ends").unwrap();
    assert_eq!(stats.resumed(), 100);
    let (entries, fresh) = read(&server).await;
    assert_eq!(fresh, all);
    assert_eq!(entries, all.len() + 100);
}

#[tokio::test]
async fn a_stream_that_is_none_is_refused_for_good() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::redis(folder.path()).await;
    let client = redis::Client::open(format!("redis://{}/", server.addr)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("SET");
    let set = set
        .arg(STREAM)
        .arg("text")
        .query_async::<()>(&mut connection);
    set.await.unwrap();
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let config = config(&folder.path().join("outbox"));
    let exporter = Exporter::new(consumer, sink(server.addr), config).unwrap();
    bus.ingest(b"x").unwrap();
    let run = tokio::time::timeout(PATIENCE, exporter.run(CancellationToken::new()));
    let error = run.await.expect("the export ends").unwrap_err();
    assert!(matches!(
        error,
        crate::bus::export::ExportError::Refused(SinkError::Fatal(_))
    ));
}

#[tokio::test]
async fn an_exporter_waits_for_a_server_that_comes_late_and_trims_the_stream() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gone = Server::redis(folder.path()).await;
    let addr = gone.addr;
    drop(gone);
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let sink_config = RedisConfig {
        url: format!("redis://{addr}/"),
        stream: STREAM.to_owned(),
        max_len: Some(1_000),
    };
    let sink = RedisSink::new(sink_config).unwrap();
    let config = config(&folder.path().join("outbox"));
    let exporter = Exporter::new(consumer, sink, config).unwrap();
    let stats = exporter.stats();
    let running = tokio::spawn(exporter.run(CancellationToken::new()));
    bus.ingest_batch(&events(0..5_000)).unwrap();
    let failed = async {
        while stats.failures() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed)
        .await
        .expect("nobody answers");
    assert_eq!(
        bus.stats().total.delivered,
        0,
        "what did not arrive is not delivered"
    );
    let server = Server::redis_at(folder.path(), addr).await;
    assert_eq!(bus.drain(PATIENCE).await.abandoned, 0);
    running.await.unwrap().unwrap();
    let (entries, fresh) = read(&server).await;
    assert!((1_000..1_300).contains(&entries), "{entries}");
    assert_eq!(
        fresh,
        events(5_000 - u32::try_from(entries).unwrap()..5_000)
    );
}

#[test]
fn a_url_is_refused_where_it_cannot_be_kept_to() {
    let refused = |url: &str| {
        let config = RedisConfig {
            url: url.to_owned(),
            stream: STREAM.to_owned(),
            max_len: None,
        };
        RedisSink::new(config).unwrap_err()
    };
    for url in [
        "rediss://:secret@localhost/",
        "REDISS://localhost",
        "valkeys://localhost",
    ] {
        let error = refused(url);
        assert!(matches!(error, RedisUrlError::Tls), "{url}: {error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(matches!(refused("http://localhost"), RedisUrlError::NoUrl));
    assert!(matches!(refused("localhost:6379"), RedisUrlError::NoUrl));
    assert!(matches!(
        refused("redis://localhost/x"),
        RedisUrlError::Part(_)
    ));
}
