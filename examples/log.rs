//! A log on disk: append, read, follow, and go on after a restart.
//!
//! `cargo run --example log`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meshwork_mesh::SystemClock;
use meshwork_mesh::log::{Durability, Log, LogConfig, Retention};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(follow(dir.path()))?;
    restart(dir.path())
}

fn open(dir: &Path) -> Result<Log, Box<dyn Error>> {
    let config = LogConfig {
        retention: Retention {
            bytes: Some(1 << 30),
            age: Some(Duration::from_hours(24 * 7)),
            ..Retention::default()
        },
        ..LogConfig::default()
    };
    Ok(Log::open(
        dir.join("orders"),
        Arc::new(SystemClock),
        config,
    )?)
}

/// A reader gets what is there, then what is appended, without gap or repetition.
async fn follow(dir: &Path) -> Result<(), Box<dyn Error>> {
    let dir = dir.to_owned();
    // Opening and closing wait for the disk, which a thread of the runtime must not.
    let log = tokio::task::spawn_blocking(move || open(&dir).map_err(|error| error.to_string()))
        .await??;
    for n in 0..500 {
        // In the system's hands when this returns: it outlives a kill of this process.
        log.append(format!("early order {n}"), Durability::Never)?;
    }
    let mut tail = log.tail(0)?;
    let reader = tokio::spawn(async move {
        let mut orders = Vec::new();
        while let Some(record) = tail.next().await? {
            assert_eq!(record.seq, orders.len() as u64);
            orders.push(record.payload);
        }
        Ok::<_, meshwork_mesh::log::LogError>(orders)
    });
    // All of a batch or nothing of it, on disk when this returns.
    let batch = ["an order", "its first line", "its second line"];
    let seqs = log.append_batch_async(&batch, Durability::Each).await?;
    println!("the order has the numbers {seqs:?}");
    assert_eq!(seqs, 500..503);

    tokio::task::spawn_blocking(move || log.close()).await??;
    let orders = reader.await??;
    println!("the reader got {} records", orders.len());
    assert_eq!(orders.len(), 503);
    Ok(())
}

fn restart(dir: &Path) -> Result<(), Box<dyn Error>> {
    let log = open(dir)?;
    assert_eq!((log.first_seq(), log.next_seq()), (0, 503));
    let last: Result<Vec<_>, _> = log.read_range(500..503)?.collect();
    for record in last? {
        let text = String::from_utf8_lossy(&record.payload);
        println!("{} at {}: {text}", record.seq, record.time);
    }
    Ok(())
}
