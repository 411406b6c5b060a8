//! The engine on the NPU's simulator: the same bits as on the processor, whatever the device does.

use rknpu_driver::device::{Device, Interface};
use rknpu_driver::sim::kernel::{SimConfig, Simulation};
use rookery_compute_worker::backend::npu::{NpuBackend, NpuSettings};
use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_compute_worker::config::{NpuFused, NpuPolicy, NpuW4};
use rookery_compute_worker::engine::{EngineConfig, EngineCore, Request, Sampling};
use rookery_kernels::{Kernels, KvType};
use rookery_model::pack::Recipe;

use crate::support::{Driver, MODELS, Packing, Trace, bundle, config, prompt, request};

/// A few requests of different lengths, together: prefill and decode in batches.
fn requests() -> Vec<Request> {
    let lengths = [1, 17, 40, 5];
    let build = |(index, length): (usize, usize)| {
        let mut request = request(&format!("r{index}"), prompt(length, index as u32), 6 + index as u32);
        if index % 2 == 1 {
            request.sampling = Sampling { temperature: 0.9, seed: index as u64, ..request.sampling };
        }
        request
    };
    lengths.into_iter().enumerate().map(|(index, length)| build((index, length))).collect()
}

fn run(core: EngineCore) -> (Driver, Trace) {
    let mut driver = Driver::of(core);
    requests().into_iter().for_each(|request| driver.submit(request));
    driver.finish();
    let trace = driver.take_trace();
    (driver, trace)
}

fn engine_config() -> EngineConfig {
    EngineConfig { threads: 2, max_step_tokens: 48, ..config() }
}

fn on_npu(model: &str, recipe: Recipe, device: Device, settings: &NpuSettings) -> EngineCore {
    let backend = NpuBackend::new(device, Kernels::detect(), settings);
    EngineCore::with_backend(&bundle(model, recipe), engine_config(), Box::new(backend)).unwrap()
}

/// Rotated, of mixed precision, over an int8 cache.
fn mixed(model: &str, backend: impl Backend + 'static) -> EngineCore {
    let config = EngineConfig { kv_type: KvType::Int8, ..engine_config() };
    EngineCore::with_backend(&bundle(model, Packing::Mixed), config, Box::new(backend)).unwrap()
}

fn on_cpu(model: &str, recipe: Recipe) -> Trace {
    run(EngineCore::new(&bundle(model, recipe), engine_config()).unwrap()).1
}

#[test]
fn tokens_and_logits_are_those_of_the_processor() {
    for interface in [Interface::Vendor, Interface::Rocket] {
        for model in MODELS {
            for recipe in [Recipe::W8, Recipe::W4] {
                let simulation = Simulation::new(SimConfig::new(interface));
                let device = simulation.device().unwrap();
                let (driver, trace) = run(on_npu(model, recipe, device.clone(), &NpuSettings::default()));
                assert_eq!(simulation.last_stop(), None, "{interface:?} {model} {recipe}");
                assert!(trace == on_cpu(model, recipe), "{interface:?} {model} {recipe}: logits differ");
                assert_eq!(driver.core.load().degraded, None);
                let health = device.health();
                assert!(health.jobs_done > 50 && health.jobs_failed == 0, "{health:?}");
                drop(driver);
                assert_eq!(device.health().buffers, 0, "all buffers are given back");
            }
        }
    }
}

