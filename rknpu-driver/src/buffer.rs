//! Memory that the CPU and the NPU share.
//!
//! A [`Buffer`]'s bytes are reached through guards only: [`Buffer::read`] and [`Buffer::write`] make the
//! device's writes visible on entry, the CPU's on exit, and keep jobs out meanwhile. A [`SealedBuffer`] is
//! never written again, by nobody, so it is simply a slice for everyone at once: weights live once, and CPU
//! kernels and NPU jobs read the same bytes.
//!
//! ```text
//!            write guards (disjoint ranges)          seal
//!   idle ──► read guards, jobs that read     idle ─────────► sealed: jobs that read, plain slices
//!            a job that writes
//!              └─ times out and cannot be stopped ──► quarantined, until a reset sees it end
//! ```
//!
//! A job holds its buffers, so memory outlives what the hardware does with it, even where the job fails.

#![expect(unsafe_code, reason = "slices over shared memory; each block has its proof")]

mod inner;
mod mapping;
pub(crate) mod object;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::{Bound, Deref, DerefMut, Range, RangeBounds};
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub(crate) use inner::{Inner, Place};
pub use mapping::Mapping;

use crate::device::DomainId;
use crate::device::link::{Kernel, is_unsupported};
use crate::error::{ShareError, SyncError};
use crate::ioctl::retry;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// Features, weights, results: cached by the CPU.
    Data,
    /// Register commands: cached by the CPU, only read by the NPU.
    Commands,
    /// Data in on-chip SRAM as far as there is some, in DRAM for the rest. Only the vendor's driver has this;
    /// elsewhere it is [`BufferKind::Data`].
    Sram,
}

/// Memory in one domain that CPU and NPU use in turn. Cheap to clone: clones are the same memory.
#[derive(Clone)]
pub struct Buffer(pub(crate) Arc<Inner>);

/// Memory that nobody writes any more: the CPU and jobs read it at once. Cheap to clone.
#[derive(Clone)]
pub struct SealedBuffer(pub(crate) Arc<Inner>);

impl Buffer {
    /// Address of the first byte in the domain's address space.
    #[must_use]
    pub fn iova(&self) -> u32 {
        self.0.iova
    }

    /// Bytes, as asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Where the buffer lies.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        self.0.domain
    }

    /// What the buffer is for.
    #[must_use]
    pub fn kind(&self) -> BufferKind {
        self.0.kind
    }

    /// The bytes for reading. Waits, bounded, for a job that writes the buffer and for write guards that
    /// overlap.
    ///
    /// # Errors
    /// [`SyncError`]: not in the buffer, in use for too long, quarantined, or cache maintenance failed.
    pub fn read(&self, range: impl RangeBounds<usize>) -> Result<ReadGuard<'_>, SyncError> {
        let range = self.range(&range)?;
        self.0.enter_guard(&range, false)?;
        Ok(ReadGuard { range, inner: &self.0 })
    }

    /// The bytes for reading and writing. Waits, bounded, for jobs that use the buffer and for guards that
    /// overlap; guards of disjoint ranges live at once, if the ranges share no line of 64 bytes.
    ///
    /// # Errors
    /// [`SyncError`]: as [`Buffer::read`], or sealed.
    pub fn write(&self, range: impl RangeBounds<usize>) -> Result<WriteGuard<'_>, SyncError> {
        let range = self.range(&range)?;
        self.0.enter_guard(&range, true)?;
        Ok(WriteGuard { range, inner: &self.0, left: false })
    }

    /// Ends all writing, for good: what is written now is made visible to the device, and the bytes become a
    /// slice that CPU and NPU read at once. Clones of the buffer that stay can still be read.
    ///
    /// # Errors
    /// [`SyncError`]: in use for too long, quarantined, or cache maintenance failed.
    pub fn seal(self) -> Result<SealedBuffer, SyncError> {
        self.0.seal()?;
        Ok(SealedBuffer(self.0))
    }

    /// A dma-buf descriptor of the memory, for another device or process.
    ///
    /// On rocket it must be closed while the device and one of its buffers live: the driver's account of
    /// addresses ends with the descriptor, and freeing the memory later would still write to it (read in the
    /// source of Linux 6.18).
    ///
    /// # Errors
    /// [`ShareError`]: not with this interface, or the call failed.
    ///
    /// # Safety
    /// Whoever gets the descriptor keeps to what [`Device::import`](crate::device::Device::import) asks of the
    /// other side: while a guard of the buffer lives, and for ever once it is sealed, nobody outside this device
    /// writes the memory; while a [`WriteGuard`] lives nobody reads it. Commands that a job was prepared with
    /// stay as they are.
    pub unsafe fn export(&self) -> Result<OwnedFd, ShareError> {
        let object = &self.0.object;
        let (interface, exported) = match &object.link.kernel {
            Kernel::Vendor(kernel) => ("rknpu", retry(|| kernel.export_dma_buf(object.handle))),
            Kernel::Rocket(kernel) => ("rocket", retry(|| kernel.export_dma_buf(object.handle))),
        };
        exported.map_err(|errno| {
            let source = object.link.note(errno);
            if is_unsupported(source) {
                ShareError::Unsupported { interface, what: "export" }
            } else {
                ShareError::Call { call: "DRM_IOCTL_PRIME_HANDLE_TO_FD", source }
            }
        })
    }

    /// True once a reset took the memory from the device: jobs refuse the buffer. The bytes can still be read
    /// and written, unless a job that used them was never seen to end.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.0.object.link.is_retired()
    }

    /// The range within the buffer.
    fn range(&self, range: &impl RangeBounds<usize>) -> Result<Range<usize>, SyncError> {
        let len = self.0.len;
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => len,
        };
        if start > end || end > len { Err(SyncError::Range { start, end, len }) } else { Ok(start..end) }
    }
}

