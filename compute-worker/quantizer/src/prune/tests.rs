//! Pruned tiny models open, pack and compute what they should.

use rookery_model::bundle::NoProgress;
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{ExistingTarget, PackOptions, Recipe, pack};
use rookery_model::tokenizer::TokenizerConfig;

use super::source::KeptLayer;
use super::*;

const MODELS: [&str; 3] = ["llama3.gguf", "qwen2.gguf", "qwen3.gguf"];

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny").join(name)
}

fn logits(source: &dyn ModelSource) -> Vec<f32> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 3) % 512).collect();
    let mut all = Vec::new();
    Reference::open(source).logits(&[&tokens], &mut |_, _, logits| all.extend_from_slice(logits)).unwrap();
    all
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn options(layers: DropLayers, ffn_width: Option<usize>) -> PruneOptions {
    PruneOptions { layers, ffn_width, calibration_tokens: 512, eval_tokens: 0, ..PruneOptions::default() }
}

fn run(model: &Path, options: &PruneOptions, out: &Path) -> PruneReport {
    prune(model, options, out, &NoProgress).unwrap()
}

/// A model one of whose layers adds nothing to the stream.
struct Silenced<'a> {
    source: &'a GgufModel,
    layer: usize,
}

impl ModelSource for Silenced<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn tensor_rows(
        &self,
        name: TensorName,
        rows: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, rookery_model::source::ImportError> {
        let mut values = self.source.tensor_rows(name, rows)?;
        let outputs = [LayerTensor::AttnOutput, LayerTensor::FfnDown];
        if outputs.iter().any(|&tensor| name == TensorName::Layer(self.layer, tensor)) {
            values.fill(0.0);
        }
        Ok(values)
    }

    fn tokenizer_json(&self) -> &str {
        self.source.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        self.source.tokenizer_config()
    }

    fn digest(&self) -> Result<String, rookery_model::source::ImportError> {
        self.source.digest()
    }

    fn description(&self) -> String {
        self.source.description()
    }
}

fn silenced(name: &str, layer: usize, folder: &Path) -> PathBuf {
    let (path, source) = (folder.join("silenced.gguf"), GgufModel::open(&tiny(name)).unwrap());
    file::write(&path, source.file(), &Silenced { source: &source, layer }, "one layer silenced").unwrap();
    path
}

#[test]
fn a_layer_that_does_nothing_goes_first_and_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, layer) in [("llama3.gguf", 1), ("llama3.gguf", 0), ("qwen3.gguf", 1)] {
        let model = silenced(name, layer, folder.path());
        let out = folder.path().join("pruned.gguf");
        let report = run(&model, &PruneOptions { replace: true, ..options(DropLayers::Auto(1), None) }, &out);
        assert_eq!(report.dropped, [layer], "{name}");
        let influence = report.influence.unwrap();
        assert!(influence[layer].abs() < 1e-12 && influence.iter().all(|other| *other >= influence[layer]));
        // The source was written in f16, so every bit is there again.
        let (before, after) = (GgufModel::open(&model).unwrap(), GgufModel::open(&out).unwrap());
        assert_eq!(after.config().layers, before.config().layers - 1);
        assert_eq!(largest_difference(&logits(&before), &logits(&after)), 0.0, "{name}");
        assert!(report.fits.iter().all(|fit| fit.error_before == 0.0 && fit.ridge.is_none()));
    }
}

#[test]
fn what_is_written_computes_what_was_cut_and_packs() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let source = GgufModel::open(&tiny(name)).unwrap();
        let out = folder.path().join(name);
        let options = options(DropLayers::These(vec![1]), Some(160));
        let report = run(&tiny(name), &options, &out);
        let written = GgufModel::open(&out).unwrap();
        let layers = source.config().layers - 1;
        let expected = ModelConfig { layers, ffn: 160, ..source.config().clone() };
        assert_eq!(*written.config(), expected, "{name}");
        assert_eq!(report.pruned.parameters, expected.parameters());
        assert_eq!(written.tokenizer_json(), source.tokenizer_json());
        assert_eq!(written.tokenizer_config(), source.tokenizer_config());

        // The twin again, without the file in between.
        let cut = Cut::new(source.config(), &options.layers, None, options.ffn_width);
        let sequences = Sequences::read(&source, &[], 512, 64).unwrap();
        let twin = twin::Twin {
            compute: &Compute::new(1),
            source: &source,
            reference: Reference::open(&source),
            sequences: &sequences,
            cut: &cut,
            recover: true,
            meter: &Meter::shares(&NoProgress, "", 1),
        };
        let (layers, fits) = twin.run().unwrap();
        assert_eq!(fits, report.fits, "{name}: the same on any number of threads");
        let pruned = PrunedSource::new(&source, &cut, layers);
        let (in_memory, in_file) = (logits(&pruned), logits(&written));
        assert!(largest_difference(&in_memory, &in_file) < 2e-2, "{name}");
        let plain = logits(&pruned.without_recovery());
        assert!(largest_difference(&plain, &in_file) > 2e-2, "{name}: refitting changed nothing");

        let bundle = folder.path().join(format!("{name}-bundle"));
        let as_w8 = PackOptions {
            name: "pruned".to_owned(),
            recipe: Recipe::W8,
            threads: 1,
            existing: ExistingTarget::Refuse,
        };
        pack(&written, &as_w8, &bundle, &NoProgress).unwrap();
    }
}

