//! The demo model as `w8`: how far its predictions are from those of its source in f32, and that nothing is wrong inside.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop it and say what they measured"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_kernels::{Kernels, KvType};
use rookery_model::bundle::{Bundle, NoProgress};
use rookery_model::pack::ExistingTarget;
use rookery_model::source::{self, ModelSource};
use rookery_quantizer::eval::layers::{LayerOptions, by_layer};
use rookery_quantizer::eval::{EvalOptions, Model, NoEvalProgress, Subject, Text, evaluate};
use rookery_quantizer::pack::{QuantizeOptions, pack};
use rookery_quantizer::recipe::Recipe;

/// The bounds that `w8` must keep on the demo model: mean divergence in nats, change of perplexity, and what an int8 cache
/// may add to the divergence.
const MOST_KL: f64 = 0.002;
const MOST_PERPLEXITY_CHANGE: f64 = 0.005;
const MOST_KL_OF_INT8_CACHE: f64 = 0.0006;
/// Tokens measured: half code, half prose.
const TOKENS: usize = 4096;
/// Tokens that layers are compared on.
const LAYER_TOKENS: usize = 256;

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

fn packed(source: &dyn ModelSource) -> Arc<Bundle> {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("quantizer-quality-w8");
    let mut options = QuantizeOptions::new("demo", Recipe::named("w8").unwrap());
    // Probes have tests of their own.
    (options.existing, options.probes) = (ExistingTarget::Replace, false);
    let began = Instant::now();
    pack(source, &options, &out, &NoProgress).unwrap();
    println!("packed in {:.1} s", began.elapsed().as_secs_f64());
    Bundle::open(&out, &NoProgress).unwrap()
}

fn backend() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(Kernels::detect()))
}

/// One test, since both halves want all of the machine and the same bundle.
#[test]
fn w8_predicts_what_its_source_does_and_nothing_is_wrong_inside() {
    let source = demo_model();
    let bundle = packed(source.as_ref());
    predictions(source.as_ref(), &bundle);
    layers(source.as_ref(), &bundle);
}

fn predictions(source: &dyn ModelSource, bundle: &Bundle) {
    let subject = |name: &str, model| Subject { name: name.to_owned(), size_bytes: 0, model };
    let with_cache = |kv_type| Model::Bundle { bundle, backend: backend(), kv_type };
    let candidates =
        vec![subject("f16 cache", with_cache(KvType::F16)), subject("int8 cache", with_cache(KvType::Int8))];
    let reference = Some(subject("f32", Model::Source(source)));
    let options = EvalOptions { tokens: Some(TOKENS), ..EvalOptions::default() };
    let report = evaluate(candidates, reference, &Text::builtin(), &options, &NoEvalProgress).unwrap();
    for candidate in &report.candidates {
        let (kl, ratio) = (candidate.kl.unwrap(), candidate.perplexity_ratio.unwrap());
        println!("{}: KL {:?}, perplexity ratio {ratio:?}, {:.0} s", candidate.name, kl.mean, report.seconds);
    }
    assert_eq!(report.tokens, TOKENS);
    let [f16, int8] = &report.candidates[..] else { panic!("two candidates") };
    let mean = |candidate: &rookery_quantizer::eval::CandidateReport| candidate.kl.unwrap().mean.value;
    assert!(mean(f16) <= MOST_KL, "mean KL {}", mean(f16));
    let change = f16.perplexity_ratio.unwrap().value - 1.0;
    assert!(change.abs() <= MOST_PERPLEXITY_CHANGE, "perplexity changes by {change}");
    let added = mean(int8) - mean(f16);
    assert!(added <= MOST_KL_OF_INT8_CACHE, "an int8 cache adds {added}");
}

fn layers(source: &dyn ModelSource, bundle: &Bundle) {
    let tokenizer = bundle.tokenizer().unwrap();
    let texts = Text::builtin();
    let read = |text: &Text| tokenizer.encode_text(&text.text).unwrap();
    let share = LAYER_TOKENS / texts.len();
    let tokens = texts.iter().flat_map(|text| read(text).into_iter().take(share)).collect();
    let options = LayerOptions { tokens, kv_type: KvType::F16, threads: 0 };
    let report = by_layer(bundle, source, backend(), &options, &NoEvalProgress).unwrap();
    println!("layers compared in {:.1} s", report.seconds);
    assert_eq!(report.findings, []);
    assert!(report.same_source);
}
