//! Whose orders are carried out, and how often.

use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_agent::AgentConfig;
use meshwork_identity::{Limits, NodeTags, Resource, Scope, Timestamp, Warrant};
use meshwork_proto::agent::{self, CreateKernel};
use meshwork_proto::kernel::{ExitReason, KernelState, PullPolicy};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{Access, Method};
use meshwork_proto::slots::GpuRequest;

use crate::support::{self, Orders, Place, all_logs, docker, new_session, now, shell};

fn reason<T: std::fmt::Debug>(answer: Result<T, RpcError>) -> (Status, String) {
    let error = answer.unwrap_err();
    (error.status, error.reason)
}

/// Orders that are refused, each for its own reason, and leave nothing.
#[tokio::test]
async fn what_was_not_ordered_is_not_done() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let good = Orders::order(new_session(), shell("true"));
    let refused = async |order: &CreateKernel| reason(manager.create(order).await);
    let denied = |text: &str| (Status::Denied, text.to_owned());

    // What a hacked manager would try.
    let mut other_kernel = orders.sign(&good);
    other_kernel.kernel = new_session().kernel(0);
    assert_eq!(refused(&other_kernel).await, denied("wrong_kernel"));
    let mut second = orders.sign(&good);
    (second.index, second.kernel) = (1, good.session.kernel(1));
    assert_eq!(refused(&second).await, denied("wrong_kernel"));
    let mut resigned = orders.sign(&good);
    resigned.warrant = Warrant::seal(&support::manager(), orders.token.clone(), &good).unwrap();
    assert_eq!(refused(&resigned).await.0, Status::Denied);

    // What the token does not say.
    let user = support::user(1);
    for (scope, resource) in [
        (Scope::Announce, Resource::any()),
        (Scope::Call, Resource::any().on(support::user(9).node_id())),
        (Scope::Call, "agent/kernel.exec".parse().unwrap()),
    ] {
        let token = support::token(user.node_id(), [scope].into(), resource, Limits::none());
        let narrow = Orders {
            user: support::user(1),
            token,
        };
        assert_eq!(refused(&narrow.sign(&good)).await.0, Status::Denied);
    }

    // Out of its time.
    let mut old = good.clone();
    old.issued_at = Timestamp::from_millis(now().as_millis() - 700_000);
    assert_eq!(refused(&orders.sign(&old)).await, denied("order_expired"));
    let mut early = good.clone();
    early.issued_at = now().saturating_add(Duration::from_mins(1));
    assert_eq!(
        refused(&orders.sign(&early)).await,
        denied("order_not_yet_valid")
    );

    // No sense in it.
    let mut hostile = good.clone();
    hostile.spec.kernel.image = "-v /:/host".into();
    assert_eq!(
        refused(&orders.sign(&hostile)).await,
        (Status::Invalid, "spec".into())
    );
    let mut patient = good;
    patient.spec.kernel.stop_grace = Some(Duration::from_hours(24));
    assert_eq!(
        refused(&orders.sign(&patient)).await,
        (Status::Invalid, "spec".into())
    );

    assert!(manager.call::<agent::List>(&()).await.unwrap().is_empty());
    assert!(docker::containers(&place.node).is_empty());
}

#[tokio::test]
async fn limits_of_the_token_hold_here() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let config = AgentConfig {
        node_tags: ["lab-a".to_owned()].into(),
        ..place.config()
    };
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let tags = |names: &[&str]| NodeTags::new(names.iter().copied()).unwrap();
    let limits = Limits {
        cpu_millis: Some(150),
        kernels: Some(2),
        node_tags: tags(&["lab-a"]),
        ..Limits::default()
    };
    let orders = Orders::limited(1, limits);
    let first = orders.create(shell("sleep 1000"));
    manager.create(&first).await.unwrap();
    let second = orders.create(shell("sleep 1000"));
    let over = (Status::Denied, "token_limit".to_owned());
    assert_eq!(
        reason(manager.create(&second).await),
        over,
        "200 of 150 thousandths"
    );
    // Another user's is another's.
    manager
        .create(&Orders::of(2).create(shell("sleep 1000")))
        .await
        .unwrap();
    manager
        .stop(first.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(first.kernel).await;
    manager.create(&second).await.unwrap();

    let elsewhere = Limits {
        node_tags: tags(&["lab-b"]),
        ..Limits::default()
    };
    let order = Orders::limited(3, elsewhere).create(shell("true"));
    assert_eq!(
        reason(manager.create(&order).await),
        (Status::Denied, "node_tags".into())
    );
}

#[tokio::test]
async fn a_refusal_names_what_is_short() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let mut spec = shell("true");
    spec.resources.mem = 1 << 50;
    spec.resources.gpu = Some(GpuRequest {
        count: 1,
        ..GpuRequest::default()
    });
    let error = local
        .manager()
        .create(&Orders::of(1).create(spec))
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::ResourceExhausted, "slots")
    );
    assert!(error.message.contains("mem: needs") && error.message.contains("gpu: needs 1"));
}

