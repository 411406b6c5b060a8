//! The constants of a board.

use std::time::Duration;

/// What a board's NPU and memory can do. All fields may be changed: `rookery npu calibrate` measures them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    /// NPU clock in Hz.
    pub clock_hz: f64,
    /// Peak of the DRAM interface in bytes per second.
    pub ddr_bytes_per_s: f64,
    /// Share of that peak that all cores together can stream.
    pub ddr_efficiency: f64,
    /// Bytes per second that one core can stream by itself.
    pub core_bytes_per_s: f64,
    /// From the ioctl to the first task's start, and from the last interrupt back to the caller.
    pub submit_overhead: Duration,
    /// Between two tasks of a chain on the same core.
    pub task_overhead: Duration,
    /// Cores.
    pub cores: u32,
}

impl Board {
    /// RK3588 under the vendor's `rknpu` driver, 1 GHz.
    #[must_use]
    pub const fn rk3588_vendor() -> Self {
        Self {
            clock_hz: 1.0e9,
            ddr_bytes_per_s: 33.792e9,
            ddr_efficiency: 0.88,
            core_bytes_per_s: 23.65e9,
            submit_overhead: Duration::from_micros(167),
            task_overhead: Duration::from_micros(16),
            cores: 3,
        }
    }

    /// RK3588 under mainline's `rocket` driver, 600 MHz.
    #[must_use]
    pub const fn rk3588_rocket() -> Self {
        Self {
            clock_hz: 6.0e8,
            submit_overhead: Duration::from_micros(51),
            task_overhead: Duration::from_micros(51),
            ..Self::rk3588_vendor()
        }
    }

    /// The vendor compiler's own static model: one core, no overheads.
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
