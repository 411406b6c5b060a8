//! Requests that are refused, leave early, come late, or wait: step by step.

use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngSeed, TestRunner};
use rookery_compute_worker::engine::{EngineConfig, GenerationError, SubmitError};
use rookery_kernels::BLOCK_TOKENS;
use rookery_model::pack::Recipe;

use crate::support::{CONTEXT, Driver, VOCABULARY, bundle, config, prompt, request};

fn driver(config: EngineConfig) -> Driver {
    Driver::new(&bundle("qwen2", Recipe::W8), config)
}

#[test]
fn a_thousand_cancellations_at_random_moments_leave_no_block_behind() {
    let mut driver = driver(EngineConfig { max_batch: 4, max_step_tokens: 24, ..config() });
    let total = driver.core.load().total_blocks;
    let mut runner = TestRunner::new(Config {
        cases: 1000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(7),
        ..Config::default()
    });
    let cell = std::cell::RefCell::new(&mut driver);
    let strategy = (1..150_usize, 0..4_u32, 0..30_usize, 0..5_usize);
    let result = runner.run(&strategy, |(length, salt, steps, others)| {
        let mut driver = cell.borrow_mut();
        for other in 0..others {
            driver.submit(request(&format!("other{other}"), prompt(30 + other, salt), 8));
        }
        driver.submit(request("victim", prompt(length, salt), 400));
        (0..steps).for_each(|_| driver.step());
        driver.generations.remove("victim");
        driver.step();
        let held: usize = 3 * others; // Others have at most 30 + 4 + 8 tokens.
        let free = driver.core.load().free_blocks;
        assert!(free >= total - held as u32, "{free} of {total} blocks are free beside {others} others");
        if others == 0 {
            assert_eq!(free, total, "free within one step");
        }
        driver.generations.clear();
        driver.step();
        assert_eq!(driver.core.load().free_blocks, total);
        assert!(driver.core.is_idle());
        driver.take_trace();
        Ok(())
    });
    result.unwrap();
    assert_eq!(3 * BLOCK_TOKENS, 48);
}

#[test]
fn a_deadline_is_honoured_in_the_queue() {
    let mut driver = driver(EngineConfig { max_batch: 1, ..config() });
    driver.submit(request("first", prompt(20, 1), 50));
    driver.step();
    let mut late = request("late", prompt(20, 2), 50);
    late.deadline = Some(Instant::now());
    driver.submit(late);
    assert_eq!(driver.core.load().queued, 1);
    driver.step();
    let expected = GenerationError::DeadlineExceeded { generated_tokens: 0 };
    assert_eq!(driver.outcomes["late"].error, Some(expected));
    assert_eq!(driver.core.load().queued, 0, "its place in the queue is free");
    driver.finish();
    assert_eq!(driver.outcomes["first"].tokens.len(), 50);
}

#[test]
fn a_deadline_is_honoured_while_tokens_are_produced() {
    let mut driver = driver(config());
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut late = request("late", prompt(20, 2), 400);
    late.deadline = Some(deadline);
    driver.submit(late);
    (0..5).for_each(|_| driver.step());
    assert_eq!(driver.outcomes["late"].tokens.len(), 5);
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
    driver.step();
    let expected = GenerationError::DeadlineExceeded { generated_tokens: 5 };
    assert_eq!(driver.outcomes["late"].error, Some(expected));
    let load = driver.core.load();
    assert_eq!((load.running, load.free_blocks), (0, load.total_blocks));
}

#[test]
fn a_full_queue_refuses_by_requests_and_by_tokens() {
    let mut by_requests = driver(EngineConfig { max_batch: 1, max_queued_requests: 2, ..config() });
    by_requests.submit(request("running", prompt(9, 0), 5));
    by_requests.step();
    by_requests.submit(request("a", prompt(9, 1), 5));
    by_requests.submit(request("b", prompt(9, 2), 5));
    let refused = by_requests.core.submit(request("c", prompt(9, 3), 5)).unwrap_err();
    let SubmitError::QueueFull { queued_requests: 2, queued_tokens: 18, retry_after } = refused else {
        panic!("{refused:?}");
    };
    assert!(retry_after >= Duration::from_millis(100));
    by_requests.finish();

    let mut by_tokens = driver(EngineConfig { max_queued_tokens: 100, ..config() });
    by_tokens.submit(request("a", prompt(80, 1), 5));
    let refused = by_tokens.core.submit(request("b", prompt(21, 2), 5)).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull { queued_requests: 1, queued_tokens: 80, .. }));
    by_tokens.submit(request("c", prompt(20, 2), 5));
    by_tokens.finish();
    assert_eq!(by_tokens.outcomes["c"].tokens.len(), 5);
}

