//! Probes: recorded once, reproduced everywhere, and what they catch.

use std::ops::Range;
use std::sync::Arc;

use rknpu_driver::device::Interface;
use rknpu_driver::sim::kernel::{SimConfig, Simulation};
use rookery_compute_worker::backend::npu::{NpuBackend, NpuSettings};
use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::engine::{EngineConfig, EngineCore};
use rookery_compute_worker::probes::{
    ProbeSet, Prompt, Replay, SelfCheck, TITLE, Topic, is_right, record, replay, replay_bundle,
};
use rookery_kernels::{Activations, Isa, Kernels, KvType, LinearJob, Pool};
use rookery_model::bundle::{Bundle, Digest, NoProgress, PROBES_TYPE};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{Draft, ExistingTarget, Recipe};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;
use tempfile::TempDir;

use crate::support::{Driver, MODELS, Packing, bundle, config, packed, request, source};

/// Texts of several lengths; the last one spans several chunks of the smallest engine here.
fn prompts() -> Vec<Prompt> {
    let long = "a long text that goes on and on, ".repeat(4);
    let texts = ["one", "def add(a, b):\n    return", "2 + 2 = 4\n3 + 5 =", long.as_str()];
    let prompt = |(index, text): (usize, &&str)| Prompt {
        name: format!("text/{index}"),
        topic: Topic::Text,
        text: (*text).to_owned(),
        answer: (index == 2).then(|| " 8".to_owned()),
        tokens: 5 + index,
    };
    texts.iter().enumerate().map(prompt).collect()
}

pub(crate) fn recorded(bundle: &Bundle) -> ProbeSet {
    record(bundle, &prompts(), &config()).unwrap()
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(Kernels::detect()))
}

pub(crate) fn npu(settings: NpuSettings) -> NpuBackend {
    let device = Simulation::new(SimConfig::new(Interface::Vendor)).device().unwrap();
    NpuBackend::new(device, Kernels::detect(), &settings)
}

pub(crate) fn assert_same(replay: &Replay, set: &ProbeSet, what: &str) {
    let tokens: usize = set.probes.iter().map(|probe| probe.recording(replay.kv_type).tokens.len()).sum();
    assert_eq!((replay.probes, replay.positions), (set.probes.len(), tokens), "{what}");
    assert_eq!(replay.differing, [], "{what}");
    assert!(replay.skipped.is_empty(), "{what}");
}

/// `bundle` with a document of probes.
pub(crate) fn with_probes(model: &str, bundle: &Bundle, json: &[u8]) -> (Arc<Bundle>, TempDir) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let mut draft = Draft::create(&out, ExistingTarget::Refuse, "probes").unwrap();
    let config = &bundle.info().config;
    config.parts().for_each(|part| draft.copy_part(bundle, part).unwrap());
    draft.document(PROBES_TYPE, TITLE, json).unwrap();
    draft.publish(config, source(model).as_ref()).unwrap();
    (Bundle::open(&out, &NoProgress).unwrap(), folder)
}

#[test]
fn what_was_recorded_comes_out_on_every_backend() {
    for model in MODELS {
        for packing in [Packing::Plain(Recipe::W8), Packing::Plain(Recipe::W4), Packing::Mixed] {
            let bundle = bundle(model, packing);
            let set = recorded(&bundle);
            assert_eq!(set, recorded(&bundle), "recording twice gives the same");
            for kv_type in KvType::ALL {
                let what = format!("{model} {packing:?} {kv_type}");
                let config = EngineConfig { kv_type, threads: 2, ..config() };
                let scalar = EngineConfig { isa: Some(Isa::Scalar), ..config.clone() };
                let backend = Box::new(CpuBackend::new(scalar.kernels().unwrap()));
                let on_scalar = replay_bundle(&bundle, &set, &scalar, backend, SelfCheck::Full).unwrap();
                assert_same(&on_scalar, &set, &what);
                let npu = Box::new(npu(NpuSettings::default()));
                let on_npu = replay_bundle(&bundle, &set, &config, npu, SelfCheck::Full).unwrap();
                assert_same(&on_npu, &set, &what);
                // One row at a time, on an engine.
                let small = EngineConfig { max_batch: 1, max_step_tokens: 1, ..config };
                let mut core = EngineCore::new(&bundle, small).unwrap();
                assert_same(&replay(&mut core, &set, SelfCheck::Full).unwrap(), &set, &what);
            }
        }
    }
}

