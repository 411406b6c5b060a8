//! Faults put into the simulated NPU: no hang, no wrong bit, no leak, and recovery where the device comes back.
//!
//! `NPU_FAULT_SEEDS=FIRST..END` chooses which mixes run; without it a slice does that takes a few seconds.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rknpu_driver::device::{Device, Interface};
use rknpu_driver::oracle::Generator;
use rknpu_driver::sim::faults::{Fault, FaultPlan, Trigger};
use rknpu_driver::sim::kernel::{SimConfig, Simulation};
use rookery_compute_worker::backend::npu::{FaultKind, FaultLimits, NpuBackend, NpuSettings};
use rookery_compute_worker::backend::{Backend, BackendError};
use rookery_compute_worker::config::{NpuFused, NpuPolicy};
use rookery_compute_worker::engine::{EngineConfig, EngineCore};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};
use rookery_model::pack::Recipe;

use crate::support::{Driver, Trace, bundle, config, prompt, request};

/// Far more than any mix takes; a hang would take for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The runs below have a few hundred jobs; faults fall among them.
const EVENTS: u64 = 300;
/// Faults that happen once do so early enough for the device to be seen to recover.
const TRANSIENT_EVENTS: u64 = 60;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("NPU_FAULT_SEEDS") else { return 0..60 };
    let (first, end) = text.split_once("..").expect("NPU_FAULT_SEEDS is FIRST..END");
    first.parse().unwrap()..end.parse().unwrap()
}

/// What one seed does.
struct Mix {
    plan: FaultPlan,
    interface: Interface,
    recipe: Recipe,
    policy: NpuPolicy,
    /// Faults that happen once each, and leave a device that could work.
    transient: bool,
}

