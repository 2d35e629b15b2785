//! The manager disappears at a random moment, a hundred times, in the middle of work. Afterwards
//! every session that it acknowledged is there, with one kernel each.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use meshwork_proto::SessionId;
use meshwork_proto::rpc::Status;
use meshwork_proto::slots::Resources;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::world::{World, spec};

const ROUNDS: u32 = 100;
/// Clients at work at once.
const USERS: u32 = 4;
/// Sessions that are left running.
const LIVING: usize = 8;

/// A runtime of its own for each life of the manager: dropping it stops every task wherever it is.
/// Real time, so that this may be in the middle of a commit.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Where only virtual time passes.
fn paused() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

/// What the manager has acknowledged.
#[derive(Default)]
struct Noted {
    living: BTreeSet<SessionId>,
    stopped: BTreeSet<SessionId>,
}

impl Noted {
    fn take_one(&mut self) -> Option<SessionId> {
        (self.living.len() > LIVING)
            .then(|| self.living.pop_first())
            .flatten()
    }
}

#[test]
fn no_acknowledged_session_is_lost_when_the_manager_vanishes() {
    let mut chance = StdRng::seed_from_u64(7);
    let first = paused();
    let (mut world, agents) = first.block_on(World::with_agents([1, 1]));
    world.forget();
    drop(first);
    let noted = Mutex::new(Noted::default());
    for round in 0..ROUNDS {
        // At most two of the users wait for a lost answer; the others go on.
        for (agent, lost) in agents.iter().zip([round % 3, 0]) {
            agent.faults().lose_answers.insert("kernel.create", lost);
        }
        let (answers, then) = (chance.random_range(0..6), chance.random_range(0..5_000));
        let life = runtime();
        life.block_on(async {
            world.reset_clock();
            world.start().await;
            let acknowledged = watch::Sender::new(0);
            let users = (0..USERS).map(|_| work(&world, &noted, &acknowledged));
            let mut count = acknowledged.subscribe();
            let moment = async {
                count.wait_for(|count| *count >= answers).await.unwrap();
                tokio::time::sleep(Duration::from_micros(then)).await;
            };
            tokio::select! {
                _ = join_all(users) => {}
                () = moment => {}
            }
        });
        world.forget();
        drop(life);
    }
    let last = paused();
    last.block_on(async {
        world.reset_clock();
        world.start().await;
        world.pass(60).await;
        let Noted { living, stopped } = noted.into_inner().unwrap();
        let kept: BTreeSet<_> = world.list(&world.user).await.into_iter().collect();
        assert!(kept.is_superset(&living) && kept.is_superset(&stopped));
        assert!(
            living.len() + stopped.len() > ROUNDS as usize,
            "the rounds did some work"
        );
        for id in &stopped {
            assert!(world.view(*id).await.state.exit().is_some(), "{id}");
        }
        let mut kernels: Vec<_> = agents.iter().flat_map(Agent::living).collect();
        kernels.sort_unstable();
        let count = kernels.len();
        kernels.dedup();
        assert_eq!(count, kernels.len(), "one kernel on one node");
        for id in &living {
            assert!(world.view(*id).await.state.exit().is_none(), "{id}");
            assert!(kernels.contains(&id.kernel(0)), "{id}");
        }
        world.shutdown().await;
    });
}

/// Starts and stops sessions until it is interrupted.
async fn work(world: &World, noted: &Mutex<Noted>, acknowledged: &watch::Sender<u32>) {
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        // So small that there is room for all that was started and never acknowledged.
        let tiny = Resources {
            cpu_millis: 1,
            mem: 8 << 20,
            shm: 0,
            gpu: None,
        };
        match world.run(spec(tiny)).await {
            Ok(created) => {
                noted.lock().unwrap().living.insert(created.view.session);
                acknowledged.send_modify(|count| *count += 1);
            }
            Err(error) => assert!(matches!(error.status, Status::App(_)), "{error:?}"),
        }
        // From here on the stop may or may not be kept when the manager vanishes.
        let Some(id) = noted.lock().unwrap().take_one() else {
            continue;
        };
        world.stop(id).await;
        noted.lock().unwrap().stopped.insert(id);
        acknowledged.send_modify(|count| *count += 1);
    }
}
