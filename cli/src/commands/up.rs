//! `rookery up`: a whole fleet on this machine.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tempfile::TempDir;

use crate::commands::worker::{EngineFlags, patience};
use crate::config::Config;
use crate::error::{Failure, OrFail};
use crate::fleet::{Fleet, FleetOptions, threads_per_worker};
use crate::output;
use crate::processes::stop_requests;

/// Serves bundles with a control plane and workers on this machine, until Ctrl-C.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery up ./qwen-w8
  rookery up ./qwen-w8 ./llama-w4 --workers 2
  rookery up ./qwen-w8 --state ./fleet                        keep versions, roll-outs and who joined
  rookery up ./qwen-w8 --listen 0.0.0.0:7070 --state ./fleet  for others: with TLS, ask for the token in ./fleet")]
pub struct UpArgs {
    /// Bundle folders; every worker serves all of them.
    #[arg(value_name = "BUNDLE", required = true)]
    bundles: Vec<PathBuf>,
    /// Number of workers, each a process of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Address for clients. Default: 127.0.0.1:7070, or a free port if that is taken.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Folder for what control plane and workers keep. Default: a temporary one.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
///
/// # Errors
/// If the fleet cannot start or falls apart.
pub async fn run(args: UpArgs, config: &Config, common: Vec<OsString>) -> Result<(), Failure> {
    let stops = stop_requests(false)?;
    let workers = usize::from(args.workers);
    let listen = listen_address(args.listen, config);
    if args.state.is_none() && !listen.ip().is_loopback() {
        return Err(Failure::usage(format!("{listen} can be reached by others, who need TLS and a token"))
            .hint("give --state FOLDER: authority and token are kept there"));
    }
    let state = FleetState::open(args.state)?;
    let options = FleetOptions {
        bundles: args.bundles,
        workers,
        listen,
        state: state.path.clone(),
        common,
        worker: engine_arguments(&args.engine, workers),
        grace: patience(config.worker.drain_timeout),
    };
    let mut early = stops.clone();
    let mut fleet = tokio::select! {
        biased;
        // Dropping a fleet that starts kills its processes.
        _ = crate::processes::stopped(&mut early) => return Ok(()),
        fleet = Fleet::start(&options) => fleet?,
    };
    describe(&fleet)?;
    let result = fleet.serve(&stops).await;
    fleet.stop(&stops).await;
    result
}

/// Where a fleet of this machine keeps its state: given, or temporary and deleted with this.
pub struct FleetState {
    /// The folder.
    pub path: PathBuf,
    _temporary: Option<TempDir>,
}

impl FleetState {
    /// The given folder, or a temporary one.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(given: Option<PathBuf>) -> Result<Self, Failure> {
        let unusable = || "could not make the state folder".to_owned();
        match given {
            Some(path) => {
                std::fs::create_dir_all(&path).or_fail(unusable)?;
                // Children may be started elsewhere.
                let path = path.canonicalize().or_fail(unusable)?;
                Ok(Self { path, _temporary: None })
            }
            None => {
                let made = tempfile::Builder::new().prefix("rookery-").tempdir().or_fail(unusable)?;
                Ok(Self { path: made.path().to_owned(), _temporary: Some(made) })
            }
        }
    }
}

/// Says what runs where, and what to try next.
///
/// # Errors
/// If standard output is closed.
fn describe(fleet: &Fleet) -> Result<(), Failure> {
    for process in fleet.processes() {
        let id = process.id().map(|id| format!(", process {id}")).unwrap_or_default();
        let ready = &process.ready;
        let backend = ready.backend.as_ref().map(|_| format!(", {}", ready.describe_backend()));
        let backend = backend.unwrap_or_default();
        output::note(format_args!("{} on {}{id}{backend}", process.name, ready.url()));
    }
    if let Some(control_plane) = fleet.processes().next().map(|process| &process.ready).filter(|it| it.tls) {
        let ca = control_plane.ca.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        output::note(format_args!("clients: --ca {ca}, and ROOKERY_TOKEN with the token in the same folder"));
    }
    output::line(format!("serving on {}; Ctrl-C stops", fleet.endpoint()))
}

/// The address that was asked for; else the configured one if it is free, else any.
pub fn listen_address(asked: Option<SocketAddr>, config: &Config) -> SocketAddr {
    asked.unwrap_or_else(|| {
        let usual = config.control_plane.listen;
        let free = std::net::TcpListener::bind(usual).is_ok();
        if free { usual } else { SocketAddr::new(usual.ip(), 0) }
    })
}

/// Engine flags for child workers; the machine's processors are shared among them unless told otherwise.
pub fn engine_arguments(engine: &EngineFlags, workers: usize) -> Vec<OsString> {
    let threads = engine.threads.unwrap_or_else(|| threads_per_worker(workers));
    let mut arguments: Vec<OsString> = vec!["--threads".into(), threads.to_string().into()];
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([flag.into(), value.into()]);
        }
    };
    add("--backend", engine.backend.map(|backend| backend.name().to_owned()));
    add("--kv-cache", engine.kv_cache.clone());
    add("--kv-cache-type", engine.kv_cache_type.map(|kind| kind.name().to_owned()));
    add("--context-tokens", engine.context_tokens.map(|tokens| tokens.to_string()));
    add("--max-batch", engine.max_batch.map(|batch| batch.to_string()));
    add("--isa", engine.isa.clone());
    add("--self-check", engine.self_check.map(|extent| extent.name().to_owned()));
    arguments
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        engine: EngineFlags,
    }

    #[test]
    fn workers_get_every_flag_of_the_engine() {
        let line = "up --backend npu-sim --threads 3 --kv-cache 1MiB --kv-cache-type int8 --context-tokens 64 \
                    --max-batch 2 --isa scalar --self-check full";
        let given = Line::parse_from(line.split_whitespace()).engine;
        let handed_on = engine_arguments(&given, 2);
        let got = Line::parse_from([OsString::from("worker")].into_iter().chain(handed_on)).engine;
        assert_eq!(format!("{got:?}"), format!("{given:?}"));
        assert!(!format!("{given:?}").contains("None"), "a flag that this test does not give: {given:?}");
    }
}
