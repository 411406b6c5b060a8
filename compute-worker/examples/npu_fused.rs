//! Measures how far answers move when the NPU takes operations between linear layers over (`npu.fused`): the divergence of
//! its logits from those of the processor, token by token, on the NPU's simulator.
//!
//! `cargo run --release -p rookery-compute-worker --example npu_fused -- BUNDLE [TOKENS]`
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::Path;

use rookery_compute_worker::backend::npu::{NpuBackend, NpuSettings, simulated};
use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_compute_worker::config::NpuFused;
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::reference::{Divergence, divergence};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{AttentionQuery, BLOCK_TOKENS, Kernels, KvType};
use rookery_model::bundle::{Bundle, NoProgress};

/// Rows that go through the model at once.
const ROWS: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: npu_fused BUNDLE [TOKENS]")?;
    let count: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let bundle = Bundle::open(Path::new(&folder), &NoProgress)?;
    let mut tokens = bundle.tokenizer()?.encode_text(include_str!("../../tests/data/eval/code.txt"))?;
    tokens.truncate(count);
    let kernels = Kernels::detect();
    let expected = logits(&bundle, &mut CpuBackend::new(kernels), &tokens)?;
    println!("{:<12}{:>12}{:>12}{:>12}{:>10}", "fused", "mean KL", "99 %", "largest", "same top");
    for fused in [vec![], vec![NpuFused::Silu], vec![NpuFused::Norm], vec![NpuFused::Silu, NpuFused::Norm]] {
        let name = format!("{fused:?}");
        let settings = NpuSettings { fused, ..NpuSettings::default() };
        let mut backend = NpuBackend::new(simulated(&settings)?, kernels, &settings);
        let found = logits(&bundle, &mut backend, &tokens)?;
        let (mut sum, mut each) = (Divergence::default(), Vec::new());
        for (expected, found) in expected.iter().zip(&found) {
            sum.add(expected, found);
            each.push(divergence(expected, found));
        }
        each.sort_by(f64::total_cmp);
        println!(
            "{name:<12}{:>12.2e}{:>12.2e}{:>12.2e}{:>9.1}%",
            sum.mean(),
            each[each.len() * 99 / 100],
            sum.max,
            100.0 * sum.same_top as f64 / sum.positions as f64
        );
    }
    Ok(())
}

/// The logits of every position.
fn logits(
    bundle: &Bundle,
    backend: &mut dyn Backend,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let limits = ForwardLimits {
        threads: 2,
        blocks,
        kv_type: KvType::F16,
        positions: tokens.len(),
        max_rows: ROWS,
        max_logit_rows: ROWS,
    };
    let mut weights = ModelWeights::resolve(bundle)?;
    backend.adopt(&mut weights)?;
    let mut forward = Forward::new(weights, Kernels::detect(), &limits);
    let blocks: Vec<u32> = (0..blocks as u32).collect();
    let mut all = Vec::with_capacity(tokens.len());
    for first in (0..tokens.len()).step_by(ROWS) {
        let end = tokens.len().min(first + ROWS);
        let query = |at: usize| AttentionQuery { blocks: &blocks, len: at + 1 };
        let queries: Vec<_> = (first..end).map(query).collect();
        let wanted: Vec<usize> = (0..queries.len()).collect();
        forward
            .run(backend, &Batch { tokens: &tokens[first..end], queries: &queries, logits_of: &wanted })?;
        all.extend(forward.logits().map(<[f32]>::to_vec));
    }
    Ok(all)
}
