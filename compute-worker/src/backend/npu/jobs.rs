//! Jobs prepared once and run as often as the same products come again.
//!
//! Each address space has scratch buffers for packed activations, results and expanded weights, which grow and are reused.
//! A prepared job holds their addresses, so that growing forgets the address space's jobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rknpu_driver::buffer::{Buffer, BufferKind};
use rknpu_driver::device::{Device, DomainId};
use rknpu_driver::job::JobBuffer;
use rknpu_driver::plan::w4::NibblePlan;
use rknpu_driver::plan::{Binding, BoundMatmul, MatmulPlan, Operands, PlanCache, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::timing::TaskWork;
use rookery_kernels::Weights;

use super::NpuError;
use super::call::{Piece, STAGE_BYTES, Source};

/// Regions of scratch buffers start at a multiple of this: a page, so that regions share no cache line.
const REGION: usize = 4096;
/// Shapes whose plans are kept.
const PLANS: usize = 512;

/// A prepared job: the pieces of one round in one address space.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) bound: BoundMatmul,
    pub(super) products: Vec<PreparedProduct>,
    pub(super) input: Buffer,
    pub(super) output: Buffer,
    /// Cores that have something to do.
    pub(super) cores: u32,
    /// What all tasks ask of the hardware.
    pub(super) work: TaskWork,
}

/// One piece of a prepared job.
#[derive(Debug)]
pub(super) struct PreparedProduct {
    pub(super) plan: Plan,
    /// Where its region of the input buffer starts.
    pub(super) input_at: usize,
    /// Where its region of the output buffer starts.
    pub(super) output_at: usize,
}

/// How a product is computed.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    /// In int8.
    Int8(Arc<MatmulPlan>),
    /// In int4, with two rows of nibbles for each row.
    Int4(Arc<NibblePlan>),
}

impl Plan {
    /// The plan of what the device computes.
    pub(super) fn inner(&self) -> &MatmulPlan {
        match self {
            Self::Int8(plan) => plan,
            Self::Int4(plan) => plan.plan(),
        }
    }

    /// Rows of activations.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Int8(plan) => plan.shape().rows,
            Self::Int4(plan) => plan.rows(),
        }
    }

    /// Packs rows of activations, `stride` apart, into the device's layout.
    pub(super) fn pack(&self, rows: &[i8], stride: usize, out: &mut [u8]) {
        match self {
            Self::Int8(plan) => plan.pack_input_i8(rows, stride, out),
            Self::Int4(plan) => plan.pack_input(rows, stride, out),
        }
    }

    /// Makes int32 accumulators, row-major, of what the device wrote. `weights` are the piece's own.
    pub(super) fn read(&self, bytes: &[u8], weights: &Weights<'_>, out: &mut [i32]) {
        let stride = weights.rows();
        match (self, weights) {
            (Self::Int8(plan), _) => plan.read_output_i32(bytes, out, stride),
            (Self::Int4(plan), Weights::W4(w)) => plan.combine(bytes, w.multipliers, out, stride),
            (Self::Int4(_), Weights::W8(_)) => unreachable!("only w4 weights are multiplied as int4"),
        }
    }
}

/// What makes two jobs the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    domain: DomainId,
    rows: usize,
    /// What the device reads as weights, their bus address, K, N.
    products: Vec<(Source, u32, usize, usize)>,
}

/// Scratch of one address space.
#[derive(Debug, Default)]
struct Scratch {
    input: Option<Buffer>,
    output: Option<Buffer>,
    stage: Option<Buffer>,
}

/// Prepared jobs, plans and scratch buffers of one device.
#[derive(Debug)]
pub(super) struct Jobs {
    device: Device,
    options: PlanOptions,
    timeout: Duration,
    plans: PlanCache,
    /// By M, K, N and cores.
    nibble_plans: HashMap<(usize, usize, usize, usize), Arc<NibblePlan>>,
    scratch: HashMap<DomainId, Scratch>,
    prepared: HashMap<Key, (Arc<Prepared>, u64)>,
    most: usize,
    /// Counts uses, so that the one unused for longest makes room.
    clock: u64,
}

impl Jobs {
    pub(super) fn new(device: Device, options: PlanOptions, timeout: Duration, most: usize) -> Self {
        Self {
            device,
            options,
            timeout,
            plans: PlanCache::new(PLANS),
            nibble_plans: HashMap::new(),
            scratch: HashMap::new(),
            prepared: HashMap::new(),
            most,
            clock: 0,
        }
    }

    /// Lets go of every job and buffer, after the device lost or may have spoilt them.
    pub(super) fn forget(&mut self) {
        self.prepared.clear();
        self.scratch.clear();
    }

    /// The stage of an address space, for expanded weights.
    pub(super) fn stage(&mut self, domain: DomainId) -> Result<Buffer, NpuError> {
        let scratch = self.scratch.entry(domain).or_default();
        if let Some(stage) = &scratch.stage {
            return Ok(stage.clone());
        }
        let stage = self.device.allocate(domain, STAGE_BYTES, BufferKind::Data)?;
        scratch.stage = Some(stage.clone());
        Ok(stage)
    }

