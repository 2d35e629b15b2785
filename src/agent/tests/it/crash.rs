//! `kill -9` of the agent, anywhere: nothing acknowledged is lost, nothing is left over.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_proto::agent;
use meshwork_proto::agent::AgentStatus;
use meshwork_proto::kernel::ExitReason;

use crate::support::remote::Remote;
use crate::support::{self, Client, Orders, Place, all_logs, docker, shell, text};

/// No slot is held, no container is left, every kernel is over.
async fn assert_clean(place: &Place, manager: &Client) {
    let AgentStatus { heartbeat, .. } = manager.call::<agent::Inspect>(&()).await.unwrap();
    let capacity = heartbeat.capacity;
    assert_eq!(capacity.cpu_free, capacity.cpu_millis);
    assert_eq!(capacity.mem_free, capacity.mem);
    assert!(heartbeat.kernels.is_empty());
    assert!(docker::containers(&place.node).is_empty());
}

async fn dies_at(failpoint: &str) {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let mut agent = Remote::start(&place, Some(failpoint));
    let order = Orders::of(1).create(shell("echo once; exit 5"));
    agent.manager().await.create(&order).await.unwrap();
    agent.died().await;

    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    let exit = manager.exit(order.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::SelfTerminated, Some(5)),
        "{exit:?}"
    );
    assert_clean(&place, &manager).await;
    assert_eq!(
        text(&manager.logs(&all_logs(order.kernel, true)).await),
        "once\n"
    );
    // The command is known still.
    assert!(manager.create(&order).await.unwrap().state.exit().is_some());
    let events = manager.events_until(0, |e| e.state.exit().is_some()).await;
    assert!(
        events.iter().zip(1..).all(|(e, seq)| e.seq == seq),
        "{events:#?}"
    );
}

macro_rules! failpoints {
    ($($name:ident: $place:literal,)*) => {$(
        #[tokio::test]
        async fn $name() {
            dies_at($place).await;
        }
    )*};
}

failpoints! {
    after_the_journal: "after-journal",
    after_create: "after-create",
    after_start: "after-start",
    before_remove: "before-remove",
    after_remove: "after-remove",
    before_terminated: "before-terminated",
}

#[tokio::test]
async fn at_any_moment() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let orders = Orders::of(1);
    let mut codes = BTreeMap::new();
    // Moments spread over a kernel's life, the same in every run.
    for round in 0..50u64 {
        let mut agent = Remote::start(&place, None);
        let manager = agent.manager().await;
        for code in [1, 2] {
            let order = orders.create(shell(&format!(
                "echo once; sleep 0.{round:02}; exit {code}"
            )));
            if manager.create(&order).await.is_ok() {
                codes.insert(order.kernel, code);
            }
        }
        tokio::time::sleep(Duration::from_millis(round * 67 % 500)).await;
        agent.kill();
    }
    assert!(codes.len() >= 50, "most orders were acknowledged");
    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    for (kernel, code) in codes {
        let exit = manager.exit(kernel).await;
        let told = (exit.reason, exit.code);
        assert_eq!(
            told,
            (ExitReason::SelfTerminated, Some(code)),
            "{kernel} {exit:?}"
        );
        let output = manager.logs(&all_logs(kernel, false)).await;
        assert_eq!(text(&output), "once\n", "{kernel}");
    }
    assert_clean(&place, &manager).await;
}

#[tokio::test]
async fn running_kernels_are_adopted() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let orders = Orders::of(1);
    let stays = orders.create(shell(
        "echo first; while ! [ -e /go ]; do sleep 0.05; done; echo last; exit 4",
    ));
    let ends = orders.create(shell("while ! [ -e /go ]; do sleep 0.05; done; exit 9"));
    let gone = orders.create(shell("sleep 1000"));
    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    for order in [&stays, &ends, &gone] {
        manager.create(order).await.unwrap();
        manager.running(order.kernel).await;
    }
    agent.kill();

    let container = |kernel: meshwork_proto::KernelId| {
        let label = format!("label=ai.meshwork.kernel={kernel}");
        docker::run(&["ps", "-q", "--filter", &label])
    };
    // What happens while nobody looks.
    docker::run(&["exec", &container(ends.kernel), "touch", "/go"]);
    docker::run(&["wait", &container(ends.kernel)]);
    docker::run(&["rm", "-f", &container(gone.kernel)]);

    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    let exit = manager.exit(ends.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::SelfTerminated, Some(9))
    );
    let exit = manager.exit(gone.kernel).await;
    assert_eq!((exit.reason, exit.code), (ExitReason::ContainerLost, None));
    let status = manager.call::<agent::Inspect>(&()).await.unwrap();
    let capacity = status.heartbeat.capacity;
    assert_eq!(
        capacity.cpu_millis - capacity.cpu_free,
        100,
        "the living one's"
    );
    assert_eq!(status.heartbeat.kernels.len(), 1);
    docker::run(&["exec", &container(stays.kernel), "touch", "/go"]);
    assert_eq!(
        text(&manager.logs(&all_logs(stays.kernel, true)).await),
        "first\nlast\n"
    );
    assert_eq!(manager.exit(stays.kernel).await.code, Some(4));
    assert_clean(&place, &manager).await;
}

#[tokio::test]
async fn a_bad_record_harms_no_other_kernel() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let orders = Orders::of(1);
    let (bad, good) = (
        orders.create(shell("sleep 1000")),
        orders.create(shell("sleep 1000")),
    );
    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    for order in [&bad, &good] {
        manager.create(order).await.unwrap();
        manager.running(order.kernel).await;
    }
    agent.kill();
    spoil(&place, bad.kernel);
    let mut agent = Remote::start(&place, None);
    let manager = agent.manager().await;
    assert!(manager.get(bad.kernel).await.is_err());
    assert_eq!(
        manager.get(good.kernel).await.unwrap().state.name(),
        "RUNNING"
    );
    assert_eq!(
        docker::containers(&place.node).len(),
        1,
        "nobody answers for the other one"
    );
    manager
        .stop(good.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(good.kernel).await;
    assert_clean(&place, &manager).await;
}

/// Writes rubbish over a kernel's record.
fn spoil(place: &Place, kernel: meshwork_proto::KernelId) {
    let journal = redb::Database::open(place.dir.path().join("agent/journal.redb")).unwrap();
    let kernels = redb::TableDefinition::<[u8; 16], &[u8]>::new("kernels");
    let tx = journal.begin_write().unwrap();
    tx.open_table(kernels)
        .unwrap()
        .insert(kernel.as_bytes(), &[1, 2, 3][..])
        .unwrap();
    tx.commit().unwrap();
}

#[tokio::test]
async fn only_own_leftovers_are_removed() {
    if support::skipped() {
        return;
    }
    let (place, other) = (Place::new(), Place::new());
    let make = |node: &meshwork_identity::NodeId| {
        let label = format!("ai.meshwork.node={node}");
        docker::run(&[
            "run",
            "-d",
            "--network",
            "none",
            "--label",
            &label,
            support::IMAGE,
            "/bin/sleep",
            "1000",
        ]);
    };
    make(&place.node);
    make(&other.node);
    let mut agent = Remote::start(&place, None);
    agent.manager().await;
    assert!(
        docker::containers(&place.node).is_empty(),
        "removed at the start"
    );
    assert_eq!(docker::containers(&other.node).len(), 1, "another agent's");
    make(&place.node);
    for _ in 0..600 {
        if docker::containers(&place.node).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a container that appears later is not removed");
}
