//! Why memory cannot be had or touched.

use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use crate::device::DomainId;

/// Why there is no buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// Zero bytes, or more than an address space has.
    #[error("a buffer of {0} bytes is impossible; an address space has 4 GiB")]
    Size(usize),
    /// The device has no such domain.
    #[error("the device has no domain {0}")]
    Domain(DomainId),
    /// The kernel has no memory left, or the domain no addresses.
    #[error("no room for {bytes} bytes in {domain}; free buffers or use a smaller model")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Where.
        domain: DomainId,
        /// What the kernel said.
        source: Errno,
    },
    /// A kernel call failed.
    #[error("{call} failed for {bytes} bytes in {domain}")]
    Call {
        /// The kernel's name of the call.
        call: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Where.
        domain: DomainId,
        /// Why.
        source: Errno,
    },
    /// The kernel gave less than was asked for, or an address that the hardware cannot use.
    #[error("the kernel placed {bytes} bytes at {address:#x}, beyond the 4 GiB that the NPU addresses")]
    Address {
        /// Bytes that the kernel says it made.
        bytes: u64,
        /// Where on the NPU's bus.
        address: u64,
    },
    /// The kernel handed out an object that lives already, or the memory that is imported is this device's
    /// own.
    #[error(
        "handle {handle} is in use already: imported memory is the device's own, or the kernel made nothing"
    )]
    LiveHandle {
        /// The handle.
        handle: u32,
    },
    /// The device is gone.
    #[error("the device is gone; see the kernel log, then open it again")]
    Gone,
}

/// Why the CPU cannot have a buffer's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    /// The range is not in the buffer.
    #[error("bytes {start}..{end} are not in a buffer of {len}")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last.
        end: usize,
        /// Bytes the buffer has.
        len: usize,
    },
    /// Someone else uses the range: a job that runs, or another guard.
    #[error("the buffer is in use by {holder} and was not free within {waited:?}")]
    Busy {
        /// By whom.
        holder: &'static str,
        /// How long the call waited.
        waited: Duration,
    },
    /// Sealed buffers are never written.
    #[error("the buffer is sealed, it can only be read")]
    Sealed,
    /// A job that could not be stopped may still use the memory.
    #[error("a job that could not be stopped may still use the buffer; reset the device")]
    Quarantined,
    /// Cache maintenance failed.
    #[error("{call} failed")]
    Call {
        /// The kernel's name of the call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// The device is gone.
    #[error("the device is gone; see the kernel log, then open it again")]
    Gone,
}

/// Why memory cannot be shared with another device or process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShareError {
    /// The interface cannot do it.
    #[error("{interface} cannot {what} a dma-buf")]
    Unsupported {
        /// Which interface.
        interface: &'static str,
        /// `export` or `import`.
        what: &'static str,
    },
    /// A kernel call failed.
    #[error("{call} failed")]
    Call {
        /// The kernel's name of the call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// Imported memory cannot be used.
    #[error("the imported memory cannot be used")]
    Memory(#[source] AllocateError),
}
