//! The manager restarts in every state of a session: nothing acknowledged is lost, and what was
//! under way goes on.

use futures_util::StreamExt;
use meshwork_manager::{ManagerError, StoreError};
use meshwork_proto::kernel::{ExitReason, KernelState};
use meshwork_proto::rpc::Status;
use meshwork_proto::session::{SessionSpec, SessionState};
use meshwork_proto::slots::Resources;

use crate::agent::Script;
use crate::world::{World, gpu_spec, spec};

#[tokio::test(start_paused = true)]
async fn every_state_survives_and_goes_on() {
    let states = [
        KernelState::Preparing,
        KernelState::Pulling,
        KernelState::Creating,
        KernelState::Running,
        KernelState::Terminating,
    ];
    for (at, state) in states.into_iter().enumerate() {
        let (mut world, [agent]) = World::with_agents([1]).await;
        agent.script(Script::Hold);
        let id = world.run(gpu_spec("1")).await.unwrap().view.session;
        if at > 0 {
            agent.advance(id, state);
        }
        world.settle().await;
        let before = world.view(id).await;
        world.restart().await;
        assert_eq!(world.view(id).await, before);
        agent.exit(id, 1);
        world.settle().await;
        assert_eq!(
            world.view(id).await.state.exit().unwrap().code,
            Some(1),
            "after {before:?}"
        );
        let ended = world.view(id).await;
        world.restart().await;
        assert_eq!(world.view(id).await, ended);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_meanwhile_is_learned_afterwards() {
    let (mut world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    world.settle().await;
    world.shutdown().await;
    agent.exit(id, 42);
    world.start().await;
    world.settle().await;
    assert_eq!(world.view(id).await.state.exit().unwrap().code, Some(42));
}

#[tokio::test(start_paused = true)]
async fn a_create_under_way_goes_on() {
    let (mut world, [agent]) = World::with_agents([0]).await;
    agent.faults().lose_requests.insert("kernel.create", 1000);
    let id = world
        .run(spec(Resources::default()))
        .await
        .unwrap()
        .view
        .session;
    world.restart().await;
    assert_eq!(world.view(id).await.state, SessionState::Scheduled);
    agent.faults().lose_requests.clear();
    world.pass(30).await;
    assert_eq!(world.view(id).await.state, SessionState::Running);
    assert_eq!(agent.living().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_under_way_goes_on() {
    let (mut world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    agent.set_unreachable(true);
    world.stop(id).await;
    world.restart().await;
    assert_eq!(world.view(id).await.state, SessionState::Terminating);
    agent.set_unreachable(false);
    world.pass(20).await;
    assert_eq!(
        world.view(id).await.state.exit().unwrap().reason,
        ExitReason::UserRequested
    );
    assert!(agent.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removal_under_way_goes_on() {
    let (mut world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Exit(0));
    let id = world.run_small().await;
    world.settle().await;
    agent.set_unreachable(true);
    world.remove(id).await.unwrap();
    world.restart().await;
    assert!(world.list(&world.user).await.is_empty());
    agent.set_unreachable(false);
    world.pass(20).await;
    assert!(agent.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_are_still_taken() {
    let (mut world, [_agent]) = World::with_agents([0]).await;
    let spec = || SessionSpec {
        name: Some("lab".into()),
        ..spec(Resources::default())
    };
    let (first, second) = (spec(), spec());
    world.run(first).await.unwrap();
    world.restart().await;
    assert_eq!(world.run(second).await.unwrap_err().reason, "name_taken");
}

#[tokio::test(start_paused = true)]
async fn two_managers_do_not_share_a_store() {
    let world = World::new().await;
    let second = world.try_start(world.folder().to_owned()).await;
    assert!(
        matches!(second, Err(ManagerError::Store(StoreError::InUse))),
        "{second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_order_right_after_the_start_waits_for_the_first_heartbeats() {
    let (mut world, [agent]) = World::with_agents([1]).await;
    world.shutdown().await;
    world.start().await;
    world.run(gpu_spec("1")).await.unwrap();
    assert_eq!(agent.living().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_told_to_those_who_watch() {
    let (mut world, [_agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    let updates = world.watch(id).await;
    world.shutdown().await;
    let updates: Vec<_> = updates.collect().await;
    let last = updates.last().unwrap().as_ref().unwrap_err();
    assert_eq!(last.status, Status::Unavailable);
}
