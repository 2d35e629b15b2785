//! Pretended accelerators, described in a TOML file with the names of Backend.AI's mock plugin.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use meshwork_proto::ByteSize;
use meshwork_proto::announcement::Gpu;
use serde::Deserialize;

use super::{AccelError, Accelerator, Device, Probe};

/// Devices that a file may describe.
const MAX_DEVICES: usize = 1024;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// `cuda`, `rocm`, …: the slot that the devices fill.
    slot_name: String,
    device_plugin_name: Option<String>,
    /// `nvidia`, `amd`, …; without it the maker of what fills `slot_name`.
    vendor: Option<String>,
    devices: Vec<Entry>,
    /// Versions to pretend: `nvidia_driver`, `cuda_runtime`.
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    /// How a web page shows amounts; accepted, as files have it.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "read only so that files of Backend.AI are accepted"
    )]
    formats: toml::Table,
    allocation_mode: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    mother_uuid: String,
    model_name: String,
    numa_node: Option<u32>,
    #[expect(
        dead_code,
        reason = "read only so that files of Backend.AI are accepted"
    )]
    subproc_count: Option<u32>,
    memory_size: Memory,
    #[serde(default)]
    is_mig_device: bool,
}

/// Bytes, as a number or as text with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Memory {
    Bytes(u64),
    Text(String),
}

/// Accelerators that are only told of.
#[derive(Debug)]
pub(crate) struct Mock(Probe);

impl Mock {
    /// Reads the file.
    pub(crate) fn load(path: &Path) -> Result<Self, AccelError> {
        let fail = |cause: String| AccelError::File {
            path: path.display().to_string(),
            cause,
        };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        parse(&text).map(Self).map_err(fail)
    }
}

#[async_trait]
impl Accelerator for Mock {
    async fn probe(&self) -> Result<Probe, AccelError> {
        Ok(self.0.clone())
    }

    fn is_real(&self) -> bool {
        false
    }
}

fn parse(text: &str) -> Result<Probe, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    if file
        .allocation_mode
        .as_ref()
        .is_some_and(|mode| mode != "discrete")
    {
        return Err(
            "allocation_mode: only `discrete` is known: whole devices are given out".into(),
        );
    }
    if file.devices.len() > MAX_DEVICES {
        return Err(format!("devices: at most {MAX_DEVICES}"));
    }
    let maker = match file.slot_name.split('.').next() {
        Some("cuda") => "nvidia",
        Some("rocm") => "amd",
        Some("tpu") => "google",
        _ => "mock",
    };
    let vendor = file
        .vendor
        .unwrap_or_else(|| maker.into())
        .to_ascii_lowercase();
    let attribute = |name: &str| file.attributes.get(name).cloned();
    let driver = attribute("nvidia_driver")
        .or(file.device_plugin_name)
        .unwrap_or_default();
    let mut devices: Vec<Device> = Vec::new();
    for (index, entry) in (0..).zip(file.devices) {
        if devices.iter().any(|d| d.gpu.uuid == entry.mother_uuid) {
            return Err(format!(
                "devices: mother_uuid `{}` stands there twice",
                entry.mother_uuid
            ));
        }
        let vram = match entry.memory_size {
            Memory::Bytes(bytes) => bytes,
            Memory::Text(text) => text.parse::<ByteSize>().map_err(|e| e.to_string())?.0,
        };
        let gpu = Gpu {
            index,
            vendor: vendor.clone(),
            model: entry.model_name,
            vram,
            compute_capability: None,
            driver: driver.clone(),
            uuid: entry.mother_uuid,
            mig: entry.is_mig_device,
            numa: entry.numa_node,
        };
        devices.push(Device { gpu, vram_used: 0 });
    }
    Ok(Probe {
        devices,
        cuda: attribute("cuda_runtime"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        slot_name = "cuda"
        device_plugin_name = "CUDADevice"
        allocation_mode = "discrete"
        devices = [
          { mother_uuid = "c59395cd", model_name = "CUDA GPU", numa_node = 0, subproc_count = 108, memory_size = "80GiB", is_mig_device = false },
          { mother_uuid = "c59395ce", model_name = "CUDA GPU", numa_node = 1, subproc_count = 108, memory_size = 2000, is_mig_device = true },
        ]
        [attributes]
        nvidia_driver = "450.00.00"
        cuda_runtime = "11.0"
        [formats.device]
        human_readable_name = "GPU"
    "#;

    #[test]
    fn a_file_of_backend_ai_reads() {
        let probe = parse(FILE).unwrap();
        assert_eq!(probe.cuda.as_deref(), Some("11.0"));
        let gpu = &probe.devices[0].gpu;
        assert_eq!(
            (gpu.index, gpu.vendor.as_str(), gpu.vram),
            (0, "nvidia", 80 << 30)
        );
        assert_eq!((gpu.driver.as_str(), gpu.numa), ("450.00.00", Some(0)));
        assert_eq!(
            (probe.devices[1].gpu.vram, probe.devices[1].gpu.mig),
            (2000, true)
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, says) in [
            ("memory_size = 2000", "memory = 2000", "memory"),
            ("\"80GiB\"", "\"80XB\"", "80XB"),
            ("slot_name", "slotname", "slotname"),
            ("discrete", "fractional", "fractional"),
            ("c59395ce", "c59395cd", "c59395cd"),
        ] {
            let error = parse(&FILE.replacen(from, to, 1)).unwrap_err();
            assert!(
                error.contains(says) || error.contains("discrete"),
                "{error}"
            );
        }
    }
}
