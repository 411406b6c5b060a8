//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::client::Access;
use crate::commands::audit::AuditArgs;
use crate::commands::bench::BenchArgs;
use crate::commands::control_plane::ControlPlaneArgs;
use crate::commands::demo::DemoArgs;
use crate::commands::eval::EvalArgs;
use crate::commands::fleet::FleetArgs;
use crate::commands::generate::GenerateArgs;
use crate::commands::inspect::InspectArgs;
use crate::commands::models::ModelsArgs;
use crate::commands::npu::NpuArgs;
use crate::commands::pack::PackArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::prune::PruneArgs;
use crate::commands::pull::PullArgs;
use crate::commands::rollouts::RolloutsArgs;
use crate::commands::tokens::TokensArgs;
use crate::commands::up::UpArgs;
use crate::commands::worker::WorkerArgs;
use crate::config::Flags;
use crate::telemetry::LogFormat;

/// Serves language models on fleets of small gateways.
#[derive(Parser, Debug)]
#[command(
    name = "rookery",
    version,
    arg_required_else_help = true,
    after_help = "Start here:
  rookery demo                                  a model, a fleet and an answer, with one command

Then:
  rookery pull hf://OWNER/REPO/FILE.gguf        fetch a model
  rookery pack FILE.gguf                        quantise it into a bundle
  rookery eval BUNDLE --reference FILE.gguf     measure what that cost
  rookery up BUNDLE                             serve it
  rookery generate 'def fib(n):'                use it
  rookery npu info                              is there an NPU, and does it work

Exit codes: 0 done, 1 failed, 2 usage, 64 bad configuration."
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct GlobalArgs {
    /// TOML file with settings.
    #[arg(long, global = true, value_name = "FILE", env = "ROOKERY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the settings in force, from all sources, and stop.
    #[arg(long, global = true)]
    pub dump_config: bool,
    /// Which log lines are written, such as `debug` or `warn,rookery=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    log_filter: Option<String>,
    /// How log lines look.
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
    /// OTLP/gRPC endpoint for traces and metrics, such as http://127.0.0.1:4317.
    #[arg(long, global = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Address of the Prometheus page.
    #[arg(long, global = true, value_name = "ADDRESS")]
    prometheus_listen: Option<SocketAddr>,
    /// PEM file of the authority that an https endpoint's certificate is from, such as the control plane's ca.pem.
    /// Default: the public ones.
    #[arg(long, global = true, value_name = "FILE", env = "ROOKERY_CA")]
    ca: Option<PathBuf>,
    /// Bearer token for the endpoint. Better set the variable: others can see command lines.
    #[arg(long, global = true, value_name = "TOKEN", env = "ROOKERY_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl GlobalArgs {
    /// The settings that the flags make.
    pub fn flags(&self, flags: &mut Flags) {
        flags.set("telemetry.log-filter", self.log_filter.clone());
        flags.set("telemetry.log-format", self.log_format.map(LogFormat::name));
        flags.set("telemetry.otlp-endpoint", self.otlp_endpoint.clone());
        flags.set("telemetry.prometheus-listen", self.prometheus_listen.map(|address| address.to_string()));
    }

    /// How endpoints are called.
    pub fn access(&self) -> Access {
        let set = |token: &String| !token.is_empty();
        Access { authority: self.ca.clone(), token: self.token.clone().filter(set) }
    }

    /// The same flags for child processes. The Prometheus address stays with this process: it can be
    /// used only once.
    pub fn for_children(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: Option<OsString>| {
            if let Some(value) = value {
                arguments.extend([OsString::from(flag), value]);
            }
        };
        add("--config", self.config.clone().map(PathBuf::into_os_string));
        // A fleet's parent is a quiet one: what its children log at start-up is of no interest there.
        add("--log-filter", Some(self.log_filter.clone().unwrap_or_else(|| "warn".to_owned()).into()));
        add("--log-format", self.log_format.map(|format| format.name().into()));
        add("--otlp-endpoint", self.otlp_endpoint.clone().map(OsString::from));
        if self.prometheus_listen.is_some() {
            add("--prometheus-listen", Some("127.0.0.1:0".into()));
        }
        arguments
    }
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Demo(DemoArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Up(UpArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Pull(PullArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Pack(PackArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Prune(PruneArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Inspect(InspectArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Eval(EvalArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Generate(GenerateArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Models(ModelsArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Fleet(FleetArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Tokens(TokensArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Audit(AuditArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Rollouts(RolloutsArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Bench(BenchArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Npu(NpuArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Plan(PlanArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    Worker(WorkerArgs),
    #[expect(missing_docs, reason = "the arguments carry the text, which clap shows")]
    ControlPlane(ControlPlaneArgs),
}

impl Command {
    /// The command's name, which is also that of the service in traces.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Up(_) => "up",
            Command::Pull(_) => "pull",
            Command::Pack(_) => "pack",
            Command::Prune(_) => "prune",
            Command::Inspect(_) => "inspect",
            Command::Eval(_) => "eval",
            Command::Generate(_) => "generate",
            Command::Models(_) => "models",
            Command::Fleet(_) => "fleet",
            Command::Tokens(_) => "tokens",
            Command::Audit(_) => "audit",
            Command::Rollouts(_) => "rollouts",
            Command::Bench(_) => "bench",
            Command::Npu(_) => "npu",
            Command::Plan(_) => "plan",
            Command::Worker(_) => "worker",
            Command::ControlPlane(_) => "control-plane",
        }
    }

    /// The settings that the command's own flags make.
    pub fn flags(&self, flags: &mut Flags) {
        match self {
            Command::Worker(args) => args.flags(flags),
            Command::ControlPlane(args) => args.flags(flags),
            Command::Bench(args) => args.engine().apply(flags),
            Command::Npu(args) => args.flags(flags),
            Command::Eval(args) => args.flags(flags),
            Command::Demo(_)
            | Command::Up(_)
            | Command::Pull(_)
            | Command::Pack(_)
            | Command::Prune(_)
            | Command::Inspect(_)
            | Command::Generate(_)
            | Command::Models(_)
            | Command::Fleet(_)
            | Command::Tokens(_)
            | Command::Audit(_)
            | Command::Rollouts(_)
            | Command::Plan(_) => {}
        }
    }
}
