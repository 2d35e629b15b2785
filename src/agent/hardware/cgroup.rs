//! Limits that control groups of either version set on this process. Each group on the way up to
//! the root may set one; the tightest holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{numbers, text};

/// What the groups leave; none where they set no limit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub cpus: Option<BTreeSet<u32>>,
    pub cpu_millis: Option<u64>,
    pub memory: Option<u64>,
}

/// Where the second version is mounted: alone, or beside the first.
const V2: [&str; 2] = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];

pub(super) fn limits(root: &Path) -> Limits {
    let mut limits = Limits::default();
    for line in text(root, "proc/self/cgroup").unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mounts: Vec<PathBuf> = if controllers.is_empty() {
            V2.iter().map(PathBuf::from).collect()
        } else {
            // `cpu` and `cpu,cpuacct` are both names of mounts in use.
            let names = std::iter::once(controllers).chain(controllers.split(','));
            names.map(|c| Path::new("sys/fs/cgroup").join(c)).collect()
        };
        for mount in mounts {
            for dir in upwards(&mount, group) {
                limits.tighten(root, &dir);
            }
        }
    }
    limits
}

/// The group's folder and those above it, as far as the mount. In a container the path may be one
/// of the host that is not there: the mount itself is then the group.
fn upwards(mount: &Path, group: &str) -> Vec<PathBuf> {
    let own = mount.join(group.trim_start_matches('/'));
    let above = own.ancestors().take_while(|dir| dir.starts_with(mount));
    above
        .filter(|dir| !dir.components().any(|c| c.as_os_str() == ".."))
        .map(Path::to_owned)
        .collect()
}

impl Limits {
    fn tighten(&mut self, root: &Path, dir: &Path) {
        let read = |name: &str| text(root, &dir.join(name).to_string_lossy());
        let number = |name: &str| read(name)?.parse::<u64>().ok();

        let own = read("cpuset.cpus.effective").or_else(|| read("cpuset.effective_cpus"));
        if let Some(cpus) = own
            .or_else(|| read("cpuset.cpus"))
            .and_then(|t| numbers(&t))
        {
            self.cpus = Some(match self.cpus.take() {
                Some(known) => known.intersection(&cpus).copied().collect(),
                None => cpus,
            });
        }
        // `max 100000` and a quota of -1 are no limit, and no numbers.
        let quota = match read("cpu.max") {
            Some(text) => text.split_once(' ').and_then(|(quota, period)| {
                Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?))
            }),
            None => number("cpu.cfs_quota_us").zip(number("cpu.cfs_period_us")),
        };
        if let Some((quota, period)) = quota
            && period > 0
        {
            least(&mut self.cpu_millis, quota.saturating_mul(1000) / period);
        }
        for name in ["memory.max", "memory.limit_in_bytes"] {
            if let Some(bytes) = number(name) {
                least(&mut self.memory, bytes);
            }
        }
    }
}

fn least(known: &mut Option<u64>, new: u64) {
    *known = Some(known.map_or(new, |known| known.min(new)));
}
