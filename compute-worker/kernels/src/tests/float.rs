use super::{Random, bits, tables};
use crate::{Kernels, RopeTable, math};

/// Ordinary numbers with special ones strewn in when `special`.
fn values(random: &mut Random, count: usize, scale: f32, special: bool) -> Vec<f32> {
    const SPECIAL: [f32; 8] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1e-40, f32::MAX, f32::MIN_POSITIVE];
    let mut values = random.floats(count, scale);
    if special {
        for value in values.iter_mut().filter(|v| v.to_bits() % 5 == 0) {
            *value = SPECIAL[value.to_bits() as usize / 5 % SPECIAL.len()];
        }
    }
    values
}

/// Runs `op` on every table and compares with the scalar one.
fn same_everywhere(what: &str, op: impl Fn(&Kernels) -> Vec<f32>) {
    let tables = tables();
    let expected = bits(&op(tables[0]));
    for kernels in &tables[1..] {
        assert_eq!(bits(&op(kernels)), expected, "{kernels:?} {what}");
    }
}

#[test]
fn every_table_gives_the_scalar_bits() {
    let mut random = Random(11);
    for len in (1..70).chain([127, 128, 129, 896, 4864]) {
        for (scale, special) in [(1.0, false), (30.0, false), (200.0, false), (3.0, true)] {
            let x = values(&mut random, len, scale, special);
            let y = values(&mut random, len, scale, special);
            let what = format!("length {len} scale {scale} special {special}");
            same_everywhere(&what, |k| {
                let mut out = vec![0.0; len];
                k.rms_norm(&x, &y, 1e-6, &mut out);
                let mut silu = vec![0.0; len];
                k.silu_mul(&x, &y, &mut silu);
                let mut sum = x.clone();
                k.add_assign(&mut sum, &y);
                let mut soft = x.clone();
                k.softmax(&mut soft);
                let (max, ln) = k.log_softmax_stats(&x);
                [out, silu, sum, soft, vec![max, ln]].concat()
            });
        }
    }
}

#[test]
fn rotation_is_the_same_everywhere_for_any_head_size() {
    let mut random = Random(12);
    for head_dim in [2, 16, 32, 48, 64, 80, 128] {
        let table = RopeTable::new(head_dim, 5000, 1e4, 1.0, None);
        let heads = random.floats(3 * head_dim, 4.0);
        for position in [0, 1, 4999] {
            let rotate = |k: &Kernels| {
                let mut heads = heads.clone();
                k.rope(&mut heads, head_dim, &table, position);
                heads
            };
            same_everywhere(&format!("head_dim {head_dim}"), rotate);
            let rotated = rotate(Kernels::detect());
            let half = head_dim / 2;
            for head in 0..3 {
                for i in 0..half {
                    let (a, b) = (heads[head * head_dim + i], heads[head * head_dim + half + i]);
                    let angle = position as f64 * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64);
                    let exact = f64::from(a) * angle.cos() - f64::from(b) * angle.sin();
                    assert!((f64::from(rotated[head * head_dim + i]) - exact).abs() < 2e-6, "{head_dim} {i}");
                }
            }
        }
    }
}

#[test]
fn results_are_close_to_exact_arithmetic() {
    let mut random = Random(13);
    let k = Kernels::detect();
    let (x, w) = (random.floats(1000, 8.0), random.floats(1000, 2.0));
    let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();

    let mut out = vec![0.0; 1000];
    k.rms_norm(&x, &w, 1e-5, &mut out);
    let mean = exact.iter().map(|v| v * v).sum::<f64>() / 1000.0;
    for i in 0..1000 {
        let expected = exact[i] / (mean + 1e-5).sqrt() * f64::from(w[i]);
        assert!((f64::from(out[i]) - expected).abs() <= 1e-6 * expected.abs().max(1.0), "rms_norm {i}");
    }
    k.silu_mul(&x, &w, &mut out);
    for i in 0..1000 {
        let expected = exact[i] / (1.0 + (-exact[i]).exp()) * f64::from(w[i]);
        assert!((f64::from(out[i]) - expected).abs() <= 1e-6 * expected.abs().max(1.0), "silu_mul {i}");
    }
    let (max, ln) = k.log_softmax_stats(&x);
    let total: f64 = exact.iter().map(|v| (v - f64::from(max)).exp()).sum();
    assert!((f64::from(ln) - total.ln()).abs() < 1e-6);
    let mut soft = x.clone();
    k.softmax(&mut soft);
    for i in 0..1000 {
        let expected = (exact[i] - f64::from(max)).exp() / total;
        assert!((f64::from(soft[i]) - expected).abs() < 1e-6 * expected.max(1e-3), "softmax {i}");
    }
}

#[test]
fn vector_exp_is_math_exp() {
    // Softmax of [0, x] has e^x as its unnormalised second value; log_softmax_stats shows the sum.
    let mut random = Random(14);
    for _ in 0..2000 {
        let x = random.float(60.0) - 45.0;
        let mut pair = [0.0, x];
        Kernels::detect().softmax(&mut pair);
        let (low, high) = if x > 0.0 { (math::exp(-x), 1.0) } else { (1.0, math::exp(x)) };
        let factor = 1.0 / (low + high);
        assert_eq!(pair.map(f32::to_bits), [low * factor, high * factor].map(f32::to_bits), "{x}");
    }
}
