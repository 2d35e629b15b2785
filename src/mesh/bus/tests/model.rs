//! Every mode against a model that is too simple to be wrong, step by random step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::bus::{
    Batch, Bus, BusConfig, Consumer, Cursor, IngestError, Order, Overflow, Start, Want,
};

/// One shard of the model: every event ever kept, and which of them are gone.
#[derive(Debug, Default)]
struct Lane {
    events: Vec<(u64, Vec<u8>)>,
    first: usize,
}

#[derive(Debug, Default, Clone)]
struct Reader {
    read: Vec<usize>,
    done: Vec<usize>,
    start: Vec<usize>,
    taken: u64,
    passed: u64,
    missed: u64,
}

/// The bus as its documentation says it is.
#[derive(Debug)]
struct Model {
    config: BusConfig,
    lanes: Vec<Lane>,
    readers: BTreeMap<usize, Reader>,
    stamp: u64,
    accepted: u64,
    delivered: u64,
    newest: u64,
    oldest: u64,
    refused: u64,
}

impl Model {
    fn held(&self, lane: usize) -> (usize, usize) {
        let lane = &self.lanes[lane];
        let held = &lane.events[lane.first..];
        (held.len(), held.iter().map(|e| e.1.len()).sum())
    }

    fn fits(&self, lane: usize, events: usize, bytes: usize) -> bool {
        let (held, held_bytes) = self.held(lane);
        held + events <= self.config.max_events && held_bytes + bytes <= self.config.max_bytes
    }

    /// Takes a batch; `None` when the producer gets an error.
    fn ingest(&mut self, lane: usize, batch: &[Vec<u8>]) -> Option<(u64, u64)> {
        let bytes: usize = batch.iter().map(Vec::len).sum();
        let never = bytes > self.config.max_bytes || batch.len() > self.config.max_events;
        let fails = self.config.overflow == Overflow::FailProducer;
        if never || (fails && !self.fits(lane, batch.len(), bytes)) {
            self.refused += batch.len() as u64;
            return None;
        }
        let (mut kept, mut dropped) = (0, 0);
        for event in batch {
            self.accepted += 1;
            if self.config.overflow == Overflow::DropNewest
                && (dropped > 0 || !self.fits(lane, 1, event.len()))
            {
                self.newest += 1;
                dropped += 1;
                continue;
            }
            while !self.fits(lane, 1, event.len()) {
                let oldest = self.lanes[lane].first;
                let read = |reader: &Reader| reader.read[lane] > oldest;
                let all = !self.readers.is_empty() && self.readers.values().all(read);
                *(if all {
                    &mut self.delivered
                } else {
                    &mut self.oldest
                }) += 1;
                self.lanes[lane].first += 1;
                for reader in self.readers.values_mut() {
                    if reader.read[lane] <= oldest {
                        reader.read[lane] = oldest + 1;
                        reader.missed += 1;
                    }
                }
            }
            self.lanes[lane].events.push((self.stamp, event.clone()));
            self.stamp += 1;
            kept += 1;
        }
        Some((kept, dropped))
    }

    /// Hands out from `from` on, in the order of the stamps or of the lanes.
    fn read(&mut self, who: usize, from: &[usize], limit: usize) -> Vec<(usize, usize)> {
        let mut all: Vec<(u64, usize, usize)> = Vec::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            for at in from[index].max(lane.first)..lane.events.len() {
                all.push((lane.events[at].0, index, at));
            }
        }
        all.sort_unstable();
        all.truncate(limit);
        let given: Vec<(usize, usize)> = all.into_iter().map(|(_, lane, at)| (lane, at)).collect();
        let reader = self.readers.get_mut(&who).unwrap();
        for &(lane, at) in &given {
            if at >= reader.read[lane] {
                // A cursor that points further than this consumer has read skips.
                reader.passed += (at - reader.read[lane]) as u64;
                reader.taken += 1;
                reader.read[lane] = at + 1;
            }
        }
        given
    }

    fn confirm(&mut self, who: usize, to: &[usize]) {
        let reader = self.readers.get_mut(&who).unwrap();
        for (lane, to) in to.iter().enumerate() {
            reader.passed += to.saturating_sub(reader.read[lane]) as u64;
            reader.read[lane] = reader.read[lane].max(*to);
            reader.done[lane] = reader.done[lane].max(*to);
        }
        self.release();
    }

    fn release(&mut self) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let done = self.readers.values().map(|reader| reader.done[index]).min();
            let done = done.unwrap_or(0).max(lane.first);
            self.delivered += (done - lane.first) as u64;
            lane.first = done;
        }
    }

    fn join(&mut self, who: usize, from: Vec<usize>) {
        let mut reader = Reader {
            read: from.clone(),
            done: from.clone(),
            start: from,
            ..Reader::default()
        };
        for (index, lane) in self.lanes.iter().enumerate() {
            let gone = lane.first.saturating_sub(reader.read[index]);
            reader.missed += gone as u64;
            reader.read[index] += gone;
        }
        self.readers.insert(who, reader);
        self.release();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ingest {
        key: u8,
        sizes: Vec<usize>,
    },
    Take {
        who: usize,
        limit: usize,
    },
    Poll {
        who: usize,
        limit: usize,
        old: Option<prop::sample::Index>,
    },
    Confirm {
        who: usize,
        old: prop::sample::Index,
    },
    Join {
        who: usize,
        start: u8,
        old: prop::sample::Index,
    },
    Leave {
        who: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        5 => (0u8..8, prop::collection::vec(0usize..40, 1..6))
            .prop_map(|(key, sizes)| Step::Ingest { key, sizes }),
        2 => (0usize..3, 1usize..20).prop_map(|(who, limit)| Step::Take { who, limit }),
        2 => (0usize..3, 1usize..20, prop::option::of(index()))
            .prop_map(|(who, limit, old)| Step::Poll { who, limit, old }),
        1 => (0usize..3, index()).prop_map(|(who, old)| Step::Confirm { who, old }),
        1 => (0usize..3, 0u8..3, index()).prop_map(|(who, start, old)| Step::Join { who, start, old }),
        1 => (0usize..3).prop_map(|who| Step::Leave { who }),
    ]
}

