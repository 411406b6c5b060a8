//! Bundles from end to end: pack, open, read back, and every way to break one.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rookery_kernels::{Weights, tiles};
use rookery_model::bundle::{
    Bundle, BundleError, Digest, LinearWeights, NoProgress, Precision, Progress, Segment, TensorEntry,
};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{ExistingTarget, PackError, PackOptions, Recipe, pack};
use rookery_model::source::ModelSource;
use safetensors::SafeTensors;

#[path = "bundle/corruption.rs"]
mod corruption;
#[path = "bundle/documents.rs"]
mod documents;
#[path = "bundle/draft.rs"]
mod draft;
#[path = "bundle/killed.rs"]
mod killed;
#[path = "bundle/moved.rs"]
mod moved;
#[path = "bundle/mutation.rs"]
mod mutation;
#[path = "bundle/segments.rs"]
mod segments;
#[path = "bundle/support.rs"]
mod support;

use support::{RandomSource, options, packed, small_config};

/// What the stored integers mean: `[rows][cols]` of a segment.
fn dequantized(segment: &Segment) -> Vec<f32> {
    dequantized_view(&segment.view())
}

fn dequantized_view(weights: &Weights<'_>) -> Vec<f32> {
    match *weights {
        Weights::W8(w) => {
            let mut values = vec![0; w.rows * w.cols];
            tiles::unpack_w8(w.rows, w.cols, w.tiles, &mut values);
            let rows = values.chunks(w.cols).zip(w.scales);
            rows.flat_map(|(row, scale)| row.iter().map(move |&value| f32::from(value) * scale)).collect()
        }
        Weights::W4(w) => {
            let mut values = vec![0; w.rows * w.cols];
            tiles::unpack_w4(w.rows, w.cols, w.tiles, &mut values);
            let groups = w.cols.div_ceil(tiles::W4_GROUP);
            let weight = |(at, &value): (usize, &i8)| {
                let (row, col) = (at / w.cols, at % w.cols);
                let multiplier = w.multipliers[row * groups + col / tiles::W4_GROUP];
                f32::from(value) * f32::from(multiplier) * w.scales[row]
            };
            values.iter().enumerate().map(weight).collect()
        }
    }
}

fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
    let distance = sum(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    (distance / sum(&mut expected.iter().copied())).sqrt()
}

fn check_round_trip(config: ModelConfig, recipe: Recipe) {
    let source = RandomSource::new(config.clone());
    let (_parent, path) = packed(config.clone(), recipe);
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    check_tensors(&bundle, &source, recipe);
    let head = bundle.linear(TensorName::Output).unwrap();
    let embedding = bundle.linear(TensorName::TokenEmbedding).unwrap();
    let same = std::ptr::eq(tiles_of(&head), tiles_of(&embedding));
    assert_eq!(same, config.tied_head);
    assert_eq!(bundle.tokenizer().unwrap().encode_text("abba").unwrap(), [2, 1, 0]);
    assert_eq!(Bundle::inspect(&path).unwrap(), *bundle.info());
}

/// Every tensor of the bundle is the source's, to within what the recipe's rounding may do.
fn check_tensors(bundle: &Bundle, source: &dyn ModelSource, recipe: Recipe) {
    let config = source.config();
    assert_eq!(bundle.info().config.model, *config);
    for name in config.tensor_names() {
        let (rows, cols) = config.shape(name);
        let expected = source.tensor(name).unwrap();
        if !name.is_linear() {
            assert_eq!(bundle.vector(name).unwrap(), expected, "{name}");
            assert!(bundle.linear(name).is_err());
            continue;
        }
        let LinearWeights { rows: found_rows, cols: found_cols, segments } = bundle.linear(name).unwrap();
        assert_eq!((found_rows, found_cols, segments.len()), (rows, cols, 1), "{name}");
        let quantized_to_4 = recipe == Recipe::W4 && matches!(name, TensorName::Layer(..));
        assert_eq!(
            segments[0].precision,
            if quantized_to_4 { Precision::W4 } else { Precision::W8 },
            "{name}"
        );
        let error = relative_error(&dequantized(&segments[0]), &expected);
        // Rounding is off by 0.29 steps on average; a step is max/127 or about max/7, and max about 1.7 (uniform) to
        // 3.5 (normal) times the mean size of a weight.
        assert!(error < if quantized_to_4 { 0.12 } else { 0.009 }, "{name}: relative error {error}");
    }
}

fn tiles_of(weights: &LinearWeights) -> *const u8 {
    match weights.segments[0].view() {
        Weights::W8(w) => w.tiles.as_ptr().cast(),
        Weights::W4(w) => w.tiles.as_ptr(),
    }
}

#[test]
fn w8_round_trips() {
    check_round_trip(small_config(), Recipe::W8);
}

