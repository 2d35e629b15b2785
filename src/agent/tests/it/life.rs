//! A kernel's life: run, output, exit, stop, exec, and what is left.

use std::time::Duration;

use meshwork_proto::agent;
use meshwork_proto::agent::KernelRef;
use meshwork_proto::kernel::{ExitReason, KernelState};

use crate::support::{self, Orders, Place, all_logs, docker, shell, text};

#[tokio::test]
async fn runs_tells_and_leaves_nothing() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("echo hello; sleep 0.1; echo oops >&2; exit 7"));
    let view = manager.create(&order).await.unwrap();
    assert_eq!(view.kernel, order.kernel);

    let exit = manager.exit(order.kernel).await;
    assert_eq!(
        (exit.reason, exit.code, exit.oom),
        (ExitReason::SelfTerminated, Some(7), false)
    );
    let events = manager.events_until(0, |e| e.state.exit().is_some()).await;
    let states: Vec<&str> = events.iter().map(|e| e.state.name()).collect();
    assert_eq!(
        states,
        [
            "PREPARING",
            "CREATING",
            "RUNNING",
            "TERMINATING",
            "TERMINATED"
        ]
    );
    assert!(events.iter().zip(1..).all(|(e, seq)| e.seq == seq));

    let chunks = manager.logs(&all_logs(order.kernel, false)).await;
    assert_eq!(text(&chunks), "hello\noops\n");
    assert_eq!(chunks[1].output, agent::Output::Stderr);
    assert!(chunks.iter().all(|c| c.at.is_some()));
    assert!(docker::containers(&place.node).is_empty());

    manager
        .call::<agent::Remove>(&KernelRef {
            kernel: order.kernel,
        })
        .await
        .unwrap();
    manager
        .call::<agent::Remove>(&KernelRef {
            kernel: order.kernel,
        })
        .await
        .unwrap();
    assert!(manager.get(order.kernel).await.is_err());
    assert!(!support::log_dir(&place, order.kernel).exists());
    local.agent.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn stops_politely_and_then_by_force() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let polite = orders.create(shell(
        "trap 'echo bye; exit 3' TERM; while true; do sleep 0.1; done",
    ));
    let deaf = orders.create(shell("trap '' TERM; while true; do sleep 0.1; done"));
    for order in [&polite, &deaf] {
        manager.create(order).await.unwrap();
        manager.running(order.kernel).await;
    }
    let view = manager
        .stop(polite.kernel, Some(Duration::from_secs(30)))
        .await
        .unwrap();
    assert_eq!(view.state, KernelState::Terminating);
    let exit = manager.exit(polite.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::UserRequested, Some(3))
    );
    assert_eq!(
        text(&manager.logs(&all_logs(polite.kernel, true)).await),
        "bye\n"
    );

    // The second stop cuts the first one's time short.
    manager
        .stop(deaf.kernel, Some(Duration::from_mins(5)))
        .await
        .unwrap();
    manager
        .stop(deaf.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    let exit = manager.exit(deaf.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::UserRequested, Some(137))
    );
    assert!(docker::containers(&place.node).is_empty());
}