struct Run {
    bus: Bus,
    model: Model,
    consumers: BTreeMap<usize, Consumer>,
    /// Cursors given out, and the places that they stand for.
    cursors: Vec<(Cursor, Vec<usize>)>,
    next_byte: u8,
}

impl Run {
    fn new(shards: usize, overflow: Overflow) -> Self {
        let config = BusConfig {
            shards,
            max_events: 12,
            max_bytes: 150,
            overflow,
        };
        Self {
            bus: Bus::with_id(config.clone(), 1).unwrap(),
            model: Model {
                lanes: (0..shards).map(|_| Lane::default()).collect(),
                config,
                readers: BTreeMap::new(),
                stamp: 0,
                accepted: 0,
                delivered: 0,
                newest: 0,
                oldest: 0,
                refused: 0,
            },
            consumers: BTreeMap::new(),
            cursors: vec![(
                Cursor {
                    bus: 1,
                    next: vec![0; shards],
                },
                vec![0; shards],
            )],
            next_byte: 0,
        }
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Ingest { key, sizes } => self.ingest(key, &sizes),
            Step::Take { who, limit } => {
                if let Some(consumer) = self.consumers.get(&who) {
                    let from = self.model.readers[&who].read.clone();
                    let batch = consumer.take(&Want::up_to(limit).order(Order::Time));
                    let given = self.model.read(who, &from, limit);
                    self.compare(&batch, &given);
                    self.model.confirm(who, &ends(&from, &given));
                }
            }
            Step::Poll { who, limit, old } => self.poll(who, limit, old),
            Step::Confirm { who, old } => {
                if let Some(consumer) = self.consumers.get(&who) {
                    let (cursor, places) = old.get(&self.cursors);
                    consumer.confirm(cursor).unwrap();
                    self.model.confirm(who, places);
                }
            }
            Step::Join { who, start, old } => self.join(who, start, old),
            Step::Leave { who } => {
                self.consumers.remove(&who);
                self.model.readers.remove(&who);
                self.model.release();
            }
        }
    }

    fn ingest(&mut self, key: u8, sizes: &[usize]) {
        let batch: Vec<Vec<u8>> = sizes
            .iter()
            .map(|size| {
                self.next_byte = self.next_byte.wrapping_add(1);
                vec![self.next_byte; *size]
            })
            .collect();
        // Which shard is the bus's secret; an empty bus of the same shape gives it away.
        let twin = Bus::new(self.model.config.clone()).unwrap();
        let outcome = if let [event] = &batch[..] {
            twin.ingest_keyed(key, b"").unwrap();
            self.bus.ingest_keyed(key, event)
        } else {
            twin.ingest(b"").unwrap();
            self.bus.ingest_batch(&batch)
        };
        let lane = twin
            .stats()
            .shards
            .iter()
            .position(|counts| counts.buffered == 1);
        let lane = lane.unwrap();
        let expected = self.model.ingest(lane, &batch);
        match (outcome, expected) {
            (Ok(taken), Some(expected)) => assert_eq!((taken.kept, taken.dropped), expected),
            (Err(IngestError::Full | IngestError::BatchTooLarge { .. }), None) => (),
            (outcome, expected) => panic!("{outcome:?}, but the model says {expected:?}"),
        }
    }

    fn poll(&mut self, who: usize, limit: usize, old: Option<prop::sample::Index>) {
        let Some(consumer) = self.consumers.get(&who) else {
            return;
        };
        let want = Want::up_to(limit).order(Order::Time);
        let (batch, from) = match old {
            None => (
                consumer.poll(None, &want).unwrap(),
                self.model.readers[&who].done.clone(),
            ),
            Some(old) => {
                let (cursor, places) = old.get(&self.cursors).clone();
                let text: Cursor = cursor.to_string().parse().unwrap();
                self.model.confirm(who, &places);
                (consumer.poll(Some(&text), &want).unwrap(), places)
            }
        };
        let given = self.model.read(who, &from, limit);
        self.compare(&batch, &given);
        let firsts: Vec<usize> = self.model.lanes.iter().map(|lane| lane.first).collect();
        let gone = from
            .iter()
            .zip(&firsts)
            .map(|(from, first)| first.saturating_sub(*from));
        assert_eq!(batch.missed(), gone.sum::<usize>() as u64);
        let from: Vec<usize> = from.iter().zip(firsts).map(|(a, b)| *a.max(&b)).collect();
        self.cursors
            .push((batch.cursor().clone(), ends(&from, &given)));
    }

    fn join(&mut self, who: usize, start: u8, old: prop::sample::Index) {
        if self.consumers.contains_key(&who) {
            return;
        }
        let (cursor, places) = old.get(&self.cursors).clone();
        let lanes = self.model.lanes.iter();
        let (start, from) = match start {
            0 => (Start::Oldest, lanes.map(|lane| lane.first).collect()),
            1 => (Start::Now, lanes.map(|lane| lane.events.len()).collect()),
            _ => (Start::At(cursor), places),
        };
        let consumer = self.bus.consumer_at(&format!("c{who}"), &start).unwrap();
        self.consumers.insert(who, consumer);
        self.model.join(who, from);
    }

    fn compare(&self, batch: &Batch, given: &[(usize, usize)]) {
        let got: Vec<(usize, usize, &[u8])> = batch
            .iter()
            .map(|e| {
                (
                    e.shard as usize,
                    usize::try_from(e.sequence).unwrap(),
                    e.payload,
                )
            })
            .collect();
        let expected: Vec<(usize, usize, &[u8])> = given
            .iter()
            .map(|&(lane, at)| (lane, at, &*self.model.lanes[lane].events[at].1))
            .collect();
        assert_eq!(got, expected);
    }

    fn check(&self) {
        let stats = self.bus.stats();
        let model = &self.model;
        assert!(stats.total.add_up(), "{stats:?}");
        assert_eq!(stats.total.accepted, model.accepted);
        assert_eq!(stats.total.delivered, model.delivered);
        assert_eq!(stats.total.dropped_newest, model.newest);
        assert_eq!(stats.total.dropped_oldest, model.oldest);
        assert_eq!(stats.total.refused, model.refused);
        for (lane, counts) in stats.shards.iter().enumerate() {
            let (events, bytes) = model.held(lane);
            assert!(counts.add_up());
            assert!(counts.buffered <= 12 && counts.buffered_bytes <= 150);
            assert_eq!(
                (counts.buffered, counts.buffered_bytes),
                (events as u64, bytes as u64)
            );
        }
        assert_eq!(stats.consumers.len(), model.readers.len());
        for (name, counts) in &stats.consumers {
            let reader = &model.readers[&name[1..].parse().unwrap()];
            let lanes = model.lanes.iter().zip(&reader.read);
            let waiting: usize = lanes.map(|(lane, read)| lane.events.len() - read).sum();
            let lanes = model.lanes.iter().zip(&reader.start);
            let offered: usize = lanes.map(|(lane, start)| lane.events.len() - start).sum();
            assert!(counts.add_up(), "{counts:?}");
            assert_eq!(
                (
                    counts.taken,
                    counts.passed,
                    counts.missed,
                    counts.waiting,
                    counts.offered
                ),
                (
                    reader.taken,
                    reader.passed,
                    reader.missed,
                    waiting as u64,
                    offered as u64
                )
            );
        }
    }
}

/// Behind what was given.
fn ends(from: &[usize], given: &[(usize, usize)]) -> Vec<usize> {
    let mut ends = from.to_vec();
    for &(lane, at) in given {
        ends[lane] = at + 1;
    }
    ends
}

fn run(shards: usize, overflow: Overflow, steps: Vec<Step>) {
    let mut run = Run::new(shards, overflow);
    for step in steps {
        run.go(step);
        run.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn drop_newest(shards in 0u32..3, steps in prop::collection::vec(step(), 1..120)) {
        run(1 << shards, Overflow::DropNewest, steps);
    }

    #[test]
    fn drop_oldest(shards in 0u32..3, steps in prop::collection::vec(step(), 1..120)) {
        run(1 << shards, Overflow::DropOldest, steps);
    }

    #[test]
    fn fail_producer(shards in 0u32..3, steps in prop::collection::vec(step(), 1..120)) {
        run(1 << shards, Overflow::FailProducer, steps);
    }
}
