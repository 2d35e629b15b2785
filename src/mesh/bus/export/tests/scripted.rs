//! Exporters against a sink that does what a script says: every loss, and every death.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::bus::export::{ExportConfig, ExportError, Exporter, Parcel, Sink, SinkError};
use crate::bus::{Bus, BusConfig, RedisStreamDedup};

/// What becomes of one attempt.
#[derive(Debug, Clone, Copy)]
enum Act {
    Arrive,
    /// Nothing arrives, and an error comes back.
    Fail,
    /// All arrives, and the answer gets lost.
    Lose,
    /// So many events arrive before the connection breaks.
    Break(usize),
    /// Nothing arrives, and nothing comes back.
    Hang,
    /// All arrives, and then this process dies.
    Die,
    /// This process dies before anything arrives.
    DieFirst,
}

/// The other side, as it is seen by everybody.
#[derive(Debug, Default)]
struct Far {
    script: VecDeque<Act>,
    /// Ids and payloads, in the order of arrival, repetitions and all.
    entries: Vec<(String, Vec<u8>)>,
    fatal: bool,
}

#[derive(Debug, Clone)]
struct Scripted {
    far: Arc<Mutex<Far>>,
    death: CancellationToken,
}

impl Sink for Scripted {
    async fn send(&mut self, parcel: &Parcel) -> Result<(), SinkError> {
        let (act, fatal) = {
            let mut far = self.far.lock().unwrap();
            (far.script.pop_front().unwrap_or(Act::Arrive), far.fatal)
        };
        let arriving = match act {
            Act::Arrive | Act::Lose | Act::Die => usize::MAX,
            Act::Break(events) => events,
            Act::Fail | Act::Hang | Act::DieFirst => 0,
        };
        let entries = parcel.iter().take(arriving);
        let entries = entries.map(|(id, payload)| (id, payload.to_vec()));
        self.far.lock().unwrap().entries.extend(entries);
        match act {
            Act::Arrive => return Ok(()),
            Act::Die | Act::DieFirst => self.death.cancel(),
            _ => (),
        }
        if matches!(act, Act::Hang | Act::Die | Act::DieFirst) {
            std::future::pending::<()>().await;
        }
        if fatal {
            return Err(SinkError::Fatal("no".into()));
        }
        Err(SinkError::Transient("broken".into()))
    }

    fn max_event(&self) -> usize {
        100
    }
}

fn config(outbox: Option<&Path>) -> ExportConfig {
    ExportConfig {
        outbox: outbox.map(Path::to_owned),
        events: 7,
        patience: Duration::from_secs(5),
        ..ExportConfig::default()
    }
}

fn exporter(
    bus: &Bus,
    far: &Arc<Mutex<Far>>,
    outbox: Option<&Path>,
) -> (Exporter<Scripted>, CancellationToken) {
    let death = CancellationToken::new();
    let sink = Scripted {
        far: far.clone(),
        death: death.clone(),
    };
    let consumer = bus.consumer("export").unwrap();
    (
        Exporter::new(consumer, sink, config(outbox)).unwrap(),
        death,
    )
}

/// What a reader with a [`RedisStreamDedup`] makes of it.
fn read(far: &Mutex<Far>) -> Vec<Vec<u8>> {
    let mut dedup = RedisStreamDedup::default();
    let far = far.lock().unwrap();
    let fresh = far.entries.iter().filter(|(id, _)| !dedup.is_duplicate(id));
    fresh.map(|(_, payload)| payload.clone()).collect()
}

/// No id ever stands for two events.
fn assert_ids_are_honest(far: &Mutex<Far>) {
    let mut known = BTreeMap::new();
    for (id, payload) in &far.lock().unwrap().entries {
        assert_eq!(
            known.entry(id.clone()).or_insert_with(|| payload.clone()),
            payload,
            "{id}"
        );
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Arrive),
        2 => Just(Act::Fail),
        2 => Just(Act::Lose),
        2 => (0usize..7).prop_map(Act::Break),
        1 => Just(Act::Hang),
        2 => Just(Act::Die),
        1 => Just(Act::DieFirst),
    ]
}

