//! Prints what attention over a cache of each kind, writing to it and Walsh–Hadamard transforms take here, by
//! instruction set, on the demo model's shapes; each the best of at least 20 calls.
//!
//! `cargo run --release -p rookery-kernels --example attention -- [THREADS [TOKENS]] [ISA …]`
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use rookery_kernels::{
    AttentionJob, AttentionQuery, BLOCK_TOKENS, Isa, Kernels, KeyBias, KvCache, KvLayout, KvType, Pool,
    RopeTable,
};

const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const FFN: usize = 4864;
/// Block of the transform, the largest that divides [`FFN`].
const BLOCK: usize = 256;
/// Query rows: decode, a few streams, prefill.
const ROWS: [usize; 4] = [1, 4, 16, 64];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = args.iter().filter_map(|arg| arg.parse::<usize>().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let (threads, tokens) = (numbers.next().unwrap_or_else(cores), numbers.next().unwrap_or(1024));
    let wanted: Vec<Isa> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let pool = Pool::new(threads);
    println!("{threads} threads, {tokens} tokens; microseconds");
    for kernels in Kernels::available() {
        if wanted.is_empty() || wanted.contains(&kernels.isa()) {
            attention(kernels, &pool, tokens);
            transform(kernels);
        }
    }
}

/// One layer's attention of the last rows of a sequence.
fn attention(kernels: &Kernels, pool: &Pool, tokens: usize) {
    let width = KV_HEADS * HEAD_DIM;
    let rope = RopeTable::new(HEAD_DIM, tokens, 1e6, 1.0, None);
    let bias = floats(width);
    let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).collect();
    for kind in KvType::ALL {
        let layout =
            KvLayout { layers: 1, blocks: blocks.len(), kv_heads: KV_HEADS, head_dim: HEAD_DIM, kind };
        let (mut cache, row) = (KvCache::new(layout), floats(width));
        let mut write = || {
            for t in 0..tokens {
                cache.write(0, (t / BLOCK_TOKENS) as u32, t % BLOCK_TOKENS, &row, &row);
            }
        };
        let one = best(&mut write) / tokens as f64;
        println!("{:<14}{:<6} write{:>21.3}", kernels.isa().name(), kind.name(), one);
        for key_bias in [None, Some(KeyBias { bias: &bias, rope: &rope })] {
            for rows in ROWS.into_iter().filter(|&rows| rows <= tokens) {
                let queries: Vec<AttentionQuery<'_>> = (0..rows)
                    .map(|row| AttentionQuery { blocks: &blocks, len: tokens - rows + row + 1 })
                    .collect();
                let q = floats(rows * HEADS * HEAD_DIM);
                let mut out = vec![0.0; q.len()];
                let job = AttentionJob { layer: 0, queries: &queries, q: &q, heads: HEADS, key_bias };
                let time = best(&mut || kernels.attention(pool, &cache, &job, &mut out));
                let what = if key_bias.is_some() { "bias" } else { "" };
                let isa = kernels.isa().name();
                println!("{isa:<14}{:<6} attention {what:<5}{rows:>3}{time:>8.1}", kind.name());
            }
        }
    }
}

/// One row of the feed-forward's activations.
fn transform(kernels: &Kernels) {
    let mut x = floats(FFN);
    let (gate, up) = (floats(FFN), floats(FFN));
    let time = best(&mut || kernels.hadamard(&mut x, BLOCK));
    println!("{:<14}hadamard of {FFN} by {BLOCK}{time:>11.2}", kernels.isa().name());
    let time = best(&mut || kernels.silu_mul(&gate, &up, &mut x));
    println!("{:<14}silu_mul of {FFN}{time:>18.2}", kernels.isa().name());
}

fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

/// Microseconds of the fastest call.
fn best(call: &mut dyn FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    for done in 0.. {
        if done >= 20 && begin.elapsed().as_millis() > 50 {
            break;
        }
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64() * 1e6);
    }
    best
}
