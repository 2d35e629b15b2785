//! Lost, repeated and reordered messages, and agents that come and go: no outcome changes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use meshwork_proto::kernel::{ExitReason, KernelState};
use meshwork_proto::manager::{self as api, ListNodes, NodeState};
use meshwork_proto::rpc::Status;
use meshwork_proto::session::{SessionSpec, SessionState, SessionUpdate};
use meshwork_proto::slots::Resources;
use tokio::time::timeout;

use crate::agent::{Agent, Script};
use crate::world::{World, spec};

#[tokio::test(start_paused = true)]
async fn a_lost_create_answer_makes_one_kernel() {
    let (world, [first, second]) = World::with_agents([0, 0]).await;
    for agent in [&first, &second] {
        agent.faults().lose_answers.insert("kernel.create", 2);
    }
    let created = world.run(spec(Resources::default())).await.unwrap();
    world.pass(5).await;
    assert_eq!(first.living().len() + second.living().len(), 1);
    assert_eq!(
        world.view(created.view.session).await.state,
        SessionState::Running
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_leaves_the_session_scheduled_not_lost() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.faults().lose_requests.insert("kernel.create", 5);
    let created = world.run(spec(Resources::default())).await.unwrap();
    assert_eq!(created.view.state, SessionState::Scheduled);
    world.pass(120).await;
    assert_eq!(
        world.view(created.view.session).await.state,
        SessionState::Running
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_repeat_does_not_end_or_double_what_the_lost_answer_began() {
    for status in [Status::Denied, Status::ResourceExhausted] {
        let (world, [first, second]) = World::with_agents([0, 0]).await;
        for agent in [&first, &second] {
            agent.faults().lose_answers.insert("kernel.create", 1);
            agent.faults().refuse_repeats = Some(status);
        }
        let id = world.run_small().await;
        world.pass(30).await;
        assert_eq!(world.view(id).await.state, SessionState::Running);
        assert_eq!(first.living().len() + second.living().len(), 1);
        let calls = first.called("kernel.create") + second.called("kernel.create");
        assert_eq!(calls, 2, "one that was taken, one that was refused");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_keeps_no_other_waiting() {
    let (world, [dead, _well]) = World::with_agents([0, 0]).await;
    dead.faults().lose_requests.insert("kernel.create", 1000);
    let run_on = |tag: &str| {
        let place = Some(format!("tags has \"{tag}\""));
        let tiny = Resources {
            cpu_millis: 1,
            mem: 8 << 20,
            shm: 0,
            gpu: None,
        };
        world.run(SessionSpec {
            place,
            ..spec(tiny)
        })
    };
    // More than there are steps under way at once.
    let stuck = join_all((0..300).map(|_| run_on("tag-n100")));
    let sound = async {
        world.pass(1).await;
        // Far less than a call to the dead node takes.
        let created = timeout(Duration::from_secs(2), run_on("tag-n101")).await;
        assert_ne!(
            created.unwrap().unwrap().view.state,
            SessionState::Scheduled
        );
    };
    let (stuck, ()) = tokio::join!(stuck, sound);
    for created in stuck {
        assert_eq!(created.unwrap().view.state, SessionState::Scheduled);
    }
}

#[tokio::test(start_paused = true)]
async fn events_do_not_wait_for_a_lost_acknowledgement() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    agent.faults().lose_requests.insert("events.ack", 1000);
    // The heartbeat that is to be acknowledged.
    world.pass(6).await;
    agent.exit(id, 3);
    world.pass(1).await;
    assert!(world.view(id).await.state.exit().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_comes_after_the_removal_leaves_nothing() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.faults().lose_requests.insert("kernel.create", 1000);
    let id = world.run_small().await;
    world.stop(id).await;
    world.pass(30).await;
    world.remove(id).await.unwrap();
    world.pass(30).await;
    assert!(world.list(&world.user).await.is_empty());
    world.deliver_late(&agent).await;
    assert_eq!(agent.living().len(), 1);
    world.pass(15).await;
    assert!(agent.remembered().is_empty());
    // Once the order is over, nothing more is asked of the agent.
    world.pass(3700).await;
    let asked = agent.called("kernel.remove");
    world.pass(60).await;
    assert_eq!(agent.called("kernel.remove"), asked);
}

#[tokio::test(start_paused = true)]
async fn an_order_sent_twice_is_one_session_and_another_with_its_id_is_refused() {
    let (world, [agent]) = World::with_agents([0]).await;
    let order = world.order(spec(Resources::default()));
    let (one, two) = tokio::join!(
        world.submit(&world.user, &order),
        world.submit(&world.user, &order)
    );
    assert_eq!(one.unwrap().view.session, two.unwrap().view.session);
    assert_eq!(agent.living().len(), 1);
    let mut other = order.clone();
    other.spec.kernel.image = "alpine".into();
    let refused = world.submit(&world.user, &other).await.unwrap_err();
    assert_eq!(
        (refused.status, refused.reason.as_str()),
        (Status::Conflict, "session_exists")
    );
}

async fn lives_and_ends(world: &World, agent: &Agent) {
    agent.script(Script::Hold);
    let id = world.run_small().await;
    for state in [
        KernelState::Pulling,
        KernelState::Creating,
        KernelState::Running,
    ] {
        agent.advance(id, state);
    }
    world.pass(1).await;
    agent.exit(id, 9);
    world.pass(30).await;
    let view = world.view(id).await;
    let exit = view.state.exit().unwrap_or_else(|| panic!("{view:?}"));
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::SelfTerminated, Some(9))
    );
    assert!(view.started_at.is_some());
    assert_eq!(
        *agent.acked.lock().unwrap(),
        5,
        "in the end every event arrives"
    );
}

#[tokio::test(start_paused = true)]
async fn repeated_events_change_nothing() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.faults().duplicate = true;
    lives_and_ends(&world, &agent).await;
}

#[tokio::test(start_paused = true)]
async fn reordered_events_change_nothing() {
    for seq in 1..5 {
        let (world, [agent]) = World::with_agents([0]).await;
        agent.faults().swap = Some(seq);
        lives_and_ends(&world, &agent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lost_events_change_nothing() {
    for lost in [
        vec![1],
        vec![2],
        vec![4],
        vec![5],
        vec![4, 5],
        vec![1, 2, 3, 4, 5],
    ] {
        let (world, [agent]) = World::with_agents([0]).await;
        agent.faults().skip = BTreeSet::from_iter(lost);
        lives_and_ends(&world, &agent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn slow_calls_change_nothing() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.faults().delay = Duration::from_secs(3);
    lives_and_ends(&world, &agent).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_stop_is_sent_again() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    agent.faults().lose_requests.insert("kernel.stop", 2);
    agent.faults().lose_answers.insert("kernel.stop", 1);
    world.stop(id).await;
    world.pass(60).await;
    assert_eq!(
        world.view(id).await.state.exit().unwrap().reason,
        ExitReason::UserRequested
    );
    assert!(agent.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_before_the_node_took_the_order_ends_it() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.faults().lose_requests.insert("kernel.create", 1000);
    let id = world
        .run(spec(Resources::default()))
        .await
        .unwrap()
        .view
        .session;
    world.stop(id).await;
    world.pass(30).await;
    assert_eq!(
        world.view(id).await.state.exit().unwrap().reason,
        ExitReason::UserRequested
    );
    agent.faults().lose_requests.clear();
    world.pass(30).await;
    assert!(agent.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_restart_is_not_noticed() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    for _ in 0..3 {
        agent.restart();
        world.pass(3).await;
        assert_eq!(world.view(id).await.state, SessionState::Running);
    }
    agent.exit(id, 4);
    agent.restart();
    world.pass(10).await;
    assert_eq!(world.view(id).await.state.exit().unwrap().code, Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_lost_agent_keeps_its_sessions_as_last_known() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    world.settle().await;
    let state = async || {
        world
            .call::<api::Nodes>(&world.user, &ListNodes::default())
            .await
            .unwrap()[0]
            .state
    };
    assert_eq!(state().await, NodeState::Ready);
    let mut updates = world.watch(id).await;
    updates.next().await.unwrap().unwrap();
    agent.set_unreachable(true);
    world.pass(9).await;
    assert_eq!(state().await, NodeState::Suspect);
    world.pass(8).await;
    assert_eq!(state().await, NodeState::Lost);
    let view = world.view(id).await;
    assert_eq!(
        (view.state.clone(), view.node_reachable),
        (SessionState::Running, false)
    );
    assert_eq!(
        updates.next().await.unwrap().unwrap(),
        SessionUpdate::View(view)
    );
    agent.exit(id, 0);
    agent.set_unreachable(false);
    world.pass(10).await;
    assert_eq!(state().await, NodeState::Ready);
    assert!(world.view(id).await.state.exit().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_the_agent_lost_ends_its_session() {
    let (world, [agent]) = World::with_agents([0]).await;
    let (lost, kept) = (world.run_small().await, world.run_small().await);
    world.settle().await;
    agent.lose(lost);
    world.pass(10).await;
    assert_eq!(
        world.view(lost).await.state.exit().unwrap().reason,
        ExitReason::ContainerLost
    );
    assert_eq!(world.view(kept).await.state, SessionState::Running);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_disk_is_listened_to_from_the_start() {
    let (world, [agent]) = World::with_agents([0]).await;
    let (before, _) = (world.run_small().await, world.run_small().await);
    world.settle().await;
    agent.wipe();
    world.pass(15).await;
    assert_eq!(
        world.view(before).await.state.exit().unwrap().reason,
        ExitReason::ContainerLost
    );
    agent.script(Script::Exit(2));
    let after = world.run_small().await;
    world.pass(10).await;
    assert_eq!(world.view(after).await.state.exit().unwrap().code, Some(2));
    assert_eq!(*agent.acked.lock().unwrap(), 3, "in the new numbering");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_whose_session_ended_without_it_is_stopped() {
    let (world, [agent]) = World::with_agents([0]).await;
    // The stop overtakes the order, so that the agent says that it knows no such kernel.
    agent.faults().lose_requests.insert("kernel.create", 1000);
    let id = world.run_small().await;
    world.stop(id).await;
    world.pass(30).await;
    assert!(world.view(id).await.state.exit().is_some());
    world.deliver_late(&agent).await;
    assert_eq!(agent.living().len(), 1);
    world.pass(15).await;
    assert!(agent.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_is_heard_at_once_however_long_it_was_gone() {
    let (world, [agent]) = World::with_agents([0]).await;
    world.run_small().await;
    for gone in [3, 20, 31, 33, 35, 90] {
        agent.set_unreachable(true);
        world.pass(gone).await;
        agent.set_unreachable(false);
        world.blink().await;
        assert_eq!(
            world.node(&agent).await.state,
            NodeState::Ready,
            "after {gone} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_joins_is_ready_at_once() {
    let world = World::new().await;
    for seed in 100..110 {
        let agent = world.add_agent(seed, 0);
        world.blink().await;
        assert_eq!(world.node(&agent).await.state, NodeState::Ready);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_of_a_lost_node() {
    let (world, [agent]) = World::with_agents([1]).await;
    let before = world.node(&agent).await;
    assert_eq!(
        (before.path.as_str(), before.rtt.is_some()),
        ("direct", true)
    );
    assert!(before.capacity.is_some());
    agent.set_unreachable(true);
    world.pass(20).await;
    let lost = world.node(&agent).await;
    assert_eq!(lost.state, NodeState::Lost);
    assert_eq!(
        (lost.path.as_str(), lost.rtt, lost.capacity),
        ("", None, None)
    );
}

#[tokio::test(start_paused = true)]
async fn output_of_a_node_that_is_gone_is_refused_fast() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    let refused = async || {
        let opened = timeout(Duration::from_secs(5), world.logs(id, false)).await;
        let error = opened.expect("fast").err().unwrap();
        assert_eq!(
            (error.status, error.reason.as_str()),
            (Status::Unavailable, "node_unreachable")
        );
        let node = agent.node.short();
        assert_eq!(error.message, format!("n100 ({node}) is not reachable now"));
    };
    // Nobody has noticed yet.
    agent.faults().silent = true;
    refused().await;
    // The mesh has.
    agent.set_unreachable(true);
    refused().await;
    // All have.
    world.pass(20).await;
    refused().await;
    assert!(world.logs(id, true).await.is_err());
}
