//! What the processor brings to the worker's cost model: the kernels at work, timed.

use std::time::Instant;

use rknpu_driver::plan::{MatmulPlan, PlanError, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rookery_kernels::{Accumulators, Activations, Kernels, LinearJob, Pool, W8, Weights, tiles};

/// Weights that are read to measure reading: 128 MB, several times any board's caches.
const READ: (usize, usize) = (32_768, 4096);
/// N and K of what is computed with many rows, where weights stay in caches.
const COMPUTED: (usize, usize) = (4096, 1024);
/// Rows of a step that reads a prompt.
const ROWS: usize = 256;

/// What was measured, as `worker.npu.board` has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processor {
    /// Bytes of weights per second that all threads together read, one row of activations.
    pub(super) bytes_per_s: f64,
    /// Multiply-adds per second of one thread, weights packed.
    pub(super) macs_per_s: f64,
    /// Bytes per second, for each thread, of packing activations and turning accumulators into outputs.
    pub(super) pack_bytes_per_s: f64,
}

/// Measures the processor with `threads` threads, best of `repeat` runs.
///
/// # Errors
/// If the planner refuses the product whose operands are packed.
pub(super) fn measure(kernels: &Kernels, threads: usize, repeat: u32) -> Result<Processor, PlanError> {
    let pool = Pool::new(threads);
    let share = threads as f64;
    let reading = linear(kernels, &pool, 1, READ, repeat);
    let computing = linear(kernels, &pool, ROWS, COMPUTED, repeat);
    let (outputs, inner) = COMPUTED;
    let bytes = ROWS * inner + ROWS * outputs * size_of::<i32>();
    let packing = packing(kernels, &pool, repeat)?;
    Ok(Processor {
        bytes_per_s: (READ.0 * READ.1) as f64 / reading,
        macs_per_s: (ROWS * inner * outputs) as f64 / computing / share,
        // Packing has one thread, finishing all of them; the model divides by their number either way.
        pack_bytes_per_s: bytes as f64 / packing / share,
    })
}

/// A matrix of ones: how long products take does not depend on the values.
struct Ones {
    rows: usize,
    cols: usize,
    tiles: Vec<i8>,
    scales: Vec<f32>,
    row_sums: Vec<i32>,
}

impl Ones {
    fn new((rows, cols): (usize, usize)) -> Self {
        let sum = i32::try_from(cols).unwrap_or(i32::MAX);
        let tiles = vec![1; tiles::w8_len(rows, cols)];
        Ones { rows, cols, tiles, scales: vec![1.0; rows], row_sums: vec![sum; rows] }
    }

    fn weights(&self) -> Weights<'_> {
        let Ones { rows, cols, tiles, scales, row_sums } = self;
        Weights::W8(W8 { rows: *rows, cols: *cols, tiles, scales, row_sums })
    }
}

fn activations(kernels: &Kernels, pool: &Pool, rows: usize, cols: usize) -> Activations {
    let mut a = Activations::new();
    let x: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    kernels.quantize(pool, &x, cols, &mut a);
    a
}

/// Seconds of a linear layer `[rows][K] · [N][K]ᵀ`.
fn linear(kernels: &Kernels, pool: &Pool, rows: usize, size: (usize, usize), repeat: u32) -> f64 {
    let ones = Ones::new(size);
    let a = activations(kernels, pool, rows, ones.cols);
    let mut out = vec![0.0; rows * ones.rows];
    best(repeat, || {
        let (weights, out_stride) = (ones.weights(), ones.rows);
        let mut job = LinearJob { weights, bias: None, out: &mut out, out_stride, out_column: 0 };
        kernels.linear(pool, &a, std::slice::from_mut(&mut job));
    })
}

/// Seconds of what the worker does around a product on the NPU: activations into its layout, accumulators out of it, and
/// from them outputs.
fn packing(kernels: &Kernels, pool: &Pool, repeat: u32) -> Result<f64, PlanError> {
    let ones = Ones::new(COMPUTED);
    let a = activations(kernels, pool, ROWS, ones.cols);
    let shape = MatmulShape { rows: ROWS, inner: ones.cols, outputs: ones.rows, precision: Precision::Int8 };
    let plan = MatmulPlan::new(shape, &PlanOptions::default())?;
    let (mut input, output) = (vec![0; plan.input_bytes()], vec![0; plan.output_bytes()]);
    let mut values = vec![0; ROWS * ones.rows];
    let mut out = vec![0.0; ROWS * ones.rows];
    Ok(best(repeat, || {
        plan.pack_input_i8(a.values(), a.stride(), &mut input);
        plan.read_output_i32(&output, &mut values, ones.rows);
        let acc = Accumulators { values: &values, row_stride: ones.rows, group_stride: 4 };
        let (weights, out_stride) = (ones.weights(), ones.rows);
        let mut job = LinearJob { weights, bias: None, out: &mut out, out_stride, out_column: 0 };
        // Without checksums there is nothing to be wrong.
        let _ = kernels.finish(pool, &a, &acc, &mut job, None);
    }))
}

/// Seconds of the shortest of `repeat` runs, after one to warm up.
fn best(repeat: u32, mut work: impl FnMut()) -> f64 {
    work();
    let times = (0..repeat).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}