#[test]
fn recorded_answers_are_what_an_engine_serves() {
    for kv_type in KvType::ALL {
        let bundle = bundle("qwen2", Packing::Mixed);
        let set = recorded(&bundle);
        let mut driver = Driver::new(&bundle, EngineConfig { kv_type, ..config() });
        for probe in &set.probes {
            let recording = probe.recording(kv_type);
            let count = recording.tokens.len();
            let outcome = driver.run(request(&probe.name, probe.prompt.clone(), count as u32));
            assert_eq!(outcome.tokens, recording.tokens, "{}", probe.name);
            let bytes =
                |logits: Vec<u32>| -> Vec<u8> { logits.iter().flat_map(|x| x.to_le_bytes()).collect() };
            let digests = driver.take_trace().into_values().map(|logits| Digest::of(&bytes(logits)));
            assert_eq!(digests.collect::<Vec<_>>(), recording.logits, "{}", probe.name);
        }
    }
}

#[test]
fn a_quick_check_is_the_beginning_of_a_full_one() {
    let bundle = bundle("llama3", Recipe::W8);
    let mut set = recorded(&bundle);
    let mut core = EngineCore::new(&bundle, config()).unwrap();
    let mut run = |set: &ProbeSet, extent| replay(&mut core, set, extent).unwrap();
    let quick = run(&set, SelfCheck::Quick);
    assert_eq!((quick.probes, quick.positions, quick.differing.len()), (2, 8, 0));
    assert_eq!(run(&set, SelfCheck::Off).positions, 0);
    // What it does not look at is not compared.
    set.probes[0].f16.logits[4] = Digest::of(b"something else");
    assert_eq!(run(&set, SelfCheck::Quick).differing, []);
    let full = run(&set, SelfCheck::Full);
    let [mismatch] = full.differing.as_slice() else { panic!("{full:?}") };
    assert_eq!((mismatch.probe.as_str(), mismatch.position), ("text/0", 4));
    assert_eq!(mismatch.expected.1, Digest::of(b"something else"));
    assert_eq!(mismatch.seen.0, Some(mismatch.expected.0));
    let text = mismatch.to_string();
    assert!(
        text.contains("\"text/0\"") && text.contains("token 4") && text.contains("other logits"),
        "{text}"
    );
}

/// A model of which one row of one tensor is larger; packed, only that row's scale differs.
struct OneScale {
    inner: Box<dyn ModelSource>,
    tensor: TensorName,
    row: usize,
    factor: f32,
}

impl ModelSource for OneScale {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let mut values = self.inner.tensor_rows(name, rows.clone())?;
        if name == self.tensor && rows.contains(&self.row) {
            let cols = values.len() / rows.len();
            let first = (self.row - rows.start) * cols;
            values[first..first + cols].iter_mut().for_each(|value| *value *= self.factor);
        }
        Ok(values)
    }

    fn tokenizer_json(&self) -> &str {
        self.inner.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        self.inner.tokenizer_config()
    }

    fn digest(&self) -> Result<String, ImportError> {
        self.inner.digest()
    }

    fn description(&self) -> String {
        self.inner.description()
    }
}

#[test]
fn one_wrong_scale_in_any_matrix_is_caught() {
    let long = |index: usize| Prompt {
        name: format!("long/{index}"),
        text: format!("{index} times {} is what the {index}th text says about it, ", index * 37).repeat(4),
        tokens: 8,
        ..prompts().remove(0)
    };
    let prompts: Vec<Prompt> = (0..6).map(long).collect();
    let set = record(&bundle("qwen2", Recipe::W8), &prompts, &config()).unwrap();
    let names = source("qwen2").config().tensor_names();
    let matrices = names.into_iter().filter(|name| name.is_linear() && *name != TensorName::TokenEmbedding);
    for (index, tensor) in matrices.enumerate() {
        let inner = source("qwen2");
        let rows = inner.config().shape(tensor).0;
        // What is added to the residual stream, or is a logit, is rounded by nobody. Elsewhere rounding of what goes into the
        // next layer may swallow a small change of one channel.
        let exact = match tensor {
            TensorName::Layer(_, tensor) => matches!(tensor, LayerTensor::AttnOutput | LayerTensor::FfnDown),
            TensorName::TokenEmbedding | TensorName::OutputNorm | TensorName::Output => true,
        };
        let factor = if exact { 1.0 + 1.0 / 128.0 } else { 2.0 };
        let source = OneScale { inner, tensor, row: index * 7 % rows, factor };
        let (altered, _folder) = packed(&source, Recipe::W8);
        let config = EngineConfig { threads: 2, ..config() };
        let run = |extent| replay_bundle(&altered, &set, &config, cpu(), extent).unwrap();
        let full = run(SelfCheck::Full);
        assert!(!full.differing.is_empty(), "{tensor}: {full:?}");
        if exact {
            assert_eq!(run(SelfCheck::Quick).differing.len(), 2, "{tensor}: a quick check sees it too");
        }
    }
}

