//! `rookery npu`: the NPU by itself, without a model.

use clap::{Args, Subcommand};

use crate::config::{Config, Flags};
use crate::error::Failure;

mod bench;
mod calibrate;
mod check;
mod compare;
mod counter;
mod device;
mod dimensions;
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
  rookery npu compare ./qwen-w8 --tokens 16
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
    Compare(compare::CompareArgs),
    Calibrate(calibrate::CalibrateArgs),
    Disasm(disasm::DisasmArgs),
}

impl NpuArgs {
    /// The settings that the command's own flags make.
    pub fn flags(&self, flags: &mut Flags) {
        match &self.command {
            NpuCommand::Compare(args) => args.flags(flags),
            NpuCommand::Calibrate(args) => args.flags(flags),
            NpuCommand::Info(_) | NpuCommand::Selftest(_) | NpuCommand::Bench(_) | NpuCommand::Disasm(_) => {}
        }
    }
}

/// Runs the command.
///
/// # Errors
/// As each command says.
pub fn run(args: &NpuArgs, config: &Config) -> Result<(), Failure> {
    match &args.command {
        NpuCommand::Info(args) => info::run(args),
        NpuCommand::Selftest(args) => selftest::run(args),
        NpuCommand::Bench(args) => bench::run(args),
        NpuCommand::Compare(args) => compare::run(args, config),
        NpuCommand::Calibrate(args) => calibrate::run(args, config),
        NpuCommand::Disasm(args) => disasm::run(args),
    }
}
