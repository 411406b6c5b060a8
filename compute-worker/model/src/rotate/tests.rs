//! Rotated tensors as matrices; that models compute the same is tested with the reference forward pass.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::source::{TensorFault, open};

fn fixture(name: &str) -> Box<dyn ModelSource> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    open(&folder.join(name)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn layer(tensor: LayerTensor) -> TensorName {
    TensorName::Layer(1, tensor)
}

/// A source that counts rows read, and whose down projections are unreadable from some row on.
struct Watched<'a> {
    inner: &'a dyn ModelSource,
    config: ModelConfig,
    rows: AtomicUsize,
    broken_down: Option<usize>,
}

impl<'a> Watched<'a> {
    fn new(inner: &'a dyn ModelSource) -> Self {
        Self { inner, config: inner.config().clone(), rows: AtomicUsize::new(0), broken_down: None }
    }
}

impl ModelSource for Watched<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        self.rows.fetch_add(rows.len(), Ordering::Relaxed);
        match self.broken_down {
            Some(row) if name == layer(LayerTensor::FfnDown) && rows.end > row => {
                Err(ImportError::tensor(name.to_string(), TensorFault::Missing))
            }
            _ => self.inner.tensor_rows(name, rows),
        }
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
fn a_rotated_model_has_plain_norms_and_a_head_of_its_own() {
    for name in ["llama3.gguf", "qwen2.gguf", "hf-qwen3"] {
        let source = fixture(name);
        let rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
        let config = rotated.config();
        config.validate().unwrap();
        assert!(!config.tied_head);
        assert_eq!(rotated.parameters(), config.parameters());
        assert_eq!(rotated.digest().unwrap(), source.digest().unwrap());
        for tensor in config.tensor_names() {
            let (rows, columns) = config.shape(tensor);
            let whole = rotated.tensor(tensor).unwrap();
            assert_eq!(whole.len(), rows * columns, "{name} {tensor}");
            let part = rows / 3..rows / 3 + rows.div_ceil(2);
            let rows = rotated.tensor_rows(tensor, part.clone()).unwrap();
            assert_eq!(
                bits(&rows),
                bits(&whole[part.start * columns..part.end * columns]),
                "{name} {tensor}"
            );
        }
        assert!(rotated.tensor(layer(LayerTensor::FfnNorm)).unwrap().iter().all(|&weight| weight == 1.0));
    }
}

#[test]
fn no_rotation_is_the_source_itself() {
    let source = fixture("qwen2.gguf");
    let none = RotateOptions { residual: false, heads: false, ffn: false };
    let same = RotatedSource::new(source.as_ref(), none).unwrap();
    assert_eq!(same.config(), source.config());
    assert_eq!(same.describe(), "none");
    for tensor in source.config().tensor_names() {
        assert_eq!(bits(&same.tensor(tensor).unwrap()), bits(&source.tensor(tensor).unwrap()), "{tensor}");
    }
}

#[test]
fn rotations_keep_the_length_of_what_they_turn() {
    let source = fixture("qwen2.gguf");
    let rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
    let length = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let hidden = source.config().hidden;
    let rows = |source: &dyn ModelSource| source.tensor(TensorName::TokenEmbedding).unwrap();
    for (before, after) in rows(source.as_ref()).chunks(hidden).zip(rows(&rotated).chunks(hidden)) {
        let (before, after) = (length(before), length(after));
        assert!((after / before - 1.0).abs() < 1e-5, "{before} {after}");
    }
    let whole = |source: &dyn ModelSource, tensor| length(&source.tensor(layer(tensor)).unwrap());
    let block = rotated.config().ffn_hadamard.unwrap() as f64;
    for (tensor, factor) in
        [(LayerTensor::AttnOutput, 1.0), (LayerTensor::AttnVBias, 1.0), (LayerTensor::FfnDown, block)]
    {
        let (before, after) = (whole(source.as_ref(), tensor), factor * whole(&rotated, tensor));
        assert!((after / before - 1.0).abs() < 1e-5, "{tensor:?}: {before} {after}");
    }
}

