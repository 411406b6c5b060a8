//! The yardstick of decode: how fast the pool's threads read memory.

use std::hint::black_box;
use std::time::Instant;

use crate::pool::Pool;

/// Bytes per second that the pool's threads read from a buffer of `bytes` bytes, best of `passes` passes.
///
/// The buffer should be several times the last-level cache. Each thread reads one contiguous part, as decode
/// does; the best pass counts, since a share of bandwidth should be a share of what the memory can do.
pub fn measure_read_bandwidth(pool: &Pool, bytes: usize, passes: usize) -> f64 {
    let words = (bytes / size_of::<u64>()).max(1);
    // Written, so that every page is a page of its own and not the shared page of zeros.
    let buffer: Vec<u64> = (0..words as u64).collect();
    let part = words.div_ceil(pool.threads() * 8);
    let mut best = 0.0f64;
    for _ in 0..passes.max(1) {
        let start = Instant::now();
        pool.run(words.div_ceil(part), &|task| {
            let end = words.min((task + 1) * part);
            black_box(read(&buffer[task * part..end]));
        });
        best = best.max((words * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Xor of all words in eight chains, which the compiler turns into vector loads without spilling.
fn read(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<8>();
    let mut sums = [0u64; 8];
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum ^= word;
        }
    }
    sums.iter().chain(rest).fold(0, |a, b| a ^ b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_positive_and_finite() {
        let speed = measure_read_bandwidth(&Pool::new(2), 1 << 22, 2);
        assert!(speed > 1e6 && speed.is_finite(), "{speed}");
    }
}