#[test]
fn w4_round_trips() {
    check_round_trip(small_config(), Recipe::W4);
}

#[test]
fn separate_head_round_trips() {
    let plain = ModelConfig { tied_head: false, qkv_bias: false, qk_norm: false, ..small_config() };
    check_round_trip(plain, Recipe::W4);
}

#[test]
fn imported_models_round_trip() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    for name in ["llama3.gguf", "qwen2.gguf", "qwen3.gguf", "hf-llama3", "hf-qwen2", "hf-qwen3"] {
        let source = rookery_model::source::open(&fixtures.join(name)).unwrap();
        for recipe in [Recipe::W8, Recipe::W4] {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join("model");
            let info = pack(&*source, &options(recipe, 2), &path, &NoProgress).unwrap();
            let bundle = Bundle::open(&path, &NoProgress).unwrap();
            check_tensors(&bundle, &*source, recipe);
            assert_eq!(info.config.source_digest, source.digest().unwrap(), "{name}");
            let text = "let x = 1; // Grüße";
            let ids = bundle.tokenizer().unwrap().encode_text(text).unwrap();
            assert!(!ids.is_empty(), "{name}");
        }
    }
}

#[test]
fn tensors_the_model_lacks_are_refused_by_name() {
    let (_parent, path) = packed(ModelConfig { qk_norm: false, ..small_config() }, Recipe::W8);
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    let cases = [TensorName::Layer(0, LayerTensor::AttnQNorm), TensorName::Layer(2, LayerTensor::AttnNorm)];
    for name in cases {
        let error = bundle.vector(name).unwrap_err();
        assert_eq!(error.to_string(), format!("the model has no vector {name}"));
    }
    let error = bundle.linear(TensorName::OutputNorm).unwrap_err();
    assert_eq!(error.to_string(), "the model has no matrix output_norm.weight");
}

/// Every file below a folder, by relative path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        if entry.is_dir() {
            files.extend(
                self::files(&entry).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            );
        } else {
            files.insert(name, fs::read(&entry).unwrap());
        }
    }
    files
}

#[test]
fn bytes_do_not_depend_on_threads() {
    // Wide enough that the embedding takes several chunks and batches.
    let config = ModelConfig { vocab: 60_000, layers: 1, ..small_config() };
    let source = RandomSource::new(config);
    for recipe in [Recipe::W8, Recipe::W4] {
        let parent = tempfile::tempdir().unwrap();
        let mut first = None;
        for threads in [1, 2, 7, 0] {
            let path = parent.path().join(threads.to_string());
            let info = pack(&source, &options(recipe, threads), &path, &NoProgress).unwrap();
            let packed = (info, files(&path));
            assert!(
                *first.get_or_insert_with(|| packed.clone()) == packed,
                "{recipe} with {threads} threads differs"
            );
        }
    }
}

#[test]
fn blobs_are_safetensors_with_aligned_tensors() {
    let (_parent, path) = packed(ModelConfig { tied_head: false, ..small_config() }, Recipe::W4);
    let info = Bundle::inspect(&path).unwrap();
    let weights = info.blobs.iter().filter(|blob| blob.title.ends_with(".safetensors"));
    let titles: Vec<_> = weights.clone().map(|blob| blob.title.as_str()).collect();
    assert_eq!(
        titles,
        ["embedding.safetensors", "block.0.safetensors", "block.1.safetensors", "head.safetensors"]
    );
    for blob in weights {
        let bytes = fs::read(path.join(blob.path())).unwrap();
        assert_eq!(bytes.len() as u64, blob.size);
        let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((header + 8) % 4096, 0);
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let alignment = if name.ends_with(".tiles") { 1024 } else { 4 };
            assert!(start.is_multiple_of(alignment) || name.ends_with(".multipliers"), "{name} at {start}");
        }
    }
}

#[test]
fn info_adds_up() {
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let info = Bundle::inspect(&path).unwrap();
    let on_disk: u64 = files(&path.join("blobs")).values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(info.total_bytes, on_disk);
    let contents = info.contents();
    assert_eq!(contents.iter().map(|blob| blob.size).sum::<u64>(), on_disk);
    for blob in &contents {
        assert_eq!(Digest::of(&fs::read(path.join(blob.path())).unwrap()), blob.digest, "{}", blob.title);
    }
    let headers_and_padding =
        info.weight_bytes - info.config.tensors.iter().map(TensorEntry::bytes).sum::<u64>();
    assert_eq!(headers_and_padding % 4096, 0, "all blobs together are data and whole pages of header");
    assert_eq!(info.config.parameters, small_config().parameters());
    assert_eq!(info.config.source, "random weights of a test");
    assert!(info.bits_per_weight > 8.0, "{}", info.bits_per_weight);
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["digest"], Bundle::open(&path, &NoProgress).unwrap().digest());
    assert_eq!(json["config"]["tensors"][1]["name"], "blk.0.attn_norm.weight");
}

