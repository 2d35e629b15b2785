//! The container daemon goes away and comes back, and the agent stops and starts: nothing is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_proto::agent::{self, AckEvents, EventItem, Events};
use meshwork_proto::kernel::ExitReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{self, Orders, Place, all_logs, docker, shell, text};

/// Docker's socket by another name, which can be taken away.
struct Line(JoinHandle<()>, PathBuf);

impl Line {
    fn open(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = UnixStream::connect(docker::socket()).await {
                        drop(copy_bidirectional(&mut near, &mut far).await);
                    }
                });
            }
        });
        Self(task, path.to_owned())
    }

    async fn cut(self) {
        self.0.abort();
        drop(self.0.await);
        std::fs::remove_file(self.1).unwrap();
    }
}

#[tokio::test]
async fn exits_while_docker_is_away_are_told() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let path = place.dir.path().join("docker.sock");
    let line = Line::open(&path);
    let mut config = place.config();
    config.docker_socket = Some(path.clone());
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let order = orders.create(shell("while ! [ -e /go ]; do sleep 0.05; done; exit 9"));
    let stays = orders.create(shell("sleep 1000"));
    for order in [&order, &stays] {
        manager.create(order).await.unwrap();
        manager.running(order.kernel).await;
    }
    line.cut().await;
    for id in docker::containers(&place.node) {
        docker::run(&["exec", &id, "touch", "/go"]);
    }
    // Ordered and stopped while nothing can be done about it.
    let later = orders.create(shell("exit 8"));
    manager.create(&later).await.unwrap();
    manager
        .stop(stays.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let _line = Line::open(&path);
    let exit = manager.exit(order.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::SelfTerminated, Some(9))
    );
    assert_eq!(manager.exit(later.kernel).await.code, Some(8));
    let exit = manager.exit(stays.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::UserRequested, Some(137))
    );
    assert!(docker::containers(&place.node).is_empty());
}

#[tokio::test]
async fn an_acknowledged_kill_outlives_the_agent() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let path = place.dir.path().join("docker.sock");
    let line = Line::open(&path);
    let mut config = place.config();
    config.docker_socket = Some(path.clone());
    let local = place.agent_with(config.clone()).await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("trap '' TERM; while true; do sleep 0.1; done"));
    manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;
    line.cut().await;
    for grace in [Duration::from_mins(5), Duration::ZERO] {
        manager.stop(order.kernel, Some(grace)).await.unwrap();
    }
    local.agent.shutdown(support::PATIENCE).await;
    drop((local, manager));

    let _line = Line::open(&path);
    let manager = place.agent_with(config).await.manager();
    let exit = manager.exit(order.kernel).await;
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::UserRequested, Some(137)),
        "the first stop's five minutes are not waited for"
    );
}

/// Passes on what `near` asks of Docker, but keeps back the answer to the first start until that
/// container has ended, and then hangs up.
async fn lose_start(mut near: UnixStream, lost: Arc<AtomicBool>) -> std::io::Result<()> {
    let mut far = UnixStream::connect(docker::socket()).await?;
    let (mut asked, mut told) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            n = near.read(&mut asked) => match n? {
                0 => return Ok(()),
                n => {
                    far.write_all(&asked[..n]).await?;
                    let head = String::from_utf8_lossy(&asked[..n]).into_owned();
                    let path = head.split_once("/containers/").map(|(_, rest)| rest);
                    if let Some((name, _)) = path.and_then(|p| p.split_once("/start"))
                        && !lost.swap(true, Ordering::Relaxed)
                    {
                        let name = name.to_owned();
                        far.readable().await?;
                        let wait = move || docker::run(&["wait", &name]);
                        tokio::task::spawn_blocking(wait).await.unwrap();
                        return Ok(());
                    }
                }
            },
            n = far.read(&mut told) => match n? {
                0 => return Ok(()),
                n => near.write_all(&told[..n]).await?,
            },
        }
    }
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_not_repeated() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let path = place.dir.path().join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let lost = Arc::new(AtomicBool::new(false));
    let (flag, mut connections) = (Arc::clone(&lost), JoinSet::new());
    let _line = tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            connections.spawn(lose_start(near, Arc::clone(&flag)));
        }
    });
    let mut config = place.config();
    config.docker_socket = Some(path);
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("echo once; exit 5"));
    manager.create(&order).await.unwrap();
    let exit = manager.exit(order.kernel).await;
    assert!(lost.load(Ordering::Relaxed));
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::SelfTerminated, Some(5))
    );
    let output = manager.logs(&all_logs(order.kernel, false)).await;
    assert_eq!(text(&output), "once\n");
}

