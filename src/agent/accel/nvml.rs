//! NVIDIA GPUs through NVML, in a process of its own: a call into a driver that hangs cannot be
//! interrupted, and must not hang the agent.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use meshwork_proto::announcement::Gpu;
use meshwork_proto::codec;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::MemoryInfo;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::{AccelError, Accelerator, Device, Probe};

/// Names another library than the system's `libnvidia-ml.so.1`.
const LIBRARY: &str = "MESHWORK_NVML_LIB";
/// Most that a probe may print, in bytes.
const MAX_REPORT: usize = 1 << 20;

/// Stands in front of a report: a driver's library may print what it likes before.
const MARK: &[u8] = b"meshwork-gpus:";

/// What a probe process prints last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    Found(Probe),
    /// There is no driver.
    NoDriver,
    Failed(String),
}

/// Starts probe processes.
#[derive(Debug)]
pub(crate) struct NvmlProbe {
    command: Vec<OsString>,
    limit: Duration,
    /// A probe that could not be killed: a process inside a hung driver stays until it answers.
    /// No second one is started beside it.
    stuck: Mutex<Option<Child>>,
}

impl NvmlProbe {
    pub(crate) fn new(command: Vec<OsString>, limit: Duration) -> Self {
        Self {
            command,
            limit,
            stuck: Mutex::new(None),
        }
    }
}

#[async_trait]
impl Accelerator for NvmlProbe {
    async fn probe(&self) -> Result<Probe, AccelError> {
        let fail = |error: std::io::Error| AccelError::Failed(error.to_string());
        let mut stuck = self.stuck.lock().await;
        if let Some(child) = &mut *stuck
            && child.try_wait().map_err(fail)?.is_none()
        {
            return Err(AccelError::Hung);
        }
        *stuck = None;
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| AccelError::Failed("no command".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| AccelError::Failed("no output".into()))?;
        let mut report = Vec::new();
        let mut limited = stdout.take(MAX_REPORT as u64);
        let answered = tokio::time::timeout(self.limit, limited.read_to_end(&mut report)).await;
        // Either it has said all, or it never will.
        let killed = child.start_kill();
        let Ok(read) = answered else {
            killed.map_err(fail)?;
            *stuck = Some(child);
            return Err(AccelError::Hung);
        };
        read.map_err(fail)?;
        // It is reaped later when the driver holds it.
        *stuck = Some(child);
        let start = report.windows(MARK.len()).position(|window| window == MARK);
        let report = start.map(|start| codec::decode(&report[start + MARK.len()..], MAX_REPORT));
        match report {
            Some(Ok(Report::Found(probe))) => Ok(probe),
            Some(Ok(Report::NoDriver)) => Ok(Probe::default()),
            Some(Ok(Report::Failed(cause))) => Err(AccelError::Failed(cause)),
            Some(Err(error)) => Err(AccelError::Failed(format!("its report: {error}"))),
            None => Err(AccelError::Failed(
                "the probe ended without a report".into(),
            )),
        }
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// The probe process: looks at the GPUs, prints what it finds for the agent that started it, and
/// returns the exit status. The binary calls it for the command that is given to
/// [`crate::AgentConfig::nvml`].
pub fn probe_main() -> i32 {
    let library = std::env::var_os(LIBRARY);
    let report = match look(library.as_deref()) {
        Ok(probe) => Report::Found(probe),
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => Report::NoDriver,
        Err(error) => Report::Failed(error.to_string()),
    };
    let bytes = [MARK, &codec::encode(&report)].concat();
    let mut stdout = std::io::stdout();
    match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn look(library: Option<&OsStr>) -> Result<Probe, NvmlError> {
    let mut builder = Nvml::builder();
    if let Some(library) = library {
        builder.lib_path(library);
    }
    let nvml = builder.init()?;
    let driver = nvml.sys_driver_version()?;
    let cuda = nvml.sys_cuda_driver_version().ok();
    let devices = (0..nvml.device_count()?)
        // One lost GPU does not hide the others.
        .filter_map(|index| device(&nvml, index, &driver).ok())
        .collect();
    Ok(Probe {
        devices,
        // NVML counts 12040 for 12.4.
        cuda: cuda.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
    })
}

fn device(nvml: &Nvml, index: u32, driver: &str) -> Result<Device, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let MemoryInfo { total, used, .. } = device.memory_info()?;
    let capability = device.cuda_compute_capability().ok();
    Ok(Device {
        gpu: Gpu {
            index,
            vendor: "nvidia".into(),
            model: device.name()?,
            vram: total,
            compute_capability: capability
                .and_then(|c| Some((u8::try_from(c.major).ok()?, u8::try_from(c.minor).ok()?))),
            driver: driver.to_owned(),
            uuid: device.uuid()?,
            mig: device.mig_mode().is_ok_and(|mode| mode.current == 1),
            numa: device.numa_node_id().ok(),
        },
        vram_used: used,
    })
}
