//! Each dimension at 1, at every limit, and one past it.

use rknpu_driver::oracle::Generator;
use rknpu_driver::plan::PlanOptions;
use rknpu_driver::shape::{MAX_INNER, MatmulShape, Precision};

use crate::bench::{Bench, Values};

fn check(bench: &Bench, rows: usize, inner: usize, outputs: usize, precision: Precision, cores: usize) {
    let shape = MatmulShape { rows, inner, outputs, precision };
    let options = PlanOptions { cores, ..PlanOptions::default() };
    let seed = (rows * 31 + inner) as u64 ^ (outputs as u64) << 32;
    if let Err(error) = bench.check(shape, &options, &mut Values::Random(Generator::new(seed))) {
        panic!("{cores} cores: {error}");
    }
}

#[test]
fn rows() {
    let bench = Bench::new();
    for precision in Precision::ALL {
        // Width fields end at 2,047; a bank's worth of pixels at several widths.
        for rows in [1, 2, 3, 4, 5, 15, 16, 17, 352, 353, 512, 1023, 1024, 2046, 2047, 2048, 2049, 4095] {
            check(&bench, rows, 64, 40, precision, 1 + rows % 3);
        }
        // Features that fill their banks exactly, and one row more: 11 banks hold 352 rows of 1,024 bytes.
        let columns = 1024 * 8 / precision.bits();
        for rows in [31, 32, 33, 351, 352, 353] {
            check(&bench, rows, columns, 16, precision, 1);
        }
    }
}

#[test]
fn inner() {
    let bench = Bench::new();
    for precision in Precision::ALL {
        for edge in [32, 64, 128, 256, 480, 512, 1024, 1536, 3072, 8192, 10_240, 16_384] {
            for inner in [edge - 1, edge, edge + 1] {
                check(&bench, 1 + inner % 5, inner, 70, precision, 1 + inner % 3);
            }
        }
        for inner in [1, 2, 3, 15, 16, 17] {
            for rows in [1, 4, 33] {
                check(&bench, rows, inner, 65, precision, 1);
            }
        }
        // Rows enough that stacking is not free.
        check(&bench, 130, 16_384, 70, precision, 3);
    }
}

#[test]
fn outputs() {
    let bench = Bench::new();
    for precision in Precision::ALL {
        for edge in [16, 32, 64, 96, 128, 1024, 8128, 8160, 8176, 8191, 8192, 16_256, 16_384] {
            for outputs in [edge - 1, edge, edge + 1] {
                check(&bench, 1 + outputs % 7, 33, outputs, precision, 1 + outputs % 3);
            }
        }
        for outputs in [1, 2, 3, 7, 8, 9] {
            check(&bench, 1, 1, outputs, precision, 3);
        }
    }
}

#[test]
fn extremes() {
    let bench = Bench::new();
    for precision in Precision::ALL {
        for (rows, inner, outputs) in [(1, 480, 64), (3, 16_384, 40), (20, 8192, 33), (2, 511, 5)] {
            let shape = MatmulShape { rows, inner, outputs, precision };
            for cores in 1..=3 {
                let options = PlanOptions { cores, ..PlanOptions::default() };
                bench.check(shape, &options, &mut Values::Extreme).expect("extreme values");
            }
        }
    }
    // The longest K: 16,384 less than 2^31, from −128 everywhere.
    let shape = MatmulShape { rows: 2, inner: MAX_INNER, outputs: 3, precision: Precision::Int8 };
    bench.check(shape, &PlanOptions::default(), &mut Values::Extreme).expect("the longest sum");
}