#[test]
fn recovery_brings_the_stream_nearer() {
    let folder = tempfile::tempdir().unwrap();
    for (layers, width) in [(vec![], Some(128)), (vec![0], None), (vec![1, 2], None), (vec![2], Some(192))] {
        let out = folder.path().join("pruned.gguf");
        let options = PruneOptions { replace: true, ..options(DropLayers::These(layers.clone()), width) };
        let report = run(&tiny("llama3.gguf"), &options, &out);
        // Every narrowed layer, or the one beside those dropped.
        let expected = if width.is_some() { 3 - layers.len() } else { 1 };
        assert_eq!(report.fits.len(), expected, "{layers:?} {width:?}");
        for fit in &report.fits {
            assert!(fit.error_before > 0.0, "{fit:?}");
            // Rounding to f16 is all that may be lost.
            assert!(fit.error_after <= fit.error_before * 1.0001, "{fit:?}");
        }
        let plain = PruneOptions { recover: false, ..options };
        assert!(run(&tiny("llama3.gguf"), &plain, &out).fits.is_empty());
    }
}

#[test]
fn predictions_are_measured_with_and_without_recovery() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pruned.gguf");
    let options = PruneOptions { eval_tokens: 256, ..options(DropLayers::Auto(0), Some(96)) };
    let report = run(&tiny("qwen2.gguf"), &options, &out);
    let evaluation = report.evaluation.as_ref().unwrap();
    let names: Vec<&str> = evaluation.candidates.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["pruned", "pruned, recovered"]);
    for candidate in &evaluation.candidates {
        assert!(candidate.kl.unwrap().mean.value > 0.0 && candidate.perplexity.value > 1.0);
    }
    assert!(serde_json::to_string(&report).unwrap().contains("\"fits\""));
}

#[test]
fn a_pruned_source_of_everything_is_its_source() {
    let source = GgufModel::open(&tiny("qwen2.gguf")).unwrap();
    let cut = Cut::new(source.config(), &DropLayers::These(vec![]), None, None);
    let everything =
        |layer| KeptLayer { layer, channels: Some((0..source.config().ffn).collect()), down: None };
    let layers = cut.kept.iter().map(|&layer| everything(layer)).collect();
    let pruned = PrunedSource::new(&source, &cut, layers);
    assert_eq!(logits(&source), logits(&pruned));
}

#[test]
fn faults_are_named_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pruned.gguf");
    let refused = |layers: &[usize], width, expected: &str| {
        let options = options(DropLayers::These(layers.to_vec()), width);
        let error = prune(&tiny("llama3.gguf"), &options, &out, &NoProgress).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    refused(&[], None, "nothing to prune");
    refused(&[3], None, "no layer 3 to drop; the model has layers 0 to 2");
    refused(&[0, 1, 2], None, "3 layers cannot be dropped of 3");
    refused(&[], Some(208), "208 cannot be narrowed to 208");
    refused(&[], Some(256), "give a smaller multiple of 32");
    refused(&[], Some(100), "give a smaller multiple of 32");
    refused(&[], Some(0), "give a smaller multiple of 32");
    let all = options(DropLayers::Auto(3), None);
    prune(&tiny("llama3.gguf"), &all, &out, &NoProgress).unwrap_err();
    let folder_error = prune(&tiny("hf-llama3"), &all, &out, &NoProgress).unwrap_err();
    assert!(folder_error.to_string().contains("convert it to an f16 GGUF file first"));
    std::fs::write(&out, "mine").unwrap();
    let exists = prune(&tiny("llama3.gguf"), &options(DropLayers::These(vec![1]), None), &out, &NoProgress);
    assert!(matches!(exists.unwrap_err(), PruneError::Exists { .. }));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "mine");
}

#[test]
fn a_disk_that_is_too_small_is_noticed_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = GgufModel::open(&tiny("llama3.gguf")).unwrap().config().clone();
    file::check_space(&folder.path().join("x.gguf"), &config).unwrap();
    let huge = ModelConfig { vocab: 1 << 40, ..config.clone() };
    let error = file::check_space(&folder.path().join("x.gguf"), &huge).unwrap_err();
    assert!(matches!(error, PruneError::NoSpace { needed, .. } if needed > 1 << 47), "{error}");
    let nowhere = file::check_space(&folder.path().join("no/x.gguf"), &config).unwrap_err();
    assert!(nowhere.to_string().ends_with("no"), "{nowhere}");
}

#[test]
fn layers_are_read_from_text() {
    assert_eq!("auto:4".parse(), Ok(DropLayers::Auto(4)));
    assert_eq!("3,7, 11".parse(), Ok(DropLayers::These(vec![3, 7, 11])));
    for text in ["", "auto", "auto:", "auto:x", "3,,4", "-1", "all"] {
        assert_eq!(text.parse::<DropLayers>(), Err(UnknownLayers(text.to_owned())));
    }
    // One named twice goes once; of equals the first goes.
    let config = GgufModel::open(&tiny("llama3.gguf")).unwrap().config().clone();
    assert_eq!(Cut::new(&config, &DropLayers::These(vec![2, 0, 2]), None, None).kept, [1]);
    let auto = Cut::new(&config, &DropLayers::Auto(1), Some(&[0.5, 0.1, 0.1]), None);
    assert_eq!((auto.dropped, auto.kept), (vec![1], vec![0, 2]));
}
