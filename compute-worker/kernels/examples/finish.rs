//! Prints what it costs to turn an accelerator's accumulators into outputs, without and with the checksum that verifies
//! them, beside computing the same product here; best of many calls.
//!
//! `cargo run --release -p rookery-kernels --example finish -- [THREADS]`
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use rookery_kernels::{Accumulators, Activations, Kernels, LinearJob, Pool, W8, Weights, tiles};

/// (N, K) of the demo model's gate and of its down projection.
const SHAPES: [(usize, usize); 2] = [(4864, 896), (896, 4864)];
const ROWS: [usize; 4] = [1, 4, 16, 256];

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let (pool, kernels) = (Pool::new(threads), Kernels::detect());
    println!("{threads} threads, {}; microseconds", kernels.isa());
    println!("{:>12}{:>5}{:>10}{:>10}{:>10}{:>10}", "N x K", "M", "finish", "checked", "adds", "product");
    for (rows, cols) in SHAPES {
        let tiles: Vec<i8> = (0..tiles::w8_len(rows, cols))
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as i8 >> 1)
            .collect();
        let (scales, row_sums) = (vec![0.01; rows], vec![0; rows]);
        let weights = Weights::W8(W8 { rows, cols, tiles: &tiles, scales: &scales, row_sums: &row_sums });
        let columns = kernels.checksum(&pool, &weights);
        for m in ROWS {
            let x: Vec<f32> = (0..m * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let mut a = Activations::new();
            kernels.quantize(&pool, &x, cols, &mut a);
            let (mut out, values) = (vec![0.0; m * rows], vec![12_345; m * rows]);
            let acc = Accumulators { values: &values, row_stride: rows, group_stride: 4 };
            let mut best = |work: &mut dyn FnMut(&mut LinearJob<'_>)| {
                let mut job =
                    LinearJob { weights, bias: None, out: &mut out, out_stride: rows, out_column: 0 };
                let times = (0..200).map(|_| {
                    let start = Instant::now();
                    work(&mut job);
                    start.elapsed().as_secs_f64() * 1e6
                });
                times.fold(f64::INFINITY, f64::min)
            };
            let plain = best(&mut |job| assert!(kernels.finish(&pool, &a, &acc, job, None)));
            // These accumulators are not the product's, which takes as long to find out.
            let checked = best(&mut |job| assert!(!kernels.finish(&pool, &a, &acc, job, Some(&columns))));
            let product = best(&mut |job| kernels.linear(&pool, &a, std::slice::from_mut(job)));
            println!(
                "{:>12}{m:>5}{plain:>10.1}{checked:>10.1}{:>10.1}{product:>10.1}",
                format!("{rows} x {cols}"),
                checked - plain
            );
        }
    }
}
