//! Prints what the kernels reach here: read bandwidth, then decode and prefill by instruction set and shape;
//! each line is the best of at least 20 calls, each on a copy of the weights that is in no cache.
//!
//! `cargo run --release -p rookery-kernels --example kernels -- [THREADS] [ISA|w8|w4|M …]`; without an ISA all but
//! the scalar one.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use rookery_kernels::{
    Activations, Isa, Kernels, LinearJob, Pool, W4, W8, Weights, measure_read_bandwidth, tiles,
};

/// (N, K) of the demo model's matrices, and a quarter of its head.
const SHAPES: [(usize, usize); 5] = [(896, 896), (1152, 896), (9728, 896), (896, 4864), (37_984, 896)];

/// Activation rows: decode, then prefill.
const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 8, 16, 64, 256];

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let threads = args.peek().and_then(|a| a.parse().ok()).inspect(|_: &usize| _ = args.next());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let wanted: Vec<String> = args.collect();
    let is_wanted = |what: &str| wanted.iter().any(|w| w == what);
    let forms =
        ["w8", "w4"].into_iter().filter(|form| is_wanted(form) || !(is_wanted("w8") || is_wanted("w4")));
    let mut rows: Vec<usize> = wanted.iter().filter_map(|w| w.parse().ok()).collect();
    if rows.is_empty() {
        rows = ROWS.to_vec();
    }
    let isas: Vec<Isa> = wanted.iter().filter_map(|w| w.parse().ok()).collect();

    let pool = Pool::new(threads);
    let bandwidth = measure_read_bandwidth(&pool, 256 << 20, 16);
    println!("{threads} threads read {:.1} GB/s", bandwidth / 1e9);
    println!(
        "{:<14}{:<5}{:>16}{:>5}{:>10}{:>8}{:>9}{:>8}",
        "isa", "form", "N x K", "M", "us", "GB/s", "GOP/s", "share"
    );
    for kernels in Kernels::available() {
        if if isas.is_empty() { kernels.isa() == Isa::Scalar } else { !isas.contains(&kernels.isa()) } {
            continue;
        }
        for form in forms.clone() {
            for (n, k) in SHAPES {
                measure(&pool, kernels, form, (n, k), &rows, bandwidth);
            }
        }
    }
}

/// Prints one line per batch size. Enough copies of the matrix are walked that none is found in a cache.
fn measure(
    pool: &Pool,
    kernels: &Kernels,
    form: &str,
    (rows, cols): (usize, usize),
    batches: &[usize],
    bandwidth: f64,
) {
    let values: Vec<i8> =
        (0..rows * cols).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as i8 >> 4).collect();
    let scales = vec![0.01; rows];
    let row_sums = vec![0; rows];
    let multipliers = vec![3; rows * cols.div_ceil(tiles::W4_GROUP)];
    let copies = (192 << 20) / (rows * cols) + 1;
    let mut w8 = vec![0; if form == "w8" { tiles::w8_len(rows, cols) } else { 0 }];
    let mut w4 = vec![0; if form == "w4" { tiles::w4_len(rows, cols) } else { 0 }];
    if form == "w8" {
        tiles::pack_w8(rows, cols, &values, &mut w8)
    } else {
        tiles::pack_w4(rows, cols, &values, &mut w4)
    }
    let (w8, w4) = (vec![w8; copies], vec![w4; copies]);
    for &m in batches {
        let x: Vec<f32> = (0..m * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut a = Activations::new();
        kernels.quantize(pool, &x, cols, &mut a);
        let mut out = vec![0.0; m * rows];
        let mut best = f64::INFINITY;
        let mut bytes = 0;
        let calls = copies.min(200_000_000_000 / (m * rows * cols * 64) + 2);
        for copy in (0..copies).cycle().take(calls.max(20)) {
            let tiles = (&*w8[copy], &*w4[copy]);
            let weights = match form {
                "w8" => Weights::W8(W8 { rows, cols, tiles: tiles.0, scales: &scales, row_sums: &row_sums }),
                _ => Weights::W4(W4 {
                    rows,
                    cols,
                    tiles: tiles.1,
                    multipliers: &multipliers,
                    scales: &scales,
                    row_sums: &row_sums,
                }),
            };
            bytes = weights.bytes();
            let job = LinearJob { weights, bias: None, out: &mut out, out_stride: rows, out_column: 0 };
            let start = Instant::now();
            kernels.linear(pool, &a, &mut [job]);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let (read, operations) = (bytes as f64 / best, 2.0 * (m * rows * cols) as f64 / best);
        println!(
            "{:<14}{:<5}{:>16}{:>5}{:>10.1}{:>8.1}{:>9.0}{:>7.0}%",
            kernels.isa().name(),
            form,
            format!("{rows} x {cols}"),
            m,
            best * 1e6,
            read / 1e9,
            operations / 1e9,
            100.0 * read / bandwidth
        );
    }
}
