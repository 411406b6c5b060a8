use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rookery_compute_worker::backend::CpuBackend;
use rookery_kernels::Kernels;
use rookery_model::bundle::{Bundle, NoProgress, Precision};
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;
use rookery_model::pack::PackError;
use rookery_model::rotate::RotateOptions;
use rookery_model::source::ImportError;
use rookery_model::tokenizer::TokenizerConfig;
use tempfile::TempDir;

use super::*;
use crate::eval::layers::{LayerOptions, by_layer};
use crate::eval::{EvalError, EvalOptions, Model, NoEvalProgress, Subject, Text, evaluate};
use crate::recipe::{Budget, HeadSensitivity};

fn tiny(model: &str) -> Box<dyn ModelSource> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    rookery_model::source::open(&fixtures.join(format!("{model}.gguf"))).unwrap()
}

/// A recipe that takes well under a second on a tiny model.
fn quick(name: &str) -> Recipe {
    let mut recipe = Recipe::named(name).unwrap();
    (recipe.calibration.tokens, recipe.calibration.sequence) = (512, 64);
    (recipe.sensitivity.tokens, recipe.sensitivity.sequence) = (64, 32);
    recipe
}

fn mixed(bits: f64) -> Recipe {
    Recipe { budget: Some(Budget::BodyBits(bits)), ..quick("mixed") }
}

fn smooth(name: &str) -> Recipe {
    Recipe { smooth: Some(0.5), ..quick(name) }
}

const UNROTATED: RotateOptions = RotateOptions { residual: false, heads: false, ffn: false };

fn options(recipe: Recipe) -> QuantizeOptions {
    QuantizeOptions { probes: false, threads: 2, ..QuantizeOptions::new("tiny", recipe) }
}

struct Packed {
    folder: TempDir,
    report: PackReport,
}

impl Packed {
    fn path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }
}

fn packed(model: &str, recipe: Recipe) -> Packed {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let report = pack(tiny(model).as_ref(), &options(recipe), &out, &NoProgress).unwrap();
    Packed { folder, report }
}

#[test]
fn the_same_recipe_gives_the_same_bytes_on_any_number_of_threads() {
    for model in ["llama3", "qwen2", "qwen3"] {
        for recipe in [quick("w8"), quick("w4"), mixed(7.0), smooth("w8"), smooth("w4")] {
            let first = packed(model, recipe.clone());
            let folder = TempDir::new().unwrap();
            let one = QuantizeOptions { threads: 1, ..options(recipe) };
            let again = pack(tiny(model).as_ref(), &one, &folder.path().join("b"), &NoProgress).unwrap();
            assert_eq!(first.report, again, "{model}");
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "nothing is left beside the bundle");
        }
    }
}

/// Ends the run at some point, as a crash would.
struct Interrupter(AtomicUsize);

impl Progress for Interrupter {
    fn advance(&self, _bytes: u64) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            panic!("interrupted");
        }
    }
}

#[test]
fn an_interrupted_run_is_taken_up_and_ends_with_the_same_bytes() {
    for recipe in [mixed(7.0), smooth("w8")] {
        let whole = packed("qwen2", recipe.clone());
        let source = tiny("qwen2");
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("bundle");
        let mut steps = 3;
        // Each run gets a little further than the one before.
        let report = loop {
            assert!(steps < 100_000, "never ends");
            let interrupter = Interrupter(AtomicUsize::new(steps));
            let run = || pack(source.as_ref(), &options(recipe.clone()), &out, &interrupter);
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(report) => break report.unwrap(),
                Err(_) => assert!(!out.exists()),
            }
            steps = steps * 5 / 4 + 1;
        };
        assert_eq!(report, whole.report);
    }
}

