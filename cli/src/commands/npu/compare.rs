//! `rookery npu compare`: are the NPU's tokens the processor's, down to the last bit of the logits.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::{Args, ValueEnum};
use rookery_compute_worker::backend::npu::{FaultKind, StepReport};
use rookery_compute_worker::backend::{
    Backend, BackendChoice, BackendError, BackendSettings, Backends, CpuBackend,
};
use rookery_compute_worker::config::NpuPolicy;
use rookery_compute_worker::engine::{EngineConfig, EngineCore, Event, Generation, Request, Sampling, Stop};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, LinearJob, Pool};
use rookery_model::bundle::Bundle;
use serde::Serialize;

use super::counter::Counter;
use crate::commands::worker::KvCacheFlag;
use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::progress::TerminalProgress;

/// Generates the same text with the CPU and with the NPU, and compares the tokens and every bit of their logits.
#[derive(Args, Debug)]
#[command(
    after_help = "Greedy, past the end of the text. Unless worker.npu.policy says otherwise, every linear layer goes to the NPU. Calls
that the CPU had to take over, because the device failed, are counted and are a failure too.

Examples:
  rookery npu compare ./qwen-w8
  rookery npu compare ./qwen-w4 --backend npu --tokens 64 --config board.toml
  ROOKERY_WORKER__NPU__W4=int4 rookery npu compare ./qwen-w4"
)]
pub(super) struct CompareArgs {
    /// The bundle to generate with.
    bundle: PathBuf,
    /// What is compared with the CPU.
    #[arg(long, value_enum, default_value_t)]
    backend: Compared,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    tokens: u32,
    /// What the text begins with.
    #[arg(long, value_name = "TEXT", default_value = "fn is_prime(n: u64) -> bool {")]
    prompt: String,
    /// Threads that compute.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How the key/value cache stores keys and values. Default: f16.
    #[arg(long, value_enum)]
    kv_cache_type: Option<KvCacheFlag>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// What is compared with the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Compared {
    /// A simulated NPU in this process.
    #[default]
    NpuSim,
    /// The NPU.
    Npu,
}