#[test]
fn with_a_transform_mixed_precision_and_int8_keys_too() {
    for interface in [Interface::Vendor, Interface::Rocket] {
        for model in MODELS {
            let (_, expected) = run(mixed(model, CpuBackend::new(Kernels::detect())));
            for (policy, w4) in [(NpuPolicy::Npu, NpuW4::Int8), (NpuPolicy::Both, NpuW4::Int4)] {
                let simulation = Simulation::new(SimConfig::new(interface));
                let device = simulation.device().unwrap();
                let settings = NpuSettings { policy, w4, ..NpuSettings::default() };
                let backend = NpuBackend::new(device.clone(), Kernels::detect(), &settings);
                let (driver, trace) = run(mixed(model, backend));
                let what = format!("{interface:?} {model} {policy:?}");
                assert_eq!(simulation.last_stop(), None, "{what}");
                assert!(trace == expected, "{what}: logits differ");
                assert_eq!(driver.core.load().degraded, None, "{what}");
                assert!(driver.core.info().backend.ends_with("+kv(int8)"), "{what}");
                let health = device.health();
                assert!(health.jobs_done > 50 && health.jobs_failed == 0, "{what}: {health:?}");
            }
        }
    }
}

#[test]
fn every_policy_gives_the_same_bits() {
    for recipe in [Recipe::W8, Recipe::W4] {
        let expected = on_cpu("qwen2", recipe);
        for interface in [Interface::Vendor, Interface::Rocket] {
            for policy in [NpuPolicy::Npu, NpuPolicy::Cpu, NpuPolicy::Both] {
                let device = Simulation::new(SimConfig::new(interface)).device().unwrap();
                let settings = NpuSettings { policy, ..NpuSettings::default() };
                let (_, trace) = run(on_npu("qwen2", recipe, device.clone(), &settings));
                assert!(trace == expected, "{interface:?} {recipe} {policy:?}: logits differ");
                let used = device.health().jobs_done > 0;
                assert_eq!(used, policy != NpuPolicy::Cpu, "{interface:?} {recipe} {policy:?}");
            }
        }
    }
}

#[test]
fn engines_share_a_device() {
    let device = Simulation::new(SimConfig::new(Interface::Vendor)).device().unwrap();
    let settings = NpuSettings::default();
    let cores = ["qwen2", "llama3"].map(|model| on_npu(model, Recipe::W8, device.clone(), &settings));
    for (core, model) in cores.into_iter().zip(["qwen2", "llama3"]) {
        let before = device.health().jobs_done;
        let (driver, trace) = run(core);
        assert!(trace == on_cpu(model, Recipe::W8), "{model}: logits differ");
        assert_eq!(driver.core.load().degraded, None, "{model}");
        assert!(device.health().jobs_done > before, "{model}");
    }
}

#[test]
fn fused_operations_run_and_are_named() {
    let fused = vec![NpuFused::Silu, NpuFused::Norm];
    let settings = NpuSettings { policy: NpuPolicy::Cpu, fused, ..NpuSettings::default() };
    let device = Simulation::new(SimConfig::new(Interface::Vendor)).device().unwrap();
    let backend = NpuBackend::new(device.clone(), Kernels::detect(), &settings);
    assert!(backend.name().ends_with("+fused(silu,norm)"), "{}", backend.name());
    let (driver, trace) = run(on_npu("qwen2", Recipe::W8, device.clone(), &settings));
    assert_eq!(driver.core.load().degraded, None);
    let health = device.health();
    assert!(health.jobs_done > 20 && health.jobs_failed == 0, "{health:?}");
    assert!(trace != on_cpu("qwen2", Recipe::W8), "fp16 has other bits");
}

#[test]
fn int4_weights_give_the_same_bits_as_int4_and_as_int8() {
    let expected = on_cpu("llama3", Recipe::W4);
    for w4 in [NpuW4::Int4, NpuW4::Int8] {
        for interface in [Interface::Vendor, Interface::Rocket] {
            let simulation = Simulation::new(SimConfig::new(interface));
            let settings = NpuSettings { w4, ..NpuSettings::default() };
            let (_, trace) = run(on_npu("llama3", Recipe::W4, simulation.device().unwrap(), &settings));
            assert_eq!(simulation.last_stop(), None, "{w4:?} {interface:?}");
            assert!(trace == expected, "{w4:?} {interface:?}: logits differ");
        }
    }
}
