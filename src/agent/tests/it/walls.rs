//! What a container cannot do, whatever runs in it.

use std::time::Duration;

use meshwork_proto::agent;
use meshwork_proto::kernel::{ExitReason, Mount};

use crate::support::{self, Client, Orders, Place, all_logs, docker, shell, text};

/// Runs `script` and returns its exit code and output.
async fn run(manager: &Client, spec: meshwork_proto::kernel::KernelSpec) -> (i32, String) {
    let order = Orders::of(1).create(spec);
    manager.create(&order).await.unwrap();
    let exit = manager.exit(order.kernel).await;
    let output = text(&manager.logs(&all_logs(order.kernel, false)).await);
    (exit.code.unwrap_or_else(|| panic!("{exit:?}")), output)
}

#[tokio::test]
async fn no_way_out() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    for attempt in [
        "mount -t tmpfs none /bin",
        "mknod /disk b 8 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo x > /sys/kernel/mm/ksm/run",
        "ls /var/run/docker.sock",
        "cat /proc/1/root/etc/shadow",
    ] {
        let (code, output) = run(&manager, shell(attempt)).await;
        assert_ne!(code, 0, "{attempt}: {output}");
    }
    let (_, caps) = run(
        &manager,
        shell("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"),
    )
    .await;
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, KILL 5, SETGID 6, SETUID 7.
    let allowed = "00000000000000eb";
    for line in [
        format!("CapEff:\t{allowed}"),
        format!("CapBnd:\t{allowed}"),
        "NoNewPrivs:\t1".into(),
        "Seccomp:\t2".into(),
    ] {
        assert!(caps.contains(&line), "{line} is not in\n{caps}");
    }
}

#[tokio::test]
async fn too_much_memory_ends_the_kernel_and_says_so() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell("x=0123456789abcdef; while true; do x=$x$x; done"));
    manager.create(&order).await.unwrap();
    let exit = manager.exit(order.kernel).await;
    assert_eq!(
        (exit.reason, exit.code, exit.oom),
        (ExitReason::OutOfMemory, Some(137), true)
    );
}

#[tokio::test]
async fn a_fork_bomb_stays_small() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let mut config = place.config();
    config.bounds.pids = 32;
    let local = place.agent_with(config).await;
    let manager = local.manager();
    let order = Orders::of(1).create(shell(
        "bomb() { bomb | bomb & }; bomb; while true; do sleep 1; done",
    ));
    manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;
    // The agent goes on.
    let id = &docker::containers(&place.node)[0];
    let pids: u32 = docker::run(&["stats", "--no-stream", "--format", "{{.PIDs}}", id])
        .parse()
        .unwrap();
    assert!(pids <= 32, "{pids}");
    manager
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(order.kernel).await;
}

#[tokio::test]
async fn limits_are_those_of_the_allocation() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let mut spec = shell("sleep 1000");
    spec.resources.cpu_millis = 700;
    let order = Orders::of(1).create(spec);
    let view = manager.create(&order).await.unwrap();
    manager.running(order.kernel).await;
    let id = &docker::containers(&place.node)[0];
    let told = docker::inspect(
        id,
        "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpusetCpus}} {{.HostConfig.ShmSize}} {{.HostConfig.Privileged}}",
    );
    let (mem, cpu) = (64 << 20, view.allocation.cpus[0]);
    assert_eq!(told, format!("{mem} {mem} 70000 {cpu} {} false", 1 << 20));
    assert_eq!(view.allocation.cpus.len(), 1);
    for (label, value) in [
        ("ai.meshwork.node", place.node.to_string()),
        ("ai.meshwork.kernel", order.kernel.to_string()),
        ("ai.meshwork.owner", support::user(1).node_id().to_string()),
        ("ai.meshwork.attempt", "1".into()),
        ("ai.meshwork.generation", "1".into()),
        ("ai.backend.kernel-id", order.kernel.to_string()),
    ] {
        assert_eq!(
            docker::inspect(id, &format!("{{{{index .Config.Labels \"{label}\"}}}}")),
            value
        );
    }
    let capacity = manager
        .call::<agent::Inspect>(&())
        .await
        .unwrap()
        .heartbeat
        .capacity;
    assert_eq!(capacity.cpu_millis - capacity.cpu_free, 700);
    assert_eq!(capacity.mem - capacity.mem_free, 64 << 20);
}

#[tokio::test]
async fn volumes_are_their_owners_and_stay() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let local = place.agent().await;
    let manager = local.manager();
    let with = |script: &str, read_only| {
        let mut spec = shell(script);
        spec.mounts.push(Mount {
            volume: "code".into(),
            target: "/code".into(),
            read_only,
        });
        spec
    };
    assert_eq!(
        run(&manager, with("echo kept > /code/file", false)).await.0,
        0
    );
    assert_eq!(
        run(&manager, with("cat /code/file", true)).await,
        (0, "kept\n".into())
    );
    assert_ne!(run(&manager, with("echo no > /code/file", true)).await.0, 0);
    let other = Orders::of(2).create(with("ls /code | grep -c .", false));
    manager.create(&other).await.unwrap();
    manager.exit(other.kernel).await;
    assert_eq!(
        text(&manager.logs(&all_logs(other.kernel, false)).await),
        "0\n"
    );
}
