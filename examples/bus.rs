//! The event bus: buffer events, read them with a cursor, send them on.
//!
//! `cargo run --example bus`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::thread;

use meshwork_mesh::bus::export::{ExportConfig, Exporter, Parcel, Sink, SinkError};
use meshwork_mesh::bus::{Bus, BusConfig, Consumer, Cursor, Filter, Order, Overflow, Want};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let bus = Bus::new(BusConfig {
        shards: 2,
        max_events: 1_000,
        overflow: Overflow::DropOldest,
        ..BusConfig::default()
    })?;
    let reader = bus.consumer("reader")?;
    let exported = bus.consumer("exporter")?;

    // Any thread gives events. Those of one key keep their order, whoever gives them.
    thread::scope(|scope| {
        for door in ["front", "back"] {
            let bus = &bus;
            scope.spawn(move || {
                for visitor in 0..100 {
                    let event = json!({"door": door, "visitor": visitor}).to_string();
                    let taken = bus.ingest_keyed(door, event.as_bytes());
                    taken.expect("this bus drops the oldest, and refuses nothing");
                }
            });
        }
    });

    read(&reader)?;
    let sent = export(&bus, exported)?;
    println!("exported {} events, the first as {:?}", sent.len(), sent[0]);

    // Nothing is lost without being counted.
    let total = bus.stats().total;
    assert_eq!(
        total.accepted,
        total.delivered + total.dropped() + total.buffered
    );
    assert_eq!(
        (total.accepted, total.delivered, sent.len()),
        (200, 200, 200)
    );
    Ok(())
}

/// Page by page. A cursor is a text: keep it, and go on from there. What is before it may then be
/// forgotten; until then the same question has the same answer.
fn read(reader: &Consumer) -> Result<(), Box<dyn Error>> {
    let front: Filter = serde_json::from_value(json!({"path": "door", "value": "front"}))?;
    let want = Want::up_to(30).order(Order::Time).filter(front);
    let (mut cursor, mut visitors): (Option<String>, Vec<u64>) = (None, Vec::new());
    loop {
        let place = cursor.as_deref().map(str::parse::<Cursor>).transpose()?;
        let page = reader.poll(place.as_ref(), &want)?;
        if page.is_empty() {
            reader.confirm(page.cursor())?;
            break;
        }
        for event in page.iter() {
            let event: serde_json::Value = event.json()?;
            visitors.extend(event["visitor"].as_u64());
        }
        cursor = Some(page.cursor().to_string());
    }
    println!("{} visitors at the front door, in order", visitors.len());
    assert!(visitors.into_iter().eq(0..100));
    Ok(())
}

/// Ids and events, in order.
type Arrived = Vec<(String, Vec<u8>)>;

/// A system that takes events; `RedisSink` and `NatsSink` are others.
struct Shelf(Arc<Mutex<Arrived>>);

impl Sink for Shelf {
    async fn send(&mut self, parcel: &Parcel) -> Result<(), SinkError> {
        let events = parcel.iter().map(|(id, event)| (id, event.to_vec()));
        self.0.lock().expect("nobody panics with it").extend(events);
        Ok(())
    }
}

/// Sends until the bus is closed and everything has arrived.
fn export(bus: &Bus, consumer: Consumer) -> Result<Arrived, Box<dyn Error>> {
    let shelf = Arc::<Mutex<Arrived>>::default();
    let exporter = Exporter::new(consumer, Shelf(shelf.clone()), ExportConfig::default())?;
    bus.close();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(exporter.run(CancellationToken::new()))?;
    let arrived = shelf.lock().expect("nobody panics with it").clone();
    Ok(arrived)
}