impl SealedBuffer {
    /// Address of the first byte in the domain's address space.
    #[must_use]
    pub fn iova(&self) -> u32 {
        self.0.iova
    }

    /// Where the buffer lies.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        self.0.domain
    }

    /// True once a reset took the memory from the device: the bytes can still be read, jobs refuse the
    /// buffer.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.0.object.link.is_retired()
    }
}

impl Deref for SealedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer is sealed for good (only `Buffer::seal` makes this type): no guard and no job
        // that lists it as written is let in, and whoever prepared a job promised that its commands write
        // nothing else (`Device::prepare`).
        unsafe { self.0.bytes(0..self.0.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(&self.0, "Buffer", f)
    }
}

impl fmt::Debug for SealedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(&self.0, "SealedBuffer", f)
    }
}

fn describe(inner: &Inner, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = f.debug_struct(name);
    text.field("domain", &inner.domain).field("iova", &format_args!("{:#x}", inner.iova));
    text.field("len", &inner.len).field("kind", &inner.kind).finish()
}

/// A buffer's bytes for reading.
#[derive(Debug)]
pub struct ReadGuard<'a> {
    range: Range<usize>,
    inner: &'a Inner,
}

impl Deref for ReadGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: this guard is inside from its making until its drop, so nobody writes the bytes: no guard
        // that overlaps and no job that lists the buffer as written is let in, and whoever prepared a job
        // promised that its commands write nothing else (`Device::prepare`).
        unsafe { self.inner.bytes(self.range.clone()) }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Nothing was written: a sync that fails here loses nothing, and is done again before the next job.
        let _ = self.inner.leave_guard(&self.range, false);
    }
}

/// A buffer's bytes for reading and writing. Dropping it makes the bytes visible to the device;
/// [`WriteGuard::finish`] does the same and tells whether it worked. Where it did not, the next job that uses
/// the buffer tries again and fails if it cannot.
#[derive(Debug)]
pub struct WriteGuard<'a> {
    range: Range<usize>,
    inner: &'a Inner,
    left: bool,
}

impl WriteGuard<'_> {
    /// Ends the access and tells whether the bytes are visible to the device.
    ///
    /// # Errors
    /// [`SyncError::Call`]: cache maintenance failed.
    pub fn finish(mut self) -> Result<(), SyncError> {
        self.left = true;
        self.inner.leave_guard(&self.range, true)
    }
}

impl Deref for WriteGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: this guard is inside until it is dropped or finished, both of which take it, so nobody else
        // writes the bytes (jobs as for `ReadGuard`); itself it is borrowed as long as the slice lives.
        unsafe { self.inner.bytes(self.range.clone()) }
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the guard is borrowed exclusively as long as the slice lives, so the slice is
        // the only one.
        unsafe { self.inner.bytes_mut(self.range.clone()) }
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        if !self.left {
            // The bytes that could not be handed over are remembered, and the next job tries again.
            let _ = self.inner.leave_guard(&self.range, true);
        }
    }
}
