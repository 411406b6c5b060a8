//! Which pages of a buffer somebody has touched.
//!
//! A sync hands over whatever lies in its range, most often a whole buffer, so a sync does not tell what the program wrote. The pages do:
//! a memfd has a page from the first access through a mapping on, and a hole where there was none. A page that the program only read, or
//! wrote in part, counts as written: what is told is too little, never too much. The simulator looks at what was written before
//! it reads, so it makes no pages by reading for a job.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Calls `mark` with the parts of `bytes` that are not holes of the memfd. Moves the file's position, which nobody uses: buffers are mapped.
pub(super) fn each(fd: BorrowedFd<'_>, bytes: Range<usize>, mut mark: impl FnMut(Range<usize>)) {
    let seek = |at: usize, whence| lseek(fd, at as i64, whence).map(|found| found as usize);
    let mut at = bytes.start;
    while at < bytes.end {
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start.max(at),
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => return,
            // A system whose memfds do not know: all may have been written.
            Err(_) => return mark(at..bytes.end),
        };
        let end = seek(start, Whence::SeekHole).unwrap_or(bytes.end).min(bytes.end);
        if start >= end {
            return;
        }
        mark(start..end);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Backing;

    #[test]
    fn pages_that_were_written_are_found_and_holes_are_not() {
        let backing = Backing::new(8 * 4096).unwrap();
        let touched = |bytes| {
            let mut found = Vec::new();
            each(backing.fd(), bytes, |part| found.push(part));
            found
        };
        assert_eq!(touched(0..8 * 4096), []);
        backing.copy_in(4096 + 100, &[0]);
        backing.copy_in(5 * 4096, &[1; 5000]);
        assert_eq!(touched(0..8 * 4096), [4096..8192, 5 * 4096..7 * 4096]);
        assert_eq!(touched(5000..5 * 4096 + 64), [5000..8192, 5 * 4096..5 * 4096 + 64]);
        assert_eq!(touched(8192..8192), []);
        assert_eq!(touched(8192..5 * 4096), []);
    }
}
