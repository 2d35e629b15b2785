//! The fields that a query may name, and where their values stand in an announcement.

use std::fmt;

use meshwork_identity::NodeId;

use super::value::{Kind, Value};
use crate::announcement::{Announcement, Gpu};
use crate::beat::Availability;

/// A closed set of fields.
pub(crate) trait Field: Copy + Eq + fmt::Debug + 'static {
    /// Every field, with its name and kind, in the order in which help shows them.
    const TABLE: &'static [(Self, &'static str, Kind)];
    /// Other names that people write.
    const ALIASES: &'static [(&'static str, Self)];

    /// The name in queries.
    fn name(self) -> &'static str {
        self.row().1
    }

    /// How it compares.
    fn kind(self) -> Kind {
        self.row().2
    }

    /// Whether it changes with every beat, and is unknown of a node without one. What is unknown
    /// satisfies no comparison, `!=` neither.
    fn is_live(self) -> bool;

    /// Whether it ignores letter case.
    fn folds(self) -> bool {
        self.kind() == Kind::Folded
    }

    /// The field with this name or alias.
    fn find(name: &str) -> Option<Self> {
        let row = Self::TABLE
            .iter()
            .find(|row| row.1 == name)
            .map(|row| row.0);
        row.or_else(|| {
            Self::ALIASES
                .iter()
                .find(|row| row.0 == name)
                .map(|row| row.1)
        })
    }

    /// This field's row of the table.
    fn row(self) -> &'static (Self, &'static str, Kind) {
        Self::TABLE
            .iter()
            .find(|row| row.0 == self)
            .expect("the table has every field")
    }
}

/// A field of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeField {
    Id,
    Name,
    Roles,
    Tags,
    Region,
    Subnet,
    Nat,
    Arch,
    Os,
    Kernel,
    CpuModel,
    CpuCores,
    CpuThreads,
    Memory,
    DiskData,
    DiskImages,
    Cuda,
    Rocm,
    Backend,
    BackendVersion,
    Version,
    Images,
    Models,
    Tools,
    Services,
    FreeCpu,
    FreeMemory,
    FreeGpus,
    Healthy,
}

/// A field of one GPU. Names stand without `gpu.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GpuField {
    Vram,
    Vendor,
    Model,
    Driver,
    ComputeCapability,
    Mig,
    Uuid,
    Index,
    Free,
}

/// A node, as a query looks at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) node: &'a NodeId,
    pub(crate) said: &'a Announcement,
    /// What it has free, if that is known.
    pub(crate) free: Option<&'a Availability>,
}

impl<'a> Subject<'a> {
    /// Its GPUs, each with what is free of its memory.
    pub(crate) fn gpus(self) -> impl Iterator<Item = (&'a Gpu, Option<u64>)> {
        let used = self.free.map_or(&[][..], |free| &free.vram_used);
        let used = used
            .iter()
            .copied()
            .map(Some)
            .chain(std::iter::repeat(None));
        let gpus = self.said.hardware.gpus.iter().zip(used);
        gpus.map(|(gpu, used)| (gpu, used.map(|used| gpu.vram.saturating_sub(used))))
    }

    /// The free amount of one slot.
    fn free(self, slot: &str) -> Value<'a> {
        let mut slots = self.free.map_or(&[][..], |free| &free.free).iter();
        let amount = slots.find(|(name, _)| name == slot);
        amount.map_or(Value::Missing, |(_, amount)| Value::Number(*amount))
    }

    /// GPUs that a kernel may be given: `gpu`, or the devices of each kind.
    fn free_gpus(self) -> Value<'a> {
        let Some(free) = self.free else {
            return Value::Missing;
        };
        let is_device = |slot: &str| slot == "gpu" || slot.ends_with(".device");
        let devices = free.free.iter().filter(|(slot, _)| is_device(slot));
        let count = devices.fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        Value::Number(count)
    }
}

