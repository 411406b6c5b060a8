//! What the gateway's system says of it: `/proc` and `/sys`, or folders that look like them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rookery_kernels::Kernels;
use rookery_proto::v1;

/// Longest file that is read here.
const MOST_BYTES: u64 = 64 << 10;

/// Where a system says what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    proc: PathBuf,
    sys: PathBuf,
}

/// Memory of the system, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemMemory {
    /// All.
    pub total: u64,
    /// What could be used without pushing anything out that is in use. Files that are mapped count as available, though an
    /// engine may be reading its weights from them.
    pub available: u64,
    /// What this process has that is of no file.
    pub own: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self::at(Path::new("/"))
    }
}

impl Board {
    /// The system whose `proc` and `sys` are in `root`.
    pub fn at(root: &Path) -> Self {
        Self { proc: root.join("proc"), sys: root.join("sys") }
    }

    /// Such as "Radxa ROCK 5B"; empty where there is no device tree.
    pub fn name(&self) -> String {
        let name = read(&self.proc.join("device-tree/model")).unwrap_or_default();
        name.trim_end_matches('\0').trim().chars().filter(|c| !c.is_control()).take(128).collect()
    }

    /// Memory; zeros where the system does not say.
    pub fn memory(&self) -> SystemMemory {
        let meminfo = read(&self.proc.join("meminfo")).unwrap_or_default();
        let status = read(&self.proc.join("self/status")).unwrap_or_default();
        SystemMemory {
            total: kib(&meminfo, "MemTotal:"),
            available: kib(&meminfo, "MemAvailable:"),
            own: kib(&status, "RssAnon:"),
        }
    }

    /// Temperature of the hottest thermal zone, in degrees Celsius.
    pub fn celsius(&self) -> Option<f64> {
        let zones = fs::read_dir(self.sys.join("class/thermal")).ok()?;
        let celsius = |zone: fs::DirEntry| -> Option<f64> {
            zone.file_name().to_str()?.starts_with("thermal_zone").then_some(())?;
            let milli: f64 = read(&zone.path().join("temp"))?.trim().parse().ok()?;
            Some(milli / 1000.0)
        };
        zones.filter_map(|zone| celsius(zone.ok()?)).filter(|c| c.is_finite()).reduce(f64::max)
    }

    /// Driver of the NPU, such as "rknpu 0.9.8" or "rocket"; empty if there is none.
    pub fn driver(&self) -> String {
        let module = |name: &str| self.sys.join("module").join(name);
        if module("rknpu").is_dir() {
            let version = read(&module("rknpu").join("version")).unwrap_or_default();
            return format!("rknpu {}", version.trim()).trim_end().to_owned();
        }
        if module("rocket").is_dir() { "rocket".to_owned() } else { String::new() }
    }

    /// All of it, as the control plane is told.
    pub(crate) fn facts(&self, free_disk_bytes: u64) -> v1::GatewayFacts {
        let memory = self.memory();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        v1::GatewayFacts {
            board: self.name(),
            memory_bytes: memory.total,
            available_memory_bytes: memory.available,
            free_disk_bytes,
            driver: self.driver(),
            celsius: self.celsius(),
            processor: format!("{} {}", std::env::consts::ARCH, Kernels::detect().isa()),
            clock_us: u64::try_from(clock.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// The value of a line such as `MemTotal:  16000 kB`, in bytes.
fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_what_its_files_say() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let board = Board::at(root.path());
        assert_eq!((board.name(), board.celsius(), board.driver()), (String::new(), None, String::new()));
        assert_eq!(board.memory(), SystemMemory::default());
        write("proc/device-tree/model", "Radxa ROCK 5B\0");
        write("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   6000 kB\n");
        write("sys/class/thermal/thermal_zone0/temp", "45123\n");
        write("sys/class/thermal/thermal_zone1/temp", "61000\n");
        write("sys/class/thermal/cooling_device0/temp", "99000\n");
        write("sys/module/rknpu/version", "0.9.8\n");
        assert_eq!(board.name(), "Radxa ROCK 5B");
        assert_eq!((board.memory().total, board.memory().available), (8_192_000, 6_144_000));
        assert_eq!(board.celsius(), Some(61.0));
        assert_eq!(board.driver(), "rknpu 0.9.8");
        assert!(Board::default().memory().total > 0);
    }
}
