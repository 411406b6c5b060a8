//! Work for the NPU: chains of tasks over buffers.
//!
//! A [`Job`] says what runs where and which buffers it touches;
//! [`Device::prepare`](crate::device::Device::prepare) checks it and builds the kernel's task objects once;
//! [`Device::run`](crate::device::Device::run) runs it as often as wanted.

pub(crate) mod check;
mod commands;
pub(crate) mod prepare;
pub(crate) mod proof;

use std::sync::Arc;
use std::time::Duration;

use crate::buffer::{Buffer, SealedBuffer};
use crate::device::link::Link;
use crate::device::{CoreId, DomainId};
use crate::timing::TaskWork;

/// One run of register commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// First byte of the commands in the job's command buffer; a multiple of 16 (the program counter fetches
    /// pairs of words).
    pub offset: u32,
    /// Words (8 bytes each) without the four of the tail, which follow.
    pub words: u32,
    /// Blocks that the tail enables.
    pub enable_mask: u32,
    /// Interrupts that say the task is done: 0x300 for tasks that end in the DPU, 0xc00 for the PPU.
    pub interrupt_mask: u32,
}

/// The tasks of one core, in order.
///
/// The vendor's driver starts the first task, and the tails lead from one to the next, so each tail must name
/// its successor. Rocket starts each task by itself, and a tail's successor is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The core.
    pub core: CoreId,
    /// The tasks.
    pub tasks: Vec<Task>,
}

/// A buffer that a job reads.
#[derive(Clone, Debug)]
pub enum JobBuffer {
    /// One that may be written at other times.
    Buffer(Buffer),
    /// One that is never written.
    Sealed(SealedBuffer),
}

impl From<Buffer> for JobBuffer {
    fn from(buffer: Buffer) -> Self {
        JobBuffer::Buffer(buffer)
    }
}

impl From<SealedBuffer> for JobBuffer {
    fn from(buffer: SealedBuffer) -> Self {
        JobBuffer::Sealed(buffer)
    }
}

/// What to run. Each buffer that a task's commands name is in `reads` or `writes`, once; buffers between
/// tasks of the job are in `writes`. The command buffer is in neither, and writing to it after the job was
/// prepared makes the job refuse to run.
///
/// On rocket no task may read the buffer that the last task writes: a mark there shows whether the job ran.
#[derive(Clone, Debug)]
pub struct Job {
    /// Address space of every buffer.
    pub domain: DomainId,
    /// The register commands of all tasks.
    pub commands: Buffer,
    /// One chain a core; chains run at once and must not write the same bytes.
    pub chains: Vec<Chain>,
    /// Buffers that are only read.
    pub reads: Vec<JobBuffer>,
    /// Buffers that are written, and perhaps read.
    pub writes: Vec<Buffer>,
    /// Time for the whole job on the device, after which it counts as hung. The kernel may end it earlier.
    pub timeout: Duration,
}

/// A checked job with its task objects, to be run any number of times. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PreparedJob(pub(crate) Arc<Prepared>);

impl PreparedJob {
    /// Address space that it runs in.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        self.0.domain
    }

    /// Tasks of all its chains.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.0.tasks
    }
}

/// What a prepared job is made of. Keeps its buffers alive, and with them the descriptor.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) domain: DomainId,
    pub(crate) link: Arc<Link>,
    /// The commands first.
    pub(crate) uses: Vec<check::Use>,
    /// How often the commands had been written.
    pub(crate) epoch: u64,
    pub(crate) tasks: u32,
    pub(crate) timeout: Duration,
    pub(crate) kicked: prepare::Kicked,
}

/// How a job went.
#[derive(Clone, Debug, Default)]
pub struct JobReport {
    /// Time on the device: the kernel's figure where it has one (vendor), the wait otherwise; simulated time
    /// on the simulator.
    pub elapsed: Duration,
    /// Tasks done, which is all of them.
    pub tasks_done: u32,
    /// The work of each core's tasks, `[core][task]`, on the simulator.
    pub simulated: Option<Vec<Vec<TaskWork>>>,
}
