//! `rookery plan`: whether a model fits a board, how fast it would be, and what would fit instead.

use std::path::Path;

use bytesize::ByteSize;
use clap::Args;
use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, Precision};
use rookery_model::config::ModelConfig;
use rookery_model::{shapes, source};
use serde::Serialize;

use crate::error::{Failure, OrFail};
use crate::output::{self, Table};
use board::Board;
use memory::{DOMAIN_BYTES, DOMAINS, Memory, Stored, needed};
use speed::{Load, Place, Prediction, predict};

mod board;
mod memory;
mod speed;

/// Says whether a model fits a board, what it would do there, and which recipes fit, best quality first.
///
/// Speeds come from the timing model of the NPU and the worker's cost model; nobody has measured them on a board.
#[derive(Args, Debug)]
#[command(
    after_help = "The model is a GGUF file, a Hugging Face folder, a bundle (then its own precisions are planned with), or a well-known
name such as llama-3-8b or qwen2.5-0.5b; an unknown name lists them all.

Speeds are predictions of a model, for the NPU's int8 arrays and four big cores. docs/quantisation.md compares them with
published figures of another runtime.
The exit code is 1 if nothing fits.

Examples:
  rookery plan --model llama-3-8b --board rk3588-8g
  rookery plan --model qwen-w8 --board rk3588-4g --streams 8 --context 4096
  rookery plan --model model.gguf --board rk3588-8g --json | jq .choices[0]"
)]
pub struct PlanArgs {
    /// GGUF file, Hugging Face folder, bundle folder, or the name of a well-known model.
    #[arg(long)]
    model: String,
    /// rk3588-4g, rk3588-8g, rk3588-16g or rk3588-32g.
    #[arg(long, default_value = "rk3588-8g")]
    board: Board,
    /// Generations at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    streams: u64,
    /// Prompt and answer of each, in tokens.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    context: u64,
    /// Tokens of the prompt that time to first token is predicted for. Default: 512, or the context if that is shorter.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    prompt: Option<u64>,
    /// Memory that is left to the system and other programs: kernel, k3s, the page cache's minimum.
    #[arg(long, default_value = "768MiB")]
    reserve: ByteSize,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// A way to serve the model.
#[derive(Serialize)]
struct Choice {
    recipe: String,
    /// For `mixed`: what to give `pack --budget`.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_bytes: Option<u64>,
    /// Bits stored for each weight of the blocks.
    body_bits: f64,
    kv_cache_type: &'static str,
    fits: bool,
    memory: Memory,
    total_bytes: u64,
    /// Address spaces of the NPU that the weights fill.
    npu_domains: u64,
    speed: Vec<Prediction>,
}

#[derive(Serialize)]
struct Report {
    model: String,
    parameters: u64,
    board: String,
    usable_bytes: u64,
    streams: u64,
    context: u64,
    prompt: u64,
    /// Best quality first; those that fit before those that do not.
    choices: Vec<Choice>,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be read or is not known, or nothing fits the board.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let (config, bundle, parameters) = model(&args.model)?;
    if args.context > config.context as u64 {
        return Err(Failure::usage(format!(
            "--context {} is more than the {} tokens that the model was made for",
            args.context, config.context
        )));
    }
    let prompt = args.prompt.unwrap_or(512.min(args.context));
    if prompt > args.context {
        return Err(Failure::usage(format!("--prompt {prompt} is more than --context {}", args.context)));
    }
    let usable = args.board.memory_bytes.saturating_sub(args.reserve.as_u64());
    let planner = Planner { args, config: &config, usable, prompt };
    let choices = planner.choices(bundle);
    let report = Report {
        model: args.model.clone(),
        parameters,
        board: args.board.name.clone(),
        usable_bytes: usable,
        streams: args.streams,
        context: args.context,
        prompt,
        choices,
    };
    if args.json {
        output::json(&report)?
    } else {
        show(&report)?
    }
    if report.choices.iter().any(|choice| choice.fits) {
        return Ok(());
    }
    let least = report.choices.iter().map(|choice| choice.total_bytes).min().unwrap_or(0);
    Err(Failure::new(format!(
        "{} does not fit {}: the smallest choice takes {}, {} are usable",
        report.model,
        report.board,
        gib(least),
        gib(usable)
    ))
    .hint("a shorter --context, fewer --streams or a smaller model would; `rookery prune` makes one"))
}

/// Shape of the model after rotation, which unties a tied head; a bundle's own table; the model's own weights.
fn model(name: &str) -> Result<(ModelConfig, Option<Stored>, u64), Failure> {
    if let Some(config) = shapes::named(name) {
        let parameters = config.parameters();
        return Ok((rotated(config), None, parameters));
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = shapes::names().collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!("{name:?} is no file, no folder and no known model"))
            .hint(format!("known models: {known}")));
    }
    if path.join("oci-layout").is_file() {
        let info = Bundle::inspect(path).or_fail(|| format!("could not read {name}"))?;
        let stored = Stored::of(info.config.recipe.clone(), info.config.tensors);
        return Ok((info.config.model, Some(stored), info.config.parameters));
    }
    let source = source::open(path).or_fail(|| format!("could not import {name}"))?;
    Ok((rotated(source.config().clone()), None, source.parameters()))
}

/// Packing folds the last norm into the head, which then differs from the embedding.
fn rotated(config: ModelConfig) -> ModelConfig {
    ModelConfig { tied_head: false, ..config }
}

