//! Settings of the NPU: which device, what goes to it, what happens when it fails, and what is assumed of its speed.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::backend::npu::{BoardSettings, FaultLimits, NpuSettings};

/// Which of the kernel's interfaces to an NPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NpuInterface {
    /// The first that answers, the vendor's before mainline's. Of the simulator: the vendor's.
    #[default]
    Auto,
    /// The vendor's driver, `rknpu`.
    Vendor,
    /// The mainline driver, `rocket`.
    Rocket,
}

/// Which linear layers go to the NPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NpuPolicy {
    /// What the cost model says is fastest for each call. On the simulator: everything goes to the NPU.
    #[default]
    Auto,
    /// Everything that the NPU can compute.
    Npu,
    /// Nothing.
    Cpu,
    /// Every layer is split between both, in the proportion of their speeds.
    Both,
}

/// How the NPU multiplies with int4 weights. The result is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NpuW4 {
    /// What the cost model says is faster for each product, if the device's int4 mode passes the self-check. On the
    /// simulator: as int8, which it computes much faster.
    #[default]
    Auto,
    /// As int8: the processor expands the weights first.
    Int8,
    /// As int4, with two rows of nibbles for each row of activations.
    Int4,
}

/// An operation between linear layers that the NPU can take over, in fp16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NpuFused {
    /// `silu(gate) · up` of the feed-forward layers.
    Silu,
    /// RMS norms before linear layers.
    Norm,
}

/// Longest pause that can be configured.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Settings of the NPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NpuSection {
    /// The kernel's interface: `auto`, `vendor` or `rocket`; of the simulator, which one it models. Default `auto`.
    pub interface: NpuInterface,
    /// Device node. Default: the first known one that answers.
    pub node: Option<PathBuf>,
    /// What goes to the NPU: `auto`, `npu`, `cpu` or `both`. Default `auto`.
    pub policy: NpuPolicy,
    /// How int4 weights are multiplied: `auto`, `int8` or `int4`. Default `auto`.
    pub w4: NpuW4,
    /// Operations between linear layers that the NPU computes in fp16: `silu`, `norm`. Answers are then close to those of
    /// other gateways, no longer the same. Default none.
    pub fused: Vec<NpuFused>,
    /// Cores to use, from 1 to 3. Default 3.
    pub cores: u8,
    /// Longest time for one job, after which the device counts as stuck. Default 5s.
    #[serde(with = "humantime_serde")]
    pub job_timeout: Duration,
    /// Whether every result is checked by a checksum of the exact integers before it is used. Default true.
    pub check_results: bool,
    /// Prepared products that are kept, each a few kilobytes of register commands. Default 4096.
    pub max_plans: usize,
    /// Failures in a row, resets included, after which the NPU is set aside. Default 3.
    pub max_failures: u32,
    /// Pause before the second reset in a row; it doubles with each further one. At most a day. Default 100ms.
    #[serde(with = "humantime_serde")]
    pub reset_backoff: Duration,
    /// Time until an NPU that was set aside is tried again; it doubles with each time that fails, up to sixteenfold. Also
    /// the time without a failure after which earlier ones are forgotten, and the longest time between two attempts to
    /// bring weights into memory that was short. At most a day. Default 1m.
    #[serde(with = "humantime_serde")]
    pub probation_interval: Duration,
    /// What the cost model assumes of the board.
    pub board: BoardSection,
}

/// What the cost model assumes of the board. Settings without a default come from the driver's own table for the kernel
/// interface in use; `rookery npu calibrate` measures them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BoardSection {
    /// Clock of the NPU in Hz.
    pub npu_clock_hz: Option<f64>,
    /// Bytes per second that all cores of the NPU together read.
    pub npu_bytes_per_second: Option<f64>,
    /// Time to submit a job and to learn of its end.
    #[serde(with = "humantime_serde")]
    pub submit_overhead: Option<Duration>,
    /// Time for each task of a job.
    #[serde(with = "humantime_serde")]
    pub task_overhead: Option<Duration>,
    /// Bytes of weights per second that all threads together read. Default 1.2e10.
    pub cpu_bytes_per_second: f64,
    /// Multiply-adds per second of one thread, weights packed. Default 3e10.
    pub cpu_macs_per_second: f64,
    /// Bytes per second at which one thread packs activations and turns accumulators into outputs. Default 2e9.
    pub cpu_pack_bytes_per_second: f64,
}

