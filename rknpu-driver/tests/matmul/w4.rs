//! int4 weights with multipliers: nibbles and expansion give the int32 of the int8 product.

use rknpu_driver::layout::weights::{pack_i4, tile_bytes};
use rknpu_driver::oracle::{Generator, expand_w4, matmul_int};
use rknpu_driver::plan::w4::{NibblePlan, expand, expanded_bytes, multipliers_per_row, stages};
use rknpu_driver::plan::{MatmulPlan, PlanOptions, WeightOrder};
use rknpu_driver::shape::{MatmulShape, Precision};

use crate::bench::Bench;

fn check(bench: &Bench, rows: usize, inner: usize, outputs: usize, cores: usize, extreme: bool) {
    let mut random = Generator::new((rows + inner * 3 + outputs * 7) as u64);
    let (mut a, mut values) = (random.int8(rows * inner), random.int4(outputs * inner));
    let count = outputs * multipliers_per_row(inner);
    let mut multipliers: Vec<u8> = (0..count).map(|_| 1 + random.below(15) as u8).collect();
    if extreme {
        (a, values, multipliers) = (vec![-128; a.len()], vec![-8; values.len()], vec![15; count]);
    }
    let shape = MatmulShape { rows, inner, outputs, precision: Precision::Int8 };
    let expected = matmul_int(&shape, &a, &expand_w4(outputs, inner, &values, &multipliers));
    let mut tiles = vec![0; tile_bytes(outputs, inner, Precision::Int4)];
    pack_i4(outputs, inner, &values, &mut tiles);
    let options = PlanOptions { cores, ..PlanOptions::default() };

    let nibbles = NibblePlan::new(rows, inner, outputs, &options).expect("planned");
    let mut input = vec![0; nibbles.plan().input_bytes()];
    nibbles.pack_input(&a, inner, &mut input);
    let output = bench.run(nibbles.plan(), &tiles, &input, &[]).expect("run");
    let mut out = vec![7; rows * outputs];
    nibbles.combine(&output, &multipliers, &mut out, outputs);
    assert!(out == expected, "nibbles of {shape}, {cores} cores");

    let mut out = vec![7; rows * outputs];
    let weights = if cores == 1 { WeightOrder::Stored } else { WeightOrder::Sliced };
    let mut expanded = PlanOptions { weights, ..options };
    expanded.limits.int8_inner = 320;
    for channels in stages(outputs, inner, 1 << 18) {
        let part = MatmulShape { outputs: channels.len(), ..shape };
        let plan = MatmulPlan::new(part, &expanded).expect("planned");
        let mut weights = vec![0; expanded_bytes(channels.clone(), inner)];
        expand(&tiles, &multipliers, inner, channels.clone(), &plan.weight_regions(), &mut weights);
        let mut input = vec![0; plan.input_bytes()];
        plan.pack_input_i8(&a, inner, &mut input);
        let output = bench.run(&plan, &weights, &input, &[]).expect("run");
        plan.read_output_i32(&output, &mut out[channels.start..], outputs);
    }
    assert!(out == expected, "expansion of {shape}, {cores} cores");
}

#[test]
fn w4() {
    let bench = Bench::new();
    let shapes = [
        (1, 128, 64),
        (1, 896, 128),
        (3, 127, 65),
        (2, 129, 63),
        (5, 1000, 200),
        (17, 4864, 96),
        (40, 384, 500),
    ];
    for (index, (rows, inner, outputs)) in shapes.into_iter().enumerate() {
        check(&bench, rows, inner, outputs, 1 + index % 3, false);
    }
    check(&bench, 2, 896, 70, 2, true);
    let mut random = Generator::new(4);
    for _ in 0..20 {
        let mut below = |most: u64| 1 + random.below(most) as usize;
        check(&bench, below(24), below(1500), below(300), below(3), false);
    }
}
