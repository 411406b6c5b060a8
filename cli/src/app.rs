//! From the command line to the exit code.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use tokio::runtime::Runtime;

use crate::args::{Cli, Command, GlobalArgs};
use crate::client::use_access;
use crate::commands::{
    bench, control_plane, demo, eval, generate, inspect, models, npu, pack, plan, prune, pull, rollouts, up,
    worker,
};
use crate::config::{Config, Flags};
use crate::error::{Exit, Failure, OrFail};
use crate::output;
use crate::telemetry;

/// How long tasks that hang on get when the command is over.
const LEFTOVERS: Duration = Duration::from_millis(200);

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors. If they cannot be printed, nobody is listening.
            let _ = error.print();
            let answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if answer { 0 } else { Exit::Usage.code() });
        }
    };
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = failure.report(&mut std::io::stderr().lock());
            ExitCode::from(failure.exit().code())
        }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    use_access(cli.global.access());
    let mut flags = Flags::default();
    cli.global.flags(&mut flags);
    if let Some(command) = &cli.command {
        command.flags(&mut flags);
    }
    let config = Config::load(cli.global.config.as_deref(), &flags)
        .map_err(|error| Failure::config("the configuration cannot be used").caused_by(error))?;
    if cli.global.dump_config {
        return output::write(&config.dump().or_fail(|| "the configuration cannot be shown".to_owned())?);
    }
    let Some(command) = cli.command else {
        return Err(Failure::usage("there is no command").hint("`rookery --help` lists them"));
    };
    let runtime = runtime()?;
    let guard = {
        let _inside = runtime.enter();
        telemetry::init(&telemetry_of(&config, &command), command.name())
            .map_err(|error| Failure::config("telemetry cannot be set up").caused_by(error))?
    };
    if let Some(address) = guard.prometheus {
        tracing::info!("metrics are at http://{address}/metrics");
    }
    let result = dispatch(command, &cli.global, config, &runtime, guard.prometheus);
    // The exporters need the runtime, so it goes last.
    guard.finish();
    runtime.shutdown_timeout(LEFTOVERS);
    result
}

/// Commands that people watch log warnings only, unless they ask for more; services log all they have to say.
fn telemetry_of(config: &Config, command: &Command) -> telemetry::TelemetryConfig {
    let mut telemetry = config.telemetry.clone();
    let service = matches!(command, Command::Worker(_) | Command::ControlPlane(_));
    if !service && telemetry.log_filter == telemetry::TelemetryConfig::default().log_filter {
        // What one gateway warns of is news; what thousands of simulated ones warn of is counted in the report.
        let simulates = matches!(command, Command::Fleet(args) if args.simulates());
        telemetry.log_filter =
            if simulates { "warn,rookery_compute_worker=error" } else { "warn" }.to_owned();
    }
    telemetry
}

/// A small runtime: engines and the sockets of servers have threads of their own.
fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("rookery-io")
        .enable_all()
        .build()
        .or_fail(|| "could not start the runtime".to_owned())
}

fn dispatch(
    command: Command,
    global: &GlobalArgs,
    config: Config,
    runtime: &Runtime,
    prometheus: Option<SocketAddr>,
) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => {
            let bundle = demo::prepare()?;
            runtime.block_on(demo::run(args, bundle, &config, global.for_children()))
        }
        Command::Up(args) => runtime.block_on(up::run(args, &config, global.for_children())),
        Command::Pull(args) => pull::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(&args, &config),
        Command::Generate(args) => runtime.block_on(generate::run(args)),
        Command::Models(args) => runtime.block_on(models::run(args)),
        Command::Fleet(args) => runtime.block_on(crate::commands::fleet::run(args)),
        Command::Tokens(args) => runtime.block_on(crate::commands::tokens::run(args)),
        Command::Audit(args) => runtime.block_on(crate::commands::audit::run(args)),
        Command::Rollouts(args) => runtime.block_on(rollouts::run(args)),
        Command::Bench(args) => runtime.block_on(bench::run(args, config)),
        Command::Npu(args) => npu::run(&args, &config),
        Command::Plan(args) => plan::run(&args),
        Command::Worker(args) => runtime.block_on(worker::run(args.supervised, config, prometheus)),
        Command::ControlPlane(args) => {
            let start =
                control_plane::Start { supervised: args.supervised, announce_join: args.announce_join };
            runtime.block_on(control_plane::run(start, config, prometheus))
        }
    }
}
