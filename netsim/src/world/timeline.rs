//! What happens to a mesh, in the order that the scenario says.

use std::{sync::Arc, time::Duration};

use meshwork_identity::{Psk, Revocation, RevocationNotice, Revoked, Timestamp};
use meshwork_proto::psk::{PskRotation, SignedPskRotation};
use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::{
    actor::Actor,
    attack,
    log::LoudLog,
    spec::{Action, CutSpec},
    stage::Stage,
};
use crate::{Host, Outage, Wire};

/// Time for the tasks of whoever died to let go of what they hold.
const LETTING_GO: Duration = Duration::from_millis(1);

/// Lets everything happen in its time.
pub(super) fn begin(stage: &Arc<Stage>, tasks: &TaskTracker, log: &LoudLog, end: Instant) {
    let start = Instant::now();
    let mut chance = stage.chance("timeline");
    let mut events: Vec<(Duration, Action)> = stage
        .world
        .event
        .iter()
        .map(|event| {
            let at = chance.random_range(event.at.clone());
            (at, event.action.clone())
        })
        .collect();
    events.sort_by_key(|(at, _)| *at);
    let (stage, log, inner) = (stage.clone(), log.clone(), tasks.clone());
    tasks.spawn(async move {
        for (at, action) in events {
            sleep_until(start + at).await;
            if Instant::now() >= end {
                return;
            }
            stage.happened(&format!("now: {action:?}"));
            if let Err(problem) = act(&stage, &inner, &log, action).await {
                stage.book().broken(problem);
            }
        }
    });
}

async fn act(
    stage: &Arc<Stage>,
    tasks: &TaskTracker,
    log: &LoudLog,
    action: Action,
) -> Result<(), String> {
    match action {
        Action::Start(who) => start(stage, &who, true)?,
        Action::Restart(who) => {
            crash(stage, &who).await;
            start(stage, &who, true)?;
        }
        Action::RestartEmpty(who) => {
            crash(stage, &who).await;
            stage
                .cast_all(&who)
                .iter()
                .for_each(|actor| actor.empty_disk());
            start(stage, &who, true)?;
        }
        Action::RestartUntold(who) => {
            crash(stage, &who).await;
            start(stage, &who, false)?;
        }
        Action::Crash(who) => crash(stage, &who).await,
        Action::Stop(who) => {
            for actor in stage.cast_all(&who) {
                actor.stop().await;
            }
        }
        Action::Pause { who, length } => pause(stage, tasks, &who, length),
        Action::ClockJump { who, by } => {
            stage
                .cast_all(&who)
                .iter()
                .for_each(|actor| actor.clock.jump(by));
        }
        Action::Move { who, to } => {
            for actor in stage.cast(&who) {
                stage.relocate(&actor, to.as_deref());
            }
        }
        Action::Cut(cut) => cut_off(stage, &cut, true),
        Action::Mend(cut) => cut_off(stage, &cut, false),
        Action::Access { who, wire } => {
            for actor in stage.cast_all(&who) {
                stage.net.set_uplink(&actor.host, &wire);
                stage.net.set_downlink(&actor.host, &wire);
            }
        }
        Action::BlackholeV6 => stage.net.blackhole_v6(true),
        Action::RestartGateway(site) => {
            for gateway in stage.gateways(&site) {
                stage.net.restart_gateway(gateway);
            }
        }
        Action::Revoke { who, at } => revoke(stage, &who, &at).await?,
        Action::RotatePsk { at, overlap } => rotate(stage, &at, overlap)?,
        Action::Attack(attack) => attack::begin(stage, tasks, log, &attack),
    }
    Ok(())
}

fn start(stage: &Stage, who: &[String], told: bool) -> Result<(), String> {
    for actor in stage.cast_all(who) {
        stage.start(&actor, told)?;
    }
    Ok(())
}

async fn crash(stage: &Stage, who: &[String]) {
    stage.cast_all(who).iter().for_each(|actor| actor.crash());
    sleep(LETTING_GO).await;
}

fn pause(stage: &Stage, tasks: &TaskTracker, who: &[String], length: Duration) {
    for actor in stage.cast_all(who) {
        actor.host.pause();
        tasks.spawn(async move {
            sleep(length).await;
            actor.host.resume();
        });
    }
}

fn cut_off(stage: &Stage, cut: &CutSpec, on: bool) {
    let (from, to) = (stage.cast_all(&cut.from), stage.cast_all(&cut.to));
    let hosts = |actors: &[Arc<Actor>]| -> Vec<Host> {
        actors.iter().map(|actor| actor.host.clone()).collect()
    };
    let (from, to) = (hosts(&from), hosts(&to));
    let (from, to): (Vec<_>, Vec<_>) = (from.iter().collect(), to.iter().collect());
    let outage = match (cut.out, cut.well) {
        (Some(out), Some(well)) => Outage::Flapping { out, well },
        _ => Outage::Always,
    };
    let mut directions = vec![(&from, &to)];
    if cut.both {
        directions.push((&to, &from));
    }
    for (from, to) in directions {
        if on {
            stage.net.cut(from, to, outage);
        } else {
            stage.net.mend(from, to);
        }
    }
}

async fn revoke(stage: &Stage, who: &str, at: &str) -> Result<(), String> {
    for revoked in stage.cast(who) {
        let notice = RevocationNotice {
            what: Revoked::Node(revoked.id()),
            issued_at: stage.now(),
            keep_until: Timestamp::MAX,
        };
        let statement = Revocation::by_authority(&stage.authority, &notice)
            .map_err(|error| format!("the revocation of {who}: {error}"))?;
        let mesh = stage.cast(at)[0].mesh();
        let mesh = mesh.ok_or_else(|| format!("{at} shall heed a revocation and does not run"))?;
        mesh.revoke(statement)
            .await
            .map_err(|error| format!("{at} revokes {who}: {error}"))?;
    }
    Ok(())
}

fn rotate(stage: &Stage, at: &str, overlap: Duration) -> Result<(), String> {
    let now = stage.now();
    let rotation = PskRotation {
        epoch: now.as_secs(),
        psk: Psk::from_bytes(stage.seed_bytes("new psk", 0)),
        from: now.saturating_add(overlap / 4),
        until: now.saturating_add(overlap),
    };
    let signed = SignedPskRotation::by_authority(&stage.authority, &rotation)
        .map_err(|error| format!("the rotation: {error}"))?;
    let mesh = stage.cast(at)[0].mesh();
    let mesh = mesh.ok_or_else(|| format!("{at} shall rotate the key and does not run"))?;
    mesh.rotate_psk(signed)
        .map_err(|error| format!("{at} rotates the key: {error}"))
}

impl From<super::spec::WireSpec> for Wire {
    fn from(spec: super::spec::WireSpec) -> Self {
        (&spec).into()
    }
}
