//! What the mesh is used for while things happen: streams and calls.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use meshwork_proto::{
    rpc::RpcError,
    service::{CallOptions, ItemStream, Router, call, stream as open_stream},
};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use super::{
    actor::Actor,
    spec::{CallsSpec, StreamSpec},
    stage::Stage,
};

/// How long a stream may take to open.
const OPENING: Duration = Duration::from_secs(10);
/// How long the last items of a stream may take.
const TAIL: Duration = Duration::from_secs(15);

/// What a caller wants to be sent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[allow(
    unreachable_pub,
    reason = "methods and their types are public wherever they are"
)]
pub struct Wanted {
    /// How many items.
    pub count: u64,
    /// Bytes of each.
    pub size: u32,
    /// Time between two.
    pub every: Duration,
}

meshwork_proto::service! {
    "world";
    /// Gives back what it gets.
    unary Echo("echo", Call, true): Bytes => Bytes;
    /// Sends items at a steady pace.
    stream Feed("feed", Call, true): Wanted => Bytes;
}

/// What every node serves.
pub(super) fn router() -> Router {
    Router::new()
        .unary::<Echo, _, _>(|_, bytes| async move { Ok(bytes) })
        .stream::<Feed, _, _>(|_, wanted| async move { Ok(feed(wanted)) })
}

/// Starts all streams and calls of the scenario; they end at `end` at the latest.
pub(super) fn begin(stage: &Arc<Stage>, tasks: &TaskTracker, end: Instant) {
    let start = Instant::now();
    for spec in stage.world.stream.clone() {
        let stage = stage.clone();
        tasks.spawn(async move {
            sleep_until(start + spec.start).await;
            follow(&stage, &spec, end).await;
        });
    }
    for (number, spec) in stage.world.calls.clone().into_iter().enumerate() {
        let to = stage.cast_all(&spec.to);
        for actor in stage.cast_all(&spec.from) {
            let (stage, spec, to) = (stage.clone(), spec.clone(), to.clone());
            tasks.spawn(async move {
                let chance = stage.chance(&format!("calls {number} {}", actor.name));
                keep_calling(&stage, &spec, &actor, &to, start, end, chance).await;
            });
        }
    }
}

/// One call whose answer is checked.
pub(super) async fn echo(from: &Actor, to: &Actor, within: Duration) -> Result<(), RpcError> {
    let Some(mesh) = from.mesh() else {
        return Err(RpcError::invalid("the caller does not run"));
    };
    let bytes = Bytes::from(format!("{} to {}", from.name, to.name));
    let answer = call::<Echo>(&mesh, to.id(), &bytes, CallOptions::within(within)).await?;
    if answer == bytes {
        Ok(())
    } else {
        Err(RpcError::invalid("the echo differs"))
    }
}

fn feed(wanted: Wanted) -> ItemStream<Bytes> {
    let start = Instant::now();
    Box::pin(stream::unfold(0, move |number| {
        let Wanted { count, size, every } = wanted;
        async move {
            if number == count {
                return None;
            }
            let turn = u32::try_from(number).unwrap_or(u32::MAX);
            sleep_until(start + every * turn).await;
            Some((Ok(item(number, size as usize)), number + 1))
        }
    }))
}

/// An item is its number, and bytes that follow from it.
fn item(number: u64, size: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().to_vec();
    let [.., seed] = number.wrapping_mul(31).to_be_bytes();
    let rest = (seed..=u8::MAX).chain(0..seed).cycle();
    bytes.extend(rest.take(size.saturating_sub(bytes.len())));
    bytes.into()
}

