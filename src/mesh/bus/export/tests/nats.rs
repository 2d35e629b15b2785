//! A real `JetStream`: what is exported through lost answers and a death is stored once and in order.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{self, stream::Stream};
use tokio_util::sync::CancellationToken;

use super::server::{Lossy, PATIENCE, Server, skipped};
use crate::bus::export::{ExportConfig, Exporter, NatsConfig, NatsSink};
use crate::bus::{Bus, BusConfig};

fn sink(addr: std::net::SocketAddr) -> NatsSink {
    NatsSink::new(NatsConfig::new(
        &format!("nats://{addr}"),
        "EVENTS",
        "events.all",
    ))
}

fn config(outbox: &Path) -> ExportConfig {
    ExportConfig {
        outbox: Some(outbox.to_owned()),
        events: 100,
        patience: Duration::from_secs(2),
        least_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        ..ExportConfig::default()
    }
}

fn events(count: u32) -> Vec<String> {
    (0..count)
        .map(|event| format!("{{\"event\":{event}}}"))
        .collect()
}

/// Ids and payloads of the stream, in order.
async fn read(server: &Server) -> Vec<(String, String)> {
    let client = async_nats::connect(server.addr.to_string()).await.unwrap();
    let mut stream: Stream = jetstream::new(client).get_stream("EVENTS").await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut stored = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let id = message.headers.get("Nats-Msg-Id").unwrap().to_string();
        stored.push((id, String::from_utf8(message.payload.to_vec()).unwrap()));
    }
    stored
}

fn assert_once(stored: &[(String, String)], all: &[String]) {
    let payloads: Vec<&String> = stored.iter().map(|(_, payload)| payload).collect();
    assert_eq!(payloads, all.iter().collect::<Vec<_>>());
    let numbers: Vec<&str> = stored
        .iter()
        .map(|(id, _)| id.split_once(':').unwrap().1)
        .collect();
    let expected: Vec<String> = (0..all.len()).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected);
}

#[tokio::test]
async fn lost_answers_leave_no_trace_in_the_stream() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nats(&folder.path().join("nats")).await;
    // Some of the answers to a parcel come back, others not; at the fifth connection all is well.
    let lossy = Lossy::start(server.addr, |number| match number {
        0..5 => 9_000 + 4_000 * usize::try_from(number).unwrap(),
        _ => usize::MAX,
    })
    .await;
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("nats").unwrap();
    let config = config(&folder.path().join("outbox"));
    let exporter = Exporter::new(consumer, sink(lossy.addr), config).unwrap();
    let stats = exporter.stats();
    let all = events(1_000);
    bus.ingest_batch(&all).unwrap();
    bus.close();
    let run = tokio::time::timeout(PATIENCE, exporter.run(CancellationToken::new()));
    run.await.expect("the export ends").unwrap();
    assert!(lossy.broken() >= 3, "{}", lossy.broken());
    assert!(stats.failures() > 0);
    assert_once(&read(&server).await, &all);
}

#[tokio::test]
async fn a_parcel_under_way_at_death_is_stored_once() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nats(&folder.path().join("nats")).await;
    let outbox = folder.path().join("outbox");
    let all = events(300);
    // The server hears everything of the first life, and its answers stop in the first parcel.
    let deaf = Lossy::start(server.addr, |_| 6_000).await;
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("nats").unwrap();
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
    let delivered = usize::try_from(bus.stats().total.delivered).unwrap();
    let stored = read(&server).await.len();
    assert!(stored > delivered, "{stored} stored, {delivered} answered");

    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("nats").unwrap();
    let exporter = Exporter::new(consumer, sink(server.addr), config(&outbox)).unwrap();
    let pending = exporter.pending().unwrap().len();
    bus.ingest_batch(&all[delivered + pending..]).unwrap();
    bus.close();
    let run = tokio::time::timeout(PATIENCE, exporter.run(CancellationToken::new()));
    run.await.expect("the export ends").unwrap();
    assert_once(&read(&server).await, &all);
}
