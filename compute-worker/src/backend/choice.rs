//! Which backend engines compute on, and why that one.

use serde::{Deserialize, Serialize};

use super::npu::NpuSettings;

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
