//! `rookery npu selftest`: is what the NPU computes right.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use rknpu_driver::device::Device;
use rknpu_driver::oracle::Generator;
use rknpu_driver::plan::{Limits, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use serde::Serialize;

use super::check::check;
use super::counter::Counter;
use super::device::{DeviceArgs, board, describe, recover};
use super::dimensions::{Dimensions, parse_precision};
use super::product::{Outputs, Product, ProductError, Values};
use crate::error::Failure;
use crate::output::{self, Table};

/// Computes random matrix products on the NPU and compares them with scalar arithmetic.
#[derive(Args, Debug)]
#[command(
    after_help = "Integer products must be exact; fp16 sums may differ by the rounding of fp32 additions. Product number i depends on
--seed + i only, and a failure prints the line that repeats it.

Examples:
  rookery npu selftest
  rookery npu selftest --device sim --count 2000
  rookery npu selftest --precision int8 --cores 1 --shape 33x512x64"
)]
pub(super) struct SelftestArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Number of products.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Seed of the first product.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this precision: int8, int4 or fp16. Default: all in turn.
    #[arg(long, value_name = "NAME", value_parser = parse_precision)]
    precision: Option<Precision>,
    /// Only this number of cores. Default: each in turn.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3))]
    cores: Option<u8>,
    /// Only this shape, as MxKxN. Default: random ones.
    #[arg(long, value_name = "MxKxN")]
    shape: Option<Dimensions>,
    /// Keep within what the vendor's compiler does: shorter kernels.
    #[arg(long)]
    vendor_limits: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Most multiply-adds of a random product: enough for many tasks, little enough for scalar arithmetic.
const MOST_MACS: u64 = 1 << 23;

/// Sizes at which something changes: groups, atoms, tasks.
const CORNERS: [usize; 16] = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 128, 896, 1000, 4864];

/// One product to try.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    shape: MatmulShape,
    cores: u8,
}

#[derive(Serialize)]
struct Report {
    device: String,
    simulated: bool,
    seed: u64,
    seconds: f64,
    groups: Vec<Group>,
    failures: Vec<Failed>,
}

#[derive(Serialize)]
struct Group {
    precision: &'static str,
    cores: u8,
    products: u64,
    multiply_adds: u64,
    wrong: u64,
}

#[derive(Serialize)]
struct Failed {
    product: String,
    reason: String,
    replay: String,
}

/// Runs the command.
///
/// # Errors
/// If there is no device, or a product is wrong.
pub(super) fn run(args: &SelftestArgs) -> Result<(), Failure> {
    let device = args.device.open()?;
    let there = device.info().cores;
    if let Some(asked) = args.cores.filter(|asked| *asked > there) {
        return Err(Failure::usage(format!("the device has {there} cores, {asked} were asked for")));
    }
    let report = try_all(args, &device)?;
    if args.json {
        output::json(&report)?
    } else {
        show(&report)?
    }
    verdict(&report)
}

/// Tries all products, or those up to the first that fails.
fn try_all(args: &SelftestArgs, device: &Device) -> Result<Report, Failure> {
    let began = Instant::now();
    let mut groups: BTreeMap<(Precision, u8), Group> = BTreeMap::new();
    let mut failures = Vec::new();
    let progress = Counter::new(args.count, "products");
    for number in 0..args.count {
        let case = case(args, device.info().cores, args.seed.wrapping_add(number))?;
        let failed = try_case(args, device, case).err();
        let group = groups.entry((case.shape.precision, case.cores)).or_insert(Group {
            precision: case.shape.precision.name(),
            cores: case.cores,
            products: 0,
            multiply_adds: 0,
            wrong: 0,
        });
        group.products += 1;
        group.multiply_adds += case.shape.macs();
        progress.advance();
        if let Some(reason) = failed {
            group.wrong += 1;
            failures.push(Failed { product: name(case), reason, replay: replay(args, case) });
            if !args.keep_going {
                break;
            }
        }
    }
    progress.finish();
    Ok(Report {
        device: describe(device),
        simulated: device.info().simulated,
        seed: args.seed,
        seconds: began.elapsed().as_secs_f64(),
        groups: groups.into_values().collect(),
        failures,
    })
}

