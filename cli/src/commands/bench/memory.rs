//! Memory of this process, as Linux accounts for it.

use std::io;

/// Sizes in bytes.
pub(super) struct Memory {
    /// Most that was ever resident.
    pub(super) peak: u64,
    /// Resident now and not backed by a file: mapped weights are not in it.
    pub(super) anonymous: u64,
}

/// Reads `/proc/self/status`.
pub(super) fn read() -> io::Result<Memory> {
    parse(&std::fs::read_to_string("/proc/self/status")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status lacks VmHWM or RssAnon"))
}

fn parse(status: &str) -> Option<Memory> {
    let kibibytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    Some(Memory { peak: kibibytes("VmHWM")? * 1024, anonymous: kibibytes("RssAnon")? * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_linux_are_read() {
        let memory = parse("Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t       7 kB\n").unwrap();
        assert_eq!((memory.peak, memory.anonymous), (2 << 20, 7 << 10));
        assert!(read().unwrap().peak > 0);
    }
}
