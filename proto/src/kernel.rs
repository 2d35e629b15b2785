//! Kernels: what one is asked to be, which states it passes, what is told about it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use meshwork_identity::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{KernelId, SessionId};
use crate::limits::{MAX_IMAGE, MAX_LIST, MAX_NAME, MAX_SPEC};
use crate::rpc::RpcError;
use crate::slots::{Allocation, Resources};

/// When an agent fetches an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// When it is missing or the registry holds another digest under its name.
    Digest,
    /// When it is missing.
    #[default]
    Tag,
    /// Never: a missing image is an error.
    None,
}

/// A named folder of the agent, mounted into a kernel. Never a path of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Name of the folder: 1 to 64 of `a-z 0-9 . _ -`, not starting with a dot.
    pub volume: String,
    /// Absolute path in the container.
    pub target: String,
    /// Whether the kernel may only read it.
    pub read_only: bool,
}

/// What a container is to be. Host paths, capabilities, devices and privileges are not in it: the
/// agent alone decides those.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Image reference.
    pub image: String,
    /// When to fetch it.
    pub pull: PullPolicy,
    /// Arguments; empty: the image's own.
    pub command: Vec<String>,
    /// Program that gets them; none: the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Labels, kept on the container.
    pub labels: BTreeMap<String, String>,
    /// Folders.
    pub mounts: Vec<Mount>,
    /// Working directory in the container; none: the image's own.
    pub workdir: Option<String>,
    /// Slots.
    pub resources: Resources,
    /// Time between the polite stop and the kill; none: the agent's default of 10 s.
    pub stop_grace: Option<Duration>,
}

impl KernelSpec {
    /// Refuses what no agent could run, with the name of the field at fault.
    pub fn check(&self) -> Result<(), RpcError> {
        let fail = |what: String| Err(RpcError::invalid(what).reason("spec"));
        if self.image.is_empty() || self.image.len() > MAX_IMAGE {
            return fail(format!("image: a reference has 1 to {MAX_IMAGE} bytes"));
        }
        if self.image.starts_with('-')
            || self
                .image
                .chars()
                .any(|c| c.is_whitespace() || c.is_control())
        {
            return fail(format!(
                "image: `{}` is no image reference",
                self.image.escape_debug()
            ));
        }
        let lists = [
            self.command.len(),
            self.entrypoint.as_ref().map_or(0, Vec::len),
            self.env.len(),
            self.labels.len(),
            self.mounts.len(),
        ];
        if lists.into_iter().any(|n| n > MAX_LIST) {
            return fail(format!(
                "at most {MAX_LIST} arguments, variables, labels or mounts"
            ));
        }
        let strings = self.command.iter().chain(self.entrypoint.iter().flatten());
        let pairs = self.env.iter().chain(&self.labels);
        let size: usize = strings.clone().map(String::len).sum::<usize>()
            + pairs.clone().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        if size > MAX_SPEC {
            return fail(format!(
                "arguments, variables and labels: {size} bytes, at most {MAX_SPEC}"
            ));
        }
        if strings.chain(self.env.values()).any(|s| s.contains('\0')) {
            return fail("arguments and variables must not contain a zero byte".into());
        }
        if let Some(key) = self
            .env
            .keys()
            .find(|k| k.is_empty() || k.contains(['=', '\0']))
        {
            return fail(format!("env: `{}` is no variable name", key.escape_debug()));
        }
        if let Some(key) = self.labels.keys().find(|k| k.starts_with("ai.meshwork.")) {
            return fail(format!(
                "labels: `{key}`: names under `ai.meshwork.` are the agent's own"
            ));
        }
        for mount in &self.mounts {
            mount.check()?;
        }
        if let Some(path) = self.workdir.as_ref().filter(|path| !is_absolute(path)) {
            return fail(format!(
                "workdir: `{}` is no absolute path",
                path.escape_debug()
            ));
        }
        self.check_resources()
    }

    fn check_resources(&self) -> Result<(), RpcError> {
        let fail = |what: &str| Err(RpcError::invalid(what).reason("spec"));
        if self.resources.cpu_millis == 0 || self.resources.mem < MIN_MEMORY {
            return fail(&format!(
                "resources: at least 0.001 cpu and {} MiB of memory",
                MIN_MEMORY >> 20
            ));
        }
        if self.resources.shm > self.resources.mem {
            return fail("resources: shared memory lies inside `mem` and cannot be larger");
        }
        if self
            .resources
            .gpu
            .as_ref()
            .is_some_and(|gpu| gpu.count == 0)
        {
            return fail("resources: a GPU request is for one device or more");
        }
        Ok(())
    }
}

/// Docker refuses containers with less memory than this, in bytes.
const MIN_MEMORY: u64 = 6 << 20;

impl Mount {
    fn check(&self) -> Result<(), RpcError> {
        let fail = |what: String| Err(RpcError::invalid(what).reason("spec"));
        if !is_name(&self.volume) {
            return fail(format!(
                "mount: `{}` is no volume name: 1 to {MAX_NAME} of a-z, 0-9, `.`, `_`, `-`, starting with a letter or digit",
                self.volume.escape_debug()
            ));
        }
        let clean = is_absolute(&self.target)
            && self.target.len() > 1
            && !self.target.contains([':', ','])
            && !self
                .target
                .split('/')
                .any(|part| part == ".." || part == ".");
        if !clean {
            return fail(format!(
                "mount: `{}` is no absolute path below / in the container",
                self.target.escape_debug()
            ));
        }
        let guarded = ["/proc", "/sys", "/dev"];
        if guarded
            .iter()
            .any(|g| self.target == *g || self.target.starts_with(&format!("{g}/")))
        {
            return fail(format!("mount: `{}` belongs to the system", self.target));
        }
        Ok(())
    }
}

