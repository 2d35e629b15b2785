//! The machine as the system tells of it: procfs, sysfs and the control groups that this process
//! lives in. Every reader takes the root of the file system, so that tests can give it another.

mod cgroup;

use std::collections::BTreeSet;
use std::path::Path;

use meshwork_proto::announcement::{Disk, Gpu, Hardware, Software};

/// What a node announces of its machine. `data_dir` must exist; who knows the container backend and
/// the CUDA version fills them in.
pub fn collect(data_dir: &Path, gpus: Vec<Gpu>) -> (Hardware, Software) {
    let root = Path::new("/");
    let machine = machine(root);
    let disks = rustix::fs::statvfs(data_dir).map_or_else(
        |_| Vec::new(),
        |fs| {
            vec![Disk {
                purpose: "data".into(),
                total: fs.f_blocks.saturating_mul(fs.f_frsize),
            }]
        },
    );
    let hardware = Hardware {
        arch: std::env::consts::ARCH.into(),
        cpu_model: machine.cpu_model,
        cpu_threads: u32::try_from(machine.cpu_millis / 1000)
            .unwrap_or(u32::MAX)
            .max(1),
        cpu_cores: machine.cores,
        memory: machine.memory,
        numa_nodes: machine.numa_nodes,
        disks,
        gpus,
    };
    let software = Software {
        os: os_name(root),
        kernel: text(root, "proc/sys/kernel/osrelease").unwrap_or_default(),
        container_backend: None,
        cuda: None,
        rocm: text(root, "opt/rocm/.info/version"),
        meshwork: env!("CARGO_PKG_VERSION").into(),
    };
    (hardware, software)
}

/// What of the machine this process and its containers may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub cpu_model: String,
    /// Usable hardware threads, by number.
    pub cpus: Vec<u32>,
    /// Thousandths of them: less than all where a quota is set.
    pub cpu_millis: u64,
    /// Physical cores.
    pub cores: u32,
    /// Usable bytes of memory.
    pub memory: u64,
    pub numa_nodes: u32,
}

/// Reads the machine below `root`. What cannot be read counts as one thread and no memory.
pub(crate) fn machine(root: &Path) -> Machine {
    let limits = cgroup::limits(root);
    let online = text(root, "sys/devices/system/cpu/online").and_then(|t| numbers(&t));
    let online = online.unwrap_or_else(|| BTreeSet::from([0]));
    let cpus: Vec<u32> = match &limits.cpus {
        Some(allowed) => online.intersection(allowed).copied().collect(),
        None => online.into_iter().collect(),
    };
    let all = cpus.len() as u64 * 1000;
    let memory = memory(root).unwrap_or_default();
    Machine {
        cpu_model: cpu_model(root).unwrap_or_else(|| "unknown".into()),
        cores: cores(root, &cpus),
        cpu_millis: limits.cpu_millis.map_or(all, |quota| quota.min(all)),
        memory: limits.memory.map_or(memory, |limit| limit.min(memory)),
        numa_nodes: text(root, "sys/devices/system/node/online")
            .and_then(|t| numbers(&t))
            .map_or(1, |n| u32::try_from(n.len()).unwrap_or(1)),
        cpus,
    }
}

/// One-minute load average in thousandths; 0 when it cannot be read.
pub(crate) fn load_millis() -> u32 {
    let load = text(Path::new("/"), "proc/loadavg");
    load.and_then(|t| millis(t.split_whitespace().next()?))
        .unwrap_or_default()
}

/// `0.52` as 520. The system writes two decimals.
fn millis(text: &str) -> Option<u32> {
    let (whole, cents) = text.split_once('.')?;
    let cents: u32 = (cents.len() == 2).then(|| cents.parse().ok())??;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(cents * 10)
}

