//! Every operation on the simulated device, against f64.

use proptest::prelude::*;

use super::*;
use crate::device::{Device, DomainId, Interface};
use crate::sim::kernel::{self, SimConfig};

fn device(interface: Interface) -> Device {
    kernel::device(SimConfig::new(interface)).unwrap()
}

const DOMAIN: DomainId = DomainId(0);

/// Seeded numbers in −1..1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Fails unless every result is within `relative` of its reference, or within `absolute` of it.
fn close(name: &str, found: &[f32], wanted: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), wanted.len());
    for (index, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (f64::from(found) - wanted).abs();
        assert!(
            error <= (relative * wanted.abs()).max(absolute),
            "{name}[{index}]: {found}, not {wanted}: off by {error:.3e}"
        );
    }
}

fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<_> = x.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn rms_norm(x: &[f32], gain: &[f32], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = (mean + epsilon).sqrt().recip();
    x.iter().zip(gain).map(|(&x, &gain)| f64::from(x) * f64::from(gain) * scale).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// 3,584 columns need three slices of sums.
const SHAPES: [(usize, usize); 5] = [(1, 8), (3, 100), (40, 896), (2, 3584), (65, 24)];

#[test]
fn softmax_is_within_a_few_units_of_fp16() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    for (rows, columns) in SHAPES {
        let mut x: Vec<_> = numbers(1, rows * columns).iter().map(|x| x * 9.0).collect();
        // A masked half, as attention has it.
        x[columns / 2..columns].fill(f32::NEG_INFINITY);
        let mut out = vec![0.0; x.len()];
        ops.softmax(&x, columns, &mut out).unwrap();
        let wanted: Vec<_> = x.chunks(columns).flat_map(softmax).collect();
        close("softmax", &out, &wanted, 6e-3, 2e-7);
        for row in out.chunks(columns) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 2e-3, "{columns} columns sum to {sum}");
        }
        assert!(out[columns / 2..columns].iter().all(|&masked| masked == 0.0));
    }
}

#[test]
fn rms_norm_is_within_a_few_units_of_fp16_at_any_scale() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    for (rows, columns) in SHAPES {
        for scale in [1e-3, 1.0, 3e5] {
            let x: Vec<_> = numbers(2, rows * columns).iter().map(|x| x * scale).collect();
            let gain: Vec<_> = numbers(3, columns).iter().map(|x| x * 2.0).collect();
            let mut out = vec![0.0; x.len()];
            ops.rms_norm(&x, &gain, 1e-6, &mut out).unwrap();
            let wanted: Vec<_> = x.chunks(columns).flat_map(|row| rms_norm(row, &gain, 1e-6)).collect();
            close("rms_norm", &out, &wanted, 3e-3, 2e-4);
        }
    }
}

#[test]
fn a_row_with_one_large_element_is_normed() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    let mut x = numbers(4, 2 * 896);
    x[5] = -6000.0;
    x[896..].fill(0.0);
    let gain = vec![1.0; 896];
    let mut out = vec![f32::NAN; x.len()];
    ops.rms_norm(&x, &gain, 1e-5, &mut out).unwrap();
    let wanted: Vec<_> = x.chunks(896).flat_map(|row| rms_norm(row, &gain, 1e-5)).collect();
    close("rms_norm", &out, &wanted, 3e-3, 1e-5);
}

#[test]
fn silu_mul_is_close_for_large_and_small_factors() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    for (rows, columns) in SHAPES {
        for scale in [1.0f32, 1e-4, 1e5] {
            let gate: Vec<_> = numbers(5, rows * columns).iter().map(|x| x * 8.0).collect();
            let up: Vec<_> = numbers(6, rows * columns).iter().map(|x| x * scale).collect();
            let mut out = vec![0.0; gate.len()];
            ops.silu_mul(&gate, &up, columns, &mut out).unwrap();
            let product = |(&gate, &up): (&f32, &f32)| silu(f64::from(gate)) * f64::from(up);
            let wanted: Vec<_> = gate.iter().zip(&up).map(product).collect();
            close("silu_mul", &out, &wanted, 2e-3, 3e-4 * f64::from(scale));
        }
    }
}

/// A function over numbers, f64's version of it, and how close it has to be: relative or absolute.
struct Case {
    function: Function,
    x: Vec<f32>,
    reference: fn(f64) -> f64,
    relative: f64,
    absolute: f64,
}

#[test]
fn table_functions_are_close() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    let unit = numbers(7, 4000);
    let over = |x: fn(f32) -> f32| unit.iter().map(|&unit| x(unit)).collect::<Vec<_>>();
    let cases = [
        Case {
            function: Function::Exponential,
            x: over(|unit| (unit - 1.0) * 10.0),
            reference: f64::exp,
            relative: 7.5e-3,
            absolute: 3e-7,
        },
        Case {
            function: Function::Sigmoid,
            x: over(|unit| unit * 12.0),
            reference: |x| 1.0 / (1.0 + (-x).exp()),
            relative: 2.5e-3,
            absolute: 4e-5,
        },
        Case {
            function: Function::Silu,
            x: over(|unit| unit * 12.0),
            reference: silu,
            relative: 2.5e-3,
            absolute: 3e-4,
        },
        Case {
            function: Function::InverseSquareRoot,
            x: over(|unit| 2f32.powf(unit * 7.4 - 3.5)),
            reference: |x| x.sqrt().recip(),
            relative: 1.5e-3,
            absolute: 0.0,
        },
    ];
    for Case { function, x, reference, relative, absolute } in cases {
        let mut out = vec![0.0; x.len()];
        ops.function(function, &x, 50, &mut out).unwrap();
        let wanted: Vec<_> = x.iter().map(|&x| reference(f64::from(x))).collect();
        close(&format!("{function:?}"), &out, &wanted, relative, absolute);
    }
}

