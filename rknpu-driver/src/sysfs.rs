//! What the system says of the NPU: clocks, temperatures, driver, device tree; and what is wrong with it.
//!
//! Everything is read from files below a root, `/` unless a test says otherwise. A file that is missing,
//! unreadable or unintelligible is information of its own and never an error: much of it needs root or
//! another kernel.

mod findings;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

pub use findings::{Finding, Problem, Severity, findings};

/// Where the device tree has the NPU's first core, with both drivers.
const NODE: &str = "sys/firmware/devicetree/base/npu@fdab0000";
/// Its platform device.
const PLATFORM: &str = "sys/bus/platform/devices/fdab0000.npu";

/// Reads files below a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// The system's own files.
    fn default() -> Self {
        Self::new("/")
    }
}

/// A clock under devfreq, all in Hz.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Name of its devfreq folder.
    pub name: String,
    /// Now.
    pub current_hz: Option<u64>,
    /// The least that the governor may choose.
    pub min_hz: Option<u64>,
    /// The most.
    pub max_hz: Option<u64>,
    /// All steps, lowest first.
    pub available_hz: Vec<u64>,
    /// Who chooses.
    pub governor: Option<String>,
}

impl Clock {
    /// The fastest step there is.
    #[must_use]
    pub fn top_hz(&self) -> Option<u64> {
        self.available_hz.last().copied().or(self.max_hz)
    }
}

/// A thermal zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThermalZone {
    /// What it measures, as the kernel calls it (`npu-thermal`).
    pub name: String,
    /// Now, in thousandths of a degree Celsius.
    pub millidegrees: i64,
    /// The lowest trip point that is no cooling fan's (passive, hot or critical), in thousandths of a degree
    /// Celsius.
    pub limit_millidegrees: Option<i64>,
}

/// A kernel driver that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDriver {
    /// `rknpu` or `rocket`.
    pub name: &'static str,
    /// Its version where it tells.
    pub version: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The board's name in its device tree.
    pub board: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// Kernel drivers of the NPU that are loaded or built in.
    pub drivers: Vec<KernelDriver>,
    /// Status of the NPU in the device tree (`okay`, `disabled`); none where the tree has no NPU.
    pub node_status: Option<String>,
    /// The NPU's clock under devfreq, which only the vendor's driver has.
    pub npu: Option<Clock>,
    /// The NPU's clock as the clock tree says, Hz; needs root.
    pub npu_clock_tree_hz: Option<u64>,
    /// The memory's clock under devfreq.
    pub dmc: Option<Clock>,
    /// Thermal zones.
    pub thermal: Vec<ThermalZone>,
    /// Whether the device tree grants the NPU on-chip SRAM.
    pub sram_granted: Option<bool>,
    /// Whether the NPU sits behind its IOMMU.
    pub iommu: Option<bool>,
    /// Whether the vendor's driver was told to skip resets.
    pub reset_bypassed: bool,
}

