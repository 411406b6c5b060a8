//! Memory that the CPU and the NPU share.
//!
//! A [`Buffer`]'s bytes are reached through guards only: [`Buffer::read`] and [`Buffer::write`] make the device's writes visible
//! on entry, the CPU's on exit, and keep jobs out meanwhile. A [`SealedBuffer`] is never written again, by nobody, so it is simply
//! a slice for everyone at once: weights live once, and CPU kernels and NPU jobs read the same bytes.
//!
//! ```text
//!            write guards (disjoint ranges)          seal
//!   idle ──► read guards, jobs that read     idle ─────────► sealed: jobs that read, plain slices
//!            a job that writes
//!              └─ times out and cannot be stopped ──► quarantined, until the device is reset
//! ```
//!
//! A job holds its buffers, so memory outlives what the hardware does with it, even where the job fails.

mod mapping;

use std::fmt;
use std::ops::{Deref, DerefMut, RangeBounds};
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use mapping::Mapping;

use crate::device::DomainId;
use crate::error::{ShareError, SyncError};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// Features, weights, results: cached by the CPU.
    Data,
    /// Register commands: cached by the CPU, only read by the NPU.
    Commands,
    /// Data in on-chip SRAM as far as there is some, in DRAM for the rest. Only the vendor's driver has this; elsewhere it is [`BufferKind::Data`].
    Sram,
}

/// Memory in one domain that CPU and NPU use in turn. Cheap to clone: clones are the same memory.
#[derive(Clone)]
pub struct Buffer(pub(crate) Arc<Inner>);

/// Memory that nobody writes any more: the CPU and jobs read it at once. Cheap to clone.
#[derive(Clone)]
pub struct SealedBuffer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {}

impl Buffer {
    /// Address of the first byte in the domain's address space.
    #[must_use]
    pub fn iova(&self) -> u32 {
        unimplemented!()
    }

    /// Bytes, as asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Where the buffer lies.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        unimplemented!()
    }

    /// What the buffer is for.
    #[must_use]
    pub fn kind(&self) -> BufferKind {
        unimplemented!()
    }

    /// The bytes for reading. Waits, bounded, for a job that writes the buffer and for write guards that overlap.
    ///
    /// # Errors
    /// [`SyncError`]: not in the buffer, in use for too long, quarantined, or cache maintenance failed.
    pub fn read(&self, _range: impl RangeBounds<usize>) -> Result<ReadGuard<'_>, SyncError> {
        unimplemented!()
    }

    /// The bytes for reading and writing. Waits, bounded, for jobs that use the buffer and for guards that overlap; guards of
    /// disjoint ranges live at once, if the ranges share no line of 64 bytes.
    ///
    /// # Errors
    /// [`SyncError`]: as [`Buffer::read`], or sealed.
    pub fn write(&self, _range: impl RangeBounds<usize>) -> Result<WriteGuard<'_>, SyncError> {
        unimplemented!()
    }

    /// Ends all writing, for good: what is written now is made visible to the device, and the bytes become a slice that CPU and NPU
    /// read at once. Clones of the buffer that stay can still be read.
    ///
    /// # Errors
    /// [`SyncError`]: in use for too long, quarantined, or cache maintenance failed.
    pub fn seal(self) -> Result<SealedBuffer, SyncError> {
        unimplemented!()
    }

    /// A dma-buf descriptor of the memory, for another device or process.
    ///
    /// # Errors
    /// [`ShareError`]: not with this interface, or the call failed.
    pub fn export(&self) -> Result<OwnedFd, ShareError> {
        unimplemented!()
    }

    /// True once a reset took the memory from the device: the bytes can still be read and written, jobs refuse the buffer.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        unimplemented!()
    }
}

impl SealedBuffer {
    /// Address of the first byte in the domain's address space.
    #[must_use]
    pub fn iova(&self) -> u32 {
        unimplemented!()
    }

    /// Where the buffer lies.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        unimplemented!()
    }

    /// True once a reset took the memory from the device: the bytes can still be read, jobs refuse the buffer.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        unimplemented!()
    }
}

impl Deref for SealedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").finish_non_exhaustive()
    }
}

impl fmt::Debug for SealedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedBuffer").finish_non_exhaustive()
    }
}

/// A buffer's bytes for reading.
#[derive(Debug)]
pub struct ReadGuard<'a> {
    bytes: &'a [u8],
}

impl Deref for ReadGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// A buffer's bytes for reading and writing. Dropping it makes the bytes visible to the device; [`WriteGuard::finish`] does the same and
/// tells whether it worked (else the next job that uses the buffer does).
#[derive(Debug)]
pub struct WriteGuard<'a> {
    bytes: &'a mut [u8],
}

impl WriteGuard<'_> {
    /// Ends the access and tells whether the bytes are visible to the device.
    ///
    /// # Errors
    /// [`SyncError::Call`]: cache maintenance failed.
    pub fn finish(self) -> Result<(), SyncError> {
        unimplemented!()
    }
}

impl Deref for WriteGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}
