//! A process that exports to a real Redis and is killed, again and again, at whatever instruction.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::redis::{read, sink};
use super::server::{PATIENCE, Server, skipped};
use crate::bus::export::{ExportConfig, Exporter};
use crate::bus::{Bus, BusConfig};

const EVENTS: u64 = 30_000;
const KILLS: u64 = 25;
/// Tells the child, this program run again, where the server is.
const SERVER: &str = "MESHWORK_TEST_BUS_SERVER";
/// And where its outbox is.
const OUTBOX: &str = "MESHWORK_TEST_BUS_OUTBOX";

#[tokio::test]
async fn a_killed_exporter_goes_on_where_it_was() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::redis(folder.path()).await;
    let outbox = folder.path().join("outbox");
    let mut killed = 0;
    for round in 0..KILLS {
        let mut child = spawn(&server, &outbox);
        // Spread over the start and the work of the child; nothing depends on where it is hit.
        tokio::time::sleep(Duration::from_millis(10 + round * 37 % 120)).await;
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut last = spawn(&server, &outbox);
    let end = tokio::task::spawn_blocking(move || last.wait().unwrap());
    let end = tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the last child ends");
    assert!(end.unwrap().success());
    assert!(killed > 0);
    let (entries, fresh) = read(&server).await;
    let expected: Vec<String> = (0..EVENTS).map(|event| event.to_string()).collect();
    assert_eq!(
        fresh.len(),
        expected.len(),
        "of {entries} entries, after {killed} kills"
    );
    assert_eq!(fresh, expected);
}

fn spawn(server: &Server, outbox: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=1"])
        .arg(
            concat!(module_path!(), "::child")
                .split_once("::")
                .unwrap()
                .1,
        )
        .env(SERVER, server.addr.to_string())
        .env(OUTBOX, outbox)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test by itself: the process to be killed.
#[tokio::test]
async fn child() {
    let (Ok(addr), Some(outbox)) = (std::env::var(SERVER), std::env::var_os(OUTBOX)) else {
        return;
    };
    let config = ExportConfig {
        outbox: Some(outbox.into()),
        events: 50,
        ..ExportConfig::default()
    };
    let bus = Bus::new(BusConfig::default()).unwrap();
    let consumer = bus.consumer("redis").unwrap();
    let exporter = Exporter::new(consumer, sink(addr.parse().unwrap()), config).unwrap();
    for event in exporter.next_number()..EVENTS {
        bus.ingest(event.to_string().as_bytes()).unwrap();
    }
    bus.close();
    exporter.run(CancellationToken::new()).await.unwrap();
}
