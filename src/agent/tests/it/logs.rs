//! Output: whole, in order, from the past into the present and past the end.

use std::time::Duration;

use futures_util::StreamExt;
use meshwork_proto::agent::{self, KernelLogs};

use crate::support::{self, Orders, Place, all_logs, shell, text};

fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    range.fold(String::new(), |text, n| text + &n.to_string() + "\n")
}

#[tokio::test]
async fn followed_from_before_the_start_to_after_the_end() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("seq 1 3000; sleep 0.3; seq 3001 6000"));
    manager.create(&order).await.unwrap();
    let whole = numbers(1..=6000);
    let (early, late) = (manager.clone(), manager.clone());
    let (early, late) = tokio::join!(
        async { early.logs(&all_logs(order.kernel, true)).await },
        async {
            late.running(order.kernel).await;
            late.logs(&all_logs(order.kernel, true)).await
        },
    );
    assert_eq!(text(&early), whole);
    assert_eq!(text(&late), whole);
    manager.exit(order.kernel).await;
    assert_eq!(
        text(&manager.logs(&all_logs(order.kernel, false)).await),
        whole
    );
}

#[tokio::test]
async fn the_last_lines_and_the_recent_ones() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("seq 1 5; sleep 1.2; seq 6 9; sleep 1000"));
    manager.create(&order).await.unwrap();
    let mut live = manager
        .stream::<agent::Logs>(&all_logs(order.kernel, true))
        .await
        .unwrap();
    let mut chunks = Vec::new();
    while text(&chunks) != numbers(1..=9) {
        chunks.push(live.next().await.unwrap().unwrap());
    }
    let since = chunks[5].at;
    let tail = KernelLogs {
        tail: Some(2),
        ..all_logs(order.kernel, false)
    };
    let recent = KernelLogs {
        since,
        ..all_logs(order.kernel, false)
    };
    let none = KernelLogs {
        tail: Some(0),
        ..all_logs(order.kernel, false)
    };
    // From the container, and then from the file.
    for _ in 0..2 {
        assert_eq!(text(&manager.logs(&tail).await), "8\n9\n");
        assert_eq!(text(&manager.logs(&recent).await), numbers(6..=9));
        assert_eq!(text(&manager.logs(&none).await), "");
        manager
            .stop(order.kernel, Some(Duration::ZERO))
            .await
            .unwrap();
        manager.exit(order.kernel).await;
    }
    assert!(
        live.next().await.is_none(),
        "the follower ends with the kernel"
    );
}

#[tokio::test]
async fn no_more_is_kept_than_allowed() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let mut config = place.config();
    config.bounds.log_bytes = 200_000;
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("seq 1 100000"));
    manager.create(&order).await.unwrap();
    manager.exit(order.kernel).await;
    let kept = text(&manager.logs(&all_logs(order.kernel, true)).await);
    assert!(kept.len() <= 200_000, "{}", kept.len());
    assert!(kept.ends_with("99999\n100000\n"), "the newest stay");
}

#[tokio::test]
async fn the_output_of_the_longest_dead_goes_first() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let mut config = place.config();
    config.bounds.dead_log_bytes = 15_000;
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let orders = Orders::of(1);
    let mut kernels = Vec::new();
    for _ in 0..3 {
        let order = orders.create(shell("head -c 6000 /dev/zero"));
        manager.create(&order).await.unwrap();
        manager.exit(order.kernel).await;
        kernels.push(order.kernel);
    }
    let kept = |n: usize| support::log_dir(&place, kernels[n]).exists();
    let dropped = async {
        while kept(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, dropped)
        .await
        .expect("the oldest output goes");
    assert!(kept(1) && kept(2), "and no other");
    assert!(
        manager
            .get(kernels[0])
            .await
            .unwrap()
            .state
            .exit()
            .is_some()
    );
}

#[tokio::test]
async fn a_kernel_that_failed_has_no_output() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let mut spec = shell("true");
    spec.image = "meshwork-test/no-such-image".into();
    spec.pull = meshwork_proto::kernel::PullPolicy::None;
    let order = Orders::of(1).create(spec);
    manager.create(&order).await.unwrap();
    assert!(manager.logs(&all_logs(order.kernel, true)).await.is_empty());
    let exit = manager.exit(order.kernel).await;
    assert!(exit.message.unwrap().contains("no-such-image"));
}
