//! `rookery bench`: the engine's speed on this machine, without a network in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rookery_compute_worker::backend::{BackendSettings, Backends};
use rookery_compute_worker::engine::{
    Engine, EngineConfig, EngineHandle, Event, Finished, Request, Sampling, Stop,
};
use rookery_kernels::{BLOCK_TOKENS, KvCache, KvLayout, KvType, Pool, measure_read_bandwidth};
use rookery_model::bundle::Bundle;
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::commands::worker::EngineFlags;
use crate::config::Config;
use crate::error::{Failure, OrFail};
use crate::output::{self, Table};
use crate::progress::TerminalProgress;

mod memory;
mod numbers;

/// Buffer for measuring bandwidth: several times any last-level cache.
const BANDWIDTH_BYTES: usize = 512 << 20;
const BANDWIDTH_PASSES: usize = 5;

/// Measures prefill, decode, latencies, memory, and the share of memory bandwidth that decode reaches.
#[derive(Args, Debug)]
#[command(
    after_help = "Prompts are random tokens from --seed, all different, so that no prefix is reused. Prefill is measured by
itself (one token each); decode over the time in which all streams decode.

Examples:
  rookery bench ./qwen-w8
  rookery bench ./qwen-w8 --concurrency 8 --threads 2 --json"
)]
pub struct BenchArgs {
    /// The bundle to measure.
    bundle: PathBuf,
    /// Length of each prompt.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens that each stream generates.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// Streams at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: u32,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    engine: EngineFlags,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// The engine flags, which share the worker section's settings.
    pub fn engine(&self) -> &EngineFlags {
        &self.engine
    }
}

/// What was measured. Times are in milliseconds, sizes in bytes.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    digest: String,
    recipe: String,
    backend: String,
    threads: usize,
    /// How keys and values are stored: `f16` or `int8`.
    kv_cache_type: &'static str,
    prompt_tokens: u32,
    gen_tokens: u32,
    concurrency: u32,
    /// Prompt tokens per second, all streams together.
    prefill_tok_s: f64,
    /// Generated tokens per second, all streams together, while all of them decode.
    decode_tok_s: f64,
    /// From submission to the first token, median over streams, in the prefill run.
    ttft_ms: f64,
    /// Time between two tokens of a stream.
    itl_ms_p50: f64,
    itl_ms_p99: f64,
    /// Highest resident memory of the process, mapped weights included. What is mapped twice, as a simulated NPU's memory,
    /// counts twice.
    peak_rss_bytes: u64,
    /// Memory of the process after the runs, where every page counts once. The next two, `kv_bytes` and
    /// `other_resident_bytes` are its parts.
    resident_bytes: u64,
    /// Resident pages of files: weights and the program. With an NPU, weights were read from there and computed with
    /// elsewhere.
    file_bytes: u64,
    /// Resident memory of the NPU's buffers, which have its copy of the weights, or of its simulator.
    npu_bytes: u64,
    /// Weights of the bundle.
    weight_bytes: u64,
    /// Memory of the key/value blocks that were used.
    kv_bytes: u64,
    /// Resident memory of the process's own beyond key/value blocks.
    other_resident_bytes: u64,
    /// Memory read per generated token: weights (shared by all streams of a step) and keys and values.
    bytes_per_token: f64,
    /// Bytes per second that reading memory with these threads reaches.
    read_bandwidth: f64,
    /// `bytes_per_token` × `decode_tok_s` ÷ `read_bandwidth`.
    bandwidth_share: f64,
    /// From opening the bundle to a ready engine, hashing included.
    start_ms: f64,
    /// Of that, opening and hashing.
    open_ms: f64,
}

