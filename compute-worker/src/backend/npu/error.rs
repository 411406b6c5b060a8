//! What can go wrong with the NPU, and which kind of fault that is.

use rknpu_driver::error::{AllocateError, Fault, JobError, OpenError, SyncError};
use rknpu_driver::plan::{BindError, PlanError};

use super::FaultKind;

/// The NPU could not be opened, or a call could not be computed on it.
#[derive(Debug, thiserror::Error)]
pub enum NpuError {
    /// No device, or not one that can be used.
    #[error("cannot open the NPU")]
    Open(#[source] OpenError),
    /// It computes wrongly.
    #[error("the NPU's self-check failed: product {rows}x{inner}x{outputs} (M x K x N) came out wrong")]
    SelfCheck {
        /// M.
        rows: usize,
        /// K.
        inner: usize,
        /// N.
        outputs: usize,
    },
    /// There are no tasks for a product.
    #[error("a product cannot be planned")]
    Plan(#[from] PlanError),
    /// A plan could not be given its buffers.
    #[error("a product cannot be prepared")]
    Bind(#[from] BindError),
    /// No memory for activations or results.
    #[error("no device memory for activations and results")]
    Allocate(#[from] AllocateError),
    /// Weights could not be brought into the device's memory.
    #[error("the weights cannot be brought into the NPU's memory")]
    Weights(#[source] AllocateError),
    /// Activations could not be written, or results not be read.
    #[error("device memory cannot be accessed")]
    Access(#[from] SyncError),
    /// A job failed.
    #[error("a job failed")]
    Job(#[from] JobError),
    /// A result is not the product of its operands.
    #[error("a result failed its checksum")]
    WrongResult,
    /// Weights in the device's memory are not what was copied there.
    #[error("weights in the NPU's memory were overwritten")]
    Overwritten,
    /// The thread that waits for the device has ended.
    #[error("the thread that waits for the NPU has ended")]
    Waiter,
}

impl NpuError {
    /// Whether it is the device that failed. Otherwise the driver has no way to compute such a product, and never will.
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Plan(_) => false,
            Self::Bind(error) => matches!(
                error,
                BindError::Allocate(_) | BindError::Write(_) | BindError::Job(_) | BindError::NoDomain(_)
            ),
            Self::Open(_)
            | Self::SelfCheck { .. }
            | Self::Allocate(_)
            | Self::Weights(_)
            | Self::Access(_)
            | Self::Job(_)
            | Self::WrongResult
            | Self::Overwritten
            | Self::Waiter => true,
        }
    }

    /// Whether there is only too little memory: nothing is wrong with the device, and no reset gives more.
    pub fn is_shortage(&self) -> bool {
        match self {
            Self::Allocate(error)
            | Self::Weights(error)
            | Self::Bind(BindError::Allocate(error) | BindError::Job(JobError::Allocate(error)))
            | Self::Job(JobError::Allocate(error)) => is_shortage(error),
            Self::Open(_)
            | Self::SelfCheck { .. }
            | Self::Plan(_)
            | Self::Bind(_)
            | Self::Access(_)
            | Self::Job(_)
            | Self::WrongResult
            | Self::Overwritten
            | Self::Waiter => false,
        }
    }

    /// What the state machine, metrics and spans call it.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Open(_) => FaultKind::DeviceGone,
            Self::Plan(_) | Self::Waiter => FaultKind::Job,
            Self::Bind(error) => match error {
                BindError::Allocate(error) => of_allocation(error),
                BindError::Write(error) => of_access(error),
                BindError::Job(error) => of_job(error),
                BindError::Nothing
                | BindError::Domains { .. }
                | BindError::NoDomain(_)
                | BindError::Cores { .. }
                | BindError::TooShort { .. }
                | BindError::NoPerChannel
                | BindError::Commands(_) => FaultKind::Job,
            },
            Self::Allocate(error) | Self::Weights(error) => of_allocation(error),
            Self::Access(error) => of_access(error),
            Self::Job(error) => of_job(error),
            Self::WrongResult | Self::Overwritten | Self::SelfCheck { .. } => FaultKind::WrongResult,
        }
    }
}

/// Whether an allocation failed for want of memory alone.
pub(super) fn is_shortage(error: &AllocateError) -> bool {
    matches!(error, AllocateError::NoMemory { .. })
}

pub(super) fn of_allocation(error: &AllocateError) -> FaultKind {
    match error {
        AllocateError::Gone => FaultKind::DeviceGone,
        AllocateError::Size(_)
        | AllocateError::Domain(_)
        | AllocateError::NoMemory { .. }
        | AllocateError::Call { .. }
        | AllocateError::Address { .. }
        | AllocateError::LiveHandle { .. } => FaultKind::Memory,
    }
}

pub(super) fn of_access(error: &SyncError) -> FaultKind {
    match error {
        SyncError::Gone => FaultKind::DeviceGone,
        SyncError::Range { .. }
        | SyncError::Busy { .. }
        | SyncError::Sealed
        | SyncError::Quarantined
        | SyncError::Call { .. } => FaultKind::Memory,
    }
}

pub(super) fn of_job(error: &JobError) -> FaultKind {
    match error {
        JobError::TimedOut { .. } | JobError::Faulted(Fault::TimedOut) => FaultKind::Timeout,
        JobError::Gone | JobError::Faulted(Fault::Gone) => FaultKind::DeviceGone,
        JobError::Allocate(error) => of_allocation(error),
        JobError::Buffer(error) => of_access(error),
        JobError::Malformed(_)
        | JobError::Domain(_)
        | JobError::ForeignBuffer { .. }
        | JobError::Stale(_)
        | JobError::ListedTwice { .. }
        | JobError::Sealed { .. }
        | JobError::Core(_)
        | JobError::CoreSet(_)
        | JobError::InterruptMask { .. }
        | JobError::CommandsChanged
        | JobError::WrongStatus { .. }
        | JobError::Call { .. }
        | JobError::Faulted(Fault::WrongStatus | Fault::Call(_)) => FaultKind::Job,
    }
}
