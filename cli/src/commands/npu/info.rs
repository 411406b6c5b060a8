//! `rookery npu info`: what NPU there is, how it is, and what is wrong with it.

use std::path::PathBuf;

use clap::Args;
use rknpu_driver::device::{Device, Interface};
use rknpu_driver::error::OpenError;
use rknpu_driver::sysfs::{Clock, Finding, Severity, Snapshot, Sysfs, ThermalZone, findings};
use serde_json::{Value, json};

use super::device::{DeviceArgs, describe};
use crate::error::Failure;
use crate::output::{self, Table};

/// Shows the NPU's node, driver, clocks, memory and temperature, what is wrong, and how to mend it.
#[derive(Args, Debug)]
#[command(after_help = "Clocks and versions that need root to be read are left out for others.

Examples:
  rookery npu info
  rookery npu info --device rocket --json")]
pub(super) struct InfoArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Where the system's files are; tests have their own.
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If there is no NPU that can be used; what is known is shown all the same.
pub(super) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let opened = args.device.try_open()?;
    let simulated = opened.as_ref().is_ok_and(|device| device.info().simulated);
    // This machine's clocks are not the simulated device's.
    let system = if simulated { Snapshot::default() } else { Sysfs::new(&args.root).snapshot() };
    let findings = findings(&system, opened.as_ref().map(|device| device.info()));
    if args.json {
        output::json(&report(&opened, &system, &findings))?;
    } else {
        show(&opened, &system, &findings)?;
    }
    opened.map(drop).map_err(|error| {
        Failure::new("there is no NPU that can be used")
            .caused_by(error)
            .hint("`--device sim` simulates one; docs/npu.md, \"On a real board\", has the steps")
    })
}

fn show(opened: &Result<Device, OpenError>, system: &Snapshot, findings: &[Finding]) -> Result<(), Failure> {
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    if let Ok(device) = opened {
        device_rows(device, &mut row);
    }
    system_rows(system, &mut row);
    output::write(table.render().trim_start_matches('\n'))?;
    for finding in findings {
        output::line(format!("{}: {}\n  {}", severity(finding.severity), finding.problem, finding.remedy))?;
    }
    Ok(())
}

fn device_rows(device: &Device, row: &mut dyn FnMut(&str, String)) {
    let info = device.info();
    row("device", describe(device));
    if let Some(node) = &info.node {
        row("node", node.display().to_string());
    }
    row("driver", driver(device));
    if let Some(version) = info.hardware_version {
        row("hardware version", format!("{version:#010x}"));
    }
    row("cores", info.cores.to_string());
    let spaces = device.domains();
    if let Some(space) = spaces.first() {
        let (count, cores) = (spaces.len(), space.cores.count());
        row(
            "address spaces",
            format!("{count} of {}, each for {cores} of the cores", output::bytes(space.bytes)),
        );
    }
    let sram = match (info.interface, info.sram_bytes) {
        (Interface::Rocket, _) => "not offered by this driver".to_owned(),
        (Interface::Vendor, 0) => "none".to_owned(),
        (Interface::Vendor, bytes) => output::bytes(bytes),
    };
    row("on-chip SRAM", sram);
    if let Some(fault) = device.health().fault {
        row("fault", fault.to_string());
    }
}

fn driver(device: &Device) -> String {
    let version = &device.info().driver;
    // Drivers without a date say 0.
    let date = if matches!(version.date.as_str(), "" | "0") {
        String::new()
    } else {
        format!(" of {}", version.date)
    };
    format!("{} {}.{}.{}{date}", version.name, version.major, version.minor, version.patch)
}

fn system_rows(system: &Snapshot, row: &mut dyn FnMut(&str, String)) {
    if let Some(board) = &system.board {
        row("board", board.clone());
    }
    if let Some(kernel) = &system.kernel {
        row("kernel", kernel.clone());
    }
    for driver in &system.drivers {
        let version = driver.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        row("kernel driver", format!("{}{version}", driver.name));
    }
    if let Some(clock) = &system.npu {
        row("NPU clock", describe_clock(clock));
    } else if let Some(hz) = system.npu_clock_tree_hz {
        row("NPU clock", megahertz(hz));
    }
    if let Some(clock) = &system.dmc {
        row("memory clock", describe_clock(clock));
    }
    for zone in &system.thermal {
        row("temperature", temperature(zone));
    }
}

fn describe_clock(clock: &Clock) -> String {
    let unknown = || "unknown".to_owned();
    let current = clock.current_hz.map_or_else(unknown, megahertz);
    let range = match (clock.min_hz, clock.max_hz) {
        (Some(least), Some(most)) => format!("{} to {}", megahertz(least), megahertz(most)),
        _ => "range unknown".to_owned(),
    };
    let governor = clock.governor.clone().unwrap_or_else(unknown);
    format!("{current} ({range}, governor {governor}, /sys/class/devfreq/{})", clock.name)
}

fn megahertz(hz: u64) -> String {
    format!("{} MHz", hz / 1_000_000)
}

fn temperature(zone: &ThermalZone) -> String {
    let degrees = |millidegrees: i64| format!("{:.1} °C", millidegrees as f64 / 1e3);
    let limit = zone.limit_millidegrees.map(|limit| format!(", slowed down from {}", degrees(limit)));
    format!("{} {}{}", zone.name, degrees(zone.millidegrees), limit.unwrap_or_default())
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn report(opened: &Result<Device, OpenError>, system: &Snapshot, findings: &[Finding]) -> Value {
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "severity": severity(finding.severity),
                "code": finding.problem.code(),
                "problem": finding.problem.to_string(),
                "remedy": finding.remedy,
            })
        })
        .collect();
    json!({
        "device": opened.as_ref().ok().map(device_report),
        "system": {
            "board": system.board,
            "kernel": system.kernel,
            "drivers": system.drivers.iter().map(|driver| json!({
                "name": driver.name, "version": driver.version,
            })).collect::<Vec<_>>(),
            "node_status": system.node_status,
            "npu_clock": system.npu.as_ref().map(clock_report),
            "npu_clock_tree_hz": system.npu_clock_tree_hz,
            "memory_clock": system.dmc.as_ref().map(clock_report),
            "thermal": system.thermal.iter().map(|zone| json!({
                "name": zone.name,
                "millidegrees": zone.millidegrees,
                "limit_millidegrees": zone.limit_millidegrees,
            })).collect::<Vec<_>>(),
            "sram_granted": system.sram_granted,
            "iommu": system.iommu,
            "reset_bypassed": system.reset_bypassed,
        },
        "findings": findings,
    })
}

fn device_report(device: &Device) -> Value {
    let info = device.info();
    let health = device.health();
    json!({
        "interface": match info.interface {
            Interface::Vendor => "vendor",
            Interface::Rocket => "rocket",
        },
        "simulated": info.simulated,
        "node": info.node.as_ref().map(|node| node.display().to_string()),
        "driver": driver(device),
        "hardware_version": info.hardware_version,
        "cores": info.cores,
        "sram_bytes": info.sram_bytes,
        "address_spaces": device.domains().len(),
        "fault": health.fault.map(|fault| fault.to_string()),
    })
}

fn clock_report(clock: &Clock) -> Value {
    json!({
        "name": clock.name,
        "current_hz": clock.current_hz,
        "min_hz": clock.min_hz,
        "max_hz": clock.max_hz,
        "available_hz": clock.available_hz,
        "governor": clock.governor,
    })
}
