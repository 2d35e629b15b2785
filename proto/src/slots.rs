//! Resources: what a kernel asks for, what an agent has, what is free.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// GPUs wanted: how many, and what each must be. Written `1`, `40GB..`, `24GB..48GB:2`, `H100:2`,
/// `nvidia:A100:40GB..:2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRequest {
    /// Devices wanted, at least 1.
    pub count: u32,
    /// Least total memory of each, in bytes.
    pub min_vram: Option<u64>,
    /// Most total memory of each, in bytes.
    pub max_vram: Option<u64>,
    /// Text that the model name must contain (letter case and spaces ignored).
    pub model: Option<String>,
    /// Vendor: `nvidia`, `amd`, ….
    pub vendor: Option<String>,
}

/// Vendors that a GPU request may name.
const VENDORS: [&str; 5] = ["nvidia", "amd", "intel", "google", "mock"];

impl GpuRequest {
    /// Whether one device fits.
    pub fn accepts(&self, vendor: &str, model: &str, vram: u64) -> bool {
        let squash = |s: &str| {
            s.chars()
                .filter(|c| c.is_alphanumeric())
                .flat_map(char::to_lowercase)
                .collect::<String>()
        };
        self.min_vram.is_none_or(|min| vram >= min)
            && self.max_vram.is_none_or(|max| vram <= max)
            && self
                .vendor
                .as_ref()
                .is_none_or(|v| v.eq_ignore_ascii_case(vendor))
            && self
                .model
                .as_ref()
                .is_none_or(|m| squash(model).contains(&squash(m)))
    }
}

impl FromStr for GpuRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut request = Self {
            count: 1,
            ..Self::default()
        };
        let fail = |part: &str| {
            format!(
                "`{part}` in GPU request `{text}` is no count, memory range or model; examples: 1, 40GB.., 24GB..48GB:2, H100:2"
            )
        };
        let parts: Vec<&str> = text.split(':').map(str::trim).collect();
        let mut counted = false;
        for part in &parts {
            if let Ok(count) = part.parse::<u32>() {
                if count == 0 || counted {
                    return Err(fail(part));
                }
                request.count = count;
                counted = true;
            } else if let Some((low, high)) = part.split_once("..") {
                if request.min_vram.is_some() || request.max_vram.is_some() {
                    return Err(fail(part));
                }
                let size = |s: &str| s.parse::<ByteSize>().map(|b| b.0).map_err(|_| fail(part));
                if !low.is_empty() {
                    request.min_vram = Some(size(low)?);
                }
                if !high.is_empty() {
                    request.max_vram = Some(size(high)?);
                }
                if low.is_empty() && high.is_empty() {
                    return Err(fail(part));
                }
            } else if part.starts_with(|c: char| c.is_ascii_digit())
                && let Ok(ByteSize(exact)) = part.parse()
                && request.min_vram.is_none()
                && request.max_vram.is_none()
            {
                (request.min_vram, request.max_vram) = (Some(exact), Some(exact));
            } else if VENDORS.contains(&part.to_ascii_lowercase().as_str())
                && request.vendor.is_none()
            {
                request.vendor = Some(part.to_ascii_lowercase());
            } else if !part.is_empty() && request.model.is_none() {
                request.model = Some((*part).to_owned());
            } else {
                return Err(fail(part));
            }
        }
        match (request.min_vram, request.max_vram) {
            (Some(low), Some(high)) if low > high => Err(format!(
                "GPU request `{text}`: {} is more than {}",
                ByteSize(low),
                ByteSize(high)
            )),
            _ => Ok(request),
        }
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vendor) = &self.vendor {
            write!(f, "{vendor}:")?;
        }
        if let Some(model) = &self.model {
            write!(f, "{model}:")?;
        }
        let size = |b: Option<u64>| b.map(|b| ByteSize(b).to_string()).unwrap_or_default();
        if self.min_vram.is_some() || self.max_vram.is_some() {
            write!(f, "{}..{}:", size(self.min_vram), size(self.max_vram))?;
        }
        write!(f, "{}", self.count)
    }
}

/// What one kernel asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time in thousandths of a hardware thread (slot `cpu`).
    pub cpu_millis: u64,
    /// Memory in bytes, without swap (slot `mem`).
    pub mem: u64,
    /// Size of `/dev/shm` in bytes, inside `mem`.
    pub shm: u64,
    /// GPUs (slot `cuda.device` and its kin).
    pub gpu: Option<GpuRequest>,
}

impl Default for Resources {
    /// One hardware thread, 1 GiB, 64 MiB of shared memory, no GPU.
    fn default() -> Self {
        Self {
            cpu_millis: 1000,
            mem: 1 << 30,
            shm: 64 << 20,
            gpu: None,
        }
    }
}

/// What an agent gave to one kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Hardware threads that the kernel may run on.
    pub cpus: Vec<u32>,
    /// Its share of them, in thousandths of a thread.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub mem: u64,
    /// Devices, by index.
    pub gpus: Vec<GpuGrant>,
}

