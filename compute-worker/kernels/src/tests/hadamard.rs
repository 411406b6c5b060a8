use super::{Random, bits, tables};
use crate::Kernels;

/// The documented order of operations, in plain loops.
fn by_definition(x: &mut [f32], block: usize) {
    for x in x.chunks_exact_mut(block) {
        let mut stride = block / 2;
        while stride > 0 {
            for i in (0..block).filter(|i| i & stride == 0) {
                (x[i], x[i + stride]) = (x[i] + x[i + stride], x[i] - x[i + stride]);
            }
            stride /= 2;
        }
    }
}

#[test]
fn every_block_and_table_gives_the_defined_bits() {
    let mut random = Random(41);
    let mut block = 16;
    while block <= 4096 {
        for blocks in [0, 1, 2, 3, 19] {
            for special in [false, true] {
                let mut x = random.floats(blocks * block, 5.0);
                if special && blocks > 0 {
                    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40, f32::MAX] {
                        let at = random.int(0, x.len() as i64 - 1) as usize;
                        x[at] = value;
                    }
                }
                let mut expected = x.clone();
                by_definition(&mut expected, block);
                for kernels in tables() {
                    let mut got = x.clone();
                    kernels.hadamard(&mut got, block);
                    assert_eq!(bits(&got), bits(&expected), "{kernels:?} {blocks} blocks of {block}");
                }
            }
        }
        block *= 2;
    }
}

#[test]
fn it_is_the_product_with_sylvesters_matrix() {
    let mut random = Random(42);
    for block in [16, 32, 64, 128, 256, 1024] {
        let x = random.floats(2 * block, 3.0);
        let mut got = x.clone();
        Kernels::detect().hadamard(&mut got, block);
        for (got, x) in got.chunks_exact(block).zip(x.chunks_exact(block)) {
            for (i, got) in got.iter().enumerate() {
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let exact: f64 = x.iter().enumerate().map(|(j, &x)| sign(j) * f64::from(x)).sum();
                assert!(
                    (f64::from(*got) - exact).abs() < 1e-6 * block as f64,
                    "{block} {i}: {got}, not {exact}"
                );
            }
        }
    }
}

#[test]
fn twice_is_a_multiplication_by_the_block() {
    let mut random = Random(43);
    for kernels in tables() {
        let x: Vec<f32> = (0..768).map(|_| random.int(-1000, 1000) as f32).collect();
        let mut y = x.clone();
        kernels.hadamard(&mut y, 256);
        kernels.hadamard(&mut y, 256);
        assert!(x.iter().zip(&y).all(|(x, y)| x * 256.0 == *y), "{kernels:?}"); // integers below 2^24: exact
    }
}

#[test]
#[should_panic(expected = "hadamard: block of 24 is not a power of two in 16..=4096")]
fn a_block_that_is_not_a_power_of_two_is_refused() {
    Kernels::detect().hadamard(&mut [0.0; 48], 24);
}

#[test]
#[should_panic(expected = "hadamard: block of 8 ")]
fn a_block_that_is_too_small_is_refused() {
    Kernels::detect().hadamard(&mut [0.0; 48], 8);
}

#[test]
#[should_panic(expected = "hadamard: 48 values in blocks of 32")]
fn a_part_of_a_block_is_refused() {
    Kernels::detect().hadamard(&mut [0.0; 48], 32);
}
