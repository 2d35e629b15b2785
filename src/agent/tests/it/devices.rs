//! Accelerators: pretended ones, and those of a driver that answers, fails or hangs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_agent::AgentConfig;
use meshwork_proto::agent;
use meshwork_proto::kernel::ExitReason;
use meshwork_proto::slots::{Capacity, GpuRequest, Health};

use crate::support::{self, Client, Orders, Place, all_logs, shell, text};

const MOCK: &str = r#"
    slot_name = "cuda"
    [[devices]]
    mother_uuid = "mock-small"
    model_name = "A10"
    memory_size = "24GB"
    [[devices]]
    mother_uuid = "mock-large"
    model_name = "H100"
    memory_size = "80GB"
"#;

fn gpu_spec(script: &str, request: &str) -> meshwork_proto::kernel::KernelSpec {
    let mut spec = shell(script);
    spec.resources.gpu = Some(request.parse::<GpuRequest>().unwrap());
    spec
}

async fn capacity(manager: &Client) -> Capacity {
    manager
        .call::<agent::Inspect>(&())
        .await
        .unwrap()
        .heartbeat
        .capacity
}

#[tokio::test]
async fn pretended_gpus_are_given_out_one_by_one() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    std::fs::write(place.dir.path().join("mock.toml"), MOCK).unwrap();
    let local = place.agent().await;
    let manager = local.manager();
    let names: Vec<String> = local.agent.gpus().into_iter().map(|g| g.model).collect();
    assert_eq!(names, ["A10", "H100"]);

    let orders = Orders::of(1);
    let script = "echo $CUDA_VISIBLE_DEVICES $GPU_COUNT $GPU_MODEL_NAME; sleep 1000";
    let order = orders.create(gpu_spec(script, "40GB.."));
    let view = manager.create(&order).await.unwrap();
    assert_eq!(view.allocation.gpus[0].uuid, "mock-large");
    let mut live = manager
        .stream::<agent::Logs>(&all_logs(order.kernel, true))
        .await
        .unwrap();
    let line = live.next().await.unwrap().unwrap();
    assert_eq!(line.data, "mock-large 1 H100\n");
    let gpus = capacity(&manager).await.gpus;
    assert_eq!((gpus[0].kernel, gpus[1].kernel), (None, Some(order.kernel)));
    let second = orders.create(gpu_spec("true", "H100:1"));
    let error = manager.create(&second).await.unwrap_err();
    assert!(error.message.contains("gpu: needs H100:1"), "{error}");

    manager
        .stop(order.kernel, Some(Duration::ZERO))
        .await
        .unwrap();
    manager.exit(order.kernel).await;
    manager.create(&second).await.unwrap();
    manager.exit(second.kernel).await;
    let plain = orders.create(shell("echo $NVIDIA_VISIBLE_DEVICES"));
    manager.create(&plain).await.unwrap();
    manager.exit(plain.kernel).await;
    assert_eq!(
        text(&manager.logs(&all_logs(plain.kernel, false)).await),
        "void\n"
    );
}

/// The probe process's part, started by an agent under test.
#[test]
#[ignore = "started by other tests as their GPU probe"]
fn probe() {
    std::process::exit(meshwork_agent::probe_main());
}

/// A driver made for one test, whose mood is a word in a file.
struct Driver {
    mood: PathBuf,
    command: Vec<OsString>,
}

