//! The same request gives the same bits: logits and tokens do not depend on what runs beside it, on chunks, cache,
//! preemption, threads or instruction set.

use std::sync::{Arc, Mutex, PoisonError};

use proptest::test_runner::{Config, TestRunner};
use rookery_compute_worker::engine::{EngineConfig, Request, Sampling};
use rookery_kernels::{BLOCK_TOKENS, Isa, Kernels};
use rookery_model::pack::Recipe;

use crate::support::{CONTEXT, Driver, MODELS, Trace, bundle, config, prompt, request};

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

/// What [`alone`] gave for a model and recipe.
type Known = (&'static str, Recipe, Arc<Trace>);

/// Each request alone on a fresh engine: nothing is cached, nothing is beside it. Computed once per test process.
fn alone(model: &'static str, recipe: Recipe) -> Arc<Trace> {
    static TRACES: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let mut traces = TRACES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, _, trace)) = traces.iter().find(|(of, with, _)| (*of, *with) == (model, recipe)) {
        return Arc::clone(trace);
    }
    let config = EngineConfig { isa: Some(Isa::Scalar), max_step_tokens: 256, ..config() };
    let mut trace = Trace::new();
    for request in requests() {
        let mut driver = Driver::new(&bundle(model, recipe), config.clone());
        driver.run(request);
        trace.append(&mut driver.take_trace());
    }
    let trace = Arc::new(trace);
    traces.push((model, recipe, Arc::clone(&trace)));
    trace
}

fn assert_same(expected: &Trace, trace: &Trace, what: &str) {
    assert!(expected.keys().eq(trace.keys()), "{what}: other positions were sampled");
    for (key, logits) in trace {
        assert!(expected[key] == *logits, "{what}: logits of {key:?} differ");
    }
}

/// Runs all requests together under `config` and compares.
fn together(expected: &Trace, model: &str, recipe: Recipe, config: EngineConfig) -> Driver {
    let what = format!("{model} {recipe} {config:?}");
    let mut driver = Driver::new(&bundle(model, recipe), config);
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

/// Digests of [`alone`]'s bits, taken on x86-64. Every architecture must give the same ones. They change with a change
/// of the packer's or the kernels' arithmetic, which is a change of every model's answers: say so in the changelog.
const GOLDEN: [(&str, Recipe, u64); 6] = [
    ("llama3", Recipe::W8, 0xdab8_b75d_a681_12f6),
    ("llama3", Recipe::W4, 0x6348_0cac_50a9_4d92),
    ("qwen2", Recipe::W8, 0xb2dd_334b_3ef9_b758),
    ("qwen2", Recipe::W4, 0xe3c2_4d3e_6c52_3a1d),
    ("qwen3", Recipe::W8, 0xbc1e_f452_fcca_2882),
    ("qwen3", Recipe::W4, 0xcff7_3f47_fd58_6652),
];

#[test]
fn the_bits_are_those_of_every_other_architecture() {
    let digests = GOLDEN.map(|(model, recipe, _)| (model, recipe, digest(&alone(model, recipe))));
    assert!(digests == GOLDEN, "{digests:#x?}");
}

fn for_every_model(check: impl Fn(&str, Recipe, &Trace)) {
    for model in MODELS {
        for recipe in [Recipe::W8, Recipe::W4] {
            check(model, recipe, &alone(model, recipe));
        }
    }
}

#[test]
fn alone_or_in_a_batch_on_any_threads_and_instruction_set() {
    for_every_model(|model, recipe, expected| {
        for kernels in Kernels::available() {
            for threads in 1..=3 {
                together(
                    expected,
                    model,
                    recipe,
                    EngineConfig { threads, isa: Some(kernels.isa()), ..config() },
                );
            }
        }
    });
}

#[test]
fn however_prompts_are_cut_and_whenever_requests_arrive() {
    let expected = alone("llama3", Recipe::W8);
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let strategy = (1..=16_usize, 0..100_usize, proptest::collection::vec(0..6_usize, 16));
    let result = runner.run(&strategy, |(max_batch, extra, pauses)| {
        let config = EngineConfig { max_batch, max_step_tokens: max_batch + extra, ..config() };
        let mut driver = Driver::new(&bundle("llama3", Recipe::W8), config);
        for (request, pause) in requests().into_iter().zip(pauses) {
            driver.submit(request);
            (0..pause).for_each(|_| driver.step());
        }
        driver.finish();
        assert_same(&expected, &driver.take_trace(), "chunks");
        Ok(())
    });
    result.unwrap();
}

#[test]
fn whether_the_prefix_was_cached_or_not() {
    for_every_model(|model, recipe, expected| {
        let mut driver = together(expected, model, recipe, config());
        driver.generations.clear();
        let requests = requests();
        let longest_cached = |tokens: usize| (tokens - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
        let cached: Vec<u32> = requests.iter().map(|r| longest_cached(r.prompt.len()) as u32).collect();
        requests.into_iter().for_each(|request| driver.submit(request));
        driver.finish();
        assert_same(expected, &driver.take_trace(), &format!("{model} {recipe} cached"));
        let found: Vec<u32> = driver.outcomes.values().map(|outcome| outcome.started.unwrap().1).collect();
        assert_eq!(found, cached, "every full block but the last token's is found");
    });
}

#[test]
fn after_preemption() {
    for_every_model(|model, recipe, expected| {
        let bundle = bundle(model, recipe);
        let block_bytes = {
            let whole =
                Driver::new(&bundle, EngineConfig { max_batch: 1, ..config() }).core.load().total_blocks;
            assert_eq!(whole as usize, CONTEXT / BLOCK_TOKENS);
            let config = &bundle.info().config.model;
            config.layers * config.kv_rows() * 2 * 2 * BLOCK_TOKENS
        };
        for blocks in [14, 17, 30] {
            let kv_cache_bytes = (blocks * block_bytes) as u64;
            let driver = together(expected, model, recipe, EngineConfig { kv_cache_bytes, ..config() });
            let preemptions: u32 = driver.outcomes.values().map(|outcome| outcome.usage.preemptions).sum();
            assert!(preemptions > 0, "{model} {blocks} blocks: nothing was preempted, so nothing was tested");
        }
    });
}