/// Runs of one exporter, each ended by the script's next death; the producer is durable and repeats
/// what the bus had not confirmed when it died, less what the outbox had.
async fn lives(script: Vec<Act>, events: u32) {
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("outbox");
    let far = Arc::new(Mutex::new(Far {
        script: script.into(),
        ..Far::default()
    }));
    let all: Vec<Vec<u8>> = (0..events)
        .map(|event| event.to_le_bytes().to_vec())
        .collect();
    let mut from = 0;
    for _life in 0..64 {
        let bus = Bus::new(BusConfig::default()).unwrap();
        let (exporter, death) = exporter(&bus, &far, Some(&outbox));
        let resumed = exporter.pending().map_or(0, Parcel::len);
        // What is in the outbox is on its way already.
        let start = from + resumed;
        for event in &all[start..] {
            bus.ingest(event).unwrap();
        }
        bus.close();
        let stats = exporter.stats();
        exporter.run(death.clone()).await.unwrap();
        let delivered = usize::try_from(bus.stats().total.delivered).unwrap();
        if !death.is_cancelled() {
            assert_eq!(stats.sent(), (all.len() - from) as u64);
            assert_eq!(delivered, all.len() - start);
            assert_eq!(read(&far), all);
            assert_ids_are_honest(&far);
            return;
        }
        if stats.resumed() == resumed as u64 {
            from = start + delivered;
        }
    }
    panic!("the script has fewer deaths than that");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_event_arrives_once_through_losses_and_deaths(
        script in prop::collection::vec(act(), 0..30),
        events in 0u32..80,
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(lives(script, events));
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_outbox_ids_are_stable_over_retries() {
    let far = Arc::new(Mutex::new(Far {
        script: [Act::Lose, Act::Break(3), Act::Fail, Act::Hang].into(),
        ..Far::default()
    }));
    let bus = Bus::new(BusConfig::default()).unwrap();
    let (exporter, stop) = exporter(&bus, &far, None);
    let stats = exporter.stats();
    for event in 0..20u32 {
        bus.ingest(&event.to_le_bytes()).unwrap();
    }
    bus.close();
    exporter.run(stop).await.unwrap();
    assert_eq!(read(&far).len(), 20);
    assert_eq!((stats.sent(), stats.failures()), (20, 4));
    assert_eq!(far.lock().unwrap().entries.len(), 7 + 3 + 20);
    assert_ids_are_honest(&far);
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_is_dropped_and_counted() {
    let far = Arc::default();
    let bus = Bus::new(BusConfig::default()).unwrap();
    let (exporter, stop) = exporter(&bus, &far, None);
    let stats = exporter.stats();
    bus.ingest_batch(&[&[1; 101][..], &[2; 100], &[3; 200]])
        .unwrap();
    bus.close();
    exporter.run(stop).await.unwrap();
    assert_eq!(read(&far), [vec![2; 100]]);
    assert_eq!((stats.sent(), stats.too_large()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_ends_it_and_frees_the_bus() {
    let far = Arc::new(Mutex::new(Far {
        script: [Act::Fail].into(),
        fatal: true,
        ..Far::default()
    }));
    let bus = Bus::new(BusConfig::default()).unwrap();
    let (exporter, stop) = exporter(&bus, &far, None);
    bus.ingest(b"x").unwrap();
    let error = exporter.run(stop).await.unwrap_err();
    assert!(matches!(error, ExportError::Refused(SinkError::Fatal(_))));
    assert!(bus.stats().consumers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_exporter_keeps_up_with_a_live_bus_and_ends_with_it() {
    let far = Arc::new(Mutex::new(Far {
        script: [Act::Fail, Act::Arrive, Act::Lose].into(),
        ..Far::default()
    }));
    let config = BusConfig {
        max_events: 10,
        ..BusConfig::default()
    };
    let bus = Bus::new(config).unwrap();
    let (exporter, stop) = exporter(&bus, &far, None);
    let running = tokio::spawn(exporter.run(stop));
    for event in 0..100u32 {
        bus.send(&event.to_le_bytes()).await.unwrap();
    }
    assert_eq!(bus.drain(Duration::from_mins(1)).await.abandoned, 0);
    running.await.unwrap().unwrap();
    assert_eq!(read(&far).len(), 100);
}