impl Driver {
    fn build(dir: &Path) -> Self {
        let (library, mood) = (dir.join("libnvidia-ml.so"), dir.join("mood"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/nvml_stub.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .status()
            .expect("this test needs a C compiler");
        assert!(compiled.success());
        // The library's path and the mood go by way of `env`: a test must not change its own.
        let set = |name: &str, path: &Path| {
            let mut text = OsString::from(format!("{name}="));
            text.push(path);
            text
        };
        let program = dir.join("probe.sh");
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nexec \"{}\" --exact devices::probe --ignored --nocapture --quiet\n",
            exe.display()
        );
        std::fs::write(&program, script).unwrap();
        let command = vec![
            "env".into(),
            set("MESHWORK_NVML_LIB", &library),
            set("MESHWORK_STUB", &mood),
            "sh".into(),
            program.into(),
        ];
        Self { mood, command }
    }

    fn set(&self, mood: &str) {
        std::fs::write(&self.mood, mood).unwrap();
    }

    fn config(&self, place: &Place) -> AgentConfig {
        let mut config = place.config();
        config.nvml = Some(self.command.clone());
        config.probe_every = Duration::from_millis(100);
        config.deadlines.probe = Duration::from_secs(2);
        config
    }
}

/// Waits until the devices are as `wanted` says.
async fn until(manager: &Client, wanted: impl Fn(&Capacity) -> bool) -> Capacity {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    loop {
        let capacity = capacity(manager).await;
        if wanted(&capacity) {
            return capacity;
        }
        assert!(tokio::time::Instant::now() < deadline, "{capacity:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_driver_may_answer_fail_and_hang() {
    if support::skipped() {
        return;
    }
    let place = Place::new();
    let driver = Driver::build(place.dir.path());
    driver.set("ok");
    let local = place.agent_with(driver.config(&place)).await;
    let manager = local.manager();
    let gpus = local.agent.gpus();
    assert_eq!(gpus.len(), 2);
    let first = &gpus[0];
    assert_eq!(
        (first.vendor.as_str(), first.model.as_str()),
        ("nvidia", "NVIDIA H100 80GB HBM3")
    );
    assert_eq!(
        (first.vram, first.compute_capability),
        (80 << 30, Some((9, 0)))
    );
    assert_eq!(
        (first.driver.as_str(), first.uuid.as_str()),
        ("580.1", "GPU-one")
    );
    assert_eq!((first.mig, first.numa), (false, Some(1)));
    assert_eq!(local.agent.cuda().as_deref(), Some("13.0"));
    assert_eq!(capacity(&manager).await.gpus[1].vram_used, 1 << 20);

    let health =
        |capacity: &Capacity| -> Vec<Health> { capacity.gpus.iter().map(|g| g.health).collect() };
    driver.set("lost");
    until(&manager, |c| health(c) == [Health::Ok, Health::Unknown]).await;
    for mood in ["fail", "crash", "hang"] {
        driver.set(mood);
        until(&manager, |c| health(c) == [Health::Unknown; 2]).await;
        let order = Orders::of(1).create(gpu_spec("true", "1"));
        assert!(manager.create(&order).await.is_err(), "{mood}");
        // The agent goes on with what needs no GPU.
        let plain = Orders::of(1).create(shell("exit 2"));
        manager.create(&plain).await.unwrap();
        assert_eq!(manager.exit(plain.kernel).await.code, Some(2));
        driver.set("ok");
        until(&manager, |c| health(c) == [Health::Ok; 2]).await;
    }

    // Docker here knows no NVIDIA devices: it says so, and nothing stays taken.
    let order = Orders::of(1).create(gpu_spec("true", "2"));
    let view = manager.create(&order).await.unwrap();
    let given: BTreeSet<_> = view
        .allocation
        .gpus
        .iter()
        .map(|g| g.uuid.as_str())
        .collect();
    assert_eq!(given, BTreeSet::from(["GPU-one", "GPU-two"]));
    let exit = manager.exit(order.kernel).await;
    assert_eq!(exit.reason, ExitReason::FailedToStart);
    assert!(
        capacity(&manager)
            .await
            .gpus
            .iter()
            .all(|g| g.kernel.is_none())
    );
}

#[tokio::test]
async fn an_agent_starts_beside_a_hung_or_missing_driver() {
    if support::skipped() {
        return;
    }
    for mood in ["hang", "none"] {
        let place = Place::new();
        let driver = Driver::build(place.dir.path());
        driver.set(mood);
        let local = place.agent_with(driver.config(&place)).await;
        assert!(local.agent.gpus().is_empty());
        assert!(capacity(&local.manager()).await.gpus.is_empty());
    }
}