#[tokio::test]
async fn a_kernel_taken_by_force_is_lost() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("sleep 1000"));
    manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;
    docker::run(&["rm", "-f", &docker::containers(&place.node)[0]]);
    let exit = manager.exit(order.kernel).await;
    // Docker tells of the kill or has forgotten the container, as it happens.
    assert!(
        exit.reason == ExitReason::ContainerLost
            || (exit.reason, exit.code) == (ExitReason::SelfTerminated, Some(137)),
        "{exit:?}"
    );
    let capacity = manager
        .call::<agent::Inspect>(&())
        .await
        .unwrap()
        .heartbeat
        .capacity;
    assert_eq!(capacity.cpu_free, capacity.cpu_millis);
}

#[tokio::test]
async fn stopping_the_agent_stops_no_kernel() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("sleep 1000"));
    manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;
    local.agent.shutdown(support::PATIENCE).await;
    drop((local, manager));
    assert_eq!(
        docker::inspect(&docker::containers(&place.node)[0], "{{.State.Running}}"),
        "true"
    );

    let local = place.agent().await;
    let manager = local.manager();
    assert_eq!(
        manager.get(order.kernel).await.unwrap().state.name(),
        "RUNNING"
    );
    assert_eq!(
        manager
            .call::<agent::Inspect>(&())
            .await
            .unwrap()
            .heartbeat
            .kernels
            .len(),
        1
    );
    manager
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(manager.exit(order.kernel).await.code, Some(137));
}

#[tokio::test]
async fn events_are_kept_until_they_are_acknowledged() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let mut live = manager
        .stream::<agent::Watch>(&Events { after: 0 })
        .await
        .unwrap();
    let EventItem::Heartbeat(first) = live.next().await.unwrap().unwrap() else {
        panic!("a heartbeat comes first when there are no events");
    };
    assert_eq!((first.last_seq, first.kernels.len()), (0, 0));
    assert!(first.capacity.cpu_millis > 0 && first.capacity.mem > 0);
    let order = orders.create(shell("true"));
    manager.create(&order).await.unwrap();
    manager.exit(order.kernel).await;
    let mut seqs = Vec::new();
    while seqs.len() < 5 {
        if let EventItem::Event(event) = live.next().await.unwrap().unwrap() {
            seqs.push(event.seq);
        }
    }
    assert_eq!(seqs, [1, 2, 3, 4, 5]);

    manager
        .call::<agent::Ack>(&AckEvents { up_to: 3 })
        .await
        .unwrap();
    manager
        .call::<agent::Ack>(&AckEvents { up_to: 2 })
        .await
        .unwrap();
    local.agent.shutdown(support::PATIENCE).await;
    assert!(loop {
        match live.next().await {
            Some(item) => assert!(!matches!(item, Ok(EventItem::Event(_)))),
            None => break true,
        }
    });
    drop((local, manager, live));
    let manager = place.agent().await.manager();
    let events = manager.events_until(0, |e| e.seq == 5).await;
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [4, 5]);
    let events = manager.events_until(4, |e| e.seq == 5).await;
    assert_eq!(events.len(), 1);
}