/// Reads a stream to its end, and measures the longest pause between two items (beyond the pace) as
/// `stall`, missing items as `lost`, and whether it ended before its time as `dropped`.
async fn follow(stage: &Stage, spec: &StreamSpec, end: Instant) {
    let (from, to) = (&stage.cast(&spec.from)[0], &stage.cast(&spec.to)[0]);
    let count = spec.length.as_nanos() / spec.every.as_nanos().max(1);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let wanted = Wanted {
        count,
        size: u32::try_from(spec.size).unwrap_or(u32::MAX),
        every: spec.every,
    };
    let (received, stall, problem) = read(stage, from, to, spec, wanted, end).await;
    let mut book = stage.book();
    book.time("stall", stall);
    #[allow(clippy::cast_precision_loss, reason = "items are few")]
    book.measure("lost", (count - received) as f64);
    book.measure("dropped", f64::from(u8::from(problem.is_some())));
    drop(book);
    if let Some(problem) = problem {
        let what = format!(
            "stream {} from {}: {received} of {count} items, then {problem}",
            spec.to, spec.from
        );
        stage.happened(&what);
        stage.book().note = what;
    }
}

async fn read(
    stage: &Stage,
    from: &Actor,
    to: &Actor,
    spec: &StreamSpec,
    wanted: Wanted,
    end: Instant,
) -> (u64, Duration, Option<String>) {
    let Some(mesh) = from.mesh() else {
        return (0, Duration::ZERO, Some("the caller does not run".into()));
    };
    let count = wanted.count;
    let patience = (Instant::now() + spec.length + TAIL).min(end);
    let opened = open_stream::<Feed>(&mesh, to.id(), &wanted, CallOptions::within(OPENING)).await;
    let mut items = match opened {
        Ok(items) => items,
        Err(error) => return (0, Duration::ZERO, Some(format!("no stream: {error}"))),
    };
    let (mut received, mut stall, mut last) = (0, Duration::ZERO, Instant::now());
    while received < count {
        let next = match timeout_at(patience, items.next()).await {
            Ok(Some(Ok(next))) => next,
            Ok(Some(Err(error))) => return (received, stall, Some(error.to_string())),
            Ok(None) => return (received, stall, Some("its end".into())),
            Err(_) => return (received, stall, Some("nothing for long".into())),
        };
        if next != item(received, spec.size) {
            return (
                received,
                stall,
                Some(format!("item {received} is not what was sent")),
            );
        }
        let pause = last.elapsed().saturating_sub(spec.every);
        if pause > Duration::from_millis(300) {
            stage.happened(&format!(
                "{} waited {pause:?} for item {received} of {}",
                from.name, to.name
            ));
        }
        stall = stall.max(pause);
        last = Instant::now();
        received += 1;
    }
    (received, stall, None)
}

/// Calls others time and again: the share that is answered is measured as `answered`, how long
/// answers take as `answer time`.
async fn keep_calling(
    stage: &Stage,
    spec: &CallsSpec,
    from: &Actor,
    to: &[Arc<Actor>],
    start: Instant,
    end: Instant,
    mut chance: impl Rng,
) {
    // Not all at once.
    let phase = spec.every.mul_f64(chance.random());
    sleep_until(start + spec.start + phase).await;
    let until = end.min(start + spec.until);
    let others: Vec<_> = to.iter().filter(|other| other.id() != from.id()).collect();
    let (mut made, mut answered, mut times) = (0u32, 0u32, Vec::new());
    while Instant::now() < until && !others.is_empty() {
        let other = others[chance.random_range(0..others.len())];
        // Who is dead is not called, and does not call.
        if from.mesh().is_some() && other.mesh().is_some() {
            let begun = Instant::now();
            made += 1;
            match echo(from, other, spec.within).await {
                Ok(()) => {
                    answered += 1;
                    times.push(begun.elapsed().as_secs_f64());
                }
                Err(error) => {
                    stage.happened(&format!("{} calls {}: {error}", from.name, other.name));
                }
            }
        }
        sleep(spec.every).await;
    }
    let mut book = stage.book();
    if made > 0 {
        book.measure("answered", f64::from(answered) / f64::from(made));
    }
    book.measure_all("answer time", times);
}