impl Mix {
    fn new(seed: u64) -> Self {
        let mut random = Generator::new(seed);
        let transient = random.below(2) == 0;
        let mut plan = FaultPlan::new(seed);
        for _ in 0..1 + random.below(4) {
            let fault = Fault::ALL[random.below(Fault::ALL.len() as u64) as usize];
            if transient && fault == Fault::GoneForEver {
                continue;
            }
            // Allocations are far fewer than jobs.
            let events = if fault == Fault::OutOfMemory { 20 } else { EVENTS };
            let trigger = match random.below(3) {
                _ if transient => Trigger::At(1 + random.below(events.min(TRANSIENT_EVENTS))),
                0 => Trigger::At(1 + random.below(events)),
                1 => Trigger::Every(1 + random.below(events / 2)),
                _ => Trigger::Probability(random.below(100) as f64 / 400.0),
            };
            plan = plan.with(fault, trigger);
        }
        Self {
            plan,
            interface: if random.below(2) == 0 { Interface::Vendor } else { Interface::Rocket },
            recipe: if random.below(3) == 0 { Recipe::W4 } else { Recipe::W8 },
            policy: if random.below(3) == 0 { NpuPolicy::Both } else { NpuPolicy::Npu },
            transient,
        }
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig { threads: 1, max_step_tokens: 24, ..config() }
}

/// Two rounds of requests; the second is there for what the first one left.
fn run(mut core: EngineCore, rounds: usize) -> (EngineCore, Trace) {
    let mut trace = Trace::new();
    for round in 0..rounds {
        let mut driver = Driver::of(core);
        for (index, length) in [19, 3].into_iter().enumerate() {
            let id = format!("r{round}.{index}");
            driver.submit(request(&id, prompt(length, (round * 10 + index) as u32), 4));
        }
        driver.finish();
        trace.append(&mut driver.take_trace());
        core = driver.core;
    }
    (core, trace)
}

fn backend(device: Device, policy: NpuPolicy) -> NpuBackend {
    let faults = FaultLimits {
        reset_backoff: Duration::ZERO,
        probation_interval: Duration::ZERO,
        settle_calls: 8,
        ..FaultLimits::default()
    };
    NpuBackend::new(device, Kernels::detect(), &NpuSettings { policy, faults, ..NpuSettings::default() })
}

/// Whether the device could be opened, and how many faults were injected.
fn check(seed: u64, expected: &[Trace; 2]) -> (bool, u64) {
    const ROUNDS: usize = 3;
    let mix = Mix::new(seed);
    let what = format!("seed {seed}: {:?} {} {:?} {}", mix.interface, mix.recipe, mix.policy, mix.plan);
    let began = Instant::now();
    let faults = Some(mix.plan.clone());
    let simulation = Simulation::new(SimConfig { faults, report: None, ..SimConfig::new(mix.interface) });
    // A device that fails while it is opened is not used at all.
    let Ok(device) = simulation.device() else { return (false, simulation.faults().total()) };
    let backend = Box::new(backend(device.clone(), mix.policy));
    let core = EngineCore::with_backend(&bundle("qwen2", mix.recipe), engine_config(), backend).unwrap();
    let (core, trace) = run(core, ROUNDS);
    assert!(trace == expected[usize::from(mix.recipe == Recipe::W4)], "{what}: logits differ");
    if mix.transient {
        let before = device.health();
        assert_eq!((core.load().degraded, device.is_faulted()), (None, false), "{what}: no recovery");
        let (core, _) = run(core, 1);
        assert!(device.health().jobs_done > before.jobs_done, "{what}: the NPU is not used again");
        drop(core);
    } else {
        drop(core);
    }
    assert!(began.elapsed() < PATIENCE, "{what}: took {:?}", began.elapsed());
    // What a job that cannot be stopped may still use is kept until a reset; a device that is gone for good has none,
    // and then at most what one job in each address space used.
    let revived = device.reset().is_ok();
    let health = device.health();
    if revived {
        assert_eq!((health.buffers, health.quarantined_jobs), (0, 0), "{what}: {health:?}");
    } else {
        assert!(health.quarantined_jobs <= device.domains().len().min(3), "{what}: {health:?}");
    }
    drop(device);
    // A simulated core lets go of a job a moment after it has told of its end.
    let left =
        || Some(simulation.usage()).filter(|usage| (usage.buffers, usage.files, usage.jobs) != (0, 0, 0));
    while revived && let Some(usage) = left() {
        assert!(began.elapsed() < PATIENCE, "{what}: {usage:?}");
        std::thread::yield_now();
    }
    (true, simulation.faults().total())
}

#[test]
fn whatever_fails_answers_are_right_and_nothing_leaks() {
    let expected = [Recipe::W8, Recipe::W4]
        .map(|recipe| run(EngineCore::new(&bundle("qwen2", recipe), engine_config()).unwrap(), 3).1);
    let results: Vec<(bool, u64)> = seeds().map(|seed| check(seed, &expected)).collect();
    let opened = results.iter().filter(|(opened, _)| *opened).count();
    let hit = results.iter().filter(|(_, faults)| *faults > 0).count();
    assert!(opened * 10 >= results.len() * 9, "{opened} of {} opened", results.len());
    assert!(hit * 2 >= results.len(), "faults in {hit} of {}", results.len());
}

/// A run on the vendor's device with these faults.
fn run_with(plan: FaultPlan, settings: &NpuSettings) -> (EngineCore, Trace, Device, Simulation) {
    let config = SimConfig { faults: Some(plan), report: None, ..SimConfig::new(Interface::Vendor) };
    let simulation = Simulation::new(config);
    let device = simulation.device().unwrap();
    let backend = Box::new(NpuBackend::new(device.clone(), Kernels::detect(), settings));
    let core = EngineCore::with_backend(&bundle("qwen2", Recipe::W8), engine_config(), backend).unwrap();
    let (core, trace) = run(core, 1);
    (core, trace, device, simulation)
}

#[test]
fn too_little_memory_is_no_reason_for_a_reset_and_lasts_until_there_is_some() {
    let expected = run(EngineCore::new(&bundle("qwen2", Recipe::W8), engine_config()).unwrap(), 1).1;
    let plan = |trigger| FaultPlan::new(1).with(Fault::OutOfMemory, trigger);
    // Never any: everything on the processor, and nothing is reset.
    let (core, trace, device, simulation) = run_with(plan(Trigger::Every(1)), &NpuSettings::default());
    assert!(trace == expected);
    assert_eq!((core.load().degraded, device.health().resets), (Some(FaultKind::Memory), 0));
    let refused = simulation.faults().injected(Fault::OutOfMemory);
    assert!((1..200).contains(&refused), "asked for {refused} times");
    // None in one address space, at first: the weights go to the next.
    let (core, trace, device, simulation) = run_with(plan(Trigger::At(1)), &NpuSettings::default());
    assert!(trace == expected);
    assert_eq!(simulation.faults().injected(Fault::OutOfMemory), 1);
    assert_eq!((core.load().degraded, device.health().resets), (None, 0));
    assert!(device.health().jobs_done > 20, "{:?}", device.health());
}

#[test]
fn fused_operations_that_fail_are_the_processors() {
    let expected = run(EngineCore::new(&bundle("qwen2", Recipe::W8), engine_config()).unwrap(), 1).1;
    let fused = vec![NpuFused::Silu, NpuFused::Norm];
    let settings = NpuSettings { policy: NpuPolicy::Cpu, fused, ..NpuSettings::default() };
    let plan = FaultPlan::new(1).with(Fault::TimeOut, Trigger::Every(1));
    let (core, trace, device, _) = run_with(plan, &settings);
    assert!(trace == expected, "what a failed job wrote was used");
    assert!(device.health().jobs_failed > 0 && core.load().degraded.is_some(), "{:?}", device.health());
}

/// Overwrites a byte of the weights of one call, as a device that writes where it should not.
struct Overwriting {
    inner: NpuBackend,
    calls: usize,
    at: usize,
}

impl Backend for Overwriting {
    fn adopt(&mut self, weights: &mut ModelWeights) -> Result<(), BackendError> {
        self.inner.adopt(weights)
    }

    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.calls += 1;
        if self.calls == self.at {
            let tiles = jobs[0].weights.tile_bytes();
            let memory = OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
            memory.write_all_at(&[tiles[0] ^ 0x55], tiles.as_ptr().addr() as u64).unwrap();
        }
        self.inner.linear(pool, a, jobs)
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
}

#[test]
fn overwritten_weights_are_read_from_the_bundle_again() {
    let expected = run(EngineCore::new(&bundle("qwen2", Recipe::W8), engine_config()).unwrap(), 3).1;
    for at in [30, 31, 32, 33] {
        let device = Simulation::new(SimConfig::new(Interface::Vendor)).device().unwrap();
        let inner = backend(device.clone(), NpuPolicy::Npu);
        let overwriting = Box::new(Overwriting { inner, calls: 0, at });
        let core =
            EngineCore::with_backend(&bundle("qwen2", Recipe::W8), engine_config(), overwriting).unwrap();
        let (core, trace) = run(core, 3);
        assert!(trace == expected, "call {at}: logits differ");
        assert_eq!((core.load().degraded, device.health().resets), (None, 1), "call {at}");
    }
}

#[test]
fn a_flipped_bit_never_becomes_a_token() {
    let expected = run(EngineCore::new(&bundle("qwen2", Recipe::W8), engine_config()).unwrap(), 3).1;
    for seed in 0..4 {
        let plan = FaultPlan::new(seed).with(Fault::BitFlip, Trigger::Every(1));
        let simulation =
            Simulation::new(SimConfig { faults: Some(plan), ..SimConfig::new(Interface::Vendor) });
        let device = simulation.device().unwrap();
        let backend = Box::new(backend(device, NpuPolicy::Npu));
        let core = EngineCore::with_backend(&bundle("qwen2", Recipe::W8), engine_config(), backend).unwrap();
        let (core, trace) = run(core, 3);
        assert!(trace == expected, "seed {seed}");
        assert!(
            simulation.faults().injected(Fault::BitFlip) > 10,
            "nothing was flipped, so nothing was tested"
        );
        assert!(core.load().degraded.is_some());
    }
}