impl CompareArgs {
    /// The settings that the flags make.
    pub(super) fn flags(&self, flags: &mut Flags) {
        flags.set("worker.engine.threads", self.threads);
        flags.set("worker.engine.kv-cache-type", self.kv_cache_type.map(KvCacheFlag::name));
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    recipe: String,
    cpu: String,
    npu: String,
    simulated: bool,
    prompt_tokens: usize,
    tokens: usize,
    logits: usize,
    equal_tokens: usize,
    /// Logits that have the same bits, where both were computed after the same tokens.
    equal_logits: usize,
    calls: u64,
    npu_calls: u64,
    fallbacks: u64,
    cpu_seconds: f64,
    npu_seconds: f64,
    text: String,
}

/// What one backend generated.
struct Generated {
    backend: String,
    text: String,
    tokens: Vec<u32>,
    /// Of each token, `[vocabulary]`.
    logits: Vec<Vec<f32>>,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// If a generation fails, anything differs, or the NPU did not compute.
pub(super) fn run(args: &CompareArgs, config: &Config) -> Result<(), Failure> {
    let wrong = || Failure::config("the worker's settings cannot be used");
    let engine = config.worker.engine.validate().map_err(|error| wrong().caused_by(error))?;
    let mut settings = config.worker.backend().map_err(|error| wrong().caused_by(error))?;
    settings.choice = match args.backend {
        Compared::NpuSim => BackendChoice::NpuSim,
        Compared::Npu => BackendChoice::Npu,
    };
    if settings.npu.policy == NpuPolicy::Auto {
        settings.npu.policy = NpuPolicy::Npu;
    }
    let bundle = Bundle::open(&args.bundle, &TerminalProgress::new())
        .or_fail(|| format!("could not open the bundle {}", args.bundle.display()))?;
    let report = compare(args, &bundle, &engine, &settings)?;
    if args.json { output::json(&report) } else { show(&report) }?;
    verdict(&report)
}

fn compare(
    args: &CompareArgs,
    bundle: &Bundle,
    engine: &EngineConfig,
    settings: &BackendSettings,
) -> Result<Report, Failure> {
    let not_started = || "the engine could not start".to_owned();
    let tokenizer = bundle.tokenizer().or_fail(not_started)?;
    let prompt = tokenizer.encode_prompt(&args.prompt).or_fail(|| "the prompt cannot be read".to_owned())?;
    let kernels = engine.kernels().or_fail(not_started)?;
    let counter = Counter::new(2 * u64::from(args.tokens), "tokens");
    let cpu = generate(bundle, engine, Box::new(CpuBackend::new(kernels)), &prompt, args.tokens, &counter)?;
    let backends = Backends::open(settings).or_fail(not_started)?;
    let total = Arc::new(Mutex::new(StepReport::default()));
    let watched = Watched { inner: backends.backend(kernels), total: Arc::clone(&total) };
    let npu = generate(bundle, engine, Box::new(watched), &prompt, args.tokens, &counter)?;
    counter.finish();
    let total = total.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let same = cpu.tokens.iter().zip(&npu.tokens).take_while(|(cpu, npu)| cpu == npu).count();
    let bits = |cpu: &[f32], npu: &[f32]| {
        cpu.iter().zip(npu).filter(|(cpu, npu)| cpu.to_bits() == npu.to_bits()).count()
    };
    Ok(Report {
        model: bundle.info().config.name.clone(),
        recipe: bundle.info().config.recipe.clone(),
        cpu: cpu.backend,
        npu: npu.backend,
        simulated: total.simulated,
        prompt_tokens: prompt.len(),
        tokens: cpu.tokens.len(),
        logits: cpu.logits.iter().map(Vec::len).sum(),
        equal_tokens: same,
        // After a token that differs, logits are of different texts.
        equal_logits: cpu.logits.iter().zip(&npu.logits).take(same + 1).map(|(a, b)| bits(a, b)).sum(),
        calls: total.calls,
        npu_calls: total.calls - (total.cpu_calls + total.fallbacks).min(total.calls),
        fallbacks: total.fallbacks,
        cpu_seconds: cpu.seconds,
        npu_seconds: npu.seconds,
        text: cpu.text,
    })
}

/// Greedy, `count` tokens, whatever the model thinks of the end.
fn generate(
    bundle: &Bundle,
    engine: &EngineConfig,
    backend: Box<dyn Backend>,
    prompt: &[u32],
    count: u32,
    counter: &Counter,
) -> Result<Generated, Failure> {
    let mut core = EngineCore::with_backend(bundle, engine.clone(), backend)
        .or_fail(|| "the engine could not start".to_owned())?;
    let name = core.info().backend.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    core.observe_logits(Box::new(move |_, _, logits| {
        sink.lock().unwrap_or_else(PoisonError::into_inner).push(logits.to_vec());
    }));
    let request = Request {
        id: "compare".to_owned(),
        prompt: prompt.to_vec(),
        sampling: Sampling { max_tokens: Some(count), ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        continuation: None,
        logprobs: None,
        priority: 0,
        deadline: None,
        span: tracing::Span::none(),
    };
    let mut generation = core.submit(request).or_fail(|| "the engine refused the prompt".to_owned())?;
    let began = Instant::now();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    while !core.is_idle() {
        core.step().or_fail(|| format!("{name} could not compute"))?;
        take(&mut generation, &mut tokens, &mut text, counter)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let logits = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Generated { backend: name, text, tokens, logits, seconds })
}

/// Takes what a step has generated.
fn take(
    generation: &mut Generation,
    tokens: &mut Vec<u32>,
    text: &mut String,
    counter: &Counter,
) -> Result<(), Failure> {
    while let Some(event) = generation.try_next() {
        match event {
            Event::Started { .. } | Event::Finished(_) => {}
            Event::Delta(delta) => {
                delta.token_ids.iter().for_each(|_| counter.advance());
                tokens.extend(delta.token_ids);
                text.push_str(&delta.text);
            }
            Event::Failed(error) => return Err(Failure::new("the generation failed").caused_by(error)),
        }
    }
    Ok(())
}

/// A backend whose steps are added up: without that, an NPU that always fails, and whose work the processor takes over,
/// would compare well.
struct Watched {
    inner: Box<dyn Backend>,
    total: Arc<Mutex<StepReport>>,
}

impl Backend for Watched {
    fn adopt(&mut self, weights: &mut ModelWeights) -> Result<(), BackendError> {
        self.inner.adopt(weights)
    }

    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)
    }

    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> bool {
        self.inner.rms_norm(x, weight, eps, out)
    }

