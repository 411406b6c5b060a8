//! Why a job did not run, and why a device could not be brought back.

use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use crate::device::{CoreId, DomainId};

/// Why a job was refused or did not complete.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JobError {
    /// The job itself cannot run.
    #[error("the job is malformed: {0}")]
    Malformed(String),
    /// The device has no such domain.
    #[error("the device has no domain {0}")]
    Domain(DomainId),
    /// A buffer lies in another address space than the job.
    #[error("a buffer of {buffer} is in a job of {job}; allocate it in the job's domain")]
    ForeignBuffer {
        /// Where the buffer lies.
        buffer: DomainId,
        /// Where the job runs.
        job: DomainId,
    },
    /// A buffer or job was made before the device was reset and its memory lost.
    #[error("{0} was reset since the buffer was made; allocate it again and prepare the job again")]
    Stale(DomainId),
    /// A buffer is in a list twice, or both read and written.
    #[error("the buffer at {iova:#x} is listed twice; list each buffer once, in reads or in writes")]
    ListedTwice {
        /// The buffer's bus address.
        iova: u32,
    },
    /// Sealed buffers are never written.
    #[error("the buffer at {iova:#x} is sealed and listed as written")]
    Sealed {
        /// The buffer's bus address.
        iova: u32,
    },
    /// A core that the domain does not have, or a set of cores that the kernel cannot run.
    #[error("{0} cannot run this job: it is not among the domain's cores")]
    Core(CoreId),
    /// Cores that the kernel cannot start together.
    #[error("cores {0:#b} cannot be started together; use 0, 1, 2, 0 and 1, or all three")]
    CoreSet(u8),
    /// The interface cannot see the end of such a task.
    #[error(
        "task {task} ends with interrupts {mask:#x}; rocket waits for 0x300 only, so end the task in the DPU"
    )]
    InterruptMask {
        /// Index of the task in its chain.
        task: usize,
        /// Its interrupt mask.
        mask: u32,
    },
    /// The commands were written to after the job was prepared.
    #[error("the command buffer was written since the job was prepared; prepare it again")]
    CommandsChanged,
    /// The task objects could not be made.
    #[error("no memory for the task objects")]
    Allocate(#[source] super::AllocateError),
    /// A buffer could not be had.
    #[error("a buffer of the job could not be had")]
    Buffer(#[source] super::SyncError),
    /// The job did not complete in its time; its memory is kept until the device is reset.
    #[error("the job was not done after {after:?}; reset the device")]
    TimedOut {
        /// Its time, or how long it took where that is known.
        after: Duration,
    },
    /// The kernel says the job is done and the hardware's status says otherwise.
    #[error("the job ended with {what}; its results cannot be used, reset the device")]
    WrongStatus {
        /// What was seen, and what was expected.
        what: String,
    },
    /// A kernel call failed.
    #[error("{call} failed")]
    Call {
        /// The kernel's name of the call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// The device failed earlier.
    #[error("the device is set aside ({0}); reset it")]
    Faulted(Fault),
    /// The device is gone.
    #[error("the device is gone; see the kernel log, then open it again")]
    Gone,
}

impl From<super::AllocateError> for JobError {
    fn from(error: super::AllocateError) -> Self {
        if error == super::AllocateError::Gone { JobError::Gone } else { JobError::Allocate(error) }
    }
}

impl From<super::SyncError> for JobError {
    fn from(error: super::SyncError) -> Self {
        if error == super::SyncError::Gone { JobError::Gone } else { JobError::Buffer(error) }
    }
}

/// Why a device is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A job did not end in its time.
    #[error("a job timed out")]
    TimedOut,
    /// A job ended with the wrong status.
    #[error("a job ended with the wrong status")]
    WrongStatus,
    /// The kernel refused a call that must work.
    #[error("a kernel call failed: {0}")]
    Call(Errno),
    /// The kernel says there is no device any more.
    #[error("the device is gone")]
    Gone,
}

/// Why a device could not be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResetError {
    /// The reset and opening the node again failed.
    #[error(
        "the reset failed ({reset}) and so did opening the node again ({reopen}); reload the kernel \
         driver or restart the board"
    )]
    Failed {
        /// What the reset gave.
        reset: Errno,
        /// What opening gave.
        reopen: Errno,
    },
    /// The node opens, and does not work.
    #[error("the device does not answer after its reset; reload the kernel driver or restart the board")]
    Silent {
        /// What asking it gave.
        source: Errno,
    },
}
