//! The f32 reference reproduces llama.cpp's logits. `tests/fixtures/llama_cpp/README.md` says what the fixtures hold.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

use std::path::{Path, PathBuf};

use rookery_compute_worker::model::reference::{Divergence, Reference, ReferenceError, divergence};
use rookery_model::source::{self, ModelSource};

/// Mean divergence allowed, in nats.
const LIMIT: f64 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// Reads little-endian numbers off a fixture.
struct Fixture {
    bytes: Vec<u8>,
    at: usize,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let path = fixtures().join("llama_cpp").join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Fixture { bytes, at: 0 }
    }

    fn words(&mut self, count: usize) -> Vec<[u8; 4]> {
        let words = &self.bytes[self.at..self.at + 4 * count];
        self.at += 4 * count;
        words.as_chunks::<4>().0.to_vec()
    }

    fn u32s(&mut self, count: usize) -> Vec<u32> {
        self.words(count).into_iter().map(u32::from_le_bytes).collect()
    }

    fn f32s(&mut self, count: usize) -> Vec<f32> {
        self.words(count).into_iter().map(f32::from_le_bytes).collect()
    }
}

fn logits(source: &dyn ModelSource, sequences: &[&[u32]]) -> Vec<Vec<Vec<f32>>> {
    let mut rows = vec![Vec::new(); sequences.len()];
    let mut each = |sequence: usize, position: usize, logits: &[f32]| {
        let rows: &mut Vec<Vec<f32>> = &mut rows[sequence];
        assert_eq!(rows.len(), position);
        rows.push(logits.to_vec());
    };
    Reference::open(source).logits(sequences, &mut each).unwrap();
    rows
}

fn tiny(name: &str) -> Box<dyn ModelSource> {
    source::open(&fixtures().join("tiny").join(format!("{name}.gguf"))).unwrap()
}

fn assert_tiny_equals_llama_cpp(name: &str) {
    let mut fixture = Fixture::open(&format!("{name}_logits.bin"));
    let header = fixture.u32s(2);
    let (positions, vocabulary) = (header[0] as usize, header[1] as usize);
    assert!(positions >= 64);
    let tokens = fixture.u32s(positions);
    let found = logits(tiny(name).as_ref(), &[&tokens]).remove(0);
    let mut sum = Divergence::default();
    for logits in &found {
        sum.add(&fixture.f32s(vocabulary), logits);
    }
    assert!(sum.positions == positions && sum.mean() < LIMIT, "{sum:?}");
}

#[test]
fn small_llama3_logits_equal_llama_cpp() {
    assert_tiny_equals_llama_cpp("llama3");
}

#[test]
fn small_qwen2_logits_equal_llama_cpp() {
    assert_tiny_equals_llama_cpp("qwen2");
}

#[test]
fn small_qwen3_logits_equal_llama_cpp() {
    assert_tiny_equals_llama_cpp("qwen3");
}

fn demo() -> Box<dyn ModelSource> {
    let cache = || match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
    };
    let path = std::env::var_os("ROOKERY_DEMO_MODEL").map_or_else(
        || cache().join("rookery/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: run `cargo run --release -- pull demo`", path.display());
    source::open(&path).unwrap()
}

/// `Σ p·ln(p/q)` over the tokens kept one by one and the buckets that hold the rest.
fn grouped_divergence(kept: &[u32], log_p: &[f32], buckets: &[f32], logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_q = |token: usize| f64::from(logits[token] - max) - sum.ln();
    let mut rest = vec![0.0; buckets.len()];
    for token in 0..logits.len() {
        rest[token % buckets.len()] += log_q(token).exp();
    }
    let mut kl = 0.0;
    for (&token, &log_p) in kept.iter().zip(log_p) {
        let (log_p, log_q) = (f64::from(log_p), log_q(token as usize));
        rest[token as usize % buckets.len()] -= log_q.exp();
        kl += log_p.exp() * (log_p - log_q);
    }
    let buckets = buckets.iter().map(|&p| f64::from(p)).zip(rest).filter(|(p, _)| *p > 0.0);
    kl + buckets.map(|(p, q)| p * (p / q.max(f64::MIN_POSITIVE)).ln()).sum::<f64>()
}

#[test]
fn demo_logits_equal_llama_cpp() {
    let mut fixture = Fixture::open("demo_logits.bin");
    let header = fixture.u32s(4);
    let [positions, vocabulary, buckets, full] = [0, 1, 2, 3].map(|i| header[i] as usize);
    assert!(positions >= 64 && full == 1);
    let tokens = fixture.u32s(positions);
    let found = logits(demo().as_ref(), &[&tokens]).remove(0);
    let mut total = 0.0;
    for logits in &found {
        let count = fixture.u32s(1)[0] as usize;
        let (kept, log_p) = (fixture.u32s(count), fixture.f32s(count));
        total += grouped_divergence(&kept, &log_p, &fixture.f32s(buckets), logits);
    }
    let mean = total / positions as f64;
    let last = divergence(&fixture.f32s(vocabulary), &found[positions - 1]);
    println!(
        "demo: mean KL {mean:.3e} over {positions} positions, {last:.3e} over the whole vocabulary at the last"
    );
    assert!(mean.abs() < LIMIT, "mean KL {mean}");
    assert!(last < LIMIT, "KL at the last position {last}");
}

#[test]
fn sequences_do_not_see_each_other() {
    let source = tiny("llama3");
    let (a, b): (Vec<u32>, Vec<u32>) = ((3..40).collect(), (100..117).collect());
    let together = logits(source.as_ref(), &[&a, &[], &b]);
    assert_eq!(
        together,
        [logits(source.as_ref(), &[&a]).remove(0), Vec::new(), logits(source.as_ref(), &[&b]).remove(0)]
    );
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let source = tiny("qwen2");
    let vocabulary = source.config().vocab;
    let error = Reference::open(source.as_ref())
        .logits(&[&[1], &[2, vocabulary as u32]], &mut |_, _, _| {})
        .unwrap_err();
    assert!(matches!(error, ReferenceError::Token { sequence: 1, position: 1, .. }), "{error}");
}