impl Field for NodeField {
    const TABLE: &'static [(Self, &'static str, Kind)] = &[
        (Self::Id, "id", Kind::Id),
        (Self::Name, "name", Kind::Text),
        (Self::Roles, "roles", Kind::Roles),
        (Self::Tags, "tags", Kind::Set),
        (Self::Region, "region", Kind::Text),
        (Self::Subnet, "subnet", Kind::Subnet),
        (Self::Nat, "nat", Kind::Folded),
        (Self::Arch, "arch", Kind::Folded),
        (Self::Os, "os", Kind::Folded),
        (Self::Kernel, "kernel", Kind::Folded),
        (Self::CpuModel, "cpu.model", Kind::Folded),
        (Self::CpuCores, "cpu.cores", Kind::Number),
        (Self::CpuThreads, "cpu.threads", Kind::Number),
        (Self::Memory, "mem", Kind::Size),
        (Self::DiskData, "disk.data", Kind::Size),
        (Self::DiskImages, "disk.images", Kind::Size),
        (Self::Cuda, "cuda", Kind::Version),
        (Self::Rocm, "rocm", Kind::Version),
        (Self::Backend, "backend", Kind::Folded),
        (Self::BackendVersion, "backend.version", Kind::Version),
        (Self::Version, "version", Kind::Version),
        (Self::Images, "images", Kind::Set),
        (Self::Models, "models", Kind::Set),
        (Self::Tools, "tools", Kind::Set),
        (Self::Services, "services", Kind::Set),
        (Self::FreeCpu, "free.cpu", Kind::Threads),
        (Self::FreeMemory, "free.mem", Kind::Size),
        (Self::FreeGpus, "free.gpus", Kind::Number),
        (Self::Healthy, "healthy", Kind::Flag),
    ];
    const ALIASES: &'static [(&'static str, Self)] = &[
        ("cores", Self::CpuCores),
        ("threads", Self::CpuThreads),
        ("memory", Self::Memory),
        ("ram", Self::Memory),
        ("disk", Self::DiskData),
        ("role", Self::Roles),
        ("tag", Self::Tags),
        ("image", Self::Images),
        ("tool", Self::Tools),
        ("service", Self::Services),
        ("free.memory", Self::FreeMemory),
        ("free.gpu", Self::FreeGpus),
    ];

    fn is_live(self) -> bool {
        matches!(
            self,
            Self::FreeCpu | Self::FreeMemory | Self::FreeGpus | Self::Healthy
        )
    }
}

impl Field for GpuField {
    const TABLE: &'static [(Self, &'static str, Kind)] = &[
        (Self::Vram, "vram", Kind::Size),
        (Self::Vendor, "vendor", Kind::Folded),
        (Self::Model, "model", Kind::Folded),
        (Self::Driver, "driver", Kind::Version),
        (Self::ComputeCapability, "cc", Kind::Version),
        (Self::Mig, "mig", Kind::Flag),
        (Self::Uuid, "uuid", Kind::Text),
        (Self::Index, "index", Kind::Number),
        (Self::Free, "free", Kind::Size),
    ];
    const ALIASES: &'static [(&'static str, Self)] = &[];

    fn is_live(self) -> bool {
        self == Self::Free
    }
}

/// Other names of `gpu.free`, as they stand outside `gpu[…]`.
pub(super) const FREE_GPU_MEMORY: [&str; 2] = ["free.gpu.vram", "free.vram"];

/// GPU fields that may stand outside `gpu[…]` without their `gpu.`.
pub(super) const SHORT_GPU_FIELDS: [&str; 3] = ["vram", "vendor", "driver"];

/// Alias of `count(gpu)`.
pub(super) const GPU_COUNT: &str = "gpus";

