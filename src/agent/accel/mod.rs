//! Accelerators: what there is, and how it is now.

pub(crate) mod mock;
pub(crate) mod nvml;

use std::fmt::Debug;

use async_trait::async_trait;
use meshwork_proto::announcement::Gpu;
use meshwork_proto::slots::{GpuGrant, GpuStatus, Health};
use serde::{Deserialize, Serialize};

/// Why accelerators could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// The file that describes pretended ones cannot be read.
    #[error("accelerator file {path}: {cause}")]
    File {
        /// Where it was looked for.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// The probe did not end in time; the driver may hang.
    #[error("the GPU driver did not answer in time")]
    Hung,
    /// The probe failed.
    #[error("the GPU probe failed: {0}")]
    Failed(String),
}

/// One device as a probe found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub gpu: Gpu,
    /// Memory in use by anybody, in bytes.
    pub vram_used: u64,
}

impl Device {
    /// The device as free and healthy.
    pub(crate) fn status(&self) -> GpuStatus {
        GpuStatus {
            device: GpuGrant {
                index: self.gpu.index,
                uuid: self.gpu.uuid.clone(),
                model: self.gpu.model.clone(),
                vram: self.gpu.vram,
            },
            vendor: self.gpu.vendor.clone(),
            vram_used: self.vram_used,
            kernel: None,
            health: Health::Ok,
        }
    }
}

/// What one look found. Devices that do not answer are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub devices: Vec<Device>,
    /// CUDA version that the driver supports.
    pub cuda: Option<String>,
}

/// A kind of accelerator on this machine.
#[async_trait]
pub(crate) trait Accelerator: Debug + Send + Sync {
    /// Looks at all devices, within a deadline of its own.
    async fn probe(&self) -> Result<Probe, AccelError>;
    /// Whether the devices exist, so that containers must be given theirs.
    fn is_real(&self) -> bool;
}
