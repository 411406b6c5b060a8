//! `rookery npu calibrate`: a board's own constants, for the worker's cost model.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rknpu_driver::device::Device;
use rknpu_driver::plan::PlanOptions;
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::timing::{Board, MacFormat, TaskWork};

use super::bench::shortest;
use super::device::{DeviceArgs, board, describe, not_computed};
use super::product::{Product, ProductError, Values};
use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::output;

mod processor;

use processor::Processor;

/// Measures what a submission, a task, a byte and a multiply-add cost on the NPU, and bytes and multiply-adds on the
/// processor, and writes them as settings of the worker.
#[derive(Args, Debug)]
#[command(
    after_help = "Set the clocks first (docs/npu.md, \"On a real board\"), and let nothing else use the NPU or much memory.

Examples:
  rookery npu calibrate
  rookery npu calibrate --out board.toml && rookery worker ./qwen-w8 --config board.toml"
)]
pub(super) struct CalibrateArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// File to write. Default: standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Runs of each measurement. Default: 30; 1 on a simulated NPU, where all are equal.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Threads of the processor's part: as many as the worker will have.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl CalibrateArgs {
    /// The settings that the flags make.
    pub(super) fn flags(&self, flags: &mut Flags) {
        flags.set("worker.engine.threads", self.threads);
    }
}

/// Runs of each measurement of the processor, unless --repeat says otherwise: some are long.
const PROCESSOR_RUNS: u32 = 10;

/// What was measured.
#[derive(Clone, Debug)]
pub(super) struct Constants {
    /// Seconds from request to result, besides the tasks.
    pub(super) submit: f64,
    /// Seconds of a task, besides its work.
    pub(super) task: f64,
    /// Bytes per second, by number of cores from 1.
    pub(super) bytes_per_s: Vec<f64>,
    /// Multiply-adds per second of one core, by precision.
    pub(super) macs_per_s: Vec<(Precision, f64)>,
}

