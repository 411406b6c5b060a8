//! What quantised models need of the forward pass: keys cached without their bias, the transform before `down`, runs that are
//! watched and resumed, and backends that see what is rounded.

use std::ops::Range;

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::reference::Reference;
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, AttentionQuery, BLOCK_TOKENS, Kernels, KvType, LinearJob, Pool};
use rookery_model::bundle::Bundle;
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::Recipe;
use rookery_model::rotate::{RotateOptions, RotatedSource};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;

use crate::support::{CONTEXT, Driver, MODELS, Packing, bundle, config, packed, prompt, request, source};

/// Tokens of the texts here.
const TOKENS: usize = 70;

fn forward(bundle: &Bundle, kv_type: KvType) -> Forward {
    let limits = ForwardLimits {
        threads: 2,
        blocks: TOKENS.div_ceil(BLOCK_TOKENS),
        kv_type,
        positions: TOKENS,
        max_rows: TOKENS,
        max_logit_rows: TOKENS,
    };
    Forward::new(ModelWeights::resolve(bundle).unwrap(), Kernels::detect(), &limits)
}

/// Calls `run` with a batch of one text, all of whose logits are wanted.
fn with_batch<T>(run: impl FnOnce(&Batch<'_>) -> T) -> T {
    let blocks: Vec<u32> = (0..TOKENS.div_ceil(BLOCK_TOKENS) as u32).collect();
    let queries: Vec<_> = (1..=TOKENS).map(|len| AttentionQuery { blocks: &blocks, len }).collect();
    let wanted: Vec<usize> = (0..TOKENS).collect();
    run(&Batch { tokens: &prompt(TOKENS, 1), queries: &queries, logits_of: &wanted })
}

fn logits(bundle: &Bundle, kv_type: KvType) -> Vec<f32> {
    let mut forward = forward(bundle, kv_type);
    let mut backend = CpuBackend::new(Kernels::detect());
    with_batch(|batch| forward.run(&mut backend, batch)).unwrap();
    all_logits(&forward)
}

fn all_logits(forward: &Forward) -> Vec<f32> {
    forward.logits().flatten().copied().collect()
}

/// Logits of the same text by the f32 reference.
fn exact(source: &dyn ModelSource) -> Vec<f32> {
    let mut all = Vec::new();
    let mut add = |_: usize, _: usize, logits: &[f32]| all.extend_from_slice(logits);
    Reference::open(source).logits(&[&prompt(TOKENS, 1)], &mut add).unwrap();
    all
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let far: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (far / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// A model whose keys have a bias as large as real models have, the same at every position before rotation.
struct LargeKeyBias(Box<dyn ModelSource>);

impl ModelSource for LargeKeyBias {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let mut values = self.0.tensor_rows(name, rows)?;
        if matches!(name, TensorName::Layer(_, LayerTensor::AttnKBias)) {
            // In the pairs that turn slowest, so that scores stay apart by their other values.
            let head_dim = self.config().head_dim;
            for head in values.chunks_exact_mut(head_dim) {
                head[head_dim / 2 - 1] += 200.0;
                head[head_dim - 1] -= 150.0;
            }
        }
        Ok(values)
    }

    fn tokenizer_json(&self) -> &str {
        self.0.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        self.0.tokenizer_config()
    }

    fn digest(&self) -> Result<String, ImportError> {
        self.0.digest()
    }

    fn description(&self) -> String {
        self.0.description()
    }
}

#[test]
fn int8_keys_and_values_change_little_however_large_the_bias_of_keys() {
    let sources = MODELS.map(source).into_iter().chain([Box::new(LargeKeyBias(source("qwen2"))) as _]);
    for (index, source) in sources.enumerate() {
        let (bundle, _folder) = packed(source.as_ref(), Recipe::W8);
        let exact = exact(source.as_ref());
        let (int8, f16) = (logits(&bundle, KvType::Int8), logits(&bundle, KvType::F16));
        assert!(int8 != f16, "{index}: int8 has other bits");
        let (int8, f16) = (distance(&int8, &exact), distance(&f16, &exact));
        assert!(int8 < 1.2 * f16, "{index}: {int8} from the exact logits, {f16} with f16");
    }
}

#[test]
fn a_rotated_model_answers_as_the_one_it_was_made_from() {
    for model in MODELS {
        let source = source(model);
        let rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
        assert!(rotated.config().ffn_hadamard.is_some());
        let (rotated, _folder) = packed(&rotated, Recipe::W8);
        let exact = exact(source.as_ref());
        let of = |bundle: &Bundle| distance(&logits(bundle, KvType::F16), &exact);
        let (rotated, plain) = (of(&rotated), of(&bundle(model, Recipe::W8)));
        assert!(rotated < 1.2 * plain, "{model}: {rotated} from the exact logits, {plain} when not rotated");
    }
}

#[test]
fn a_run_can_be_resumed_before_any_layer() {
    for (packing, kv_type) in [(Packing::Plain(Recipe::W8), KvType::F16), (Packing::Mixed, KvType::Int8)] {
        let bundle = bundle("llama3", packing);
        let mut backend = CpuBackend::new(Kernels::detect());
        let mut seen: Vec<Vec<f32>> = Vec::new();
        let mut whole = forward(&bundle, kv_type);
        let mut watch = |layer: usize, x: &[f32]| {
            assert_eq!(layer, seen.len(), "layers in order");
            seen.push(x.to_vec());
        };
        with_batch(|batch| whole.run_watched(&mut backend, batch, &mut watch)).unwrap();
        let expected = all_logits(&whole);
        assert!(expected == logits(&bundle, kv_type), "watching changes nothing");
        assert_eq!(seen.len(), whole.weights().layers.len());
        for (layer, x) in seen.iter().enumerate() {
            // A pass with an empty cache: the layers before are not needed.
            let mut forward = forward(&bundle, kv_type);
            with_batch(|batch| forward.run_from(&mut backend, batch, layer, x)).unwrap();
            assert!(all_logits(&forward) == expected, "from layer {layer}");
        }
    }
}

/// Rounds activations itself, as the kernels do, and keeps what it saw.
struct Observer {
    inner: CpuBackend,
    kernels: &'static Kernels,
    /// Rows and columns of each call.
    rounded: Vec<(usize, usize)>,
    /// Σ of squares of the last call's rows.
    energy: f64,
    /// Columns of each call of `linear`, and jobs in it.
    multiplied: Vec<(usize, usize)>,
}

impl Backend for Observer {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.multiplied.push((a.cols(), jobs.len()));
        self.inner.linear(pool, a, jobs)
    }

    fn quantize(&mut self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        self.rounded.push((x.len() / cols, cols));
        self.energy = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        self.kernels.quantize(pool, x, cols, out);
        true
    }

    fn name(&self) -> String {
        "observer".to_owned()
    }
}

#[test]
fn a_backend_sees_and_rounds_what_goes_into_linear_layers() {
    let kernels = Kernels::detect();
    let observer = || Observer {
        inner: CpuBackend::new(kernels),
        kernels,
        rounded: Vec::new(),
        energy: 0.0,
        multiplied: Vec::new(),
    };
    for (model, packing) in [("qwen2", Packing::Plain(Recipe::W8)), ("llama3", Packing::Mixed)] {
        let bundle = bundle(model, packing);
        let mut forward = forward(&bundle, KvType::F16);
        let mut backend = observer();
        with_batch(|batch| forward.run(&mut backend, batch)).unwrap();
        assert!(all_logits(&forward) == logits(&bundle, KvType::F16), "{model}: the same rounding");
        let config = &bundle.info().config.model;
        let sites = [config.hidden, config.q_rows(), config.hidden, config.ffn];
        let layers = std::iter::repeat_n(sites, config.layers).flatten();
        let expected: Vec<_> = layers.chain([config.hidden]).map(|cols| (TOKENS, cols)).collect();
        assert_eq!(backend.rounded, expected, "{model}: each input once, in order");
        // Matrices over the same input come together as far as they have as many pieces.
        let first: Vec<_> = backend.multiplied.iter().take(4).copied().collect();
        if packing == Packing::Mixed {
            let heads = [config.kv_heads, config.heads];
            assert!(first.iter().all(|call| call.0 == config.hidden), "{first:?}");
            assert_eq!(first[0].1, 3);
            assert_eq!(first[heads[0]].1, 1, "only q has more pieces than k and v");
        } else {
            let calls = [(config.hidden, 3), (config.q_rows(), 1), (config.hidden, 2), (config.ffn, 1)];
            assert_eq!(first, calls);
        }
    }
}

#[test]
fn an_int8_cache_holds_more_tokens_in_the_same_memory() {
    let blocks = |kv_type| {
        let config = EngineConfig { kv_type, kv_cache_bytes: 64 << 10, max_batch: 16, ..config() };
        let driver = Driver::new(&bundle("qwen3", Recipe::W8), config);
        let load = driver.core.load();
        assert_eq!(driver.core.info().kv_type, kv_type);
        load.total_blocks
    };
    // head_dim 32: 64 bytes of a head in binary16, 32 and a scale in int8.
    assert_eq!(blocks(KvType::Int8), blocks(KvType::F16) * 64 / 36);
    let mut driver = Driver::new(
        &bundle("qwen2", Recipe::W8),
        EngineConfig { kv_type: KvType::Int8, threads: 2, ..config() },
    );
    let outcome = driver.run(request("long", prompt(CONTEXT - 8, 3), 8));
    assert_eq!(outcome.tokens.len(), 8, "up to the end of the context");
}