#[tokio::test]
async fn a_command_is_carried_out_once() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let order = orders.create(shell("sleep 1000"));
    // All at once, and again later.
    let all = futures_util::future::join_all((0..8).map(|_| manager.create(&order))).await;
    assert!(all.iter().all(|view| view.as_ref().unwrap().attempt == 1));
    manager.running(order.kernel).await;
    assert_eq!(
        manager.create(&order).await.unwrap().state,
        KernelState::Running
    );
    assert_eq!(docker::containers(&place.node).len(), 1);

    let again = |attempt, generation| CreateKernel {
        attempt,
        generation,
        ..order.clone()
    };
    let conflict = |text: &str| (Status::Conflict, text.to_owned());
    assert_eq!(
        reason(manager.create(&again(2, 1)).await),
        conflict("running")
    );
    assert_eq!(
        reason(manager.create(&again(1, 0)).await),
        conflict("stale")
    );

    // A newer placement takes over, the older one ends first.
    let view = manager.create(&again(1, 2)).await.unwrap();
    assert_eq!((view.generation, view.state), (2, KernelState::Preparing));
    let events = manager
        .events_until(0, |e| e.generation == 2 && e.state.name() == "RUNNING")
        .await;
    let superseded = events.iter().position(|e| {
        e.generation == 1
            && e.state
                .exit()
                .is_some_and(|x| x.reason == ExitReason::Superseded)
    });
    let began = events.iter().position(|e| e.generation == 2);
    assert!(superseded.unwrap() < began.unwrap());
    assert_eq!(docker::containers(&place.node).len(), 1);
    assert_eq!(reason(manager.create(&order).await), conflict("stale"));

    // Stopped by a user it stays so, and also once it is forgotten.
    manager
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(order.kernel).await;
    assert_eq!(
        reason(manager.create(&again(2, 3)).await),
        conflict("stopped")
    );
    let kernel = agent::KernelRef {
        kernel: order.kernel,
    };
    manager.call::<agent::Remove>(&kernel).await.unwrap();
    assert_eq!(
        reason(manager.create(&again(2, 3)).await),
        conflict("removed")
    );
}

#[tokio::test]
async fn a_failed_try_may_be_repeated() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let mut spec = shell("true");
    spec.image = "meshwork-test/no-such-image".into();
    spec.pull = PullPolicy::None;
    let order = orders.create(spec);
    manager.create(&order).await.unwrap();
    let exit = manager.exit(order.kernel).await;
    assert_eq!((exit.reason, exit.code), (ExitReason::FailedToStart, None));
    assert!(exit.message.unwrap().contains("no-such-image"));
    assert!(docker::containers(&place.node).is_empty());
    let again = CreateKernel {
        attempt: 2,
        ..order
    };
    assert_eq!(manager.create(&again).await.unwrap().attempt, 2);
    manager
        .events_until(0, |e| e.attempt == 2 && e.state.exit().is_some())
        .await;
}

#[tokio::test]
async fn a_kernel_is_its_owners() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let order = Orders::of(1).create(shell("sleep 1000"));
    local.manager().create(&order).await.unwrap();
    local.manager().running(order.kernel).await;
    let (owner, other) = (local.user(1), local.user(2));
    let unknown = (Status::NotFound, "no_kernel".to_owned());
    assert_eq!(reason(other.get(order.kernel).await), unknown);
    assert_eq!(reason(other.stop(order.kernel, None).await), unknown);
    let logs = other
        .stream::<agent::Logs>(&all_logs(order.kernel, false))
        .await;
    assert_eq!(reason(logs.map(drop)), unknown);
    other
        .call::<agent::Remove>(&agent::KernelRef {
            kernel: order.kernel,
        })
        .await
        .unwrap();
    assert!(other.call::<agent::List>(&()).await.unwrap().is_empty());
    let status = other.call::<agent::Inspect>(&()).await.unwrap();
    assert!(status.heartbeat.kernels.is_empty());
    let foreign = Orders::of(2);
    let exec = foreign.exec(&Orders::exec_order(order.kernel, &["/bin/true"]));
    assert_eq!(
        reason(local.manager().exec(&exec).await),
        unknown,
        "the signer counts"
    );
    // What tells of everybody's kernels, the mesh keeps from both.
    for method in [agent::Watch::INFO, agent::Ack::INFO] {
        assert_eq!(method.access, Access::Admin);
    }
    assert_eq!(
        owner.get(order.kernel).await.unwrap().state,
        KernelState::Running
    );
    assert_eq!(owner.call::<agent::List>(&()).await.unwrap().len(), 1);
    owner
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn commands_run_once_and_tell_their_exit() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let order = orders.create(shell("sleep 1000"));
    manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;

    let command = Orders::exec_order(
        order.kernel,
        &["/bin/sh", "-c", "echo $ANSWER $MESHWORK_KERNEL_ID; exit 6"],
    );
    let signed = orders.exec(&command);
    let expected = (format!("42 {}\n", order.kernel), 6);
    assert_eq!(manager.exec(&signed).await.unwrap(), expected);
    let replay = (Status::Conflict, "replay".to_owned());
    assert_eq!(reason(manager.exec(&signed).await), replay);
    local.agent.shutdown(support::PATIENCE).await;
    drop((local, manager));

    // Also not by a restarted agent.
    let local = place.agent().await;
    let manager = local.manager();
    assert_eq!(reason(manager.exec(&signed).await), replay);
    let fresh = orders.exec(&Orders::exec_order(order.kernel, &["/bin/no-such"]));
    let missing = manager.exec(&fresh).await;
    assert!(matches!(missing.unwrap().1, 126 | 127), "no such program");
    let late = orders.exec(&Orders::exec_order(order.kernel, &["/bin/true"]));
    local.clock.0.store(120_000, Ordering::Relaxed);
    assert_eq!(
        reason(manager.exec(&late).await),
        (Status::Denied, "order_expired".into())
    );
    local.clock.0.store(0, Ordering::Relaxed);
    manager
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(order.kernel).await;
    assert_eq!(
        reason(manager.exec(&late).await),
        (Status::Conflict, "not_running".into())
    );
}