#[test]
fn any_thread_may_ask_for_any_rows() {
    let source = fixture("llama3.gguf");
    let names = [LayerTensor::FfnDown, LayerTensor::AttnV, LayerTensor::AttnOutput, LayerTensor::FfnUp];
    let alone = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
    let expected = names.map(|name| bits(&alone.tensor(layer(name)).unwrap()));
    let shared = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let (shared, expected) = (&shared, &expected);
            scope.spawn(move || {
                for i in (0..8).map(|i| (i + turn) % 4) {
                    let (rows, columns) = shared.config().shape(layer(names[i]));
                    let part = turn..rows - turn;
                    let found = shared.tensor_rows(layer(names[i]), part.clone()).unwrap();
                    assert_eq!(bits(&found), expected[i][part.start * columns..part.end * columns]);
                }
            });
        }
    });
}

#[test]
fn matrices_rotated_whole_are_computed_once_and_two_are_kept() {
    let source = fixture("llama3.gguf");
    let watched = Watched::new(source.as_ref());
    let rotated = RotatedSource::new(&watched, RotateOptions::default()).unwrap();
    let reads = |tensor| {
        let before = watched.rows.load(Ordering::Relaxed);
        (0..6).for_each(|row| drop(rotated.tensor_rows(layer(tensor), row..row + 2).unwrap()));
        watched.rows.load(Ordering::Relaxed) - before
    };
    let hidden = watched.config.hidden;
    assert_eq!(reads(LayerTensor::AttnOutput), hidden);
    assert_eq!(reads(LayerTensor::FfnDown), hidden);
    assert_eq!(reads(LayerTensor::AttnOutput), 0, "kept");
    assert_eq!(reads(LayerTensor::AttnV), watched.config.kv_rows());
    assert_eq!(reads(LayerTensor::AttnOutput), 0, "used last");
    assert_eq!(reads(LayerTensor::FfnDown), hidden, "made room");
}

#[test]
fn unreadable_rows_are_named_and_can_be_read_again() {
    let source = fixture("llama3.gguf");
    let mut watched = Watched::new(source.as_ref());
    watched.broken_down = Some(70);
    let rotated = RotatedSource::new(&watched, RotateOptions::default()).unwrap();
    for _ in 0..2 {
        let error = rotated.tensor_rows(layer(LayerTensor::FfnDown), 0..1).unwrap_err();
        assert_eq!(error.to_string(), r#"tensor "blk.1.ffn_down.weight": missing"#);
    }
    assert!(rotated.tensor(layer(LayerTensor::FfnUp)).is_ok());
}

#[test]
fn a_rotated_model_is_not_rotated_again() {
    let source = fixture("llama3.gguf");
    let rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
    assert!(matches!(RotatedSource::new(&rotated, RotateOptions::default()), Err(RotateError::Rotated)));
}

#[test]
fn sizes_decide_what_is_said() {
    let source = fixture("llama3.gguf");
    let said = |change: fn(&mut ModelConfig)| {
        let mut watched = Watched::new(source.as_ref());
        change(&mut watched.config);
        let rotated = RotatedSource::new(&watched, RotateOptions::default()).unwrap();
        assert_eq!(rotated.config().ffn_hadamard.is_some(), rotated.describe().contains("online"));
        (rotated.describe(), rotated.config().tied_head)
    };
    assert_eq!(said(|_| {}), ("R1 = H8 ⊗ P12, R2 = H16, online H16".to_owned(), false));
    let large = said(|config| (config.hidden, config.head_dim, config.ffn) = (896, 64, 4864));
    assert_eq!(large.0, "R1 = H32 ⊗ P28, R2 = H64, online H256");
    let odd = said(|config| (config.hidden, config.head_dim, config.ffn) = (23 * 32, 23 * 16, 24));
    assert_eq!(odd.0, "R1 = I23 ⊗ H32, R2 = I23 ⊗ H16");
    let none = said(|config| (config.hidden, config.head_dim, config.tied_head) = (23 * 8, 16, true));
    assert_eq!(none, ("R2 = H16, online H16".to_owned(), true), "the head stays tied");
}

#[test]
fn the_bytes_of_rotated_models_are_fixed() {
    let source = fixture("qwen2.gguf");
    let hash = |threads| {
        let mut rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
        rotated.threads = threads;
        let names = rotated.config().tensor_names();
        let values = names.into_iter().flat_map(|name| rotated.tensor(name).unwrap());
        // FNV-1a over words.
        values.fold(0xCBF2_9CE4_8422_2325u64, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01B3)
        })
    };
    assert_eq!(hash(1), hash(3));
    assert_eq!(hash(1), 0xE402_F245_2302_D67B, "packed models would no longer be what they were");
}