/// Mean KL divergence from the source, in nats.
fn divergence(source: &dyn ModelSource, bundle: &Bundle) -> f64 {
    let subject = |model| Subject { name: String::new(), size_bytes: 0, model };
    let backend = Box::new(CpuBackend::new(Kernels::detect()));
    let candidate = Model::Bundle { bundle, backend, kv_type: KvType::F16 };
    let options = EvalOptions { tokens: Some(512), sequence: 64, threads: 2 };
    let (candidates, reference) = (vec![subject(candidate)], subject(Model::Source(source)));
    let report = evaluate(candidates, Some(reference), &Text::builtin(), &options, &NoEvalProgress).unwrap();
    report.candidates[0].kl.unwrap().mean.value
}

#[test]
fn smoothed_bundles_stay_as_near_to_their_source() {
    for model in ["llama3", "qwen2", "qwen3"] {
        let source = tiny(model);
        for rotate in [UNROTATED, RotateOptions::default()] {
            let [plain, smoothed] = [quick("w8"), smooth("w8")].map(|recipe| {
                let packed = packed(model, Recipe { rotate, ..recipe });
                let bundle = Bundle::open(&packed.path(), &NoProgress).unwrap();
                (divergence(source.as_ref(), &bundle), bundle)
            });
            assert!(smoothed.0 > 0.0 && smoothed.0 < 2.0 * plain.0, "{model}: {} {}", smoothed.0, plain.0);
            assert_ne!(smoothed.1.info().digest, plain.1.info().digest);
            let config = |bundle: &Bundle| bundle.info().config.clone();
            assert_eq!(config(&smoothed.1).source_digest, config(&plain.1).source_digest);
            assert!(config(&smoothed.1).source.contains("smoothed: 0.5"));
            let record = Quantization::of(&smoothed.1).unwrap().unwrap();
            assert_eq!((record.smooth, record.calibration.map(|text| text.tokens)), (Some(0.5), Some(512)));
        }
    }
}