/// One device given to a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuGrant {
    /// Position on the node.
    pub index: u32,
    /// The driver's unique name.
    pub uuid: String,
    /// Model name.
    pub model: String,
    /// Total memory in bytes.
    pub vram: u64,
}

/// Health of a device as last probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Answered the last probe without error.
    Ok,
    /// The probe failed or timed out; the device is not given out.
    Unknown,
}

/// State of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuStatus {
    /// Which device, with its total memory.
    pub device: GpuGrant,
    /// `nvidia`, `amd`, `mock`, ….
    pub vendor: String,
    /// Memory in use by anybody, also outside Meshwork, in bytes.
    pub vram_used: u64,
    /// The kernel that holds it.
    pub kernel: Option<crate::KernelId>,
    /// As last probed.
    pub health: Health,
}

impl GpuStatus {
    /// Whether it may be given to a kernel now.
    pub fn is_free(&self) -> bool {
        self.kernel.is_none() && self.health == Health::Ok
    }
}

/// Totals and what of them is free on one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of hardware threads that kernels may be given (reserved ones taken off).
    pub cpu_millis: u64,
    /// Of these, free.
    pub cpu_free: u64,
    /// Bytes of memory that kernels may be given (reserved ones taken off).
    pub mem: u64,
    /// Of these, free.
    pub mem_free: u64,
    /// Every device.
    pub gpus: Vec<GpuStatus>,
}

/// One thing that is missing for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// `cpu`, `mem`, `gpu`.
    pub slot: String,
    /// What the request needs, in the slot's unit.
    pub needed: String,
    /// What is there, in words: `0.5 free`.
    pub free: String,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: needs {}, {}", self.slot, self.needed, self.free)
    }
}

impl Capacity {
    /// What a request lacks here; empty when it fits. The one rule that both the manager (to
    /// choose) and the agent (to admit) use.
    pub fn shortages(&self, request: &Resources) -> Vec<Shortage> {
        let mut missing = Vec::new();
        if request.cpu_millis > self.cpu_free {
            missing.push(Shortage {
                slot: "cpu".into(),
                needed: cpus(request.cpu_millis),
                free: format!("{} free", cpus(self.cpu_free)),
            });
        }
        if request.mem > self.mem_free {
            missing.push(Shortage {
                slot: "mem".into(),
                needed: ByteSize(request.mem).to_string(),
                free: format!("{} free", ByteSize(self.mem_free)),
            });
        }
        if let Some(gpu) = &request.gpu {
            let fitting = self.fitting_gpus(gpu).count();
            if fitting < gpu.count as usize {
                missing.push(Shortage {
                    slot: "gpu".into(),
                    needed: gpu.to_string(),
                    free: self.gpus_in_words(fitting),
                });
            }
        }
        missing
    }

    fn gpus_in_words(&self, fitting: usize) -> String {
        let free = self.gpus.iter().filter(|gpu| gpu.is_free()).count();
        match (self.gpus.len(), free) {
            (0, _) => "there is none".into(),
            (all, 0) => format!("0 of {all} free"),
            (_, free) => format!("{fitting} of {free} free would do"),
        }
    }

    /// The free devices that fit a request, by index.
    pub fn fitting_gpus<'a>(&'a self, want: &'a GpuRequest) -> impl Iterator<Item = &'a GpuStatus> {
        self.gpus
            .iter()
            .filter(|g| g.is_free() && want.accepts(&g.vendor, &g.device.model, g.device.vram))
    }
}

/// Thousandths of a hardware thread, for people: `1500` as `1.5`.
pub fn cpus(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_requests_read_and_print() {
        for text in [
            "1",
            "2",
            "40GB..:1",
            "24GB..48GB:2",
            "H100:2",
            "nvidia:A100:40GB..:2",
            "..24GB:1",
        ] {
            assert_eq!(text.parse::<GpuRequest>().unwrap().to_string(), text);
        }
        assert_eq!("40GB..".parse::<GpuRequest>().unwrap().count, 1);
        assert_eq!(
            "80GB".parse::<GpuRequest>().unwrap().max_vram,
            Some(80_000_000_000)
        );
        for text in [
            "",
            "0",
            "..",
            "1:1",
            "48GB..24GB",
            "H100:A100",
            "4XB..",
            "40GB..:80GB..",
            "nvidia:amd:H100",
        ] {
            assert!(text.parse::<GpuRequest>().is_err(), "{text}");
        }
    }

    #[test]
    fn model_names_match_loosely() {
        let want: GpuRequest = "rtx4090:1".parse().unwrap();
        assert!(want.accepts("nvidia", "NVIDIA GeForce RTX 4090", 24_000_000_000));
        assert!(!want.accepts("nvidia", "NVIDIA A100", 80_000_000_000));
    }
}