struct Planner<'a> {
    args: &'a PlanArgs,
    config: &'a ModelConfig,
    usable: u64,
    prompt: u64,
}

impl Planner<'_> {
    fn choices(&self, bundle: Option<Stored>) -> Vec<Choice> {
        let (eight, four) =
            (Stored::uniform(self.config, Precision::W8), Stored::uniform(self.config, Precision::W4));
        let mut choices = Vec::new();
        for kind in [KvType::F16, KvType::Int8] {
            let mut add = |stored: &Stored, budget| {
                choices.push(self.choice(stored, stored.body_bits(&eight, &four), budget, kind));
            };
            if let Some(bundle) = &bundle {
                add(bundle, None);
                continue;
            }
            add(&eight, None);
            if let Some(mixed) = self.mixed(&eight, &four, kind) {
                add(&mixed, Some(mixed.weight_bytes));
            }
            add(&four, None);
        }
        choices.sort_by(|a, b| {
            (b.fits, b.body_bits).partial_cmp(&(a.fits, a.body_bits)).unwrap_or(std::cmp::Ordering::Equal)
        });
        choices
    }

    /// The largest budget that fits, in whole tenths of a GiB as people write it, if it lies between `w4` and `w8`.
    fn mixed(&self, eight: &Stored, four: &Stored, kind: KvType) -> Option<Stored> {
        const STEP: u64 = (1 << 30) / 10;
        let (streams, context) = (self.args.streams, self.args.context);
        let others = needed(self.config, four, kind, streams, context).total() - four.weight_bytes;
        let budget = self.usable.checked_sub(others)? / STEP * STEP;
        let between = budget > four.weight_bytes && budget < eight.weight_bytes;
        between.then(|| Stored::mixed(eight, four, budget))
    }

    fn choice(&self, stored: &Stored, body_bits: f64, budget_bytes: Option<u64>, kind: KvType) -> Choice {
        let (streams, context) = (self.args.streams, self.args.context);
        let memory = needed(self.config, stored, kind, streams, context);
        let npu_domains = memory.weights.div_ceil(DOMAIN_BYTES);
        let load = Load { streams, context, prompt: self.prompt, kv: kind };
        let at = |place| predict(self.config, stored, load, &self.args.board, place);
        Choice {
            recipe: stored.name.clone(),
            budget_bytes,
            body_bits,
            kv_cache_type: kind.name(),
            fits: memory.total() <= self.usable && npu_domains <= DOMAINS,
            total_bytes: memory.total(),
            memory,
            npu_domains,
            speed: Place::ALL.map(at).into(),
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn show(report: &Report) -> Result<(), Failure> {
    output::line(format_args!(
        "{}: {} weights on {}, {} of memory to use; {} stream(s) of {} tokens, prompts of {}",
        report.model,
        output::grouped(report.parameters),
        report.board,
        gib(report.usable_bytes),
        report.streams,
        report.context,
        report.prompt
    ))?;
    output::line("\nMemory, best quality first")?;
    let mut table = Table::new(&[
        "recipe",
        ">body bits",
        "kv",
        ">weights",
        ">kv cache",
        ">scratch",
        ">all",
        "fits",
        ">npu domains",
    ]);
    for choice in &report.choices {
        table.row([
            label(choice),
            format!("{:.2}", choice.body_bits),
            choice.kv_cache_type.to_owned(),
            gib(choice.memory.weights),
            gib(choice.memory.keys_and_values),
            gib(choice.memory.scratch + choice.memory.process),
            gib(choice.total_bytes),
            if choice.fits { "yes" } else { "no" }.to_owned(),
            format!("{} of {DOMAINS}", choice.npu_domains),
        ]);
    }
    output::write(&table.render())?;
    if !report.choices.iter().any(|choice| choice.fits) {
        return Ok(());
    }
    output::line("\nSpeed, predicted (simulated, nothing measured on a board)")?;
    let mut table = Table::new(&[
        "recipe",
        "kv",
        "on",
        ">decode tok/s",
        ">prefill tok/s",
        ">first token",
        "decode bound by",
        "prefill bound by",
    ]);
    for choice in report.choices.iter().filter(|choice| choice.fits) {
        for speed in &choice.speed {
            table.row([
                label(choice),
                choice.kv_cache_type.to_owned(),
                speed.place.name().to_owned(),
                format!("{:.2}", speed.decode),
                format!("{:.0}", speed.prefill),
                format!("{:.2} s", speed.time_to_first_token),
                speed.decode_bound_by.to_owned(),
                speed.prefill_bound_by.to_owned(),
            ]);
        }
    }
    output::write(&table.render())?;
    match report.choices.iter().find(|choice| choice.fits) {
        Some(best) => output::line(format_args!("\nTo serve the first: {}", worker_line(report, best))),
        None => Ok(()),
    }
}

/// The command that gives a worker what the plan counted with; its defaults hold less.
fn worker_line(report: &Report, choice: &Choice) -> String {
    let cache = choice.memory.keys_and_values.div_ceil(1 << 20);
    format!(
        "rookery worker BUNDLE --kv-cache {cache}MiB --kv-cache-type {} --max-batch {} --context-tokens {}",
        choice.kv_cache_type, report.streams, report.context
    )
}

fn label(choice: &Choice) -> String {
    match choice.budget_bytes {
        Some(budget) => format!("{} --budget {:.1}GiB", choice.recipe, budget as f64 / (1u64 << 30) as f64),
        None => choice.recipe.clone(),
    }
}
