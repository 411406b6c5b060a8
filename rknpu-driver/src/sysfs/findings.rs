//! What is wrong with the NPU's surroundings, and how to mend it.

use std::fmt;

use thiserror::Error;

use super::{Clock, Snapshot};
use crate::device::{DeviceInfo, Interface};
use crate::error::OpenError;

/// The clock that mainline leaves the NPU at, Hz (reported from boards; it is the device tree's
/// `assigned-clock-rates`).
const MAINLINE_HZ: u64 = 200_000_000;
/// How near a zone may come to its limit before it is a finding, in thousandths of a degree.
const NEAR_LIMIT: i64 = 5_000;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The NPU works, and slower or less safely than it could.
    Warning,
    /// The NPU does not work.
    Error,
}

/// Something that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// How bad it is.
    pub severity: Severity,
    /// What mends it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The board is no RK3588.
    #[error("the board ({0}) does not say that it has an RK3588")]
    OtherBoard(String),
    /// No kernel driver for the NPU.
    #[error("no kernel driver for the NPU is loaded")]
    NoDriver,
    /// The device tree has the NPU switched off.
    #[error("the device tree has the NPU at status {0:?}")]
    Disabled(String),
    /// The device cannot be opened.
    #[error("{0}")]
    NotOpened(String),
    /// The NPU's governor slows it down between jobs.
    #[error("the NPU's governor is {0}")]
    NpuGovernor(String),
    /// The NPU's clock is kept low.
    #[error("the NPU's clock may only reach {max_mhz} MHz of {top_mhz}")]
    NpuCapped {
        /// The cap, MHz.
        max_mhz: u64,
        /// The fastest step, MHz.
        top_mhz: u64,
    },
    /// Mainline never raises the NPU's clock.
    #[error("the NPU runs at {0} MHz, where mainline's driver leaves it")]
    MainlineClock(u64),
    /// The memory's governor slows it down.
    #[error("the memory's governor is {0}")]
    DmcGovernor(String),
    /// The memory runs slower than it could.
    #[error("the memory runs at {current_mhz} MHz of {top_mhz}")]
    DmcSlow {
        /// Now, MHz.
        current_mhz: u64,
        /// The fastest step, MHz.
        top_mhz: u64,
    },
    /// A thermal zone is near the temperature at which the kernel slows things down.
    #[error("{zone} is at {degrees} °C, and things are slowed down from {limit} °C on")]
    Hot {
        /// The zone.
        zone: String,
        /// Now, °C.
        degrees: i64,
        /// The limit, °C.
        limit: i64,
    },
    /// No IOMMU: memory must be physically contiguous.
    #[error("the NPU is not behind its IOMMU")]
    NoIommu,
    /// No on-chip SRAM for the NPU.
    #[error("the NPU has no on-chip SRAM")]
    NoSram,
    /// Resets are skipped.
    #[error("the driver is told to skip resets (bypass_soft_reset)")]
    ResetBypassed,
    /// Results and times are a simulator's.
    #[error("the device is a simulator")]
    Simulated,
}

impl Problem {
    /// A short, stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Problem::OtherBoard(_) => "other-board",
            Problem::NoDriver => "no-driver",
            Problem::Disabled(_) => "disabled",
            Problem::NotOpened(_) => "not-opened",
            Problem::NpuGovernor(_) => "npu-governor",
            Problem::NpuCapped { .. } => "npu-capped",
            Problem::MainlineClock(_) => "mainline-clock",
            Problem::DmcGovernor(_) => "dmc-governor",
            Problem::DmcSlow { .. } => "dmc-slow",
            Problem::Hot { .. } => "hot",
            Problem::NoIommu => "no-iommu",
            Problem::NoSram => "no-sram",
            Problem::ResetBypassed => "reset-bypassed",
            Problem::Simulated => "simulated",
        }
    }
}

/// What is wrong, worst first. `opened` is what opening the device gave.
#[must_use]
pub fn findings(snapshot: &Snapshot, opened: Result<&DeviceInfo, &OpenError>) -> Vec<Finding> {
    let mut list = List(Vec::new());
    match opened {
        Ok(info) if info.simulated => {
            list.add(Severity::Note, Problem::Simulated, "take no time or figure of it for a board's");
            return list.0;
        }
        Ok(info) => list.device(snapshot, info),
        Err(error) => list.not_opened(snapshot, error),
    }
    list.clocks(snapshot, opened.ok());
    list.thermal(snapshot);
    list.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    list.0
}

struct List(Vec<Finding>);

impl List {
    fn add(&mut self, severity: Severity, problem: Problem, remedy: impl Into<String>) {
        self.0.push(Finding { problem, severity, remedy: remedy.into() });
    }

