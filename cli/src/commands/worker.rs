//! `rookery worker`: one compute worker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rookery_compute_worker::agent;
use rookery_compute_worker::worker::Worker;

use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::processes::{Ready, Stop, announce, stop_requests, stopped, stopped_now};

/// Serves model bundles on this machine, alone or as a gateway of a fleet.
#[derive(Args, Debug)]
#[command(
    after_help = "Settings come from --config, from ROOKERY_WORKER__… variables and from these flags; a later
one wins. `rookery --dump-config` shows them all.

Examples:
  rookery worker ./qwen-w8
  rookery worker --control-plane plane.example:7072 --join TOKEN --gateway-id shelf-3    the first time
  rookery worker --control-plane plane.example:7072                                      from then on
  rookery worker ./qwen-w8 --backend npu --config board.toml
  ROOKERY_WORKER__ENGINE__KV_CACHE=2GiB rookery worker ./qwen-w8"
)]
pub struct WorkerArgs {
    /// Bundle folders to serve, whatever the control plane assigns.
    #[arg(value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    /// Address for gRPC; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Name of this gateway in the fleet.
    #[arg(long, value_name = "ID")]
    gateway_id: Option<String>,
    /// Link address of the control plane to dial.
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// Token to join the control plane's fleet with, once. Better set ROOKERY_WORKER__LINK__JOIN: others can see command
    /// lines.
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,
    /// Folder for certificate and versions. Default: $XDG_STATE_HOME/rookery/worker (~/.local/state/rookery/worker),
    /// with the gateway's id where that is given.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
    /// The parent process holds standard input; used by `rookery up` and `rookery demo`.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Settings of the engine that several commands take.
#[derive(Args, Debug, Default)]
pub struct EngineFlags {
    /// Where linear layers are computed. Default: a working NPU, else the CPU.
    #[arg(long, value_enum)]
    pub backend: Option<BackendFlag>,
    /// Threads that compute.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Size of the key/value cache, such as 512MiB.
    #[arg(long, value_name = "SIZE")]
    pub kv_cache: Option<String>,
    /// How it stores keys and values. Default: f16.
    #[arg(long, value_enum)]
    pub kv_cache_type: Option<KvCacheFlag>,
    /// Longest prompt plus answer in tokens.
    #[arg(long, value_name = "N")]
    pub context_tokens: Option<usize>,
    /// Most generations in one step.
    #[arg(long, value_name = "N")]
    pub max_batch: Option<usize>,
    /// Instruction set: scalar, avx2, avx512-vnni, amx-int8 or neon-dotprod.
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// How many of a model's recorded answers must come out the same before it is served. Default: quick.
    #[arg(long, value_enum)]
    pub self_check: Option<SelfCheckFlag>,
}

/// Where linear layers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendFlag {
    /// A working NPU, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A simulated NPU in this process; exact, and much slower than the CPU.
    NpuSim,
    /// The NPU; a failure if there is none that works.
    Npu,
}

impl BackendFlag {
    /// Its name on the command line and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            BackendFlag::Auto => "auto",
            BackendFlag::Cpu => "cpu",
            BackendFlag::NpuSim => "npu-sim",
            BackendFlag::Npu => "npu",
        }
    }
}

/// How many of a model's recorded answers are compared before it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SelfCheckFlag {
    /// None.
    Off,
    /// The first tokens of two.
    Quick,
    /// All of them.
    Full,
}

impl SelfCheckFlag {
    /// Its name on the command line and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            SelfCheckFlag::Off => "off",
            SelfCheckFlag::Quick => "quick",
            SelfCheckFlag::Full => "full",
        }
    }
}

/// How the key/value cache stores its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvCacheFlag {
    /// 16-bit floating point.
    F16,
    /// 8-bit integers with scales: about half the memory, slightly other answers.
    Int8,
}

impl KvCacheFlag {
    /// Its name on the command line and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            KvCacheFlag::F16 => "f16",
            KvCacheFlag::Int8 => "int8",
        }
    }
}

