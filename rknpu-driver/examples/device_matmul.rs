//! Opens an NPU and multiplies: in every address space at once, checked against scalar products.
//!
//! ```text
//! cargo run --release -p rknpu-driver --example device_matmul -- [auto|vendor|rocket] [ROWS INNER OUTPUTS]
//! ```
//!
//! Exits with 1 where a result is wrong or the device fails. Under `LD_PRELOAD=librknpu_sim.so` the device is a simulated one.

#![expect(clippy::print_stdout, reason = "what a program found goes to its standard output")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use rknpu_driver::buffer::BufferKind;
use rknpu_driver::device::{Device, Domain, InterfaceChoice, OpenOptions};
use rknpu_driver::layout::weights::pack_i8;
use rknpu_driver::oracle::{Generator, matmul_int};
use rknpu_driver::plan::{BoundMatmul, MatmulPlan, Operands, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};

/// Time for one product on the device.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Address spaces tried: the vendor's driver has sixteen, and switching between two shows what there is to see.
const DOMAINS: usize = 3;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("device_matmul: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let (interface, rest) = match arguments.split_first() {
        Some((name, rest)) => (interface(name)?, rest),
        None => (InterfaceChoice::Auto, arguments),
    };
    let sizes: Vec<usize> = rest.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
    let (rows, inner, outputs) = match sizes[..] {
        [] => (7, 320, 200),
        [rows, inner, outputs] => (rows, inner, outputs),
        _ => return Err("give no sizes, or rows, inner size and outputs".into()),
    };
    let shape = MatmulShape::new(rows, inner, outputs, Precision::Int8)?;
    let device = Device::open(&OpenOptions { interface, node: None })?;
    let info = device.info();
    let node = info.node.as_deref().map_or("none".into(), |node| node.display().to_string());
    let simulated = if info.simulated { ", simulated" } else { "" };
    let driver = &info.driver;
    let version = format!("{} {}.{}.{}", driver.name, driver.major, driver.minor, driver.patch);
    println!("{version}, node {node}, {} cores{simulated}", info.cores);
    let products: Vec<_> = device.domains().iter().take(DOMAINS).collect();
    let products: Vec<_> = products
        .into_iter()
        .enumerate()
        .map(|(seed, domain)| Product::new(&device, domain, shape, seed as u64))
        .collect::<Result<_, _>>()?;
    let jobs: Vec<_> = products.iter().map(|product| product.bound.job()).collect();
    let reports = device.run(&jobs)?;
    for (product, report) in products.iter().zip(reports) {
        product.check()?;
        println!("{shape} right, {} tasks, {:?}", report.tasks_done, report.elapsed);
    }
    Ok(())
}

fn interface(name: &str) -> Result<InterfaceChoice, String> {
    match name {
        "auto" => Ok(InterfaceChoice::Auto),
        "vendor" => Ok(InterfaceChoice::Vendor),
        "rocket" => Ok(InterfaceChoice::Rocket),
        other => Err(format!("`{other}` is none of auto, vendor and rocket")),
    }
}

/// A product in the buffers of one address space, and what it must give.
struct Product {
    plan: MatmulPlan,
    bound: BoundMatmul,
    operands: Operands,
    want: Vec<i32>,
}

impl Product {
    fn new(device: &Device, domain: &Domain, shape: MatmulShape, seed: u64) -> Result<Self, Box<dyn Error>> {
        let cores = domain.cores.count() as usize;
        let plan = MatmulPlan::new(shape, &PlanOptions { cores, ..PlanOptions::default() })?;
        let mut generator = Generator::new(seed);
        let a = generator.int8(shape.rows * shape.inner);
        let w = generator.int8(shape.outputs * shape.inner);
        let buffer = |bytes| device.allocate(domain.id, bytes, BufferKind::Data);
        let (weights, input) = (buffer(plan.weight_bytes())?, buffer(plan.input_bytes())?);
        let output = buffer(plan.output_bytes())?;
        let mut guard = weights.write(..)?;
        pack_i8(shape.outputs, shape.inner, &w, &mut guard[..plan.weight_bytes()]);
        guard.finish()?;
        let mut guard = input.write(..)?;
        plan.pack_input_i8(&a, shape.inner, &mut guard[..plan.input_bytes()]);
        guard.finish()?;
        let operands = Operands {
            weights: (weights.seal()?.into(), 0),
            input: (input, 0),
            output: (output, 0),
            per_channel: None,
        };
        let bound = plan.bind(device, &operands, TIMEOUT)?;
        Ok(Self { bound, operands, want: matmul_int(&shape, &a, &w), plan })
    }

    fn check(&self) -> Result<(), Box<dyn Error>> {
        let shape = self.plan.shape();
        let mut got = vec![0; self.want.len()];
        self.plan.read_output_i32(&self.operands.output.0.read(..)?, &mut got, shape.outputs);
        match got.iter().zip(&self.want).position(|(got, want)| got != want) {
            None => Ok(()),
            Some(at) => {
                let (row, column) = (at / shape.outputs, at % shape.outputs);
                Err(format!("element ({row}, {column}) is {}, must be {}", got[at], self.want[at]).into())
            }
        }
    }
}
