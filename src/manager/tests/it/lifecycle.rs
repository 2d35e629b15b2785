//! Sessions whose messages all arrive.

use futures_util::StreamExt;
use meshwork_identity::{Timestamp, Warrant};
use meshwork_proto::agent::{ExecItem, ExecOrder, PullProgress};
use meshwork_proto::kernel::{ExitReason, KernelState};
use meshwork_proto::manager::{self as api, SessionExec, SessionLogs, SessionRef};
use meshwork_proto::rpc::Status;
use meshwork_proto::session::{SessionSpec, SessionState, SessionUpdate};
use meshwork_proto::slots::Resources;
use meshwork_proto::{KernelId, SessionId};

use crate::agent::Script;
use crate::world::{World, gpu_spec, spec};

#[tokio::test(start_paused = true)]
async fn an_order_becomes_a_kernel_that_runs_and_ends() {
    let (world, [agent]) = World::with_agents([2]).await;
    let created = world.run(gpu_spec("40GB..")).await.unwrap();
    assert_eq!(created.plan, "n100 GPU 0 (A100 80GB, 79GB free)");
    assert_eq!(created.view.gpus, ["GPU 0 (A100 80GB)"]);
    let id = created.view.session;
    world.settle().await;
    let view = world.view(id).await;
    assert_eq!(view.state, SessionState::Running);
    assert!(view.node_reachable && view.started_at.is_some());
    agent.exit(id, 5);
    world.settle().await;
    let view = world.view(id).await;
    let exit = view.state.exit().unwrap();
    assert_eq!(
        (exit.code, exit.reason),
        (Some(5), ExitReason::SelfTerminated)
    );
    assert!(view.ended_at > view.started_at);
    world.pass(6).await;
    assert_eq!(*agent.acked.lock().unwrap(), 3, "prepared, running, ended");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_now_then_each_change_then_the_end_and_nothing_more() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Hold);
    let id = world.run_small().await;
    let mut updates = world.watch(id).await;
    let mut told = Vec::new();
    let steps = [
        KernelState::Pulling,
        KernelState::Creating,
        KernelState::Running,
    ];
    let mut next_state = async || loop {
        match updates.next().await {
            None => return None,
            Some(update) => match update.unwrap() {
                SessionUpdate::View(view) => return Some(view.state.name()),
                SessionUpdate::Pull(progress) => assert_eq!(progress, PullProgress::Done),
            },
        }
    };
    told.push(next_state().await.unwrap());
    agent.tell_progress(id, PullProgress::Done);
    for step in steps {
        agent.advance(id, step);
        told.push(next_state().await.unwrap());
    }
    agent.exit(id, 0);
    told.push(next_state().await.unwrap());
    assert_eq!(
        told,
        ["preparing", "pulling", "creating", "running", "terminated"]
    );
    assert_eq!(next_state().await, None);
}

#[tokio::test(start_paused = true)]
async fn watchers_of_short_sessions_always_learn_the_end() {
    let (world, [agent]) = World::with_agents([0]).await;
    for code in 0..20 {
        agent.script(Script::Exit(code));
        let id = world.run_small().await;
        let updates: Vec<_> = world.watch(id).await.collect().await;
        let Some(Ok(SessionUpdate::View(last))) = updates.last() else {
            panic!("{updates:?}")
        };
        assert_eq!(last.state.exit().unwrap().code, Some(code));
    }
}

#[tokio::test(start_paused = true)]
async fn progress_reaches_the_watcher() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Hold);
    let id = world.run_small().await;
    let mut updates = world.watch(id).await;
    updates.next().await.unwrap().unwrap();
    let progress = PullProgress::Fetching {
        current: 1,
        total: 2,
    };
    agent.tell_progress(id, progress.clone());
    assert_eq!(
        updates.next().await.unwrap().unwrap(),
        SessionUpdate::Pull(progress)
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_pull_ends_the_session() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Hold);
    let id = world.run_small().await;
    agent.advance(id, KernelState::Pulling);
    assert_eq!(world.stop(id).await.state, SessionState::Terminating);
    world.stop(id).await;
    world.settle().await;
    agent.exit(id, 143);
    world.settle().await;
    assert!(world.view(id).await.state.exit().is_some());
    assert!(agent.living().is_empty());
    assert_eq!(agent.called("kernel.stop"), 1);
}