impl EngineFlags {
    /// Adds them to the flags of the worker section.
    pub fn apply(&self, flags: &mut Flags) {
        flags.set("worker.engine.backend", self.backend.map(BackendFlag::name));
        flags.set("worker.engine.threads", self.threads);
        flags.set("worker.engine.kv-cache", self.kv_cache.clone());
        flags.set("worker.engine.kv-cache-type", self.kv_cache_type.map(KvCacheFlag::name));
        flags.set("worker.engine.context-tokens", self.context_tokens);
        flags.set("worker.engine.max-batch", self.max_batch);
        flags.set("worker.engine.isa", self.isa.clone());
        flags.set("worker.engine.self-check", self.self_check.map(SelfCheckFlag::name));
    }
}

impl WorkerArgs {
    /// The settings that the flags make.
    pub fn flags(&self, flags: &mut Flags) {
        let bundles: Vec<String> = self.bundles.iter().map(|path| path.display().to_string()).collect();
        flags.set("worker.bundles", (!bundles.is_empty()).then_some(bundles));
        flags.set("worker.listen", self.listen.map(|address| address.to_string()));
        flags.set("worker.gateway-id", self.gateway_id.clone());
        flags.set("worker.link.control-plane", self.control_plane.clone());
        flags.set("worker.link.join", self.join.clone());
        flags.set("worker.state", self.state.as_ref().map(|path| path.display().to_string()));
        self.engine.apply(flags);
    }
}

/// Runs the worker until it is asked to stop.
///
/// # Errors
/// If the configuration is wrong or the worker cannot start.
pub async fn run(supervised: bool, config: Config, prometheus: Option<SocketAddr>) -> Result<(), Failure> {
    let mut stops = stop_requests(supervised)?;
    let wrong = |error| Failure::config("the worker's configuration cannot be used").caused_by(error);
    let mut config = config.worker;
    if !supervised && config.state.is_none() && config.link.control_plane.is_some() {
        let id = config.gateway_id.as_ref().map(|id| format!("-{id}")).unwrap_or_default();
        config.state = default_state(&format!("worker{id}"));
    }
    let config = config.validate().map_err(wrong)?;
    let mut early = stops.clone();
    tokio::select! {
        biased;
        // Joining may be left at any point: it asks again with the same key.
        _ = stopped(&mut early) => return Ok(()),
        joined = agent::join(&config) => joined.or_fail(|| "the worker could not join the fleet".to_owned())?,
    }
    let worker = tokio::select! {
        biased;
        // Start-up hashes the bundles, which is safe to leave in the middle.
        _ = stopped(&mut early) => return Ok(()),
        worker = Worker::start(config) => worker.or_fail(|| "the worker could not start".to_owned())?,
    };
    let address = worker.address();
    // All engines of a process share one.
    let backend = worker.engines().next().map(|engine| engine.info().backend.clone());
    let backend_reason = worker.backend_reason().map(str::to_owned);
    let ready = Ready { prometheus, backend, backend_reason, ..Ready::at(address) };
    if supervised {
        announce(&ready)?;
    } else {
        let what = match ready.backend {
            Some(_) => ready.describe_backend(),
            None => "no model yet: roll-outs bring them".to_owned(),
        };
        output::note(format_args!("serving on http://{address}, {what}; Ctrl-C stops"));
    }
    let failed = tokio::select! {
        biased;
        stop = stopped(&mut stops) => if stop == Stop::Now { return Ok(()) } else { None },
        failure = worker.failed() => Some(failure),
    };
    tokio::select! {
        biased;
        // Whoever insists gets the end at once; running generations break off.
        () = stopped_now(&mut stops) => {}
        _ = worker.drain() => {}
    }
    match failed {
        None => Ok(()),
        Some(failure) => Err(Failure::new("the worker has failed").caused_by(failure)),
    }
}

/// `$XDG_STATE_HOME/rookery/NAME`, or `~/.local/state/rookery/NAME`; none without a home. Relative values are ignored.
pub fn default_state(name: &str) -> Option<PathBuf> {
    // An id decides on the name, and has not been checked yet.
    if name.contains(['/', '\0']) {
        return None;
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(base.join("rookery").join(name))
}

/// How long a parent waits for a child that drains: its own deadline and a little more.
pub fn patience(drain_timeout: Duration) -> Duration {
    drain_timeout + Duration::from_secs(2)
}
