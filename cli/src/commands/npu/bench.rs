//! `rookery npu bench`: how fast the NPU computes matrix products, beside what the timing model says.

use std::time::Duration;

use clap::Args;
use rknpu_driver::device::Device;
use rknpu_driver::plan::PlanOptions;
use rknpu_driver::shape::Precision;
use rknpu_driver::timing::{Board, TaskWork, job_time};
use serde::Serialize;

use super::device::{DeviceArgs, board, describe, not_computed};
use super::dimensions::{Dimensions, parse_precision};
use super::product::{Product, ProductError, Values};
use crate::error::Failure;
use crate::output::{self, Table};

/// Measures matrix products by shape, precision and cores, beside what the timing model predicts.
#[derive(Args, Debug)]
#[command(
    after_help = "A row's time is the shortest of --repeat runs, from submission to result. On a simulated NPU it is simulated time: it
says what the model says of the very tasks that ran, and nothing of a board.

Examples:
  rookery npu bench
  rookery npu bench --shape 1x4096x14336 --precision int8 --cores 3
  rookery npu bench --device sim --json"
)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// A shape, as MxKxN; may be repeated. Default: a small language model's, for 1, 16 and 128 rows.
    #[arg(long = "shape", value_name = "MxKxN")]
    shapes: Vec<Dimensions>,
    /// A precision: int8, int4 or fp16; may be repeated. Default: all.
    #[arg(long = "precision", value_name = "NAME", value_parser = parse_precision)]
    precisions: Vec<Precision>,
    /// A number of cores; may be repeated. Default: 1 and all.
    #[arg(long = "cores", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3))]
    cores: Vec<u8>,
    /// Runs of each row. Default: 10; 1 on a simulated NPU, where all are equal.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Layers of a model with half a billion weights: attention output, gate and up, down.
const LAYERS: [(usize, usize); 3] = [(896, 896), (896, 4864), (4864, 896)];

/// Rows: one stream decoding, sixteen, a piece of a prompt.
const ROWS: [usize; 3] = [1, 16, 128];

#[derive(Serialize)]
struct Report {
    device: String,
    /// True: `measured_ms` is simulated time.
    simulated: bool,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    shape: String,
    precision: &'static str,
    cores: u8,
    /// Cores that the planner found to be of use.
    cores_used: usize,
    tasks: usize,
    predicted_ms: f64,
    measured_ms: f64,
    gigabytes_per_second: f64,
    tera_operations_per_second: f64,
}

/// Runs the command.
///
/// # Errors
/// If there is no device, or it does not compute a product.
pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let device = args.device.open()?;
    let info = device.info();
    let cores = if args.cores.is_empty() { vec![1, info.cores] } else { args.cores.clone() };
    if let Some(asked) = cores.iter().find(|asked| **asked > info.cores) {
        return Err(Failure::usage(format!("the device has {} cores, {asked} were asked for", info.cores)));
    }
    let precisions = if args.precisions.is_empty() { &Precision::ALL[..] } else { &args.precisions };
    let repeat = args.repeat.unwrap_or(if info.simulated { 1 } else { 10 });
    let mut rows = Vec::new();
    for dimensions in shapes(args) {
        for precision in precisions {
            for cores in &cores {
                rows.push(measure(&device, dimensions, *precision, *cores, repeat)?);
            }
        }
    }
    let report = Report { device: describe(&device), simulated: info.simulated, rows };
    if args.json { output::json(&report) } else { show(&report) }
}

fn shapes(args: &BenchArgs) -> Vec<Dimensions> {
    if !args.shapes.is_empty() {
        return args.shapes.clone();
    }
    let layers = LAYERS.into_iter();
    layers.flat_map(|(inner, outputs)| ROWS.map(|rows| Dimensions { rows, inner, outputs })).collect()
}

fn measure(
    device: &Device,
    dimensions: Dimensions,
    precision: Precision,
    cores: u8,
    repeat: u32,
) -> Result<Row, Failure> {
    let shape = dimensions
        .shape(precision)
        .map_err(|error| Failure::usage(format!("{dimensions} cannot be computed")).caused_by(error))?;
    let values = Values::random(&shape, 1);
    let board = board(device);
    let options = PlanOptions { cores: usize::from(cores), board, ..PlanOptions::default() };
    let failed = |error| not_computed(device, format!("could not measure {shape} on {cores} cores"), error);
    let product = Product::new(device, shape, &values, &options).map_err(failed)?;
    let seconds = shortest(device, &product, repeat).map_err(failed)?.as_secs_f64();
    let work = product.work();
    let bytes: u64 = work.iter().flatten().map(TaskWork::bytes).sum();
    Ok(Row {
        shape: dimensions.to_string(),
        precision: precision.name(),
        cores,
        cores_used: work.len(),
        tasks: product.tasks(),
        predicted_ms: predicted(&board, &work).as_secs_f64() * 1e3,
        measured_ms: seconds * 1e3,
        gigabytes_per_second: bytes as f64 / seconds / 1e9,
        tera_operations_per_second: 2.0 * shape.macs() as f64 / seconds / 1e12,
    })
}

fn predicted(board: &Board, work: &[Vec<TaskWork>]) -> Duration {
    job_time(board, work).elapsed
}

/// The shortest of `repeat` runs after one to warm up; simulated time on a simulator.
pub(super) fn shortest(device: &Device, product: &Product, repeat: u32) -> Result<Duration, ProductError> {
    let simulated = device.info().simulated;
    if !simulated {
        product.run(device)?;
    }
    let mut shortest = Duration::MAX;
    for _ in 0..repeat {
        let ran = product.run(device)?;
        shortest = shortest.min(if simulated { ran.device } else { ran.wall });
    }
    Ok(shortest)
}

fn show(report: &Report) -> Result<(), Failure> {
    output::line(&report.device)?;
    if report.simulated {
        output::line("all times are simulated: a model's, not a board's")?;
    }
    let measured = if report.simulated { ">SIMULATED ms" } else { ">MEASURED ms" };
    let mut table = Table::new(&[
        ">MxKxN",
        "PRECISION",
        ">CORES",
        ">TASKS",
        ">PREDICTED ms",
        measured,
        ">RATIO",
        ">GB/s",
        ">TOPS",
    ]);
    for row in &report.rows {
        table.row([
            row.shape.clone(),
            row.precision.to_owned(),
            if row.cores_used == usize::from(row.cores) {
                row.cores.to_string()
            } else {
                format!("{} of {}", row.cores_used, row.cores)
            },
            row.tasks.to_string(),
            format!("{:.3}", row.predicted_ms),
            format!("{:.3}", row.measured_ms),
            format!("{:.2}", row.measured_ms / row.predicted_ms),
            format!("{:.1}", row.gigabytes_per_second),
            format!("{:.2}", row.tera_operations_per_second),
        ]);
    }
    output::write(&table.render())
}
