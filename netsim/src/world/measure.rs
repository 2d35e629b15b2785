//! What a scenario looks at: paths between pairs, and whether all agree on who is there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use meshwork_identity::NodeId;
use meshwork_proto::ports::Directory;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::{
    actor::Actor,
    log::LoudLog,
    spec::{AgreeSpec, Expected, PairSpec},
    stage::Stage,
    traffic::echo,
};
use crate::{nat::theory::direct_possible, scenario::Outcome};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The deadline of the first call of a pair, which is repeated until it is answered.
const FIRST_CALL: Duration = Duration::from_secs(5);

/// What is looked at until the end.
pub(super) struct Measures {
    log: LoudLog,
}

/// Begins to look.
pub(super) fn begin(
    stage: &Arc<Stage>,
    tasks: &TaskTracker,
    log: &LoudLog,
    end: Instant,
) -> Measures {
    let start = Instant::now();
    for spec in stage.world.pair.clone() {
        let stage = stage.clone();
        tasks.spawn(async move {
            sleep_until(start + spec.start).await;
            watch_pair(&stage, &spec, end).await;
        });
    }
    for spec in stage.world.agree.clone() {
        let stage = stage.clone();
        tasks.spawn(async move {
            sleep_until(start + spec.after).await;
            wait_until_all_agree(&stage, &spec, end).await;
        });
    }
    Measures { log: log.clone() }
}

impl Measures {
    /// Adds what was measured during the run.
    pub(super) async fn finish(self, stage: &Stage, outcome: &mut Outcome) {
        let mut left = 0;
        for actor in &stage.actors {
            left += actor.bury().await;
        }
        let book = std::mem::take(&mut *stage.book());
        outcome.checks = book.checks;
        outcome.broken = book.broken;
        outcome.note = book.note;
        if left > 0 {
            outcome.broken(format!("{left} dead nodes left tasks that never end"));
        }
        let (_, lines) = self.log.heard();
        if outcome.note.is_empty() && !lines.is_empty() {
            outcome.note = format!("logged: {}", lines.join("; "));
        }
    }
}

/// Measures of two nodes: whether the first call ever succeeds (`connected`) and after how long
/// (`connect time`), and if theory or the scenario expects a direct path: whether it comes to that
/// (`direct`), after how long (`direct time`), and whether no try failed before (`first try`).
async fn watch_pair(stage: &Stage, spec: &PairSpec, end: Instant) {
    let (a, b) = (&stage.cast(&spec.a)[0], &stage.cast(&spec.b)[0]);
    let begun = Instant::now();
    let connected = loop {
        match echo(a, b, FIRST_CALL).await {
            Ok(()) => break true,
            Err(error) => stage.happened(&format!("{} calls {}: {error}", a.name, b.name)),
        }
        if Instant::now() + FIRST_CALL >= end {
            break false;
        }
        sleep(LOOK).await;
    };
    let took = begun.elapsed();
    // When they were for the first time, and whether they are at the end.
    let (mut first, mut direct) = (None, false);
    while Instant::now() + LOOK < end {
        let before = std::mem::replace(&mut direct, is_direct(a, b) && is_direct(b, a));
        if before != direct {
            stage.happened(&format!("{} and {} direct: {direct}", a.name, b.name));
        }
        if direct {
            first.get_or_insert(Instant::now());
        }
        sleep(LOOK).await;
    }
    let works = echo(a, b, FIRST_CALL).await.is_ok() && echo(b, a, FIRST_CALL).await.is_ok();
    let expected = match spec.direct {
        Expected::Always => Some(true),
        Expected::Never => Some(false),
        Expected::AsTheory => Some(direct_possible(&a.chain(), &b.chain())),
        Expected::Either => None,
    };
    let chains = [a, b].map(|actor| {
        actor
            .chain()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    });
    stage.happened(&format!(
        "{} behind {:?} and {} behind {:?}: works {works}, direct {}, {} + {} punches failed",
        a.name,
        chains[0],
        b.name,
        chains[1],
        direct,
        failed_punches(a),
        failed_punches(b)
    ));
    let mut book = stage.book();
    book.measure("connected", share(connected && works));
    book.time("connect time", took);
    if expected == Some(false) && first.is_some() {
        let what = format!(
            "{:?} and {:?} are direct, beyond all theory",
            a.chain(),
            b.chain()
        );
        book.broken(what);
    }
    if expected == Some(true) {
        let failed = failed_punches(a) + failed_punches(b);
        let soon = first.is_some_and(|at| at <= begun + spec.first_try);
        book.measure("direct", share(direct));
        book.measure("first try", share(soon && failed == 0));
        if let Some(at) = first {
            book.time("direct time", at - begun);
        }
    }
}

/// Measures how long it takes until all of a set know and find each other and nobody else
/// (under the name that the scenario gives).
async fn wait_until_all_agree(stage: &Stage, spec: &AgreeSpec, end: Instant) {
    let who = stage.cast_all(&spec.who);
    let all: BTreeSet<NodeId> = who.iter().map(|actor| actor.id()).collect();
    let begun = Instant::now();
    loop {
        let dissent: Vec<_> = who.iter().filter(|actor| !agrees(actor, &all)).collect();
        if dissent.is_empty() {
            stage.happened(&format!("{:?} agree", spec.who));
            break;
        }
        if Instant::now() + LOOK >= end {
            let account = account(stage, dissent[0], &all);
            stage
                .book()
                .broken(format!("{dissent:?} never agree: {account}"));
            break;
        }
        sleep(LOOK).await;
    }
    stage.book().time(&spec.name, begun.elapsed());
}

fn agrees(actor: &Actor, all: &BTreeSet<NodeId>) -> bool {
    let Some(mesh) = actor.mesh() else {
        return false;
    };
    let known: BTreeSet<NodeId> = mesh.nodes().iter().map(|(node, _)| *node).collect();
    let linked_with_others = mesh.peers().iter().any(|view| !all.contains(&view.node));
    known == *all && !linked_with_others
}

/// How what a node knows differs from what it should.
fn account(stage: &Stage, actor: &Actor, all: &BTreeSet<NodeId>) -> String {
    let Some(mesh) = actor.mesh() else {
        return format!("{} does not run", actor.name);
    };
    let known: BTreeSet<NodeId> = mesh.nodes().iter().map(|(node, _)| *node).collect();
    let linked: BTreeSet<NodeId> = mesh.peers().iter().map(|view| view.node).collect();
    let names = |ids: Vec<&NodeId>| -> Vec<&str> {
        let of = |id: &&NodeId| stage.actors.iter().find(|actor| actor.id() == **id);
        ids.iter()
            .filter_map(of)
            .map(|actor| actor.name.as_str())
            .collect()
    };
    format!(
        "{} lacks {:?}, knows {:?} too many, is linked with {:?}",
        actor.name,
        names(all.difference(&known).collect()),
        names(known.difference(all).collect()),
        names(linked.iter().collect()),
    )
}

fn is_direct(from: &Actor, to: &Actor) -> bool {
    let peer = from.mesh().and_then(|mesh| mesh.peer(&to.id()));
    peer.is_some_and(|view| view.path == "direct")
}

fn failed_punches(actor: &Actor) -> u64 {
    actor.mesh().map_or(0, |mesh| {
        let stats = mesh.status().traversal;
        stats.punches_attempted - stats.punches_succeeded.min(stats.punches_attempted)
    })
}

fn share(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