    /// The job of `pieces`, all in `domain`, for `rows` rows of activations.
    pub(super) fn prepare(
        &mut self,
        domain: DomainId,
        rows: usize,
        pieces: &[&Piece],
    ) -> Result<Arc<Prepared>, NpuError> {
        self.clock += 1;
        let mut addresses = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let address = match piece.source {
                Source::Stored(offset) | Source::Nibbles(offset) => {
                    piece.place.buffer.iova().wrapping_add(offset as u32)
                }
                Source::Expanded(offset) => self.stage(domain)?.iova().wrapping_add(offset as u32),
            };
            addresses.push((piece.source, address, piece.inner, piece.channels.len()));
        }
        let key = Key { domain, rows, products: addresses };
        if let Some((prepared, used)) = self.prepared.get_mut(&key) {
            *used = self.clock;
            return Ok(Arc::clone(prepared));
        }
        let prepared = Arc::new(self.bind(domain, rows, pieces)?);
        if self.prepared.len() >= self.most {
            let oldest = self.prepared.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.prepared.remove(&key));
        }
        self.prepared.insert(key, (Arc::clone(&prepared), self.clock));
        Ok(prepared)
    }

    fn bind(&mut self, domain: DomainId, rows: usize, pieces: &[&Piece]) -> Result<Prepared, NpuError> {
        let options = self.options_for(domain);
        let mut products = Vec::with_capacity(pieces.len());
        let (mut input_bytes, mut output_bytes) = (0usize, 0usize);
        for piece in pieces {
            let plan = self.plan(rows, piece, &options)?;
            let (input_at, output_at) = (input_bytes, output_bytes);
            input_bytes += plan.inner().input_bytes().next_multiple_of(REGION);
            output_bytes += plan.inner().output_bytes().next_multiple_of(REGION);
            products.push(PreparedProduct { plan, input_at, output_at });
        }
        let (input, output) = self.buffers(domain, input_bytes, output_bytes)?;
        let mut operands = Vec::with_capacity(pieces.len());
        for (piece, product) in pieces.iter().zip(&products) {
            let weights = match piece.source {
                Source::Stored(offset) | Source::Nibbles(offset) => {
                    (JobBuffer::Sealed(piece.place.buffer.clone()), offset)
                }
                Source::Expanded(offset) => (JobBuffer::Buffer(self.stage(domain)?), offset),
            };
            operands.push(Operands {
                weights,
                input: (input.clone(), product.input_at),
                output: (output.clone(), product.output_at),
                per_channel: None,
            });
        }
        let bindings: Vec<Binding<'_>> = products
            .iter()
            .zip(&operands)
            .map(|(product, operands)| Binding { plan: product.plan.inner(), operands })
            .collect();
        let bound = BoundMatmul::new(&self.device, &bindings, self.timeout)?;
        let cores = products.iter().map(|product| product.plan.inner().cores()).max().unwrap_or(0) as u32;
        let work = products.iter().flat_map(|product| product.plan.inner().work()).flatten().sum();
        Ok(Prepared { bound, products, input, output, cores, work })
    }

    /// The plan of a piece, made now or earlier.
    fn plan(&mut self, rows: usize, piece: &Piece, options: &PlanOptions) -> Result<Plan, NpuError> {
        let (inner, outputs) = (piece.inner, piece.channels.len());
        if !matches!(piece.source, Source::Nibbles(_)) {
            let shape = MatmulShape { rows, inner, outputs, precision: Precision::Int8 };
            return Ok(Plan::Int8(self.plans.plan(shape, options)?));
        }
        let key = (rows, inner, outputs, options.cores);
        if let Some(plan) = self.nibble_plans.get(&key) {
            return Ok(Plan::Int4(Arc::clone(plan)));
        }
        let plan = Arc::new(NibblePlan::new(rows, inner, outputs, options)?);
        if self.nibble_plans.len() >= PLANS {
            self.nibble_plans.clear();
        }
        self.nibble_plans.insert(key, Arc::clone(&plan));
        Ok(Plan::Int4(plan))
    }

    /// Options for plans in an address space: no more cores than it has.
    fn options_for(&self, domain: DomainId) -> PlanOptions {
        let there = self.device.domains().iter().find(|candidate| candidate.id == domain);
        let cores = there.map_or(1, |domain| domain.cores.count() as usize);
        PlanOptions { cores: self.options.cores.min(cores).max(1), ..self.options.clone() }
    }

    /// Scratch buffers of at least these sizes.
    fn buffers(
        &mut self,
        domain: DomainId,
        input: usize,
        output: usize,
    ) -> Result<(Buffer, Buffer), NpuError> {
        let scratch = self.scratch.entry(domain).or_default();
        let mut grown = false;
        for (buffer, bytes) in [(&mut scratch.input, input), (&mut scratch.output, output)] {
            if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
                // The old one goes first: there may be no room for both.
                *buffer = None;
                grown = true;
                self.prepared.retain(|key, _| key.domain != domain);
                let bytes = bytes.next_power_of_two().max(FIRST_BYTES);
                *buffer = Some(self.device.allocate(domain, bytes, BufferKind::Data)?);
            }
        }
        if grown {
            tracing::debug!(%domain, input, output, "the NPU's scratch buffers have grown");
        }
        match (&scratch.input, &scratch.output) {
            (Some(input), Some(output)) => Ok((input.clone(), output.clone())),
            (None, _) | (_, None) => unreachable!("both were made above"),
        }
    }
}

/// Smallest scratch buffer.
const FIRST_BYTES: usize = 1 << 20;
