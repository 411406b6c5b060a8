//! Linear layers on the RK3588's NPU.

mod faults;
mod report;
mod settings;

pub use faults::{FaultKind, FaultLimits, FaultState, Permit};
pub use report::StepReport;
pub use settings::{BoardSettings, NpuSettings};
