//! A plan with addresses: a job that can be run.

use std::time::Duration;

use thiserror::Error;

use super::encode::BASES;
use super::{MatmulPlan, tasks_per_kick};
use crate::buffer::{Buffer, BufferKind};
use crate::device::{CoreId, Device, DomainId, Interface};
use crate::error::{AllocateError, JobError, SyncError};
use crate::job::{Chain, Job, JobBuffer, PreparedJob, Task};
use crate::layout::{ATOM, Cube, output_surface};
use crate::regcmd::{self, Chaining, EncodedTask, Program, ProgramOptions};

/// Where a plan's matrices lie. Offsets are in bytes, multiples of 16 (of 64 for speed); all buffers are of
/// one domain.
#[derive(Clone, Debug)]
pub struct Operands {
    /// W in tiles: [`MatmulPlan::weight_bytes`] from the offset on.
    pub weights: (JobBuffer, usize),
    /// A as packed by the plan: [`MatmulPlan::input_bytes`].
    pub input: (Buffer, usize),
    /// Where the device writes: [`MatmulPlan::output_bytes`].
    pub output: (Buffer, usize),
    /// Addends and multipliers of a requantised product ([`crate::layout::operand`]):
    /// [`MatmulPlan::operand_bytes`].
    pub per_channel: Option<(JobBuffer, usize)>,
}

/// A plan and its operands.
#[derive(Clone, Debug)]
pub struct Binding<'a> {
    /// The plan.
    pub plan: &'a MatmulPlan,
    /// Its operands.
    pub operands: &'a Operands,
}

/// A product, or several, ready to run: [`Device::run`] takes its job.
#[derive(Clone, Debug)]
pub struct BoundMatmul {
    job: PreparedJob,
}