/// The file's text without the blanks around it; none when it is empty or cannot be read.
fn text(root: &Path, path: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(path)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Most numbers in a list of the system's, so that a broken one does not fill the memory.
const MAX_NUMBERS: u32 = 65_536;

/// `0-3,8` as a set.
fn numbers(list: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (
            first.trim().parse::<u32>().ok()?,
            last.trim().parse::<u32>().ok()?,
        );
        if last >= MAX_NUMBERS {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Model of the first processor. ARM names only the implementer and part.
fn cpu_model(root: &Path) -> Option<String> {
    let info = text(root, "proc/cpuinfo")?;
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
    };
    field("model name").or_else(|| field("Model")).or_else(|| {
        let (maker, part) = (field("CPU implementer")?, field("CPU part")?);
        Some(format!("ARM {maker}:{part}"))
    })
}

/// Distinct cores among the threads.
fn cores(root: &Path, cpus: &[u32]) -> u32 {
    let read = |cpu: &u32, name: &str| {
        text(
            root,
            &format!("sys/devices/system/cpu/cpu{cpu}/topology/{name}"),
        )
    };
    let place = |cpu: &u32| match (read(cpu, "physical_package_id"), read(cpu, "core_id")) {
        (Some(package), Some(core)) => (package, core),
        // A thread without a place counts as a core.
        _ => (String::new(), cpu.to_string()),
    };
    let cores: BTreeSet<_> = cpus.iter().map(place).collect();
    u32::try_from(cores.len()).unwrap_or(u32::MAX)
}

fn memory(root: &Path) -> Option<u64> {
    let info = text(root, "proc/meminfo")?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn os_name(root: &Path) -> String {
    let release = text(root, "etc/os-release").or_else(|| text(root, "usr/lib/os-release"));
    let name = release
        .as_deref()
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("PRETTY_NAME=")
                .map(|name| name.trim_matches('"').to_owned())
        });
    name.unwrap_or_else(|| std::env::consts::OS.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name)
    }

    #[test]
    fn a_recorded_machine_with_control_groups_v1() {
        let machine = machine(&fixture("cgroup-v1"));
        assert_eq!(machine.cpu_model, "AMD EPYC 7B13");
        assert_eq!(machine.cpus, [0, 1, 2], "the cpuset leaves three of four");
        assert_eq!(
            machine.cpu_millis, 2500,
            "and the quota of the parent two and a half"
        );
        assert_eq!(machine.cores, 2);
        assert_eq!(
            machine.memory,
            8 << 30,
            "limited below the 16 GB that are there"
        );
        assert_eq!(machine.numa_nodes, 2);
        assert_eq!(
            os_name(&fixture("cgroup-v1")),
            "Debian GNU/Linux 12 (bookworm)"
        );
    }

    #[test]
    fn a_recorded_machine_with_control_groups_v2() {
        let machine = machine(&fixture("cgroup-v2"));
        assert_eq!(machine.cpu_model, "ARM 0x41:0xd0c");
        assert_eq!(machine.cpus, [0, 1, 2, 3, 8, 9]);
        assert_eq!(machine.cpu_millis, 1500);
        assert_eq!(machine.cores, 6, "no topology: each thread is one");
        assert_eq!(
            machine.memory,
            4 << 30,
            "that of the parent, as the group's own is `max`"
        );
        assert_eq!(machine.numa_nodes, 1);
    }

    #[test]
    fn an_empty_machine_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        assert_eq!(
            (machine.cpus, machine.cpu_millis, machine.memory),
            (vec![0], 1000, 0)
        );
    }

    #[test]
    fn lists_and_loads_read() {
        assert_eq!(numbers("0-2,8\n"), Some(BTreeSet::from([0, 1, 2, 8])));
        for bad in ["", "a", "1-", "-1", "0-4294967295"] {
            assert_eq!(numbers(bad), None, "{bad}");
        }
        assert_eq!(millis("0.52"), Some(520));
        assert_eq!(millis("12.05"), Some(12_050));
        assert_eq!(millis("x"), None);
    }

    #[test]
    fn this_machine_has_something_to_tell() {
        let dir = tempfile::tempdir().unwrap();
        let (hardware, software) = collect(dir.path(), Vec::new());
        assert!(hardware.cpu_threads >= 1 && hardware.cpu_cores >= 1);
        assert!(hardware.memory > 0 && hardware.disks[0].total > 0);
        assert!(!software.os.is_empty() && !software.kernel.is_empty());
    }
}