/// Whether `path` is one that Linux takes (`PATH_MAX`), from the root.
fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && path.len() < 4096 && !path.contains('\0')
}

/// Whether `text` is a name of ours: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
        })
}

/// Where a kernel is in its life (design §8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelState {
    /// Slots are reserved, nothing is made yet.
    Preparing,
    /// Its image is being fetched.
    Pulling,
    /// The container is being made.
    Creating,
    /// It runs.
    Running,
    /// It is being started again.
    Restarting,
    /// It is being stopped and cleaned up.
    Terminating,
    /// Nothing of it is left but its record and its logs.
    Terminated(Exit),
}

impl KernelState {
    /// Upper-case name as in the design: `RUNNING`, ….
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "PREPARING",
            Self::Pulling => "PULLING",
            Self::Creating => "CREATING",
            Self::Running => "RUNNING",
            Self::Restarting => "RESTARTING",
            Self::Terminating => "TERMINATING",
            Self::Terminated(_) => "TERMINATED",
        }
    }

    /// Whether the kernel has ended for good.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Terminated(exit) => Some(exit),
            _ => None,
        }
    }
}

/// Why a kernel ended. The first reason wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// Its own process ended.
    SelfTerminated,
    /// A user asked.
    UserRequested,
    /// It used more memory than it was given.
    OutOfMemory,
    /// It never came to run: image, container or start failed.
    FailedToStart,
    /// The agent found no container of it when it came back.
    ContainerLost,
    /// A newer generation of it runs elsewhere.
    Superseded,
    /// A phase took longer than its deadline.
    DeadlineExceeded,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SelfTerminated => "self-terminated",
            Self::UserRequested => "user-requested",
            Self::OutOfMemory => "out-of-memory",
            Self::FailedToStart => "failed-to-start",
            Self::ContainerLost => "container-lost",
            Self::Superseded => "superseded",
            Self::DeadlineExceeded => "deadline-exceeded",
        })
    }
}

/// How a kernel ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// Exit code of its process (128 + signal when killed); none when it never ran or was lost.
    pub code: Option<i32>,
    /// Whether the kernel's out-of-memory killer struck.
    pub oom: bool,
    /// What went wrong, for people.
    pub message: Option<String>,
}

/// What an agent knows about one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    /// Which.
    pub kernel: KernelId,
    /// Of which session.
    pub session: SessionId,
    /// Which try at running it.
    pub attempt: u32,
    /// Larger wins when two agents hold the same kernel.
    pub generation: u64,
    /// Who signed its order.
    pub owner: NodeId,
    /// Its image.
    pub image: String,
    /// Where it is in its life.
    pub state: KernelState,
    /// What it was given.
    pub allocation: Allocation,
    /// When the order was accepted.
    pub created_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::GpuRequest;

    fn spec() -> KernelSpec {
        KernelSpec {
            image: "busybox".into(),
            ..KernelSpec::default()
        }
    }

    #[test]
    fn hostile_specs_are_refused() {
        assert!(spec().check().is_ok());
        for image in ["", "-v", "a b", "x\n", &"a".repeat(600)] {
            assert!(
                KernelSpec {
                    image: image.into(),
                    ..spec()
                }
                .check()
                .is_err(),
                "{image:?}"
            );
        }
        for (volume, target) in [
            ("../etc", "/data"),
            ("", "/data"),
            (".ssh", "/data"),
            ("code", "data"),
            ("code", "/"),
            ("code", "/a/../../etc"),
            ("code", "/proc/sys"),
            ("code", "/dev"),
            ("code", "/a:b"),
        ] {
            let mounts = vec![Mount {
                volume: volume.into(),
                target: target.into(),
                read_only: false,
            }];
            assert!(
                KernelSpec { mounts, ..spec() }.check().is_err(),
                "{volume} {target}"
            );
        }
        for (workdir, fits) in [("/srv", true), ("srv", false), ("", false), ("/a\0", false)] {
            let workdir = Some(workdir.to_owned());
            assert_eq!(KernelSpec { workdir, ..spec() }.check().is_ok(), fits);
        }
        let mut none = spec();
        none.resources.gpu = Some(GpuRequest::default());
        assert!(none.check().is_err(), "no GPU is not a GPU request");
        let entrypoint = Some(vec![String::new(); MAX_LIST + 1]);
        assert!(
            KernelSpec {
                entrypoint,
                ..spec()
            }
            .check()
            .is_err()
        );
        let env = BTreeMap::from([("A=B".to_owned(), String::new())]);
        assert!(KernelSpec { env, ..spec() }.check().is_err());
        let labels = BTreeMap::from([("ai.meshwork.owner".to_owned(), String::new())]);
        assert!(KernelSpec { labels, ..spec() }.check().is_err());
    }
}