    fn silu_mul(&mut self, gate: &[f32], up: &[f32], columns: usize, out: &mut [f32]) -> bool {
        self.inner.silu_mul(gate, up, columns, out)
    }

    fn quantize(&mut self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        self.inner.quantize(pool, x, cols, out)
    }

    fn is_exact(&self) -> bool {
        self.inner.is_exact()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn degraded(&self) -> Option<FaultKind> {
        self.inner.degraded()
    }

    fn wants_weights(&self) -> bool {
        self.inner.wants_weights()
    }

    fn reports_steps(&self) -> bool {
        self.inner.reports_steps()
    }

    fn take_step_report(&mut self) -> Option<StepReport> {
        let report = self.inner.take_step_report()?;
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.calls += report.calls;
        total.cpu_calls += report.cpu_calls;
        total.fallbacks += report.fallbacks;
        total.simulated |= report.simulated;
        Some(report)
    }
}

fn show(report: &Report) -> Result<(), Failure> {
    let Report { model, recipe, cpu, npu, .. } = report;
    output::line(format!("{model} ({recipe}): {cpu} and {npu}"))?;
    output::line(format!(
        "{} prompt tokens, {} generated: {:?}",
        report.prompt_tokens, report.tokens, report.text
    ))?;
    output::line(format!(
        "tokens: {} of {} equal; logits: {} of {} equal in all bits",
        report.equal_tokens,
        report.tokens,
        output::grouped(report.equal_logits as u64),
        output::grouped(report.logits as u64),
    ))?;
    output::line(format!(
        "calls of linear layers: {}, of which the NPU computed {} and the CPU took over {} after faults",
        output::grouped(report.calls),
        output::grouped(report.npu_calls),
        report.fallbacks,
    ))?;
    let simulator = if report.simulated { " (of the simulator, no board's)" } else { "" };
    output::line(format!("time: {:.1} s and {:.1} s{simulator}", report.cpu_seconds, report.npu_seconds))
}

fn verdict(report: &Report) -> Result<(), Failure> {
    if report.equal_tokens < report.tokens || report.equal_logits < report.logits {
        return Err(Failure::new(format!("{} and {} differ", report.cpu, report.npu)).hint(
            "with worker.npu.fused they may; without it, `rookery npu selftest` finds what the NPU computes wrong",
        ));
    }
    if report.npu_calls == 0 || report.fallbacks > 0 {
        return Err(Failure::new("the answers are equal, but the NPU did not compute all of its part")
            .hint("--log-filter info says what failed; `rookery npu selftest` tries the NPU by itself"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            model: "m".to_owned(),
            recipe: "w8".to_owned(),
            cpu: "cpu".to_owned(),
            npu: "npu".to_owned(),
            simulated: true,
            prompt_tokens: 1,
            tokens: 2,
            logits: 20,
            equal_tokens: 2,
            equal_logits: 20,
            calls: 8,
            npu_calls: 8,
            fallbacks: 0,
            cpu_seconds: 1.0,
            npu_seconds: 1.0,
            text: String::new(),
        }
    }

    #[test]
    fn anything_that_differs_or_was_not_computed_there_is_a_failure() {
        assert!(verdict(&report()).is_ok());
        let worse = [
            Report { equal_tokens: 1, ..report() },
            Report { equal_logits: 19, ..report() },
            Report { npu_calls: 0, ..report() },
            Report { fallbacks: 1, ..report() },
        ];
        for report in worse {
            assert_eq!(verdict(&report).unwrap_err().exit().code(), 1, "{report:?}");
        }
    }
}
