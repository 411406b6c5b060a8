//! What a process costs, as Linux accounts for it.

use std::{io, time::Duration};

/// Ticks a second of /proc's times: fixed by the kernel's interface to programs.
const TICKS: u64 = 100;

/// A process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes resident now.
    pub resident_bytes: u64,
    /// Most bytes that were ever resident.
    pub peak_bytes: u64,
    /// Processor time so far, of all threads.
    pub cpu: Duration,
}

impl Usage {
    /// Processors used since `before`, on average over `time`.
    pub(crate) fn share_since(&self, before: &Self, time: Duration) -> f64 {
        self.cpu.saturating_sub(before.cpu).as_secs_f64() / time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Reads `/proc/PID/status` and `/proc/PID/stat`.
///
/// # Errors
/// If there is no such process, or the files have another form.
pub(crate) fn usage(process: u32) -> io::Result<Usage> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}"));
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{process} has another form"));
    parse(&read("status")?, &read("stat")?).ok_or_else(odd)
}

fn parse(status: &str, stat: &str) -> Option<Usage> {
    // The second field is the program's name, which may contain anything but ends with the last parenthesis.
    let after = &stat[stat.rfind(')')? + 1..];
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Usage {
        resident_bytes: bytes(status, "VmRSS:")?,
        peak_bytes: bytes(status, "VmHWM:")?,
        cpu: Duration::from_millis((user + system) * 1000 / TICKS),
    })
}

fn bytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let status = "Name:\ta\nVmHWM:\t   300 kB\nVmRSS:\t  200 kB\n";
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1 2 3";
        let usage = parse(status, stat).unwrap();
        assert_eq!((usage.resident_bytes, usage.peak_bytes), (200 << 10, 300 << 10));
        assert_eq!(usage.cpu, Duration::from_secs(2));
        assert!(parse("", stat).is_none() && parse(status, "7 (a").is_none());
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(usage(std::process::id()).unwrap().resident_bytes > 1 << 20);
    }
}