/// A measured product: its tasks, its bytes and how long it took.
struct Sample {
    tasks: f64,
    bytes: f64,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// If there is no device, it does not compute, the figures make no sense, or the file cannot be written.
pub(super) fn run(args: &CalibrateArgs, config: &Config) -> Result<(), Failure> {
    let engine = config.worker.engine.validate();
    let engine = engine
        .map_err(|error| Failure::config("the engine's configuration cannot be used").caused_by(error))?;
    let kernels = engine.kernels().or_fail(|| "the processor cannot be measured".to_owned())?;
    let device = args.device.open()?;
    let repeat = args.repeat.unwrap_or(if device.info().simulated { 1 } else { 30 });
    let constants = measure(&device, repeat)?;
    let processor = processor::measure(kernels, engine.threads, args.repeat.unwrap_or(PROCESSOR_RUNS))
        .or_fail(|| "the processor cannot be measured".to_owned())?;
    let on = format!("{}, {} threads", kernels.isa(), engine.threads);
    let text = settings(&device, &constants, &processor, &on);
    match &args.out {
        None => output::write(&text),
        Some(file) => {
            std::fs::write(file, text).or_fail(|| format!("could not write {}", file.display()))?;
            output::note(format_args!("written to {}; use it with --config", file.display()));
            Ok(())
        }
    }
}

/// Measures all constants.
///
/// One-row products are bound by memory, so their time is submit + tasks · task + bytes ÷ rate: four of them, with few
/// and many tasks and bytes, give the three unknowns by least squares.
///
/// # Errors
/// If a product cannot be computed, or times contradict the model so far that a constant comes out negative.
pub(super) fn measure(device: &Device, repeat: u32) -> Result<Constants, Failure> {
    let failed = |error| not_computed(device, "a measurement failed".to_owned(), error);
    let samples = [
        sample(device, (1, 32, 32), Precision::Int8, None, 1, repeat),
        sample(device, (1, 4096, 32), Precision::Int8, Some(32), 1, repeat),
        sample(device, (1, 2048, 2048), Precision::Int8, None, 1, repeat),
        sample(device, (1, 4096, 4096), Precision::Int8, None, 1, repeat),
    ];
    let samples: Vec<Sample> = samples.into_iter().collect::<Result<_, _>>().map_err(failed)?;
    let [submit, task, per_byte] =
        least_squares(&samples).ok_or_else(|| nonsense("the samples are too alike"))?;
    if !(submit >= 0.0 && task >= 0.0 && per_byte > 0.0) {
        return Err(nonsense(&format!(
            "submission {submit:.2e} s, task {task:.2e} s, {per_byte:.2e} s a byte"
        )));
    }
    let mut bytes_per_s = vec![1.0 / per_byte];
    for cores in 2..=device.info().cores {
        let (product, work, seconds) =
            timed(device, (1, 4096, 4096), Precision::Int8, None, cores, repeat).map_err(failed)?;
        let bytes: u64 = work.iter().flatten().map(TaskWork::bytes).sum();
        let chain = work.iter().map(Vec::len).max().unwrap_or_default();
        drop(product);
        bytes_per_s.push(rate(bytes as f64, seconds - submit - chain as f64 * task)?);
    }
    let mut macs_per_s = Vec::new();
    for precision in Precision::ALL {
        let (product, work, seconds) =
            timed(device, (256, 1024, 1024), precision, None, 1, repeat).map_err(failed)?;
        let cycles: u64 = work.iter().flatten().map(|task| task.mac_cycles).sum();
        let computing = seconds - submit - product.tasks() as f64 * task;
        let cycles_per_s = rate(cycles as f64, computing)?;
        macs_per_s.push((precision, cycles_per_s * MacFormat::from(precision).macs_per_cycle() as f64));
    }
    Ok(Constants { submit, task, bytes_per_s, macs_per_s })
}

fn nonsense(what: &str) -> Failure {
    Failure::new(format!("the times measured contradict each other: {what}"))
        .hint("set fixed clocks, keep the machine idle, or raise --repeat")
}

fn rate(amount: f64, seconds: f64) -> Result<f64, Failure> {
    let rate = amount / seconds;
    if seconds > 0.0 { Ok(rate) } else { Err(nonsense("a product took less time than its tasks' overheads")) }
}

fn sample(
    device: &Device,
    shape: (usize, usize, usize),
    precision: Precision,
    slice: Option<usize>,
    cores: u8,
    repeat: u32,
) -> Result<Sample, ProductError> {
    let (product, work, seconds) = timed(device, shape, precision, slice, cores, repeat)?;
    let bytes: u64 = work.iter().flatten().map(TaskWork::bytes).sum();
    Ok(Sample { tasks: product.tasks() as f64, bytes: bytes as f64, seconds })
}

fn timed(
    device: &Device,
    (rows, inner, outputs): (usize, usize, usize),
    precision: Precision,
    slice: Option<usize>,
    cores: u8,
    repeat: u32,
) -> Result<(Product, Vec<Vec<TaskWork>>, f64), ProductError> {
    let shape = MatmulShape::new(rows, inner, outputs, precision)?;
    // The planner leaves out cores that it takes to be of no use; on a board of slow cores none is.
    let board = if cores == 1 { board(device) } else { Board { core_bytes_per_s: 1e8, ..board(device) } };
    let options = PlanOptions { cores: usize::from(cores), board, slice, ..PlanOptions::default() };
    let product = Product::new(device, shape, &Values::random(&shape, 1), &options)?;
    let seconds = shortest(device, &product, repeat)?.as_secs_f64();
    let work = product.work();
    Ok((product, work, seconds))
}

/// `seconds = a + b · tasks + c · bytes`, with errors relative to the seconds; `None` if the samples do not determine it.
fn least_squares(samples: &[Sample]) -> Option<[f64; 3]> {
    // Megabytes keep the matrix well conditioned.
    const BYTES: f64 = 1e6;
    let mut matrix = [[0.0_f64; 4]; 3];
    for sample in samples {
        let row =
            [1.0, sample.tasks, sample.bytes / BYTES, sample.seconds].map(|value| value / sample.seconds);
        for i in 0..3 {
            for j in 0..4 {
                matrix[i][j] += row[i] * row[j];
            }
        }
    }
    for pivot in 0..3 {
        let best = (pivot..3).max_by(|a, b| matrix[*a][pivot].abs().total_cmp(&matrix[*b][pivot].abs()))?;
        matrix.swap(pivot, best);
        let scale = matrix[pivot][pivot];
        if scale.abs() < f64::MIN_POSITIVE {
            return None;
        }
        let reduced = matrix[pivot].map(|value| value / scale);
        for (i, row) in matrix.iter_mut().enumerate() {
            let factor = if i == pivot { 0.0 } else { row[pivot] };
            for (value, pivot_value) in row.iter_mut().zip(reduced) {
                *value -= factor * pivot_value;
            }
        }
        matrix[pivot] = reduced;
    }
    let solution = [matrix[0][3], matrix[1][3], matrix[2][3] / BYTES];
    solution.iter().all(|value| value.is_finite()).then_some(solution)
}

/// The worker's settings as TOML, with what is not a setting as comments.
fn settings(device: &Device, constants: &Constants, processor: &Processor, on: &str) -> String {
    let all = constants.bytes_per_s.last().copied().unwrap_or_default();
    let clock = constants
        .macs_per_s
        .iter()
        .find(|(precision, _)| *precision == Precision::Int8)
        .map_or(0.0, |(_, rate)| rate / MacFormat::Int8.macs_per_cycle() as f64);
    let mut text = format!("# Measured by `rookery npu calibrate` on this device: {}.\n", describe(device));
    if device.info().simulated {
        text.push_str("# Figures of the NPU are simulated: the model's own constants, not a board's.\n");
    }
    // Writing to a String cannot fail.
    for (index, rate) in constants.bytes_per_s.iter().enumerate() {
        let cores = index + 1;
        let _ = writeln!(text, "# {cores} core{}: {:.2} GB/s", if cores == 1 { "" } else { "s" }, rate / 1e9);
    }
    for (precision, rate) in &constants.macs_per_s {
        let _ = writeln!(text, "# {} on one core: {:.0} G multiply-adds/s", precision.name(), rate / 1e9);
    }
    let _ = writeln!(text, "# The processor's figures (cpu-…) were taken on this machine: {on}.");
    let _ = write!(
        text,
        "[worker.npu.board]\nnpu-clock-hz = {clock:.0}.0\nnpu-bytes-per-second = {all:.0}.0\n\
         submit-overhead = \"{}\"\ntask-overhead = \"{}\"\n",
        micros(constants.submit),
        micros(constants.task),
    );
    for (key, value) in [
        ("cpu-bytes-per-second", processor.bytes_per_s),
        ("cpu-macs-per-second", processor.macs_per_s),
        ("cpu-pack-bytes-per-second", processor.pack_bytes_per_s),
    ] {
        let _ = writeln!(text, "{key} = {value:.0}.0");
    }
    text
}

/// A duration as settings write it, to the tenth of a microsecond.
fn micros(seconds: f64) -> String {
    let tenths = Duration::from_nanos((seconds * 1e7).round() as u64 * 100);
    humantime::format_duration(tenths).to_string()
}

#[cfg(test)]
mod tests {
    use rknpu_driver::device::Interface;
    use rknpu_driver::sim::kernel::{self, SimConfig};

