//! What Docker is told about a container. An allow-list: nothing here depends on the image, and a
//! user decides only what stands in the kernel's typed specification.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountBindOptions, MountType, RestartPolicy, RestartPolicyNameEnum,
};

use crate::backend::{Bind, Plan};

/// What programs that set up their own user and files need. Of Docker's default set the raw
/// sockets, device nodes, file capabilities, `chroot` and low ports are not among them.
const CAPABILITIES: [&str; 6] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
    "SETGID",
    "SETUID",
];
/// Files over which a kernel's output is spread, so that the oldest part can go.
const LOG_FILES: u64 = 5;
/// Period of the CPU quota in microseconds: the system's default.
const CPU_PERIOD: i64 = 100_000;
/// The smallest quota that the system accepts, in microseconds.
const MIN_QUOTA: i64 = 1000;

/// The request that makes a container after `plan`.
pub(super) fn container(plan: &Plan, network: &str) -> ContainerCreateBody {
    ContainerCreateBody {
        hostname: Some("main1".into()),
        image: Some(plan.image.clone()),
        entrypoint: plan.entrypoint.clone(),
        cmd: (!plan.command.is_empty()).then(|| plan.command.clone()),
        working_dir: plan.workdir.clone(),
        env: Some(plan.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
        labels: Some(plan.labels.clone().into_iter().collect()),
        tty: Some(false),
        open_stdin: Some(false),
        host_config: Some(host_config(plan, network)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(plan: &Plan, network: &str) -> HostConfig {
    let mem = signed(plan.mem);
    let cpus: Vec<String> = plan.cpus.iter().map(ToString::to_string).collect();
    HostConfig {
        cpuset_cpus: Some(cpus.join(",")),
        cpu_period: Some(CPU_PERIOD),
        cpu_quota: Some(signed(plan.cpu_millis.saturating_mul(100)).max(MIN_QUOTA)),
        memory: Some(mem),
        // Memory and swap together: no swap.
        memory_swap: Some(mem),
        shm_size: (plan.shm > 0).then(|| signed(plan.shm)),
        pids_limit: Some(plan.pids),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        // The daemon's seccomp profile stays on as long as no other is named here.
        security_opt: Some(vec!["no-new-privileges".into()]),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".into()),
        network_mode: Some(network.into()),
        publish_all_ports: Some(false),
        init: Some(true),
        mounts: Some(plan.mounts.iter().map(mount).collect()),
        device_requests: device_requests(&plan.nvidia),
        log_config: Some(log_config(plan.log_bytes)),
        // The agent decides what is started again, and removes what is over.
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn mount(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.display().to_string()),
        target: Some(bind.target.clone()),
        read_only: Some(bind.read_only),
        bind_options: Some(MountBindOptions {
            non_recursive: Some(true),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

fn device_requests(nvidia: &[String]) -> Option<Vec<DeviceRequest>> {
    let request = DeviceRequest {
        driver: Some("nvidia".into()),
        device_ids: Some(nvidia.to_vec()),
        capabilities: Some(vec![vec!["gpu".into(), "compute".into(), "utility".into()]]),
        ..DeviceRequest::default()
    };
    (!nvidia.is_empty()).then(|| vec![request])
}

fn log_config(bytes: u64) -> HostConfigLogConfig {
    let per_file = (bytes / LOG_FILES).max(1);
    HostConfigLogConfig {
        typ: Some("json-file".into()),
        config: Some(HashMap::from([
            ("max-size".into(), per_file.to_string()),
            ("max-file".into(), LOG_FILES.to_string()),
        ])),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn golden() {
        let plan = Plan {
            name: "k-1".into(),
            image: "pytorch:2.9".into(),
            entrypoint: None,
            command: vec!["python".into(), "train.py".into()],
            env: BTreeMap::from([
                ("A".into(), "1".into()),
                ("CUDA_VISIBLE_DEVICES".into(), "GPU-7".into()),
            ]),
            labels: BTreeMap::from([("ai.meshwork.kernel".into(), "k-1".into())]),
            workdir: Some("/home/work".into()),
            mounts: vec![Bind {
                source: "/data/volumes/o/code".into(),
                target: "/home/work/code".into(),
                read_only: true,
            }],
            cpus: vec![2, 3],
            cpu_millis: 1500,
            mem: 2 << 30,
            shm: 64 << 20,
            pids: 4096,
            log_bytes: 10 << 20,
            nvidia: vec!["GPU-7".into()],
        };
        // By way of a value, whose maps are sorted.
        let value = serde_json::to_value(container(&plan, "meshwork")).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
    }

    #[test]
    fn the_smallest_share_is_one_that_docker_takes() {
        let plan = Plan {
            cpu_millis: 1,
            ..Plan::default()
        };
        assert_eq!(host_config(&plan, "none").cpu_quota, Some(MIN_QUOTA));
    }
}