/// Why a plan cannot be bound.
#[derive(Debug, Error)]
pub enum BindError {
    /// Nothing was given to bind.
    #[error("no product to bind")]
    Nothing,
    /// Buffers lie in different address spaces.
    #[error("{first} and {second} both hold operands of one job")]
    Domains {
        /// Where the weights lie.
        first: DomainId,
        /// Where another operand lies.
        second: DomainId,
    },
    /// The device has no such address space.
    #[error("the device has no {0}")]
    NoDomain(DomainId),
    /// The plan wants more cores than the address space has.
    #[error("planned for {planned} cores, {domain} has {there}")]
    Cores {
        /// Cores of the plan.
        planned: usize,
        /// The address space.
        domain: DomainId,
        /// Cores it has.
        there: usize,
    },
    /// An operand ends beyond its buffer.
    #[error("{operand}: {needed} bytes from {offset} on, the buffer has {len}")]
    TooShort {
        /// Which operand.
        operand: &'static str,
        /// Where it begins.
        offset: usize,
        /// Bytes needed.
        needed: usize,
        /// Bytes of the buffer.
        len: usize,
    },
    /// A requantised product without its per-channel operands.
    #[error("a requantised product needs per-channel operands")]
    NoPerChannel,
    /// The commands cannot be laid out or an address is impossible.
    #[error("the commands cannot be bound")]
    Commands(#[from] regcmd::BindError),
    /// No memory for the commands.
    #[error("no buffer for the commands")]
    Allocate(#[from] AllocateError),
    /// The commands could not be written.
    #[error("the commands cannot be written")]
    Write(#[from] SyncError),
    /// The device refuses the job.
    #[error("the job is refused")]
    Job(#[from] JobError),
}

impl MatmulPlan {
    /// Binds the plan alone; see [`BoundMatmul::new`].
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        &self,
        device: &Device,
        operands: &Operands,
        timeout: Duration,
    ) -> Result<BoundMatmul, BindError> {
        BoundMatmul::new(device, &[Binding { plan: self, operands }], timeout)
    }
}

impl BoundMatmul {
    /// Lays the products' commands out in a buffer of their own, as one job: one submission costs more than
    /// most products, so those that do not wait for each other (q, k and v) belong together. Each core takes
    /// its tasks of one product after the other; a plan for fewer cores than there are goes to those that
    /// have least to do.
    ///
    /// # Errors
    /// [`BindError`]: operands that do not fit, no memory, or a job that the device refuses.
    pub fn new(device: &Device, bindings: &[Binding<'_>], timeout: Duration) -> Result<Self, BindError> {
        let first = bindings.first().ok_or(BindError::Nothing)?;
        let domain = first.operands.output.0.domain();
        let cores = cores_of(device, domain)?;
        let chaining = match device.info().interface {
            Interface::Vendor => Chaining::Linked,
            Interface::Rocket => Chaining::Separate,
        };
        let per_kick = tasks_per_kick(chaining);
        let mut chains: Vec<(f64, Vec<(usize, EncodedTask)>)> =
            cores.iter().map(|_| (0.0, Vec::new())).collect();
        for (index, binding) in bindings.iter().enumerate() {
            binding.check(domain)?;
            let planned = binding.plan.cores();
            if planned > cores.len() {
                return Err(BindError::Cores { planned, domain, there: cores.len() });
            }
            let mut free: Vec<usize> = (0..chains.len()).collect();
            free.sort_by(|&a, &b| chains[a].0.total_cmp(&chains[b].0));
            for (chain, core) in binding.plan.chains.iter().zip(free) {
                let (seconds, tasks) = &mut chains[core];
                *seconds += binding.plan.cost().seconds;
                let encoded = binding.plan.encoded(chain, tasks.len(), per_kick);
                tasks.extend(encoded.into_iter().map(|task| (index, task)));
            }
        }
        let mut program = Program::new(ProgramOptions { chaining, ..ProgramOptions::default() });
        let mut ranges = Vec::new();
        for ((_, tasks), &core) in chains.into_iter().zip(&cores) {
            if tasks.is_empty() {
                continue;
            }
            let tasks: Vec<EncodedTask> =
                tasks.into_iter().map(|(index, task)| rebased(task, index)).collect();
            ranges.push((core, program.chain(&tasks)?));
        }
        let commands = device.allocate(domain, program.len(), BufferKind::Commands)?;
        let bases: Vec<u32> =
            bindings.iter().map(|binding| binding.operands.bases()).collect::<Result<Vec<_>, _>>()?.concat();
        let bytes = program.bind(&bases, commands.iova())?;
        let mut guard = commands.write(..bytes.len())?;
        guard.copy_from_slice(&bytes);
        guard.finish()?;
        let chains = ranges.into_iter().map(|(core, range)| {
            let tasks = program.tasks()[range].iter().map(|task| Task {
                offset: task.offset,
                words: task.words,
                enable_mask: task.enable,
                interrupt_mask: task.interrupt_mask,
            });
            Chain { core, tasks: tasks.collect() }
        });
        let (reads, writes) = buffers(bindings);
        let job = Job { domain, commands, chains: chains.collect(), reads, writes, timeout };
        #[expect(unsafe_code, reason = "the plan's commands keep to their operands")]
        // SAFETY: `Binding::check` saw that every task's output cube ends within the output operand, whose
        // buffer is in `writes`, and `prepare` refuses cubes that end beyond it. The tasks write nothing else:
        // they are the plan's own (no other code makes any), each sets every register of its blocks, so none
        // writes where or as far as an earlier one did, `Program` made the tails, which lead from a task to
        // the next of its chain, and both were written to a buffer that nobody else has.
        let job = unsafe { device.prepare(job) }?;
        Ok(BoundMatmul { job })
    }

    /// The job, for [`Device::run`].
    pub fn job(&self) -> &PreparedJob {
        &self.job
    }
}

/// Bytes from the output's first on to the last that a task writes, by the sizes that its registers get.
fn written(plan: &MatmulPlan) -> usize {
    let tasks = plan.chains.iter().flatten();
    let ends = tasks.map(|task| {
        let size = &task.form.size;
        let cube = Cube {
            pixels: size.pixels,
            channels: size.kernels(),
            surface: output_surface(size.pixels),
            atom: ATOM / size.output_bytes(),
        };
        task.output_at(&plan.shape, &plan.blocks) + cube.bytes()
    });
    ends.max().unwrap_or(0)
}

/// The cores that can run jobs in a domain.
fn cores_of(device: &Device, domain: DomainId) -> Result<Vec<CoreId>, BindError> {
    let found = device.domains().iter().find(|candidate| candidate.id == domain);
    Ok(found.ok_or(BindError::NoDomain(domain))?.cores.iter().collect())
}

/// A task whose bases are those of the `index`-th binding.
fn rebased(mut task: EncodedTask, index: usize) -> EncodedTask {
    for relocation in &mut task.relocations {
        relocation.base.0 += (index * BASES) as u16;
    }
    task
}

fn job_buffer_domain(buffer: &JobBuffer) -> DomainId {
    match buffer {
        JobBuffer::Buffer(buffer) => buffer.domain(),
        JobBuffer::Sealed(buffer) => buffer.domain(),
    }
}

fn job_buffer_address(buffer: &JobBuffer) -> u32 {
    match buffer {
        JobBuffer::Buffer(buffer) => buffer.iova(),
        JobBuffer::Sealed(buffer) => buffer.iova(),
    }
}

fn job_buffer_len(buffer: &JobBuffer) -> usize {
    match buffer {
        JobBuffer::Buffer(buffer) => buffer.len(),
        JobBuffer::Sealed(buffer) => buffer.len(),
    }
}

impl Binding<'_> {
    /// Checks domains and lengths.
    fn check(&self, domain: DomainId) -> Result<(), BindError> {
        let (plan, operands) = (self.plan, self.operands);
        if plan.operand_bytes() > 0 && operands.per_channel.is_none() {
            return Err(BindError::NoPerChannel);
        }
        let (weights, input, output) = (&operands.weights, &operands.input, &operands.output);
        let mut parts = vec![
            (
                "weights",
                job_buffer_domain(&weights.0),
                job_buffer_len(&weights.0),
                weights.1,
                plan.weight_bytes(),
            ),
            ("input", input.0.domain(), input.0.len(), input.1, plan.input_bytes()),
            ("output", output.0.domain(), output.0.len(), output.1, plan.output_bytes().max(written(plan))),
        ];
        if let Some((buffer, offset)) = &operands.per_channel {
            let (domain, len) = (job_buffer_domain(buffer), job_buffer_len(buffer));
            parts.push(("per-channel operands", domain, len, *offset, plan.operand_bytes()));
        }
        for (operand, second, len, offset, needed) in parts {
            if second != domain {
                return Err(BindError::Domains { first: domain, second });
            }
            if offset.checked_add(needed).is_none_or(|end| end > len) {
                return Err(BindError::TooShort { operand, offset, needed, len });
            }
        }
        Ok(())
    }
}

impl Operands {
    /// The addresses of the bases, in their order.
    fn bases(&self) -> Result<[u32; BASES], regcmd::BindError> {
        let address = |base: u32, offset: usize| {
            // Offsets lie within buffers, checked before, and those within 32-bit address spaces.
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            base.checked_add(offset).ok_or(regcmd::BindError::AddressOverflow { base, offset })
        };
        let (weights, input, output) = (&self.weights, &self.input, &self.output);
        let per_channel = match &self.per_channel {
            Some((buffer, offset)) => address(job_buffer_address(buffer), *offset)?,
            None => 0,
        };
        Ok([
            address(job_buffer_address(&weights.0), weights.1)?,
            address(input.0.iova(), input.1)?,
            address(output.0.iova(), output.1)?,
            per_channel,
        ])
    }
}

/// Every buffer once: those written, and those only read.
fn buffers(bindings: &[Binding<'_>]) -> (Vec<JobBuffer>, Vec<Buffer>) {
    let mut writes: Vec<Buffer> = Vec::new();
    for binding in bindings {
        let output = &binding.operands.output.0;
        if writes.iter().all(|buffer| buffer.iova() != output.iova()) {
            writes.push(output.clone());
        }
    }
    let mut reads: Vec<JobBuffer> = Vec::new();
    for binding in bindings {
        let operands = binding.operands;
        let input = JobBuffer::Buffer(operands.input.0.clone());
        let per_channel = operands.per_channel.as_ref().map(|(buffer, _)| buffer.clone());
        for buffer in [Some(operands.weights.0.clone()), Some(input), per_channel].into_iter().flatten() {
            let address = job_buffer_address(&buffer);
            let written = writes.iter().any(|other| other.iova() == address);
            if !written && reads.iter().all(|other| job_buffer_address(other) != address) {
                reads.push(buffer);
            }
        }
    }
    (reads, writes)
}
