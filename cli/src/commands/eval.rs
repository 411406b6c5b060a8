//! `rookery eval`: how far packed models are from their source, and where in a model an error enters.

use std::path::PathBuf;

use clap::Args;
use rookery_compute_worker::backend::Backends;
use rookery_kernels::Kernels;
use rookery_quantizer::eval::{EvalOptions, Report, Text, evaluate};

use crate::commands::worker::{BackendFlag, KvCacheFlag};
use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::output;

mod layers;
mod meter;
mod models;
mod probes;
mod table;

use meter::EvalMeter;
use models::Opened;

/// Measures what packing did to a model: perplexity, divergence from the source, and the layer where an error enters.
#[derive(Args, Debug)]
#[command(
    after_help = "All models read the same text, in sequences that start anew, and the reference is computed once. Divergence
is Kullback-Leibler in nats, of each next-token distribution from the reference's. ± is one standard error, from
the differences between sequences. Bits are those of all files for each parameter of the model.

--by-layer measures something else: each linear layer's output against the reference's weights, on the inputs that
the layer had. It names tensors with wrong scales and places where rounding is wrong, and fails if there are any.
--probes replays the answers that bundles carry, and fails if a bit of their logits differs here.

Examples:
  rookery eval qwen-w8 --reference model.gguf
  rookery eval qwen-w8 qwen-w4 other.Q4_0.gguf --reference model.gguf --tokens 4096
  rookery eval qwen-w8 --reference model.gguf --kv-cache-type f16,int8
  rookery eval qwen-w4 --reference model.gguf --text notes.txt --max-kl 0.055 --json
  rookery eval qwen-w4 --reference model.gguf --by-layer
  rookery eval qwen-w4 --probes"
)]
pub struct EvalArgs {
    /// Bundles, which run on the engine, and .gguf files or Hugging Face folders, which run in f32.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// What they are compared with: a .gguf file or a Hugging Face folder in f32, or a bundle. Without it there is
    /// perplexity only.
    #[arg(long, short, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Text files to measure on. Default: code and prose that come with this program, about 12,000 tokens.
    #[arg(long, short, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Most tokens over all texts, each text getting an equal share.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    tokens: Option<u32>,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    sequence: u32,
    /// Where bundles' linear layers are computed. Default: a working NPU, else the CPU.
    #[arg(long, value_enum)]
    backend: Option<BackendFlag>,
    /// How bundles keep keys and values; with several, each bundle is measured with each.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f16")]
    kv_cache_type: Vec<KvCacheFlag>,
    /// Threads that compute. Default: as many as the machine has processors.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Fail if the mean divergence of any model is above this.
    #[arg(long, value_name = "NATS", requires = "reference", conflicts_with = "by_layer")]
    max_kl: Option<f64>,
    /// Find the layers where error enters, instead of measuring predictions.
    #[arg(long, requires = "reference")]
    by_layer: bool,
    /// Tokens that --by-layer runs through the model.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "by_layer",
        value_parser = clap::value_parser!(u32).range(16..=4096))]
    layer_tokens: u32,
    /// Replay the answers recorded when the bundles were packed, instead of measuring predictions.
    #[arg(long, conflicts_with_all = ["by_layer", "reference", "text", "tokens"])]
    probes: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    /// The settings that the flags make.
    pub fn flags(&self, flags: &mut Flags) {
        flags.set("worker.engine.backend", self.backend.map(BackendFlag::name));
        flags.set("worker.engine.threads", self.threads);
    }
}

/// What all parts of the command need.
struct Setting {
    backends: Backends,
    kernels: &'static Kernels,
    threads: usize,
    texts: Vec<Text>,
}

/// Runs the command.
///
/// # Errors
/// If a model or text cannot be read, models do not compare, or something is worse than it may be.
pub fn run(args: &EvalArgs, config: &Config) -> Result<(), Failure> {
    let wrong = "the engine's configuration cannot be used";
    let engine = config.worker.engine.validate();
    let engine = engine.map_err(|error| Failure::config(wrong).caused_by(error))?;
    let kernels = engine.kernels().map_err(|error| Failure::config(wrong).caused_by(error))?;
    let backend = config.worker.backend();
    let backend =
        backend.map_err(|error| Failure::config("the NPU's settings cannot be used").caused_by(error))?;
    let texts = texts(args)?;
    let backends = Backends::open(&backend).or_fail(|| "no backend".to_owned())?;
    let setting = Setting { backends, kernels, threads: engine.threads, texts };
    let models = args.models.iter().map(Opened::open).collect::<Result<Vec<_>, _>>()?;
    if args.probes {
        return probes::run(args, &setting, &models, &engine);
    }
    let reference = args.reference.as_deref().map(Opened::open).transpose()?;
    match reference {
        Some(reference) if args.by_layer => layers::run(args, &setting, &models, &reference),
        reference => predictions(args, &setting, &models, reference.as_ref()),
    }
}

fn texts(args: &EvalArgs) -> Result<Vec<Text>, Failure> {
    if args.text.is_empty() {
        return Ok(Text::builtin());
    }
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).or_fail(|| format!("could not read {}", path.display()))?;
        Ok(Text { name: path.display().to_string(), text })
    };
    args.text.iter().map(read).collect()
}

fn predictions(
    args: &EvalArgs,
    setting: &Setting,
    models: &[Opened],
    reference: Option<&Opened>,
) -> Result<(), Failure> {
    let options = EvalOptions {
        tokens: args.tokens.map(|tokens| tokens as usize),
        sequence: args.sequence as usize,
        threads: setting.threads,
    };
    let mut candidates = Vec::new();
    for model in models {
        candidates.extend(model.subjects(setting, &args.kv_cache_type));
    }
    // The reference's own cache must not blur what it is compared with.
    let subject = reference.map(|reference| reference.subject(setting, KvCacheFlag::F16));
    let meter = EvalMeter::new("measuring");
    let report = evaluate(candidates, subject, &setting.texts, &options, &meter);
    let report = report.or_fail(|| "could not measure".to_owned())?;
    meter.finish();
    if args.json {
        output::json(&report)?;
    } else {
        output::write(&table::render(&report))?;
    }
    judge(&report, args.max_kl)
}

/// The exit code that `--max-kl` asks for.
fn judge(report: &Report, max_kl: Option<f64>) -> Result<(), Failure> {
    let Some(most) = max_kl else { return Ok(()) };
    let over = report.candidates.iter().filter_map(|candidate| {
        let mean = candidate.kl.as_ref()?.mean.value;
        // A divergence that is no number is above everything.
        if mean <= most { None } else { Some(format!("{} ({mean:.5})", candidate.name)) }
    });
    let over: Vec<String> = over.collect();
    if over.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("mean divergence is above {most}: {}", over.join(", "))))
}
