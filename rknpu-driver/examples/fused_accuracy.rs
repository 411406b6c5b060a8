//! How close the fused operations come to f64, on the simulated NPU, and how long they would take there.
//!
//! ```text
//! cargo run --release -p rknpu-driver --features sim --example fused_accuracy
//! ```
//!
//! Inputs are seeded. A relative error counts where the reference is an fp16 normal number; an ulp is the distance of
//! two fp16 numbers at the reference. Times are the simulator's: tasks and bytes by the timing model, without the
//! host's conversions.

use std::io::{self, Write};

use half::f16;
use rknpu_driver::device::{Device, DomainId, Interface};
use rknpu_driver::fused::{AffineKernel, Binary, Function, FusedError, FusedOps};
use rknpu_driver::job::JobReport;
use rknpu_driver::sim::kernel::{self, SimConfig};

const DOMAIN: DomainId = DomainId(0);
const EPSILON: f32 = 1e-6;

/// One line of the table.
struct Measured {
    name: &'static str,
    shape: (usize, usize),
    inputs: &'static str,
    found: Vec<f32>,
    wanted: Vec<f64>,
    report: JobReport,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = kernel::device(SimConfig::new(Interface::Vendor))?;
    let ops = FusedOps::new(device.clone(), DOMAIN);
    let mut lines = vec![exponential(&ops)?, sigmoid(&ops)?, silu(&ops)?, inverse_root(&ops)?];
    lines.extend([sum(&ops)?, product(&ops)?, affine(&device)?]);
    for shape in [(1, 128), (16, 512), (64, 2048), (16, 4096)] {
        lines.push(softmax(&ops, shape)?);
    }
    for shape in [(1, 896), (16, 2048), (64, 4096)] {
        lines.push(rms_norm(&ops, shape)?);
    }
    for shape in [(1, 4864), (16, 4864), (64, 5632)] {
        lines.push(silu_mul(&ops, shape)?);
    }
    print(&lines)?;
    Ok(())
}

fn print(lines: &[Measured]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<14} {:>10}  {:<18} {:>9} {:>9} {:>7} {:>9} {:>6} {:>9}",
        "function", "shape", "inputs", "max rel", "mean rel", "ulp", "max abs", "tasks", "simulated"
    )?;
    for line in lines {
        let (rows, columns) = line.shape;
        let errors = Errors::of(&line.found, &line.wanted);
        writeln!(
            out,
            "{:<14} {:>10}  {:<18} {:>9.1e} {:>9.1e} {:>7.2} {:>9.1e} {:>6} {:>6} us",
            line.name,
            format!("{rows}x{columns}"),
            line.inputs,
            errors.max_relative,
            errors.mean_relative,
            errors.max_ulp,
            errors.max_absolute,
            line.report.tasks_done,
            line.report.elapsed.as_micros(),
        )?;
    }
    Ok(())
}

#[derive(Default)]
struct Errors {
    max_relative: f64,
    mean_relative: f64,
    max_ulp: f64,
    max_absolute: f64,
}

impl Errors {
    fn of(found: &[f32], wanted: &[f64]) -> Errors {
        let (mut errors, mut counted) = (Errors::default(), 0usize);
        for (&found, &wanted) in found.iter().zip(wanted) {
            let error = (f64::from(found) - wanted).abs();
            errors.max_absolute = errors.max_absolute.max(error);
            if wanted.abs() >= f16::MIN_POSITIVE.to_f64() {
                let relative = error / wanted.abs();
                let ulp = (wanted.abs().log2().floor() - 10.0).exp2();
                errors.max_relative = errors.max_relative.max(relative);
                errors.max_ulp = errors.max_ulp.max(error / ulp);
                errors.mean_relative += relative;
                counted += 1;
            }
        }
        errors.mean_relative /= counted.max(1) as f64;
        errors
    }
}