    use super::*;

    /// What comes out is what the simulator was given, whatever that is.
    #[test]
    fn the_simulators_own_constants_are_recovered() {
        let slow = Board {
            clock_hz: 4.0e8,
            ddr_efficiency: 0.6,
            core_bytes_per_s: 9.0e9,
            submit_overhead: Duration::from_micros(250),
            task_overhead: Duration::from_micros(7),
            ..Board::rk3588_vendor()
        };
        for board in [Board::rk3588_vendor(), slow] {
            let device = kernel::device(SimConfig { board, ..SimConfig::new(Interface::Vendor) }).unwrap();
            let found = measure(&device, 1).unwrap();
            let near = |what: &str, found: f64, given: f64, slack: f64| {
                assert!((found / given - 1.0).abs() < slack, "{what}: {found:e}, given {given:e}");
            };
            near("submission", found.submit, board.submit_overhead.as_secs_f64(), 0.01);
            near("task", found.task, board.task_overhead.as_secs_f64(), 0.02);
            near("one core", found.bytes_per_s[0], board.core_bytes_per_s, 0.01);
            let three = board.streamed_bytes_per_s().min(3.0 * board.core_bytes_per_s);
            near("three cores", found.bytes_per_s[2], three, 0.03);
            for (precision, rate) in found.macs_per_s {
                let given = board.clock_hz * MacFormat::from(precision).macs_per_cycle() as f64;
                near(precision.name(), rate, given, 0.05);
            }
        }
    }

    #[test]
    fn three_unknowns_from_exact_samples() {
        let sample =
            |tasks: f64, bytes: f64| Sample { tasks, bytes, seconds: 1e-4 + 2e-5 * tasks + bytes / 2e10 };
        let samples = [sample(1.0, 1e3), sample(100.0, 1e5), sample(2.0, 1e7), sample(4.0, 4e7)];
        let [submit, task, per_byte] = least_squares(&samples).unwrap();
        assert!(
            (submit - 1e-4).abs() < 1e-9
                && (task - 2e-5).abs() < 1e-9
                && (per_byte * 2e10 - 1.0).abs() < 1e-6
        );
        assert_eq!(least_squares(&samples[..1]), None);
    }

    #[test]
    fn durations_are_written_as_settings_read_them() {
        assert_eq!(micros(167e-6), "167us");
        assert_eq!(micros(16.27e-6), "16us 300ns");
        assert_eq!(humantime::parse_duration(&micros(16.27e-6)).unwrap(), Duration::from_nanos(16_300));
    }
}
