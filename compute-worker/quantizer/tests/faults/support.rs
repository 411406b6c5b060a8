//! Tiny bundles of several recipes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_kernels::{Kernels, KvType};
use rookery_model::bundle::{Bundle, NoProgress};
use rookery_model::names::TensorName;
use rookery_model::pack::{ExistingTarget, PackOptions};
use rookery_model::rotate::RotateOptions;
use rookery_model::source::ModelSource;
use rookery_quantizer::eval::layers::{LayerOptions, LayerReport, by_layer};
use rookery_quantizer::eval::{EvalError, NoEvalProgress};
use rookery_quantizer::pack::QuantizeOptions;
use rookery_quantizer::recipe::{Bits, Recipe, Rounding};
use tempfile::TempDir;

use crate::altered::altered;

/// What the tests call recipes: plain rounding by the packer, and the quantiser's.
pub(crate) const RECIPES: [&str; 7] =
    ["plain w8", "plain w4", "w8", "w8 gptq", "w4", "w4 unrotated", "mixed"];

/// Tokens that go through a tiny model.
const TOKENS: u32 = 192;

pub(crate) fn healthy_backend() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(Kernels::detect()))
}

fn source(model: &str) -> Box<dyn ModelSource> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    rookery_model::source::open(&fixtures.join(format!("{model}.gguf"))).unwrap()
}

fn recipe(name: &str) -> Recipe {
    let (bits, w8_rounding) = match name {
        "w8" => (Bits::W8, Rounding::Nearest),
        "w8 gptq" => (Bits::W8, Rounding::Gptq),
        "mixed" => (Bits::Mixed, Rounding::Nearest),
        _ => (Bits::W4, Rounding::Nearest),
    };
    let mut recipe = Recipe::named("w4").unwrap();
    (recipe.bits, recipe.w8_rounding) = (bits, w8_rounding);
    (recipe.calibration.tokens, recipe.calibration.sequence) = (2048, 128);
    (recipe.sensitivity.tokens, recipe.sensitivity.sequence) = (128, 64);
    recipe.budget = (bits == Bits::Mixed).then(|| "7.5bits".parse().unwrap());
    if name.contains("unrotated") {
        recipe.rotate = RotateOptions { residual: false, heads: false, ffn: false };
    }
    recipe
}

/// A bundle, the model it was packed from, and the folder it is in.
#[derive(Clone)]
pub(crate) struct Packed {
    model: String,
    bundle: Arc<Bundle>,
    _folder: Arc<TempDir>,
}

impl Packed {
    /// A tiny model, packed once in this process.
    pub(crate) fn new(model: &str, name: &str) -> Self {
        static PACKED: LazyLock<Mutex<HashMap<String, Packed>>> = LazyLock::new(Mutex::default);
        // A test that failed with the lock held has packed nothing half.
        let mut all = PACKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.entry(format!("{model} {name}")).or_insert_with(|| Self::pack(model, name)).clone()
    }

    fn pack(model: &str, name: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let (source, out) = (source(model), folder.path().join("bundle"));
        if let Some(plain) = name.strip_prefix("plain ") {
            let options = PackOptions {
                name: "tiny".to_owned(),
                recipe: plain.parse().unwrap(),
                threads: 2,
                existing: ExistingTarget::Refuse,
            };
            rookery_model::pack::pack(source.as_ref(), &options, &out, &NoProgress).unwrap();
        } else {
            let mut options = QuantizeOptions::new("tiny", recipe(name));
            (options.threads, options.probes) = (2, false);
            rookery_quantizer::pack::pack(source.as_ref(), &options, &out, &NoProgress).unwrap();
        }
        let bundle = Bundle::open(&out, &NoProgress).unwrap();
        Self { model: model.to_owned(), bundle, _folder: Arc::new(folder) }
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.bundle.info().config.model.head_dim
    }

    pub(crate) fn judge(&self, backend: Box<dyn Backend>, kv_type: KvType) -> LayerReport {
        judge(&self.bundle, &self.model, backend, kv_type).unwrap()
    }

    pub(crate) fn judge_against(&self, model: &str) -> Result<LayerReport, EvalError> {
        judge(&self.bundle, model, healthy_backend(), KvType::F16)
    }

    /// The report on a copy in which one matrix's scales were changed.
    pub(crate) fn altered(&self, tensor: TensorName, change: impl Fn(&mut [f32])) -> LayerReport {
        self.altered_all(&[tensor], change)
    }

    /// The same of several matrices.
    pub(crate) fn altered_all(&self, tensors: &[TensorName], change: impl Fn(&mut [f32])) -> LayerReport {
        let folder = TempDir::new().unwrap();
        let source = source(&self.model);
        let bundle = altered(&self.bundle, source.as_ref(), &folder.path().join("altered"), tensors, &change);
        judge(&bundle, &self.model, healthy_backend(), KvType::F16).unwrap()
    }
}

fn judge(
    bundle: &Bundle,
    model: &str,
    backend: Box<dyn Backend>,
    kv_type: KvType,
) -> Result<LayerReport, EvalError> {
    // Without the special tokens at the end of the vocabulary.
    let tokens = (0..TOKENS).map(|at| at.wrapping_mul(2_654_435_761) >> 7).map(|hash| hash % 496).collect();
    let options = LayerOptions { tokens, kv_type, threads: 2 };
    by_layer(bundle, source(model).as_ref(), backend, &options, &NoEvalProgress)
}
