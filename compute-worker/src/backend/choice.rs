//! Which backend engines compute on, and why that one.

use rookery_kernels::Kernels;
use serde::{Deserialize, Serialize};

use rknpu_driver::error::OpenError;

use super::npu::{Ledger, NpuBackend, NpuError, NpuSettings};
use super::{Backend, BackendError, CpuBackend};
use crate::one_line::one_line;

/// Where linear layers are to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// A working NPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The register-level simulator of the NPU, in this process.
    NpuSim,
    /// The NPU; it is an error if there is none that works.
    Npu,
}

/// Checked settings of all backends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackendSettings {
    /// Where linear layers are to be computed.
    pub choice: BackendChoice,
    /// Settings of the NPU.
    pub npu: NpuSettings,
}

/// Makes a backend for each engine of a process; they share the device.
#[derive(Clone)]
pub struct Backends {
    device: Option<rknpu_driver::device::Device>,
    settings: NpuSettings,
    /// What all engines' weights take of the device's address spaces.
    ledger: Ledger,
    reason: String,
}

impl Backends {
    /// Opens what the settings ask for. `auto` never fails: a NPU that is not there, or fails the check of a few small
    /// products, leaves the CPU.
    ///
    /// # Errors
    /// When the NPU is asked for and does not work; the message says what is wrong.
    pub fn open(settings: &BackendSettings) -> Result<Self, BackendError> {
        let made = |device, reason| Self {
            device,
            settings: settings.npu.clone(),
            ledger: Ledger::default(),
            reason,
        };
        let checked = |(device, w4), reason: &str| Self {
            device: Some(device),
            settings: NpuSettings { w4, ..settings.npu.clone() },
            ledger: Ledger::default(),
            reason: reason.to_owned(),
        };
        let failed = |backend: &str, error: NpuError| BackendError {
            backend: backend.to_owned(),
            message: one_line(&error),
        };
        match settings.choice {
            BackendChoice::Cpu => Ok(made(None, "as configured".to_owned())),
            BackendChoice::NpuSim => {
                let device =
                    super::npu::simulated(&settings.npu).map_err(|error| failed("npu-sim", error))?;
                Ok(made(Some(device), "as configured; figures are simulated".to_owned()))
            }
            BackendChoice::Npu => {
                let opened = super::npu::open(&settings.npu).map_err(|error| failed("npu", error))?;
                Ok(checked(opened, "as configured, and its self-check passed"))
            }
            BackendChoice::Auto => Ok(match super::npu::open(&settings.npu) {
                Ok(opened) => checked(opened, "an NPU is there and its self-check passed"),
                Err(error) => {
                    let reason = format!("no working NPU: {}", one_line(&error));
                    if matches!(error, NpuError::Open(OpenError::NoNode { .. })) {
                        tracing::info!(reason, "the processor computes");
                    } else {
                        tracing::warn!(reason, "an NPU is there and cannot be used; the processor computes");
                    }
                    made(None, reason)
                }
            }),
        }
    }

    /// A backend for one engine, whose CPU part computes with `kernels`.
    pub fn backend(&self, kernels: &'static Kernels) -> Box<dyn Backend> {
        match &self.device {
            None => Box::new(CpuBackend::new(kernels)),
            Some(device) => {
                Box::new(NpuBackend::sharing(device.clone(), kernels, &self.settings, self.ledger.clone()))
            }
        }
    }

    /// Why it is this backend.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}