fn verdict(report: &Report) -> Result<(), Failure> {
    let products: u64 = report.groups.iter().map(|group| group.products).sum();
    match report.failures.len() {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{wrong} of {products} products failed"))
            .hint("docs/npu.md, \"What to report\", says what a failure tells about the chip")),
    }
}

fn case(args: &SelftestArgs, cores_there: u8, seed: u64) -> Result<Case, Failure> {
    // A stream of its own, so that shapes and values are independent.
    let mut generator = Generator::new(!seed);
    let precision = args.precision.unwrap_or_else(|| Precision::ALL[generator.below(3) as usize]);
    let cores = args.cores.unwrap_or_else(|| 1 + generator.below(u64::from(cores_there)) as u8);
    let dimensions = args.shape.unwrap_or_else(|| dimensions(&mut generator));
    let shape = dimensions
        .shape(precision)
        .map_err(|error| Failure::usage(format!("{dimensions} cannot be computed")).caused_by(error))?;
    Ok(Case { seed, shape, cores })
}

/// Small and large sizes alike, corners often, never more than [`MOST_MACS`].
fn dimensions(generator: &mut Generator) -> Dimensions {
    let mut size = |most_bits: u64| {
        if generator.below(3) == 0 {
            return CORNERS[generator.below(CORNERS.len() as u64) as usize].min(1 << most_bits);
        }
        let bits = generator.below(most_bits + 1);
        ((1 << bits) + generator.below(1 << bits)) as usize
    };
    let mut sizes = [size(9), size(13), size(13)];
    while sizes.iter().map(|size| *size as u64).product::<u64>() > MOST_MACS {
        let largest = sizes.iter_mut().max();
        if let Some(largest) = largest {
            *largest /= 2;
        }
    }
    Dimensions { rows: sizes[0], inner: sizes[1], outputs: sizes[2] }
}

/// The reason why a product failed, as text.
fn try_case(args: &SelftestArgs, device: &Device, case: Case) -> Result<(), String> {
    let values = Values::random(&case.shape, case.seed);
    let options = PlanOptions {
        cores: usize::from(case.cores),
        board: board(device),
        limits: if args.vendor_limits { Limits::vendor() } else { Limits::default() },
        ..PlanOptions::default()
    };
    let outputs = compute(device, case, &values, &options).map_err(|error| {
        let mut reason = chain(&error);
        if let Some(recovery) = recover(device) {
            reason.push_str(&format!("; {recovery}"));
        }
        reason
    })?;
    match check(&case.shape, &values, &outputs) {
        None => Ok(()),
        Some(wrong) => Err(format!(
            "row {}, column {} is {}, expected {} ({} of {} elements are wrong)",
            wrong.row,
            wrong.column,
            wrong.got,
            wrong.expected,
            wrong.count,
            case.shape.rows * case.shape.outputs
        )),
    }
}

