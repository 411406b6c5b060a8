//! Seeded random shapes.

use std::env;
use std::time::Instant;

use rknpu_driver::oracle::Generator;
use rknpu_driver::plan::{Axis, Limits, MatmulPlan, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::timing::Board;

use crate::bench::{Bench, Values};

/// Shapes without MATMUL_SHAPES: a minute at most on two cores.
const DEFAULT_SHAPES: u64 = 240;
const MOST_ROWS: u64 = 512;
const MOST_SIDE: u64 = 16_384;
/// Multiply-adds of one product.
const MOST_PRODUCTS: u64 = 1 << 28;

/// Every so many cases, sizes are drawn evenly, so that products near the limit are not rare.
const LARGE_EVERY: u64 = 8;

/// A size up to `most`: small, near a multiple of 32, or anything, by its logarithm or evenly.
fn side(random: &mut Generator, most: u64) -> u64 {
    let logarithmic = |random: &mut Generator| {
        let bits = random.below(u64::from(most.ilog2()) + 1);
        (1 << bits) + random.below(1 << bits)
    };
    let side = match random.below(4) {
        0 => 1 + random.below(64),
        1 => 1 + random.below(most),
        2 => logarithmic(random),
        _ => logarithmic(random).next_multiple_of(32) + random.below(3) - 1,
    };
    side.clamp(1, most)
}

/// The shape and options of an index. Every precision and 1–3 cores come in turn; some cases use limits or a
/// board that lead to other cuts.
pub(crate) fn case(index: u64) -> (MatmulShape, PlanOptions, Generator) {
    let mut random = Generator::new(index);
    let precision = Precision::ALL[(index % 3) as usize];
    let large = index % LARGE_EVERY == LARGE_EVERY - 1;
    let (rows, inner, outputs) = loop {
        let mut draw = |most| if large { 1 + random.below(most) } else { side(&mut random, most) };
        let (rows, inner, outputs) = (draw(MOST_ROWS), draw(MOST_SIDE), draw(MOST_SIDE));
        let products = rows * inner * outputs;
        if products <= MOST_PRODUCTS && (!large || products > MOST_PRODUCTS / 4) {
            break (rows as usize, inner as usize, outputs as usize);
        }
    };
    let shape = MatmulShape { rows, inner, outputs, precision };
    let mut options = PlanOptions { cores: 1 + (index / 3 % 3) as usize, ..PlanOptions::default() };
    match random.below(8) {
        0 => options.limits = Limits::vendor(),
        1 => options.limits.data_reuse = true,
        2 => options.board = Board::vendor_compiler(),
        // Bytes alone decide: what is fetched once stays.
        3 => options.board = Board { clock_hz: 1e15, ..Board::vendor_compiler() },
        _ => {}
    }
    (shape, options, random)
}

/// What happened over all cases.
#[derive(Debug, Default)]
struct Seen {
    tasks: usize,
    stacked: usize,
    sliced: usize,
    weight_reuse: usize,
    data_reuse: usize,
    by_rows: usize,
    /// `[precision][cores that have tasks − 1]`.
    cores: [[usize; 3]; Precision::ALL.len()],
    products: u64,
}

impl Seen {
    fn add(&mut self, plan: &MatmulPlan) {
        let (shape, choice) = (plan.shape(), plan.choice());
        let tiling = &choice.tiling;
        self.tasks += plan.task_count();
        self.stacked += usize::from(choice.stacks.iter().any(|stack| stack.slices > 1));
        self.sliced += usize::from(choice.stacks.len() > 1);
        self.weight_reuse += usize::from(tiling.weight_reuse);
        self.data_reuse += usize::from(tiling.data_reuse);
        self.by_rows += usize::from(tiling.axis == Axis::Rows);
        let precision = Precision::ALL.iter().position(|&other| other == shape.precision);
        self.cores[precision.expect("one of all")][plan.cores() - 1] += 1;
        self.products += shape.macs();
    }

    /// Fails unless the run reached every way of cutting, and every number of cores with every precision.
    fn check(&self) {
        let ways = [self.stacked, self.sliced, self.weight_reuse, self.data_reuse, self.by_rows];
        let mut counts = ways.iter().chain(self.cores.as_flattened());
        assert!(counts.all(|&count| count > 0), "not everything was seen: {self:?}");
    }
}

#[test]
fn seeded() {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse().expect("a number"));
    let (first, count) = match number("MATMUL_ONLY") {
        Some(only) => (only, 1),
        None => (number("MATMUL_FIRST").unwrap_or(0), number("MATMUL_SHAPES").unwrap_or(DEFAULT_SHAPES)),
    };
    let started = Instant::now();
    let bench = Bench::new();
    let mut seen = Seen::default();
    for index in first..first + count {
        let (shape, options, random) = case(index);
        if let Err(error) = bench.check(shape, &options, &mut Values::Random(random)) {
            panic!("MATMUL_ONLY={index}: {error}; {options:?}");
        }
        seen.add(&MatmulPlan::new(shape, &options).expect("planned before"));
    }
    println!("{count} shapes from {first} on in {:.1?}: {seen:?}", started.elapsed());
    if count >= DEFAULT_SHAPES {
        seen.check();
    }
}
