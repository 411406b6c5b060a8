//! The engine on its own thread: readers that come and go, backends that fail, the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::engine::{
    Engine, EngineHandle, Event, Generation, GenerationError, Load, SubmitError,
};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};
use rookery_model::pack::Recipe;

use crate::support::{Driver, Outcome, bundle, config, prompt, request};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

async fn collect(mut generation: Generation) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(event) = tokio::time::timeout(PATIENCE, generation.next()).await.unwrap() {
        outcome.add(event);
    }
    outcome
}

/// The last event.
async fn collect_rest(mut generation: Generation) -> Option<Event> {
    let mut last = None;
    while let Some(event) = tokio::time::timeout(PATIENCE, generation.next()).await.unwrap() {
        last = Some(event);
    }
    last
}

async fn load_where(engine: &EngineHandle, holds: impl FnMut(&Load) -> bool) -> Load {
    let mut changes = engine.load_changes();
    *tokio::time::timeout(PATIENCE, changes.wait_for(holds)).await.unwrap().unwrap()
}

fn start() -> EngineHandle {
    Engine::start(bundle("qwen3", Recipe::W8), config()).unwrap()
}

#[tokio::test]
async fn many_readers_get_what_each_would_get_alone() {
    let engine = start();
    let all: Vec<Generation> =
        (0..30).map(|n| engine.submit(request("x", prompt(10 + n, n as u32), 25)).unwrap()).collect();
    for (n, generation) in all.into_iter().enumerate() {
        let outcome = collect(generation).await;
        let alone = Driver::new(&bundle("qwen3", Recipe::W8), config()).run(request(
            "x",
            prompt(10 + n, n as u32),
            25,
        ));
        assert_eq!((outcome.tokens, outcome.text), (alone.tokens, alone.text));
    }
    engine.shutdown();
}

#[tokio::test]
async fn a_thousand_readers_leave_at_any_moment_and_every_block_comes_back() {
    let engine = start();
    for n in 0..1000_usize {
        let mut generation = engine.submit(request("x", prompt(1 + n % 90, n as u32 % 5), 300)).unwrap();
        for _ in 0..n % 4 {
            tokio::time::timeout(PATIENCE, generation.next()).await.unwrap().unwrap();
        }
        drop(generation);
        if n % 50 == 0 {
            load_where(&engine, |load| load.running == 0 && load.free_blocks == load.total_blocks).await;
        }
    }
    load_where(&engine, |load| load.running == 0 && load.free_blocks == load.total_blocks).await;
    assert_eq!(collect(engine.submit(request("x", prompt(9, 1), 5)).unwrap()).await.tokens.len(), 5);
    engine.shutdown();
}

#[tokio::test]
async fn shutdown_ends_what_runs_and_refuses_what_comes() {
    let engine = start_slow();
    let mut running = engine.submit(request("x", prompt(20, 1), 400)).unwrap();
    running.next().await.unwrap();
    let joined = engine.clone();
    tokio::task::spawn_blocking(move || joined.shutdown()).await.unwrap();
    assert_eq!(collect_rest(running).await, Some(Event::Failed(GenerationError::Stopped)));
    assert_eq!(engine.submit(request("x", prompt(20, 1), 4)).unwrap_err(), SubmitError::Stopped);
    let load = engine.load();
    assert!(load.failed && load.free_blocks == load.total_blocks);
    engine.shutdown();
}

#[tokio::test]
async fn stopping_does_not_wait_and_ends_what_runs() {
    let engine = start_slow();
    let mut running = engine.submit(request("x", prompt(20, 1), 400)).unwrap();
    running.next().await.unwrap();
    engine.stop_admitting();
    assert_eq!(engine.submit(request("x", prompt(20, 1), 4)).unwrap_err(), SubmitError::Stopped);
    assert_eq!(collect_rest(running).await, Some(Event::Failed(GenerationError::Stopped)));
    load_where(&engine, |load| load.failed).await;
    engine.shutdown();
}

/// Computes correctly, at the pace of a large model: 400 tokens take seconds, so what is to be stopped still runs.
struct Slow(CpuBackend);

impl Backend for Slow {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.linear(pool, a, jobs)
    }

    fn name(&self) -> String {
        "slow".to_owned()
    }
}

fn start_slow() -> EngineHandle {
    let backend = Box::new(Slow(CpuBackend::new(Kernels::detect())));
    Engine::start_with_backend(bundle("qwen3", Recipe::W8), config(), backend).unwrap()
}

/// Computes correctly for a while.
struct Faulty {
    cpu: Slow,
    calls_left: Arc<AtomicUsize>,
    panics: bool,
}

impl Backend for Faulty {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        let left = self.calls_left.fetch_sub(1, Ordering::Relaxed);
        if left == 0 && self.panics {
            panic!("the NPU caught fire");
        }
        if left == 0 {
            return Err(BackendError { backend: self.name(), message: "timeout".to_owned() });
        }
        self.cpu.linear(pool, a, jobs)
    }

    fn name(&self) -> String {
        "faulty".to_owned()
    }
}

async fn fails_with(panics: bool, message: &str) {
    let calls_left = Arc::new(AtomicUsize::new(usize::MAX));
    let cpu = Slow(CpuBackend::new(Kernels::detect()));
    let backend = Box::new(Faulty { cpu, calls_left: Arc::clone(&calls_left), panics });
    let engine = Engine::start_with_backend(bundle("qwen2", Recipe::W8), config(), backend).unwrap();
    let generations: Vec<_> =
        (0..5).map(|n| engine.submit(request("x", prompt(20 + n, 1), 400)).unwrap()).collect();
    // Only now: an engine that fails at once would refuse the last of them.
    calls_left.store(60, Ordering::Relaxed);
    for generation in generations {
        let outcome = collect(generation).await;
        assert_eq!(outcome.error, Some(GenerationError::Internal(message.to_owned())));
    }
    let load = load_where(&engine, |load| load.failed).await;
    assert_eq!((load.running, load.free_blocks), (0, load.total_blocks));
    assert_eq!(engine.submit(request("x", prompt(5, 1), 4)).unwrap_err(), SubmitError::Stopped);
    engine.shutdown();
}

#[tokio::test]
async fn a_panic_inside_a_step_ends_the_engine_and_not_the_process() {
    fails_with(true, "a step panicked").await;
}

#[tokio::test]
async fn a_failing_backend_ends_the_engine_and_says_why() {
    fails_with(false, "backend faulty: timeout").await;
}

#[tokio::test]
async fn dropping_the_last_handle_lets_running_generations_complete() {
    let engine = start();
    let generation = engine.submit(request("x", prompt(20, 1), 40)).unwrap();
    drop(engine);
    assert_eq!(collect(generation).await.tokens.len(), 40);
}
