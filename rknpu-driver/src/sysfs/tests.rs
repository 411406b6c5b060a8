//! Fake trees.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::*;
use crate::device::{DeviceInfo, Interface};
use crate::error::OpenError;
use crate::uapi::DriverVersion;

/// A folder that goes when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("rknpu-sysfs-{}-{name}", std::process::id()));
        let tree = Tree(root);
        for (file, text) in files {
            let path = tree.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    fn snapshot(&self) -> Snapshot {
        Sysfs::new(&self.0).snapshot()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const VENDOR: [(&str, &str); 23] = [
    ("sys/firmware/devicetree/base/model", "Radxa ROCK 5B\0"),
    ("proc/sys/kernel/osrelease", "6.1.84-vendor-rk35xx\n"),
    ("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8\n"),
    ("sys/firmware/devicetree/base/npu@fdab0000/status", "okay\0"),
    ("sys/firmware/devicetree/base/npu@fdab0000/rockchip,sram", "\0\0\u{1}"),
    ("sys/bus/platform/devices/fdab0000.npu/iommu_group/name", ""),
    ("sys/class/devfreq/fdab0000.npu/cur_freq", "300000000\n"),
    ("sys/class/devfreq/fdab0000.npu/min_freq", "300000000\n"),
    ("sys/class/devfreq/fdab0000.npu/max_freq", "900000000\n"),
    ("sys/class/devfreq/fdab0000.npu/available_frequencies", "300000000 1000000000 900000000\n"),
    ("sys/class/devfreq/fdab0000.npu/governor", "rknpu_ondemand\n"),
    ("sys/class/devfreq/dmc/cur_freq", "1068000000\n"),
    ("sys/class/devfreq/dmc/min_freq", "528000000\n"),
    ("sys/class/devfreq/dmc/max_freq", "2112000000\n"),
    ("sys/class/devfreq/dmc/available_frequencies", "528000000 1068000000 1560000000 2112000000\n"),
    ("sys/class/devfreq/dmc/governor", "dmc_ondemand\n"),
    ("sys/class/devfreq/fb000000.gpu/cur_freq", "1\n"),
    ("sys/class/thermal/thermal_zone6/type", "npu-thermal\n"),
    ("sys/class/thermal/thermal_zone6/temp", "81375\n"),
    ("sys/class/thermal/thermal_zone6/trip_point_0_type", "active\n"),
    ("sys/class/thermal/thermal_zone6/trip_point_0_temp", "60000\n"),
    ("sys/class/thermal/thermal_zone6/trip_point_1_type", "passive\n"),
    ("sys/class/thermal/thermal_zone6/trip_point_1_temp", "85000\n"),
];

fn info(interface: Interface, sram_bytes: u64) -> DeviceInfo {
    DeviceInfo {
        interface,
        node: Some("/dev/dri/renderD129".into()),
        driver: DriverVersion::default(),
        hardware_version: None,
        cores: 3,
        sram_bytes,
        simulated: false,
    }
}

fn codes(found: &[Finding]) -> Vec<&'static str> {
    found.iter().map(|finding| finding.problem.code()).collect()
}

#[test]
fn a_vendor_board_is_read_whole() {
    let tree = Tree::new("vendor", &VENDOR);
    let snapshot = tree.snapshot();
    assert_eq!(snapshot.board.as_deref(), Some("Radxa ROCK 5B"));
    assert_eq!(snapshot.kernel.as_deref(), Some("6.1.84-vendor-rk35xx"));
    assert_eq!(snapshot.drivers, [KernelDriver { name: "rknpu", version: Some("0.9.8".to_owned()) }]);
    assert_eq!(snapshot.node_status.as_deref(), Some("okay"));
    let npu = snapshot.npu.as_ref().unwrap();
    assert_eq!((npu.current_hz, npu.top_hz()), (Some(300_000_000), Some(1_000_000_000)));
    assert_eq!(snapshot.dmc.as_ref().unwrap().name, "dmc");
    let zone = ThermalZone {
        name: "npu-thermal".to_owned(),
        millidegrees: 81_375,
        limit_millidegrees: Some(85_000),
    };
    assert_eq!(snapshot.thermal, [zone]);
    assert_eq!(
        (snapshot.sram_granted, snapshot.iommu, snapshot.reset_bypassed),
        (Some(true), Some(true), false)
    );

    let found = findings(&snapshot, Ok(&info(Interface::Vendor, 0)));
    assert_eq!(codes(&found), ["npu-governor", "npu-capped", "dmc-slow", "hot", "no-sram"]);
    assert_eq!(
        found[2].to_string(),
        "the memory runs at 1068 MHz of 2112; echo performance > /sys/class/devfreq/dmc/governor"
    );
}

#[test]
fn a_board_in_order_has_no_findings() {
    let tree = Tree::new("in-order", &VENDOR);
    for (file, text) in [
        ("sys/class/devfreq/fdab0000.npu/governor", "performance"),
        ("sys/class/devfreq/fdab0000.npu/max_freq", "1000000000"),
        ("sys/class/devfreq/dmc/governor", "performance"),
        ("sys/class/devfreq/dmc/cur_freq", "2112000000"),
        ("sys/class/thermal/thermal_zone6/temp", "45000"),
    ] {
        fs::write(tree.0.join(file), text).unwrap();
    }
    let found = findings(&tree.snapshot(), Ok(&info(Interface::Vendor, 956 << 10)));
    assert_eq!(codes(&found), Vec::<&str>::new());
}

#[test]
fn mainline_at_its_boot_clock_is_found() {
    let tree = Tree::new("mainline", &[("sys/kernel/debug/clk/scmi_clk_npu/clk_rate", "200000000")]);
    fs::create_dir_all(tree.0.join("sys/module/rocket")).unwrap();
    let snapshot = tree.snapshot();
    assert_eq!(snapshot.drivers, [KernelDriver { name: "rocket", version: None }]);
    assert_eq!(codes(&findings(&snapshot, Ok(&info(Interface::Rocket, 0)))), ["mainline-clock"]);
}

#[test]
fn an_empty_machine_says_what_is_missing() {
    let tree = Tree::new("empty", &[("sys/firmware/devicetree/base/npu@fdab0000/status", "disabled\0")]);
    let error = OpenError::NoNode { looked: "nothing".to_owned() };
    let found = findings(&tree.snapshot(), Err(&error));
    assert_eq!(codes(&found), ["disabled", "no-driver", "not-opened"]);
    assert!(found.iter().all(|finding| finding.severity == Severity::Error && !finding.remedy.is_empty()));

    let tree = Tree::new("other", &[("sys/firmware/devicetree/base/model", "Raspberry Pi 5")]);
    let error = OpenError::Open { node: "/dev/accel/accel0".into(), source: Errno::EBUSY };
    let found = findings(&tree.snapshot(), Err(&error));
    assert_eq!(codes(&found), ["no-driver", "not-opened", "other-board"]);
    assert!(found[1].problem.to_string().starts_with("cannot open /dev/accel/accel0: EBUSY"));
}

#[test]
fn nonsense_in_files_is_passed_over() {
    let tree = Tree::new(
        "nonsense",
        &[
            ("sys/class/devfreq/dmc/cur_freq", "fast"),
            ("sys/class/devfreq/dmc/available_frequencies", "a b 5"),
            ("sys/class/thermal/thermal_zone0/temp", "hot"),
            ("sys/class/thermal/thermal_zoneX/temp", "1"),
            ("sys/class/thermal/thermal_zone1/temp", "-3000"),
        ],
    );
    let snapshot = tree.snapshot();
    assert_eq!(snapshot.dmc.as_ref().unwrap().available_hz, [5]);
    assert_eq!(snapshot.dmc.as_ref().unwrap().current_hz, None);
    let zone = ThermalZone { name: String::new(), millidegrees: -3000, limit_millidegrees: None };
    assert_eq!(snapshot.thermal, [zone]);
    assert!(Sysfs::new(Path::new("/no such root")).snapshot().thermal.is_empty());
}
