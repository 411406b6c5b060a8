//! Memory shared with a device, mapped into this process.
#![expect(unsafe_code, reason = "mapping and unmapping memory; each block has its proof")]

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Pages shared with a device (or a simulator's), mapped for reading and writing until dropped.
///
/// A mapping gives out no references: others may write the memory at any time. [`Buffer`](super::Buffer)
/// knows when nobody does.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to this value alone within Rust (nothing else unmaps them), and a pointer to
// shared pages means the same in every thread; reading and writing through the pointer is what needs proof,
// where it is done.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives only the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` on, shared.
    ///
    /// The file must be that long: pages past its end are mapped but cannot be touched (`SIGBUS`). Kernel
    /// drivers check that themselves; for a memfd the caller does.
    ///
    /// # Errors
    /// `EINVAL` for a length of 0 or an offset that is no multiple of the page size; otherwise what mmap
    /// gives.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for and MAP_FIXED is not set, so no mapping that exists is replaced.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { start: start.cast(), len })
    }

    /// The first byte. Valid for reads and writes of [`Mapping::len`] bytes while the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap gave and took; guards and slices borrow their buffer, which
        // owns this mapping, so no reference into the pages is alive.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
