//! int8 outputs: the device's converter against the rule as a formula.

use rknpu_driver::layout::{operand, weights};
use rknpu_driver::oracle::{Generator, matmul_int};
use rknpu_driver::plan::{MatmulPlan, OutputStage, PlanOptions, Requantise};
use rknpu_driver::shape::{MatmulShape, Precision};

use crate::bench::Bench;

fn check(bench: &Bench, shape: MatmulShape, requantise: Requantise, cores: usize, seed: u64) {
    let mut random = Generator::new(seed);
    let a = random.int8(shape.rows * shape.inner);
    let w = random.int8(shape.outputs * shape.inner);
    let channels = shape.padded_outputs();
    let addends: Vec<i32> = (0..channels).map(|_| random.below(20_000) as i32 - 10_000).collect();
    let multipliers: Vec<i16> = (0..channels).map(|_| random.below(1 << 14) as i16).collect();
    let output = OutputStage::Requantised(requantise);
    let options = PlanOptions { cores, output, ..PlanOptions::default() };
    let plan = MatmulPlan::new(shape, &options).expect("planned");
    let mut tiles = vec![0; plan.weight_bytes()];
    weights::pack_i8(shape.outputs, shape.inner, &w, &mut tiles);
    let mut input = vec![0; plan.input_bytes()];
    plan.pack_input_i8(&a, shape.inner, &mut input);
    let per_channel = match requantise.per_channel {
        true => operand::pack_per_channel(&addends, &multipliers),
        false => operand::pack_addends(&addends),
    };
    assert_eq!(per_channel.len(), plan.operand_bytes());
    let output = bench.run(&plan, &tiles, &input, &per_channel).expect("run");
    let mut out = vec![0; shape.rows * shape.outputs];
    plan.read_output_i8(&output, &mut out, shape.outputs);
    for (index, (&got, &sum)) in out.iter().zip(&matmul_int(&shape, &a, &w)).enumerate() {
        let n = index % shape.outputs;
        let expected = requantise.apply(sum, addends[n], multipliers[n]);
        assert_eq!(got, expected, "{shape} {requantise:?}: output {index}, sum {sum}");
    }
}

#[test]
fn requantise() {
    let bench = Bench::new();
    let mut random = Generator::new(5);
    for index in 0..60 {
        let mut below = |most: u64| 1 + random.below(most) as usize;
        let shape = MatmulShape {
            rows: below(70),
            inner: below(600),
            outputs: below(200),
            precision: Precision::Int8,
        };
        let requantise = Requantise {
            // A plain power of two every third time: exact ties.
            scale: if index % 3 == 0 { 1 << 14 } else { (1 << 14) + random.below(1 << 14) as u16 },
            shift: 20 + random.below(6) as u8,
            offset: random.below(100) as i32 - 50,
            per_channel: index % 2 == 1,
        };
        check(&bench, shape, requantise, 1 + index % 3, index as u64);
    }
}