    fn not_opened(&mut self, snapshot: &Snapshot, error: &OpenError) {
        if let Some(board) = snapshot.board.as_ref().filter(|board| !names_rk3588(board)) {
            let remedy = "run on an RK3588 board, or use the simulator";
            self.add(Severity::Note, Problem::OtherBoard(board.clone()), remedy);
        }
        if let Some(status) = snapshot.node_status.as_ref().filter(|status| !status.starts_with("ok")) {
            let remedy =
                "enable the NPU's nodes and their IOMMUs in the device tree (on many boards an overlay)";
            self.add(Severity::Error, Problem::Disabled(status.clone()), remedy);
        }
        if snapshot.drivers.is_empty() {
            let remedy =
                "use a vendor kernel with rknpu 0.9.8, or Linux 6.18 or later with `modprobe rocket`";
            self.add(Severity::Error, Problem::NoDriver, remedy);
        }
        // The message ends with what to do; the causes follow it in the order they lie in.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        let remedy = "`dmesg | grep -i -e rknpu -e rocket` says what the kernel thinks";
        self.add(Severity::Error, Problem::NotOpened(text), remedy);
    }

    fn device(&mut self, snapshot: &Snapshot, info: &DeviceInfo) {
        if snapshot.reset_bypassed {
            let remedy = "echo 0 > /sys/module/rknpu/parameters/bypass_soft_reset";
            self.add(Severity::Warning, Problem::ResetBypassed, remedy);
        }
        if snapshot.iommu == Some(false) && info.interface == Interface::Vendor {
            let remedy = "enable the NPU's IOMMU in the device tree, or give CMA room for all weights";
            self.add(Severity::Warning, Problem::NoIommu, remedy);
        }
        if info.interface == Interface::Vendor && info.sram_bytes == 0 {
            let remedy = "nothing needs it; a device tree with `rockchip,sram` for the NPU grants it";
            self.add(Severity::Note, Problem::NoSram, remedy);
        }
    }

    fn clocks(&mut self, snapshot: &Snapshot, info: Option<&DeviceInfo>) {
        if let Some(clock) = &snapshot.npu {
            if let Some(governor) = slow_governor(clock) {
                self.add(Severity::Warning, Problem::NpuGovernor(governor), performance(clock));
            }
            if let Some((max, top)) = lower(clock.max_hz, clock.top_hz()) {
                let remedy = format!("echo {top} > /sys/class/devfreq/{}/max_freq", clock.name);
                let problem = Problem::NpuCapped { max_mhz: mhz(max), top_mhz: mhz(top) };
                self.add(Severity::Warning, problem, remedy);
            }
        }
        let rocket = info.is_some_and(|info| info.interface == Interface::Rocket);
        if let Some(hz) = snapshot.npu_clock_tree_hz.filter(|&hz| rocket && hz <= MAINLINE_HZ) {
            let remedy = "set the NPU's assigned-clock-rates to 600 MHz in the device tree; 900 MHz has been \
                          reported to lock a board up";
            self.add(Severity::Warning, Problem::MainlineClock(mhz(hz)), remedy);
        }
        if let Some(clock) = &snapshot.dmc {
            let governor = slow_governor(clock);
            // Decoding is bound by memory: halved, it has been reported to cost 73 % of decode attention.
            if let Some((current, top)) = lower(clock.current_hz, clock.top_hz()) {
                let problem = Problem::DmcSlow { current_mhz: mhz(current), top_mhz: mhz(top) };
                self.add(Severity::Warning, problem, performance(clock));
            } else if let Some(governor) = governor {
                self.add(Severity::Warning, Problem::DmcGovernor(governor), performance(clock));
            }
        }
    }

    fn thermal(&mut self, snapshot: &Snapshot) {
        for zone in &snapshot.thermal {
            let Some(limit) = zone.limit_millidegrees else { continue };
            if zone.millidegrees + NEAR_LIMIT >= limit {
                let problem = Problem::Hot {
                    zone: zone.name.clone(),
                    degrees: zone.millidegrees / 1000,
                    limit: limit / 1000,
                };
                let remedy = "cool the board: a heat sink with a fan, or fewer requests at once";
                self.add(Severity::Warning, problem, remedy);
            }
        }
    }
}

/// Both frequencies, if the first is lower.
fn lower(first: Option<u64>, second: Option<u64>) -> Option<(u64, u64)> {
    first.zip(second).filter(|(first, second)| first < second)
}

/// The governor's name where it may choose a lower clock than the highest.
fn slow_governor(clock: &Clock) -> Option<String> {
    let governor = clock.governor.as_ref()?;
    // "userspace" keeps what it was set to, which the clock itself tells.
    (!matches!(governor.as_str(), "performance" | "userspace")).then(|| governor.clone())
}

fn performance(clock: &Clock) -> String {
    format!("echo performance > /sys/class/devfreq/{}/governor", clock.name)
}

fn names_rk3588(board: &str) -> bool {
    let board = board.to_lowercase();
    // Boards name themselves after their makers more often than after their chip.
    let names = ["rk3588", "rock 5", "orange pi 5", "nanopc-t6", "nanopi r6", "turing rk1", "khadas edge2"];
    names.iter().any(|name| board.contains(name))
}

fn mhz(hz: u64) -> u64 {
    hz / 1_000_000
}