#[test]
fn what_cannot_run_is_refused_with_numbers() {
    let mut driver = driver(config());
    let long = driver.core.submit(request("long", prompt(CONTEXT, 1), 5)).unwrap_err();
    assert_eq!(long, SubmitError::PromptTooLong { prompt: CONTEXT, context: CONTEXT });
    let empty = driver.core.submit(request("empty", Vec::new(), 5)).unwrap_err();
    assert_eq!(empty, SubmitError::EmptyPrompt);
    let mut odd = request("odd", vec![1, VOCABULARY], 5);
    let vocabulary = VOCABULARY as usize;
    let refused = driver.core.submit(odd).unwrap_err();
    assert_eq!(refused, SubmitError::InvalidToken { token_id: VOCABULARY, vocabulary });
    odd = request("odd", vec![1], 5);
    odd.sampling.logit_bias = vec![(VOCABULARY + 1, 1.0)];
    let refused = driver.core.submit(odd).unwrap_err();
    assert_eq!(refused, SubmitError::InvalidToken { token_id: VOCABULARY + 1, vocabulary });
    assert!(driver.core.is_idle());
}

#[test]
fn the_context_is_what_the_cache_can_hold() {
    let block_bytes = 2 * 3 * 16 * 2 * 2 * BLOCK_TOKENS; // layers · kv heads · head size · (k, v) · f16 · tokens
    let mut driver = driver(EngineConfig { kv_cache_bytes: (4 * block_bytes) as u64, ..config() });
    assert_eq!(driver.core.info().context_tokens, 64);
    let outcome = driver.run(request("fits", prompt(63, 1), 99));
    assert_eq!(outcome.tokens.len(), 1);
}

#[test]
fn higher_priority_is_served_first() {
    let mut driver = driver(EngineConfig { max_batch: 1, ..config() });
    for (id, priority) in [("c", 0), ("d", 0), ("b", 1), ("a", 5)] {
        let mut request = request(id, prompt(20, 1), 3);
        request.priority = priority;
        driver.submit(request);
    }
    let mut order: Vec<String> = Vec::new();
    while !driver.core.is_idle() {
        driver.step();
        let ended = driver.outcomes.iter().filter(|(_, outcome)| outcome.ended()).map(|(id, _)| id);
        let new: Vec<String> = ended.filter(|id| !order.contains(id)).cloned().collect();
        order.extend(new);
    }
    assert_eq!(order, ["a", "b", "c", "d"]);
}

#[test]
fn a_reader_that_never_reads_does_not_hold_the_engine_up() {
    let mut driver = driver(config());
    driver.submit(request("fast", prompt(20, 1), 60));
    let mut slow = driver.core.submit(request("slow", prompt(20, 2), 60)).unwrap();
    driver.finish();
    assert_eq!(driver.outcomes["fast"].deltas, 60);
    let mut outcome = crate::support::Outcome::default();
    while let Some(event) = slow.try_next() {
        outcome.add(event);
    }
    assert_eq!((outcome.deltas, outcome.tokens.len()), (1, 60), "all tokens in one delta");
    assert!(outcome.reason.is_some());
}

#[test]
fn who_gave_way_is_queued_again_and_nothing_comes_in_beyond_the_bound() {
    let mut driver = driver(EngineConfig { max_batch: 1, max_queued_requests: 1, ..config() });
    let ranked = |id: &str, priority| {
        let mut request = request(id, prompt(20, 1), 5);
        request.priority = priority;
        request
    };
    driver.submit(ranked("low", 0));
    driver.step();
    driver.submit(ranked("high", 1));
    driver.step();
    let load = driver.core.load();
    assert_eq!((load.running, load.queued, load.queued_tokens), (1, 1, 21), "prompt and one token");
    let refused = driver.core.submit(ranked("highest", 2)).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull { queued_requests: 1, queued_tokens: 21, .. }));
    driver.finish();
    assert_eq!(driver.outcomes["low"].tokens.len(), 5);
    assert_eq!(driver.outcomes["low"].usage.preemptions, 1);
}