impl Default for NpuSection {
    fn default() -> Self {
        let faults = FaultLimits::default();
        Self {
            interface: NpuInterface::Auto,
            node: None,
            policy: NpuPolicy::Auto,
            w4: NpuW4::Auto,
            fused: Vec::new(),
            cores: 3,
            job_timeout: Duration::from_secs(5),
            check_results: true,
            max_plans: 4096,
            max_failures: faults.max_failures,
            reset_backoff: faults.reset_backoff,
            probation_interval: faults.probation_interval,
            board: BoardSection::default(),
        }
    }
}

impl Default for BoardSection {
    fn default() -> Self {
        Self {
            npu_clock_hz: None,
            npu_bytes_per_second: None,
            submit_overhead: None,
            task_overhead: None,
            // Assumed for four Cortex-A76 at 2.2 GHz, not measured: a third of the memory's 34 GB/s, and half of the
            // 32 multiply-adds that two SDOT pipes do per cycle.
            cpu_bytes_per_second: 1.2e10,
            cpu_macs_per_second: 3e10,
            cpu_pack_bytes_per_second: 2e9,
        }
    }
}

impl NpuSection {
    /// The backend's own form of these settings.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<NpuSettings, ConfigError> {
        let board = &self.board;
        let checks = [
            ("cores must be from 1 to 3", (1..=3).contains(&self.cores)),
            ("job-timeout must be greater than zero", !self.job_timeout.is_zero()),
            ("reset-backoff must be at most one day", self.reset_backoff <= LONGEST_PAUSE),
            ("probation-interval must be at most one day", self.probation_interval <= LONGEST_PAUSE),
            ("max-plans must be at least 16", self.max_plans >= 16),
            ("max-failures must be at least 1", self.max_failures >= 1),
            ("board.npu-clock-hz must be a positive number", positive(board.npu_clock_hz)),
            ("board.npu-bytes-per-second must be a positive number", positive(board.npu_bytes_per_second)),
            (
                "board.cpu-bytes-per-second must be a positive number",
                positive(Some(board.cpu_bytes_per_second)),
            ),
            (
                "board.cpu-macs-per-second must be a positive number",
                positive(Some(board.cpu_macs_per_second)),
            ),
            (
                "board.cpu-pack-bytes-per-second must be a positive number",
                positive(Some(board.cpu_pack_bytes_per_second)),
            ),
        ];
        if let Some((rule, _)) = checks.into_iter().find(|(_, holds)| !holds) {
            return Err(ConfigError::Npu(rule));
        }
        Ok(NpuSettings {
            interface: self.interface,
            node: self.node.clone(),
            policy: self.policy,
            w4: self.w4,
            fused: self.fused.clone(),
            cores: self.cores,
            job_timeout: self.job_timeout,
            check_results: self.check_results,
            max_plans: self.max_plans,
            faults: FaultLimits {
                max_failures: self.max_failures,
                reset_backoff: self.reset_backoff,
                probation_interval: self.probation_interval,
                ..FaultLimits::default()
            },
            board: BoardSettings {
                npu_clock_hz: board.npu_clock_hz,
                npu_bytes_per_second: board.npu_bytes_per_second,
                submit_overhead: board.submit_overhead,
                task_overhead: board.task_overhead,
                cpu_bytes_per_second: board.cpu_bytes_per_second,
                cpu_macs_per_second: board.cpu_macs_per_second,
                cpu_pack_bytes_per_second: board.cpu_pack_bytes_per_second,
            },
        })
    }
}

fn positive(value: Option<f64>) -> bool {
    value.is_none_or(|value| value.is_finite() && value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_errors_name_the_setting() {
        assert!(NpuSection::default().validate().is_ok());
        let error = |edit: fn(&mut NpuSection)| {
            let mut section = NpuSection::default();
            edit(&mut section);
            section.validate().unwrap_err().to_string()
        };
        assert!(error(|s| s.cores = 4).contains("npu.cores"));
        assert!(error(|s| s.job_timeout = Duration::ZERO).contains("npu.job-timeout"));
        assert!(error(|s| s.reset_backoff = Duration::MAX).contains("npu.reset-backoff"));
        assert!(
            error(|s| s.probation_interval = LONGEST_PAUSE + Duration::from_secs(1))
                .contains("npu.probation")
        );
        assert!(error(|s| s.board.npu_clock_hz = Some(0.0)).contains("npu.board.npu-clock-hz"));
        assert!(error(|s| s.board.cpu_macs_per_second = f64::NAN).contains("npu.board.cpu-macs-per-second"));
    }
}
