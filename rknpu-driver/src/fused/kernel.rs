//! An operation made ready: buffers, commands, a prepared job.

use std::time::Duration;

use crate::buffer::{Buffer, BufferKind};
use crate::device::{Device, DomainId, Interface};
use crate::job::{Chain, Job, JobReport, PreparedJob, Task};
use crate::regcmd::{Banks, Base, Chaining, EncodedTask, Program, ProgramOptions, ProgramTask, TaskError};

use super::error::FusedError;
use super::grid::Grid;
use super::pass::{Place, upload};
use super::table::Table;

/// Longest time that an operation may take on the device. The largest of them takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes at the end of the work buffer that a table's upload copies about in.
const SCRATCH: usize = 128;

const OUTPUT: Base = Base(0);
const WORK: Base = Base(1);
const CONSTANTS: Base = Base(2);
/// Inputs follow.
const INPUTS: u16 = 3;

/// What an operation needs besides its tasks.
#[derive(Debug)]
pub(super) struct Needs<'a> {
    /// Number of input cubes.
    pub(super) inputs: u16,
    /// Bytes of intermediate cubes, for each cube of the grid.
    pub(super) work: usize,
    /// Constants, shared by all cubes.
    pub(super) constants: Vec<u8>,
    /// The table that the tasks go through. The first task of a cube is an element-wise one then.
    pub(super) table: Option<&'a Table>,
}

/// Where the tasks of one cube find its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    index: usize,
    cube: usize,
    pub(super) output: Place,
    pub(super) work: Place,
    pub(super) constants: Place,
}

impl Places {
    /// The cube of an input.
    pub(super) fn input(&self, input: u16) -> Place {
        Place { base: Base(INPUTS + input), offset: 0 }.plus(self.index * self.cube)
    }
}

/// An operation over fixed shapes.
#[derive(Debug)]
pub(super) struct Kernel {
    device: Device,
    pub(super) grid: Grid,
    inputs: Vec<Buffer>,
    constants: Buffer,
    output: Buffer,
    job: PreparedJob,
}

impl Kernel {
    /// Allocates buffers, encodes `tasks` for every cube and prepares the job.
    pub(super) fn new(
        device: &Device,
        domain: DomainId,
        grid: Grid,
        needs: &Needs<'_>,
        tasks: impl Fn(&Places) -> Result<Vec<EncodedTask>, TaskError>,
    ) -> Result<Kernel, FusedError> {
        let allocate = |bytes: usize| device.allocate(domain, bytes.max(64), BufferKind::Data);
        let inputs = (0..needs.inputs).map(|_| allocate(grid.bytes())).collect::<Result<Vec<_>, _>>()?;
        let (output, work) = (allocate(grid.bytes())?, allocate(needs.work * grid.cubes + SCRATCH)?);
        let constants = allocate(needs.constants.len())?;
        constants.write(..needs.constants.len())?.copy_from_slice(&needs.constants);
        // The copy of an upload reads its scratch.
        work.write(..)?.fill(0);

        let linked = device.info().interface == Interface::Vendor;
        let chaining = if linked { Chaining::Linked } else { Chaining::Separate };
        let mut program = Program::new(ProgramOptions { chaining, ..ProgramOptions::default() });
        let cores: Vec<_> = cores(device, domain)?;
        let mut chains = Vec::new();
        for (index, &core) in cores.iter().enumerate().take(grid.cubes) {
            let mut chain = Vec::new();
            if let Some(table) = needs.table {
                let scratch = Place { base: WORK, offset: 0 }.plus(needs.work * grid.cubes);
                chain.push(upload(table, scratch)?);
            }
            for cube in (index..grid.cubes).step_by(cores.len()) {
                chain.extend(tasks(&places(grid, needs.work, cube))?);
            }
            if let (Some(_), Some(first)) = (needs.table, chain.get_mut(1)) {
                first.set_banks(Banks::Clear);
            }
            let range = program.chain(&chain)?;
            chains.push(Chain { core, tasks: program.tasks()[range].iter().map(task).collect() });
        }

        let commands = device.allocate(domain, program.len(), BufferKind::Commands)?;
        let mut bases = vec![output.iova(), work.iova(), constants.iova()];
        bases.extend(inputs.iter().map(Buffer::iova));
        commands.write(..program.len())?.copy_from_slice(&program.bind(&bases, commands.iova())?);
        let mut reads: Vec<_> = inputs.iter().cloned().map(Into::into).collect();
        reads.push(constants.clone().into());
        let writes = vec![output.clone(), work];
        let job = Job { domain, commands, chains, reads, writes, timeout: TIMEOUT };
        #[expect(unsafe_code, reason = "the kernels' commands keep to their buffers")]
        // SAFETY: every task is a `Pass`, a `Product` or an upload of this module, which sets every register of
        // its blocks, its output's place and size included, and `prepare` refuses a cube that ends beyond its
        // buffer. The only bases that outputs lie at are those of `output` and `work`, both in `writes`
        // (a place in another buffer is refused). `Program` made the tails, which lead from a task
        // to the next of its chain, and all was written to a buffer that nobody else has.
        let job = unsafe { device.prepare(job) }?;
        Ok(Kernel { device: device.clone(), grid, inputs, constants, output, job })
    }

    /// Fills an input's first `rows` rows; the others are 0.
    pub(super) fn fill(
        &self,
        input: usize,
        rows: usize,
        line: impl FnMut(usize, &mut [half::f16]) -> Result<(), FusedError>,
    ) -> Result<(), FusedError> {
        let mut bytes = self.inputs[input].write(..self.grid.bytes())?;
        self.grid.pack(rows, &mut bytes, line)
    }

    /// Replaces constants from byte `offset` on.
    pub(super) fn set_constants(&self, offset: usize, values: &[u8]) -> Result<(), FusedError> {
        self.constants.write(offset..offset + values.len())?.copy_from_slice(values);
        Ok(())
    }

    /// Runs the job and hands out the output's first `rows` rows.
    pub(super) fn run(
        &self,
        rows: usize,
        line: impl FnMut(usize, &[half::f16]) -> Result<(), FusedError>,
    ) -> Result<JobReport, FusedError> {
        let report = self.device.run(&[&self.job])?.pop().unwrap_or_default();
        let bytes = self.output.read(..self.grid.bytes())?;
        self.grid.unpack(rows, &bytes, line)?;
        Ok(report)
    }
}

/// Cores of a domain.
pub(super) fn cores(device: &Device, domain: DomainId) -> Result<Vec<crate::device::CoreId>, FusedError> {
    let found = device.domains().iter().find(|candidate| candidate.id == domain);
    Ok(found.ok_or(FusedError::Domain(domain))?.cores.iter().collect())
}

fn places(grid: Grid, work: usize, index: usize) -> Places {
    let cube = grid.extent.bytes();
    let at = |base: Base, offset: usize| Place { base, offset: 0 }.plus(offset);
    Places {
        index,
        cube,
        output: at(OUTPUT, index * cube),
        work: at(WORK, index * work),
        constants: at(CONSTANTS, 0),
    }
}

fn task(task: &ProgramTask) -> Task {
    Task {
        offset: task.offset,
        words: task.words,
        enable_mask: task.enable,
        interrupt_mask: task.interrupt_mask,
    }
}
