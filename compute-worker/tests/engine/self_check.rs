//! The check before a model is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rookery_compute_worker::backend::npu::{NpuSettings, StepReport};
use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::config::{NpuFused, WorkerConfig};
use rookery_compute_worker::engine::{EngineConfig, EngineCore};
use rookery_compute_worker::probes::{
    ProbeError, ProbeSet, SelfCheck, SelfCheckError, SelfCheckReport, self_check,
};
use rookery_compute_worker::worker::{Worker, WorkerError};
use rookery_kernels::{Activations, Kernels, KvType, LinearJob, Pool};
use rookery_model::bundle::{Bundle, Digest};
use rookery_model::pack::Recipe;

use crate::probes::{Rounding, assert_same, npu, recorded, with_probes};
use crate::support::{bundle, config};

#[test]
fn an_engine_is_checked_before_it_serves() {
    let plain = bundle("qwen2", Recipe::W8);
    let set = recorded(&plain);
    let check = |bundle: &Bundle, config: EngineConfig, extent| {
        self_check(&mut EngineCore::new(bundle, config).unwrap(), bundle, extent)
    };
    let SelfCheckReport::Skipped(reason) = check(&plain, config(), SelfCheck::Quick).unwrap() else {
        panic!("there are no probes");
    };
    assert!(reason.contains("no probes"), "{reason}");

    let (right, _folder) = with_probes("qwen2", &plain, &set.to_json());
    assert_eq!(ProbeSet::of(&right).unwrap().unwrap(), set);
    for kv_type in KvType::ALL {
        let config = EngineConfig { kv_type, ..config() };
        let SelfCheckReport::Passed(replay) = check(&right, config, SelfCheck::Full).unwrap() else {
            panic!("there are probes");
        };
        assert_same(&replay, &set, "self-check");
    }
    let skipped =
        |config, extent| matches!(check(&right, config, extent).unwrap(), SelfCheckReport::Skipped(_));
    assert!(skipped(config(), SelfCheck::Off));
    assert!(skipped(EngineConfig { context_tokens: Some(2), ..config() }, SelfCheck::Full));

    let mut wrong = set.clone();
    wrong.probes[1].f16.tokens[0] = (wrong.probes[1].f16.tokens[0] + 1) % 500;
    let (wrong, _folder) = with_probes("qwen2", &plain, &wrong.to_json());
    let error = check(&wrong, config(), SelfCheck::Quick).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SelfCheckError::Differs { .. }), "{text}");
    let ways_out = ["worker.engine.self-check = \"off\"", "--self-check off"];
    for part in ["text/1", "generated token 0", "expected token", "memory"].into_iter().chain(ways_out) {
        assert!(text.contains(part), "{part}: {text}");
    }
    let int8 = EngineConfig { kv_type: KvType::Int8, ..config() };
    assert!(check(&wrong, int8, SelfCheck::Quick).is_ok(), "each type of cache has its own answers");

    let mut other = set.clone();
    other.probes[3].prompt[0] += 1;
    let (other, _folder) = with_probes("qwen2", &plain, &other.to_json());
    let error = check(&other, config(), SelfCheck::Quick).unwrap_err();
    assert!(matches!(&error, SelfCheckError::Tokenizer { probe, .. } if probe == "text/3"), "{error}");

    let (hostile, _folder) = with_probes("qwen2", &plain, b"[[[[");
    let error = check(&hostile, config(), SelfCheck::Quick).unwrap_err();
    assert!(matches!(error, SelfCheckError::Probes { source: ProbeError::Document(_), .. }), "{error}");
}