/// Runs the command.
///
/// # Errors
/// If the bundle cannot be opened or a generation fails.
pub async fn run(args: BenchArgs, config: Config) -> Result<(), Failure> {
    let engine = config.worker.engine.validate();
    let mut engine = engine
        .map_err(|error| Failure::config("the engine's configuration cannot be used").caused_by(error))?;
    let backend = config.worker.backend();
    let backend =
        backend.map_err(|error| Failure::config("the NPU's settings cannot be used").caused_by(error))?;
    // All streams must run at once; what is measured is not the queue.
    engine.max_batch = engine.max_batch.max(args.concurrency as usize);
    engine.max_step_tokens = engine.max_step_tokens.max(engine.max_batch);
    engine.max_queued_requests = engine.max_queued_requests.max(args.concurrency as usize);
    engine.max_queued_tokens =
        engine.max_queued_tokens.max(args.concurrency as usize * args.prompt_tokens as usize);
    let (threads, kv_type) = (engine.threads, engine.kv_type);
    let began = Instant::now();
    let bundle = Bundle::open(&args.bundle, &TerminalProgress::new())
        .or_fail(|| format!("could not open the bundle {}", args.bundle.display()))?;
    let open = began.elapsed();
    let handle = start_engine(bundle.clone(), engine, &backend)?;
    let start = began.elapsed();
    let model = &bundle.info().config.model;
    fits(&args, &handle)?;

    let measured = measure(&args, &handle).await?;
    let kv_block = kv_block_bytes(model, kv_type) as u64;
    let kv_bytes = measured.blocks.min(u64::from(handle.load().total_blocks)) * kv_block;
    let memory = memory::read().or_fail(|| "could not read the memory use of this process".to_owned())?;
    let info = handle.info().clone();
    // The engine's threads must not share the processors with the measurement that follows.
    handle.shutdown();
    let bandwidth = measure_read_bandwidth(&Pool::new(threads), BANDWIDTH_BYTES, BANDWIDTH_PASSES);
    let bytes_per_token = bytes_per_token(&bundle, model, kv_type, &args)?;
    let report = Report {
        model: info.name,
        digest: info.digest,
        recipe: info.recipe,
        backend: info.backend,
        threads,
        kv_cache_type: kv_type.name(),
        prompt_tokens: args.prompt_tokens,
        gen_tokens: args.gen_tokens,
        concurrency: args.concurrency,
        prefill_tok_s: measured.prefill_tok_s,
        decode_tok_s: measured.decode_tok_s,
        ttft_ms: measured.ttft_ms,
        itl_ms_p50: measured.itl_ms_p50,
        itl_ms_p99: measured.itl_ms_p99,
        peak_rss_bytes: memory.peak,
        resident_bytes: memory.all,
        file_bytes: memory.files,
        npu_bytes: memory.shared,
        weight_bytes: bundle.weight_bytes(),
        kv_bytes,
        other_resident_bytes: memory.anonymous.saturating_sub(kv_bytes),
        bytes_per_token,
        read_bandwidth: bandwidth,
        bandwidth_share: bytes_per_token * measured.decode_tok_s / bandwidth,
        start_ms: milliseconds(start),
        open_ms: milliseconds(open),
    };
    if args.json { output::json(&report) } else { show(&report) }
}

fn start_engine(
    bundle: Arc<Bundle>,
    engine: EngineConfig,
    backend: &BackendSettings,
) -> Result<EngineHandle, Failure> {
    let not_started = || "the engine could not start".to_owned();
    let backends = Backends::open(backend).or_fail(not_started)?;
    let backend = backends.backend(engine.kernels().or_fail(not_started)?);
    output::note(format_args!("linear layers on {}: {}", backend.name(), backends.reason()));
    Engine::start_with_backend(bundle, engine, backend).or_fail(not_started)
}