fn compute(
    device: &Device,
    case: Case,
    values: &Values,
    options: &PlanOptions,
) -> Result<Outputs, ProductError> {
    let product = Product::new(device, case.shape, values, options)?;
    product.run(device)?;
    product.read()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn name(case: Case) -> String {
    let Case { shape, cores, .. } = case;
    format!("{shape}, {cores} core{}", if cores == 1 { "" } else { "s" })
}

fn replay(args: &SelftestArgs, case: Case) -> String {
    let MatmulShape { rows, inner, outputs, precision } = case.shape;
    format!(
        "rookery npu selftest {} --precision {} --shape {} --cores {} --seed {} --count 1{}",
        args.device.command_line(),
        precision.name(),
        Dimensions { rows, inner, outputs },
        case.cores,
        case.seed,
        if args.vendor_limits { " --vendor-limits" } else { "" }
    )
}

fn show(report: &Report) -> Result<(), Failure> {
    output::line(&report.device)?;
    let mut table = Table::new(&["PRECISION", ">CORES", ">PRODUCTS", ">MULTIPLY-ADDS", ">WRONG"]);
    for group in &report.groups {
        table.row([
            group.precision.to_owned(),
            group.cores.to_string(),
            group.products.to_string(),
            output::grouped(group.multiply_adds),
            group.wrong.to_string(),
        ]);
    }
    output::write(&table.render())?;
    for failed in &report.failures {
        output::line(format!("{}: {}\n  replay: {}", failed.product, failed.reason, failed.replay))?;
    }
    let products: u64 = report.groups.iter().map(|group| group.products).sum();
    if report.failures.is_empty() {
        let right =
            if products == 1 { "the product is".to_owned() } else { format!("all {products} products are") };
        output::line(format!("{right} right (seed {}, {:.1} s)", report.seed, report.seconds))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rknpu_driver::device::Interface;
    use rknpu_driver::sim::faults::{Fault, FaultPlan, Trigger};
    use rknpu_driver::sim::kernel::{self, SimConfig};

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: SelftestArgs,
    }

    fn report(interface: Interface, faults: FaultPlan, flags: &str) -> Report {
        let config = SimConfig { faults: Some(faults), report: None, ..SimConfig::new(interface) };
        let device = kernel::device(config).unwrap();
        let args = CommandLine::parse_from(format!("x --device sim {flags}").split_whitespace()).args;
        try_all(&args, &device).unwrap()
    }

    #[test]
    fn a_flipped_bit_is_found_and_can_be_replayed() {
        let always = FaultPlan::new(1).with(Fault::BitFlip, Trigger::Probability(1.0));
        let found = report(Interface::Vendor, always, "--count 9 --seed 4");
        assert_eq!(found.failures.len(), 1, "stops at the first");
        let failed = &found.failures[0];
        assert!(failed.reason.contains("row ") && failed.reason.contains("expected"), "{}", failed.reason);
        assert!(failed.replay.contains("--seed 4 --count 1"), "{}", failed.replay);
        assert_eq!(verdict(&found).unwrap_err().exit().code(), 1);
        // The line that is printed makes the same product.
        let flags = failed.replay.trim_start_matches("rookery npu selftest --device sim");
        let again = report(Interface::Vendor, FaultPlan::new(1), flags);
        assert_eq!((again.groups.len(), again.failures.len()), (1, 0));
        assert_eq!(again.groups[0].multiply_adds, found.groups[0].multiply_adds);
    }

    #[test]
    fn a_device_that_hangs_is_reset_and_goes_on() {
        let second = FaultPlan::new(1).with(Fault::TimeOut, Trigger::At(2));
        for interface in [Interface::Vendor, Interface::Rocket] {
            let found = report(interface, second.clone(), "--count 6 --cores 1 --keep-going");
            assert_eq!(found.failures.len(), 1, "{interface:?}");
            assert!(found.failures[0].reason.contains("did not compute"), "{}", found.failures[0].reason);
            let products: u64 = found.groups.iter().map(|group| group.products).sum();
            assert_eq!(products, 6);
        }
    }

    #[test]
    fn random_shapes_are_within_bounds_and_reach_corners() {
        let mut generator = Generator::new(3);
        let all: Vec<Dimensions> = (0..2000).map(|_| dimensions(&mut generator)).collect();
        for shape in &all {
            let macs = shape.rows as u64 * shape.inner as u64 * shape.outputs as u64;
            assert!(macs > 0 && macs <= MOST_MACS, "{shape}");
        }
        assert!(all.iter().any(|shape| shape.rows == 1) && all.iter().any(|shape| shape.rows > 400));
        assert!(
            all.iter().any(|shape| shape.inner > 10_000) && all.iter().any(|shape| shape.outputs > 10_000)
        );
    }
}