#[tokio::test(start_paused = true)]
async fn remove_wants_an_ended_session_and_takes_its_kernel_along() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    let refused = world.remove(id).await.unwrap_err();
    assert_eq!(refused.status, Status::Conflict);
    assert_eq!(
        refused.fix.unwrap(),
        format!("stop it first: meshwork stop {}", id.short())
    );
    world.stop(id).await;
    world.settle().await;
    world.remove(id).await.unwrap();
    assert_eq!(
        world.get(&id.to_string()).await.unwrap_err().status,
        Status::NotFound
    );
    world.settle().await;
    assert!(agent.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rm_sessions_go_once_their_end_was_told_and_read() {
    let (world, [agent]) = World::with_agents([0]).await;
    let spec = SessionSpec {
        remove: true,
        ..spec(Resources::default())
    };
    let id = world.run(spec).await.unwrap().view.session;
    let (updates, slow_reader) = (world.watch(id).await, world.watch(id).await);
    agent.exit(id, 0);
    updates.collect::<Vec<_>>().await;
    world.pass(70).await;
    assert!(
        world.view(id).await.state.exit().is_some(),
        "somebody still reads"
    );
    assert_eq!(slow_reader.collect::<Vec<_>>().await.len(), 1);
    world.pass(5).await;
    assert_eq!(
        agent.remembered().len(),
        1,
        "its output can still be fetched"
    );
    world.pass(10).await;
    assert!(world.get(&id.to_string()).await.is_err());
    assert!(agent.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rm_sessions_that_nobody_watches_go_after_a_minute() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Exit(0));
    let spec = SessionSpec {
        remove: true,
        ..spec(Resources::default())
    };
    let id = world.run(spec).await.unwrap().view.session;
    world.pass(50).await;
    assert!(world.view(id).await.state.exit().is_some());
    world.pass(20).await;
    assert!(world.get(&id.to_string()).await.is_err());
    assert!(agent.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn following_the_output_to_its_end_counts_as_told() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Exit(0));
    let spec = || SessionSpec {
        remove: true,
        ..spec(Resources::default())
    };
    let followed = world.run(spec()).await.unwrap().view.session;
    let peeked = world.run(spec()).await.unwrap().view.session;
    world.settle().await;
    for (id, follow) in [(followed, true), (peeked, false)] {
        let chunks: Vec<_> = world.logs(id, follow).await.unwrap().collect().await;
        assert_eq!(chunks.len(), 1);
    }
    world.pass(15).await;
    assert!(world.get(&followed.to_string()).await.is_err());
    assert!(world.get(&peeked.to_string()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_spoken_of_in_plain_words() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    agent.exit(id, 0);
    world.settle().await;
    let error = world
        .stream::<api::Exec>(&world.user, &exec_true(&world, id, id.kernel(0)))
        .await
        .err()
        .unwrap();
    let ended = format!("session {} has ended", id.short());
    assert_eq!(
        (error.status, error.message),
        (Status::Conflict, ended.clone())
    );
    // Its output is there as long as the agent knows it.
    assert!(world.logs(id, false).await.is_ok());
    agent.lose(id);
    let error = world.logs(id, false).await.err().unwrap();
    assert_eq!(
        (error.status, error.message),
        (
            Status::NotFound,
            format!("{ended}, and no output of it is kept")
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_not_started_is_spoken_of_in_plain_words() {
    let (world, [agent]) = World::with_agents([0]).await;
    agent.script(Script::Hold);
    let id = world.run_small().await;
    let error = world
        .stream::<api::Exec>(&world.user, &exec_true(&world, id, id.kernel(0)))
        .await
        .err()
        .unwrap();
    let text = format!("session {} has not started yet", id.short());
    assert_eq!((error.status, error.message), (Status::Conflict, text));
}

/// An order of the default user.
fn exec_true(world: &World, session: SessionId, kernel: KernelId) -> SessionExec {
    let order = ExecOrder {
        kernel,
        command: vec!["true".into()],
        env: [].into(),
        workdir: None,
        issued_at: Timestamp::from_secs(0),
        nonce: [0; 16],
    };
    let user = &world.user;
    let warrant = Warrant::seal(&user.identity, user.token.clone(), &order).unwrap();
    SessionExec { session, warrant }
}

#[tokio::test(start_paused = true)]
async fn logs_and_exec_pass_through() {
    let (world, [_agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    let request = SessionLogs {
        session: id.short(),
        tail: None,
        follow: false,
        since: None,
    };
    let chunks: Vec<_> = world
        .stream::<api::Logs>(&world.user, &request)
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(chunks[0].as_ref().unwrap().data, "hello\n");
    let exec = |kernel| exec_true(&world, id, kernel);
    let items = world
        .stream::<api::Exec>(&world.user, &exec(id.kernel(0)))
        .await
        .unwrap();
    let items: Vec<_> = items.collect().await;
    assert_eq!(items, [Ok(ExecItem::Exit(7))]);
    let other = world.run_small().await;
    let refused = world
        .stream::<api::Exec>(&world.user, &exec(other.kernel(0)))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.status, Status::Invalid);
}

#[tokio::test(start_paused = true)]
async fn names_and_prefixes_find_sessions() {
    let (world, [agent]) = World::with_agents([0]).await;
    let named = |name: &str| SessionSpec {
        name: Some(name.into()),
        ..spec(Resources::default())
    };
    let first = world.run(named("lab")).await.unwrap().view.session;
    assert_eq!(world.get("lab").await.unwrap().session, first);
    assert_eq!(world.get(&first.short()).await.unwrap().session, first);
    let taken = world.run(named("lab")).await.unwrap_err();
    assert_eq!(
        (taken.status, taken.reason.as_str()),
        (Status::Conflict, "name_taken")
    );
    world.stop(first).await;
    world.settle().await;
    let second = world.run(named("lab")).await.unwrap().view.session;
    assert_eq!(
        world.get("lab").await.unwrap().session,
        second,
        "the living one is meant"
    );
    agent.script(Script::Exit(0));
    // More sessions than first characters.
    for _ in 0..40 {
        world.run_small().await;
    }
    let ids = world.list(&world.user).await;
    let first_char = |id: &meshwork_proto::SessionId| id.to_string()[..3].to_owned();
    let twins = ids.iter().find(|a| {
        ids.iter()
            .filter(|b| first_char(a) == first_char(b))
            .count()
            > 1
    });
    let prefix = first_char(twins.unwrap());
    let error = world.get(&prefix).await.unwrap_err();
    assert_eq!(error.reason, "ambiguous");
    assert!(
        ids.iter()
            .filter(|id| first_char(id) == prefix)
            .all(|id| error.message.contains(&id.to_string()))
    );
    assert_eq!(world.get("nobody").await.unwrap_err().reason, "no_session");
    assert_eq!(
        world
            .call::<api::Get>(
                &world.user,
                &SessionRef {
                    session: String::new()
                }
            )
            .await
            .unwrap_err()
            .status,
        Status::NotFound
    );
}
