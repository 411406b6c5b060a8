//! `rookery npu`: the NPU by itself, without a model.

use clap::{Args, Subcommand};

use crate::error::Failure;

mod bench;
mod calibrate;
mod device;
mod disasm;
mod info;
mod product;
mod selftest;

/// Looks at the NPU, checks it, measures it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery npu info
  rookery npu selftest --count 200
  rookery npu bench --device sim
  rookery npu calibrate --out board.toml
  rookery npu disasm commands.bin")]
pub struct NpuArgs {
    #[command(subcommand)]
    command: NpuCommand,
}

#[derive(Subcommand, Debug)]
enum NpuCommand {
    Info(info::InfoArgs),
    Selftest(selftest::SelftestArgs),
    Bench(bench::BenchArgs),
    Calibrate(calibrate::CalibrateArgs),
    Disasm(disasm::DisasmArgs),
}

/// Runs the command.
///
/// # Errors
/// As each command says.
pub fn run(args: &NpuArgs) -> Result<(), Failure> {
    match &args.command {
        NpuCommand::Info(args) => info::run(args),
        NpuCommand::Selftest(args) => selftest::run(args),
        NpuCommand::Bench(args) => bench::run(args),
        NpuCommand::Calibrate(args) => calibrate::run(args),
        NpuCommand::Disasm(args) => disasm::run(args),
    }
}
