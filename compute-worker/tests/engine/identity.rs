//! The same request gives the same bits: logits and tokens do not depend on what runs beside it, on chunks, cache,
//! preemption, threads or instruction set, however the model is packed and its keys and values are kept.

use std::sync::{Arc, Mutex, PoisonError};

use proptest::test_runner::{Config, TestRunner};
use rookery_compute_worker::engine::{EngineConfig, Request, Sampling};
use rookery_kernels::{BLOCK_TOKENS, Isa, Kernels, KvType};
use rookery_model::bundle::Bundle;
use rookery_model::pack::Recipe;

use crate::support::{CONTEXT, Driver, MODELS, Packing, Trace, bundle, config, prompt, request};

/// Sixteen requests: short and long prompts, some with a common beginning, half of them sampled.
fn requests() -> Vec<Request> {
    let common = prompt(40, 999);
    let lengths = [1, 2, 15, 16, 17, 31, 33, 48, 64, 65, 90, 100, 120, 129, 150, 7];
    let build = |(index, length): (usize, usize)| {
        let mut tokens = if index % 3 == 0 { common.clone() } else { Vec::new() };
        tokens.extend(prompt(length, index as u32));
        let mut request = request(&format!("r{index:02}"), tokens, 20 + index as u32);
        if index % 2 == 1 {
            request.sampling = Sampling {
                temperature: 0.9,
                top_p: if index % 4 == 1 { 0.9 } else { 1.0 },
                repetition_penalty: if index % 8 == 3 { 1.2 } else { 1.0 },
                seed: index as u64,
                ..request.sampling
            };
        }
        request
    };
    lengths.into_iter().enumerate().map(|(index, length)| build((index, length))).collect()
}

/// A model, how it is packed, and how its keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant(&'static str, Packing, KvType);

/// Each way of packing and keeping.
const WAYS: [(Packing, KvType); 4] = [
    (Packing::Plain(Recipe::W8), KvType::F16),
    (Packing::Plain(Recipe::W4), KvType::F16),
    (Packing::Plain(Recipe::W8), KvType::Int8),
    (Packing::Mixed, KvType::Int8),
];

impl Variant {
    fn bundle(self) -> Arc<Bundle> {
        bundle(self.0, self.1)
    }

    fn config(self) -> EngineConfig {
        EngineConfig { kv_type: self.2, ..config() }
    }
}

/// Each request alone on a fresh engine: nothing is cached, nothing is beside it. Computed once per test process.
fn alone(variant: Variant) -> Arc<Trace> {
    static TRACES: Mutex<Vec<(Variant, Arc<Trace>)>> = Mutex::new(Vec::new());
    let mut traces = TRACES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, trace)) = traces.iter().find(|(of, _)| *of == variant) {
        return Arc::clone(trace);
    }
    let config = EngineConfig { isa: Some(Isa::Scalar), max_step_tokens: 256, ..variant.config() };
    let mut trace = Trace::new();
    for request in requests() {
        let mut driver = Driver::new(&variant.bundle(), config.clone());
        driver.run(request);
        trace.append(&mut driver.take_trace());
    }
    let trace = Arc::new(trace);
    traces.push((variant, Arc::clone(&trace)));
    trace
}

fn assert_same(expected: &Trace, trace: &Trace, what: &str) {
    assert!(expected.keys().eq(trace.keys()), "{what}: other positions were sampled");
    for (key, logits) in trace {
        assert!(expected[key] == *logits, "{what}: logits of {key:?} differ");
    }
}

/// Runs all requests together under `config` and compares.
fn together(expected: &Trace, variant: Variant, config: EngineConfig) -> Driver {
    let what = format!("{variant:?} {config:?}");
    let mut driver = Driver::new(&variant.bundle(), config);
    requests().into_iter().for_each(|request| driver.submit(request));
    driver.finish();
    assert_same(expected, &driver.take_trace(), &what);
    driver
}

/// FNV-1a over everything in a trace.
fn digest(trace: &Trace) -> u64 {
    let words = trace
        .iter()
        .flat_map(|((_, position), logits)| std::iter::once(*position as u32).chain(logits.iter().copied()));
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3))
}

