//! The demo model in `w8`: whether it speaks, and what memory it takes. How far it is from its source is measured by the
//! quantiser's tests.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop it and say what they measured"
)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use rookery_compute_worker::engine::{EngineConfig, EngineCore, Event, Request, Sampling, Stop};
use rookery_kernels::BLOCK_TOKENS;
use rookery_model::bundle::{Bundle, NoProgress};
use rookery_model::chat::ChatMessage;
use rookery_model::pack::{ExistingTarget, PackOptions, Recipe, pack};
use rookery_model::source::{self, ModelSource};

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

/// Greedy, past the model's own end.
fn plain_request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        id: "quality".to_owned(),
        prompt,
        sampling: Sampling { max_tokens: Some(max_tokens), ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        continuation: None,
        logprobs: None,
        priority: 0,
        deadline: None,
        span: tracing::Span::none(),
    }
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