/// Numbers in −1..1 (splitmix64).
fn uniform(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// [`normal`] numbers that fp16 holds exactly, so that an operation's own error shows.
fn halves(seed: u64, count: usize) -> Vec<f32> {
    normal(seed, count, 1.0).into_iter().map(|x| f16::from_f32(x).to_f32()).collect()
}

/// Numbers of variance `scale`², nearly normal: the sum of twelve uniform ones.
fn normal(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let parts = uniform(seed, count * 12);
    parts.chunks(12).map(|parts| parts.iter().sum::<f32>() / 2.0 * scale).collect()
}

fn function(
    ops: &FusedOps,
    (name, inputs, function): (&'static str, &'static str, Function),
    x: &[f32],
    reference: impl Fn(f64) -> f64,
) -> Result<Measured, FusedError> {
    let shape = (x.len() / 1024, 1024);
    let mut found = vec![0.0; x.len()];
    let report = ops.function(function, x, shape.1, &mut found)?;
    let wanted = x.iter().map(|&x| reference(f64::from(x))).collect();
    Ok(Measured { name, shape, inputs, found, wanted, report })
}

fn exponential(ops: &FusedOps) -> Result<Measured, FusedError> {
    let x: Vec<_> = uniform(1, 65536).iter().map(|x| (x - 1.0) * 5.0).collect();
    function(ops, ("exp", "-10 to 0", Function::Exponential), &x, f64::exp)
}

fn sigmoid(ops: &FusedOps) -> Result<Measured, FusedError> {
    let x: Vec<_> = uniform(2, 65536).iter().map(|x| x * 8.0).collect();
    function(ops, ("sigmoid", "-8 to 8", Function::Sigmoid), &x, |x| 1.0 / (1.0 + (-x).exp()))
}

fn silu(ops: &FusedOps) -> Result<Measured, FusedError> {
    let x: Vec<_> = uniform(3, 65536).iter().map(|x| x * 8.0).collect();
    function(ops, ("silu", "-8 to 8", Function::Silu), &x, |x| x / (1.0 + (-x).exp()))
}

fn inverse_root(ops: &FusedOps) -> Result<Measured, FusedError> {
    let x: Vec<_> = uniform(4, 65536).iter().map(|x| 2f32.powf(x * 7.4 - 3.5)).collect();
    function(ops, ("rsqrt", "2^-10.9 to 2^3.9", Function::InverseSquareRoot), &x, |x| x.sqrt().recip())
}

fn binary(ops: &FusedOps, operation: Binary) -> Result<Measured, FusedError> {
    let (a, b) = (halves(5, 65536), halves(6, 65536));
    let mut found = vec![0.0; a.len()];
    let report = ops.binary(operation, &a, &b, 1024, &mut found)?;
    let pairs = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let (name, wanted) = match operation {
        Binary::Add => ("add", pairs.map(|(a, b)| a + b).collect()),
        Binary::Multiply => ("mul", pairs.map(|(a, b)| a * b).collect()),
    };
    Ok(Measured { name, shape: (64, 1024), inputs: "normal, in fp16", found, wanted, report })
}

fn sum(ops: &FusedOps) -> Result<Measured, FusedError> {
    binary(ops, Binary::Add)
}

fn product(ops: &FusedOps) -> Result<Measured, FusedError> {
    binary(ops, Binary::Multiply)
}

fn affine(device: &Device) -> Result<Measured, FusedError> {
    let (x, bias, scale) = (halves(7, 65536), normal(8, 1024, 1.0), halves(9, 1024));
    let mut found = vec![0.0; x.len()];
    let report = AffineKernel::new(device, DOMAIN, &bias, &scale, 64)?.run(&x, &mut found)?;
    let reference = |(index, &x): (usize, &f32)| {
        (f64::from(x) + f64::from(bias[index % 1024])) * f64::from(scale[index % 1024])
    };
    let wanted = x.iter().enumerate().map(reference).collect();
    Ok(Measured {
        name: "(x+bias)*scale",
        shape: (64, 1024),
        inputs: "normal, in fp16",
        found,
        wanted,
        report,
    })
}

fn softmax(ops: &FusedOps, shape: (usize, usize)) -> Result<Measured, FusedError> {
    let x = normal(10, shape.0 * shape.1, 3.0);
    let mut found = vec![0.0; x.len()];
    let report = ops.softmax(&x, shape.1, &mut found)?;
    let wanted = x.chunks(shape.1).flat_map(|row| {
        let powers: Vec<_> = row.iter().map(|&x| f64::from(x).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(move |power| power / sum)
    });
    Ok(Measured { name: "softmax", shape, inputs: "normal, sd 3", wanted: wanted.collect(), found, report })
}

fn rms_norm(ops: &FusedOps, shape: (usize, usize)) -> Result<Measured, FusedError> {
    let (x, gain) = (normal(11, shape.0 * shape.1, 2.0), normal(12, shape.1, 1.0));
    let mut found = vec![0.0; x.len()];
    let report = ops.rms_norm(&x, &gain, EPSILON, &mut found)?;
    let wanted = x.chunks(shape.1).flat_map(|row| {
        let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = (mean + f64::from(EPSILON)).sqrt().recip();
        row.iter().zip(&gain).map(move |(&x, &gain)| f64::from(x) * f64::from(gain) * scale)
    });
    Ok(Measured { name: "rms_norm", shape, inputs: "normal, sd 2", wanted: wanted.collect(), found, report })
}

fn silu_mul(ops: &FusedOps, shape: (usize, usize)) -> Result<Measured, FusedError> {
    let (gate, up) = (normal(13, shape.0 * shape.1, 2.0), normal(14, shape.0 * shape.1, 2.0));
    let mut found = vec![0.0; gate.len()];
    let report = ops.silu_mul(&gate, &up, shape.1, &mut found)?;
    let product = |(&gate, &up): (&f32, &f32)| {
        let gate = f64::from(gate);
        gate / (1.0 + (-gate).exp()) * f64::from(up)
    };
    let wanted = gate.iter().zip(&up).map(product).collect();
    Ok(Measured { name: "silu(gate)*up", shape, inputs: "normal, sd 2", found, wanted, report })
}
