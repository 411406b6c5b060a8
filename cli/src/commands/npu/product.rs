//! One matrix product on a device, from a seed to checked results.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use rknpu_driver::buffer::{Buffer, BufferKind};
use rknpu_driver::device::{Device, DomainId};
use rknpu_driver::error::{AllocateError, JobError, SyncError};
use rknpu_driver::job::PreparedJob;
use rknpu_driver::layout::weights;
use rknpu_driver::oracle::Generator;
use rknpu_driver::plan::{BindError, BoundMatmul, MatmulPlan, Operands, PlanError, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision, ShapeError};
use rknpu_driver::timing::TaskWork;

/// Longest time for one product: far beyond any of them, so what takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a product could not be computed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProductError {
    /// The planner refuses.
    #[error("the product cannot be planned")]
    Plan(#[from] PlanError),
    /// A piece of it has an impossible shape.
    #[error("the product cannot be split over the cores")]
    Shape(#[from] ShapeError),
    /// No memory.
    #[error("no buffers for the product")]
    Allocate(#[from] AllocateError),
    /// Memory could not be read or written.
    #[error("the product's buffers cannot be used")]
    Sync(#[from] SyncError),
    /// The plan does not go with the buffers.
    #[error("the product cannot be bound to its buffers")]
    Bind(#[from] BindError),
    /// The device failed.
    #[error("the device did not compute the product")]
    Job(#[from] JobError),
    /// The device has no address space for another core.
    #[error("the device has {there} cores, {asked} were asked for")]
    Cores {
        /// Cores of the device.
        there: usize,
        /// Cores asked for.
        asked: usize,
    },
}

/// Both matrices, row-major.
pub(super) enum Values {
    Integer { a: Vec<i8>, w: Vec<i8> },
    Float { a: Vec<f16>, w: Vec<f16> },
}

impl Values {
    /// Random values over the whole range of the precision.
    pub(super) fn random(shape: &MatmulShape, seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        let (a, w) = (shape.rows * shape.inner, shape.outputs * shape.inner);
        match shape.precision {
            Precision::Int8 => Values::Integer { a: generator.int8(a), w: generator.int8(w) },
            Precision::Int4 => Values::Integer { a: generator.int4(a), w: generator.int4(w) },
            Precision::Fp16 => Values::Float { a: generator.fp16(a), w: generator.fp16(w) },
        }
    }
}

/// A product's result, `[M][N]`.
pub(super) enum Outputs {
    Integer(Vec<i32>),
    Float(Vec<f32>),
}

/// A product that is ready to run.
pub(super) struct Product {
    shape: MatmulShape,
    lanes: Vec<Lane>,
}

/// The columns of the result that one address space computes.
struct Lane {
    columns: Range<usize>,
    plan: Arc<MatmulPlan>,
    bound: BoundMatmul,
    output: Buffer,
}

/// How long a product took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    /// As the device says; simulated time on a simulator.
    pub(super) device: Duration,
    /// As this process saw it.
    pub(super) wall: Duration,
}

impl Product {
    /// Plans a product over `cores` cores, lays out its operands and binds them.
    ///
    /// Under mainline's driver each core has an address space of its own, so each gets a share of W's rows.
    ///
    /// # Errors
    /// [`ProductError`].
    pub(super) fn new(
        device: &Device,
        shape: MatmulShape,
        values: &Values,
        options: &PlanOptions,
    ) -> Result<Self, ProductError> {
        let spaces = spaces(device, options.cores)?;
        let shares = shares(&shape, spaces.len());
        let lanes = spaces.iter().zip(shares).map(|((domain, cores), columns)| {
            let options = PlanOptions { cores: *cores, ..options.clone() };
            lane(device, *domain, &shape, columns, values, &options)
        });
        Ok(Product { shape, lanes: lanes.collect::<Result<_, _>>()? })
    }

    /// What each core's tasks ask of the hardware, `[core][task]`.
    pub(super) fn work(&self) -> Vec<Vec<TaskWork>> {
        self.lanes.iter().flat_map(|lane| lane.plan.work()).collect()
    }

    /// Tasks of all cores.
    pub(super) fn tasks(&self) -> usize {
        self.lanes.iter().map(|lane| lane.plan.task_count()).sum()
    }

    /// Computes it.
    ///
    /// # Errors
    /// [`ProductError::Job`].
    pub(super) fn run(&self, device: &Device) -> Result<Ran, ProductError> {
        let jobs: Vec<&PreparedJob> = self.lanes.iter().map(|lane| lane.bound.job()).collect();
        let began = Instant::now();
        let reports = device.run(&jobs)?;
        let wall = began.elapsed();
        // Lanes run at the same time.
        let device = reports.iter().map(|report| report.elapsed).max().unwrap_or_default();
        Ok(Ran { device, wall })
    }

    /// The result of the last run.
    ///
    /// # Errors
    /// [`ProductError::Sync`].
    pub(super) fn read(&self) -> Result<Outputs, ProductError> {
        let all = self.shape.rows * self.shape.outputs;
        let mut outputs = match self.shape.precision {
            Precision::Int8 | Precision::Int4 => Outputs::Integer(vec![0; all]),
            Precision::Fp16 => Outputs::Float(vec![0.0; all]),
        };
        let stride = self.shape.outputs;
        for lane in &self.lanes {
            let guard = lane.output.read(..lane.plan.output_bytes())?;
            match &mut outputs {
                Outputs::Integer(out) => {
                    lane.plan.read_output_i32(&guard, &mut out[lane.columns.start..], stride);
                }
                Outputs::Float(out) => {
                    lane.plan.read_output_f32(&guard, &mut out[lane.columns.start..], stride)
                }
            }
        }
        Ok(outputs)
    }
}

/// The address spaces that `cores` cores need, with how many of them each has.
fn spaces(device: &Device, cores: usize) -> Result<Vec<(DomainId, usize)>, ProductError> {
    let mut spaces = Vec::new();
    let mut left = cores;
    for domain in device.domains() {
        // The vendor's address spaces all have the same cores: the first is enough.
        let there = domain.cores.count() as usize;
        let taken = left.min(there);
        if taken == 0 {
            break;
        }
        spaces.push((domain.id, taken));
        left -= taken;
        if there > 1 {
            break;
        }
    }
    if left > 0 {
        return Err(ProductError::Cores { there: cores - left, asked: cores });
    }
    Ok(spaces)
}

/// Output channels in whole kernel groups, spread over `count` lanes; lanes without any are left out.
fn shares(shape: &MatmulShape, count: usize) -> Vec<Range<usize>> {
    let tile = shape.precision.tile_rows();
    let groups = shape.groups();
    let edge = |lane: usize| (groups * lane / count.max(1) * tile).min(shape.outputs);
    (0..count).map(|lane| edge(lane)..edge(lane + 1)).filter(|columns| !columns.is_empty()).collect()
}

fn lane(
    device: &Device,
    domain: DomainId,
    shape: &MatmulShape,
    columns: Range<usize>,
    values: &Values,
    options: &PlanOptions,
) -> Result<Lane, ProductError> {
    let share = MatmulShape::new(shape.rows, shape.inner, columns.len(), shape.precision)?;
    let plan = Arc::new(MatmulPlan::new(share, options)?);
    let tiles = device.allocate(domain, plan.weight_bytes(), BufferKind::Data)?;
    let input = device.allocate(domain, plan.input_bytes(), BufferKind::Data)?;
    let output = device.allocate(domain, plan.output_bytes(), BufferKind::Data)?;
    let rows = columns.start * shape.inner..columns.end * shape.inner;
    {
        let mut tiles = tiles.write(..plan.weight_bytes())?;
        let mut packed = input.write(..plan.input_bytes())?;
        match (values, shape.precision) {
            (Values::Integer { a, w }, Precision::Int4) => {
                weights::pack_i4(columns.len(), shape.inner, &w[rows], &mut tiles);
                plan.pack_input_i8(a, shape.inner, &mut packed);
            }
            (Values::Integer { a, w }, _) => {
                weights::pack_i8(columns.len(), shape.inner, &w[rows], &mut tiles);
                plan.pack_input_i8(a, shape.inner, &mut packed);
            }
            (Values::Float { a, w }, _) => {
                weights::pack_f16(columns.len(), shape.inner, &w[rows], &mut tiles);
                plan.pack_input_f16(a, shape.inner, &mut packed);
            }
        }
        tiles.finish()?;
        packed.finish()?;
    }
    let operands = Operands {
        weights: (tiles.seal()?.into(), 0),
        input: (input, 0),
        output: (output.clone(), 0),
        per_channel: None,
    };
    let bound = plan.bind(device, &operands, TIMEOUT)?;
    Ok(Lane { columns, plan, bound, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_cover_all_outputs_in_whole_groups() {
        for outputs in [1, 31, 32, 33, 64, 95, 96, 1000, 4864] {
            for count in 1..=3 {
                let shape = MatmulShape::new(1, 32, outputs, Precision::Int8).unwrap();
                let shares = shares(&shape, count);
                assert_eq!(shares.first().unwrap().start, 0);
                assert_eq!(shares.last().unwrap().end, outputs);
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 32 == 0));
            }
        }
    }
}