#[test]
fn a_weight_that_is_no_number_stops_packing() {
    let mut source = RandomSource::new(small_config());
    for name in
        [TensorName::Layer(1, LayerTensor::FfnDown), TensorName::OutputNorm, TensorName::TokenEmbedding]
    {
        let row = small_config().shape(name).0 / 2;
        source.broken = Some((name, row));
        let parent = tempfile::tempdir().unwrap();
        let error =
            pack(&source, &options(Recipe::W4, 2), &parent.path().join("model"), &NoProgress).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor {name} holds NaN in row {row}; the source is corrupt"));
        assert_eq!(files(parent.path()).len(), 0, "nothing is left behind");
    }
}

#[test]
fn names_that_cannot_be_typed_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let source = RandomSource::new(small_config());
    for name in ["", "two words", "naïve", "a\nb", &"x".repeat(129)] {
        let options = PackOptions { name: name.to_owned(), ..PackOptions::default() };
        let result = pack(&source, &options, &parent.path().join("model"), &NoProgress);
        assert!(matches!(result, Err(PackError::Name { .. })), "{name:?}");
    }
}

#[test]
fn replacing_keeps_open_bundles_usable() {
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let old = Bundle::open(&path, &NoProgress).unwrap();
    let before = dequantized(&old.linear(TensorName::Output).unwrap().segments[0]);
    let source = RandomSource::new(small_config());
    let refused = pack(&source, &options(Recipe::W4, 1), &path, &NoProgress);
    assert!(matches!(refused, Err(PackError::TargetExists { .. })));
    let replace = PackOptions { existing: ExistingTarget::Replace, ..options(Recipe::W4, 1) };
    let info = pack(&source, &replace, &path, &NoProgress).unwrap();
    assert_ne!(info.digest.as_str(), old.digest());
    assert_eq!(Bundle::open(&path, &NoProgress).unwrap().digest(), info.digest.as_str());
    let weights = old.linear(TensorName::Output).unwrap();
    drop(old);
    assert_eq!(dequantized(&weights.segments[0]), before);
}

/// Checks that phases do not nest and that their bytes add up.
#[derive(Default)]
struct Ledger {
    phases: Mutex<Vec<(String, u64)>>,
    done: AtomicU64,
}

impl Progress for Ledger {
    fn start(&self, what: &str, total_bytes: u64) {
        self.phases.lock().unwrap().push((what.to_owned(), total_bytes));
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&self) {
        let total = self.phases.lock().unwrap().last().unwrap().1;
        assert_eq!(self.done.swap(0, Ordering::Relaxed), total);
    }
}

#[test]
fn progress_adds_up() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    let ledger = Ledger::default();
    let info = pack(&RandomSource::new(small_config()), &options(Recipe::W4, 2), &path, &ledger).unwrap();
    Bundle::open(&path, &ledger).unwrap();
    let phases = ledger.phases.into_inner().unwrap();
    assert_eq!(phases.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["packing", "verifying"]);
    let layers = info.blobs.iter().filter(|blob| blob.title != "config.json");
    assert_eq!(phases[1].1, layers.map(|blob| blob.size).sum::<u64>());
    assert_eq!(ledger.done.into_inner(), 0, "every phase was finished");
}

#[test]
fn a_source_that_fails_leaves_an_existing_bundle_alone() {
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let before = files(&path);
    let mut source = RandomSource::new(small_config());
    source.broken = Some((TensorName::OutputNorm, 0));
    let replace = PackOptions { existing: ExistingTarget::Replace, ..options(Recipe::W8, 2) };
    pack(&source, &replace, &path, &NoProgress).unwrap_err();
    assert!(files(&path) == before);
    assert!(!matches!(Bundle::open(&path, &NoProgress), Err(BundleError::Unfinished { .. })));
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    let source = RandomSource::new(rookery_model::config::ModelConfig { vocab: 2, ..small_config() });
    let error = pack(&source, &options(Recipe::W8, 1), &path, &NoProgress).unwrap_err();
    assert_eq!(support::chain(&error), "tokenizer: the tokenizer has 3 tokens where the model has 2");

    let (_parent, path) = packed(small_config(), Recipe::W8);
    support::Editor(&path).edit_layer("tokenizer.json", |bytes| {
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace(r#""b":1"#, r#""b":131"#).into_bytes();
    });
    let error = Bundle::open(&path, &NoProgress).unwrap().tokenizer().unwrap_err();
    assert_eq!(support::chain(&error), "tokenizer: the tokenizer has 132 tokens where the model has 131");
}