impl Sysfs {
    /// Files below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads everything.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let node = self.root.join(NODE);
        let node_status =
            node.is_dir().then(|| self.text(&format!("{NODE}/status")).unwrap_or("okay".into()));
        let platform = self.root.join(PLATFORM);
        Snapshot {
            board: self.text("sys/firmware/devicetree/base/model"),
            kernel: self.text("proc/sys/kernel/osrelease"),
            drivers: self.drivers(),
            npu: self.clock(&["fdab0000.npu", "npu"]),
            npu_clock_tree_hz: self.number("sys/kernel/debug/clk/scmi_clk_npu/clk_rate"),
            dmc: self.clock(&["dmc"]),
            thermal: self.thermal_zones(),
            sram_granted: node.is_dir().then(|| node.join("rockchip,sram").exists()),
            iommu: platform.exists().then(|| platform.join("iommu_group").exists()),
            reset_bypassed: self.number("sys/module/rknpu/parameters/bypass_soft_reset").unwrap_or(0) != 0,
            node_status,
        }
    }

    /// All thermal zones, in the kernel's order.
    #[must_use]
    pub fn thermal_zones(&self) -> Vec<ThermalZone> {
        let folder = "sys/class/thermal";
        let mut zones: Vec<(u32, ThermalZone)> = self
            .names(folder)
            .iter()
            .filter_map(|name| {
                let index = name.strip_prefix("thermal_zone")?.parse().ok()?;
                Some((index, self.thermal_zone(&format!("{folder}/{name}"))?))
            })
            .collect();
        zones.sort_by_key(|(index, _)| *index);
        zones.into_iter().map(|(_, zone)| zone).collect()
    }

    fn thermal_zone(&self, zone: &str) -> Option<ThermalZone> {
        let millidegrees = self.text(&format!("{zone}/temp"))?.parse().ok()?;
        let name = self.text(&format!("{zone}/type")).unwrap_or_default();
        // Active trip points start fans; from passive ones on the kernel slows things down.
        let limits = (0..16).filter_map(|point| {
            let kind = self.text(&format!("{zone}/trip_point_{point}_type"))?;
            let at = self.text(&format!("{zone}/trip_point_{point}_temp"))?.parse().ok()?;
            (kind != "active" && at > 0).then_some(at)
        });
        Some(ThermalZone { name, millidegrees, limit_millidegrees: limits.min() })
    }

    /// The NPU's clock under devfreq.
    #[must_use]
    pub fn npu_clock(&self) -> Option<Clock> {
        self.clock(&["fdab0000.npu", "npu"])
    }

    /// The memory's clock under devfreq.
    #[must_use]
    pub fn dmc_clock(&self) -> Option<Clock> {
        self.clock(&["dmc"])
    }

    /// The first devfreq folder with one of the names, or whose name ends in one.
    fn clock(&self, names: &[&str]) -> Option<Clock> {
        let folder = "sys/class/devfreq";
        let found = self.names(folder);
        let name = names.iter().find_map(|name| {
            let same = found.iter().find(|other| other == name);
            same.or_else(|| found.iter().find(|other| other.ends_with(&format!(".{name}"))))
        })?;
        let number = |file: &str| self.number(&format!("{folder}/{name}/{file}"));
        let steps = self.text(&format!("{folder}/{name}/available_frequencies")).unwrap_or_default();
        let mut available_hz: Vec<u64> =
            steps.split_whitespace().filter_map(|step| step.parse().ok()).collect();
        available_hz.sort_unstable();
        Some(Clock {
            name: name.clone(),
            current_hz: number("cur_freq"),
            min_hz: number("min_freq"),
            max_hz: number("max_freq"),
            available_hz,
            governor: self.text(&format!("{folder}/{name}/governor")),
        })
    }

    fn drivers(&self) -> Vec<KernelDriver> {
        let present = |name: &str| self.root.join(format!("sys/module/{name}")).is_dir();
        let mut drivers = Vec::new();
        // Built in, the vendor's driver tells its version in its own folder of debugfs or procfs ("RKNPU
        // driver: v0.9.8").
        let told = ["sys/module/rknpu/version", "sys/kernel/debug/rknpu/version", "proc/rknpu/version"];
        let version = told.iter().find_map(|file| self.text(file)).map(|text| {
            let last = text.split_whitespace().last().unwrap_or_default();
            last.trim_start_matches('v').to_owned()
        });
        let bound = self.root.join("sys/bus/platform/drivers/RKNPU").is_dir();
        if present("rknpu") || bound || version.is_some() {
            drivers.push(KernelDriver { name: "rknpu", version });
        }
        if present("rocket") || self.root.join("sys/bus/platform/drivers/rocket").is_dir() {
            drivers.push(KernelDriver { name: "rocket", version: self.text("sys/module/rocket/version") });
        }
        drivers
    }

    /// Names in a folder; none if it cannot be read.
    fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(folder)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// A file's text without the white space and zero bytes around it; none if there is none.
    fn text(&self, file: &str) -> Option<String> {
        let path: &Path = Path::new(file);
        let bytes = fs::read(self.root.join(path)).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.parse().ok()
    }
}