#[test]
fn smoothing_is_recorded_and_layers_of_such_bundles_are_not_judged() {
    let packed = packed("qwen2", smooth("w8"));
    let record = &packed.report.quantization;
    let json = String::from_utf8(record.to_json()).unwrap();
    assert!(json.contains(r#""smooth":0.5,"#), "{json}");
    assert_eq!(Quantization::parse(json.as_bytes()).as_ref(), Ok(record));
    let before = Quantization { smooth: None, ..record.clone() };
    let json_before = json.replace(r#""smooth":0.5,"#, "");
    assert_eq!(Quantization::parse(json_before.as_bytes()).as_ref(), Ok(&before));
    assert_eq!(before.to_json(), json_before.as_bytes());
    let bundle = Bundle::open(&packed.path(), &NoProgress).unwrap();
    let backend = Box::new(CpuBackend::new(Kernels::detect()));
    let options = LayerOptions { tokens: vec![1, 2, 3], kv_type: KvType::F16, threads: 1 };
    let refused = by_layer(&bundle, tiny("qwen2").as_ref(), backend, &options, &NoEvalProgress).map(drop);
    assert!(matches!(refused, Err(EvalError::Smoothed { strength: 0.5 })), "{refused:?}");
}

#[test]
fn bundles_hold_what_the_recipe_says() {
    let mut recipe = quick("w4");
    recipe.pins = vec!["blk.0.attn_*=w8".parse().unwrap(), "blk.0.attn_q=w4".parse().unwrap()];
    let w4 = packed("qwen2", recipe);
    let bundle = Bundle::open(&w4.path(), &NoProgress).unwrap();
    for entry in &bundle.info().config.tensors {
        let name = entry.name.to_string();
        let attention = name.contains("blk.0.attn_") && !name.contains("attn_q");
        let wanted = if !entry.name.is_linear() {
            Precision::F32
        } else if matches!(entry.name, TensorName::Layer(..)) && !attention {
            Precision::W4
        } else {
            Precision::W8
        };
        assert!(entry.segments.iter().all(|segment| segment.precision == wanted), "{name}");
    }
    let record = Quantization::of(&bundle).unwrap().unwrap();
    assert_eq!(record, w4.report.quantization);
    assert_eq!(record.calibration.unwrap().tokens, 512);
    assert!(record.units.is_empty() && record.body_bits < 8.0);
}

#[test]
fn more_budget_is_never_predicted_worse_and_every_budget_is_kept() {
    let model = "llama3";
    let all_w8 = packed(model, quick("w8")).report.quantization.body_bits;
    let mut before = f64::INFINITY;
    for bits in [6.2, 6.6, 7.0, 7.5, 16.0] {
        let packed = packed(model, mixed(bits));
        let record = &packed.report.quantization;
        assert!(record.body_bits <= bits, "{} of {bits}", record.body_bits);
        let kl = record.predicted_kl.unwrap();
        assert!(kl <= before, "{bits}: {kl} after {before}");
        before = kl;
        let bundle = Bundle::open(&packed.path(), &NoProgress).unwrap();
        for unit in &record.units {
            let entry = bundle.info().config.tensors.iter().find(|entry| entry.name == unit.tensor).unwrap();
            let holds = |s: &&rookery_model::bundle::SegmentEntry| {
                (s.first_row..s.first_row + s.rows).contains(&unit.first_row)
            };
            assert_eq!(entry.segments.iter().find(holds).unwrap().precision, unit.precision);
        }
    }
    assert!(before == 0.0, "everything that matters is at w8: {before}");
    let bytes = packed(model, mixed(7.0)).report.bundle.weight_bytes + 20_000;
    let recipe = Recipe { budget: Some(Budget::WeightBytes(bytes)), ..quick("mixed") };
    let sized = packed(model, recipe).report;
    assert!(sized.bundle.weight_bytes <= bytes);
    assert!(sized.quantization.body_bits < all_w8);
}

#[test]
fn heads_measured_one_by_one_add_up_to_about_their_matrix() {
    let shared = packed("llama3", mixed(7.0)).report.quantization;
    let mut recipe = mixed(7.0);
    recipe.sensitivity.heads = HeadSensitivity::Measured;
    let measured = packed("llama3", recipe).report.quantization;
    assert_eq!(shared.units.len(), measured.units.len());
    assert!(measured.units.iter().all(|unit| !unit.shared && unit.kl >= 0.0));
    assert!(shared.units.iter().any(|unit| unit.kl > 0.0));
}

#[test]
fn faults_are_named_before_anything_is_computed() {
    let source = tiny("llama3");
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let refused =
        |recipe: Recipe| pack(source.as_ref(), &options(recipe), &out, &NoProgress).unwrap_err().to_string();
    assert!(refused(mixed(4.0)).contains("the budget of 4bits is below"));
    let mut recipe = quick("w4");
    recipe.calibration.texts = vec!["no-such-file".into()];
    assert_eq!(refused(recipe), "calibration text");
    assert_eq!(refused(Recipe { smooth: Some(1.5), ..quick("w8") }), "recipe");
    let mut recipe = quick("w8");
    recipe.pins = vec!["nothing=w8".parse().unwrap()];
    assert!(refused(recipe).contains("nothing=w8 fits no tensor"));
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

/// A source that must not be asked for anything.
struct Untouchable;

impl ModelSource for Untouchable {
    fn config(&self) -> &ModelConfig {
        unreachable!("the config")
    }

    fn tensor_rows(&self, name: TensorName, _: Range<usize>) -> Result<Vec<f32>, ImportError> {
        unreachable!("{name}")
    }

    fn tokenizer_json(&self) -> &str {
        unreachable!("the tokenizer")
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        unreachable!("the tokenizer's config")
    }

    fn digest(&self) -> Result<String, ImportError> {
        unreachable!("the digest")
    }

    fn description(&self) -> String {
        unreachable!("the description")
    }
}

#[test]
fn an_existing_target_is_refused_before_the_source_is_read() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("photo"), "precious").unwrap();
    let refused = pack(&Untouchable, &options(quick("w8")), folder.path(), &NoProgress);
    assert!(matches!(refused, Err(QuantizeError::Pack(PackError::TargetExists { .. }))), "{refused:?}");
}
