//! What the transform before `down` costs: decode steps of one bundle, with it and without it in turn.
//!
//! ```text
//! cargo run --release -p rookery-compute-worker --example hadamard_cost -- qwen-w8 [THREADS] [STEPS] [ROWS] [CONTEXT]
//! ```
//! ROWS sequences (1) of CONTEXT tokens (512) decode side by side, STEPS steps (200) of each kind, on THREADS threads (all).
//! The bundle may be any: the transform is switched on whether its weights have the inverse or not, which costs the same.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use rookery_compute_worker::backend::CpuBackend;
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{AttentionQuery, BLOCK_TOKENS, Kernels, KvType};
use rookery_model::bundle::{Bundle, NoProgress};

/// Largest block of the transform.
const MOST: usize = 256;
/// Smallest one.
const LEAST: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: hadamard_cost BUNDLE [THREADS] [STEPS] [ROWS] [CONTEXT]")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let threads = number(std::thread::available_parallelism()?.get())?;
    let (steps, rows, context) = (number(200)?.max(1), number(1)?.max(1), number(512)?.max(1));

    let bundle = Bundle::open(path.as_ref(), &NoProgress)?;
    let weights = ModelWeights::resolve(&bundle)?;
    let (layers, ffn) = (weights.config.layers, weights.config.ffn);
    let block = (ffn & ffn.wrapping_neg()).min(MOST);
    if block < LEAST {
        return Err(format!("no transform fits feed-forward layers of {ffn}").into());
    }
    let each = context.div_ceil(BLOCK_TOKENS);
    let limits = ForwardLimits {
        threads,
        blocks: rows * each,
        kv_type: KvType::F16,
        positions: context,
        max_rows: rows,
        max_logit_rows: rows,
    };
    let kernels = Kernels::detect();
    let mut forward = Forward::new(weights, kernels, &limits);
    let mut backend = CpuBackend::new(kernels);

    // What is in the cache makes no difference to the time.
    let blocks: Vec<u32> = (0..(rows * each) as u32).collect();
    let queries: Vec<_> =
        blocks.chunks_exact(each).map(|blocks| AttentionQuery { blocks, len: context }).collect();
    let (tokens, wanted): (Vec<u32>, Vec<usize>) = (0..rows).map(|row| (row as u32, row)).unzip();
    let batch = Batch { tokens: &tokens, queries: &queries, logits_of: &wanted };
    let mut step = |hadamard| -> Result<Duration, Box<dyn std::error::Error>> {
        forward.weights_mut().config.ffn_hadamard = hadamard;
        let began = Instant::now();
        forward.run(&mut backend, &batch)?;
        Ok(began.elapsed())
    };
    // Touches every page, and lets clocks and caches settle.
    for _ in 0..8 {
        step(None)?;
    }
    let (mut with, mut without) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    for _ in 0..steps {
        without.push(step(None)?);
        with.push(step(Some(block))?);
    }

    // Zeros take as long as other numbers, and do not grow from transform to transform.
    let mut inner = vec![0.0; ffn];
    let mut alone = Vec::with_capacity(steps);
    for _ in 0..steps {
        let began = Instant::now();
        for _ in 0..layers * rows {
            kernels.hadamard(std::hint::black_box(&mut inner), block);
        }
        alone.push(began.elapsed());
    }

    let milliseconds = |times: &mut Vec<Duration>, share: usize| {
        times.sort();
        times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3
    };
    println!(
        "{} on {}, {threads} threads, {rows} sequence(s) of {context} tokens: {layers} layers of {ffn} in blocks of {block}",
        bundle.info().config.name,
        kernels.isa()
    );
    for (name, share) in [("median", 50), ("best tenth", 10)] {
        let [with, without, alone] =
            [&mut with, &mut without, &mut alone].map(|times| milliseconds(times, share));
        println!(
            "{name}: step {without:.3} ms, with the transform {with:.3} ms ({:+.2} %); transforms alone, one thread {alone:.4} ms ({:.2} %)",
            100.0 * (with / without - 1.0),
            100.0 * alone / without
        );
    }
    Ok(())
}