/// Rounds activations by a rule of its own.
pub(crate) struct Rounding {
    pub(crate) inner: CpuBackend,
    pub(crate) rule: fn(f32) -> f32,
}

impl Backend for Rounding {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)
    }

    fn quantize(&mut self, _: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        for row in x.chunks_exact(cols) {
            let absmax = row.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            let inverse = 127.0 / absmax;
            values.extend(row.iter().map(|value| (self.rule)(value * inverse).clamp(-127.0, 127.0) as i8));
            scales.push(absmax / 127.0);
        }
        *out = Activations::from_rows(cols, &values, &scales);
        true
    }

    fn name(&self) -> String {
        "faulty".to_owned()
    }
}

#[test]
fn activations_rounded_by_another_rule_are_caught() {
    let bundle = bundle("llama3", Packing::Mixed);
    let set = recorded(&bundle);
    let run = |rule: fn(f32) -> f32| {
        let backend = Rounding { inner: CpuBackend::new(Kernels::detect()), rule };
        replay_bundle(&bundle, &set, &config(), Box::new(backend), SelfCheck::Quick).unwrap()
    };
    assert_eq!(run(f32::round_ties_even).differing, [], "the rule itself");
    for (rule, name) in
        [(f32::floor as fn(f32) -> f32, "floor"), (f32::trunc, "truncation"), (f32::ceil, "ceil")]
    {
        assert_eq!(run(rule).differing.len(), 2, "{name}");
    }
}

#[test]
fn probes_that_do_not_fit_the_context_are_skipped_by_name() {
    let bundle = bundle("qwen3", Recipe::W8);
    let set = recorded(&bundle);
    let longest = set.probes[3].prompt.len();
    let config = EngineConfig { context_tokens: Some(longest), ..config() };
    let replay = replay_bundle(&bundle, &set, &config, cpu(), SelfCheck::Full).unwrap();
    assert_eq!((replay.skipped, replay.probes), (vec!["text/3".to_owned()], 3));
    assert_eq!(replay.differing, []);
}

#[test]
fn recording_leaves_out_what_does_not_fit_the_model() {
    let bundle = bundle("qwen3", Recipe::W8);
    let prompts = [Prompt { text: "x y ".repeat(400), ..prompts().remove(0) }];
    assert_eq!(record(&bundle, &prompts, &config()).unwrap().probes, []);
}

#[test]
fn an_answer_is_right_if_nothing_goes_on_from_it() {
    let bundle = bundle("qwen2", Recipe::W8);
    let tokenizer = bundle.tokenizer().unwrap();
    let right = |said: &str, answer| is_right(&tokenizer, &tokenizer.encode_text(said).unwrap(), answer);
    for said in [" 13", "13", "\n13", " 13.", " 13\n8 + 8 = 16"] {
        assert!(right(said, " 13"), "{said:?}");
    }
    for said in ["", " 1", " 130", " 3", "x 13", " 13a"] {
        assert!(!right(said, " 13"), "{said:?}");
    }
    assert!(right("++) {", "++") && right(" + b", "+ b"));
    let end = tokenizer.config().eos[0];
    let mut ended = tokenizer.encode_text(" 13").unwrap();
    ended.push(end);
    ended.extend(tokenizer.encode_text("0").unwrap());
    assert!(is_right(&tokenizer, &ended, "13"), "what comes after the end does not count");
}
