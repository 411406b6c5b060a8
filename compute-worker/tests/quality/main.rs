//! The demo model in `w8`: how far it is from the f32 reference, and whether it speaks.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop it and say what they measured"
)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use rookery_compute_worker::backend::CpuBackend;
use rookery_compute_worker::engine::{EngineConfig, EngineCore, Event, Request, Sampling, Stop};
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::reference::{Divergence, Reference, divergence};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{AttentionQuery, BLOCK_TOKENS, Kernels};
use rookery_model::bundle::{Bundle, NoProgress};
use rookery_model::chat::ChatMessage;
use rookery_model::pack::{ExistingTarget, PackOptions, Recipe, pack};
use rookery_model::source::{self, ModelSource};

/// The bound that `w8` must keep on the demo model, in nats.
const MOST_KL: f64 = 0.012;
/// Tokens measured: half code, half prose, in sequences of `SEQUENCE`.
const TOKENS: usize = 4096;
const SEQUENCE: usize = 512;
/// Rows that go through the model at once.
const ROWS: usize = 64;

/// Both tests want all of the machine.
static MACHINE: Mutex<()> = Mutex::new(());

fn demo_model() -> Box<dyn ModelSource> {
    let path = std::env::var_os("ROOKERY_DEMO_MODEL").map_or_else(cached, PathBuf::from);
    assert!(path.exists(), "{} is missing: run `cargo run --release -- pull demo`", path.display());
    source::open(&path).unwrap()
}

fn cached() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("rookery/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
}

/// Packed once per test process.
fn bundle(source: &dyn ModelSource) -> Arc<Bundle> {
    static BUNDLE: OnceLock<Arc<Bundle>> = OnceLock::new();
    let make = || {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("quality-w8");
        let name = "demo".to_owned();
        let options = PackOptions { name, recipe: Recipe::W8, threads: 0, existing: ExistingTarget::Replace };
        let began = Instant::now();
        pack(source, &options, &out, &NoProgress).unwrap();
        let bundle = Bundle::open(&out, &NoProgress).unwrap();
        println!("packed and opened in {:.1} s", began.elapsed().as_secs_f64());
        bundle
    };
    Arc::clone(BUNDLE.get_or_init(make))
}

/// The first `TOKENS / 2` tokens of each text, cut into sequences.
fn sequences(bundle: &Bundle) -> Vec<Vec<u32>> {
    let tokenizer = bundle.tokenizer().unwrap();
    let texts = [
        include_str!("../../../tests/data/eval/code.txt"),
        include_str!("../../../tests/data/eval/prose.txt"),
    ];
    let cut = |text: &str| {
        let tokens = tokenizer.encode_text(text).unwrap();
        assert!(tokens.len() >= TOKENS / 2, "only {} tokens of text", tokens.len());
        tokens[..TOKENS / 2].chunks(SEQUENCE).map(<[u32]>::to_vec).collect::<Vec<_>>()
    };
    texts.into_iter().flat_map(cut).collect()
}

/// The engine's forward pass over one sequence after another, `ROWS` rows ahead of whoever asks.
struct Ahead {
    forward: Forward,
    backend: CpuBackend,
    blocks: Vec<u32>,
}

impl Ahead {
    fn new(bundle: &Bundle) -> Self {
        let blocks = SEQUENCE.div_ceil(BLOCK_TOKENS);
        let threads = EngineConfig::default().threads;
        let kv_type = EngineConfig::default().kv_type;
        let limits = ForwardLimits {
            threads,
            blocks,
            kv_type,
            positions: SEQUENCE,
            max_rows: ROWS,
            max_logit_rows: ROWS,
        };
        let kernels = Kernels::detect();
        let forward = Forward::new(ModelWeights::resolve(bundle).unwrap(), kernels, &limits);
        Self { forward, backend: CpuBackend::new(kernels), blocks: (0..blocks as u32).collect() }
    }

    fn logits(&mut self, tokens: &[u32], position: usize) -> &[f32] {
        if position.is_multiple_of(ROWS) {
            let end = tokens.len().min(position + ROWS);
            let query = |at: usize| AttentionQuery { blocks: &self.blocks, len: at + 1 };
            let queries: Vec<_> = (position..end).map(query).collect();
            let all: Vec<usize> = (0..queries.len()).collect();
            let batch = Batch { tokens: &tokens[position..end], queries: &queries, logits_of: &all };
            self.forward.run(&mut self.backend, &batch).unwrap();
        }
        self.forward.logits().nth(position % ROWS).unwrap()
    }
}

