//! The constants of a board.

use std::time::Duration;

/// What a board's NPU and memory can do.
///
/// The presets hold what others published; nothing here was measured by this project. `rookery npu calibrate` measures a
/// board's own values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    /// NPU clock in Hz.
    pub clock_hz: f64,
    /// Share of the array's peak rate that a computing core reaches, 0 to 1.
    pub mac_efficiency: f64,
    /// Peak of the DRAM interface in bytes per second.
    pub ddr_bytes_per_s: f64,
    /// Share of that peak that all cores together can stream, 0 to 1.
    pub ddr_efficiency: f64,
    /// Bytes per second that one core can stream by itself.
    pub core_bytes_per_s: f64,
    /// From the request to the first task's start, and from the last interrupt back to the caller.
    pub submit_overhead: Duration,
    /// What each task of a chain costs besides its work.
    pub task_overhead: Duration,
    /// Cores.
    pub cores: u32,
}

/// 64-bit LPDDR4x at 4,224 MT/s: 8 bytes · 4.224e9 (derived; a board maker states 34 GB/s).
const LPDDR4X_BYTES_PER_S: f64 = 33.792e9;

/// What the vendor's compiler assumes that one core streams: 70 % of LPDDR4x-4224 at 1 GHz (read off its estimates, which
/// it explains to 0.4 %). A probe on a board agrees (docs/npu-timing.md, "Streaming weights").
const CORE_BYTES_PER_S: f64 = 0.70 * LPDDR4X_BYTES_PER_S;

/// Share of the DRAM's peak that three cores stream: 30.0 GB/s of 33.8. Fitted, together with
/// [`LAYER_OVERHEAD`](super::model::Runtime::rkllm), to the decode rates of the eight w8a8 models of the closed runtime's release
/// 1.1 by least squares of the relative errors; all other published rows were held out.
const FITTED_DDR_EFFICIENCY: f64 = 0.888;

impl Board {
    /// RK3588 under the vendor's `rknpu` driver: 1 GHz, LPDDR4x-4224.
    ///
    /// Overheads: 167 µs for a submission and 16 µs for each task, measured by one open stack.
    #[must_use]
    pub const fn rk3588_vendor() -> Self {
        Self {
            clock_hz: 1.0e9,
            mac_efficiency: 1.0,
            ddr_bytes_per_s: LPDDR4X_BYTES_PER_S,
            ddr_efficiency: FITTED_DDR_EFFICIENCY,
            core_bytes_per_s: CORE_BYTES_PER_S,
            submit_overhead: Duration::from_micros(167),
            task_overhead: Duration::from_micros(16),
            cores: 3,
        }
    }

    /// RK3588 under mainline's `rocket` driver: 600 MHz, the highest clock known to be stable there.
    ///
    /// A submission costs 51 µs by default and 15 to 20 µs more for attaching the IOMMU (one open stack's measurements; 27 µs
    /// when its interrupt is tuned). The driver starts each task anew from its interrupt; that this costs the tuned
    /// submission's 27 µs is inferred. One core's 17 GB/s is what the same stack calls the memory's streaming rate.
    #[must_use]
    pub const fn rk3588_rocket() -> Self {
        Self {
            clock_hz: 6.0e8,
            core_bytes_per_s: 17.0e9,
            submit_overhead: Duration::from_micros(51 + 18),
            task_overhead: Duration::from_micros(27),
            ..Self::rk3588_vendor()
        }
    }

    /// The vendor compiler's static model of the chip: one core, no overheads (docs/npu-timing.md, "The vendor's compiler").
    #[must_use]
    pub const fn vendor_compiler() -> Self {
        Self {
            ddr_efficiency: 0.70,
            submit_overhead: Duration::ZERO,
            task_overhead: Duration::ZERO,
            cores: 1,
            ..Self::rk3588_vendor()
        }
    }

    /// Bytes per second that all cores together can stream.
    #[must_use]
    pub fn streamed_bytes_per_s(&self) -> f64 {
        self.ddr_bytes_per_s * self.ddr_efficiency
    }
}
