//! A small product with its buffers, run as programs run one, and checked against the scalar result.

use std::time::Duration;

use rknpu_driver::buffer::{Buffer, BufferKind, SealedBuffer};
use rknpu_driver::device::{Device, DomainId, Interface};
use rknpu_driver::error::{AllocateError, JobError};
use rknpu_driver::job::{JobBuffer, JobReport};
use rknpu_driver::layout::weights;
use rknpu_driver::oracle::{Generator, matmul_int};
use rknpu_driver::plan::{BindError, BoundMatmul, MatmulPlan, Operands, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::sim::{FaultPlan, SimConfig, Simulation};

/// Time a job has on the device.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(300);

/// A product in one domain of a device.
pub(crate) struct Product {
    plan: MatmulPlan,
    bound: BoundMatmul,
    pub(crate) weights: SealedBuffer,
    pub(crate) input: Buffer,
    pub(crate) output: Buffer,
    a: Vec<i8>,
    expected: Vec<i32>,
}

/// Why a product could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoProduct {
    /// No memory, or no device.
    #[error("no buffer")]
    Allocate(#[from] AllocateError),
    /// No task objects.
    #[error("no job")]
    Bind(#[from] BindError),
}

impl Product {
    /// C = A·Wᵀ of seeded values, 5 × 96 · 96 × `outputs`, on `cores` cores.
    pub(crate) fn new(
        device: &Device,
        domain: DomainId,
        cores: usize,
        outputs: usize,
        seed: u64,
    ) -> Result<Self, NoProduct> {
        let shape = MatmulShape { rows: 5, inner: 96, outputs, precision: Precision::Int8 };
        let mut random = Generator::new(seed);
        let (a, w) = (random.int8(shape.rows * shape.inner), random.int8(outputs * shape.inner));
        let options = PlanOptions { cores, ..PlanOptions::default() };
        let plan = MatmulPlan::new(shape, &options).expect("a plain shape is planned");
        let mut tiles = vec![0; plan.weight_bytes()];
        weights::pack_i8(outputs, shape.inner, &w, &mut tiles);
        let packed = device.allocate(domain, tiles.len(), BufferKind::Data)?;
        packed.write(..).expect("nobody else has it").copy_from_slice(&tiles);
        let weights = packed.seal().expect("nobody else has it");
        let input = device.allocate(domain, plan.input_bytes(), BufferKind::Data)?;
        let output = device.allocate(domain, plan.output_bytes(), BufferKind::Sram)?;
        let operands = Operands {
            weights: (JobBuffer::Sealed(weights.clone()), 0),
            input: (input.clone(), 0),
            output: (output.clone(), 0),
            per_channel: None,
        };
        let bound = plan.bind(device, &operands, TIMEOUT)?;
        let expected = matmul_int(&shape, &a, &w);
        Ok(Self { plan, bound, weights, input, output, a, expected })
    }

    /// Writes the input and runs.
    pub(crate) fn run(&self, device: &Device) -> Result<JobReport, JobError> {
        let mut bytes = self.input.write(..)?;
        self.plan.pack_input_i8(&self.a, self.plan.shape().inner, &mut bytes);
        bytes.finish()?;
        device.run(&[self.bound.job()]).map(|mut reports| reports.remove(0))
    }

    /// Whether the output is the scalar result.
    pub(crate) fn is_right(&self) -> bool {
        let bytes = self.output.read(..).expect("the job is over");
        let mut out = vec![0; self.expected.len()];
        self.plan.read_output_i32(&bytes, &mut out, self.plan.shape().outputs);
        out == self.expected
    }

    /// The prepared job.
    pub(crate) fn job(&self) -> &rknpu_driver::job::PreparedJob {
        self.bound.job()
    }
}

/// A simulated device with the faults of a plan in text form, quiet about them.
pub(crate) fn simulation(interface: Interface, faults: &str) -> Simulation {
    let plan: FaultPlan = faults.parse().expect("a fault plan");
    let faults = (!plan.rules().is_empty()).then_some(plan);
    let sram_bytes = 956 << 10;
    Simulation::new(SimConfig { faults, sram_bytes, report: None, ..SimConfig::new(interface) })
}

/// Cores that one domain of the interface can use.
pub(crate) fn cores(interface: Interface) -> usize {
    match interface {
        Interface::Vendor => 3,
        Interface::Rocket => 1,
    }
}

pub(crate) const BOTH: [Interface; 2] = [Interface::Vendor, Interface::Rocket];