fn fits(args: &BenchArgs, engine: &EngineHandle) -> Result<(), Failure> {
    let (wanted, context) =
        (args.prompt_tokens as usize + args.gen_tokens as usize, engine.info().context_tokens);
    if wanted > context {
        return Err(Failure::usage(format!("{wanted} tokens do not fit the context of {context}"))
            .hint("lower --prompt-tokens or --gen-tokens, or raise --kv-cache"));
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Bytes of [`BLOCK_TOKENS`] tokens in the key/value cache, over all layers.
fn kv_block_bytes(model: &ModelConfig, kind: KvType) -> usize {
    let &ModelConfig { layers, kv_heads, head_dim, .. } = model;
    KvCache::bytes_per_block(&KvLayout { layers, blocks: 1, kv_heads, head_dim, kind })
}

/// Bytes read per generated token in the middle of the decode phase. A step reads every weight once for
/// all streams, and each stream's own keys and values.
fn bytes_per_token(
    bundle: &Arc<Bundle>,
    model: &ModelConfig,
    kv_type: KvType,
    args: &BenchArgs,
) -> Result<f64, Failure> {
    let mut weights = 0;
    for name in model.tensor_names() {
        // The embedding table is only looked into, unless it is the head as well.
        if name.is_linear() && (name != TensorName::TokenEmbedding || model.tied_head) {
            let linear = bundle.linear(name).or_fail(|| format!("the bundle lacks {name}"))?;
            weights += linear.segments.iter().map(|segment| segment.view().bytes()).sum::<usize>();
        }
    }
    let per_position = kv_block_bytes(model, kv_type) / BLOCK_TOKENS;
    let positions = f64::from(args.prompt_tokens) + f64::from(args.gen_tokens) / 2.0;
    Ok(weights as f64 / f64::from(args.concurrency) + per_position as f64 * positions)
}

struct Measured {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    ttft_ms: f64,
    itl_ms_p50: f64,
    itl_ms_p99: f64,
    /// Key/value blocks that all runs together have used.
    blocks: u64,
}

async fn measure(args: &BenchArgs, engine: &EngineHandle) -> Result<Measured, Failure> {
    let mut prompts = numbers::Prompts::new(args.seed, engine.info().vocabulary);
    let blocks = |tokens: u32| u64::from(tokens.div_ceil(BLOCK_TOKENS as u32));
    let concurrency = args.concurrency;
    // Touches every page of the weights, and lets clocks and caches settle.
    let warm_up = streams(engine, &mut prompts, 1, args.prompt_tokens.min(32), 4).await?;
    drop(warm_up);

    let began = Instant::now();
    let prefill = streams(engine, &mut prompts, concurrency, args.prompt_tokens, 1).await?;
    let first_tokens: Vec<Duration> =
        prefill.iter().filter_map(|stream| stream.first()).map(|token| *token - began).collect();
    let last = first_tokens.iter().max().copied().unwrap_or_default();

    let decode = streams(engine, &mut prompts, concurrency, args.prompt_tokens, args.gen_tokens).await?;
    let gaps = numbers::gaps_ms(&decode);
    Ok(Measured {
        prefill_tok_s: f64::from(concurrency) * f64::from(args.prompt_tokens) / last.as_secs_f64(),
        decode_tok_s: numbers::steady_rate(&decode),
        ttft_ms: numbers::percentile(&first_tokens.iter().map(|d| milliseconds(*d)).collect::<Vec<_>>(), 0.5),
        itl_ms_p50: numbers::percentile(&gaps, 0.5),
        itl_ms_p99: numbers::percentile(&gaps, 0.99),
        blocks: u64::from(concurrency)
            * (blocks(args.prompt_tokens + 1) + blocks(args.prompt_tokens + args.gen_tokens))
            + blocks(36),
    })
}

/// Runs `count` streams at the same time; the result has, per stream, when each token came.
async fn streams(
    engine: &EngineHandle,
    prompts: &mut numbers::Prompts,
    count: u32,
    prompt_tokens: u32,
    gen_tokens: u32,
) -> Result<Vec<Vec<Instant>>, Failure> {
    let mut running = JoinSet::new();
    for number in 0..count {
        let request = Request {
            id: format!("bench-{number}"),
            prompt: prompts.next(prompt_tokens),
            sampling: Sampling { max_tokens: Some(gen_tokens), ..Sampling::default() },
            stop: Stop { ignore_eos: true, ..Stop::default() },
            continuation: None,
            logprobs: None,
            priority: 0,
            deadline: None,
            span: tracing::Span::none(),
        };
        let mut generation = engine.submit(request).or_fail(|| "the engine refused a stream".to_owned())?;
        running.spawn(async move {
            let mut times = Vec::with_capacity(gen_tokens as usize);
            let mut previous = Instant::now();
            while let Some(event) = generation.next().await {
                let now = Instant::now();
                match event {
                    Event::Started { .. } => {}
                    // Tokens that came together are spread over the time since the ones before.
                    Event::Delta(delta) => {
                        times.extend(numbers::spread(previous, now, delta.token_ids.len()))
                    }
                    Event::Finished(Finished { .. }) => return Ok(times),
                    Event::Failed(error) => return Err(Failure::new("a stream failed").caused_by(error)),
                }
                previous = now;
            }
            Err(Failure::new("a stream ended without a result"))
        });
    }
    let mut all = Vec::new();
    while let Some(joined) = running.join_next().await {
        all.push(joined.or_fail(|| "a stream could not be followed".to_owned())??);
    }
    Ok(all)
}

fn show(report: &Report) -> Result<(), Failure> {
    output::line(format!(
        "{} ({}, {}, {} threads, {} cache): {} stream(s), {} prompt and {} generated tokens each",
        report.model,
        report.recipe,
        report.backend,
        report.threads,
        report.kv_cache_type,
        report.concurrency,
        report.prompt_tokens,
        report.gen_tokens
    ))?;
    let mut table = Table::new(&["", ">", ""]);
    let mut row = |name: &str, value: String, unit: &str| {
        table.row([name.to_owned(), value, unit.to_owned()]);
    };
    row("prefill", format!("{:.1}", report.prefill_tok_s), "tokens/s");
    row("decode", format!("{:.1}", report.decode_tok_s), "tokens/s");
    row("time to first token", format!("{:.1}", report.ttft_ms), "ms");
    row("between tokens, median", format!("{:.2}", report.itl_ms_p50), "ms");
    row("between tokens, 99 %", format!("{:.2}", report.itl_ms_p99), "ms");
    row("memory bandwidth, reading", format!("{:.1}", report.read_bandwidth / 1e9), "GB/s");
    row("reached while decoding", format!("{:.0}", 100.0 * report.bandwidth_share), "%");
    row("resident memory", format!("{:.0}", report.resident_bytes as f64 / 1e6), "MB");
    row("  files, weights among them", format!("{:.0}", report.file_bytes as f64 / 1e6), "MB");
    row("  NPU memory", format!("{:.0}", report.npu_bytes as f64 / 1e6), "MB");
    row("  keys and values in use", format!("{:.0}", report.kv_bytes as f64 / 1e6), "MB");
    row("  all else", format!("{:.0}", report.other_resident_bytes as f64 / 1e6), "MB");
    row("start", format!("{:.0}", report.start_ms), "ms");
    row("  of it hashing", format!("{:.0}", report.open_ms), "ms");
    output::write(table.render().trim_start_matches('\n'))
}