#[test]
fn element_wise_operations_are_fp16s_own() {
    let device = device(Interface::Vendor);
    let ops = FusedOps::new(device.clone(), DOMAIN);
    let round = |x: f32| half::f16::from_f32(x).to_f32();
    let a: Vec<_> = numbers(8, 700).iter().map(|&x| round(x * 30.0)).collect();
    let b: Vec<_> = numbers(9, 700).iter().map(|&x| round(x * 0.1)).collect();
    let mut out = vec![0.0; 700];
    ops.binary(Binary::Add, &a, &b, 35, &mut out).unwrap();
    assert!(out.iter().zip(a.iter().zip(&b)).all(|(out, (a, b))| *out == round(a + b)));
    ops.binary(Binary::Multiply, &a, &b, 35, &mut out).unwrap();
    assert!(out.iter().zip(a.iter().zip(&b)).all(|(out, (a, b))| *out == round(a * b)));

    let mut affine = AffineKernel::new(&device, DOMAIN, &b[..35], &a[..35], 20).unwrap();
    affine.run(&a, &mut out).unwrap();
    for (index, out) in out.iter().enumerate() {
        let wanted = round((a[index] + b[index % 35]) * a[index % 35]);
        assert_eq!(*out, wanted, "element {index}");
    }
}

/// The mainline kernel starts tasks one by one on one core an address space; the numbers are the same.
#[test]
fn both_kernels_give_the_same_bits() {
    let (rows, columns) = (33, 200);
    let x: Vec<_> = numbers(10, rows * columns).iter().map(|x| x * 5.0).collect();
    let outs = [Interface::Vendor, Interface::Rocket].map(|interface| {
        let ops = FusedOps::new(device(interface), DOMAIN);
        let mut out = vec![0.0; 3 * x.len()];
        let (softmax, rest) = out.split_at_mut(x.len());
        let (norm, product) = rest.split_at_mut(x.len());
        ops.softmax(&x, columns, softmax).unwrap();
        ops.rms_norm(&x, &x[..columns], 1e-6, norm).unwrap();
        ops.silu_mul(&x, &x, columns, product).unwrap();
        out
    });
    assert_eq!(outs[0], outs[1]);
}

/// A row's result does not depend on the rows beside it, nor on how many there are.
#[test]
fn rows_are_independent() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    let (rows, columns) = (70, 48);
    let x = numbers(11, rows * columns);
    let mut all = vec![0.0; x.len()];
    ops.rms_norm(&x, &x[..columns], 1e-6, &mut all).unwrap();
    for row in [0, 1, 37, 69] {
        let mut alone = vec![0.0; columns];
        ops.rms_norm(&x[row * columns..][..columns], &x[..columns], 1e-6, &mut alone).unwrap();
        assert_eq!(alone, all[row * columns..][..columns], "row {row}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
    let mut out = [0.0; 16];
    let refused = |result: Result<_, FusedError>, wanted: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(ops.softmax(&[0.0; 15], 8, &mut out), "x has 15 elements, 16 wanted");
    refused(ops.softmax(&[0.0; 8], 8, &mut out), "out has 16 elements, 8 wanted");
    refused(ops.softmax(&[f32::NEG_INFINITY; 16], 16, &mut out), "row 0, column 0 is -inf");
    let mut x = [1.0; 16];
    x[11] = f32::NAN;
    refused(ops.softmax(&x, 8, &mut out), "row 1, column 3 is NaN");
    refused(ops.rms_norm(&x, &[1.0; 8], 1e-5, &mut out), "row 1, column 3 is NaN");
    refused(ops.rms_norm(&[1.0; 16], &[1e6; 8], 1e-5, &mut out), "gain of row 0, column 0 is 1000000");
    refused(ops.rms_norm(&[1.0; 16], &[1.0; 8], -1.0, &mut out), "epsilon");
    refused(ops.silu_mul(&[1e5; 16], &[1.0; 16], 8, &mut out), "gate of row 0, column 0");
    refused(ops.binary(Binary::Multiply, &[1e4; 16], &[1e4; 16], 8, &mut out), "the result of row 0");
    refused(ops.function(Function::Exponential, &[0.5; 16], 8, &mut out), "-infinity to 0");
    refused(ops.softmax(&[0.0; 16], 0, &mut out), "1 to");
    refused(ops.rms_norm(&[0.0; 9000], &[1.0; 9000], 0.0, &mut [0.0; 9000]), "9000 columns");
    assert!(ops.softmax(&[], 8, &mut []).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_shape_is_close(rows in 1..40usize, columns in 1..300usize, seed: u64, spread in 0.1..20f32) {
        let ops = FusedOps::new(device(Interface::Vendor), DOMAIN);
        let x: Vec<_> = numbers(seed, rows * columns).iter().map(|x| x * spread).collect();
        let mut out = vec![0.0; x.len()];
        ops.softmax(&x, columns, &mut out).unwrap();
        close("softmax", &out, &x.chunks(columns).flat_map(softmax).collect::<Vec<_>>(), 8e-3, 3e-7);
        let gain = vec![1.0; columns];
        ops.rms_norm(&x, &gain, 1e-5, &mut out).unwrap();
        let wanted: Vec<_> = x.chunks(columns).flat_map(|row| rms_norm(row, &gain, 1e-5)).collect();
        close("rms_norm", &out, &wanted, 3e-3, 1e-4);
    }
}
