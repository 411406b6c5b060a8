//! Memory of this process, as Linux accounts for it.

use std::io;

/// Sizes in bytes.
///
/// All but the peak are shares: a page that is mapped several times, as the memory of a simulated NPU is, counts once, and one
/// that several processes map counts in part. So they add up, as resident sizes do not.
pub(super) struct Memory {
    /// Most that was ever resident; what is mapped twice counts twice.
    pub(super) peak: u64,
    /// Of everything.
    pub(super) all: u64,
    /// Of mapped files, weights and this program among them.
    pub(super) files: u64,
    /// Of memory that is no process's own: the NPU's buffers, if the driver lets Linux count them, or those of its simulator.
    pub(super) shared: u64,
    /// Of this process's own.
    pub(super) anonymous: u64,
}

/// Reads `/proc/self/smaps_rollup` and `/proc/self/status`.
pub(super) fn read() -> io::Result<Memory> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    parse(&status, &rollup).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/self lacks VmHWM, Pss or its parts (Linux 5.4 has them)",
        )
    })
}

fn parse(status: &str, rollup: &str) -> Option<Memory> {
    Some(Memory {
        peak: bytes(status, "VmHWM")?,
        all: bytes(rollup, "Pss")?,
        files: bytes(rollup, "Pss_File")?,
        shared: bytes(rollup, "Pss_Shmem")?,
        anonymous: bytes(rollup, "Pss_Anon")?,
    })
}

/// The value of a line `name: … kB`.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_linux_are_read() {
        let rollup = "0-1 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:\t 6 kB\nPss_Dirty: 5 kB\nPss_Anon: 1 kB\nPss_File: 2 kB\nPss_Shmem: 3 kB\n";
        let memory = parse("Name:\tx\nVmHWM:\t    2048 kB\n", rollup).unwrap();
        let sizes = [memory.peak, memory.all, memory.anonymous, memory.files, memory.shared];
        assert_eq!(sizes, [2 << 20, 6 << 10, 1 << 10, 2 << 10, 3 << 10]);
        assert!(parse("VmHWM: 1 kB", "Pss: 1 kB").is_none());
    }

    #[test]
    fn parts_of_this_process_add_up() {
        let memory = read().unwrap();
        assert!(memory.peak > 0 && memory.all > 0);
        let parts = memory.files + memory.shared + memory.anonymous;
        // Each line is rounded to a kibibyte.
        assert!(parts.abs_diff(memory.all) <= 4096, "{parts} and {}", memory.all);
    }
}