impl NodeField {
    /// Whether `test` accepts one of the field's values. Sets have as many values as members,
    /// every other field has exactly one, which may be [`Value::Missing`].
    pub(crate) fn any(self, subject: Subject<'_>, test: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        let (node, announcement) = (subject.node, subject.said);
        let (hardware, software) = (&announcement.hardware, &announcement.software);
        match self {
            Self::Id => test(Value::Text(&node.to_string())),
            Self::Name => test(Value::Text(&announcement.name)),
            Self::Roles => announcement
                .roles
                .iter()
                .any(|role| test(Value::Text(role.name()))),
            Self::Tags => any_text(&announcement.tags, test),
            Self::Region => test(optional(announcement.region.as_deref())),
            Self::Subnet => {
                let subnet = announcement.subnet.as_ref().map(ToString::to_string);
                test(optional(subnet.as_deref()))
            }
            Self::Nat => test(Value::Text(announcement.nat.name())),
            Self::Arch => test(Value::Text(&hardware.arch)),
            Self::Os => test(Value::Text(&software.os)),
            Self::Kernel => test(Value::Text(&software.kernel)),
            Self::CpuModel => test(Value::Text(&hardware.cpu_model)),
            Self::CpuCores => test(Value::Number(hardware.cpu_cores.into())),
            Self::CpuThreads => test(Value::Number(hardware.cpu_threads.into())),
            Self::Memory => test(Value::Number(hardware.memory)),
            Self::DiskData => test(disk(announcement, "data")),
            Self::DiskImages => test(disk(announcement, "images")),
            Self::Cuda => test(optional(software.cuda.as_deref())),
            Self::Rocm => test(optional(software.rocm.as_deref())),
            Self::Backend => test(optional(backend(announcement).map(|(name, _)| name))),
            Self::BackendVersion => test(optional(backend(announcement).and_then(|(_, v)| v))),
            Self::Version => test(Value::Text(&software.meshwork)),
            Self::Images => any_text(&announcement.images, test),
            Self::Models => any_text(&announcement.models, test),
            Self::Tools => any_text(&announcement.tools, test),
            Self::Services => any_text(&announcement.services, test),
            Self::FreeCpu => test(subject.free("cpu")),
            Self::FreeMemory => test(subject.free("mem")),
            Self::FreeGpus => test(subject.free_gpus()),
            Self::Healthy => test(
                subject
                    .free
                    .map_or(Value::Missing, |free| Value::Flag(free.healthy)),
            ),
        }
    }
}

impl GpuField {
    /// Whether `test` accepts the field's one value; `free` is what is known to be free of the memory.
    pub(crate) fn of(
        self,
        gpu: &Gpu,
        free: Option<u64>,
        test: &mut dyn FnMut(Value<'_>) -> bool,
    ) -> bool {
        match self {
            Self::Vram => test(Value::Number(gpu.vram)),
            Self::Vendor => test(Value::Text(&gpu.vendor)),
            Self::Model => test(Value::Text(&gpu.model)),
            Self::Driver => test(Value::Text(&gpu.driver)),
            Self::ComputeCapability => match gpu.compute_capability {
                Some((major, minor)) => test(Value::Text(&format!("{major}.{minor}"))),
                None => test(Value::Missing),
            },
            Self::Mig => test(Value::Flag(gpu.mig)),
            Self::Uuid => test(Value::Text(&gpu.uuid)),
            Self::Index => test(Value::Number(gpu.index.into())),
            Self::Free => test(free.map_or(Value::Missing, Value::Number)),
        }
    }
}

fn any_text<'a>(
    texts: impl IntoIterator<Item = &'a String>,
    test: &mut dyn FnMut(Value<'_>) -> bool,
) -> bool {
    texts.into_iter().any(|text| test(Value::Text(text)))
}

fn optional(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Missing, Value::Text)
}

fn disk(announcement: &Announcement, purpose: &str) -> Value<'static> {
    let mut disks = announcement.hardware.disks.iter();
    disks
        .find(|d| d.purpose == purpose)
        .map_or(Value::Missing, |d| Value::Number(d.total))
}

/// `docker 27.3.1` → `docker` and `27.3.1`.
fn backend(announcement: &Announcement) -> Option<(&str, Option<&str>)> {
    let text = announcement.software.container_backend.as_deref()?;
    Some(match text.split_once(' ') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    })
}