/// Digests of [`alone`]'s bits, one for each of [`WAYS`], taken on x86-64. Every architecture must give the same ones. They
/// change with a change of the packer's, the rotations' or the kernels' arithmetic, which is a change of every model's
/// answers: say so in the changelog.
const GOLDEN: [(&str, [u64; WAYS.len()]); MODELS.len()] = [
    ("llama3", [0xdab8_b75d_a681_12f6, 0x6348_0cac_50a9_4d92, 0xd3f6_9c23_286d_59e0, 0x4646_50dd_bf64_d38b]),
    ("qwen2", [0xb2dd_334b_3ef9_b758, 0xe3c2_4d3e_6c52_3a1d, 0x5455_ccd6_c68e_716b, 0xfa58_e54c_004f_1c37]),
    ("qwen3", [0xbc1e_f452_fcca_2882, 0xcff7_3f47_fd58_6652, 0x2ebb_d6e1_a696_ee6f, 0x8e10_fcee_5c50_6739]),
];

#[test]
fn the_bits_are_those_of_every_other_architecture() {
    let of = |model| WAYS.map(|(packing, kv_type)| digest(&alone(Variant(model, packing, kv_type))));
    let digests = GOLDEN.map(|(model, _)| (model, of(model)));
    assert!(digests == GOLDEN, "{digests:#x?}");
}

fn for_every_variant(check: impl Fn(Variant, &Trace)) {
    for model in MODELS {
        for (packing, kv_type) in WAYS {
            let variant = Variant(model, packing, kv_type);
            check(variant, &alone(variant));
        }
    }
}

#[test]
fn alone_or_in_a_batch_on_any_threads_and_instruction_set() {
    for_every_variant(|variant, expected| {
        for kernels in Kernels::available() {
            for threads in 1..=3 {
                let isa = Some(kernels.isa());
                together(expected, variant, EngineConfig { threads, isa, ..variant.config() });
            }
        }
    });
}

#[test]
fn however_prompts_are_cut_and_whenever_requests_arrive() {
    let variants =
        [Variant("llama3", Recipe::W8.into(), KvType::F16), Variant("qwen2", Packing::Mixed, KvType::Int8)];
    let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
    let strategy = (0..2_usize, 1..=16_usize, 0..100_usize, proptest::collection::vec(0..6_usize, 16));
    let result = runner.run(&strategy, |(variant, max_batch, extra, pauses)| {
        let variant = variants[variant];
        let config = EngineConfig { max_batch, max_step_tokens: max_batch + extra, ..variant.config() };
        let mut driver = Driver::new(&variant.bundle(), config);
        for (request, pause) in requests().into_iter().zip(pauses) {
            driver.submit(request);
            (0..pause).for_each(|_| driver.step());
        }
        driver.finish();
        assert_same(&alone(variant), &driver.take_trace(), "chunks");
        Ok(())
    });
    result.unwrap();
}

#[test]
fn whether_the_prefix_was_cached_or_not() {
    for_every_variant(|variant, expected| {
        let mut driver = together(expected, variant, variant.config());
        driver.generations.clear();
        let requests = requests();
        let longest_cached = |tokens: usize| (tokens - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
        let cached: Vec<u32> = requests.iter().map(|r| longest_cached(r.prompt.len()) as u32).collect();
        requests.into_iter().for_each(|request| driver.submit(request));
        driver.finish();
        assert_same(expected, &driver.take_trace(), &format!("{variant:?} cached"));
        let found: Vec<u32> = driver.outcomes.values().map(|outcome| outcome.started.unwrap().1).collect();
        assert_eq!(found, cached, "every full block but the last token's is found");
    });
}

#[test]
fn after_preemption() {
    for_every_variant(|variant, expected| {
        let bundle = variant.bundle();
        let block_bytes = {
            let one = EngineConfig { max_batch: 1, ..variant.config() };
            assert_eq!(Driver::new(&bundle, one).core.load().total_blocks as usize, CONTEXT / BLOCK_TOKENS);
            let config = &bundle.info().config.model;
            let token = match variant.2 {
                KvType::F16 => config.kv_rows() * 2,
                KvType::Int8 => config.kv_rows() + config.kv_heads * 4, // a scale for each head
            };
            config.layers * token * 2 * BLOCK_TOKENS
        };
        for blocks in [14, 17, 30] {
            let kv_cache_bytes = (blocks * block_bytes) as u64;
            let driver = together(expected, variant, EngineConfig { kv_cache_bytes, ..variant.config() });
            assert_eq!(driver.core.load().total_blocks as usize, blocks, "{variant:?}");
            let preemptions: u32 = driver.outcomes.values().map(|outcome| outcome.usage.preemptions).sum();
            assert!(
                preemptions > 0,
                "{variant:?} {blocks} blocks: nothing was preempted, so nothing was tested"
            );
        }
    });
}