#[test]
fn an_accelerator_that_computes_wrongly_is_named() {
    let plain = bundle("llama3", Recipe::W8);
    let (bundle, _folder) = with_probes("llama3", &plain, &recorded(&plain).to_json());
    let faulty = Rounding { inner: CpuBackend::new(Kernels::detect()), rule: f32::floor };
    let mut core = EngineCore::with_backend(&bundle, config(), Box::new(faulty)).unwrap();
    let error = self_check(&mut core, &bundle, SelfCheck::Quick).unwrap_err().to_string();
    for part in
        ["on faulty", "the accelerator is at fault", "worker.engine.backend = \"cpu\"", "--backend cpu"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Counts its calls, for reports, until they are taken.
struct Reporting {
    inner: CpuBackend,
    calls: Arc<AtomicU64>,
    reported: Arc<AtomicU64>,
}

impl Backend for Reporting {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.linear(pool, a, jobs)
    }

    fn reports_steps(&self) -> bool {
        true
    }

    fn take_step_report(&mut self) -> Option<StepReport> {
        let calls = self.calls.swap(0, Ordering::Relaxed);
        self.reported.fetch_add(calls, Ordering::Relaxed);
        (calls > 0).then(|| StepReport { calls, ..StepReport::default() })
    }

    fn name(&self) -> String {
        "reporting".to_owned()
    }
}

#[test]
fn what_an_accelerator_does_for_the_check_is_no_client_s() {
    let plain = bundle("llama3", Recipe::W8);
    let mut set = recorded(&plain);
    let (right, _folder) = with_probes("llama3", &plain, &set.to_json());
    set.probes[0].f16.logits[0] = Digest::of(b"another machine");
    let (wrong, _other) = with_probes("llama3", &plain, &set.to_json());
    for (bundle, passes) in [(right, true), (wrong, false)] {
        let (calls, reported) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let inner = CpuBackend::new(Kernels::detect());
        let backend = Reporting { inner, calls: Arc::clone(&calls), reported: Arc::clone(&reported) };
        let mut core = EngineCore::with_backend(&bundle, config(), Box::new(backend)).unwrap();
        assert_eq!(self_check(&mut core, &bundle, SelfCheck::Quick).is_ok(), passes);
        assert!(reported.load(Ordering::Relaxed) > 0);
        assert_eq!(calls.load(Ordering::Relaxed), 0, "left for the first step");
    }
}

#[test]
fn an_engine_whose_fused_operations_change_answers_is_not_checked() {
    let plain = bundle("qwen2", Recipe::W8);
    let (bundle, _folder) = with_probes("qwen2", &plain, &recorded(&plain).to_json());
    let settings = NpuSettings { fused: vec![NpuFused::Silu], ..NpuSettings::default() };
    let mut core = EngineCore::with_backend(&bundle, config(), Box::new(npu(settings))).unwrap();
    let report = self_check(&mut core, &bundle, SelfCheck::Full).unwrap();
    assert!(matches!(report, SelfCheckReport::Skipped(reason) if reason.contains("NPU")), "{report:?}");
}

#[tokio::test]
async fn a_worker_does_not_serve_a_model_that_answers_differently() {
    let plain = bundle("qwen3", Recipe::W8);
    let mut set = recorded(&plain);
    let valid = |extent| {
        let mut config = WorkerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            gateway_id: Some("probed".to_owned()),
            bundles: vec!["unused".into()],
            ..WorkerConfig::default()
        };
        config.engine.self_check = extent;
        config.validate().unwrap()
    };
    let (right, _folder) = with_probes("qwen3", &plain, &set.to_json());
    let worker = Worker::start_with(valid(SelfCheck::Quick), vec![right]).await.unwrap();
    assert!(worker.drain().await);

    set.probes[0].f16.logits[0] = Digest::of(b"another machine");
    let (wrong, _folder) = with_probes("qwen3", &plain, &set.to_json());
    let refused = Worker::start_with(valid(SelfCheck::Quick), vec![Arc::clone(&wrong)]).await.err().unwrap();
    assert!(matches!(refused, WorkerError::SelfCheck(SelfCheckError::Differs { .. })), "{refused}");
    let worker = Worker::start_with(valid(SelfCheck::Off), vec![wrong]).await.unwrap();
    assert!(worker.drain().await);
}