/// Greedy, past the model's own end.
fn plain_request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        id: "quality".to_owned(),
        prompt,
        sampling: Sampling { max_tokens: Some(max_tokens), ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        logprobs: None,
        priority: 0,
        deadline: None,
        span: tracing::Span::none(),
    }
}

#[test]
fn w8_stays_close_to_the_f32_reference() {
    let _machine = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = demo_model();
    let bundle = bundle(source.as_ref());
    let sequences = sequences(&bundle);
    let inputs: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut ahead = Ahead::new(&bundle);
    let (mut sum, mut each) = (Divergence::default(), Vec::with_capacity(TOKENS));
    let began = Instant::now();
    let add = &mut |sequence: usize, position: usize, reference: &[f32]| {
        let logits = ahead.logits(inputs[sequence], position);
        each.push(divergence(reference, logits));
        sum.add(reference, logits);
    };
    Reference::open(source.as_ref()).logits(&inputs, add).unwrap();
    each.sort_by(f64::total_cmp);
    let agreement = sum.same_top as f64 / sum.positions as f64;
    println!(
        "w8 against f32 on {} tokens: mean KL {:.6}, median {:.6}, 99 % {:.6}, largest {:.4}, top-1 agreement {:.2} %, {:.0} s",
        sum.positions,
        sum.mean(),
        each[each.len() / 2],
        each[each.len() * 99 / 100],
        sum.max,
        agreement * 100.0,
        began.elapsed().as_secs_f64()
    );
    assert_eq!(sum.positions, TOKENS);
    assert!(sum.mean() < MOST_KL, "mean KL {} is not below {MOST_KL}", sum.mean());
}

#[test]
fn the_demo_model_writes_a_function_when_asked_to() {
    let _machine = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = demo_model();
    let mut core = EngineCore::new(&bundle(source.as_ref()), EngineConfig::default()).unwrap();
    let content = "Write a Python function add(a, b) that returns the sum of two numbers.".to_owned();
    let rendered = core.tokenizer().render_chat(&[ChatMessage { role: "user".to_owned(), content }]).unwrap();
    let mut request = plain_request(core.tokenizer().encode_prompt(&rendered).unwrap(), 80);
    request.stop = Stop::default();
    let mut generation = core.submit(request).unwrap();
    while !core.is_idle() {
        core.step().unwrap();
    }
    let mut text = String::new();
    while let Some(event) = generation.try_next() {
        if let Event::Delta(delta) = event {
            text.push_str(&delta.text);
        }
    }
    println!("{text}");
    assert!(text.contains("def add(a, b):") && text.contains("return a + b"), "{text}");
}

/// Bytes of memory that belong to this process alone: no mapped files.
fn anonymous_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this test reads Linux's /proc");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon is there since Linux 4.5");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn an_engine_takes_less_than_150_mb_beyond_weights_and_cache() {
    let _machine = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = demo_model();
    let bundle = bundle(source.as_ref());
    let before = anonymous_memory();
    let began = Instant::now();
    let kv_cache_bytes = 32 << 20;
    let config = EngineConfig { threads: 2, kv_cache_bytes, ..EngineConfig::default() };
    let mut core = EngineCore::new(&bundle, config).unwrap();
    println!("engine ready in {:.2} s", began.elapsed().as_secs_f64());
    // Together more tokens than the cache has, none in common: every block is written to.
    let prompts = (0..6).map(|n| vec![1000 + n; 500]);
    assert!(core.load().total_blocks < 6 * 500_u32.div_ceil(BLOCK_TOKENS as u32));
    let generations: Vec<_> = prompts.map(|prompt| core.submit(plain_request(prompt, 4)).unwrap()).collect();
    while !core.is_idle() {
        core.step().unwrap();
    }
    let cache = kv_cache_bytes as usize;
    let taken = anonymous_memory().saturating_sub(before + cache);
    println!("beyond weights and {} MB of cache: {} MB", cache >> 20, taken >> 20);
    assert!(taken < 150 << 20, "{} MB", taken >> 20);
    drop(generations);
}
